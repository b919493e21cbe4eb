"""IQL with the values of the original's config file for locomotion."""

from experiments.configs.jaxrl5 import iql_antmaze
from experiments.configs.jaxrl5.iql_antmaze import get_settings  # noqa: F401  (read by launchers)
from purerl.agents.jaxrl5.iql import IQLLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's iql_mujoco_config.py."""
    config = iql_antmaze.get_config()
    config.expectile = 0.7
    config.temperature = 3.0
    return config
