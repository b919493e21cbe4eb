"""IDQL's objectives: what the value regresses to, and how actions are weighed by advantages.

Source: philippe-eecs/IDQL @ 7582571, jaxrl5/agents/ddpm_iql/ddpm_iql_learner.py. Each table maps a
config's string to its function.
"""

import math

import torch

from purerl.core.ops import expectile_loss


def quantile_loss(diff, quantile):
    """Absolute `diff`, weighted by `quantile` where it is positive, by its complement elsewhere."""
    size = torch.where(diff >= 0, diff, -diff)  # whose slope at 0 is 1, as in JAX
    return side_weights(diff, quantile) * size


def exp_w_clip(x, x0: float, mode: str = 'zero'):
    """exp(x) below `x0`; from there on its Taylor polynomial of order 'zero', 'first' or 'second'.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ('zero', 'first', 'second'):
        raise ValueError(f'mode must be zero, first or second, got {mode!r}')
    bound = torch.exp(x.new_full((), x0))
    beyond = bound.expand_as(x)
    if mode != 'zero':
        beyond = beyond + bound * (x - x0)
    if mode == 'second':
        beyond = beyond + bound / 2 * (x - x0).square()
    return torch.where(x < x0, torch.exp(x), beyond)


def exponential_loss(diff, beta, clip: float = math.log(6), mode: str = 'zero'):
    """The loss whose gradient in `diff` is ``exp(beta * diff) - 1``, with a clipped exponential.

    Args:
        clip, mode: where and how the exponential is clipped, as in `exp_w_clip`.
    """
    return (exp_w_clip(diff * beta, clip, mode).detach() - 1) * diff


def side_weights(adv, hyperparam):
    """`hyperparam` for positive advantages, its complement for the others."""
    return torch.where(adv > 0, hyperparam, 1 - hyperparam)


def _normalised(weights):
    return weights / weights.sum(-1, keepdim=True)


def _exponential_weights(adv, hyperparam):
    # The advantages cancel: all candidates weigh the same.
    return hyperparam * (adv * hyperparam).abs() / adv.abs()


# Losses of a difference, target Q minus value, with critic_hyperparam.
VALUE_LOSSES = {
    'expectile': lambda diff, hyperparam: expectile_loss(diff, diff, hyperparam),
    'quantile': quantile_loss,
    'exponential': exponential_loss,
}

# Weights of the data's actions in the score model's loss: of advantages, critic_hyperparam and
# policy_temperature.
ACTOR_WEIGHTS = {
    'soft_adv': lambda adv, hyperparam, temperature: side_weights(adv, hyperparam),
    'hard_adv': lambda adv, hyperparam, temperature: torch.where(adv >= -0.01, 1.0, 0.0),
    'exp_adv': lambda adv, hyperparam, temperature: torch.exp(adv * temperature).clamp(max=100),
    'bc': lambda adv, hyperparam, temperature: torch.ones_like(adv),
}

# Weights of an observation's candidates (..., N) in the implicit policy: of advantages and
# critic_hyperparam. The quantile's may be negative, the exponential's do not sum to 1.
IMPLICIT_WEIGHTS = {
    'expectile': lambda adv, hyperparam: _normalised(side_weights(adv, hyperparam)),
    'quantile': lambda adv, hyperparam: _normalised(side_weights(adv, hyperparam) / adv),
    'exponential': _exponential_weights,
}


def check_objectives(config) -> None:
    """Check the objectives that a config names.

    Raises:
        ValueError: for the first unknown one.
    """
    for field, table in (('critic_objective', VALUE_LOSSES), ('actor_objective', ACTOR_WEIGHTS)):
        if config[field] not in table:
            *others, last = table
            names = f'{", ".join(others)} or {last}'
            raise ValueError(f'{field} must be {names}, got {config[field]!r}')
