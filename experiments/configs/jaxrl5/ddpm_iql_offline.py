"""IDQL with the values of the original's offline launcher, by domain."""

from experiments.configs.infom import domains
from purerl.agents.jaxrl5 import ddpm_iql_simple
from purerl.agents.jaxrl5.ddpm_iql_simple import DDPMIQLLearner  # noqa: F401  (which is trained)

_LOCOMOTION = {'critic_hyperparam': 0.7}
DOMAINS = {
    'halfcheetah': _LOCOMOTION,
    'hopper': _LOCOMOTION,
    'walker2d': _LOCOMOTION,
    'antmaze': {'critic_hyperparam': 0.9},
}


def get_config(domain=None):
    """Return the rl_config of train_ddpm_iql_offline.py for a domain."""
    config = ddpm_iql_simple.get_config()
    config.actor_dropout_rate = 0.1
    return domains.configured(config, DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings, which are the same for all domains."""
    return {
        'batch_size': 512,
        'max_steps': 3_000_000,
        'eval_interval': 250_000,
        'eval_episodes': 50,
        'inference_variants': 'N=16,64,256',
    }
