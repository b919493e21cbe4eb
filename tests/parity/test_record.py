"""Recordings made with the recording helper replay."""

import types
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from experiments.reference.case import load
from experiments.reference.record import Recorder
from experiments.reference.replay import replay
from purerl.agents.infom import rebrac, td_infonce
from purerl.agents.jaxrl5 import sac
from purerl.core import jit, optim, random


def batch(seed, size=4, **extra):
    draws = np.random.default_rng(seed)
    shapes = {'observations': (size, 5), 'next_observations': (size, 5), 'rewards': (size,)}
    arrays = {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    actions = draws.uniform(-1, 1, (size, 2)).astype(np.float32)
    return {**arrays, 'actions': actions, 'masks': np.ones(size, np.float32), **extra}


def test_recorded_offline_agent_replays(tmp_path):
    config = rebrac.get_config()
    config.update({'actor_hidden_dims': (8, 8), 'value_hidden_dims': (8, 8)})
    examples = torch.zeros(1, 5), torch.zeros(1, 2)
    recorder = Recorder('infom', 'rebrac', 'fork', seed=11, config=config, notes='a fork')
    next_actions = {'next_actions': np.zeros((4, 2), np.float32)}
    with jit.use_mode('off'):
        recorder.run(
            rebrac.ReBRACAgent.create(11, *examples, config.to_dict()),
            ops=[
                ('pretrain', batch(0, **next_actions), {}),
                ('finetune', batch(1, **next_actions), {'full_update': True}),
                ('finetune', batch(2, **next_actions), {'full_update': False}),
            ],
            examples=examples,
            actions=[{'observations': np.ones(5, np.float32), 'key': random.key(1),
                      'temperature': 0.5}],
        )  # fmt: skip
    recorder.save(tmp_path / 'new/rebrac__fork.safetensors')

    case = load(tmp_path / 'new/rebrac__fork.safetensors')
    assert (case.seed, case.metadata['notes']) == (11, 'a fork')
    assert case.ops[1] == {'call': 'finetune', 'kwargs': {'full_update': True}}
    report = replay(case, 'off')
    assert report.failures == []
    kinds = {'key', 'init', 'info', 'params', 'opt', 'step', 'actions'}
    assert report.errors.keys() == kinds


def test_ill_conditioned_agents_are_recorded_op_by_op(tmp_path):
    config = td_infonce.get_config()
    sizes = ('actor_hidden_dims', 'value_hidden_dims', 'reward_hidden_dims')
    config.update({**dict.fromkeys(sizes, (8,)), 'latent_dim': 4})
    examples = torch.zeros(1, 5), torch.zeros(1, 2)
    goals = {name: np.eye(4, 5, dtype=np.float32) for name in ('value_goals', 'actor_goals')}
    goals['next_actions'] = np.zeros((4, 2), np.float32)
    recorder = Recorder('infom', 'td_infonce', 'fork', seed=3, config=config)
    with jit.use_mode('off'):
        recorder.run(
            td_infonce.TDInfoNCEAgent.create(3, *examples, config),
            ops=[
                ('pretrain', batch(0, **goals), {}),
                ('target_reset', None, {}),
                ('finetune', batch(1, **goals), {'full_update': True}),
                ('finetune', batch(2, **goals), {'full_update': False}),
            ],
            examples=examples,
        )
    recorder.save(tmp_path / 'td_infonce__fork.safetensors')
    case = load(tmp_path / 'td_infonce__fork.safetensors')
    assert case.children('params') == ['0', '1', '2', '3']
    report = replay(case, 'off')
    assert report.failures == []
    assert report.left_out


def test_agents_that_ops_change_in_place_are_recorded(tmp_path):
    class Agent:
        """As the InFOM original: target_reset writes into the parameters and returns None."""

        def __init__(self):
            self.rng = np.zeros(2, np.uint32)
            adam = optim.ScaleByAdamState(count=np.int32(0), mu={}, nu={})
            self.network = types.SimpleNamespace(
                params={'x': np.ones(1), 'y': np.zeros(1)}, opt_state=(adam,), step=1
            )

        def target_reset(self):
            self.network.params['y'] = self.network.params['x']

    recorder = Recorder('infom', 'anything', 'fork', seed=0, config={})
    agent = Agent()
    assert recorder.run(agent, ops=[('target_reset', None, {})]) is agent
    recorder.save(tmp_path / 'x.safetensors')
    tensors = load(tmp_path / 'x.safetensors').tensors
    assert (tensors['init/y'], tensors['params/0/y']) == ([0], [1])


def test_recorded_online_agent_replays(tmp_path):
    config = {**sac.get_config().to_dict(), 'hidden_dims': (8,), 'observation_dim': 5}
    config['action_dim'] = 2
    recorder = Recorder('jaxrl5', 'sac', 'fork', seed=2, config=config)
    observations = np.ones((3, 5), np.float32)
    with jit.use_mode('off'):
        recorder.run(
            sac.SACLearner.create(2, torch.zeros(5), torch.zeros(2), config),
            ops=[('update', batch(0, dones=np.zeros(4, bool)), {'utd_ratio': 2})],
            actions=[
                {'call': 'sample_actions', 'key': random.key(5), 'observations': observations},
                {'call': 'eval_actions', 'key': random.key(6), 'observations': observations[0]},
            ],
        )
    recorder.save(tmp_path / 'sac__fork.safetensors')
    report = replay(load(tmp_path / 'sac__fork.safetensors'), 'off')
    assert report.failures == []
    assert report.errors.keys() == {'key', 'init', 'info', 'params', 'opt', 'actions'}


class FrozenMapping(Mapping):
    """As Flax's FrozenDict: a mapping, but no dict."""

    def __init__(self, entries):
        self.entries = entries

    def __getitem__(self, key):
        return self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


def test_arrays_are_stored_as_the_format_says(tmp_path):
    recorder = Recorder('infom', 'anything', 'types', seed=0, config={}, encoder_overrides={})
    recorder.add('a', FrozenMapping({'bool': np.array([True]), 'word': np.uint32(2**32 - 1)}))
    recorder.add('b', [np.float64(0.1), {'image': np.zeros((2, 2), np.uint8)}])
    recorder.add('c', np.zeros((2, 3), np.float32).T)
    recorder.save(tmp_path / 'x.safetensors')
    case = load(tmp_path / 'x.safetensors')
    dtypes = {name: tensor.dtype.name for name, tensor in case.tensors.items()}
    expected = {'a/bool': 'uint8', 'a/word': 'int64', 'b/0': 'float32', 'b/1/image': 'uint8'}
    assert dtypes == {**expected, 'c': 'float32'}
    assert case.tensors['a/word'] == 2**32 - 1
    assert case.metadata['encoder_overrides'] == '{}'


def test_nothing_is_recorded_twice():
    recorder = Recorder('infom', 'anything', 'twice', seed=0, config={})
    recorder.add('a/b', np.zeros(1))
    with pytest.raises(ValueError, match='a/b is recorded already'):
        recorder.add('a', {'b': np.zeros(1)})


def test_unknown_system_is_refused():
    with pytest.raises(ValueError, match='system must be one of idql, infom, jaxrl5'):
        Recorder('brax', 'ppo', 'x', seed=0, config={})


def test_header_names_the_versions(tmp_path):
    recorder = Recorder('infom', 'a', 'b', seed=0, config={})
    recorder.save(tmp_path / 'x.safetensors')
    versions = load(tmp_path / 'x.safetensors').parsed('versions')
    assert versions['numpy'] == np.__version__
