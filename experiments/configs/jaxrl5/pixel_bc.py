"""PixelBC with the original's published config (its pixel_config.py and pixel_bc_config.py)."""

from purerl.agents.jaxrl5 import pixel_bc
from purerl.agents.jaxrl5.pixel_bc import PixelBCLearner  # noqa: F401  (what this configures)


def get_config():
    """Return the original's pixel_bc_config.py."""
    config = pixel_bc.get_config()
    config.actor_lr = 3e-4
    config.cnn_features = (32, 64, 128, 256)
    config.cnn_strides = (2, 2, 2, 2)
    config.dropout_rate = 0.1
    return config


def get_settings():
    """Return the defaults that the flags of `experiments.offline_to_online` have for images."""
    return {
        'env_name': 'cheetah_run',
        'seed': 42,
        'max_steps': 500_000,
        'batch_size': 256,
        'eval_interval': 5000,
        'eval_episodes': 10,
        'cosine_decay': True,
    }
