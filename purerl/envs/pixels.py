"""Images as observations, and repeated actions: jaxrl5's wrappers for pixels.

Counterpart of ``jaxrl5/wrappers`` (``wrap_pixels``) of philippe-eecs/IDQL @ 7582571 and of the
flags of its launchers for pixels. `purerl.envs.make.make` puts the wrappers together.

Deviations from the original:
- Any environment that MuJoCo simulates can be seen: those of gymnasium, of dm_control and of
  OGBench; the original renders through gym.
- Several cameras are stacked; the original stacks the images of the first only.
"""

import collections
import re

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from purerl.envs import dmc, naming

PIXELS = 'pixels'  # the first camera's name among the observations
# Hafner et al., "Learning latent dynamics for planning from pixels" (2019), table of tasks.
PLANET_ACTION_REPEAT = {
    'cartpole_swingup': 8,
    'reacher_easy': 4,
    'cheetah_run': 4,
    'finger_spin': 2,
    'ball_in_cup_catch': 4,
    'walker_walk': 2,
}
_ACTION_REPEAT = 2  # of other tasks
_FREE_CAMERA = -1


def action_repeat(env_name):
    """Returns how often the original repeats actions in an environment that it sees.

    Args:
        env_name: As `purerl.envs.make.make` takes it.
    """
    name = dmc.split_name(env_name)
    return PLANET_ACTION_REPEAT.get('_'.join(name or ()), _ACTION_REPEAT)


def options_of(flags):
    """Returns the options of `purerl.envs.make.make` that a run's flags stand for.

    Args:
        flags: A mapping with `env_name`, and maybe `image_size` (pixels; None for states),
            `num_stack`, `cameras` (`'0,side'`: numbers or names) and `action_repeat` (None for the
            original's with images, for 1 without).

    Returns:
        A dict; empty for an environment that is acted in by its states, step by step.
    """
    image_size, repeat = flags.get('image_size'), flags.get('action_repeat')
    if repeat is None:
        repeat = 1 if image_size is None else action_repeat(flags['env_name'])
    options = {} if repeat == 1 else {'action_repeat': repeat}
    if image_size is None:
        return options
    cameras = camera_names(flags.get('cameras'))
    return {
        **options,
        'image_size': image_size,
        'num_stack': flags['num_stack'],
        'cameras': cameras,
    }


def camera_names(text):
    """Names cameras as the observations do: `pixels`, `pixels_1`, `pixels_2`, ...

    Args:
        text: Their numbers (-1: the free one) or names in the model, separated by commas; None for
            the default one.

    Returns:
        A dict from names to numbers or names in the model, or None.
    """
    if text is None:
        return None
    cameras = [part.strip() for part in text.split(',')]
    return {
        f'{PIXELS}_{i}' if i else PIXELS: _number_or_name(camera)
        for i, camera in enumerate(cameras)
    }


def _number_or_name(camera):
    try:
        return int(camera)
    except ValueError:
        return camera


class RepeatAction(gymnasium.Wrapper):
    """Takes each action several times, as long as the episode goes on.

    The reward is the sum of the steps' rewards, the observation the last one, and the infos are
    merged, later ones going before earlier ones.

    Args:
        env: The environment to wrap.
        num: How often.
    """

    def __init__(self, env, num):
        super().__init__(env)
        if num < 1:
            raise ValueError(f'actions must be taken at least once, not {num} times')
        self.num = num

    def step(self, action):
        total, merged = 0.0, {}
        for _ in range(self.num):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            merged.update(info)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, merged


class PixelObservation(gymnasium.ObservationWrapper):
    """Makes images of the observations: a dict of arrays (size, size, 3) of uint8.

    `render()` returns the first camera's latest image.

    Args:
        env: An environment that MuJoCo simulates.
        size: Height and width, in pixels.
        cameras: A mapping from names of observations to cameras' numbers or names in the model;
            None for `pixels` alone: dm_control's and the original's camera (2 for quadrupeds, else
            0), or the free one where the model has none.

    Raises:
        ValueError: If MuJoCo does not simulate the environment.
    """

    def __init__(self, env, size, cameras=None):
        super().__init__(env)
        bare = env.unwrapped
        if not hasattr(bare, 'physics') and not _is_simulated(bare):
            raise ValueError(
                f'{naming.name_of(env)} cannot be seen: images are made of environments that '
                'MuJoCo simulates, such as HalfCheetah-v5 or the task cheetah_run of dm_control'
            )
        self.size = size
        self.cameras = dict(cameras or {PIXELS: _default_camera(bare)})
        image = Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = Dict(dict.fromkeys(self.cameras, image))
        self._renderer = None
        self._latest = None

    def observation(self, observation):
        images = {key: self._image(camera) for key, camera in self.cameras.items()}
        self._latest = next(iter(images.values()))
        return images

    def render(self):
        return self._latest

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()

    def _image(self, camera):
        try:
            return self._render(camera)
        except Exception as error:  # each rendering backend has errors of its own
            raise ValueError(
                f'{naming.name_of(self)} cannot be seen through camera {camera}: rendering fails '
                f'({error}){rendering_hint(error)}'
            ) from error

    def _render(self, camera):
        bare = self.env.unwrapped
        if hasattr(bare, 'physics'):
            image = bare.physics.render(height=self.size, width=self.size, camera_id=camera)
            return np.ascontiguousarray(image)
        if self._renderer is None or self._renderer.model is not bare.model:
            self._make_renderer(bare.model)
        self._renderer.update_scene(bare.data, camera=camera)
        return self._renderer.render().copy()

    def _make_renderer(self, model):
        import mujoco

        if self._renderer is not None:
            self._renderer.close()
        self._renderer = mujoco.Renderer(model, height=self.size, width=self.size)


class StackFrames(gymnasium.Wrapper):
    """Stacks the last images of each camera along a new last axis, oldest first.

    A reset fills the stack with its image. Unlike `wrappers.FrameStack`, which concatenates
    channels, this is jaxrl5's layout (height, width, channels, num_stack).

    Args:
        env: An environment whose observations are dicts of images.
        num_stack: Number of images.

    Raises:
        ValueError: If the observations are no dicts of arrays, or `num_stack` is below one.
    """

    def __init__(self, env, num_stack):
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, Dict) or not all(isinstance(s, Box) for s in space.values()):
            raise ValueError(f'images can be stacked in dicts of them only, not in {space}')
        if num_stack < 1:
            raise ValueError(f'the number of stacked frames must be at least 1, not {num_stack}')
        self.frames = {key: collections.deque(maxlen=num_stack) for key in space}
        self.observation_space = Dict(
            {
                key: Box(
                    np.repeat(image.low[..., None], num_stack, axis=-1),
                    np.repeat(image.high[..., None], num_stack, axis=-1),
                    dtype=image.dtype,
                )
                for key, image in space.items()
            }
        )

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        for key, frames in self.frames.items():
            frames.extend([observation[key]] * frames.maxlen)
        return self._stacks(), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        for key, frames in self.frames.items():
            frames.append(observation[key])
        return self._stacks(), reward, terminated, truncated, info

    def _stacks(self):
        return {key: np.stack(frames, axis=-1) for key, frames in self.frames.items()}


def image_keys(space):
    """Returns the names of the images among observations; empty where they are no images."""
    if not isinstance(space, Dict):
        return ()
    return tuple(key for key, child in space.items() if _holds_images(child))


def rendering_hint(error):
    """Returns what to do about an error of a rendering backend; '' if it is not about OpenGL."""
    if not re.search(r'mujoco|GL|\bgl[A-Z]', f'{type(error)} {error}'):
        return ''
    return (
        '. MuJoCo needs OpenGL to render: on a machine without a display set the environment '
        'variable MUJOCO_GL=egl (or osmesa, where that library is installed)'
    )


def _is_simulated(bare):
    names = [type(getattr(bare, name, None)).__name__ for name in ('model', 'data')]
    return names == ['MjModel', 'MjData']


def _default_camera(bare):
    if hasattr(bare, 'physics'):
        return bare.camera_id
    return 0 if bare.model.ncam else _FREE_CAMERA


def _holds_images(space):
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 4
