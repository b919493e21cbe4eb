"""InFOM with the published values of each domain (see `domains`).

Added to the published commands, which fail without: flow goals of images, which are features, are
not clipped to the bounds of pixels.
"""

from experiments.configs.infom import domains
from purerl.agents.infom import infom
from purerl.agents.infom.infom import InFOMAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'latent_dim': 128, 'kl_weight': 0.05, 'alpha': 0.3},
    'walker': {'kl_weight': 0.1, 'alpha': 0.3},
    'quadruped': {'kl_weight': 0.005, 'alpha': 0.3},
    'jaco': {'kl_weight': 0.2, 'alpha': 0.1},
    'cube_single': {'kl_weight': 0.05, 'expectile': 0.95, 'alpha': 30.0},
    'cube_double': {'latent_dim': 128, 'kl_weight': 0.025, 'expectile': 0.9, 'alpha': 30.0},
    'scene': {'latent_dim': 128, 'kl_weight': 0.2, 'expectile': 0.99, 'alpha': 300.0},
    'puzzle_4x4': {'latent_dim': 128, 'kl_weight': 0.1, 'expectile': 0.95, 'alpha': 300.0},
    'visual_cube_single': {
        'kl_weight': 0.025,
        'expectile': 0.95,
        'alpha': 30.0,
        'encoder': 'impala_small',
        'clip_flow_goals': False,
    },
    'visual_cube_double': {
        'latent_dim': 128,
        'kl_weight': 0.01,
        'expectile': 0.9,
        'alpha': 30.0,
        'encoder': 'impala_small',
        'clip_flow_goals': False,
    },
    'visual_scene': {
        'latent_dim': 128,
        'kl_weight': 0.1,
        'expectile': 0.99,
        'alpha': 300.0,
        'encoder': 'impala_small',
        'clip_flow_goals': False,
    },
    'visual_puzzle_4x4': {
        'latent_dim': 128,
        'kl_weight': 0.1,
        'expectile': 0.95,
        'alpha': 300.0,
        'encoder': 'impala_small',
        'clip_flow_goals': False,
    },
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(infom.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
