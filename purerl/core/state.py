"""Train state: parameters, optimiser state and the definitions that act on them."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch

from purerl.core import nn, optim, parallel, trees


@trees.dataclass
class TrainState:
    """The counterpart of Flax's ``TrainState``, with InFOM's ``select`` and ``apply_loss_fn``.

    Attributes:
        step: 0-d int64 tensor, advanced by every `apply_gradients`.
        params: parameter tree.
        opt_state: the optimiser's state tree, or None without an optimiser.
        model_def: the network definition (static).
        tx: the gradient transformation, or None (static).
    """

    step: torch.Tensor
    params: nn.Params
    opt_state: Any
    model_def: nn.Module = trees.static()
    tx: optim.GradientTransformation | None = trees.static()

    @classmethod
    def create(cls, model_def, params, tx=None, step: int = 1) -> 'TrainState':
        """Make a state with a fresh optimiser state. InFOM counts steps from 1, Flax from 0."""
        return cls(
            step=torch.tensor(step),
            params=params,
            opt_state=None if tx is None else tx.init(params),
            model_def=nn.intern(model_def),
            tx=tx,
        )

    def __call__(self, *args, params: nn.Params | None = None, **kwargs):
        """Run the network.

        Args:
            params: parameters through which gradients are to flow; the stored ones, which are
                constants of any `grad`, if None.
        """
        return nn.apply(self.model_def, self.params if params is None else params, *args, **kwargs)

    def select(self, name: str) -> Callable:
        """Return one module of an `nn.ModuleDict` as a function."""
        return functools.partial(self, name=name)

    def apply_gradients(self, grads: nn.Params) -> 'TrainState':
        """Take one optimiser step.

        Args:
            grads: gradients of `params`, or of some of its top-level entries; averaged over the
                processes, where there are several (`purerl.core.parallel`). Entries left out
                keep their parameters and optimiser state: with a gradient of zero throughout, as
                target networks have, every optimiser used here would leave them as they are.
        """
        return self._step(parallel.pmean(grads))

    def _step(self, grads):
        params = {name: self.params[name] for name in grads}
        opt_state = _restrict(self.opt_state, self.params.keys(), grads.keys())
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return self.replace(
            step=self.step + 1,
            params={**self.params, **optim.apply_updates(params, updates)},
            opt_state=_restore(self.opt_state, opt_state, self.params.keys()),
        )

    def apply_loss_fn(
        self, loss_fn: Callable, frozen: Collection[str] = ()
    ) -> tuple['TrainState', dict]:
        """Take one step down the gradient of `loss_fn`.

        Args:
            loss_fn: ``params -> (loss, info)``.
            frozen: top-level entries (target networks) that the loss does not depend on. They are
                neither differentiated nor stepped; the result is the same and costs less.

        Returns:
            The new state, and `info` with ``grad/max``, ``grad/min`` and ``grad/norm``, the sum of
            the leaves' 2-norms (all over frozen entries too, whose gradient is zero).
        """
        trained = {name: p for name, p in self.params.items() if name not in frozen}

        def loss_of(trained):
            return loss_fn({**self.params, **trained})

        grads, info = torch.func.grad(loss_of, has_aux=True)(trained)
        grads = parallel.pmean(grads)
        leaves = trees.leaves(grads)
        largest = torch.stack([g.max() for g in leaves]).max()
        smallest = torch.stack([g.min() for g in leaves]).min()
        if frozen:
            zero = torch.zeros_like(largest)
            largest, smallest = torch.maximum(largest, zero), torch.minimum(smallest, zero)
        info = {
            **info,
            'grad/max': largest,
            'grad/min': smallest,
            'grad/norm': torch.stack([torch.linalg.vector_norm(g) for g in leaves]).sum(),
        }
        return self._step(grads), info


def _restrict(tree, all_names, names):
    """Cut every copy of the parameter tree inside an optimiser state down to some entries."""
    if isinstance(tree, dict) and tree.keys() == all_names:
        return {name: tree[name] for name in names}
    return _map_children(lambda child: _restrict(child, all_names, names), tree)


def _restore(whole, part, all_names):
    """Undo `_restrict`: entries of `part`, and those of `whole` that it lacks."""
    if isinstance(whole, dict) and whole.keys() == all_names:
        return {**whole, **part}
    return _map_children(lambda a, b: _restore(a, b, all_names), whole, part)


def _map_children(fn, tree, *rest):
    if isinstance(tree, dict):
        return {name: fn(tree[name], *(other[name] for other in rest)) for name in tree}
    if isinstance(tree, tuple):
        children = [fn(*row) for row in zip(tree, *rest, strict=True)]
        return type(tree)(*children) if hasattr(tree, '_fields') else tuple(children)
    return rest[-1] if rest else tree
