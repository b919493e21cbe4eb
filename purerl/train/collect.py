"""Collects datasets from real environments, in OGBench's, in D4RL's and in ExORL's format.

The policy is one of OGBench's oracles, a random one, or a trained agent.

Source of the oracles' procedure: OGBench's `data_gen_scripts/generate_manispace.py`, as InFOM's
`generate_ogbench_manispace.py` has it.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from purerl.core import jit, random
from purerl.data import d4rl, exorl, ogbench
from purerl.envs.dmc import is_dmc
from purerl.envs.make import is_ogbench, make, make_base, ogbench_env_id
from purerl.envs.wrappers import global_numpy_random, seed_env
from purerl.train.collect_images import acts_by_images, collect_images
from purerl.train.config import RunError, seed_setting, setting
from purerl.train.evaluation import clip_action
from purerl.train.export import export_replay
from purerl.train.load_run import load_run

# Transitions per episode in OGBench's manipulation datasets.
_ORACLE_EPISODE_LENGTH = 1000
# Gaussian action noise of the Markovian oracles: position (3), yaw, gripper.
_NOISE_SCALES = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
_ORACLE_OPTIONS = ('noise', 'noise_smoothing', 'min_norm', 'p_random_action')
_TASKS = {
    'cube': ('cube',),
    'scene': ('cube', 'button', 'drawer', 'window'),
    'puzzle': ('button',),
}
_STACK_PROBABILITIES = {
    'single': (0.0, 0.0),
    'double': (0.0, 0.25),
    'triple': (0.05, 0.35),
    'quadruple': (0.1, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to collect, and where to."""

    path: str | None = setting(
        None,
        "File to write: .npz for OGBench's format (which holds no rewards: they are computed from "
        "the states when it is loaded), .hdf5 for D4RL's. The validation part gets -val before the "
        "ending. Without an ending: a new folder for episodes in ExORL's format, from a task of "
        'dm_control, without a validation part, which experiments.relabel splits off. '
        '.safetensors for images, from a run that acts by them, without one too. InFOM looks '
        'for its pretraining data under the name <env>-<type>-v0.npz (cube-single-play-v0.npz) and '
        'for its finetuning data, collected with another seed, under <env>-<type>-ft-v0.npz '
        '(cube-single-play-ft-v0.npz).',
    )
    env_name: str | None = setting(
        None,
        'Environment, or the name of an OGBench dataset; by default cube-single-v0, or the '
        "checkpoint's.",
    )
    policy: str = setting(
        'oracle',
        "oracle: OGBench's own scripts (cube, scene, puzzle); random: samples of the action space; "
        'checkpoint: a trained agent; replay: nobody, the file gets what the replay buffer of an '
        'online run holds (.hdf5; num_transitions: its oldest ones only).',
        choices=('oracle', 'random', 'checkpoint', 'replay'),
    )
    dataset_type: str = setting(
        'play',
        'Kind of oracle: play follows noisy plans, noisy acts in closed loop with noisy actions.',
        choices=('play', 'noisy'),
    )
    checkpoint: str | None = setting(None, 'Folder of the run whose agent is to act.')
    checkpoint_step: int | None = setting(
        None, 'Step of its checkpoint; the latest by default.', minimum=0
    )
    checkpoint_seed: int | None = setting(
        None, 'Which of its seeds is to act; the first by default.', minimum=0
    )
    deterministic: bool = setting(
        True, 'Let the trained agent act as in evaluations, not with its exploration noise.'
    )
    num_episodes: int | None = setting(None, 'Number of episodes to train on.', minimum=1)
    num_transitions: int | None = setting(
        None, 'Number of transitions to train on, instead.', minimum=1
    )
    episode_length: int = setting(
        _ORACLE_EPISODE_LENGTH, "Transitions per oracle's episode.", minimum=1
    )
    noise: float = setting(0.1, "Amplitude of the noise on an oracle's actions.", minimum=0)
    noise_smoothing: float = setting(
        0.5, "Width of the Gaussian filter over a play oracle's noise, in steps.", minimum=0
    )
    min_norm: float = setting(0.4, "Smallest norm of a noisy oracle's actions.", minimum=0)
    p_random_action: float = setting(
        0.0, "Share of random actions among an oracle's.", minimum=0, maximum=1
    )
    seed: int = seed_setting(0, 'Random seed; it determines the whole dataset.')


def collect_dataset(settings):
    """Collects what the flags ask for, and prints the paths.

    Args:
        settings: The flags.

    Returns:
        The list of paths written.

    Raises:
        RunError: If they do not fit together, something that they name does not exist, or a file
            cannot be written.
        CheckpointError: If there is no such checkpoint.
    """
    if settings.path is None:
        raise RunError('where to? --path=<file>.npz, <file>.hdf5 or <folder>')
    if (settings.policy in ('checkpoint', 'replay')) != (settings.checkpoint is not None):
        raise RunError('--policy=checkpoint (or replay) and --checkpoint=<run folder> go together')
    if settings.policy == 'replay' and settings.num_episodes is not None:
        raise RunError('--policy=replay takes --num_transitions, not --num_episodes')
    shared = {name: getattr(settings, name) for name in ('num_episodes', 'num_transitions', 'seed')}
    path = Path(settings.path).expanduser()
    try:
        _check_place(path)
        if settings.policy == 'replay':
            paths = export_replay(
                settings.checkpoint,
                path,
                step=settings.checkpoint_step,
                trained_seed=settings.checkpoint_seed,
                num_transitions=settings.num_transitions,
            )
        elif settings.policy == 'checkpoint':
            paths = collect_from_run(
                settings.checkpoint,
                path,
                env_name=settings.env_name,
                step=settings.checkpoint_step,
                trained_seed=settings.checkpoint_seed,
                deterministic=settings.deterministic,
                **shared,
            )
        else:
            paths = collect(
                settings.env_name or 'cube-single-v0',
                path,
                policy=settings.policy,
                dataset_type=settings.dataset_type,
                episode_length=settings.episode_length,
                **{name: getattr(settings, name) for name in _ORACLE_OPTIONS},
                **shared,
            )
    except (ValueError, ImportError, OSError) as error:
        raise RunError(str(error)) from error
    for path in paths:
        print(f'wrote {path}')
    return paths


def _check_place(path):
    """Make sure that a file or folder can be written, before anything is collected."""
    if path.suffix and path.is_dir():
        raise ValueError(f'{path} is a folder; choose another --path')
    nearest = next(parent for parent in path.parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(
            f'{path} cannot be written, nothing can in {nearest}: choose another --path'
        )


def collect(
    env_name,
    path,
    policy='oracle',
    dataset_type='play',
    num_episodes=None,
    num_transitions=None,
    episode_length=_ORACLE_EPISODE_LENGTH,
    seed=0,
    **oracle_options,
):
    """Collects a dataset and, but for ExORL's format, its validation part, a tenth of its size.

    Args:
        env_name: Name of the environment, as `purerl.envs.make.make` takes it.
        path: Path ending in `.npz` (OGBench's format) or `.hdf5` (D4RL's), or a new folder
            (ExORL's, from tasks of dm_control).
        policy: 'oracle' (OGBench's scripts), 'random', or a `policy(observation, key) -> action`.
        dataset_type: 'play' or 'noisy': the kind of oracle.
        num_episodes: Number of episodes to train on.
        num_transitions: Number of transitions to train on instead; the last episode is cut off.
        episode_length: Transitions per episode of an oracle.
        seed: Determines everything.
        **oracle_options: Of `collect_oracle_episodes`.

    Returns:
        The list of paths written.

    Raises:
        ValueError: If an argument is not as described.
        ImportError: If the environment's package is not installed.
    """
    write = _writer_of(path, env_name)
    sizes = _sizes_of_parts(path, num_episodes, num_transitions)
    if policy == 'oracle':
        options = {'episode_length': episode_length, **oracle_options}
        parts = _collect_oracle_parts(env_name, dataset_type, sizes, seed, options)
    else:
        with contextlib.closing(make(env_name)) as env:
            policy = random_policy(env) if policy == 'random' else policy
            parts = _collect_parts(env, policy, sizes, seed)
    return _write_parts(path, parts, write)


def collect_from_run(
    run,
    path,
    env_name=None,
    step=None,
    trained_seed=None,
    deterministic=True,
    num_episodes=None,
    num_transitions=None,
    seed=0,
):
    """Collects a dataset with a trained agent, otherwise as `collect`.

    Where the run stacks frames, the dataset holds single ones, for its loader to stack.

    Args:
        run: Folder of a run.
        path: As in `collect`, or, for a run that acts by images, a path ending in `.safetensors`.
        env_name: Environment; None for the run's. Its observations and actions must have the
            shapes of the run's.
        step: Step of the run's checkpoint; None for the latest.
        trained_seed: Which of the run's seeds acts; None for the first.
        deterministic: Whether it acts as in evaluations (the policy's mode, as a rule), or with its
            exploration noise.
        num_episodes: Number of episodes to train on.
        num_transitions: Number of transitions to train on instead; the last episode is cut off.
        seed: Determines everything, together with the checkpoint.

    Returns:
        The list of paths written.

    Raises:
        ValueError: If an argument is not as described.
        RunError: If there is no such run or environment, or they do not fit.
        CheckpointError: If there is no such checkpoint.
    """
    sizes = _sizes_of_parts(path, num_episodes, num_transitions)
    with jit.use_mode('trace'):
        trained = load_run(run, step)
        trained_seed = trained.seeds[0] if trained_seed is None else trained_seed
        if trained_seed not in trained.seeds:
            seeds = ', '.join(map(str, trained.seeds))
            raise ValueError(f'{run} has trained the seeds {seeds}, not {trained_seed}')
        policy = trained.policy(trained.seeds.index(trained_seed), explore=not deterministic)
        if acts_by_images(trained.flags):
            return collect_images(
                trained, policy, path, env_name, num_episodes, num_transitions, seed
            )
        write = _writer_of(path, env_name or trained.flags['env_name'])
        with contextlib.closing(trained.make_env(env_name=env_name)) as env:
            parts = _collect_parts(env, policy, sizes, seed)
    if trained.frame_stack is not None:
        for episode in (episode for part in parts for episode in part):
            frames = np.split(episode['observations'], trained.frame_stack, axis=-1)
            episode['observations'] = frames[-1]
    return _write_parts(path, parts, write)


def collect_episodes(env, policy, key, num_episodes=None, num_transitions=None, seed=0):
    """Runs a policy and records what happens.

    Args:
        env: A `gymnasium.Env`.
        policy: `policy(observation, key) -> action`, as `purerl.train.evaluation.policy_of` makes
            it from an agent, or `random_policy(env)`.
        key: Key of the policy's randomness, shape (2,).
        num_episodes: Number of episodes to collect.
        num_transitions: Number of transitions to collect instead; the last episode is cut off.
        seed: Seeds the environment and its spaces; None lets their random numbers run on.

    Returns:
        A list of episodes: dicts of `observations` (T + 1, ...), `actions` (T, ...), `rewards`
        (T,), the booleans `terminated` and `truncated`, and where the environment simulates with
        MuJoCo `qpos` and `qvel` (T + 1, ...), with dm_control `physics` (T + 1, ...), with buttons
        `button_states` (T + 1, ...).

    Raises:
        ValueError: Unless exactly one of the two numbers is given, and positive.
    """
    _check_size(num_episodes, num_transitions)
    if seed is not None:
        seed_env(env, seed)
    episodes, missing = [], num_transitions
    while len(episodes) != num_episodes and missing != 0:
        episode, key = _run_policy(env, policy, key, missing)
        episodes.append(episode)
        if missing is not None:
            missing -= len(episode['rewards'])
    return episodes


def random_policy(env):
    """Returns a policy that samples from an environment's action space."""
    return lambda observation, key: env.action_space.sample()


def collect_oracle_episodes(
    env_name,
    dataset_type,
    num_episodes,
    seed=0,
    noise=0.1,
    noise_smoothing=0.5,
    min_norm=0.4,
    p_random_action=0.0,
    episode_length=_ORACLE_EPISODE_LENGTH,
):
    """Runs OGBench's scripted oracles in a manipulation environment.

    Args:
        env_name: OGBench's environment or dataset: cube, scene or puzzle.
        dataset_type: 'play' follows plans made in advance, with correlated noise (PlanOracle);
            'noisy' acts in closed loop with Gaussian noise of an amplitude drawn per episode
            (MarkovOracle).
        num_episodes: Number of episodes.
        seed: Determines everything.
        noise: Amplitude of the noise, in the units of actions.
        noise_smoothing: Standard deviation of the Gaussian filter over a plan's noise, in steps.
        min_norm: Smallest norm of the Markovian oracles' actions.
        p_random_action: Probability of a uniformly random action at each step.
        episode_length: Transitions per episode; OGBench's datasets have 1000.

    Returns:
        A list of episodes, as `collect_episodes` returns it.

    Raises:
        ValueError: If there is no oracle for the environment or the dataset type.
        ImportError: If OGBench is not installed.
    """
    family = _oracle_family(env_name)
    if dataset_type not in ('play', 'noisy'):
        raise ValueError(f"the dataset type must be 'play' or 'noisy', not {dataset_type!r}")
    env = make_base(
        _goal_conditioned_id(env_name),
        mode='data_collection',
        terminate_at_goal=False,
        max_episode_steps=episode_length,
    )
    seed_env(env, seed)
    # One stream for this procedure's own draws, one for those within the oracles.
    rng, oracle_rng = (np.random.RandomState([seed, stream]) for stream in range(2))
    if dataset_type == 'play':
        options = {'noise': noise, 'noise_smoothing': noise_smoothing}
    else:
        options = {'min_norm': min_norm}
    oracles = _make_oracles(env, family, dataset_type, options, oracle_rng)
    episodes = []
    title = f'{env_name} {dataset_type}'
    with contextlib.closing(env), tqdm(total=num_episodes, desc=title, disable=None) as bar:
        while len(episodes) < num_episodes:
            episode = _run_oracles(
                env,
                oracles,
                rng,
                stack_probability=_stack_probability(env_name, rng),
                noise=rng.uniform(0, noise) if dataset_type == 'noisy' else 0.0,
                p_random_action=p_random_action,
            )
            if family != 'scene' or _cube_stays_visible(episode['qpos']):
                episodes.append(episode)
                bar.update()
    return episodes


def to_ogbench(episodes):
    """Arranges episodes as OGBench's files hold them.

    Each episode has T + 1 rows; `terminals` marks the last one, whose action is zero and belongs
    to no transition.

    Args:
        episodes: List of episodes from `collect_episodes` or `collect_oracle_episodes`.

    Returns:
        A dict of arrays `observations`, `actions`, `terminals` and, where the episodes have them,
        `qpos`, `qvel`, `button_states`, with one leading axis over all rows.
    """
    columns = {
        'observations': [_observations(e['observations']) for e in episodes],
        'actions': [_with_zero_row(e['actions']) for e in episodes],
        'terminals': [np.arange(len(e['rewards']) + 1) == len(e['rewards']) for e in episodes],
    }
    for name, dtype in (('qpos', np.float32), ('qvel', np.float32), ('button_states', np.int64)):
        if name in episodes[0]:
            columns[name] = [episode[name].astype(dtype) for episode in episodes]
    return {name: np.concatenate(values) for name, values in columns.items()}


def to_d4rl(episodes):
    """Arranges episodes as D4RL's files hold them.

    `terminals` marks terminations, `timeouts` the last rows of episodes that were cut off.

    Args:
        episodes: List of episodes from `collect_episodes` or `collect_oracle_episodes`.

    Returns:
        A dict of arrays `observations`, `actions`, `rewards`, `terminals`, `timeouts`,
        `next_observations` and, where the episodes have them, `infos/qpos` and `infos/qvel`, with
        one leading axis over all transitions.
    """
    columns = {
        'observations': [_observations(e['observations'][:-1]) for e in episodes],
        'actions': [_with_zero_row(e['actions'])[:-1] for e in episodes],
        'next_observations': [_observations(e['observations'][1:]) for e in episodes],
        'rewards': [np.asarray(e['rewards'], dtype=np.float32) for e in episodes],
        'terminals': [_last_row(e, e['terminated']) for e in episodes],
        'timeouts': [_last_row(e, not e['terminated']) for e in episodes],
    }
    for name in ('qpos', 'qvel'):
        if name in episodes[0]:
            columns[f'infos/{name}'] = [episode[name][:-1] for episode in episodes]
    return {name: np.concatenate(values) for name, values in columns.items()}


def to_exorl(episodes):
    """Arranges episodes as ExORL's files hold them.

    Args:
        episodes: List of episodes from `collect_episodes`, in an environment of dm_control.

    Returns:
        A list of dicts, one per episode, of `observation` (T + 1, D), `action` (T + 1, A),
        `reward`, `discount` (T + 1, 1) as float32 and `physics` (T + 1, S) as float64. The first
        row has the first observation and belongs to no transition: its action and reward are zero,
        its discount is one.
    """
    return [
        {
            'observation': _observations(e['observations']),
            'action': np.roll(_with_zero_row(e['actions']), 1, axis=0),
            'reward': np.append(0, e['rewards']).astype(np.float32)[:, None],
            'discount': np.append(1, 1 - _last_row(e, e['terminated'])).astype(np.float32)[:, None],
            'physics': e['physics'],
        }
        for e in episodes
    ]


def _writer_of(path, env_name):
    """Returns what writes a list of episodes to a path, in the format that its ending stands for.

    It refuses what cannot be written, before anything is collected.
    """
    formats = {
        '.npz': (to_ogbench, ogbench.save),
        '.hdf5': (to_d4rl, d4rl.save),
        '': (to_exorl, exorl.save_episodes),
    }
    suffix = Path(path).suffix
    if suffix not in formats:
        raise ValueError(
            f"{path} must end in '.npz' (OGBench's format) or '.hdf5' (D4RL's), or be a folder "
            f"(ExORL's), not {suffix!r}"
        )
    if not suffix:
        _check_episode_folder(path, env_name)
    arrange, save = formats[suffix]
    return lambda path, episodes: save(path, arrange(episodes))


def _check_episode_folder(path, env_name):
    if not is_dmc(env_name):
        raise ValueError(
            f"{path} has no ending, which stands for ExORL's format, but that is for tasks of "
            f"dm_control, not for {env_name}: end it in '.npz' (OGBench's) or '.hdf5' (D4RL's)"
        )
    if exorl.holds_episodes(path):
        raise ValueError(f'{path} holds episodes already; choose another folder, or empty it')


def _collect_parts(env, policy, sizes, seed):
    """Collects the training and then, if there is to be one, the validation part."""
    keys = random.split(random.key(seed))
    return [
        collect_episodes(env, policy, key, *size, seed=part_seed)
        for key, size, part_seed in zip(keys, sizes, (seed, None), strict=False)
    ]


def _write_parts(path, parts, write):
    path = Path(path)
    paths = [path, path.with_name(f'{path.stem}-val{path.suffix}')][: len(parts)]
    for part_path, episodes in zip(paths, parts, strict=True):
        write(part_path, episodes)
    return paths


def _check_size(num_episodes, num_transitions):
    if (num_episodes is None) == (num_transitions is None):
        raise ValueError('give either a number of episodes or a number of transitions')
    if (num_episodes or num_transitions or 0) < 1:
        raise ValueError('the number of episodes or transitions must be positive')


def _sizes_of_parts(path, num_episodes, num_transitions):
    """Returns episodes and transitions of each part: to train on, and to validate on a tenth.

    A folder of episodes has one part.
    """
    _check_size(num_episodes, num_transitions)
    sizes = num_episodes, num_transitions
    validation = tuple(None if size is None else max(1, size // 10) for size in sizes)
    return (sizes, validation) if Path(path).suffix else (sizes,)


def _collect_oracle_parts(env_name, dataset_type, sizes, seed, options):
    """Collects the training and the validation episodes in one go."""
    episode_length = options['episode_length']
    counts = [
        num_episodes or -(-num_transitions // episode_length)
        for num_episodes, num_transitions in sizes
    ]
    episodes = collect_oracle_episodes(env_name, dataset_type, sum(counts), seed, **options)
    parts = [episodes[: counts[0]], episodes[counts[0] :]]
    for part, (_, num_transitions) in zip(parts, sizes, strict=True):
        if num_transitions is not None:
            rest = num_transitions - episode_length * (len(part) - 1)
            part[-1] = _cut(part[-1], rest)
    return parts


def _cut(episode, length):
    """Shortens an episode to its first `length` transitions."""
    if length >= len(episode['rewards']):
        return episode
    arrays = {
        name: value[: length if name in ('actions', 'rewards') else length + 1]
        for name, value in episode.items()
        if isinstance(value, np.ndarray)
    }
    return {**arrays, 'terminated': False, 'truncated': True}


class _Oracle:
    """An oracle of OGBench's that draws from a source of its own."""

    def __init__(self, oracle, rng):
        self._oracle = oracle
        self._rng = rng

    @property
    def done(self):
        return self._oracle.done

    def reset(self, observation, info):
        with global_numpy_random(self._rng):
            self._oracle.reset(observation, info)

    def select_action(self, observation, info):
        with global_numpy_random(self._rng):
            return np.asarray(self._oracle.select_action(observation, info))


def _make_oracles(env, family, dataset_type, options, rng):
    kind = 'plan' if dataset_type == 'play' else 'markov'
    oracles = {}
    for task in _TASKS[family]:
        module = importlib.import_module(f'ogbench.manipspace.oracles.{kind}.{task}_{kind}')
        make_oracle = getattr(module, f'{task.capitalize()}{kind.capitalize()}Oracle')
        extra = {}
        if family == 'puzzle':
            extra = {'gripper_always_closed': True}
        elif family == 'scene' and task == 'cube' and kind == 'markov':
            extra = {'max_step': 100}
        oracles[task] = _Oracle(make_oracle(env=env, **options, **extra), rng)
    return oracles


def _run_oracles(env, oracles, rng, stack_probability, noise, p_random_action):
    """Runs one episode, with a new target whenever the present one is reached."""
    observation, info = env.reset()
    oracle = oracles[info['privileged/target_task']]
    oracle.reset(observation, info)
    recorder = _Recorder(env, observation)
    while not recorder.done:
        if rng.uniform() < p_random_action:
            action = env.action_space.sample()
        else:
            action = oracle.select_action(observation, info)
            if noise > 0.0:
                action = action + rng.normal(0, noise * _NOISE_SCALES, action.shape)
        action = np.clip(action, -1, 1)
        observation, reward, terminated, truncated, info = env.step(action)
        recorder.add(observation, action, reward, terminated, truncated)
        if oracle.done:
            target = env.unwrapped.set_new_target(p_stack=stack_probability)
            oracle = oracles[target[1]['privileged/target_task']]
            oracle.reset(*target)
    return recorder.episode()


def _run_policy(env, policy, key, limit):
    """Runs one episode of at most `limit` steps; returns it and the next key."""
    observation, _ = env.reset()
    recorder = _Recorder(env, observation)
    while not recorder.done and len(recorder.rewards) != limit:
        key, call_key = random.split(key)
        action = clip_action(policy(observation, call_key), env.action_space)
        observation, reward, terminated, truncated, _ = env.step(action)
        recorder.add(observation, action, reward, terminated, truncated)
    return recorder.episode(), key


class _Recorder:
    """Gathers one episode."""

    def __init__(self, env, observation):
        self._read_state = functools.partial(_simulator_state, env.unwrapped)
        self._observations = [np.array(observation)]
        self._actions = []
        self._states = [self._read_state()]
        self.rewards = []
        self._terminated = self._truncated = False

    @property
    def done(self):
        return self._terminated or self._truncated

    def add(self, observation, action, reward, terminated, truncated):
        self._observations.append(np.array(observation))
        self._actions.append(action)
        self._states.append(self._read_state())
        self.rewards.append(reward)
        self._terminated, self._truncated = bool(terminated), bool(truncated)

    def episode(self):
        states = {name: np.stack([s[name] for s in self._states]) for name in self._states[0]}
        return {
            'observations': np.stack(self._observations),
            'actions': np.stack(self._actions),
            'rewards': np.asarray(self.rewards, dtype=np.float64),
            'terminated': self._terminated,
            'truncated': self._truncated,
            **states,
        }


def _simulator_state(env):
    data = getattr(env, 'data', None)
    state = {}
    if hasattr(data, 'qpos') and hasattr(data, 'qvel'):
        state = {'qpos': np.array(data.qpos), 'qvel': np.array(data.qvel)}
    if hasattr(env, 'physics_state'):
        state['physics'] = env.physics_state()
    if hasattr(env, '_cur_button_states'):
        state['button_states'] = np.array(env._cur_button_states)
    return state


def _oracle_family(env_name):
    parts = env_name.removeprefix('visual-').split('-')
    if not is_ogbench(env_name) or parts[0] not in _TASKS:
        raise ValueError(
            f'OGBench has no scripted oracle for {env_name}; it has them for cube, scene and '
            'puzzle environments, such as cube-single-v0'
        )
    return parts[0]


def _goal_conditioned_id(env_name):
    parts = ogbench_env_id(env_name).split('-')
    return '-'.join(p for p in parts if p != 'singletask' and not p.startswith('task'))


def _stack_probability(env_name, rng):
    """Draws an episode's probability of putting a cube onto another one."""
    for size, bounds in _STACK_PROBABILITIES.items():
        if size in env_name.split('-'):
            return rng.uniform(*bounds)
    return 0.5


def _cube_stays_visible(qpos):
    """Whether the scene's cube was always on the table or in the drawer.

    Args:
        qpos: Joint positions (T, ...); the cube's x, y, z (metres) stand at 14 to 16.

    Returns:
        A bool.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    too_far_right = y >= 0.29
    beside_the_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (too_far_right | beside_the_drawer).any()


def _observations(observations):
    images = observations.dtype == np.uint8
    return observations if images else observations.astype(np.float32)


def _with_zero_row(actions):
    dtype = np.float32 if actions.dtype.kind == 'f' else actions.dtype
    return np.concatenate([actions, np.zeros_like(actions[:1])]).astype(dtype)


def _last_row(episode, mark):
    length = len(episode['rewards'])
    return (np.arange(length) == length - 1) & mark
