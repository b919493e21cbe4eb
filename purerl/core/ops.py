"""Small pure functions shared by agents, with JAX's gradients where torch's differ."""

import torch

from purerl.core import trees


def clip(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clip to [low, high] with ``jnp.clip``'s gradient: one half at a bound (torch.clamp: one)."""
    return torch.minimum(torch.maximum(x, x.new_full((), low)), x.new_full((), high))


def polyak(online, target, tau: float):
    """Move a tree of target parameters towards the online ones: tau * online + (1 - tau) * target.

    Which online parameters, from before or after the gradient step, is the caller's choice and
    differs between originals.
    """
    return trees.map(lambda p, tp: p * tau + tp * (1 - tau), online, target)


def prefixed(prefix: str, info: dict) -> dict:
    """Return `info` with every key under ``prefix/``."""
    return {f'{prefix}/{key}': value for key, value in info.items()}
