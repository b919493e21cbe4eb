"""Loops inside compiled functions."""

import torch


def fori(num: int, body, carry, *operands):
    """Return `carry` after ``carry = body(i, carry, *operands)`` for i = 0 .. num - 1.

    Args:
        num: number of iterations.
        body: function of the iteration (0-d integer tensor), the carry and the operands, trees of
            tensors, that returns the next carry, of the same shapes; it must not close over
            tensors, and nothing differentiates through it.
        carry, operands: trees of tensors.
    """
    for i in range(num):
        carry = body(torch.tensor(i), carry, *operands)
    return carry
