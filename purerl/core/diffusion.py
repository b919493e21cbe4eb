"""Diffusion models of vectors (DDPM; Ho et al., "Denoising diffusion probabilistic models", 2020).

Schedules of the noise, the network that predicts it, and the chain that removes it again.
Source: philippe-eecs/IDQL @ 7582571, jaxrl5/networks/diffusion.py.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from purerl.core import nn, random
from purerl.core.loops import fori

ModuleClass = Callable[[], nn.Module]

# --- Schedules -----------------------------------------------------------------------------------
# Variances of the noise, betas (T,). Sines and exponentials are taken in float64 and rounded, so
# that all machines agree; divisions by numbers are products, as XLA compiles them.


def _reciprocal(number: float) -> float:
    return float(np.float32(1) / np.float32(number))


def cosine_beta_schedule(timesteps: int, s: float = 0.008) -> torch.Tensor:
    """Betas under which the signal's share falls like a squared cosine.

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (2021).

    Args:
        timesteps: T.
        s: offset that keeps the first betas from vanishing.
    """
    t = torch.arange(timesteps + 1, dtype=torch.float32) * _reciprocal(timesteps)
    angles = (t + s) * _reciprocal(1 + s) * math.pi * 0.5
    shares = torch.cos(angles.double()).float().square()
    shares = shares / shares[0]
    return (1 - shares[1:] / shares[:-1]).clamp(0, 0.999)


def linear_beta_schedule(
    timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> torch.Tensor:
    """Betas in a straight line from `beta_start` to `beta_end` (only the start for one step)."""
    fractions = torch.arange(timesteps, dtype=torch.float32) / max(timesteps - 1, 1)
    return beta_start * (1 - fractions) + beta_end * fractions


def vp_beta_schedule(timesteps: int) -> torch.Tensor:
    """Betas of the variance-preserving process with rates from 0.1 to 10.

    Source: Xiao et al., "Tackling the generative learning trilemma with denoising diffusion GANs"
    (ICLR 2022).
    """
    b_min, b_max = 0.1, 10.0
    t = torch.arange(1, timesteps + 1)
    rates = 0.5 * (b_max - b_min) * (2 * t - 1)
    exponents = -b_min / timesteps - rates * _reciprocal(timesteps**2)
    return 1 - torch.exp(exponents.double()).float()


BETA_SCHEDULES = {
    'cosine': cosine_beta_schedule,
    'linear': linear_beta_schedule,
    'vp': vp_beta_schedule,
}


def make_schedule(name: str, timesteps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return betas, alphas = 1 - betas and alpha_hats, their running products, each (T,).

    Args:
        name: one of `BETA_SCHEDULES`.
        timesteps: T.

    Raises:
        ValueError: for an unknown name, or fewer than one step.
    """
    if name not in BETA_SCHEDULES:
        raise ValueError(f'beta_schedule must be cosine, linear or vp, got {name!r}')
    check_sampling(timesteps)
    betas = BETA_SCHEDULES[name](timesteps)
    alphas = 1 - betas
    return betas, alphas, torch.cumprod(alphas, 0)


def check_sampling(T: int, N: int = 1, M: int = 0, length: int | None = None) -> None:
    """Check numbers of a sampler, under the names that they have in configs.

    Args:
        T: denoising steps.
        N: candidates per observation.
        M: repetitions of the last step.
        length: number of steps of the schedule, where there is one.

    Raises:
        ValueError: for the first one that is too small, or T beyond the schedule.
    """
    if T < 1:
        raise ValueError(f'T must be at least 1 denoising step, got {T}')
    if length is not None and length < T:
        raise ValueError(
            f'T={T} denoising steps are more than the {length} of the schedule that the agent was '
            'made with: use fewer, or train an agent with this T'
        )
    if N < 1:
        raise ValueError(f'N must be at least 1 candidate per observation, got {N}')
    if M < 0:
        raise ValueError(f'M must be at least 0 repetitions of the last denoising step, got {M}')


# --- Networks ------------------------------------------------------------------------------------


class FourierFeatures(nn.Module):
    """Cosines and sines of the inputs at `output_size` // 2 frequencies.

    Args:
        output_size: size of the output (one less where it is odd).
        learnable: whether the frequencies are parameters, or the fixed geometric series of
            Vaswani et al., "Attention is all you need" (2017), for inputs of size 1.

    Raises:
        ValueError: if `output_size` is below 2, or 4 for fixed frequencies.
    """

    def __init__(self, output_size: int, learnable: bool = True):
        super().__init__()
        least = 2 if learnable else 4  # fixed frequencies go from 1 to 1 / 10,000
        if output_size < least:
            raise ValueError(
                f'time_dim must be at least {least} features of the time, got {output_size}'
            )
        self.num_frequencies = output_size // 2
        self.learnable = learnable
        if learnable:
            self.declare('kernel')

    def forward(self, x):
        if self.learnable:
            shape = (self.num_frequencies, x.shape[-1])
            angles = (2 * math.pi * x) @ self.param('kernel', nn.normal(0.2), shape).mT
        else:
            rate = math.log(10_000) / (self.num_frequencies - 1)
            powers = torch.arange(self.num_frequencies, dtype=torch.float32, device=x.device)
            angles = x * torch.exp(powers * -rate)
        return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


class DDPM(nn.Module):
    """Prediction of the noise in actions: time, encoded, joins action and observation.

    Args:
        cond_encoder_cls: of the network on the time's features.
        reverse_encoder_cls: of the network on everything; its output has the action's size.
        time_preprocess_cls: of the time's features.
    """

    def __init__(
        self,
        cond_encoder_cls: ModuleClass,
        reverse_encoder_cls: ModuleClass,
        time_preprocess_cls: ModuleClass,
    ):
        super().__init__()
        self.time_preprocess = self.compact(time_preprocess_cls())
        self.cond_encoder = self.compact(cond_encoder_cls())
        self.reverse_encoder = self.compact(reverse_encoder_cls())

    def forward(self, s, a, time, training: bool = False):
        """Return the noise in actions `a` (..., A) at observations `s` (..., O).

        Args:
            time: step of each, (..., 1), of any dtype; or (1, 1) for all of them.
            training: whether dropout is active.
        """
        cond = self.cond_encoder(self.time_preprocess(time), training)
        cond = cond.expand(*a.shape[:-1], cond.shape[-1])
        return self.reverse_encoder(torch.cat([a, s, cond], -1), training)


# --- Sampling ------------------------------------------------------------------------------------


def ddpm_sampler(
    score_fn: Callable,
    params: nn.Params,
    T: int,
    rng: torch.Tensor,
    act_dim: int,
    observations: torch.Tensor,
    schedule: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    sample_temperature: float | torch.Tensor,
    repeat_last_step: int = 0,
    clip_sampler: bool = True,
    dropout_key: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an action for each observation by removing noise step by step.

    In a compiled function the steps are a loop with one compiled body, whatever their number.

    Args:
        score_fn: ``(params, observations, actions, time, **kwargs) -> noise``; must not close over
            tensors. The time is (1, 1), an integer.
        params: the network's parameters.
        T: number of steps; the first ones of the schedule, if that is longer.
        rng: key; each step draws from a new one.
        act_dim: A.
        observations: (B, O).
        schedule: betas, alphas and alpha_hats, each (T,).
        sample_temperature: factor of the noise that each step but the last adds.
        repeat_last_step: M, how often the last step is repeated.
        clip_sampler: whether actions are clipped to [-1, 1] after every step; in the end they
            always are.
        dropout_key: for samples with active dropout: `score_fn` is then called with
            ``training=True`` and ``rngs={'dropout': key}``, a key of its own at each step.

    Returns:
        Actions (B, A) in [-1, 1], and the key that is left.
    """

    def denoise(i, carry, params, observations, schedule, temperature, dropout_key):
        actions, rng = carry
        time = (T - 1 - i).clamp(min=0)
        beta, alpha, alpha_hat = (x.index_select(0, time[None])[0] for x in schedule)
        dropout = {}
        if dropout_key is not None:
            dropout = {'training': True, 'rngs': {'dropout': random.fold_in(dropout_key, i)}}
        noise = score_fn(params, observations, actions, time.reshape(1, 1), **dropout)
        share = (1 - alpha) / torch.sqrt(1 - alpha_hat)
        actions = 1 / torch.sqrt(alpha) * (actions - share * noise)

        # The last step draws too, and adds nothing.
        rng, key = random.split(rng)
        fresh = torch.sqrt(beta) * (temperature * random.normal(key, actions.shape))
        actions = actions + (time > 0) * fresh
        return (actions.clamp(-1, 1) if clip_sampler else actions), rng

    key, rng = random.split(rng)
    start = random.normal(key, (len(observations), act_dim))
    device = observations.device
    temperature = torch.as_tensor(sample_temperature, dtype=torch.float32, device=device)
    actions, rng = fori(
        T + repeat_last_step,
        denoise,
        (start, rng),
        params,
        observations,
        schedule,
        temperature,
        dropout_key,
    )
    return actions.clamp(-1, 1), rng
