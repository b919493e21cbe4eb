"""REDQ: SAC with ten critics, two of which are drawn for each target."""

from experiments.configs.jaxrl5.droq import get_settings  # noqa: F401  (the same command's)
from purerl.agents.jaxrl5 import sac
from purerl.agents.jaxrl5.sac import SACLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's redq_config.py."""
    config = sac.get_config()
    config.agent_name = 'redq'
    config.num_qs = 10
    config.num_min_qs = 2
    return config
