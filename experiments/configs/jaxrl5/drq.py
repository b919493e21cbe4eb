"""DrQ with the original's published config (its pixel_config.py and drq_config.py)."""

from purerl.agents.jaxrl5 import drq
from purerl.agents.jaxrl5.drq import (
    DrQLearner,  # noqa: F401  (the agent that this configures)
    get_settings,  # noqa: F401  (and its flags)
)


def get_config():
    """Return the original's drq_config.py."""
    config = drq.get_config()
    config.cnn_features = (32, 64, 128, 256)
    config.cnn_strides = (2, 2, 2, 2)
    config.init_temperature = 0.1
    return config
