"""Contrastive RL with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import crl_infonce
from purerl.agents.infom.crl_infonce import CRLInfoNCEAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'alpha': 0.03},
    'cube_single': {'alpha': 30.0},
    'visual_cube_single': {'alpha': 30.0, 'encoder': 'impala_small'},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(crl_infonce.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
