"""IDQL with the values of the original's finetuning launcher, by domain."""

from experiments.configs.infom import domains
from purerl.agents.jaxrl5 import ddpm_iql
from purerl.agents.jaxrl5.ddpm_iql import DDPMIQLLearner  # noqa: F401  (the agent trained)

DOMAINS = {
    'antmaze': {'critic_hyperparam': 0.9},
    'binary': {'critic_hyperparam': 0.7},
}


def get_config(domain=None):
    """Return the rl_config of train_ddpm_iql_finetune.py for a domain."""
    config = ddpm_iql.get_config()
    config.actor_architecture = 'ln_resnet'
    config.actor_num_blocks = 3
    config.actor_dropout_rate = 0.1
    config.actor_layer_norm = True
    return domains.configured(config, DOMAINS, domain)


def get_settings(domain):
    """Return the launcher's settings, which are the same for all domains."""
    return {
        'batch_size': 512,
        'max_steps': 3_000_000,
        'eval_interval': 1_000_000,
        'eval_episodes': 50,
        'inference_variants': 'N=128',
        'online_max_steps': 1_000_000,
        'online_start_training': 5000,
        'online_eval_interval': 25_000,
        'online_eval_episodes': 25,
    }
