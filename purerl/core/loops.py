"""Loops inside compiled functions: the counterpart of ``jax.lax.fori_loop``."""

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes

from purerl.core import trees
from purerl.core.jit import after_tracing, compile_graph, tracing_mode


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
    mode = tracing_mode()
    if mode is None:
        for i in range(num):
            carry = body(torch.tensor(i), carry, *operands)
        return carry
    state, treedef = trees.flatten(carry)
    leaves, operands_def = trees.flatten(operands)

    def flat(i, *leaves):
        before = trees.unflatten(treedef, leaves[: len(state)])
        after = body(i, before, *trees.unflatten(operands_def, leaves[len(state) :]))
        outputs, structure = trees.flatten(after)
        _check_carry(state, treedef, outputs, structure)
        return [output.contiguous() for output in outputs]

    name = _register(flat, [*state, *leaves], mode)
    return trees.unflatten(treedef, _fori(name, num, len(state), [*state, *leaves]))


def _check_carry(before, before_def, after, after_def):
    if before_def != after_def:
        raise ValueError(
            f'fori: the body makes a carry of structure {before_def} one of {after_def}'
        )
    for x, y in zip(before, after, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            raise ValueError(
                f'fori: the body makes {tuple(y.shape)} {y.dtype} of the carry '
                f'{tuple(x.shape)} {x.dtype}; it must keep shapes and dtypes'
            )


# --- Bodies --------------------------------------------------------------------------------------
# A body is known by the hash of its traced graph, so that the graphs around it, and what compilers
# cached for them on disk, mean the same body in every process. A body under vmap is known by that
# of the plain one and the mapped leaves: 'trace:<hash>|0,-,0' (from the innermost vmap outwards).

_GRAPHS: dict[str, torch.fx.GraphModule] = {}


def _register(flat: Callable, leaves: Sequence[torch.Tensor], mode: str) -> str:
    """Trace ``flat(i, *leaves)``, outside of all transformations around; return its name."""
    specs = _specs(leaves)
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        graph = _trace(flat, specs)
        constants = [value.tolist() for _, value in sorted(graph.named_buffers())]
    content = repr((graph.code, constants, specs))
    name = f'{mode}:{hashlib.sha256(content.encode()).hexdigest()}'
    _GRAPHS.setdefault(name, graph)
    return name


def _specs(leaves):
    return tuple((tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves)


def _examples(specs):
    return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in specs]


def _trace(flat, specs):
    try:
        with torch.no_grad():
            return make_fx(flat, tracing_mode='fake')(torch.tensor(0), *_examples(specs))
    except AssertionError as error:
        if 'fake' not in str(error):
            raise
        raise ValueError('fori: the body closes over a tensor; pass it as an operand') from error


@functools.cache
def _program(name: str, specs: tuple) -> Callable:
    """Compile a body for its leaves' shapes."""
    plain, *mapped = name.split('|')
    mode, graph = plain.partition(':')[0], _GRAPHS[plain]
    if mapped:
        flat = graph
        for dims in mapped:
            in_dims = [None if dim == '-' else 0 for dim in dims.split(',')]
            flat = torch.func.vmap(flat, in_dims=(None, *in_dims))
        graph = _trace(lambda *args: [output.contiguous() for output in flat(*args)], specs)
    return compile_graph(graph, [torch.tensor(0), *_examples(specs)], mode)


@torch.library.custom_op('purerl::fori', mutates_args=())
def _fori(
    name: str, num: int, num_carry: int, leaves: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    # Contiguous, as the body was compiled for; clones, since outputs must not alias inputs.
    carry = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves[:num_carry]]
    operands = [leaf.contiguous() for leaf in leaves[num_carry:]]
    run = _program(name, _specs(leaves))
    for i in range(num):
        carry = list(run(torch.tensor(i), *carry, *operands))
    return carry


@_fori.register_fake
def _(name, num, num_carry, leaves):
    if tracing_mode() is not None:
        # Here nothing is transformed any more, and while the program runs nothing can be traced.
        after_tracing(functools.partial(_program, name, _specs(leaves)))
    return [
        torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves[:num_carry]
    ]


@_fori.register_vmap
def _(info, in_dims, name, num, num_carry, leaves):
    dims = list(in_dims[3])
    # What comes out of an iteration is mapped if anything is, so all of the carry goes in mapped.
    leaves = [
        leaf.expand(info.batch_size, *leaf.shape)
        if dim is None and k < num_carry
        else leaf
        if dim is None
        else leaf.movedim(dim, 0)
        for k, (leaf, dim) in enumerate(zip(leaves, dims, strict=True))
    ]
    flags = ['-' if dim is None and k >= num_carry else '0' for k, dim in enumerate(dims)]
    batched = f'{name}|{",".join(flags)}'
    outputs = _fori(batched, num, num_carry, [leaf.contiguous() for leaf in leaves])
    return outputs, [0] * num_carry
