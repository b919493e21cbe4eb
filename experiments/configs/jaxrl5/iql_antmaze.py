"""IQL with the values of the original's config file for AntMaze."""

from purerl.agents.jaxrl5 import iql
from purerl.agents.jaxrl5.iql import IQLLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's iql_antmaze_config.py."""
    config = iql.get_config()
    config.expectile = 0.9
    config.temperature = 10.0
    return config


def get_settings():
    """Return the flags that the original's file and its train_offline.py determine.

    Nothing there says how many steps and transitions: the launcher of IQL does (iql_oneparam.py).
    """
    return {'train_ratio': 1.0, 'cosine_decay': True}
