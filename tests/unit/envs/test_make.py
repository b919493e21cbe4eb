"""Environments by name."""

import gymnasium
import numpy as np
import pytest

from purerl.envs import make as make_module
from purerl.envs.make import check_continuous, make, ogbench_env_id


def test_actions_are_rescaled_clipped_and_observations_single_precision():
    env = make('Pendulum-v1', seed=0)
    np.testing.assert_array_equal(env.action_space.low, [-1.0])
    np.testing.assert_array_equal(env.action_space.high, [1.0])
    observation, _ = env.reset()
    assert observation.dtype == np.float32
    plain = gymnasium.make('Pendulum-v1')
    plain.reset(seed=0)
    # Pendulum's torque range is [-2, 2]: 0.5 is a torque of 1, and 3 is clipped to a torque of 2.
    for action, torque in ((0.5, 1.0), (3.0, 2.0)):
        ours = env.step(np.array([action], dtype=np.float32))
        theirs = plain.step(np.array([torque], dtype=np.float32))
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_discrete_actions_pass_through():
    env = make('CartPole-v1', seed=0)
    env.reset()
    assert env.step(1)[0].dtype == np.float32


def test_time_limit_frame_stack_and_statistics():
    env = make('HalfCheetah-v5', seed=0, max_episode_steps=3, frame_stack=2)
    assert env.reset()[0].shape == (34,)
    steps = [env.step(env.action_space.sample()) for _ in range(3)]
    assert [step[3] for step in steps] == [False, False, True]
    assert steps[-1][-1]['episode']['length'] == 3
    assert steps[-1][-1]['episode']['return'] == sum(float(step[1]) for step in steps)


def test_dictionary_observations_are_flattened():
    gymnasium.register('PureRLDict-v0', entry_point=DictEnv)
    try:
        env = make('PureRLDict-v0')
        np.testing.assert_array_equal(env.reset()[0], [1.0, 2.0, 3.0])
        assert env.reset()[0].dtype == np.float32
    finally:
        del gymnasium.registry['PureRLDict-v0']


class DictEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(
        {
            'a': gymnasium.spaces.Box(-9.0, 9.0, (1,), np.float64),
            'b': gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float64),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {'a': np.array([1.0]), 'b': np.array([2.0, 3.0])}, {}


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        env = make('Hopper-v5', seed=seed)
        rows = [env.reset()[0]]
        rows += [env.step(env.action_space.sample())[0] for _ in range(20)]
        return np.stack(rows)

    np.testing.assert_array_equal(run(3), run(3))
    assert (run(3) != run(4)).any()


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [
        ('HalfCheeta-v5', 'HalfCheetah-v5'),
        ('Pendulum-v7', 'Pendulum-v1'),
        ('cube-singel-play-singletask-v0', 'cube-single-play-singletask-v0'),
        ('antmaze-medum-navigate-singletask-v0', 'antmaze-medium-navigate-singletask-v0'),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown environment '{name}'.*{nearest}"):
        make(name)


def test_a_name_like_no_other_is_refused():
    with pytest.raises(ValueError, match='no name is similar'):
        make('xyzzyqwv')


def test_images_that_cannot_be_rendered_say_what_to_do(monkeypatch):
    import mujoco

    def fail(*args, **kwargs):
        raise RuntimeError('an OpenGL platform library has not been loaded')

    monkeypatch.setattr(mujoco, 'Renderer', fail)
    with pytest.raises(ValueError, match=r'visual-cube-single-v0 cannot be seen.*MUJOCO_GL=egl'):
        make('visual-cube-single-v0')


def test_missing_ogbench_names_the_extra(monkeypatch):
    monkeypatch.setattr(make_module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[ogbench\]'"):
        make('cube-single-play-singletask-v0')


def test_missing_mujoco_names_the_extra(monkeypatch):
    def fail(*args, **kwargs):
        raise gymnasium.error.DependencyNotInstalled('MuJoCo is not installed')

    monkeypatch.setattr(gymnasium, 'make', fail)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[mujoco\]'"):
        make('Hopper-v5')


@pytest.mark.parametrize(
    ('name', 'env_id'),
    [
        ('cube-single-play-singletask-v0', 'cube-single-singletask-v0'),
        ('cube-double-play-singletask-task2-v0', 'cube-double-singletask-task2-v0'),
        ('puzzle-4x4-noisy-ft-singletask-v0', 'puzzle-4x4-singletask-v0'),
        ('antmaze-large-navigate-v0', 'antmaze-large-v0'),
        ('cube-single-play-oraclerep-v0', 'cube-single-v0'),
        ('scene-v0', 'scene-v0'),
    ],
)
def test_ogbench_names_lose_their_dataset_type(name, env_id):
    assert ogbench_env_id(name) == env_id


def test_check_continuous():
    check_continuous(make('Pendulum-v1'))
    with pytest.raises(ValueError, match=r'CartPole-v1 has the action space Discrete\(2\)'):
        check_continuous(make('CartPole-v1'))
    unbounded = gymnasium.make('Pendulum-v1')
    unbounded.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match='bounded Box'):
        check_continuous(unbounded)


def test_ogbench_single_task_reports_success_and_is_reproducible():
    def run(env):
        observation, _ = env.reset(seed=2)
        rows = [observation]
        for _ in range(4):
            observation, reward, _, truncated, info = env.step(env.action_space.sample())
            rows.append(observation)
        assert truncated
        assert reward == -1.0
        assert info['episode']['success'] == 0.0
        assert not any('privileged' in key or 'proprio' in key for key in info)
        return np.stack(rows)

    env = make('cube-single-play-ft-singletask-v0', seed=2, max_episode_steps=4)
    assert env.spec.id == 'cube-single-singletask-v0'
    first = run(env)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, run(env))
