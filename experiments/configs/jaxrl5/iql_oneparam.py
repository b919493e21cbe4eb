"""IQL with the values of the original's launcher of IQL, by domain."""

from experiments.configs.infom import domains
from purerl.agents.jaxrl5 import iql
from purerl.agents.jaxrl5.iql import IQLLearner  # noqa: F401  (the agent that this configures)

DOMAINS = {
    'antmaze': {'expectile': 0.9},
    'locomotion': {'expectile': 0.7},
    'maze2d': {'expectile': 0.7},
}


def get_config(domain=None):
    """Return the rl_config of train_iql_oneparam.py for a domain.

    It tries the temperatures 3, 6.5 and 10; here it is the first one.
    """
    config = iql.get_config()
    config.actor_lr = 3e-4
    config.temperature = 3.0
    return domains.configured(config, DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings, which are the same for all domains."""
    return {
        'batch_size': 256,
        'max_steps': 1_500_000,
        'eval_interval': 100_000,
        'eval_episodes': 50,
        'train_ratio': 1.0,
    }
