"""TD InfoNCE with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import td_infonce
from purerl.agents.infom.td_infonce import TDInfoNCEAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'alpha': 0.003},
    'cube_single': {'alpha': 30.0},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(td_infonce.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
