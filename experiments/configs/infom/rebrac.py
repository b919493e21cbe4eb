"""ReBRAC with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import rebrac
from purerl.agents.infom.rebrac import ReBRACAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'alpha_actor': 0.1, 'alpha_critic': 0.1},
    'cube_single': {'alpha_actor': 1.0, 'alpha_critic': 1.0},
    'visual_cube_single': {'alpha_actor': 1.0, 'alpha_critic': 0.0, 'encoder': 'impala_small'},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(rebrac.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
