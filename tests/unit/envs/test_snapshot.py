"""Snapshots: the steps after one are the same to the last bit."""

import json
import types

import gymnasium
import numpy as np
import pytest

from purerl.envs.make import make
from purerl.envs.snapshot import check_resumable, env_state, set_env_state

MUJOCO = (
    'HalfCheetah',
    'Hopper',
    'Walker2d',
    'Ant',
    'Humanoid',
    'HumanoidStandup',
    'Swimmer',
    'Reacher',
    'Pusher',
    'InvertedPendulum',
    'InvertedDoublePendulum',
)
CLASSIC = (
    'Pendulum-v1',
    'MountainCarContinuous-v0',
    'MountainCar-v0',
    'CartPole-v1',
    'Acrobot-v1',
)
OGBENCH = (
    'cube-single-play-singletask-v0',
    'scene-play-singletask-v0',
    'puzzle-3x3-play-singletask-v0',
    'antmaze-medium-navigate-singletask-v0',
)


def record(env, num_steps):
    """Steps with sampled actions, resetting at episodes' ends; everything as bits."""
    rows = []
    for _ in range(num_steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rows.append((observation.tobytes(), float(reward), terminated, truncated))
        rows.append(repr(info.get('episode')))
        if terminated or truncated:
            rows.append(env.reset()[0].tobytes())
    rows.append(env.reset()[0].tobytes())
    return rows


def is_plain(node):
    if isinstance(node, dict):
        return all(isinstance(key, str) and is_plain(value) for key, value in node.items())
    if isinstance(node, list):
        return all(map(is_plain, node))
    if isinstance(node, np.ndarray):
        return node.dtype.kind in 'biuf'
    return json.loads(json.dumps(node)) == node or node != node


def check_resume(env_name, num_steps, **kwargs):
    env = make(env_name, seed=3, **kwargs)
    env.reset()
    record(env, 137)
    env.reset()
    for _ in range(7):
        env.step(env.action_space.sample())
    state = env_state(env)
    assert is_plain(state)
    expected = record(env, num_steps)

    other = make(env_name, seed=99, **kwargs)
    other.reset()
    record(other, 20)
    set_env_state(other, state)
    assert record(other, num_steps) == expected
    fresh = make(env_name, **kwargs)
    set_env_state(fresh, state)
    assert record(fresh, num_steps) == expected


@pytest.mark.parametrize('name', MUJOCO)
def test_mujoco_goes_on_bit_for_bit(name):
    # The short limit makes the 500 steps contain truncations and resets.
    check_resume(f'{name}-v5', 500, max_episode_steps=120)


@pytest.mark.parametrize('name', CLASSIC)
def test_classic_control_goes_on_bit_for_bit(name):
    check_resume(name, 500)


@pytest.mark.parametrize('name', OGBENCH)
def test_ogbench_goes_on_bit_for_bit(name):
    check_resume(name, 60, max_episode_steps=40)


def test_frame_stacks_are_part_of_the_state():
    check_resume('Pendulum-v1', 50, frame_stack=3)


def test_the_derived_quantities_are_needed():
    """Humanoid's reward reads centres of mass of the step before, which the state alone lacks."""
    env = make('Humanoid-v5', seed=0)
    env.reset()
    for _ in range(5):
        env.step(env.action_space.sample())
    state = env_state(env)
    action = env.action_space.sample()
    expected = env.step(action)[1]
    set_env_state(env, state)
    assert env.step(action)[1] == expected
    data = next(a for a in state['layers'][-1]['attributes'].values() if is_simulation(a))
    data['fields'] = {}
    set_env_state(env, state)
    assert env.step(action)[1] != expected


def is_simulation(value):
    return isinstance(value, dict) and value.get('__type__') == 'mujoco_data'


def test_a_snapshot_does_not_change_with_the_environment():
    env = make('Hopper-v5', seed=0)
    env.reset()
    state = env_state(env)
    before = repr(state)
    record(env, 30)
    assert repr(state) == before
    set_env_state(env, state)
    record(env, 30)
    assert repr(state) == before


class Odd(gymnasium.Env):
    """An environment with attributes of every kind that a snapshot holds."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.action_space = gymnasium.spaces.Dict(
            {'a': gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(5)])}
        )
        self.legacy = np.random.RandomState(1)
        self.table = {(0, 1): np.float32(2.5), 3: {1, 2}, 'texts': np.array(['ab', 'c'])}
        self.nothing = None
        self.text = np.str_('x')

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.table['reset'] = (self.np_random.integers(1 << 60), [frozenset('z')])
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), self.legacy.uniform(), False, False, {}


def test_attributes_of_all_kinds_come_back():
    env = Odd()
    env.reset(seed=1)
    env.action_space.seed(5)
    state = env_state(env)
    assert is_plain(state)
    table = dict(env.table)
    draws = env.np_random.uniform(), env.legacy.normal(), env.action_space.sample()
    other = Odd()
    set_env_state(other, state)
    texts, other_texts = table.pop('texts'), other.table.pop('texts')
    np.testing.assert_array_equal(texts, other_texts)
    assert texts.dtype == other_texts.dtype
    assert other.table == table
    assert type(other.table[0, 1]) is np.float32
    assert (other.nothing, other.text) == (None, 'x')
    assert (other.np_random.uniform(), other.legacy.normal(), other.action_space.sample()) == draws


def test_check_resumable_accepts_and_leaves_the_environment_as_it_was():
    env = make('Hopper-v5', seed=0)
    check_resumable(env)
    first = env.reset()[0]
    np.testing.assert_array_equal(first, make('Hopper-v5', seed=0).reset()[0])


class LateSecret(Odd):
    def reset(self, *, seed=None, options=None):
        self.engines = [types.SimpleNamespace(x=1)]
        return super().reset(seed=seed)


def test_check_resumable_names_what_it_cannot_capture_even_if_only_a_reset_makes_it():
    with pytest.raises(ValueError, match=r'LateSecret\.engines\[0\] is of type .*SimpleNamespace'):
        check_resumable(LateSecret())


def test_a_snapshot_of_another_environment_is_refused():
    env = make('Pendulum-v1', seed=0)
    with pytest.raises(ValueError, match=r'the snapshot is of .*CartPoleEnv'):
        set_env_state(env, env_state(make('CartPole-v1', seed=0)))
