"""BC with the original's values: dropout, and a learning rate that falls to 0."""

from purerl.agents.jaxrl5 import bc
from purerl.agents.jaxrl5.bc import BCLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's bc_config.py."""
    config = bc.get_config()
    config.dropout_rate = 0.1
    return config


def get_settings():
    """Return the flags that the original's file and its train_offline.py determine.

    Nothing there says how many steps and transitions.
    """
    return {'train_ratio': 1.0, 'cosine_decay': True}
