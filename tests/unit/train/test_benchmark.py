"""Benchmark: which calls of which agents are timed, on batches that fit them."""

import pytest
import torch

from purerl.core import trees
from purerl.core.jit import use_mode
from purerl.train import benchmark
from purerl.train.config import load_agent

ACTING = ['eval_actions', 'sample_actions']
INFOM = ['pretrain', 'finetune', 'finetune_partial']
SMALL = {'hidden_dims': (8,)}
SMALL_IMAGES = {**SMALL, 'cnn_features': (2,), 'cnn_filters': (3,), 'cnn_strides': (4,)}
SMALL_IDQL = {'critic_hidden_dims': (8,), 'mlp_resnet_hidden_dim': 8, 'time_dim': 8, 'N': 3}
CASES = [
    ('jaxrl5/sac', SMALL, ['update_utd2', *ACTING]),
    ('jaxrl5/td3', SMALL, ['update_utd2', *ACTING]),
    ('jaxrl5/drq', SMALL_IMAGES, ['update_utd2', *ACTING]),
    ('jaxrl5/bc', SMALL, ['update', *ACTING]),
    ('jaxrl5/pixel_bc', SMALL_IMAGES, ['update', *ACTING]),
    ('jaxrl5/iql', SMALL, ['update', *ACTING]),
    ('jaxrl5/ddpm_iql', SMALL_IDQL, ['update', 'eval_actions', 'sample_implicit_policy']),
    ('jaxrl5/ddpm_iql_simple', SMALL_IDQL, ['update', 'eval_actions']),
    ('infom/rebrac', {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,)}, INFOM),
]


@pytest.mark.parametrize('name, overrides, calls', CASES)
def test_every_call_is_timed(name, overrides, calls):
    spec = load_agent(f'purerl/agents/{name}.py', overrides)
    with use_mode('off'):
        figures = benchmark.measure(spec, batch_size=4, utd_ratio=2, num_calls=1)
    assert list(figures) == calls
    for row in figures.values():
        assert 0 < row['min_ms'] <= row['median_ms']
        assert row['gflop'] > 0 and row['peak_mib'] > 0


def test_acting_sees_the_first_observation_and_leaves_the_agent():
    spec = load_agent('purerl/agents/jaxrl5/sac.py', SMALL)
    observation, action = benchmark.example_of(spec.config)
    examples = torch.from_numpy(observation), torch.from_numpy(action)
    agent = spec.agent_class.create(0, *examples, spec.config)
    batch = trees.map(torch.from_numpy, benchmark.synthetic_batch(spec, 4))
    for name in ACTING:
        after, actions = benchmark.calls_of(spec.agent_class)[name](agent, batch)
        assert after is agent
        expected, _ = getattr(agent, name)(batch['observations'][0])
        torch.testing.assert_close(actions, expected)


def test_one_call_and_many_seeds():
    spec = load_agent('purerl/agents/jaxrl5/td3.py', SMALL)
    with use_mode('off'):
        one, two = (
            benchmark.measure(spec, 4, num_calls=1, num_seeds=n, only='update_utd1') for n in (1, 2)
        )
    assert list(one) == list(two) == ['update_utd1']
    assert two['update_utd1']['gflop'] == 2 * one['update_utd1']['gflop']
