"""BC with the original's values: dropout, and a learning rate that falls to 0."""

from purerl.agents.jaxrl5 import bc
from purerl.agents.jaxrl5.bc import BCLearner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's bc_config.py."""
    config = bc.get_config()
    config.dropout_rate = 0.1
    return config


def get_settings():
    """Return the flags of `experiments.offline_to_online` under which it is the original's run."""
    return {'batch_size': 256, 'max_steps': 1_000_000, 'train_ratio': 1.0, 'cosine_decay': True}
