"""Benchmark: which calls of which agents are timed, on batches that fit them."""

import os
import subprocess
import sys

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
def test_every_call_is_prepared(name, overrides, calls):
    spec = load_agent(f'purerl/agents/{name}.py', overrides)
    with use_mode('off'):
        prepared = benchmark.prepare(spec, batch_size=4, utd_ratio=2)
        assert list(prepared) == calls
        for step, flops in prepared.values():
            assert flops() > 0
            assert len(benchmark.time_calls(step, 2)) == 2


def test_calls_go_on_from_their_last_state():
    seen = []
    step = benchmark.carry(lambda state: seen.append(state) or state + 1, 3)
    seconds = benchmark.time_calls(step, 2)
    step()
    assert seen == [3, 4, 5]
    assert len(seconds) == 2 and min(seconds) > 0


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
        one, two = (benchmark.prepare(spec, 4, num_seeds=n, only='update_utd1') for n in (1, 2))
        for prepared in (one, two):
            assert list(prepared) == ['update_utd1']
            step, _ = prepared['update_utd1']
            benchmark.time_calls(step, 1)
    assert two['update_utd1'][1]() == 2 * one['update_utd1'][1]()


def test_processes_take_turns():
    arguments = ['--agents=purerl/agents/jaxrl5/sac.py', '--modes=off,trace', '--call=eval_actions']
    result = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmark', *arguments, '--rounds=2', '--num_calls=3'],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith('sac.py')]
    timed = {line[1]: line for line in lines if line[2] == 'eval_actions'}
    assert list(timed) == ['off', 'trace']
    assert float(timed['trace'][timed['trace'].index('ratio') + 1]) == 1
    off = timed['off']
    assert 0 < float(off[off.index('min_ms') + 1]) <= float(off[off.index('median_ms') + 1])


def test_a_process_that_fails_is_one_error():
    result = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmark', '--agents=nowhere.py', '--modes=off'],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode and 'nowhere.py' in result.stderr


@pytest.mark.parametrize('algorithm, num_envs', [('dqn', 1), ('rrd:dqn', 2)])
def test_steps_with_updates_are_timed(algorithm, num_envs):
    program = """
import contextlib
from absl import app
from experiments.benchmark_rrd import by_turns, train_ours

def main(_):
    with contextlib.ExitStack() as opened:
        steps = []
        ours = train_ours(%r, opened)
        counted = lambda n, train: (steps.append(n), train(n))[1]
        rates = by_turns([lambda n: counted(n, ours), lambda n: counted(n, int)])
    print('steps', steps)
    print('rates', *map(len, rates), min(rates[0]))

app.run(main)
"""
    arguments = ['--env=CartPole-v1', '--steps=8', '--warmup_steps=100', '--round=4', '--jit=off']
    arguments += ['--turns=2']
    arguments += ['--batch_size=4', '--width=8', f'--num_envs={num_envs}']
    result = subprocess.run(
        [sys.executable, '-c', program % algorithm, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    assert 'steps [100, 100, 4, 4, 4, 4]' in result.stdout
    *lengths, slowest = result.stdout.split('rates ')[1].split()
    assert lengths == ['2', '2'] and float(slowest) > 0
