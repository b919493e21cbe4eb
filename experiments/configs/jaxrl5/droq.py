"""DroQ: SAC whose critics have dropout and layer normalisation."""

from purerl.agents.jaxrl5 import sac
from purerl.agents.jaxrl5.sac import SACLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's droq_config.py; train it with --utd_ratio=20."""
    config = sac.get_config()
    config.agent_name = 'droq'
    config.critic_dropout_rate = 0.01
    config.critic_layer_norm = True
    return config
