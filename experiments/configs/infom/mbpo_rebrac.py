"""MBPO with ReBRAC, with the published values of each domain (see `domains`)."""

from experiments.configs.infom import domains
from purerl.agents.infom import mbpo_rebrac
from purerl.agents.infom.mbpo_rebrac import MBPOReBRACAgent  # noqa: F401 (which is trained)

DOMAINS = {
    'cheetah': {'num_model_rollouts': 128, 'num_model_rollout_steps': 1},
    'cube_single': {'num_model_rollouts': 256, 'num_model_rollout_steps': 2},
}


def get_config(domain=None):
    """Return the config of a domain."""
    return domains.configured(mbpo_rebrac.get_config(), DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings of a domain."""
    return domains.SETTINGS[domain]
