"""The base algorithms that RRD and IRCR take, by name, and what both hand on to them."""

import types

from purerl.agents.rrd import ddpg, dqn, sac, td3
from purerl.core.jit import jit

BASES: dict[str, types.ModuleType] = {'dqn': dqn, 'ddpg': ddpg, 'td3': td3, 'sac': sac}
_CLASSES = {'dqn': dqn.DQNAgent, 'ddpg': ddpg.DDPGAgent, 'td3': td3.TD3Agent, 'sac': sac.SACAgent}


def base_class(config) -> type:
    """Return the agent class of a config's `basis_alg`.

    Raises:
        ValueError: if there is none of that name.
    """
    name = config['basis_alg']
    if name not in _CLASSES:
        raise ValueError(f'basis_alg must be {", ".join(_CLASSES)}, got {name!r}')
    return _CLASSES[name]


def base_config(name: str, wrapper: str):
    """Return a base's config for a wrapper (`rrd`, `ircr`), with `agent_name` and `basis_alg`.

    Args:
        name: of the base; `dqn_rmsprop` is DQN with another optimiser.
        wrapper: the wrapper's name.

    Raises:
        ValueError: if there is no base of that name.
    """
    name, _, variant = name.partition('_')
    base_class({'basis_alg': name})
    get_config = BASES[name].get_config
    config = get_config(variant) if variant else get_config()
    config.agent_name = f'{wrapper}_{name}'
    config.basis_alg = name
    return config


def base_settings(name: str) -> dict:
    """Return the loop's defaults that a base has of its own."""
    module = BASES.get(name.partition('_')[0])
    return module.get_settings() if hasattr(module, 'get_settings') else {}


class AroundBase:
    """What an agent around another one, its field `base`, leaves to it: acting and targets."""

    @classmethod
    def default_base(cls, games: bool) -> str:
        """Return the original's base for Atari games, or for MuJoCo."""
        return 'dqn' if games else 'sac'

    @classmethod
    def variant(cls, basis_alg: str, environment: str | None) -> str:
        """Return the argument of `get_config` for a base in an environment."""
        return basis_alg

    @classmethod
    def acts_discretely(cls, config) -> bool:
        """Whether it needs a discrete action space (and else a continuous one)."""
        return base_class(config).acts_discretely(config)

    @property
    def rng(self):
        """The base agent's key."""
        return self.base.rng

    def with_rng(self, rng):
        """Give the base another key."""
        return self.replace(base=self.base.replace(rng=rng))

    @jit
    def update_target(self):
        """Move the base's targets."""
        return self.replace(base=self.base.update_target())

    @jit
    def update_normalizer(self, batch):
        """Count a batch's observations in, where observations are normalised."""
        return self.replace(base=self.base.update_normalizer(batch))

    def sample_actions(self, observations):
        """Sample the base's actions for exploration; returns (actions, agent)."""
        actions, base = self.base.sample_actions(observations)
        return actions, self.replace(base=base)

    def warmup_actions(self, observations):
        """Sample the base's actions before training; returns (actions, agent)."""
        actions, base = self.base.warmup_actions(observations)
        return actions, self.replace(base=base)

    def eval_actions(self, observations):
        """Return the base's actions without exploration; returns (actions, agent)."""
        return self.base.eval_actions(observations)[0], self
