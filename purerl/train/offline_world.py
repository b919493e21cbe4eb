"""One seed of a run of `purerl.train.offline_to_online`: its batches, environments and buffer."""

import numpy as np

from purerl.core import random
from purerl.data import d4rl, scores
from purerl.data.replay import ReplayBuffer, transition
from purerl.envs.make import make
from purerl.train.evaluation import evaluate, policy_of, to_numpy
from purerl.train.loop import check_step, evaluation_seed, restore_snapshots, take_snapshots

_BUFFER_SEED_OFFSET = 1241  # the original's


class World:
    """Everything of one seed besides its agent: batches, environments, replay buffer, streams."""

    def __init__(self, settings, seed: int, sampler, variants):
        """Make the environments.

        Args:
            settings: `purerl.train.offline_to_online.Settings`.
            seed: the seed.
            sampler: of the dataset's batches, from `purerl.train.transitions.make_sampler`.
            variants: `purerl.train.variants.Variant`s to evaluate.
        """
        self.settings = settings
        self.sampler = sampler
        self.variants = variants
        self.env = self.eval_env = self.buffer = self.observation = None
        self.key = random.key(evaluation_seed(seed))
        self.buffer_stream = np.random.default_rng(seed + _BUFFER_SEED_OFFSET)
        self.evaluated = (0, None)  # step and return of the latest evaluation
        if settings.evaluates:
            self.eval_env = make(
                settings.env_name, seed=evaluation_seed(seed), **settings.eval_env_options
            )
        if settings.online_max_steps:
            self.env = make(settings.env_name, seed=seed, **settings.env_options)
            self.buffer = ReplayBuffer.from_spaces(
                self.env.observation_space,
                self.env.action_space,
                settings.online_max_steps,
                device=settings.replay_device,
            )

    def begin_online(self) -> None:
        """Start the first episode of the online phase."""
        self.observation, _ = self.env.reset()

    def step(self, action: np.ndarray) -> dict | None:
        """Act and remember; returns the episode's statistics at its end, else None."""
        following, reward, terminated, truncated, info = self.env.step(action)
        check_step(self.settings.env_name, reward, following)
        reward = reward + d4rl.reward_shift(self.settings.env_name)
        self.buffer.insert(
            transition(self.observation, action, reward, terminated, truncated, following)
        )
        self.observation = following
        if not (terminated or truncated):
            return None
        self.observation, _ = self.env.reset()
        return info['episode']

    def mixed_batch(self, num: int) -> dict:
        """Draw `num` online transitions and as many of the dataset's."""
        return self.sampler.mixed_batch(self.buffer.sample(num, self.buffer_stream), num)

    def evaluate(self, agent, step: int, num_episodes: int) -> tuple[dict, list]:
        """Run whole episodes of each variant; returns statistics and renders."""
        policies = {name: policy_of(changed) for name, changed in self._changed(agent)}
        if self.settings.evaluate_implicit:
            policies['implicit'] = implicit_policy_of(agent)
        figures, renders = {}, []
        for name, policy in policies.items():
            found, _, frames = evaluate(
                policy,
                self.eval_env,
                num_episodes,
                random.fold_in(self.key, step),
                video_frame_skip=1,
                film_first=self.settings.save_video,
            )
            score = scores.normalized_score(self.settings.env_name, found['episode.return'])
            if score is not None:
                found.setdefault('episode.normalized_return', score)
            renders.extend(frames)
            # The first variant's figures stand under the names that every run has.
            figures |= {f'{name}/{key}' if figures else key: found[key] for key in found}
        self.evaluated = (step, figures['episode.return'])
        return figures, renders

    def _changed(self, agent):
        return [(variant.name, variant.apply(agent)) for variant in self.variants]

    def state(self) -> dict:
        """Return everything that `set_state` needs to go on bit for bit."""
        return {
            'sampler': self.sampler.state(),
            'envs': take_snapshots(self._envs()),
            'buffer': None if self.buffer is None else self.buffer.state_dict(),
            'buffer_stream': self.buffer_stream.bit_generator.state,
            'observation': self.observation,
            'evaluated': self.evaluated,
            'max_steps': self.settings.max_steps,
        }

    def set_state(self, state: dict) -> None:
        self.sampler.set_state(state['sampler'])
        restore_snapshots(self._envs(), state['envs'])
        if self.buffer is not None and state['buffer'] is not None:
            # There is room for every step, so that the oldest transition is always at the front.
            room = {'capacity': self.buffer.capacity}
            room['pointer'] = state['buffer']['size'] % self.buffer.capacity
            self.buffer.load_state_dict({**state['buffer'], **room})
        self.buffer_stream.bit_generator.state = state['buffer_stream']
        self.observation = state['observation']
        self.evaluated = tuple(state['evaluated'])

    def _envs(self):
        envs = {'env': self.env, 'eval_env': self.eval_env}
        return {name: env for name, env in envs.items() if env is not None}

    def close(self) -> None:
        for env in self._envs().values():
            env.close()


def implicit_policy_of(agent):
    """Make a policy from an agent that acts by `sample_implicit_policy` (``implicit_evaluate``).

    Returns:
        `policy(observation, key) -> action`; the agent passed in stays as it is.
    """

    def act(observation, key):
        nonlocal agent
        actions, agent = agent.sample_implicit_policy(observation)
        return to_numpy(actions)

    return act
