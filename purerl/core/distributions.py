"""Probability distributions with keyed sampling: what the originals take from distrax.

`sample` takes a key as `seed`; the same key gives distrax's samples. Distributions are light
objects over tensors, made anew in every forward pass.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from purerl.core import random

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _shape(sample_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)


class MultivariateNormalDiag:
    """Normal with diagonal covariance over the last axis.

    Args:
        loc: means, (..., A).
        scale_diag: standard deviations, (..., A); the two broadcast.
    """

    def __init__(self, loc: torch.Tensor, scale_diag: torch.Tensor):
        self.loc = loc
        self.scale_diag = scale_diag

    def _batch_and_event(self) -> torch.Size:
        return torch.broadcast_shapes(self.loc.shape, self.scale_diag.shape)

    def _noise(self, seed: torch.Tensor, sample_shape: tuple[int, ...]) -> torch.Tensor:
        return random.normal(seed, (*sample_shape, *self._batch_and_event()))

    def sample(self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()) -> torch.Tensor:
        """Draw samples, (*sample_shape, ..., A), differentiable in the parameters."""
        return self.loc + self.scale_diag * self._noise(seed, _shape(sample_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density of `value`, summed over the last axis."""
        z = (value - self.loc) / self.scale_diag
        return (-0.5 * z * z - _HALF_LOG_2PI - torch.log(self.scale_diag)).sum(-1)

    def sample_and_log_prob(
        self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw samples and return them with their log-densities."""
        samples = self.sample(seed, sample_shape)
        return samples, self.log_prob(samples)

    def mode(self) -> torch.Tensor:
        """The mean."""
        return self.loc.expand(self._batch_and_event())

    def stddev(self) -> torch.Tensor:
        """Standard deviations, in the shape of the mean."""
        return self.scale_diag.expand(self._batch_and_event())

    def entropy(self) -> torch.Tensor:
        """Differential entropy in nats, summed over the last axis."""
        return (0.5 + _HALF_LOG_2PI + torch.log(self.stddev())).sum(-1)


class TanhTransformed:
    """tanh of a distribution over vectors: a bounded policy with a mode and log-densities.

    Attributes that it does not define are those of the inner `distribution`, as in InFOM's
    ``TransformedWithMode``. Its entropy has no closed form; the inner one's is not handed out.
    """

    def __init__(self, distribution: MultivariateNormalDiag):
        self.distribution = distribution

    def __getattr__(self, name):
        if name in ('entropy', 'distribution'):
            raise AttributeError(f'{type(self).__name__} has no {name}')
        return getattr(self.distribution, name)

    def _log_det(self, x: torch.Tensor) -> torch.Tensor:
        # log(1 - tanh(x)**2), stable for large |x|.
        return (2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))).sum(-1)

    def sample(self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()) -> torch.Tensor:
        """Draw samples in (-1, 1)."""
        return torch.tanh(self.distribution.sample(seed, sample_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density of `value`; NaN at exactly +-1, where the inverse is infinite.

        For a distribution's own samples use `sample_and_log_prob`, which keeps the values from
        before tanh and stays finite.
        """
        x = torch.atanh(value)
        return self.distribution.log_prob(x) - self._log_det(x)

    def sample_and_log_prob(
        self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw samples and return them with their log-densities."""
        x, log_prob = self.distribution.sample_and_log_prob(seed, sample_shape)
        return torch.tanh(x), log_prob - self._log_det(x)

    def mode(self) -> torch.Tensor:
        """tanh of the inner mode."""
        return torch.tanh(self.distribution.mode())


class Categorical:
    """Distribution over ``logits.shape[-1]`` categories."""

    def __init__(self, logits: torch.Tensor):
        self.logits = torch.log_softmax(logits, -1)

    def sample(self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()) -> torch.Tensor:
        """Draw category indices, int32 of shape (*sample_shape, ...)."""
        shape = (*_shape(sample_shape), *self.logits.shape[:-1])
        return random.categorical(seed, self.logits, shape=shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of the category indices `value`, which broadcast to the batch."""
        shape = torch.broadcast_shapes(value.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, self.logits.shape[-1])
        return torch.gather(logits, -1, value.long().expand(shape).unsqueeze(-1)).squeeze(-1)

    def sample_and_log_prob(
        self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw indices and return them with their log-probabilities."""
        samples = self.sample(seed, sample_shape)
        return samples, self.log_prob(samples)

    def mode(self) -> torch.Tensor:
        """The most likely index, int32 (the first of equals)."""
        return torch.argmax(self.logits, -1).to(torch.int32)

    @property
    def probs(self) -> torch.Tensor:
        """Probabilities, summing to one over the last axis."""
        return torch.exp(self.logits)

    def entropy(self) -> torch.Tensor:
        """Entropy in nats; impossible categories contribute nothing."""
        probs = self.probs
        # Not 0 * -inf, whose gradient is NaN.
        return -(probs * torch.where(probs > 0, self.logits, 0.0)).sum(-1)


class Deterministic:
    """All mass on `loc`; each entry is an event of its own, as in distrax."""

    def __init__(self, loc: torch.Tensor):
        self.loc = loc

    def sample(self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()) -> torch.Tensor:
        """Return `loc`, repeated to (*sample_shape, ...)."""
        return self.loc.expand((*_shape(sample_shape), *self.loc.shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """0 where `value` equals `loc`, else minus infinity."""
        return torch.where(value == self.loc, 0.0, -math.inf)

    def sample_and_log_prob(
        self, seed: torch.Tensor, sample_shape: int | Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `loc` and zeros."""
        samples = self.sample(seed, sample_shape)
        return samples, self.log_prob(samples)

    def mode(self) -> torch.Tensor:
        """`loc`."""
        return self.loc

    def entropy(self) -> torch.Tensor:
        """Zeros."""
        return torch.zeros_like(self.loc)
