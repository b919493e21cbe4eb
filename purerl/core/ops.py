"""Small pure functions shared by agents, with JAX's gradients where torch's differ."""

import torch

from purerl.core import trees


def clip(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clip to [low, high] with ``jnp.clip``'s gradient: one half at a bound (torch.clamp: one)."""
    return torch.minimum(torch.maximum(x, x.new_full((), low)), x.new_full((), high))


def polyak(online, target, tau: float | torch.Tensor):
    """Move a tree of target parameters towards the online ones: tau * online + (1 - tau) * target.

    Which online parameters, from before or after the gradient step, is the caller's choice and
    differs between originals.
    """
    return trees.map(lambda p, tp: p * tau + tp * (1 - tau), online, target)


def move_target(network, source, module_name: str, tau: float):
    """Return `network` with one target network moved towards `source`'s online one (`polyak`).

    Args:
        network: the `TrainState` of all modules after the gradient step.
        source: the one from which online and target parameters are taken.
        module_name: of the online network; its target is named ``target_<module_name>``.
        tau: rate.
    """
    online, target = f'modules_{module_name}', f'modules_target_{module_name}'
    moved = polyak(source.params[online], source.params[target], tau)
    return network.replace(params={**network.params, target: moved})


def expectile_loss(adv, diff, expectile: float | torch.Tensor):
    """Squared `diff`, weighted by `expectile` where `adv` >= 0 and by its complement below.

    Source: Kostrikov et al., "Offline reinforcement learning with implicit Q-learning" (2022).
    """
    weight = torch.where(adv >= 0, expectile, 1 - expectile)
    return weight * diff.square()


def prefixed(prefix: str, info: dict) -> dict:
    """Return `info` with every key under ``prefix/``."""
    return {f'{prefix}/{key}': value for key, value in info.items()}


_AUGMENT = 'make the Dataset of images with p_aug=1, num_aug=2 and inplace_aug=False'
# How to get what a batch may lack.
_REMEDIES = {
    'next_actions': 'make the Dataset with return_next_actions=True',
    'latents': "infer one with the agent's infer_latent(batch) and tile it over the batch",
    'value_goals': 'sample from a purerl.data.goals.GCDataset',
    'actor_goals': 'sample from a purerl.data.goals.GCDataset',
    'aug1_observations': _AUGMENT,
    'aug2_observations': _AUGMENT,
    'observation_min': "call the Dataset's normalize_observations() before sampling",
    'observation_max': "call the Dataset's normalize_observations() before sampling",
}


def require(batch: dict, *names: str) -> None:
    """Check that a batch holds what a loss is about to read.

    Raises:
        ValueError: if an entry is missing; says which, and how to get it.
    """
    missing = [name for name in names if name not in batch]
    if missing:
        remedies = dict.fromkeys(_REMEDIES[name] for name in missing if name in _REMEDIES)
        hint = f': {"; ".join(remedies)}' if remedies else ''
        raise ValueError(f'the batch lacks {", ".join(missing)} (it has {", ".join(batch)}){hint}')
