"""Several seeds of one agent as one program.

A run of N seeds holds its agents stacked along a leading axis and maps each call over it with
`vmap`; a run of one seed holds the agent itself and calls it directly. The loops are the same.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from purerl.core import trees
from purerl.core.jit import jit, vmap


def stack(items: Sequence):
    """Stack one tree per seed along a new leading axis; the tree itself for a single seed."""
    return items[0] if len(items) == 1 else trees.map(_stack_leaves, *items)


def unstack(tree, num: int) -> list:
    """Undo `stack`: return one tree for each of `num` seeds."""
    return [tree] if num == 1 else [trees.index(tree, i) for i in range(num)]


def over_seeds(fn: Callable, num: int) -> Callable:
    """Map a function of trees over `num` seeds.

    Args:
        fn: function of positional trees, whose results are trees of tensors.
        num: number of seeds.

    Returns:
        A function of trees made by `stack`: `fn` itself for a single seed, else one compiled
        program.
    """
    if num == 1:
        return fn

    return jit(vmap(fn))


def _stack_leaves(*leaves):
    if isinstance(leaves[0], torch.Tensor):
        return torch.stack(leaves)
    return np.stack(leaves)
