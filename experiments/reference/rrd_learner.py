"""Replays recordings of the order in which the RRD originals act and train."""

import dataclasses
import itertools

import ml_collections
import numpy as np

from experiments.reference.case import Case
from experiments.reference.compare import Report
from experiments.reference.rrd_envs import HEIGHT, ScriptedEnv, ScriptedGame, dressed
from experiments.reference.rrd_variables import base_of
from purerl.agents.rrd import bases, ircr, rrd
from purerl.core import trees
from purerl.envs import wrappers
from purerl.envs.atari import AtariEnv
from purerl.envs.episodic import EpisodicRewards
from purerl.train.config import Agent
from purerl.train.episodic import Settings
from purerl.train.episodic_learner import Learner, run_iteration
from purerl.train.episodic_world import World
from purerl.train.run import create_agents


class Spy:
    """Notes what is called; also of an environment, a buffer or an agent that it stands before."""

    def __init__(self, events, real, named):
        self._events, self._real, self._named = events, real, named

    def __getattr__(self, name):
        value = getattr(self._real, name)
        if name not in self._named:
            return value

        def noted(*args, **kwargs):
            result = value(*args, **kwargs)
            self._events.append(self._named[name])
            return result

        return noted


class SpyBuffer(Spy):
    """Notes an episode's transitions when they enter the buffer."""

    def __init__(self, events, real):
        drawing = ('sample', 'sample_subsequences', 'sample_returns')
        super().__init__(events, real, dict.fromkeys(drawing, 'sample_batch'))
        self.entries = []

    def append(self, transition, lane):
        self._real.append(transition, lane)
        self.entries.append(transition)

    def commit(self, lane):
        self._events.extend(['store'] * self._real.pending)
        self._real.commit(lane)


class SpyAgent:
    """Notes an agent's updates as the original's calls, by what they have changed."""

    def __init__(self, events, agent):
        self._events, self.agent = events, agent

    def update_normalizer(self, batch):
        self._events.append('normalizer_update')
        return SpyAgent(self._events, self.agent.update_normalizer(batch))

    def update(self, batch, *actor_batch):
        drawn = [self._events.pop() for _ in range(1 + len(actor_batch))]
        agent, info = self.agent.update(batch, *actor_batch)
        delayed = 'policy_delay' in agent.config
        # Both batches are drawn before the update, which makes no difference to either.
        self._events += [drawn.pop(), 'train_q' if delayed else 'train']
        self._events += [drawn.pop(), 'train_pi'] if drawn else []
        before, after = (_target(x) for x in (self.agent, agent))
        if any((old != new).any() for old, new in zip(before, after, strict=True)):
            self._events.append('target_update')
        return SpyAgent(self._events, agent), info


def _target(agent):
    return trees.leaves(getattr(agent, 'base', agent).target_critic.params)


class PlaybackLearner(Learner):
    """A learner that takes the recorded actions."""

    def __init__(self, agent, events, actions):
        super().__init__(agent, 1)
        self._events, self._actions = events, iter(actions)

    def act(self, worlds):
        self._events.append('step(explore=True)')
        return [next(self._actions)]


def replay_learner(case: Case, report: Report) -> None:
    """Run the loop's iterations on recorded steps, and compare the order of all calls.

    Raises:
        CaseError: if the recording has another structure.
    """
    agent, settings = _learner_agent(case)
    events: list[str] = []
    steps = case.config['iterations'] * case.config['timesteps'] * 2
    images = len(case.config['obs_dims']) > 1
    env = _atari_script(case, steps) if images else _flat_script(case, steps)
    spy_env = Spy(events, env, {'step': 'env.step', 'reset': 'env.reset'})
    world = World(agent, settings, case.seed, spy_env)
    world.buffer = buffer = SpyBuffer(events, world.buffer)
    observation = np.zeros((1, *env.observation_space.shape), env.observation_space.dtype)
    example = {'observations': observation, 'actions': np.zeros((1, *case.config['acts_dims']))}
    real = create_agents(agent, [case.seed], example)[0]
    acts = case.take('transitions/acts').numpy()
    acts = [*acts, *[acts[0]] * (steps - len(acts))]  # those of the unfinished episode
    learner = PlaybackLearner(SpyAgent(events, real), events, acts)
    events.clear()  # the first reset is the constructor's in the original too
    for _ in range(2):
        for _ in range(case.config['iterations']):
            run_iteration(learner, [world])
        events.append('end_of_learn')
    _compare_events(case, report, events)
    counters = (world.steps, buffer.episodes, world.updates, buffer.length, buffer.stored)
    report.compare('state', 'counters', np.array([*counters, buffer.pending]))
    _compare_entries(case, report, buffer.entries[: buffer.stored])
    if case.has('eps_act_at_step'):
        base = base_of(real)
        epsilons = [base.replace(acted=base.acted + i).epsilon().item() for i in range(steps)]
        report.compare('epsilon', 'eps_act_at_step', np.array(epsilons))


def _learner_agent(case):
    """The recording's agent with small networks, and the loop's settings."""
    algorithm = case.config['alg']
    base = case.config.get('basis_alg', algorithm)
    wrapper = {'rrd': rrd, 'ircr': ircr}.get(algorithm)
    config = wrapper.get_config(base) if wrapper else bases.BASES[base].get_config()
    classes = {'rrd': rrd.RRDAgent, 'ircr': ircr.IRCRAgent}
    cls = classes.get(algorithm) or bases.base_class({'basis_alg': base})
    small = {'hidden_dims': (4, 4), 'reward_hidden_dims': (4, 4), 'conv_features': (2, 2, 2)}
    small |= {'dense_dim': 4, 'policy_delay': case.config.get('pi_delay_freq')}
    for key, value in {**case.config, **small}.items():
        if key in config and key != 'basis_alg':
            config[key] = value
    # Wide steps, so that every update of a target shows.
    config.update({key: 0.1 for key in ('q_lr', 'pi_lr') if key in config})
    names = {field.name for field in dataclasses.fields(Settings)} - {'env_name'}
    given = {key: value for key, value in case.config.items() if key in names}
    given['env_name'] = 'Assault' if len(case.config['obs_dims']) > 1 else 'Pendulum-v1'
    return Agent(case.agent, cls, ml_collections.ConfigDict(config)), Settings(**given)


def _flat_script(case, steps):
    """The inner environment of a recording without images, behind the library's wrappers."""
    lengths = case.parsed('toy')['lengths']
    starts, ends, at = [], np.zeros(steps, bool), 0
    limit = case.config['test_timesteps']
    for length in itertools.cycle(lengths):
        starts.append(at)
        at += min(length, limit)
        if at > steps:
            break
        ends[at - 1] = length <= limit
    observations, following = (
        case.take(f'transitions/{name}').numpy() for name in ('obs', 'obs_next')
    )
    missing = np.zeros((steps - len(following), following.shape[1]))
    first = [observations[start] if start < len(observations) else missing[0] for start in starts]
    rewards = case.take('inner_env_reward').numpy()
    high = np.full(case.config['acts_dims'], case.parsed('toy')['high'], np.float32)
    script = ScriptedEnv(
        np.array([*first, missing[0] if len(missing) else first[0]]),
        np.concatenate([following, missing]),
        rewards,
        ends,
        high,
    )
    return dressed(script, limit, case.config['env_type'] == 'ep_rews')


class _SmallScreens(ScriptedGame):
    """A game without a picture, whose steps at the start are free."""

    def __init__(self, rewards, lengths, num_actions, skipped):
        self._wanted = skipped
        super().__init__(None, rewards, lengths, num_actions)

    def reset(self):
        super().reset()
        self._skipped = self._wanted

    def step(self, action):
        self._left -= 1
        if self._skipped:
            self._skipped -= 1
            return 0.0, self._left <= 0
        return next(self._rewards), self._left <= 0

    def screen(self):
        return np.full((HEIGHT, 160, 3), self._left % 256, np.uint8)


def _atari_script(case, steps):
    """An Atari environment whose game pays the recorded rewards.

    With episodic ones that is an episode's at its end; those of the unfinished episode are unknown.
    """
    toy, config = case.parsed('toy'), case.config
    rewards = case.take('transitions/rews').numpy()
    rewards = np.concatenate([rewards, np.zeros(steps - len(rewards))])
    skipped = max(config['noop'], config['frames'])
    game = _SmallScreens(rewards, toy['lengths'], toy['n'], skipped)
    env = AtariEnv(game, config['test_timesteps'], config['noop'], config['frames'])
    env = wrappers.EpisodeMonitor(env)
    return EpisodicRewards(env) if config['env_type'] == 'ep_rews' else env


def _compare_events(case, report, events):
    recorded = [name for name, count in case.parsed('ops') for _ in range(count)]
    for i, (ours, theirs) in enumerate(itertools.zip_longest(events, recorded)):
        if ours != theirs:
            report.fail(f'call {i} is {ours}, recorded {theirs}')
            return


def _compare_entries(case, report, entries):
    columns = {
        'acts': [entry['actions'] for entry in entries],
        'done': [int(1 - entry['masks']) for entry in entries],
        'rews': [float(entry['rewards']) for entry in entries],
    }
    if case.has('transitions/obs'):
        columns['obs'] = [entry['observations'] for entry in entries]
        columns['obs_next'] = [entry['next_observations'] for entry in entries]
    if case.has('transitions/real_done'):
        case.take('transitions/real_done')  # shows in the order of resets and stores
    for name, values in columns.items():
        report.compare('transitions', f'transitions/{name}', np.array(values))


SUBJECTS = {'learner': replay_learner}
