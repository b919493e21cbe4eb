"""Loops and branches inside compiled functions: ``jax.lax.fori_loop`` and ``jax.lax.cond``."""

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

from purerl.core import trees
from purerl.core.jit import after_tracing, compile_graph, trace_graph, tracing_mode


def fori(num: int, body: Callable, carry, *operands):
    """Return `carry` after ``carry = body(i, carry, *operands)`` for i = 0 .. num - 1.

    In a compiled function the body is traced and compiled once, whatever `num` is, and is one
    opaque operator of the surrounding graph; elsewhere this is a plain loop.

    Args:
        num: number of iterations.
        body: function of the iteration (0-d integer tensor), the carry and the operands, trees of
            tensors, that returns the next carry, of the same shapes and dtypes. It must not close
            over tensors.
        carry, operands: trees of tensors. Nothing differentiates through the loop: they are
            detached.

    Raises:
        ValueError: if the body's result differs from the carry in structure, shapes or dtypes, or
            it closes over a tensor of the function being compiled.
    """
    carry, operands = trees.map(torch.Tensor.detach, (carry, operands))
    state, treedef = trees.flatten(carry)
    device = state[0].device
    mode = tracing_mode()
    if mode is None:
        for i in range(num):
            carry = body(_index(i, device), carry, *operands)
        return carry
    leaves, operands_def = trees.flatten(operands)

    def flat(i, *leaves):
        before = trees.unflatten(treedef, leaves[: len(state)])
        after = body(i, before, *trees.unflatten(operands_def, leaves[len(state) :]))
        outputs, structure = trees.flatten(after)
        _check_carry(state, treedef, outputs, structure)
        return [output.contiguous() for output in outputs]

    leaves = [*state, *leaves]
    name = _register(flat, [_index(0, device), *leaves], mode)
    return trees.unflatten(treedef, _fori(name, num, len(state), leaves))


def cond(predicate: torch.Tensor, true_fn: Callable, false_fn: Callable, *operands):
    """Return ``true_fn(*operands)`` where `predicate` holds, else ``false_fn(*operands)``.

    In a compiled function each branch is traced and compiled by itself, and only the one that is
    taken runs. Under vmap with a predicate of its own for each member both run, and each member
    keeps what it takes.

    Args:
        predicate: 0-d bool tensor.
        true_fn, false_fn: functions of the operands, trees of tensors, with results of the same
            structure, shapes and dtypes. They must not close over tensors.
        operands: trees of tensors. Nothing differentiates through the branches: they are detached.

    Raises:
        ValueError: if the results differ in structure, shapes or dtypes, or a branch closes over a
            tensor of the function being compiled.
    """
    operands = trees.map(torch.Tensor.detach, operands)
    mode = tracing_mode()
    if mode is None:
        if get_proxy_mode() is None and torch._C._functorch.peek_interpreter_stack() is None:
            return true_fn(*operands) if predicate else false_fn(*operands)
        results = true_fn(*operands), false_fn(*operands)
        return trees.map(lambda x, y: torch.where(predicate, x, y), *results)
    leaves, treedef = trees.flatten(operands)
    results = []

    def flat(branch, *leaves):
        outputs, structure = trees.flatten(branch(*trees.unflatten(treedef, leaves)))
        results.append((outputs, structure))
        return [output.contiguous() for output in outputs]

    names = [_register(functools.partial(flat, fn), leaves, mode) for fn in (true_fn, false_fn)]
    (outputs, structure), other = results
    _check_branches(outputs, structure, *other)
    return trees.unflatten(structure, _cond(*names, predicate, leaves))


def _check_carry(before, before_def, after, after_def):
    if before_def != after_def:
        raise ValueError(
            f'fori: the body returns the structure {after_def}, its carry has {before_def}'
        )
    for x, y in _unlike(before, after):
        raise ValueError(
            f'fori: the body makes {_describe(y)} of the carry {_describe(x)}; it must keep shapes '
            'and dtypes'
        )


def _check_branches(first, first_def, second, second_def):
    if first_def != second_def:
        raise ValueError(
            f'cond: one branch returns the structure {first_def}, the other {second_def}'
        )
    for x, y in _unlike(first, second):
        raise ValueError(f'cond: one branch returns {_describe(x)}, the other {_describe(y)}')


def _unlike(first, second):
    """Return the pairs of tensors that differ in shape or dtype."""
    pairs = zip(first, second, strict=True)
    return [(x, y) for x, y in pairs if x.shape != y.shape or x.dtype != y.dtype]


def _describe(x):
    return f'{tuple(x.shape)} {x.dtype}'


# --- Bodies --------------------------------------------------------------------------------------
# Bodies of loops, and branches. A body is known by the hash of its traced graph, so that the graphs
# around it, and what compilers cached for them on disk, mean the same body in every process. A body
# under vmap is known by that of the plain one, how many it is mapped over, and the mapped leaves:
# 'trace:<hash>|8:0,-,0' (from the innermost vmap outwards).

_GRAPHS: dict[str, torch.fx.GraphModule] = {}


def _register(flat: Callable, leaves: Sequence[torch.Tensor], mode: str) -> str:
    """Trace ``flat(*leaves)``, outside of all transformations around; return its name."""
    specs = _specs(leaves)
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        graph = _trace(flat, specs)
        constants = [
            (value.dtype, value.shape, value.tolist()) for _, value in sorted(graph.named_buffers())
        ]
    content = repr((graph.code, constants, specs))
    name = f'{mode}:{hashlib.sha256(content.encode()).hexdigest()}'
    _GRAPHS.setdefault(name, graph)
    return name


def _specs(leaves):
    return tuple((tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves)


def _examples(specs):
    return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in specs]


def _trace(flat, specs):
    with torch.no_grad():
        return trace_graph(flat, _examples(specs), 'fori, cond: a function', 'an operand')


@functools.cache
def _program(name: str) -> Callable:
    """Compile a body."""
    plain, *mapped = name.split('|')
    graph = flat = _GRAPHS[plain]
    specs = _specs([node.meta['val'] for node in graph.graph.find_nodes(op='placeholder')])
    for dims in mapped:
        size, _, flags = dims.partition(':')
        in_dims = tuple([None if flag == '-' else 0 for flag in flags.split(',')])
        flat = torch.func.vmap(flat, in_dims=in_dims)
        specs = tuple(
            [
                (shape if dim is None else (int(size), *shape), *rest)
                for dim, (shape, *rest) in zip(in_dims, specs, strict=True)
            ]
        )
    if mapped:
        graph = _trace(lambda *args: [output.contiguous() for output in flat(*args)], specs)
    return compile_graph(graph, _examples(specs), plain.partition(':')[0])


def _results(name):
    """Return tensors like those that a body returns, uninitialised."""
    plain, *mapped = name.split('|')
    sizes = [int(dims.partition(':')[0]) for dims in reversed(mapped)]
    (outputs,) = _GRAPHS[plain].graph.output_node().args
    specs = _specs([node.meta['val'] for node in outputs])
    return _examples([((*sizes, *shape), *rest) for shape, *rest in specs])


def _compile_later(name):
    if tracing_mode() is not None:
        # Here nothing is transformed any more, and while the program runs nothing can be traced.
        after_tracing(functools.partial(_program, name))


def _mapped(name, size, dims):
    """Return the name of a body under vmap over these dimensions of its leaves."""
    return f'{name}|{size}:{",".join("-" if dim is None else "0" for dim in dims)}'


def _mapped_first(leaves, dims):
    """Move the mapped axes of leaves to the front."""
    return [
        leaf if dim is None else leaf.movedim(dim, 0).contiguous()
        for leaf, dim in zip(leaves, dims, strict=True)
    ]


# --- Loops' operator ------------------------------------------------------------------------------


def _index(i: int, device: torch.device) -> torch.Tensor:
    """Return an iteration's number; filled in by the device, which nothing waits for."""
    return torch.full((), i, device=device)


@torch.library.custom_op('purerl::fori', mutates_args=())
def _fori(
    name: str, num: int, num_carry: int, leaves: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    # Contiguous, as the body was compiled for; clones, since outputs must not alias inputs.
    carry = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves[:num_carry]]
    operands = [leaf.contiguous() for leaf in leaves[num_carry:]]
    run = _program(name)
    for i in range(num):
        carry = list(run(_index(i, carry[0].device), *carry, *operands))
    return carry


@_fori.register_fake
def _(name, num, num_carry, leaves):
    _compile_later(name)
    return [
        torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves[:num_carry]
    ]


@_fori.register_vmap
def _(info, in_dims, name, num, num_carry, leaves):
    dims = list(in_dims[3])
    # What comes out of an iteration is mapped if anything is, so all of the carry goes in mapped.
    for k in range(num_carry):
        if dims[k] is None:
            leaves[k], dims[k] = leaves[k].expand(info.batch_size, *leaves[k].shape), 0
    name = _mapped(name, info.batch_size, [None, *dims])
    return _fori(name, num, num_carry, _mapped_first(leaves, dims)), [0] * num_carry


# --- Branches' operator ---------------------------------------------------------------------------


@torch.library.custom_op('purerl::cond', mutates_args=())
def _cond(
    name: str, other: str, predicate: torch.Tensor, leaves: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    outputs = _program(name if predicate else other)(*[leaf.contiguous() for leaf in leaves])
    # Outputs must alias neither inputs nor each other.
    taken = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    own = []
    for output in outputs:
        own.append(output.clone() if output.untyped_storage().data_ptr() in taken else output)
        taken.add(own[-1].untyped_storage().data_ptr())
    return own


@_cond.register_fake
def _(name, other, predicate, leaves):
    for branch in (name, other):
        _compile_later(branch)
    return _results(name)


@_cond.register_vmap
def _(info, in_dims, name, other, predicate, leaves):
    dim, dims = in_dims[2:]
    any_mapped = any(d is not None for d in dims)
    if any_mapped:
        name, other = (_mapped(branch, info.batch_size, dims) for branch in (name, other))
        leaves = _mapped_first(leaves, dims)
    if dim is None:
        outputs = _cond(name, other, predicate, leaves)
    else:
        yes, no = (_cond(name, other, predicate.new_full((), x), leaves) for x in (True, False))
        predicate = predicate.movedim(dim, 0)
        outputs = [
            torch.where(predicate.reshape(-1, *[1] * (x.ndim - any_mapped)), x, y)
            for x, y in zip(yes, no, strict=True)
        ]
    return outputs, [0] * len(outputs)
