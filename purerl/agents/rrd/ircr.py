"""Iterative relative credit refinement (IRCR) around a base algorithm.

Paper: Gangwani et al., "Learning guidance rewards with trajectory-space smoothing" (NeurIPS 2020).
Original: Stilwell-Git/Randomized-Return-Decomposition @ bc80473, algorithm/ircr.py and its replay
buffers, where the rewards are computed.

Every transition is rewarded with the return of its episode, scaled to [0, 1] over the episodes at
hand; around DQN it is not scaled. Deviation: while all returns are equal the rewards are 0 (the
original divides by zero).
"""

from typing import Any, ClassVar

import torch

from purerl.agents.rrd.bases import AroundBase, base_class, base_config, base_settings
from purerl.core import trees
from purerl.core.jit import jit
from purerl.core.trees import FrozenDict


def guidance_rewards(returns, low, high):
    """Scale returns (B,) from [low, high] to [0, 1]; to zeros where the bounds are equal."""
    span = high - low
    scaled = (returns - low) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(span > 0, scaled, torch.zeros_like(scaled))


@trees.dataclass
class IRCRAgent(AroundBase):
    """A base agent that is handed its episodes' returns as rewards."""

    base: Any
    config: Any = trees.static()

    needs: ClassVar[frozenset[str]] = frozenset({'whole_episodes', 'returns'})

    @classmethod
    def variant(cls, basis_alg: str, environment: str | None) -> str:
        """Return the argument of `get_config`: SAC has other settings for Humanoid."""
        humanoid = basis_alg == 'sac' and (environment or '').startswith('Humanoid-')
        return 'sac_humanoid' if humanoid else basis_alg

    def _relabelled(self, batch):
        """The batch that the base sees: `returns` (B,), scaled by 0-d bounds, as rewards."""
        names = ('returns', 'return_low', 'return_high')
        kept = {key: value for key, value in batch.items() if key not in names}
        rewards = batch['returns']
        if self.config['normalize_returns']:
            rewards = guidance_rewards(*(batch[name] for name in names))
        return {**kept, 'rewards': rewards}

    @jit
    def train(self, batch):
        """One step of the base; returns (agent, info)."""
        base, info = self.base.train(self._relabelled(batch))
        return self.replace(base=base), info

    @jit
    def train_critic(self, batch):
        """As `train`, for a base whose policy learns from batches of its own."""
        base, info = self.base.train_critic(self._relabelled(batch))
        return self.replace(base=base), info

    @jit
    def train_actor(self, batch):
        """One step of the base's policy."""
        base, info = self.base.train_actor(batch)
        return self.replace(base=base), info

    @jit
    def update(self, batch, *actor_batch):
        """One update of the base; arguments as the base's, returns (agent, info)."""
        base, info = self.base.update(self._relabelled(batch), *actor_batch)
        return self.replace(base=base), info

    @classmethod
    def create(cls, seed, ex_observations, ex_actions, config):
        """Make an agent from an integer seed and examples, as its base does.

        Raises:
            ValueError: for an unknown base.
        """
        base = base_class(config).create(seed, ex_observations, ex_actions, config)
        return cls(base=base, config=FrozenDict(config))


def get_config(basis_alg: str = 'sac'):
    """Return the original's defaults around a base.

    Args:
        basis_alg: a base, or `sac_humanoid`, SAC with the settings for Humanoid.
    """
    humanoid = basis_alg == 'sac_humanoid'
    config = base_config('sac' if humanoid else basis_alg, 'ircr')
    # Whether returns are scaled to [0, 1].
    config.normalize_returns = config.basis_alg != 'dqn'
    if 'polyak' in config:
        config.polyak = 0.999
    if humanoid:
        config.alpha_lr, config.alpha_init = 0.0, 0.1
    return config


def get_settings(basis_alg: str = 'sac') -> dict:
    """Return the original's defaults of the loop's flags, where they depend on the base."""
    settings = base_settings(basis_alg)
    return settings or {'buffer_size': 300_000, 'batch_size': 512}
