"""Gradient transformations and schedules: optax's, over trees of torch tensors.

A `GradientTransformation` is a pair of pure functions, ``init(params) -> state`` and
``update(updates, state, params=None) -> (updates, state)``. States are NamedTuples with optax's
names and fields, so a checkpoint written from either has the same tree. Nothing is written in
place and no Python number lives in a state: ``update`` runs under ``torch.func`` transformations,
tracing and compilation alike.

    >>> import torch
    >>> from purerl.core import optim
    >>> tx = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(1e-1))
    >>> params = {'w': torch.tensor([3.0, -4.0])}
    >>> state = tx.init(params)
    >>> for _ in range(100):
    ...     grads = torch.func.grad(lambda p: (p['w'] ** 2).sum())(params)
    ...     updates, state = tx.update(grads, state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> bool(params['w'].abs().max() < 0.2)
    True

Two calls of a constructor with equal arguments return the same object, so that two agents made
from one config share one compiled program. Formulas and the order of their operations are those of
optax 0.2.8; `tf_adam` and `tf_rmsprop` are TensorFlow 1's.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from purerl.core import trees

Tree = Any
Schedule = Callable[[torch.Tensor], torch.Tensor]
ScalarOrSchedule = float | Schedule

_INT32_MAX = 2**31 - 1


class GradientTransformation(NamedTuple):
    """A pair of pure functions, ``init(params)`` and ``update(updates, state, params=None)``."""

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


class ScaleByAdamState(NamedTuple):
    """Adam's state: steps taken (0-d int32), first and second moments."""

    count: torch.Tensor
    mu: Tree
    nu: Tree


class ScaleByRmsState(NamedTuple):
    """Mean squares of the gradients."""

    nu: Tree


class ScaleByRStdDevState(NamedTuple):
    """Means and mean squares of the gradients."""

    mu: Tree
    nu: Tree


class ScaleByScheduleState(NamedTuple):
    """Steps taken (0-d int32)."""

    count: torch.Tensor


class TraceState(NamedTuple):
    """Decayed sums of the gradients."""

    trace: Tree


class MaskedState(NamedTuple):
    """The state of the wrapped transformation, which saw the selected leaves only."""

    inner_state: Tree


class MaskedNode(NamedTuple):
    """What stands, in a masked tree, in the place of a leaf that was not selected."""


class PartitionState(NamedTuple):
    """One `MaskedState` per label."""

    inner_states: dict[str, Tree]


# --- Helpers ---------------------------------------------------------------------------------


def _interned(constructor):
    """Make `constructor` return one object per set of equal arguments, defaults filled in.

    Dicts and lists are compared by content; arguments with unhashable leaves are not remembered.
    """
    signature = inspect.signature(constructor)
    made: dict[Any, Any] = {}

    @functools.wraps(constructor)
    def construct(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        leaves, structure = trees.flatten((bound.args, bound.kwargs))
        key = (*leaves, *map(type, leaves), structure)
        try:
            hash(key)
        except TypeError:
            return constructor(*args, **kwargs)
        if key not in made:
            # Of containers of its own: the caller's may change.
            args, kwargs = trees.unflatten(structure, leaves)
            made[key] = constructor(*args, **kwargs)
        return made[key]

    return construct


def _map_columns(fn: Callable, width: int, tree: Tree, *rest: Tree) -> list[Tree]:
    """As `trees.map`, for an `fn` that returns `width` values: one pass gives `width` trees."""
    results = trees.leaves(trees.map(fn, tree, *rest))
    structure = trees.structure(tree)
    return [trees.unflatten(structure, results[i::width]) for i in range(width)]


def _zero_count(params: Tree) -> torch.Tensor:
    leaves = trees.leaves(params)
    return torch.zeros((), dtype=torch.int32, device=leaves[0].device if leaves else None)


def _increment(count: torch.Tensor) -> torch.Tensor:
    """Return ``count + 1``, which stays at the largest int32 once there."""
    return count.clamp(max=_INT32_MAX - 1) + 1


def _debias(decay: float, count: torch.Tensor) -> torch.Tensor:
    """Return ``1 - decay**count`` as optax forms it in float32.

    One unit in the last place of the power is 6e-5 of ``1 - 0.999``. The power of the float32
    decay is therefore taken in float64 and rounded: scalar, vectorised and generated code, and
    XLA's, then agree on every bit. It is an exponential because Inductor computes one that has
    several uses once, and a power again for every single parameter.
    """
    decay = float(np.float32(decay))
    power = torch.exp(count.to(torch.float64) * (math.log(decay) if decay else -math.inf))
    return 1 - power.to(torch.float32)


def _once(scalar: torch.Tensor) -> torch.Tensor:
    """Return a scalar as it is, computed once.

    Written inline, Inductor computes what it depends on, a schedule's cosine, again for every
    parameter: half a millisecond for a 256-wide network.
    """
    return torch.ops.purerl.once(scalar) if scalar.device.type == 'cpu' else scalar


_library = torch.library.Library('purerl', 'FRAGMENT')
_library.define('once(Tensor scalar) -> Tensor', tags=(torch.Tag.pt2_compliant_tag,))
_library.impl('once', torch.clone, 'CPU')
_library.impl('once', torch.library.fallthrough_kernel, 'Autograd')
torch.library.register_fake('purerl::once', torch.clone, lib=_library)
torch.library.register_vmap(
    'purerl::once', lambda info, in_dims, x: (torch.ops.purerl.once(x), in_dims[0]), lib=_library
)


def _stateless(update_leaf: Callable) -> GradientTransformation:
    def update(updates, state, params=None):
        return trees.map(update_leaf, updates), state

    return GradientTransformation(_init_empty, update)


def _init_empty(params: Tree) -> EmptyState:
    return EmptyState()


# --- Applying updates ------------------------------------------------------------------------


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return ``params + updates`` in the parameters' dtypes (optax's ``apply_updates``)."""
    return trees.map(lambda p, u: (p + u).to(p.dtype), params, updates)


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: float) -> Tree:
    """Return ``step_size * new + (1 - step_size) * old``: Polyak averaging, as optax writes it."""
    keep = 1.0 - step_size
    return trees.map(lambda new, old: new * step_size + old * keep, new_tensors, old_tensors)


# --- Combining -------------------------------------------------------------------------------


@_interned
def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply `transforms` one after the other; the state is the tuple of theirs.

    Raises:
        ValueError: in ``update``, if the state has another length than the chain.
    """

    def init(params):
        return tuple(tx.init(params) for tx in transforms)

    def update(updates, state, params=None):
        if len(state) != len(transforms):
            raise ValueError(
                f'chain of {len(transforms)} transformations got a state of {len(state)}; '
                "it must come from the same chain's init"
            )
        new_states = []
        for tx, tx_state in zip(transforms, state, strict=True):
            updates, new_state = tx.update(updates, tx_state, params)
            new_states.append(new_state)
        return updates, tuple(new_states)

    return GradientTransformation(init, update)


# --- Scaling ---------------------------------------------------------------------------------


@_interned
def scale(step_size: float) -> GradientTransformation:
    """Multiply updates by `step_size`."""
    return _stateless(lambda g: g * step_size)


@_interned
def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Multiply updates by ``step_size_fn(count)``, where the first step's count is 0."""

    def init(params):
        return ScaleByScheduleState(count=_zero_count(params))

    def update(updates, state, params=None):
        step_size = _once(step_size_fn(state.count))
        updates = trees.map(lambda g: g * step_size, updates)
        return updates, ScaleByScheduleState(count=_increment(state.count))

    return GradientTransformation(init, update)


@_interned
def scale_by_learning_rate(learning_rate: ScalarOrSchedule) -> GradientTransformation:
    """Multiply updates by minus the learning rate, a number or a schedule."""
    if callable(learning_rate):
        return scale_by_schedule(_negated(learning_rate))
    return scale(-1 * learning_rate)


@_interned
def _negated(schedule: Schedule) -> Schedule:
    return lambda count: -1 * schedule(count)


@_interned
def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> GradientTransformation:
    """Rescale updates as Adam does (Kingma and Ba, https://arxiv.org/abs/1412.6980).

    ``m = (1-b1) g + b1 m``, ``v = (1-b2) g^2 + b2 v``, and the update is
    ``(m / (1-b1^t)) / (sqrt(v / (1-b2^t) + eps_root) + eps)``.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added outside the square root.
        eps_root: added inside the square root, for differentiating through the update at v = 0.
    """

    def init(params):
        return ScaleByAdamState(
            count=_zero_count(params),
            mu=trees.map(torch.zeros_like, params),
            nu=trees.map(torch.zeros_like, params),
        )

    def update(updates, state, params=None):
        count = _increment(state.count)
        debias1, debias2 = _debias(b1, count), _debias(b2, count)

        def update_leaf(g, m, v):
            m = g * (1 - b1) + m * b1
            v = g * g * (1 - b2) + v * b2
            v_hat = v / debias2
            if eps_root:
                v_hat = v_hat + eps_root
            return (m / debias1) / (torch.sqrt(v_hat) + eps), m, v

        updates, mu, nu = _map_columns(update_leaf, 3, updates, state.mu, state.nu)
        return updates, ScaleByAdamState(count=count, mu=mu, nu=nu)

    return GradientTransformation(init, update)


@_interned
def scale_by_rms(
    decay: float = 0.9, eps: float = 1e-8, initial_scale: float = 0.0, eps_in_sqrt: bool = True
) -> GradientTransformation:
    """Divide updates by the root of their decayed mean square (Hinton's RMSProp).

    ``v = (1-decay) g^2 + decay v``; the update is ``g / sqrt(v + eps)``, or ``g / (sqrt(v) + eps)``
    without `eps_in_sqrt`.

    Args:
        decay: decay of the mean square.
        eps: keeps the division finite.
        initial_scale: initial mean square (0 in PyTorch and optax, 1 in TensorFlow 1).
        eps_in_sqrt: where `eps` is added.
    """

    def init(params):
        return ScaleByRmsState(nu=_full_like(params, initial_scale))

    def update(updates, state, params=None):
        def update_leaf(g, v):
            v = g * g * (1 - decay) + v * decay
            return _inverse_root(v, eps, eps_in_sqrt) * g, v

        updates, nu = _map_columns(update_leaf, 2, updates, state.nu)
        return updates, ScaleByRmsState(nu=nu)

    return GradientTransformation(init, update)


@_interned
def scale_by_stddev(
    decay: float = 0.9, eps: float = 1e-8, initial_scale: float = 0.0, eps_in_sqrt: bool = True
) -> GradientTransformation:
    """Divide updates by their decayed standard deviation (centered RMSProp).

    As `scale_by_rms`, with ``v - m^2`` in the place of ``v``, where ``m = (1-decay) g + decay m``
    starts from zero (Graves, https://arxiv.org/abs/1308.0850).
    """

    def init(params):
        return ScaleByRStdDevState(
            mu=trees.map(torch.zeros_like, params), nu=_full_like(params, initial_scale)
        )

    def update(updates, state, params=None):
        def update_leaf(g, m, v):
            m = g * (1 - decay) + m * decay
            v = g * g * (1 - decay) + v * decay
            return _inverse_root(v - m * m, eps, eps_in_sqrt) * g, m, v

        updates, mu, nu = _map_columns(update_leaf, 3, updates, state.mu, state.nu)
        return updates, ScaleByRStdDevState(mu=mu, nu=nu)

    return GradientTransformation(init, update)


def _full_like(params: Tree, value: float) -> Tree:
    return trees.map(lambda p: torch.full_like(p, value), params)


def _inverse_root(square: torch.Tensor, eps: float, eps_in_sqrt: bool) -> torch.Tensor:
    return torch.rsqrt(square + eps) if eps_in_sqrt else 1 / (torch.sqrt(square) + eps)


@_interned
def trace(decay: float, nesterov: bool = False) -> GradientTransformation:
    """Accumulate momentum: ``t = g + decay t``; the update is ``t``, or ``g + decay t`` again.

    Unlike an exponential moving average the sum is not multiplied by ``1 - decay``.

    Args:
        decay: decay of the sum.
        nesterov: look one step ahead (Sutskever et al. 2013).
    """

    def init(params):
        return TraceState(trace=trees.map(torch.zeros_like, params))

    def update(updates, state, params=None):
        new_trace = trees.map(lambda g, t: g + t * decay, updates, state.trace)
        if nesterov:
            updates = trees.map(lambda g, t: g + t * decay, updates, new_trace)
        else:
            updates = new_trace
        return updates, TraceState(trace=new_trace)

    return GradientTransformation(init, update)


@_interned
def identity() -> GradientTransformation:
    """Leave updates as they are."""
    return GradientTransformation(_init_empty, lambda updates, state, params=None: (updates, state))


@_interned
def set_to_zero() -> GradientTransformation:
    """Replace updates by zeros: what they belong to is frozen."""
    return _stateless(torch.zeros_like)


# --- Clipping --------------------------------------------------------------------------------


def global_norm(updates: Tree) -> torch.Tensor:
    """Return the Euclidean norm of all leaves taken together, a 0-d tensor (0 without leaves)."""
    squares = [torch.sum(g * g) for g in trees.leaves(updates)]
    return torch.sqrt(functools.reduce(torch.add, squares)) if squares else torch.zeros(())


@_interned
def clip(max_delta: float) -> GradientTransformation:
    """Clip every element of the updates to [-max_delta, max_delta]."""
    return _stateless(lambda g: torch.clamp(g, -max_delta, max_delta))


@_interned
def clip_by_global_norm(max_norm: float) -> GradientTransformation:
    """Scale updates so that their global norm is at most `max_norm`.

    ``g if norm < max_norm else g / norm * max_norm`` (Pascanu et al.,
    https://arxiv.org/abs/1211.5063). ``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to the norm;
    optax, and this, do not.
    """

    def update(updates, state, params=None):
        norm = global_norm(updates)
        small = norm < max_norm
        updates = trees.map(lambda g: torch.where(small, g, g / norm * max_norm), updates)
        return updates, state

    return GradientTransformation(_init_empty, update)


# --- Weight decay ----------------------------------------------------------------------------


@_interned
def add_decayed_weights(
    weight_decay: float = 0.0, mask: Tree | Callable[[Tree], Tree] | None = None
) -> GradientTransformation:
    """Add ``weight_decay * params`` to the updates.

    Args:
        weight_decay: the factor.
        mask: which leaves decay, as in `masked`; all by default.

    Raises:
        ValueError: in ``update``, if it was not given the parameters.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError('add_decayed_weights: update(updates, state, params) needs params')
        if weight_decay == 0.0:
            return updates, state
        return trees.map(lambda g, p: g + p * weight_decay, updates, params), state

    tx = GradientTransformation(_init_empty, update)
    return tx if mask is None else masked(tx, mask)


# --- Masking ---------------------------------------------------------------------------------


def _subtrees(prefix, tree: Tree) -> list[Tree]:
    """Return the subtrees of `tree` that stand where `prefix`, a structure, has its leaves.

    Raises:
        ValueError: if `prefix` is not a prefix of the tree's structure.
    """
    leaves, structure = trees.flatten(tree)
    remaining = iter(leaves)
    found: list[Tree] = []

    def visit(prefix_node, node):
        if prefix_node is None:
            size = _leaf_count(node)
            found.append(trees.unflatten(node, [next(remaining) for _ in range(size)]))
        elif node is None or prefix_node[:2] != node[:2]:
            raise ValueError(
                f'the mask or labels do not fit the tree: they have {_describe(prefix_node)} '
                f'where the tree has {_describe(node)}'
            )
        else:
            for prefix_child, child in zip(prefix_node[2], node[2], strict=True):
                visit(prefix_child, child)

    visit(prefix, structure)
    return found


def _leaf_count(structure) -> int:
    return 1 if structure is None else sum(_leaf_count(child) for child in structure[2])


def _describe(structure) -> str:
    return 'a leaf' if structure is None else f'a {structure[0]} of {structure[1]}'


def _hide(mask: Tree, tree: Tree) -> Tree:
    """Put `MaskedNode` in the place of the subtrees that `mask` does not select."""
    selected, prefix = trees.flatten(mask)
    subtrees = _subtrees(prefix, tree)
    kept = [x if use else MaskedNode() for use, x in zip(selected, subtrees, strict=True)]
    return trees.unflatten(prefix, kept)


def _merge(mask: Tree, new: Tree, old: Tree) -> Tree:
    """Take the subtrees that `mask` selects from `new`, the others from `old`."""
    selected, prefix = trees.flatten(mask)
    rows = zip(selected, _subtrees(prefix, new), _subtrees(prefix, old), strict=True)
    return trees.unflatten(prefix, [x if use else y for use, x, y in rows])


def _masked_init(inner: GradientTransformation, mask: Tree, params: Tree) -> MaskedState:
    return MaskedState(inner_state=inner.init(_hide(mask, params)))


def _masked_update(inner: GradientTransformation, mask: Tree, updates, state, params):
    new, inner_state = inner.update(
        _hide(mask, updates),
        state.inner_state,
        None if params is None else _hide(mask, params),
    )
    return _merge(mask, new, updates), MaskedState(inner_state=inner_state)


@_interned
def masked(
    inner: GradientTransformation, mask: Tree | Callable[[Tree], Tree]
) -> GradientTransformation:
    """Apply `inner` to the selected leaves only; the others pass through unchanged.

    Args:
        inner: what to apply; it sees `MaskedNode` in the place of what is not selected.
        mask: a tree of booleans, or a function from the params (or updates) to one. It may be a
            prefix: a boolean in the place of a subtree stands for all of it.

    Raises:
        ValueError: if the mask is not a prefix of the tree it is used on.
    """

    def mask_for(tree):
        return mask(tree) if callable(mask) else mask

    def init(params):
        return _masked_init(inner, mask_for(params), params)

    def update(updates, state, params=None):
        return _masked_update(inner, mask_for(updates), updates, state, params)

    return GradientTransformation(init, update)


@_interned
def multi_transform(
    transforms: Mapping[str, GradientTransformation], param_labels: Tree | Callable[[Tree], Tree]
) -> GradientTransformation:
    """Give every leaf the transformation that its label names (optax's ``partition``).

    Args:
        transforms: label to transformation.
        param_labels: a tree of labels, or a function from the params (or updates) to one; it may
            be a prefix, as in `masked`.

    Raises:
        ValueError: if a label names no transformation; the message has the label and its path.
    """

    def masks_for(tree):
        labels = param_labels(tree) if callable(param_labels) else param_labels
        for path, label in trees.leaves_with_path(labels):
            if label not in transforms:
                raise ValueError(
                    f'multi_transform: label {label!r} at {"/".join(path)!r} is none of '
                    f'{sorted(transforms)}'
                )
        return {
            name: trees.map(lambda label, name=name: label == name, labels) for name in transforms
        }

    def init(params):
        masks = masks_for(params)
        return PartitionState(
            {name: _masked_init(tx, masks[name], params) for name, tx in transforms.items()}
        )

    def update(updates, state, params=None):
        masks = masks_for(updates)
        inner_states = {}
        for name, tx in transforms.items():
            updates, inner_states[name] = _masked_update(
                tx, masks[name], updates, state.inner_states[name], params
            )
        return updates, PartitionState(inner_states)

    return GradientTransformation(init, update)


# --- Optimisers ------------------------------------------------------------------------------


@_interned
def adam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> GradientTransformation:
    """Adam: `scale_by_adam`, then `scale_by_learning_rate`."""
    return chain(scale_by_adam(b1, b2, eps, eps_root), scale_by_learning_rate(learning_rate))


@_interned
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
    mask: Tree | Callable[[Tree], Tree] | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101).

    The decay is multiplied by the learning rate. Its default is optax's 1e-4; PyTorch's is 1e-2.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@_interned
def sgd(
    learning_rate: ScalarOrSchedule, momentum: float | None = None, nesterov: bool = False
) -> GradientTransformation:
    """Gradient descent, with `trace` where `momentum` is given."""
    accumulate = identity() if momentum is None else trace(momentum, nesterov)
    return chain(accumulate, scale_by_learning_rate(learning_rate))


@_interned
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
) -> GradientTransformation:
    """RMSProp: `scale_by_rms` (centered: `scale_by_stddev`), the learning rate, then `trace`.

    The learning rate is inside the momentum, as in optax and TensorFlow 1; PyTorch has it outside,
    which differs while the rate changes.
    """
    rescale = scale_by_stddev if centered else scale_by_rms
    return chain(
        rescale(decay, eps, initial_scale, eps_in_sqrt),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )


# --- TensorFlow 1's optimisers ---------------------------------------------------------------


@_interned
def tf_adam(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformation:
    """TensorFlow 1's ``AdamOptimizer``: epsilon is added to the root before the bias correction.

    ``lr_t = learning_rate * sqrt(1-b2^t) / (1-b1^t)``, ``p -= lr_t m / (sqrt(v) + eps)``: the
    "epsilon hat" form that section 2 of the Adam paper mentions. Against `adam`, epsilon is
    ``1 / sqrt(1-b2^t)`` times as large. OpenAI baselines' MpiAdam has the same form.
    """
    return chain(_scale_by_tf_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))


@_interned
def _scale_by_tf_adam(b1: float, b2: float, eps: float) -> GradientTransformation:
    # The original subtracts in float32, which makes 1 - 0.999 smaller by 1.3e-5.
    rest1, rest2 = (float(np.float32(1) - np.float32(b)) for b in (b1, b2))

    def update(updates, state, params=None):
        count = _increment(state.count)
        correction = torch.sqrt(_debias(b2, count)) / _debias(b1, count)

        def update_leaf(g, m, v):
            m = m + (g - m) * rest1
            v = v + (g * g - v) * rest2
            return m * correction / (torch.sqrt(v) + eps), m, v

        updates, mu, nu = _map_columns(update_leaf, 3, updates, state.mu, state.nu)
        return updates, ScaleByAdamState(count=count, mu=mu, nu=nu)

    return GradientTransformation(scale_by_adam(b1, b2, eps).init, update)


@_interned
def tf_rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.9,
    momentum: float = 0.0,
    eps: float = 1e-10,
    centered: bool = False,
) -> GradientTransformation:
    """TensorFlow 1's ``RMSPropOptimizer``, with its argument order and defaults.

    ``v = decay v + (1-decay) g^2`` from ``v = 1``, ``u = momentum u + learning_rate g / sqrt(v +
    eps)``, ``p -= u``; centered, ``v - m^2`` in the place of ``v``. It is `rmsprop` with a mean
    square that starts at one, which makes the first steps far shorter than those from zero.
    """
    return rmsprop(
        learning_rate,
        decay,
        eps,
        initial_scale=1.0,
        centered=centered,
        momentum=momentum or None,  # no slots where there is no momentum
    )


# --- Schedules -------------------------------------------------------------------------------
# Functions of the 0-d integer count of steps taken that return a 0-d float32 tensor.


@_interned
def constant_schedule(value: float) -> Schedule:
    """Return `value` at every count."""
    return lambda count: torch.full_like(count, value, dtype=torch.float32)


@_interned
def polynomial_schedule(
    init_value: float,
    end_value: float,
    power: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    """Go from `init_value` to `end_value` along ``(1 - t)^power``, then stay.

    ``(init_value - end_value) * (1 - t)^power + end_value`` with ``t = clip(count -
    transition_begin, 0, transition_steps) / transition_steps``. Without transition steps the value
    is `init_value` throughout; a negative begin counts as 0 (both as in optax).
    """
    if transition_steps <= 0:
        return constant_schedule(init_value)
    begin = max(transition_begin, 0)

    def schedule(count):
        elapsed = torch.clamp(count - begin, 0, transition_steps).to(torch.float32)
        return (1 - elapsed / transition_steps) ** power * (init_value - end_value) + end_value

    return schedule


@_interned
def linear_schedule(
    init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """Go from `init_value` to `end_value` in a straight line over `transition_steps`, then stay."""
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


@_interned
def warmup_constant_schedule(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """Warm up in a straight line over `warmup_steps`, then stay at `peak_value`."""
    return linear_schedule(init_value, peak_value, warmup_steps)


@_interned
def cosine_decay_schedule(
    init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0
) -> Schedule:
    """Decay along half a cosine to ``alpha * init_value`` (https://arxiv.org/abs/1608.03983).

    ``init_value * ((1 - alpha) * ((1 + cos(pi t)) / 2)^exponent + alpha)`` with
    ``t = min(count, decay_steps) / decay_steps``.

    Raises:
        ValueError: if `decay_steps` is not positive.
    """
    if not decay_steps > 0:
        raise ValueError(f'cosine_decay_schedule needs positive decay_steps, got {decay_steps!r}')

    def schedule(count):
        elapsed = torch.clamp(count.to(torch.float32), max=float(decay_steps))
        cosine = (torch.cos(elapsed * math.pi / decay_steps) + 1) * 0.5
        return (cosine**exponent * (1 - alpha) + alpha) * init_value

    return schedule


@_interned
def warmup_cosine_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """Warm up in a straight line to `peak_value`, then decay along half a cosine to `end_value`.

    Args:
        init_value: value at count 0.
        peak_value: value at count `warmup_steps`.
        warmup_steps: length of the warm-up.
        decay_steps: length of the whole schedule, warm-up included.
        end_value: value from count `decay_steps` on.
        exponent: power of the cosine.

    Raises:
        ValueError: if `decay_steps` is not above `warmup_steps`.
    """
    alpha = 0.0 if peak_value == 0.0 else end_value / peak_value
    return join_schedules(
        [
            linear_schedule(init_value, peak_value, warmup_steps),
            cosine_decay_schedule(peak_value, decay_steps - warmup_steps, alpha, exponent),
        ],
        [warmup_steps],
    )


@_interned
def exponential_decay(
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """Multiply by `decay_rate` every `transition_steps`: ``init_value * decay_rate^t``.

    Args:
        init_value: value until `transition_begin`.
        transition_steps: steps per factor of `decay_rate`; if not positive, the value is constant.
        decay_rate: the factor; 0 means constant too (both as in optax).
        transition_begin: count at which the decay starts; a negative one counts as 0.
        staircase: decay in jumps, with ``t`` rounded down.
        end_value: the bound at which the decay (or the growth, for rates of 1 and above) stops.
    """
    if transition_steps <= 0 or decay_rate == 0:
        return constant_schedule(init_value)
    begin = max(transition_begin, 0)

    def schedule(count):
        elapsed = count - begin
        periods = elapsed.to(torch.float32) / transition_steps
        if staircase:
            periods = torch.floor(periods)
        value = torch.where(elapsed <= 0, init_value, decay_rate**periods * init_value)
        if end_value is None:
            return value
        return value.clamp(min=end_value) if decay_rate < 1.0 else value.clamp(max=end_value)

    return schedule


@_interned
def piecewise_constant_schedule(
    init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """Multiply the value by a scale at each boundary, from that count on.

    Args:
        init_value: value before the first boundary.
        boundaries_and_scales: boundary to scale.

    Raises:
        ValueError: if a scale is negative.
    """
    steps = sorted((boundaries_and_scales or {}).items())
    if any(scale < 0 for _, scale in steps):
        raise ValueError(f'piecewise_constant_schedule: negative scale among {steps}')

    def schedule(count):
        value = torch.full_like(count, init_value, dtype=torch.float32)
        for boundary, scale in steps:
            value = torch.where(count < boundary, value, value * scale)
        return value

    return schedule


@_interned
def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Follow one schedule after the other, each counting from the boundary at which it starts.

    Args:
        schedules: the schedules, one more than there are boundaries.
        boundaries: counts at which the second, third, ... schedule takes over.

    Raises:
        ValueError: if the numbers do not fit.
    """
    if len(schedules) != len(boundaries) + 1:
        raise ValueError(
            f'join_schedules: {len(schedules)} schedules need {len(schedules) - 1} boundaries, '
            f'got {len(boundaries)}'
        )

    def schedule(count):
        value = schedules[0](count)
        for boundary, later in zip(boundaries, schedules[1:], strict=True):
            value = torch.where(count < boundary, value, later(count - boundary))
        return value

    return schedule
