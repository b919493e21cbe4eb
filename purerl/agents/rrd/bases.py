"""The base algorithms that RRD and IRCR take, by name."""

import types

from purerl.agents.rrd import ddpg, dqn, sac, td3

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
