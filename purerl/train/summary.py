"""What a run prints and writes when it has ended."""

import numpy as np

from purerl.core import random
from purerl.envs.make import make
from purerl.train.evaluation import evaluate
from purerl.train.run import Run, write_json

RANDOM_SEED_OFFSET = 84  # the baseline's environment is neither the training nor the evaluation one


def random_return(env_name: str, num_episodes: int, seed: int, **env_options) -> float:
    """Return the mean return of uniformly random actions.

    Args:
        env_name: the environment.
        num_episodes: how many episodes.
        seed: the run's seed, from which the environment's and the actions' are derived.
        **env_options: passed to `purerl.envs.make.make`.
    """
    env = make(env_name, seed=seed + RANDOM_SEED_OFFSET, **env_options)
    try:
        statistics, _, _ = evaluate(
            lambda observation, key: env.action_space.sample(), env, num_episodes, random.key(seed)
        )
    finally:
        env.close()
    return statistics['episode.return']


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
    print(f'checkpoint: {run.folder / "checkpoints" / f"checkpoint_{step:010d}.json"}')
    return summary
