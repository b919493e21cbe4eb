"""What the training loops share: checks of environments, records, and the end of a run."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from gymnasium.wrappers import TimeLimit

from purerl.core import random
from purerl.envs.dmc import DMC
from purerl.envs.make import check_continuous
from purerl.envs.snapshot import check_resumable, env_state, set_env_state
from purerl.envs.wrappers import layers
from purerl.train.config import MAX_SEED, RunError
from purerl.train.evaluation import check_renders, evaluate, write_video
from purerl.train.logging import RunLogger, scalars
from purerl.train.run import Run, write_json

_EVAL_SEED_OFFSET = 42  # jaxrl5's
_RANDOM_SEED_OFFSET = 84  # the baseline's environment is neither training's nor evaluation's
_SHOWN_LOSSES = 3
_LARGEST = float(np.finfo(np.float32).max)
_KEPT = 'What was recorded before is kept'


def due(step: int, interval: int) -> bool:
    """Return whether something that happens every `interval` steps (0: never) happens now."""
    return interval > 0 and step % interval == 0


# --- Environments ----------------------------------------------------------------------------


def check_environment(env, videos: bool) -> None:
    """Refuse an environment that an agent cannot act in, or that is to be filmed and cannot.

    Args:
        env: a `gymnasium.Env`; it is reset.
        videos: whether it is to render.

    Raises:
        RunError: if so.
    """
    try:
        check_continuous(env)
        if videos:
            check_renders(env)
    except ValueError as error:
        raise RunError(str(error)) from error
    limited = any(isinstance(layer, TimeLimit) for layer in layers(env))
    if not limited and not isinstance(env.unwrapped, DMC):  # whose tasks have their own
        print(
            'warning: the environment has no time limit, so that an episode may never end, in '
            'evaluations too: register it with max_episode_steps',
            file=sys.stderr,
        )


def check_step(env_name: str, reward, observation) -> None:
    """Refuse what an environment returned if a number is not finite in float32.

    Raises:
        RunError: if so.
    """
    arrays = observation.values() if isinstance(observation, dict) else (observation,)
    if not abs(float(reward)) <= _LARGEST:  # nor NaN
        raise RunError(
            f'{env_name}: the reward {reward} is not a finite number of float32. {_KEPT}'
        )
    for array in arrays:
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise RunError(
                f'{env_name}: the observation {array} has numbers that are not finite. {_KEPT}'
            )


def evaluation_seed(seed: int) -> int:
    """Return the seed of a run's evaluation environment and of its policy's key there."""
    return _offset(seed, _EVAL_SEED_OFFSET)


def _offset(seed, offset):
    """Move a seed within those that numpy takes, so that the largest have successors too."""
    return (seed + offset) % (MAX_SEED + 1)


def warn_of_no_updates(flag: str, value: int, last: int) -> None:
    """Say so on stderr where a run ends before its first update.

    Args:
        flag: name of the setting that says when updates begin.
        value: its value.
        last: the largest with which there would be any.
    """
    if value > last:
        print(
            f'warning: with {flag}={value} nothing is learnt, since the run ends before: at most '
            f'{last} steps may go before the first update',
            file=sys.stderr,
        )


def check_seen(env) -> None:
    """Refuse an environment whose images cannot be rendered; it is reset.

    Raises:
        RunError: if so.
    """
    try:
        env.reset()
    except ValueError as error:
        raise RunError(str(error)) from error


def is_resumable(env) -> bool:
    """Return whether snapshots of an environment are possible; if not, say why on stderr."""
    try:
        check_resumable(env)
    except ValueError as error:
        print(f'warning: {error}', file=sys.stderr)
        return False
    return True


def take_snapshots(envs: Mapping) -> dict | None:
    """Return the states of environments by name, None where there can be none."""
    try:
        return {name: env_state(env) for name, env in envs.items()}
    except ValueError:
        return None


def restore_snapshots(envs: Mapping, states: Mapping | None) -> None:
    """Put environments into the states that `take_snapshots` returned.

    Those that a raised number of steps has added are left as they are.

    Raises:
        RunError: if it returned None.
    """
    if states is None:
        raise RunError(
            'this run cannot be resumed: no snapshots of its environment are possible (see the '
            'warning at its start)'
        )
    for name, env in envs.items():
        if name in states:
            set_env_state(env, states[name])


def random_return(make_env: Callable, num_episodes: int, seed: int) -> float:
    """Return the mean return of uniformly random actions.

    Args:
        make_env: `make_env(seed=seed) -> gymnasium.Env`.
        num_episodes: how many episodes.
        seed: the run's seed, from which the environment's and the actions' are derived.
    """
    with contextlib.closing(make_env(seed=_offset(seed, _RANDOM_SEED_OFFSET))) as env:
        statistics, _, _ = evaluate(
            lambda observation, key: env.action_space.sample(), env, num_episodes, random.key(seed)
        )
    return statistics['episode.return']


# --- Records ---------------------------------------------------------------------------------


def log_training(logger: RunLogger, name: str, step: int, rows: Sequence[Mapping]) -> None:
    """Record the losses of each seed that has any; show the first ones' means beside the bar."""
    for i, row in enumerate(rows):
        if row:
            logger.log_seed(i, name, step, row)
    logger.tick(step)
    rows = [row for row in rows if row]
    losses = [key for key in rows[0] if key.startswith('training/') and key.endswith('loss')]
    logger.show(
        **{
            key.removeprefix('training/'): np.mean([row[key] for row in rows if key in row])
            for key in losses[:_SHOWN_LOSSES]
        }
    )


def log_evaluations(run: Run, name: str, step: int, evaluations: Sequence[Callable]) -> None:
    """Run one evaluation per seed, each returning statistics and renders, and record it."""
    returns = []
    for i, evaluate_seed in enumerate(evaluations):
        statistics, renders = evaluate_seed()
        run.logger.log_seed(i, name, step, scalars(statistics, 'evaluation/'))
        returns.append(statistics['episode.return'])
        if renders:
            try:
                write_video(run.seed_folders[i] / 'videos' / f'eval_{step:010d}.mp4', renders)
            except OSError as error:
                raise RunError(f'{error}. --resume goes on from the last checkpoint') from error
    run.logger.show(eval=np.mean(returns))


def conclude(run: Run, step: int, returns: list | None, random_returns: list | None) -> dict:
    """Draw the curves, write `summary.json` and print where everything is.

    Args:
        run: the run.
        step: its last step.
        returns: the final evaluation's return per seed; None where there was no evaluation.
        random_returns: a random policy's.

    Returns:
        What was written.
    """
    summary = {'step': step, 'return': returns, 'random_return': random_returns}
    write_json(run.folder / 'summary.json', summary)
    curves = run.plot()
    run.logger.close()
    if returns is not None:
        print(
            f'final evaluation return: {np.mean(returns):.2f}  '
            f'(a random policy: {np.mean(random_returns):.2f})'
        )
    if curves is not None:
        print(f'curves: {curves}')
    checkpoint = run.folder / 'checkpoints' / f'checkpoint_{step:010d}.json'
    if checkpoint.exists():  # not where there was no step to take
        print(f'checkpoint: {checkpoint}')
    return summary
