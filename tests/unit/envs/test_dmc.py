"""dm_control's environments.

dmc_recordings.npz holds, per task that InFOM adds, numbers of the original's own task (with its
wrappers, dm_control 1.0.50 and MuJoCo 3.17.0): a seed, the state that it starts in, three steps
with given actions, and five later states with the rewards that the original labels them with.
"""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from purerl.core import random
from purerl.envs import dmc, dmc_tasks, make
from purerl.envs.dmc import DMC, reward_function
from purerl.envs.snapshot import check_resumable, env_state, set_env_state
from purerl.envs.wrappers import seed_env
from purerl.train.collect import collect_episodes, random_policy, to_d4rl

TASKS = [f'{domain}_{task}' for domain, task in dmc_tasks.TASKS]


@pytest.fixture(scope='module')
def recordings():
    with np.load(Path(__file__).with_name('dmc_recordings.npz'), allow_pickle=False) as file:
        return dict(file)


def recorded_actions(env, seed, num):
    rng = np.random.RandomState(seed)
    shape = env.action_space.shape
    return [(np.sign(rng.uniform(-1, 1, shape)) * 0.75).astype(np.float32) for _ in range(num)]


@pytest.mark.parametrize('name', TASKS)
def test_the_originals_steps(name, recordings):
    seed = int(recordings[f'{name}/seed'])
    env = make.make(name)
    observation, info = env.reset(seed=seed)
    start = recordings[f'{name}/start']
    if name.startswith('point_mass_maze'):  # the original's start is random beyond its seed
        with env.unwrapped.physics.reset_context():
            env.unwrapped.physics.set_state(start)
        observation = start.astype(np.float32)
    assert (observation.dtype, info) == (np.float32, {})
    np.testing.assert_allclose(env.unwrapped.physics_state(), start, rtol=1e-6, atol=1e-9)
    steps = [env.step(action) for action in recorded_actions(env, seed, 3)]
    observations = np.stack([observation, *(step[0] for step in steps)])
    expected = recordings[f'{name}/observations']
    np.testing.assert_allclose(observations, expected, rtol=1e-5, atol=1e-6)
    rewards = [step[1] for step in steps]
    np.testing.assert_allclose(rewards, recordings[f'{name}/rewards'], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('name', TASKS)
def test_the_originals_labels(name, recordings):
    reward = reward_function(name)
    rewards = [reward(state) for state in recordings[f'{name}/states']]
    expected = recordings[f'{name}/relabelled']
    np.testing.assert_allclose(rewards, expected, rtol=1e-7, atol=1e-15)
    assert max(rewards) > 1e-4


def test_relabelling_does_not_depend_on_the_order():
    env = make.make('quadruped_jump', seed=0)
    env.reset()
    states = []
    for _ in range(4):
        env.step(env.action_space.sample())
        states.append(env.unwrapped.physics_state())
    reward = reward_function('quadruped_jump')
    rewards = [reward(state) for state in states]
    assert [reward(state) for state in reversed(states)] == rewards[::-1]


def test_the_maze_has_walls():
    env = make.make('point_mass_maze_reach_top_right', seed=0)
    x, y = env.reset()[0][:2]
    assert -0.29 <= x <= -0.15
    assert 0.15 <= y <= 0.29
    with env.unwrapped.physics.reset_context():
        env.unwrapped.physics.set_state(np.array([-0.1, 0.1, 0.0, 0.0]))
    for _ in range(300):
        observation = env.step(np.array([1.0, 0.0], np.float32))[0]
    # The wall is 2 cm thick from its middle, the mass has a radius of 1 cm.
    np.testing.assert_allclose(observation[:2], [-0.03, 0.1], atol=5e-3)


@pytest.mark.parametrize(
    ('name', 'steps'), [('walker_flip', 1000), ('jaco_reach_top_left', 250), ('cup_catch', 1000)]
)
def test_episodes_end_by_truncation(name, steps):
    env = make.make(name, seed=1)
    env.reset()
    action = np.zeros(env.action_space.shape, np.float32)
    ends = [env.step(action)[2:4] for _ in range(steps)]
    assert ends == [(False, False)] * (steps - 1) + [(False, True)]
    with pytest.raises(RuntimeError, match='call reset'):
        env.step(action)


def test_terminations_are_told_from_truncations():
    env = make.make('lqr_lqr_2_1', seed=0)
    env.reset()
    with env.unwrapped.physics.reset_context():
        env.unwrapped.data.qpos[:] = 0  # at rest at the origin, the task is done
    _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (True, False)
    assert info['episode']['length'] == 1


def test_max_episode_steps_replaces_the_time_limit():
    for limit in (3, 1002):
        env = make.make('walker_flip', seed=0, max_episode_steps=limit)
        env.reset()
        action = np.zeros(env.action_space.shape, np.float32)
        ends = [env.step(action)[3] for _ in range(limit)]
        assert ends == [False] * (limit - 1) + [True]


def test_actions_are_scaled_to_the_actuators():
    env = make.make('quadruped_stand', seed=0)
    spec = env.unwrapped.environment.action_spec()
    assert (spec.minimum != -1).any()
    env.reset()
    for action, expected in ((-1, spec.minimum), (1, spec.maximum), (3, spec.maximum)):
        env.step(np.full(env.action_space.shape, action, np.float32))
        np.testing.assert_allclose(env.unwrapped.data.ctrl, expected, rtol=1e-6)


def test_seeds():
    def run(env, **options):
        observation, _ = env.reset(**options)
        rows = [observation]
        rows += [env.step(env.action_space.sample())[0] for _ in range(5)]
        return np.stack([*rows, env.reset()[0]])

    numpy_state = np.random.get_state()[1].copy()
    for name in ('walker_flip', 'jaco_reach_top_left', 'point_mass_maze_reach_top_left'):
        expected = run(make.make(name, seed=3))
        np.testing.assert_array_equal(run(make.make(name, seed=3)), expected)
        assert (run(make.make(name, seed=4)) != expected).any()
        env = make.make(name)
        run(env)
        seed_env(env, 3)
        np.testing.assert_array_equal(run(env), expected)
        seed_env(env, 3)
        np.testing.assert_array_equal(run(env, seed=3), expected)
        assert (make.make(name).reset()[0] != make.make(name).reset()[0]).any()
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def steps_of(env, num):
    rows = []
    for _ in range(num):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append((observation.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            rows.append(env.reset()[0].tobytes())
    return rows


@pytest.mark.parametrize(
    'name',
    [
        *('walker_flip', 'cheetah_run_backward', 'hopper_flip', 'quadruped_jump'),
        *('jaco_reach_top_left', 'point_mass_maze_reach_top_left'),
        *('point_mass_hard', 'swimmer_swimmer6', 'lqr_lqr_6_2', 'humanoid_CMU_run', 'finger_spin'),
    ],
)
def test_snapshots_go_on_bit_for_bit(name):
    env = make.make(name, seed=3, max_episode_steps=30)
    env.reset()
    steps_of(env, 37)
    state = env_state(env)
    expected = steps_of(env, 60)
    other = make.make(name, seed=99, max_episode_steps=30)
    other.reset()
    steps_of(other, 20)
    set_env_state(other, state)
    assert steps_of(other, 60) == expected
    fresh = make.make(name, max_episode_steps=30)
    set_env_state(fresh, state)
    assert steps_of(fresh, 60) == expected


def test_check_resumable():
    for name in ('walker_flip', 'jaco_reach_top_left'):
        check_resumable(make.make(name, seed=0))


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        ('walker_flip', ('walker', 'flip')),
        ('cheetah_run_backward', ('cheetah', 'run_backward')),
        ('cup_catch', ('ball_in_cup', 'catch')),
        ('point_mass_easy', ('point_mass', 'easy')),
        ('point_mass_maze_reach_top_left', ('point_mass_maze', 'reach_top_left')),
        ('humanoid_CMU_run', ('humanoid_CMU', 'run')),
        ('humanoid_run', ('humanoid', 'run')),
        ('Walker2d-v5', None),
        ('cube-single-play-v0', None),
    ],
)
def test_names(name, parts):
    assert dmc.split_name(name) == parts
    assert dmc.is_dmc(name) == (parts is not None)


def test_every_task_has_a_name():
    names = dmc.names()
    assert set(TASKS) <= set(names)
    assert 'walker_walk' in names
    assert all(map(dmc.is_dmc, names))


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [('walker_flop', 'walker_flip'), ('walkr_flip', 'walker_flip'), ('quadruped_jmp', 'd_jump')],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown environment '{name}'.*{nearest}"):
        make.make(name)


def test_missing_dm_control_names_the_extra(monkeypatch):
    def fail(module):
        raise ModuleNotFoundError(f'No module named {module!r}', name='dm_control')

    monkeypatch.setattr(dmc.importlib, 'import_module', fail)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[dmc\]'"):
        make.make('walker_flip')


def test_a_mujoco_that_does_not_fit_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

    monkeypatch.setattr(dmc.dmc_tasks, 'load', fail)
    with pytest.raises(ImportError, match='does not fit the installed MuJoCo'):
        make.make('walker_flip')


@pytest.mark.parametrize('option', [{'obs_type': 'pixel'}, {'render_mode': 'human'}])
def test_options_are_checked(option):
    with pytest.raises(ValueError, match='must be one of'):
        make.make('walker_flip', **option)


def draw(physics, height, width, camera_id):
    """Stands for dm_control's renderer, which needs OpenGL."""
    position = int(abs(physics.data.qpos[0]) * 1e6) % 200
    return np.full((height, width, 3), position + camera_id, np.uint8)


def test_frames_and_images(monkeypatch):
    monkeypatch.setattr('dm_control.mujoco.Physics.render', draw)
    env = make.make('quadruped_stand', seed=0, render_mode='rgb_array', height=10, width=20)
    env.reset()
    assert env.render().shape == (10, 20, 3)
    assert env.metadata['render_fps'] == 50
    assert make.make('quadruped_stand').render() is None
    env = make.make('quadruped_stand', seed=0, obs_type='pixels', frame_stack=2)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 6), np.uint8)
    first, _ = env.reset()
    second = env.step(env.action_space.sample())[0]
    np.testing.assert_array_equal(second[..., :3], first[..., 3:])
    assert (second[..., 3:] != first[..., 3:]).all()
    assert env.unwrapped.camera_id == 2  # the original's, nearer camera


def test_collected_states_reproduce_the_observations():
    env = make.make('cheetah_walk', max_episode_steps=6)
    episodes = collect_episodes(env, random_policy(env), random.key(0), num_transitions=12, seed=1)
    assert [episode['truncated'] for episode in episodes] == [True, True]
    for episode in episodes:
        # A cheetah observes all positions but the first, and all velocities.
        np.testing.assert_array_equal(
            episode['observations'], np.float32(episode['physics'][:, 1:])
        )
        state = np.concatenate([episode['qpos'], episode['qvel']], axis=1)
        np.testing.assert_array_equal(episode['physics'], state)
    assert to_d4rl(episodes)['timeouts'].sum() == 2


def test_the_bare_environment_is_gymnasiums():
    env = DMC('walker_flip')
    assert env.spec.id == 'walker_flip'
    assert env.reset(seed=1)[0] in env.observation_space
    assert env.unwrapped is env
    make.check_continuous(make.make('walker_flip'))
