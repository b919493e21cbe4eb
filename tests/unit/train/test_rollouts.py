"""Imagined transitions: the original's quirks, what lifts them, and going on after a restart."""

import types
import warnings

import numpy as np
import pytest
import torch

from purerl.core import random
from purerl.train.rollouts import ModelRollouts, imagine, model_step

CONFIG = {'batch_size': 4, 'num_model_rollout_steps': 1}
EXAMPLE = {
    'observations': np.zeros((1, 2), np.float32),
    'actions': np.zeros((1, 3), np.float32),
    'rewards': np.zeros(1, np.float32),
    'masks': np.zeros(1, np.float32),
    'terminals': np.zeros(1, np.float32),
    'next_observations': np.zeros((1, 2), np.float32),
}


def agent_with(**config):
    """An agent of noise, in a model where everything adds one."""
    return types.SimpleNamespace(
        config=config,
        sample_actions=lambda observations, seed, temperature: random.normal(seed, (3, 3)),
        predict_rewards=lambda observations, actions: actions.sum(-1),
        predict_next_observations=lambda observations, actions: torch.as_tensor(observations) + 1,
    )


def imagine_with(num=1, **changes):
    """Start `num` times from three observations 0."""
    config = {**CONFIG, **changes}
    rollouts, agent = ModelRollouts(EXAMPLE, config, seed=7), agent_with(**config)
    for _ in range(num):
        imagine(model_step, agent, [rollouts], [np.zeros((3, 2), np.float32)], config)
    return rollouts


def held(rollouts, name):
    return rollouts.buffer[name][: rollouts.buffer.size]


def test_transitions_and_keys():
    rollouts = imagine_with(2)
    key, expected = random.key(7), []
    for _ in range(2):
        key, actor_key = random.split(key)
        expected.append(random.normal(actor_key, (3, 3)).numpy())
    expected = np.concatenate(expected)
    np.testing.assert_array_equal(held(rollouts, 'actions'), expected)
    np.testing.assert_allclose(held(rollouts, 'rewards'), expected.sum(-1), rtol=1e-6)
    assert (held(rollouts, 'observations') == 0).all()
    assert (held(rollouts, 'next_observations') == 1).all()
    assert (held(rollouts, 'masks') == 1).all() and (held(rollouts, 'terminals') == 0).all()
    assert torch.equal(rollouts.key, key)


@pytest.mark.parametrize('advance, starts', [(False, [0, 0, 0]), (True, [0, 1, 2])])
def test_steps_start_over_or_go_on(advance, starts):
    rollouts = imagine_with(num_model_rollout_steps=3, advance_model_rollouts=advance)
    observations = held(rollouts, 'observations')[:, 0].reshape(3, 3)
    assert observations.tolist() == [[start] * 3 for start in starts]
    assert (held(rollouts, 'next_observations') == held(rollouts, 'observations') + 1).all()


def test_batches_come_once_there_is_more_than_one():
    rollouts, stream = imagine_with(1), np.random.RandomState(0)
    before, batch = stream.get_state()[1].copy(), {}
    rollouts.add_to(batch, 3, stream)  # exactly a batch
    assert batch == {} and (stream.get_state()[1] == before).all()
    rollouts.add_to(batch, 2, stream)
    idxs = np.random.RandomState(0).randint(3, size=2)
    np.testing.assert_array_equal(batch['model_actions'], held(rollouts, 'actions')[idxs])
    following = held(rollouts, 'actions')[np.minimum(idxs + 1, 2)]
    np.testing.assert_array_equal(batch['model_next_actions'], following)
    assert set(batch) == {f'model_{name}' for name in (*EXAMPLE, 'next_actions')}


def test_next_actions_of_the_policy():
    rollouts = imagine_with(model_next_actions='policy')
    _, step_key = random.split(random.key(7))
    action_key, next_key = random.split(step_key)
    for name, key in (('actions', action_key), ('next_actions', next_key)):
        np.testing.assert_array_equal(held(rollouts, name), random.normal(key, (3, 3)).numpy())
    batch = {}
    rollouts.add_to(batch, 2, np.random.RandomState(0))
    idxs = np.random.RandomState(0).randint(3, size=2)
    np.testing.assert_array_equal(batch['model_next_actions'], held(rollouts, 'next_actions')[idxs])


def test_the_ring_holds_the_latest():
    rollouts = imagine_with(3, model_buffer_size=5)
    assert (rollouts.buffer.size, rollouts.buffer.pointer) == (5, 4)
    whole = held(imagine_with(3), 'actions')
    np.testing.assert_array_equal(rollouts.buffer['actions'], whole[[5, 6, 7, 8, 4]])
    assert imagine_with(50).buffer.size == 100


def test_a_buffer_without_use_is_reported():
    with pytest.warns(UserWarning, match='model_buffer_size=100 is not above batch_size=100'):
        ModelRollouts(EXAMPLE, {'batch_size': 100}, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ModelRollouts(EXAMPLE, {'batch_size': 99}, seed=0)


def test_other_entries_stay_out():
    batch = {**EXAMPLE, 'qpos': np.zeros((1, 9)), 'observation_min': np.zeros(2)}
    rollouts = ModelRollouts(batch, CONFIG, seed=0)
    assert set(rollouts.buffer.arrays) == set(EXAMPLE)


def test_going_on_after_a_restart():
    changes = {'model_next_actions': 'policy', 'model_buffer_size': 7}
    whole, first = imagine_with(4, **changes), imagine_with(2, **changes)
    resumed = imagine_with(1, **changes)  # of another past
    resumed.set_state(first.state())
    agent, config = agent_with(**changes), {**CONFIG, **changes}
    for _ in range(2):
        imagine(model_step, agent, [resumed], [np.zeros((3, 2), np.float32)], config)
    assert torch.equal(resumed.key, whole.key)
    assert resumed.buffer.pointer == whole.buffer.pointer
    for name, array in whole.buffer.arrays.items():
        np.testing.assert_array_equal(resumed.buffer[name], array)
