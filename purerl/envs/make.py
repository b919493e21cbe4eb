"""Environments by name: gymnasium's, dm_control's, and OGBench's under its datasets' names."""

import importlib
import importlib.util

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import RescaleAction

from purerl.envs import dmc, naming, pixels, wrappers

_OGBENCH_FAMILIES = frozenset(
    ('pointmaze', 'antmaze', 'humanoidmaze', 'antsoccer', 'cube', 'scene', 'puzzle', 'powderworld')
)
# They render arrays in any mode, and declare none.
_OGBENCH_WITHOUT_MODES = frozenset(('cube', 'scene', 'puzzle'))
_OGBENCH_DATASET_TYPES = ('play', 'noisy', 'navigate', 'stitch', 'explore')
# OGBench's infos repeat the whole scene under these keys at each step.
_OGBENCH_INFO_FILTERS = ('.*privileged.*', '.*proprio.*')


def make(
    env_name,
    seed=None,
    render_mode=None,
    frame_stack=None,
    max_episode_steps=None,
    action_repeat=1,
    image_size=None,
    num_stack=3,
    cameras=None,
    **kwargs,
):
    """Makes an environment with float32 observations, actions in [-1, 1] and episode statistics.

    Bounded continuous actions are rescaled from [-1, 1] and clipped; other action spaces stay as
    they are. Dictionary observations are flattened. `info['episode']` of an episode's last step
    holds its statistics (`wrappers.EpisodeMonitor`).

    Args:
        env_name: A gymnasium id (`HalfCheetah-v5`), a domain and task of dm_control
            (`walker_flip`; see `purerl.envs.dmc`), or a name of OGBench: a single-task dataset
            (`cube-single-play-singletask-v0`, `cube-single-play-singletask-task2-v0`, InFOM's
            `cube-single-play-ft-singletask-v0`), a dataset (`cube-single-play-v0`) or an
            environment (`cube-single-v0`).
        seed: Seeds the environment and its spaces (`wrappers.seed_env`). None leaves them to the
            operating system.
        render_mode: As in `gymnasium.make`.
        frame_stack: Number of observations to concatenate along the last axis.
        max_episode_steps: Replaces the environment's own time limit (steps).
        action_repeat: How often each action is taken (`pixels.RepeatAction`); episode statistics
            count it as one step.
        image_size: Height and width of images, in pixels. Observations are then dicts of images
            (image_size, image_size, 3, num_stack), `pixels` the first camera's; None for states.
        num_stack: Number of images in an observation.
        cameras: As in `pixels.PixelObservation`.
        **kwargs: Passed to the environment.

    Returns:
        A `gymnasium.Env`.

    Raises:
        ValueError: If there is no such environment; the message has the nearest names.
        ImportError: If the environment's package is not installed; the message says what to do.
    """
    kwargs = {'render_mode': render_mode, 'max_episode_steps': max_episode_steps, **kwargs}
    env = make_base(env_name, **{key: value for key, value in kwargs.items() if value is not None})
    if action_repeat != 1:
        env = pixels.RepeatAction(env, action_repeat)
    if image_size is not None:
        env = pixels.StackFrames(pixels.PixelObservation(env, image_size, cameras), num_stack)
    else:
        if isinstance(env.observation_space, Dict):
            env = wrappers.FlattenDict(env)
        env = wrappers.SinglePrecision(env)
    if _is_bounded(env.action_space):
        if (env.action_space.low != -1.0).any() or (env.action_space.high != 1.0).any():
            env = RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        env = wrappers.ClipAction(env)
    filters = _OGBENCH_INFO_FILTERS if is_ogbench(env_name) else ()
    env = wrappers.EpisodeMonitor(env, filters)
    if frame_stack is not None:
        env = wrappers.FrameStack(env, frame_stack)
    if seed is not None:
        wrappers.seed_env(env, seed)
    return env


def make_base(env_name, **kwargs):
    """Makes an environment with its time limit, but without the wrappers that `make` adds.

    Args:
        env_name: As in `make`.
        **kwargs: Passed to `gymnasium.make`, or to `purerl.envs.dmc.make`.

    Returns:
        A `gymnasium.Env`; one of OGBench is isolated from numpy's global random stream.

    Raises:
        ValueError: If there is no such environment, or its images cannot be rendered.
        ImportError: If the environment's package is not installed.
    """
    if is_ogbench(env_name):
        return _make_ogbench(env_name, kwargs)
    if dmc.is_dmc(env_name):
        return dmc.make(env_name, **kwargs)
    # 'package:Name-v0' has gymnasium import the package, which registers the name.
    if ':' not in env_name and env_name not in gymnasium.registry:
        raise _unknown(env_name)
    return _make_registered(env_name, kwargs)


def is_ogbench(env_name):
    """Whether a name is of the form that OGBench's environments and datasets have."""
    parts = env_name.removeprefix('visual-').split('-')
    return parts[0] in _OGBENCH_FAMILIES or 'singletask' in parts


def ogbench_env_id(name):
    """Removes the dataset's type from a name of OGBench.

    Args:
        name: A name of a dataset (`cube-single-play-singletask-v0`), with InFOM's `ft` for its
            finetuning data (`cube-single-play-ft-singletask-v0`), or of an environment.

    Returns:
        The environment's id: `cube-single-singletask-v0`.
    """
    parts = name.split('-')
    parts = [part for part in parts if part not in (*_OGBENCH_DATASET_TYPES, 'ft', 'oraclerep')]
    return '-'.join(parts)


def check_continuous(env):
    """Refuses an environment that an agent with continuous actions cannot act in.

    Args:
        env: A `gymnasium.Env`.

    Raises:
        ValueError: If the action space is not a bounded `gymnasium.spaces.Box` of floats with
            one axis.
    """
    space = env.action_space
    if not (_is_bounded(space) and len(space.shape) == 1):
        raise ValueError(
            f'{naming.name_of(env)} has the action space {space}, but this agent needs continuous '
            'actions: a bounded Box of floats with one axis, as Pendulum-v1 or HalfCheetah-v5 have'
        )


def _is_bounded(space):
    return isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and space.is_bounded()


def _make_registered(env_id, kwargs):
    try:
        # The passive checker only warns, and keeps copies of observations and infos to do so.
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        hint = "pip install 'purerl[mujoco]'" if 'mujoco' in str(error).lower() else str(error)
        raise ImportError(f'{env_id} needs a package that is not installed: {hint}') from error
    except gymnasium.error.Error as error:
        raise ValueError(f'{env_id} cannot be made: {error}') from error


def _make_ogbench(env_name, kwargs):
    if importlib.util.find_spec('ogbench') is None:
        raise ImportError(
            f'{env_name} is an environment of OGBench, which is not installed: '
            "pip install 'purerl[ogbench]'"
        )
    importlib.import_module('ogbench')
    env_id = ogbench_env_id(env_name)
    if env_id not in gymnasium.registry:
        raise _unknown(env_name)
    if 'oraclerep' in env_name.split('-'):
        kwargs = {**kwargs, 'use_oracle_rep': True}
    if env_name.removeprefix('visual-').split('-')[0] in _OGBENCH_WITHOUT_MODES:
        kwargs = {key: value for key, value in kwargs.items() if key != 'render_mode'}
    random_state = np.random.RandomState(0)
    with wrappers.global_numpy_random(random_state):
        env = _make_registered(env_id, kwargs)
    env = wrappers.IsolatedNumpyRandom(env)
    # The first reset compiles the model, on which the spaces depend, and renders an image.
    try:
        env.reset()
    except Exception as error:  # each rendering backend has errors of its own
        hint = pixels.rendering_hint(error)
        if not hint:
            raise
        raise ValueError(f'{env_name} cannot be seen: rendering fails ({error}){hint}') from error
    _keep_action_space(env.unwrapped)
    return env


def _keep_action_space(env):
    """Makes an environment's action space one object.

    OGBench's manipulation environments build a new, unseeded space at each access and sample
    actions from it within `reset`, which leaves traces in the simulator: without this no two
    resets with one seed would be the same to the last bit.
    """
    cls = type(env)
    if isinstance(getattr(cls, 'action_space', None), property):
        env.kept_action_space = env.action_space
        kept = property(lambda self: self.kept_action_space)
        env.__class__ = type(cls.__name__, (cls,), {'action_space': kept})


def _unknown(env_name):
    if importlib.util.find_spec('ogbench') is not None:
        importlib.import_module('ogbench')
    # Ids with a function for an entry point only raise: they are of withdrawn versions.
    names = [name for name, spec in gymnasium.registry.items() if isinstance(spec.entry_point, str)]
    parts = env_name.split('-')
    kind = next((part for part in parts if part in _OGBENCH_DATASET_TYPES), None)
    if kind is not None:
        names += [
            name.replace('-singletask', f'-{kind}-singletask')
            for name in names
            if '-singletask' in name
        ]
    if '_' in env_name and importlib.util.find_spec('dm_control') is not None:
        names += dmc.names()
    return ValueError(f'unknown environment {env_name!r}: {naming.nearest(env_name, names)}')
