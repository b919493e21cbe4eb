"""IQL with the original's values for AntMaze."""

from purerl.agents.jaxrl5 import iql
from purerl.agents.jaxrl5.iql import IQLLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's iql_antmaze_config.py."""
    config = iql.get_config()
    config.expectile = 0.9
    config.temperature = 10.0
    return config


def get_settings():
    """Return the flags of `experiments.offline_to_online` under which it is the original's run.

    Steps and batches are those of its launcher of IQL, train_iql_oneparam.py.
    """
    return {
        'batch_size': 256,
        'max_steps': 1_500_000,
        'eval_interval': 100_000,
        'eval_episodes': 50,
        'train_ratio': 1.0,
        'cosine_decay': True,
    }
