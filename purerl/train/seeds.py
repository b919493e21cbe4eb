"""Several seeds of one agent as one program.

A run of N seeds holds its agents stacked along a leading axis and maps each call over it with
`vmap`; a run of one seed holds the agent itself and calls it directly. The loops are the same.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from purerl.core import trees
from purerl.core.jit import jit


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

    @jit
    def program(arguments):
        return _vmap(fn, arguments)

    return lambda *arguments: program(arguments)


def _vmap(fn, arguments):
    # Over flat leaves, because torch's own vmap takes the None in a tree for a leaf.
    leaves, treedef = trees.flatten(arguments)
    structure = None

    def flat(*leaves):
        nonlocal structure
        outputs, structure = trees.flatten(fn(*trees.unflatten(treedef, leaves)))
        return tuple(outputs)

    outputs = torch.func.vmap(flat)(*leaves)
    return trees.unflatten(structure, outputs)


def _stack_leaves(*leaves):
    if isinstance(leaves[0], torch.Tensor):
        return torch.stack(leaves)
    return np.stack(leaves)
