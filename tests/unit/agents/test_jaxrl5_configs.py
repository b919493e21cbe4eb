"""The published configs of jaxrl5's learners: values, and flags that their launchers have."""

import pytest

from purerl.train import offline_to_online, online
from purerl.train.config import RunError, parse

FOLDER = 'experiments/configs/jaxrl5'


def parsed(path, settings=offline_to_online.Settings):
    return parse(['program', f'--agent={FOLDER}/{path}'], settings, 'purerl/agents/jaxrl5/bc.py')


@pytest.mark.parametrize(
    'path, values, flags',
    [
        ('bc.py', {'dropout_rate': 0.1, 'actor_lr': 1e-3}, {'cosine_decay': True}),
        (
            'iql_mujoco.py',
            {'expectile': 0.7, 'temperature': 3.0, 'actor_lr': 1e-3},
            {'cosine_decay': True, 'train_ratio': 1.0},
        ),
        (
            'iql_antmaze.py',
            {'expectile': 0.9, 'temperature': 10.0},
            {'cosine_decay': True, 'train_ratio': 1.0},
        ),
        (
            'iql_oneparam.py:antmaze',
            {'expectile': 0.9, 'temperature': 3.0, 'actor_lr': 3e-4},
            {'max_steps': 1_500_000, 'eval_interval': 100_000, 'eval_episodes': 50},
        ),
        (
            'iql_oneparam.py:locomotion',
            {'expectile': 0.7, 'decay_steps': None},
            {'batch_size': 256, 'train_ratio': 1.0, 'cosine_decay': False},
        ),
        ('iql_oneparam.py:maze2d', {'expectile': 0.7}, {}),
        ('pixel_bc.py', {'actor_lr': 3e-4}, {'seed': 42, 'max_steps': 500_000}),
        (
            'ddpm_iql_offline.py:hopper',
            {'critic_hyperparam': 0.7, 'actor_dropout_rate': 0.1, 'decay_steps': 3_000_000},
            {'inference_variants': 'N=16,64,256', 'batch_size': 512, 'cosine_decay': False},
        ),
        (
            'ddpm_iql_offline.py:antmaze',
            {'critic_hyperparam': 0.9, 'value_layer_norm': True},
            {'max_steps': 3_000_000, 'online_max_steps': 0},
        ),
        (
            'ddpm_iql_finetune.py:antmaze',
            {
                'critic_hyperparam': 0.9,
                'actor_architecture': 'ln_resnet',
                'actor_num_blocks': 3,
                'decay_steps': 2_000_000,
            },
            {'online_max_steps': 1_000_000, 'inference_variants': 'N=128'},
        ),
        ('ddpm_iql_finetune.py:binary', {'critic_hyperparam': 0.7}, {'online_eval_episodes': 25}),
    ],
)
def test_offline_configs(path, values, flags):
    arguments = parsed(path)
    assert {name: arguments.agent.config[name] for name in values} == values
    assert {name: getattr(arguments.settings, name) for name in flags} == flags


@pytest.mark.parametrize('name', ['redq', 'droq'])
def test_high_update_ratios(name):
    settings = parsed(f'{name}.py', online.Settings).settings
    found = settings.utd_ratio, settings.start_training, settings.max_steps
    assert found == (20, 5000, 300_000)


def test_td3():
    config = parsed('td3.py', online.Settings).agent.config
    assert (config.actor_delay, config.target_policy_noise, config.num_qs) == (2, 0.2, 2)


@pytest.mark.parametrize('name', ['ddpm_iql_offline', 'ddpm_iql_finetune', 'iql_oneparam'])
@pytest.mark.parametrize('domain, message', [('', 'needs a'), (':anmaze', 'no published values')])
def test_domains_are_named(name, domain, message):
    with pytest.raises(RunError, match=message):
        parsed(f'{name}.py{domain}')
