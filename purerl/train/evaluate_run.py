"""Evaluation of a finished or interrupted run, from its folder alone."""

import contextlib
import dataclasses

import numpy as np

from purerl.core import jit, random
from purerl.data.scores import normalized_score
from purerl.train.config import Agent, RunError, seed_setting, setting
from purerl.train.evaluation import check_renders, evaluate, write_video
from purerl.train.load_run import load_run
from purerl.train.run import write_json
from purerl.train.variants import parse


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to evaluate, and how."""

    run: str | None = setting(None, "The run's folder.")
    step: int | None = setting(None, 'Step of its checkpoint; the latest by default.', minimum=0)
    episodes: int = setting(10, 'Number of episodes.', minimum=1)
    seed: int = seed_setting(0, "Seed of the environment and of the policy's randomness.")
    inference_variant: str | None = setting(
        None,
        "Evaluate the agent with other values of fields that only acting reads: 'N=256;M=0', as "
        'inference_variants of experiments.offline_to_online.',
    )
    device: str = setting('cpu', 'Where the agent computes: cpu, cuda, cuda:1, ...')
    video: bool = setting(False, 'Write a video of further episodes beside evaluation.json.')
    video_episodes: int = setting(1, 'Number of episodes in the video.', minimum=1)


def evaluate_run(settings: Settings) -> dict:
    """Evaluate a run's checkpoint; prints the result and writes `evaluation.json`.

    Args:
        settings: the flags.

    Returns:
        What was written: step, episodes, seed, variant, and a list of statistics, one per trained
        seed.

    Raises:
        RunError: if there is no such run, its environment is gone, or cannot be seen or filmed
            as asked for.
        CheckpointError: if there is no such checkpoint.
    """
    if settings.run is None:
        raise RunError('which run? --run=<folder>')
    with jit.use_mode('trace'):
        run = _changed(load_run(settings.run, settings.step, settings.device), settings)
        _check_env(run, settings.video)
        results, renders = [], []
        for i in range(len(run.agents)):
            statistics, frames = _evaluate(run, i, settings)
            results.append(statistics)
            renders.extend(frames)
    result = {
        'step': run.step,
        'episodes': settings.episodes,
        'seed': settings.seed,
        'inference_variant': settings.inference_variant,
        'statistics': results,
    }
    returns = [statistics['episode.return'] for statistics in results]
    print(f'{run.folder} at step {run.step}, {settings.episodes} episodes')
    for name in sorted(set.intersection(*map(set, results))):
        print(f'  {name}: {np.mean([statistics[name] for statistics in results]):.4g}')
    print(f'mean return: {np.mean(returns):.2f}')
    write_json(run.folder / 'evaluation.json', result)
    if renders:
        path = run.folder / 'videos' / f'evaluation_{run.step:010d}.mp4'
        try:
            print(f'video: {write_video(path, renders)}')
        except OSError as error:
            raise RunError(str(error)) from error
    return result


def _changed(run, settings):
    """Return the run with agents changed as asked for."""
    if settings.inference_variant is None:
        return run
    first = run.agents[0]
    agent = Agent(run.flags['agent'], type(first), first.config)
    variants = parse(settings.inference_variant, agent)
    if len(variants) > 1:
        raise RunError(
            f'inference_variant={settings.inference_variant} has several values; evaluate one '
            'after the other'
        )
    return dataclasses.replace(run, agents=[variants[0].apply(agent) for agent in run.agents])


def _check_env(run, video):
    """Try one of its own, since that moves an environment's random numbers on."""
    with contextlib.closing(run.make_env(render_mode='rgb_array' if video else None)) as env:
        try:
            if video:
                check_renders(env)
            else:
                env.reset()
        except ValueError as error:
            raise RunError(str(error)) from error


def _evaluate(run, i, settings):
    render_mode = 'rgb_array' if settings.video else None
    with contextlib.closing(run.make_env(settings.seed, render_mode=render_mode)) as env:
        statistics, _, renders = evaluate(
            run.policy(i),
            env,
            settings.episodes,
            random.key(settings.seed),
            video_episodes=settings.video_episodes if settings.video else 0,
        )
    score = normalized_score(run.flags['env_name'], statistics['episode.return'])
    if score is not None:
        statistics.setdefault('episode.normalized_return', score)
    return statistics, renders
