"""Evaluation of a finished or interrupted run, from its folder alone."""

import dataclasses
from pathlib import Path

import numpy as np

from purerl.core import jit, random
from purerl.core.checkpoint import load_checkpoint
from purerl.data.dataset import normalize
from purerl.envs.make import make
from purerl.train.config import Agent, RunError, load_agent, setting
from purerl.train.evaluation import evaluate, policy_of, write_video
from purerl.train.phases import by_frames
from purerl.train.run import create_agents, examples_of, read_json, write_json
from purerl.train.seeds import stack, unstack


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to evaluate, and how."""

    run: str | None = setting(None, "The run's folder.")
    step: int | None = setting(None, 'Step of its checkpoint; the latest by default.', minimum=0)
    episodes: int = setting(10, 'Number of episodes.', minimum=1)
    seed: int = setting(0, "Seed of the environment and of the policy's randomness.", minimum=0)
    video: bool = setting(False, 'Write a video of further episodes beside evaluation.json.')
    video_episodes: int = setting(1, 'Number of episodes in the video.', minimum=1)


def evaluate_run(settings: Settings) -> dict:
    """Evaluate a run's checkpoint; prints the result and writes `evaluation.json`.

    Args:
        settings: the flags.

    Returns:
        What was written: step, episodes, seed, and a list of statistics, one per trained seed.

    Raises:
        RunError: if there is no such run, or its environment is gone.
        CheckpointError: if there is no such checkpoint.
    """
    if settings.run is None:
        raise RunError('which run? --run=<folder>')
    folder = Path(settings.run).expanduser()
    flags = read_json(folder / 'flags.json')
    agent = load_agent(flags['agent'], _tuples(read_json(folder / 'config.json')))
    with jit.use_mode('trace'):
        agents, state, step = _load(folder, agent, flags, settings.step)
        results, renders = [], []
        for i, member in enumerate(agents):
            statistics, frames = _evaluate(member, flags, state, i, settings)
            results.append(statistics)
            renders.extend(frames)
    result = {
        'step': step,
        'episodes': settings.episodes,
        'seed': settings.seed,
        'statistics': results,
    }
    write_json(folder / 'evaluation.json', result)
    returns = [statistics['episode.return'] for statistics in results]
    print(f'{folder} at step {step}, {settings.episodes} episodes')
    for name in sorted(results[0]):
        print(f'  {name}: {np.mean([statistics[name] for statistics in results]):.4g}')
    print(f'mean return: {np.mean(returns):.2f}')
    if renders:
        print(f'video: {write_video(folder / "videos" / f"evaluation_{step:010d}.mp4", renders)}')
    return result


def _tuples(config):
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }


def _load(folder, agent: Agent, flags, step):
    """Return the agents of all seeds, the loop's state and the step."""
    num = flags['num_seeds']
    like = create_agents(agent, range(num), examples_of(folder))
    tree, host_state, step = load_checkpoint(folder / 'checkpoints', step, like=stack(like))
    return unstack(tree, num), host_state['state'], step


def _evaluate(agent, flags, state, i, settings):
    frame_stack, statistics, inputs = flags.get('frame_stack'), None, {}
    if isinstance(state, dict):  # of the offline loop
        statistics, latent = state['normalization'], state['worlds'][i]['latent']
        inputs = {} if latent is None else {'latents': latent}
    try:
        env = make(
            flags['env_name'],
            seed=settings.seed,
            frame_stack=frame_stack,
            render_mode='rgb_array' if settings.video else None,
        )
    except (ValueError, ImportError) as error:
        raise RunError(str(error)) from error
    try:
        result, _, renders = evaluate(
            policy_of(agent, temperature=0.0, **inputs),
            env,
            settings.episodes,
            random.key(settings.seed),
            normalize=None if statistics is None else by_frames(_with(statistics), frame_stack),
            video_episodes=settings.video_episodes if settings.video else 0,
        )
    finally:
        env.close()
    return result, renders


def _with(statistics):
    return lambda observations: normalize(observations, **statistics)
