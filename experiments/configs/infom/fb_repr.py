"""Forward-backward representations with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import fb_repr
from purerl.agents.infom.fb_repr import ForwardBackwardRepresentationAgent  # noqa: F401

DOMAINS = {
    'cheetah': {'alpha_repr': 1.0, 'alpha_awr': 1.0},
    'cube_single': {'alpha_repr': 10.0, 'alpha_awr': 1.0},
    'visual_cube_single': {'alpha_repr': 10.0, 'alpha_awr': 1.0, 'encoder': 'impala_small'},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(fb_repr.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
