"""Wrappers: hand-computed numbers, and determinism from a seed."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from purerl.core import trees
from purerl.envs import wrappers
from purerl.train.transitions import flattened


class Countdown(gymnasium.Env):
    """Observes [step, 10 * step]; rewards 1, 2, 3; success at the second of three."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, scored=False):
        self.step_count = 0
        if scored:
            self.get_normalized_score = lambda episode_return: episode_return / 12

    def _observation(self):
        return np.array([self.step_count, 10 * self.step_count], dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return self._observation(), {'goal': np.array([7.0, 8.0])}

    def step(self, action):
        self.last_action = action
        self.step_count += 1
        info = {'success': float(self.step_count == 2), 'privileged/x': 1, 'time': 0.1}
        done = self.step_count == 3
        return self._observation(), float(self.step_count), done, False, info


def test_layers_run_from_the_outermost_wrapper_to_the_bare_environment():
    bare = Countdown()
    inner = wrappers.SinglePrecision(bare)
    outer = wrappers.ClipAction(inner)
    assert wrappers.layers(outer) == [outer, inner, bare]


def test_single_precision_leaves_images_and_single_integers():
    env = wrappers.SinglePrecision(Countdown())
    observation, _ = env.reset()
    assert observation.dtype == np.float32
    assert env.observation_space.dtype == np.float32
    assert env.observation_space.contains(observation)
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    assert env.observation(image) is image
    assert env.observation(3) == 3


def test_arrays_of_another_kind_become_numpys():
    class Other:
        def __array__(self, dtype=None, copy=None):
            return np.ones(2, np.float64)

    env = wrappers.SinglePrecision(Countdown())
    assert env.observation(Other()).dtype == np.float32


@pytest.mark.parametrize('dtype', ['int64', 'uint8', 'float16', 'bool'])
def test_vectors_of_any_numbers_become_single_precision(dtype):
    env = Countdown()
    env.observation_space = Box(0, 1, (2,), dtype)
    env = wrappers.SinglePrecision(env)
    assert env.observation_space.dtype == np.float32
    observation = env.observation(np.ones(2, dtype))
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, [1, 1])


def test_dictionaries_are_joined_in_sorted_order_as_those_of_datasets():
    entry = Box(-9, 9, (2,), np.float32)
    env = Countdown()
    env.observation_space = Dict(velocity=entry, goal=entry, body=Dict(z=entry, a=entry))
    env = wrappers.FlattenDict(env)
    observation = {
        'velocity': np.float32([1, 2]),
        'goal': np.float32([3, 4]),
        'body': {'z': np.float32([5, 6]), 'a': np.float32([7, 8])},
    }
    joined = env.observation(observation)
    assert joined.tolist() == [7, 8, 5, 6, 3, 4, 1, 2]
    assert env.observation_space.contains(joined)
    rows = trees.map(lambda row: row[None], observation)
    assert flattened(rows).tolist() == [joined.tolist()]


def test_clip_action_keeps_the_space_bounded():
    env = wrappers.ClipAction(Countdown())
    env.reset()
    env.step(np.array([3.0], dtype=np.float32))
    assert env.unwrapped.last_action == 1.0
    assert env.action_space.is_bounded()


def run_episode(env):
    env.reset()
    infos = []
    while 'episode' not in (infos[-1] if infos else {}):
        infos.append(env.step(np.zeros(1, dtype=np.float32))[-1])
    return infos


def test_episode_monitor_reports_hand_computed_statistics():
    env = wrappers.EpisodeMonitor(Countdown(scored=True), ('.*privileged.*',))
    run_episode(env)
    infos = run_episode(env)
    assert infos[-1] == {
        'success': 0.0,
        'time': 0.1,
        'total': {'timesteps': 6},
        'episode': {
            'final_reward': 3.0,
            'return': 6.0,
            'length': 3,
            'success': 1.0,
            'normalized_return': 50.0,
        },
    }
    assert [info['total']['timesteps'] for info in infos] == [4, 5, 6]


def test_episode_monitor_reports_no_success_where_the_environment_does_not():
    env = wrappers.EpisodeMonitor(Countdown(), ('success',))
    assert set(run_episode(env)[-1]['episode']) == {'final_reward', 'return', 'length'}


def test_frame_stack_concatenates_oldest_first():
    env = wrappers.FrameStack(Countdown(), 3)
    observation, info = env.reset()
    np.testing.assert_array_equal(observation, [0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(info['goal'], [7, 8, 7, 8, 7, 8])
    assert env.observation_space.shape == (6,)
    env.step(np.zeros(1))
    np.testing.assert_array_equal(env.step(np.zeros(1))[0], [0, 0, 1, 10, 2, 20])


def test_frame_stack_refuses_what_it_cannot_stack():
    env = Countdown()
    with pytest.raises(ValueError, match='at least 1'):
        wrappers.FrameStack(env, 0)
    env.observation_space = Discrete(3)
    with pytest.raises(ValueError, match='array observations'):
        wrappers.FrameStack(env, 2)


def test_global_numpy_random_continues_the_lent_stream_and_restores_the_global_one():
    expected = np.random.RandomState(5).uniform(size=4)
    lent = np.random.RandomState(5)
    before = np.random.get_state()[1].copy()
    with wrappers.global_numpy_random(lent):
        first = [np.random.uniform() for _ in range(2)]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal([*first, *lent.uniform(size=2)], expected)


def test_global_numpy_random_restores_after_an_error():
    lent = np.random.RandomState(5)
    before = np.random.get_state()[1].copy()
    with pytest.raises(KeyError), wrappers.global_numpy_random(lent):
        np.random.uniform()
        raise KeyError
    np.testing.assert_array_equal(np.random.get_state()[1], before)


class GlobalDraws(Countdown):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.random.uniform(size=2), {}

    def step(self, action):
        return np.random.uniform(size=2), 0.0, False, False, {}


def test_an_isolated_environment_has_a_stream_of_its_own():
    def draws(env):
        return [env.reset(seed=3)[0], env.step(None)[0], env.reset()[0]]

    before = np.random.get_state()[1].copy()
    env = wrappers.IsolatedNumpyRandom(GlobalDraws())
    first = draws(env)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(draws(env), first)
    np.testing.assert_array_equal(np.concatenate(first), np.random.RandomState(3).uniform(size=6))


def test_seed_env_gives_what_a_seeded_reset_gives_and_seeds_the_spaces():
    env = wrappers.ClipAction(gymnasium.make('Pendulum-v1'))
    wrappers.seed_env(env, 4)
    observation, _ = env.reset()
    actions = [env.action_space.sample() for _ in range(3)]
    np.testing.assert_array_equal(observation, env.reset(seed=4)[0])
    wrappers.seed_env(env, 4)
    np.testing.assert_array_equal(actions, [env.action_space.sample() for _ in range(3)])
