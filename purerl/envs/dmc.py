"""dm_control's environments under gymnasium's interface, by InFOM's names.

`<domain>_<task>` is a task of the suite (`walker_walk`, `cup_catch` or `ball_in_cup_catch`) or one
that InFOM adds (`walker_flip`; see `purerl.envs.dmc_tasks`).

Counterpart of ``envs/dmc_utils.py`` and ``DMCEpisodeMonitor`` in ``envs/env_utils.py`` of
chongyi-zheng/infom @ f0356dd. Given the seed s, the episodes are those of the original's
``make(name, seed=s)``.

Deviations from the original:
- `terminated` and `truncated` are told apart. The original reports every end as terminated, and
  turns a discount of 0 into 1.
- `point_mass_maze` draws its starts from the seed instead of numpy's global stream.
- Names may hold underscores in the domain (`ball_in_cup_catch`, `humanoid_CMU_run`).
- Images keep their channels last, as elsewhere in this library; `make`'s `frame_stack` stacks them.
"""

import importlib
import warnings

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from purerl.envs import dmc_tasks, naming

# Longer names go before those that they begin with.
_DOMAINS = (
    'acrobot',
    'ball_in_cup',
    'cartpole',
    'cheetah',
    'cup',
    'dog',
    'finger',
    'fish',
    'hopper',
    'humanoid_CMU',
    'humanoid',
    'jaco',
    'lqr',
    'manipulator',
    'pendulum',
    'point_mass_maze',
    'point_mass',
    'quadruped',
    'reacher',
    'stacker',
    'swimmer',
    'walker',
)
_ALIASES = {'cup': 'ball_in_cup'}
_CAMERAS = {'quadruped': 2}  # number of the camera; 0 for the others
_IMAGE_SIZE = 64  # pixels, of observations


def split_name(env_name):
    """Splits a name into domain and task, whether they exist or not.

    Args:
        env_name: For example `point_mass_maze_reach_top_left`.

    Returns:
        (domain, task) in dm_control's spelling, or None where the name is not of this form.
    """
    for domain in _DOMAINS:
        if env_name.startswith(f'{domain}_'):
            return _ALIASES.get(domain, domain), env_name.removeprefix(f'{domain}_')
    return None


def is_dmc(env_name):
    """Whether a name is of the form that dm_control's environments have here."""
    return split_name(env_name) is not None


def names():
    """Lists all environments by name; it needs dm_control."""
    tasks = {*_import('dm_control.suite').ALL_TASKS, *dmc_tasks.TASKS}
    return sorted(f'{domain}_{task}' for domain, task in tasks)


def load(env_name, random, **environment_kwargs):
    """Makes a bare environment of dm_control.

    Args:
        env_name: As `names` lists it.
        random: The `np.random.RandomState` that episodes' starts are drawn from.
        **environment_kwargs: `time_limit`, in seconds, instead of the task's own.

    Returns:
        A `dm_env.Environment` with `physics` and `task`, whose observations are dictionaries.

    Raises:
        ValueError: If there is no such environment; the message has the nearest names.
        ImportError: If dm_control is not installed, or does not fit the installed MuJoCo.
    """
    suite = _import('dm_control.suite')
    name = split_name(env_name)
    if name not in dmc_tasks.TASKS and name not in suite.ALL_TASKS:
        hint = naming.nearest(env_name, names())
        raise ValueError(f'unknown environment {env_name!r}: {hint}')
    try:
        if name in dmc_tasks.TASKS:
            return dmc_tasks.load(*name, random, **environment_kwargs)
        return suite.load(*name, task_kwargs={'random': random, **environment_kwargs})
    except AttributeError as error:
        # dm_control reads MuJoCo's structures by name, so that a newer MuJoCo breaks it.
        if 'Mj' not in str(error):
            raise
        raise ImportError(
            f'dm_control does not fit the installed MuJoCo ({error}): '
            "pip install 'purerl[dmc]' installs versions that do"
        ) from error


def make(env_name, max_episode_steps=None, **kwargs):
    """Makes an environment with its time limit.

    Args:
        env_name: As `names` lists it.
        max_episode_steps: Replaces the task's own time limit (steps).
        **kwargs: Of `DMC`.

    Returns:
        A `gymnasium.Env`.

    Raises:
        ValueError: If there is no such environment; the message has the nearest names.
        ImportError: If dm_control is not installed, or does not fit the installed MuJoCo.
    """
    if max_episode_steps is None:
        return DMC(env_name, **kwargs)
    env = DMC(env_name, time_limit=float('inf'), **kwargs)
    return gymnasium.wrappers.TimeLimit(env, max_episode_steps)


class DMC(gymnasium.Env):
    """An environment of dm_control.

    Observations are a task's arrays, flattened and concatenated in its order, as float32 (D,), or
    images. Actions are float32 in [-1, 1] and scaled to the actuators' ranges. Episodes' starts
    come from `random_state`, which a seeded reset seeds.

    Args:
        env_name: As `names` lists it.
        obs_type: 'states', or 'pixels' for images (64, 64, 3) of uint8.
        render_mode: None, or 'rgb_array' for frames (height, width, 3) of uint8.
        height: Of frames, in pixels.
        width: Of frames, in pixels.
        camera_id: Number or name of the camera; None for the original's.
        time_limit: Seconds; None for the task's own.

    Raises:
        ValueError: If there is no such environment, observation or render mode.
        ImportError: If dm_control is not installed, or does not fit the installed MuJoCo.
    """

    metadata = {'render_modes': ['rgb_array'], 'render_fps': 30}  # noqa: RUF012

    def __init__(
        self,
        env_name,
        obs_type='states',
        render_mode=None,
        height=240,
        width=320,
        camera_id=None,
        time_limit=None,
    ):
        _check_choice('obs_type', obs_type, ('states', 'pixels'))
        _check_choice('render_mode', render_mode, (None, 'rgb_array'))
        # Some of the suite's models are random: the same one for each environment of that name.
        self.random_state = np.random.RandomState(0)
        limit = {} if time_limit is None else {'time_limit': time_limit}
        self.environment = load(env_name, self.random_state, **limit)
        self.random_state.seed()
        self.spec = EnvSpec(env_name)
        self.obs_type = obs_type
        self.render_mode = render_mode
        self.frame_size = {'height': height, 'width': width}
        domain, _ = split_name(env_name)
        self.camera_id = _CAMERAS.get(domain, 0) if camera_id is None else camera_id
        self.metadata = {
            **self.metadata,
            'render_fps': round(1 / self.environment.control_timestep()),
        }
        self.action_space = self._make_action_space()
        self.observation_space = self._make_observation_space()
        self.episode_is_over = True
        self._refer_to_simulation()

    @property
    def physics(self):
        """dm_control's present physics; each reset of a manipulation task makes a new one."""
        return self.environment.physics

    def physics_state(self):
        """Returns positions, velocities and activations as one array (S,) of float64."""
        return self.physics.get_state()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.random_state.seed(seed)
        time_step = self.environment.reset()
        self._refer_to_simulation()
        self.episode_is_over = False
        return self._observe(time_step.observation), {}

    def step(self, action):
        if self.episode_is_over:
            raise RuntimeError('the episode is over, or none has begun: call reset() first')
        time_step = self.environment.step(self._scale(action))
        self.episode_is_over = time_step.last()
        terminated = time_step.last() and time_step.discount == 0.0
        return (
            self._observe(time_step.observation),
            float(time_step.reward or 0.0),
            terminated,
            time_step.last() and not terminated,
            {},
        )

    def render(self):
        if self.render_mode == 'rgb_array':
            return self._frame(**self.frame_size)
        return None

    def close(self):
        self.environment.close()

    def _make_action_space(self):
        spec = self.environment.action_spec()
        # In single precision first, as the original's wrappers have them.
        low, high = spec.minimum.astype(np.float32), spec.maximum.astype(np.float32)
        self._low = low.astype(np.float64)
        self._scales = (high - low).astype(np.float64) / 2.0
        return gymnasium.spaces.Box(-1.0, 1.0, spec.shape, np.float32)

    def _make_observation_space(self):
        if self.obs_type == 'pixels':
            return gymnasium.spaces.Box(0, 255, (_IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8)
        specs = self.environment.observation_spec().values()
        size = sum(int(np.prod(spec.shape)) for spec in specs)
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _refer_to_simulation(self):
        # Under the names that snapshots and collectors look for.
        self.model = self.physics.model.ptr
        self.data = self.physics.data.ptr

    def _scale(self, action):
        action = np.asarray(action, dtype=np.float64)
        scaled = self._low + self._scales * (action + 1.0)
        return scaled.astype(np.float32).astype(np.float64)

    def _observe(self, observation):
        if self.obs_type == 'pixels':
            return self._frame(_IMAGE_SIZE, _IMAGE_SIZE)
        return flatten(observation).astype(np.float32)

    def _frame(self, height, width):
        return self.physics.render(height=height, width=width, camera_id=self.camera_id)


def flatten(observation):
    """Concatenates the arrays of an observation of dm_control.

    Args:
        observation: A mapping; the keys of one that is not ordered are sorted, as in dm_control.

    Returns:
        An array (D,).
    """
    keys = observation if hasattr(observation, 'move_to_end') else sorted(observation)
    return np.concatenate([np.ravel(observation[key]) for key in keys])


def reward_function(env_name):
    """Makes the function that computes a task's rewards from stored states of the physics.

    Rewards depend on actions in some tasks (`point_mass_maze`); here these count as zero, as in
    the original, ExORL's ``relable_episode`` (denisyarats/exorl).

    Args:
        env_name: As `names` lists it.

    Returns:
        A function from a state (S,), as `DMC.physics_state` returns it, to the reward. It raises a
        ValueError where the simulator cannot be put into the state.

    Raises:
        ValueError: If there is no such environment.
        ImportError: If dm_control is not installed, or does not fit the installed MuJoCo.
    """
    env = load(env_name, np.random.RandomState(0))
    error_type = _import('dm_control.rl.control').PhysicsError

    def reward(state):
        try:
            with env.physics.reset_context():
                env.physics.set_state(state)
        except error_type as error:
            raise ValueError(str(error)) from error
        return env.task.get_reward(env.physics)

    return reward


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f'{name} must be one of {choices}, not {value!r}')


def _import(module):
    try:
        with warnings.catch_warnings():
            # Without a display, a rendering library that is imported with it complains.
            warnings.filterwarnings('ignore', module='glfw')
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != 'dm_control':
            raise
        raise ImportError(
            'environments of dm_control need packages that are not installed: '
            "pip install 'purerl[dmc]'"
        ) from error
