"""Evaluation of policies in environments, and videos of it.

Source of the procedure and of the statistics' names: InFOM's `utils/evaluation.py` and
`utils/log_utils.py`; of `eval_actions`: jaxrl5's `evaluation.py`.
"""

import importlib.util
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from purerl.core import random
from purerl.core.files import atomic_path
from purerl.envs.pixels import rendering_hint
from purerl.envs.wrappers import EpisodeMonitor, layers
from purerl.train.config import RunError

_NO_WRITER = "videos need imageio-ffmpeg (mp4) or pillow (gif): pip install 'purerl[plot]'"


def policy_of(agent, temperature=0.0, **inputs):
    """Makes a policy from an agent.

    An agent with `eval_actions` (jaxrl5) acts by it, with its own key, which moves on from call to
    call while the agent passed in stays as it is. Any other acts by `sample_actions` with the
    policy's key and `temperature`.

    Args:
        agent: An agent.
        temperature: Scales the policy's standard deviation; 0 gives its mode.
        **inputs: Further arguments of `sample_actions`, such as `latents`.

    Returns:
        `policy(observation, key) -> action`, where observation and action are arrays.
    """
    if not hasattr(agent, 'eval_actions'):

        def sample(observation, key):
            return to_numpy(
                agent.sample_actions(observation, seed=key, temperature=temperature, **inputs)
            )

        return sample

    def evaluate_actions(observation, key):
        nonlocal agent
        result = agent.eval_actions(observation)
        # jaxrl5's TD3 returns the actions alone.
        actions, agent = result if isinstance(result, tuple) else (result, agent)
        return to_numpy(actions)

    return evaluate_actions


def exploring_policy_of(agent, **inputs):
    """Makes a policy from an agent that acts as it does to gather experience.

    Any agent acts by `sample_actions`: one with `eval_actions` (jaxrl5), which has a key of its
    own, with the policy's key in its place.

    Args:
        agent: An agent.
        **inputs: Further arguments of `sample_actions`, such as `latents`.

    Returns:
        `policy(observation, key) -> action`, where observation and action are arrays.
    """
    if not hasattr(agent, 'eval_actions'):
        return policy_of(agent, temperature=1.0, **inputs)

    def explore(observation, key):
        keyed = agent.with_rng(key) if hasattr(agent, 'with_rng') else agent.replace(rng=key)
        actions, _ = keyed.sample_actions(observation)
        return to_numpy(actions)

    return explore


def disturbed(policy, share, num_actions):
    """Replaces a share of a policy's actions by random ones, as in RRD's tests of Atari games.

    Args:
        policy: As of `policy_of`.
        share: Probability of a random action.
        num_actions: Number of discrete actions.

    Returns:
        `policy(observation, key) -> action`.
    """

    def act(observation, key):
        key, uniform_key, action_key = random.split(key, 3)
        action = policy(observation, key)
        if random.uniform(uniform_key) <= share:
            return random.randint(action_key, (), 0, num_actions).numpy()
        return action

    return act


def to_numpy(actions):
    """Returns actions, a tensor on any device or an array, as a numpy array."""
    return actions.detach().cpu().numpy() if hasattr(actions, 'detach') else np.asarray(actions)


def clip_action(action, space):
    """Returns an action clipped into its space's bounds; one of another space as it is."""
    return np.clip(action, space.low, space.high) if isinstance(space, Box) else action


def check_renders(env):
    """Refuses an environment that no video can be made of; it is reset and rendered once.

    What counts is what `render` returns: OGBench's manipulation environments render arrays though
    their `render_mode` is None.

    Args:
        env: A `gymnasium.Env`.

    Raises:
        ValueError: If rendering fails, or gives no array, or no package that writes videos is
            installed; the message says what to do.
    """
    if not _can_write_videos():
        raise ValueError(_NO_WRITER)
    env.reset()
    try:
        frame = env.render()
    except Exception as error:  # each rendering backend has errors of its own
        raise ValueError(
            f'videos are not possible here: rendering fails ({error}){rendering_hint(error)}'
        ) from error
    _check_frame(env, frame)


def evaluate(
    policy,
    env,
    num_episodes,
    key,
    seed=None,
    normalize=None,
    video_episodes=0,
    video_frame_skip=3,
    film_first=False,
    keep_trajectories=False,
):
    """Runs a policy for whole episodes.

    The keys of the calls are the chain `key, call_key = split(key)`.

    Args:
        policy: `policy(observation, key) -> action`.
        env: A `gymnasium.Env`; actions are clipped into its bounds.
        num_episodes: Number of episodes that the statistics cover.
        key: Key of the policy's randomness, shape (2,).
        seed: Seeds the first reset, so that the result is a function of policy, key and seed. None
            lets the environment's random numbers run on.
        normalize: Function that is applied to each observation before the policy sees it.
        video_episodes: Number of further episodes to render; they are not in the statistics.
        video_frame_skip: Every which step is rendered (the last one always is).
        film_first: Whether to render the first of the counted episodes, too. It runs as it would
            without, and so do those after it.
        keep_trajectories: Whether to return what happened in the counted episodes. Their
            observations take memory, of Atari games 70 KB per step.

    Returns:
        A tuple of
        - dict of floats: means over the episodes' last infos, flattened with '.'
          (`episode.return`, `episode.length`, ...), and `episode.return_std`, `..._min`, `..._max`;
        - list of trajectories, one per episode (empty unless they are to be kept): dicts of arrays
          `observations`, `next_observations`, `actions`, `rewards`, `dones` with the leading axis
          T, and the list `infos`;
        - list of renders, one array (T', H, W, C) of uint8 per rendered episode.

    Raises:
        ValueError: If there is no episode to run, or the environment renders no arrays
            (`check_renders` tells so before the episodes).
    """
    if num_episodes < 1:
        raise ValueError(f'an evaluation needs at least one episode, not {num_episodes}')
    env = _monitored(env)
    final_infos, trajectories, renders = [], [], []
    for episode in range(num_episodes + video_episodes):
        counts = episode < num_episodes
        filmed = not counts or (film_first and episode == 0)
        frame_skip = video_frame_skip if filmed else None
        trajectory = _Trajectory() if counts and keep_trajectories else None
        info, frames, key = _run_episode(policy, env, key, seed, normalize, frame_skip, trajectory)
        seed = None
        if counts:
            final_infos.append(info)
        if trajectory is not None:
            trajectories.append(trajectory.arrays())
        if filmed:
            renders.append(np.stack(frames))
    return statistics(final_infos), trajectories, renders


def evaluate_batched(policy, envs, num_episodes, key, seed=None, normalize=None):
    """Runs a policy in several environments at once, with one call for all of them.

    Environments run in rounds of one episode each; those that have finished wait, and the policy
    keeps seeing their last observation, so that its batch keeps its size.

    Args:
        policy: `policy(observations, key) -> actions` over the leading axis N.
        envs: N environments.
        num_episodes: Number of episodes, a multiple of N.
        key: Key of the policy's randomness, shape (2,).
        seed: Environment i's first reset is seeded with `seed + i`. None lets the environments'
            random numbers run on.
        normalize: Function that is applied to the stacked observations before the policy sees them.

    Returns:
        The dict of floats that `evaluate` returns.

    Raises:
        ValueError: If `num_episodes` is not a positive multiple of N.
    """
    if num_episodes < 1 or num_episodes % len(envs):
        raise ValueError(f'{num_episodes} episodes are not a multiple of {len(envs)} environments')
    envs = [_monitored(env) for env in envs]
    final_infos = []
    for episode in range(num_episodes // len(envs)):
        first = seed is not None and episode == 0
        seeds = [seed + i if first else None for i in range(len(envs))]
        infos, key = _run_round(policy, envs, key, seeds, normalize)
        final_infos.extend(infos)
    return statistics(final_infos)


def statistics(final_infos):
    """Averages the infos of episodes' last steps.

    Args:
        final_infos: List of info dicts; those of an `EpisodeMonitor` hold `episode.return`.

    Returns:
        A dict of floats: the mean over the episodes of every entry that is a number under its name,
        levels joined with '.', and standard deviation (ddof 0), minimum and maximum of the
        returns. Arrays (positions, say) are left out; the original averages them too.
    """
    columns = {}
    for info in final_infos:
        for name, value in _flatten(info).items():
            columns.setdefault(name, []).append(value)
    means = {
        name: float(np.mean(values))
        for name, values in columns.items()
        if all(_is_number(value) for value in values)
    }
    returns = columns['episode.return']
    return means | {
        'episode.return_std': float(np.std(returns)),
        'episode.return_min': float(np.min(returns)),
        'episode.return_max': float(np.max(returns)),
    }


def write_video(path, renders, fps=15):
    """Writes episodes side by side as one video.

    Shorter episodes end with their last frame at half brightness. The episodes form a grid with as
    many columns as the square root of their number, rounded up.

    Args:
        path: Path of the file to write, ending in `.mp4` or `.gif`.
        renders: List of arrays (T, H, W, C) of uint8; T may differ.
        fps: Frames per second.

    Returns:
        The path that was written: for an `.mp4` without `imageio-ffmpeg` it ends in `.gif`.

    Raises:
        ValueError: If there is nothing to write, or an array is not of uint8.
        ImportError: If no package that writes videos is installed.
        RunError: If the file cannot be written.
    """
    path = Path(path)
    frames = video_grid(renders)
    if path.suffix != '.gif' and importlib.util.find_spec('imageio_ffmpeg') is not None:
        return _written(_write_mp4, path, frames, fps)
    if importlib.util.find_spec('PIL') is None:
        raise ImportError(_NO_WRITER)
    return _written(_write_gif, path.with_suffix('.gif'), frames, fps)


def video_grid(renders):
    """Arranges episodes of different lengths in one grid of frames.

    Args:
        renders: List of N arrays (T_i, H, W, C) of uint8.

    Returns:
        Array (T, rows * (H + 2), columns * (W + 2), C) of uint8, T the longest T_i; each episode
        has a black border of one pixel, and empty cells are black.

    Raises:
        ValueError: If there is no episode, or an array is not of uint8.
    """
    if not renders:
        raise ValueError('there are no rendered episodes to make a video of')
    if any(render.dtype != np.uint8 for render in renders):
        raise ValueError(f'frames must be uint8, not {[str(r.dtype) for r in renders]}')
    length = max(len(render) for render in renders)
    columns = int(np.ceil(np.sqrt(len(renders))))
    rows = -(-len(renders) // columns)
    padded = [_pad_episode(render, length) for render in renders]
    padded += [np.zeros_like(padded[0])] * (rows * columns - len(renders))
    grid = np.stack(padded)
    _, _, height, width, channels = grid.shape
    grid = grid.reshape(rows, columns, length, height, width, channels)
    grid = grid.transpose(2, 0, 3, 1, 4, 5)  # (T, rows, H, columns, W, C)
    return grid.reshape(length, rows * height, columns * width, channels)


def _monitored(env):
    if any(isinstance(layer, EpisodeMonitor) for layer in layers(env)):
        return env
    return EpisodeMonitor(env)


class _Trajectory:
    """What happens in an episode, step by step."""

    _columns = ('observations', 'next_observations', 'actions', 'rewards', 'dones', 'infos')

    def __init__(self):
        self._rows = []

    def append(self, *row):
        self._rows.append(row)

    def arrays(self):
        """Returns a dict of arrays with the leading axis T, and the list of infos."""
        columns = dict(zip(self._columns, zip(*self._rows, strict=True), strict=True))
        infos = list(columns.pop('infos'))
        return {**{name: np.asarray(values) for name, values in columns.items()}, 'infos': infos}


def _run_episode(policy, env, key, seed, normalize, frame_skip, trajectory):
    """Runs one episode; renders every `frame_skip`-th step and fills a trajectory, unless None."""
    frames = []
    observation, _ = env.reset(seed=seed)
    observation = _apply(normalize, observation)
    done, length = False, 0
    while not done:
        key, call_key = random.split(key)
        action = clip_action(policy(observation, call_key), env.action_space)
        next_observation, reward, terminated, truncated, info = env.step(action)
        next_observation = _apply(normalize, next_observation)
        done, length = terminated or truncated, length + 1
        if trajectory is not None:
            trajectory.append(observation, next_observation, action, reward, done, info)
        if frame_skip and (done or length % frame_skip == 0):
            frames.append(_render(env))
        observation = next_observation
    return info, frames, key


def _run_round(policy, envs, key, seeds, normalize):
    """Runs one episode in each environment; returns their last infos and the next key."""
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    final_infos = [None] * len(envs)
    while None in final_infos:
        key, call_key = random.split(key)
        actions = policy(_apply(normalize, np.stack(observations)), call_key)
        for i, env in enumerate(envs):
            if final_infos[i] is not None:
                continue
            action = clip_action(actions[i], env.action_space)
            observations[i], _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                final_infos[i] = info
    return final_infos, key


def _apply(normalize, observation):
    return observation if normalize is None else to_numpy(normalize(observation))


def _flatten(tree, prefix=''):
    flat = {}
    for key, value in tree.items():
        if hasattr(value, 'items'):
            flat.update(_flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _is_number(value):
    return value is not None and np.ndim(value) == 0 and np.asarray(value).dtype.kind in 'biuf'


def _render(env):
    frame = env.render()
    _check_frame(env, frame)
    return frame.copy()


def _can_write_videos():
    return any(importlib.util.find_spec(name) for name in ('imageio_ffmpeg', 'PIL'))


def _check_frame(env, frame):
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            "videos need an environment that renders arrays, as render_mode='rgb_array' asks for; "
            f'with render_mode={env.render_mode!r} this one renders {type(frame).__name__}'
        )


def _pad_episode(render, length):
    dimmed = np.repeat(render[-1:] // 2, length - len(render), axis=0)
    return np.pad(np.concatenate([render, dimmed]), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _written(write, path, frames, fps):
    try:
        write(path, frames, fps)
    except OSError as error:  # of ffmpeg, with its command and its output below
        reason = str(error).splitlines()[0]
        raise RunError(f'{path} could not be written ({reason}); free disk space') from error
    return path


def _write_mp4(path, frames, fps):
    import imageio_ffmpeg

    # The usual pixel format halves the colours' resolution, so both sides must be even.
    _, height, width, channels = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    pixel_format = {1: 'gray', 3: 'rgb24', 4: 'rgba'}[channels]
    size = (frames.shape[2], frames.shape[1])
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            size,
            fps=fps,
            pix_fmt_in=pixel_format,
            macro_block_size=1,
            output_params=['-f', 'mp4'],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()


def _write_gif(path, frames, fps):
    from PIL import Image

    images = [
        Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in frames
    ]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary,
            format='GIF',
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / fps),
            loop=0,
        )
