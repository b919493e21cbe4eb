"""DINO with ReBRAC, with the published values of each domain (see `domains`).

Added to the published commands, which fail without: an encoder of vectors (there must be one), and
for images the two augmented copies that DINO compares.
"""

from experiments.configs.infom import domains
from purerl.agents.infom import dino_rebrac
from purerl.agents.infom.dino_rebrac import DINOReBRACAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'repr_temp': 0.1, 'encoder': 'mlp'},
    'cube_single': {'repr_temp': 0.04, 'encoder': 'mlp'},
    'visual_cube_single': {'repr_temp': 0.1, 'encoder': 'impala_small'},
}
_COPIES = {'p_aug': 1.0, 'num_aug': 2, 'inplace_aug': False}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(dino_rebrac.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    settings = domains.SETTINGS[domain]
    return {**settings, **_COPIES} if 'p_aug' in settings else settings
