"""HILP with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import hilp
from purerl.agents.infom.hilp import HILPAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'alpha': 1.0},
    'cube_single': {'alpha': 1.0},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(hilp.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
