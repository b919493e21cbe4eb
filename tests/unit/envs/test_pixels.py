"""Images as observations. What renders needs OpenGL; everything else has images made by hand."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from purerl.envs import pixels
from purerl.envs.make import make
from purerl.envs.pixels import PixelObservation, RepeatAction, StackFrames
from purerl.envs.snapshot import check_resumable, env_state, set_env_state
from purerl.envs.wrappers import seed_env


class Cameras(gymnasium.Env):
    """Two cameras whose images count the steps; an episode of five steps, each worth its number."""

    image = Box(0, 255, (2, 3, 3), np.uint8)
    observation_space = Dict({'pixels': image, 'pixels_1': image})
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.count = 0

    def _observe(self):
        return {
            'pixels': np.full((2, 3, 3), self.count, np.uint8),
            'pixels_1': np.full((2, 3, 3), 100 + self.count, np.uint8),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {'start': 1}

    def step(self, action):
        self.count += 1
        info = {'count': self.count, f'step_{self.count}': True}
        return self._observe(), float(self.count), False, self.count == 5, info


def numbers(observation, key='pixels'):
    images = observation[key]
    assert (images == images[:1, :1, :1]).all()
    return images[0, 0, 0].tolist()


# --- Wrappers -------------------------------------------------------------------------------------


def test_frames_are_stacked_along_a_new_last_axis():
    env = StackFrames(Cameras(), 3)
    assert env.observation_space['pixels'] == Box(0, 255, (2, 3, 3, 3), np.uint8)
    observation, info = env.reset()
    assert info == {'start': 1}
    assert env.observation_space.contains(observation)
    assert numbers(observation) == [0, 0, 0]
    for expected in ([0, 0, 1], [0, 1, 2], [1, 2, 3]):
        observation = env.step(np.zeros(1))[0]
        assert numbers(observation) == expected
        assert numbers(observation, 'pixels_1') == [100 + n for n in expected]
    assert numbers(env.reset()[0]) == [0, 0, 0]


def test_one_frame_keeps_the_last_axis():
    observation, _ = StackFrames(Cameras(), 1).reset()
    assert observation['pixels'].shape == (2, 3, 3, 1)


def test_observations_do_not_change_afterwards():
    env = StackFrames(Cameras(), 2)
    first, _ = env.reset()
    env.step(np.zeros(1))
    assert numbers(first) == [0, 0]


def test_repeated_actions_add_up_and_stop_with_the_episode():
    env = RepeatAction(Cameras(), 3)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (reward, terminated, truncated) == (1 + 2 + 3, False, False)
    assert observation['pixels'][0, 0, 0] == 3
    assert info == {'count': 3, 'step_1': True, 'step_2': True, 'step_3': True}
    _, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (reward, terminated, truncated, info['count']) == (4 + 5, False, True, 5)


def test_snapshots_hold_the_stack():
    env = StackFrames(RepeatAction(Cameras(), 1), 3)
    check_resumable(env)
    env.reset()
    env.step(np.zeros(1))
    state = env_state(env)
    expected = [numbers(env.step(np.zeros(1))[0], key) for key in ('pixels', 'pixels_1')]
    other = StackFrames(RepeatAction(Cameras(), 1), 3)
    set_env_state(other, state)
    assert [numbers(other.step(np.zeros(1))[0], key) for key in ('pixels', 'pixels_1')] == expected


@pytest.mark.parametrize(
    ('name', 'repeat'),
    [
        ('cartpole_swingup', 8),
        ('reacher_easy', 4),
        ('cheetah_run', 4),
        ('finger_spin', 2),
        ('cup_catch', 4),
        ('ball_in_cup_catch', 4),
        ('walker_walk', 2),
        ('quadruped_walk', 2),
        ('HalfCheetah-v5', 2),
    ],
)
def test_planets_action_repeats(name, repeat):
    assert pixels.action_repeat(name) == repeat


def test_options_of_flags():
    assert pixels.options_of({'env_name': 'cheetah_run'}) == {}
    assert pixels.options_of({'env_name': 'cheetah_run', 'action_repeat': 3}) == {
        'action_repeat': 3
    }
    flags = {'env_name': 'cheetah_run', 'image_size': 64, 'num_stack': 3, 'action_repeat': None}
    expected = {'action_repeat': 4, 'image_size': 64, 'num_stack': 3, 'cameras': None}
    assert pixels.options_of(flags) == expected
    flags = {**flags, 'action_repeat': 1, 'cameras': '1, side,-1'}
    cameras = {'pixels': 1, 'pixels_1': 'side', 'pixels_2': -1}
    assert pixels.options_of(flags) == {'image_size': 64, 'num_stack': 3, 'cameras': cameras}


def test_image_keys():
    assert pixels.image_keys(StackFrames(Cameras(), 2).observation_space) == ('pixels', 'pixels_1')
    assert pixels.image_keys(Box(-1, 1, (3,))) == ()
    assert pixels.image_keys(Cameras.observation_space) == ()  # no axis of frames


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='at least 1, not 0'):
        StackFrames(Cameras(), 0)
    with pytest.raises(ValueError, match='dicts of them only'):
        StackFrames(make('Pendulum-v1'), 2)
    with pytest.raises(ValueError, match='at least once, not 0 times'):
        RepeatAction(Cameras(), 0)
    with pytest.raises(ValueError, match=r'Pendulum-v1 cannot be seen.*MuJoCo'):
        make('Pendulum-v1', image_size=16)


def test_actions_are_repeated_without_images_too():
    once, twice = make('Pendulum-v1', seed=0), make('Pendulum-v1', seed=0, action_repeat=2)
    assert (once.reset()[0] == twice.reset()[0]).all()
    action = np.ones(1, np.float32)
    steps = [once.step(action) for _ in range(2)]
    observation, reward, *_ = twice.step(action)
    np.testing.assert_array_equal(observation, steps[1][0])
    assert reward == steps[0][1] + steps[1][1]
    for _ in range(99):
        *_, truncated, info = twice.step(action)
    assert truncated
    assert info['episode']['length'] == 100


# --- Rendering ------------------------------------------------------------------------------------


class FakeRenderer:
    """Stands for MuJoCo's: an image of the first joint's position, by camera."""

    __module__ = 'mujoco.renderer'  # what snapshots know it by

    def __init__(self, model, height, width):
        self.model, self.shape, self.closed = model, (height, width, 3), False

    def update_scene(self, data, camera):
        self.value = int(abs(data.qpos[0]) * 1e4) % 200 + 10 * (camera == 'track')

    def render(self):
        return np.full(self.shape, self.value, np.uint8)

    def close(self):
        self.closed = True


@pytest.fixture
def without_opengl(monkeypatch):
    import mujoco

    monkeypatch.setattr(mujoco, 'Renderer', FakeRenderer)


def walk(env, num, seed=5):
    seed_env(env, seed)
    observations = [env.reset()[0]]
    for _ in range(num):
        observations.append(env.step(env.action_space.sample())[0])
    return observations


@pytest.mark.usefixtures('without_opengl')
def test_gymnasiums_environments_are_seen():
    env = make('HalfCheetah-v5', image_size=8, num_stack=2, action_repeat=2)
    observations = walk(env, 6)
    assert all(env.observation_space.contains(observation) for observation in observations)
    assert list(observations[0]) == ['pixels']
    assert observations[0]['pixels'].shape == (8, 8, 3, 2)
    for before, after in itertools.pairwise(observations):
        np.testing.assert_array_equal(after['pixels'][..., 0], before['pixels'][..., 1])
    np.testing.assert_array_equal(env.render(), observations[-1]['pixels'][..., -1])
    again = walk(make('HalfCheetah-v5', image_size=8, num_stack=2, action_repeat=2), 6)
    for ours, theirs in zip(observations, again, strict=True):
        np.testing.assert_array_equal(ours['pixels'], theirs['pixels'])
    env.close()


@pytest.mark.usefixtures('without_opengl')
def test_several_cameras():
    cameras = pixels.camera_names('0,track')
    env = make('HalfCheetah-v5', image_size=4, cameras=cameras)
    observation = walk(env, 3)[-1]
    difference = observation['pixels_1'].astype(int) - observation['pixels']
    assert (difference == 10).all()


@pytest.mark.usefixtures('without_opengl')
def test_seen_environments_resume_bit_for_bit():
    env = make('Hopper-v5', image_size=4, num_stack=3, action_repeat=2)
    check_resumable(env)
    walk(env, 4)
    state = env_state(env)
    actions = [env.action_space.sample() for _ in range(5)]
    expected = [env.step(action) for action in actions]
    other = make('Hopper-v5', image_size=4, num_stack=3, action_repeat=2)
    set_env_state(other, state)
    for (ours, *outcome), action in zip(expected, actions, strict=True):
        theirs, *other_outcome = other.step(action)
        np.testing.assert_array_equal(ours['pixels'], theirs['pixels'])
        assert outcome[:3] == other_outcome[:3]


def test_what_cannot_be_rendered_says_what_to_do(monkeypatch):
    import mujoco

    def fail(*args, **kwargs):
        raise RuntimeError('an OpenGL platform library has not been loaded')

    monkeypatch.setattr(mujoco, 'Renderer', fail)
    env = make('Hopper-v5', image_size=4)
    with pytest.raises(ValueError, match=r'Hopper-v5 cannot be seen.*MUJOCO_GL=egl'):
        env.reset()


def test_the_free_camera_where_a_model_has_none(without_opengl):
    env = PixelObservation(make('InvertedPendulum-v5'), 4)
    assert env.unwrapped.model.ncam == 0
    assert env.cameras == {'pixels': -1}
