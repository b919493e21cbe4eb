"""Trained agents, from a run's folder alone."""

import dataclasses
from pathlib import Path
from typing import Any

from gymnasium.spaces import Dict, Discrete

from purerl.core import trees
from purerl.core.checkpoint import load_checkpoint
from purerl.data.dataset import normalize
from purerl.envs import episodic
from purerl.envs.make import make
from purerl.envs.pixels import options_of
from purerl.train.config import RunError, load_agent
from purerl.train.evaluation import disturbed, exploring_policy_of, policy_of, to_numpy
from purerl.train.phases import by_frames
from purerl.train.run import create_agents, examples_of, read_flags, read_json, use_device
from purerl.train.seeds import stack, unstack


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run's folder holds of its agents.

    Attributes:
        folder: the run's folder.
        flags: the settings that it was started with, as `flags.json` has them.
        step: the step of the checkpoint.
        agents: the agent of each seed.
        seeds: their seeds.
        examples: zeros of the shapes (1, ...) and dtypes of observations and actions.
        state: what else the loop kept: a list with a `World.state()` of each seed, of
            `experiments.offline` a dict with that list (`worlds`) and `normalization`.
    """

    folder: Path
    flags: dict
    step: int
    agents: list
    seeds: range
    examples: dict
    state: Any

    @property
    def frame_stack(self) -> int | None:
        """How many frames make an observation; None for one."""
        return self.flags.get('frame_stack')

    def make_env(self, seed: int | None = None, env_name: str | None = None, **options):
        """Make the run's environment.

        Args:
            seed: seeds it.
            env_name: another one with the same spaces.
            **options: passed to `purerl.envs.make.make`.

        Raises:
            RunError: if it is gone, or the agents do not fit it.
        """
        env_name = env_name or self.flags['env_name']
        try:
            env = self._make(env_name, seed, options)
        except (ValueError, TypeError, ImportError) as error:
            raise RunError(str(error)) from error
        spaces = {'observations': env.observation_space, 'actions': env.action_space}
        for key, space in spaces.items():
            trained = trees.map(lambda array: tuple(array.shape[1:]), self.examples[key])
            if _shapes_of(space) != trained:
                env.close()
                raise RunError(
                    f'{env_name} has {key} of shape {_shapes_of(space)}, but the agents of '
                    f'{self.folder} were trained with {trained} in {self.flags["env_name"]}'
                )
        return env

    def _make(self, env_name, seed, options):
        if 'env_type' in self.flags:  # of the loop on whole episodes
            if episodic.atari.is_atari(env_name):
                options = {}  # games can always be seen
            of_run = episodic.options_of({**self.flags, 'env_name': env_name})
            return episodic.make_episodic(env_name, seed, 'normal', **{**of_run, **options})
        options = {**options_of(self.flags), **options}
        return make(env_name, seed=seed, frame_stack=self.frame_stack, **options)

    def policy(self, i: int = 0, explore: bool = False):
        """Make the policy of agent number `i`: with all that the run gave it to act by.

        Args:
            i: which agent.
            explore: whether it acts with its exploration noise, or as in the run's evaluations: by
                its mode, in Atari games with a share `test_eps` of random actions.

        Returns:
            `policy(observation, key) -> action`, from raw observations of the run's environment.

        Raises:
            RunError: if the agent has not been trained so far that it could act.
        """
        inputs, statistics = {}, None
        if isinstance(self.state, dict):  # of the offline loop
            latent, statistics = self.state['worlds'][i]['latent'], self.state['normalization']
            if latent is None and hasattr(self.agents[i], 'infer_latent'):
                raise RunError(
                    f'{self.folder} is at step {self.step}, before finetuning, where the agent '
                    'infers the latent that it acts by; go on with --finetuning_steps and --resume'
                )
            inputs = {} if latent is None else {'latents': latent}
        make_policy = exploring_policy_of if explore else policy_of
        act = make_policy(self.agents[i], **inputs)
        episodes = 'test_eps' in self.flags  # of the loop on whole episodes
        if episodes and not explore and episodic.atari.is_atari(self.flags['env_name']):
            act = disturbed(act, self.flags['test_eps'], self.examples['actions'].shape[-1])
        if statistics is None:
            return act
        prepare = by_frames(lambda frame: normalize(frame, **statistics), self.frame_stack)
        return lambda observation, key: act(to_numpy(prepare(observation)), key)


def _shapes_of(space):
    if isinstance(space, Dict):
        return {key: _shapes_of(child) for key, child in space.items()}
    return (int(space.n),) if isinstance(space, Discrete) else space.shape


def load_run(path: str | Path, step: int | None = None, device: str = 'cpu') -> TrainedRun:
    """Load the agents of a run, whichever loop it is of.

    Args:
        path: the run's folder.
        step: the step of its checkpoint; None for the latest.
        device: where to put the agents, wherever they were trained.

    Raises:
        RunError: if there is no such run or device, or its agent's file is gone or does not fit.
        CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    use_device(device)
    folder = Path(path).expanduser()
    flags = read_flags(folder)
    agent = load_agent(flags['agent'], _tuples(read_json(folder / 'config.json')))
    seeds = range(flags['seed'], flags['seed'] + flags['num_seeds'])
    examples = examples_of(folder)
    like = stack(create_agents(agent, seeds, examples, device))
    tree, host_state, step = load_checkpoint(folder / 'checkpoints', step, like=like)
    agents = unstack(tree, len(seeds))
    return TrainedRun(folder, flags, step, agents, seeds, examples, host_state['state'])


def _tuples(config):
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
