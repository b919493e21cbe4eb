"""DroQ: SAC whose critics have dropout and layer normalisation."""

from purerl.agents.jaxrl5 import sac
from purerl.agents.jaxrl5.sac import SACLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's droq_config.py."""
    config = sac.get_config()
    config.agent_name = 'droq'
    config.critic_dropout_rate = 0.01
    config.critic_layer_norm = True
    return config


def get_settings():
    """Return the flags of `experiments.online` in the original's command (its README.md)."""
    return {'utd_ratio': 20, 'start_training': 5000, 'max_steps': 300_000}
