"""Replays recordings of the RRD originals' environments and training order."""

import itertools

import gymnasium
import ml_collections
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import RescaleAction, TimeLimit

from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from purerl.agents.rrd import bases, rrd
from purerl.core import trees
from purerl.envs import wrappers
from purerl.envs.atari import AtariEnv
from purerl.envs.episodic import EpisodicRewards
from purerl.train.config import Agent
from purerl.train.episodic import Learner, Settings, World, run_iteration
from purerl.train.run import create_agents

# --- Environments ---------------------------------------------------------------------------------


class ScriptedEnv(gymnasium.Env):
    """Plays recorded observations, rewards and ends back; notes the actions that it is given."""

    def __init__(self, first, following, rewards, ends, high):
        """Arrays over all steps; `first` are the observations of the episodes' starts, in order."""
        size, num_actions = first.shape[-1], len(high)
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = Box(-high, high, dtype=np.float32)
        assert self.action_space.shape == (num_actions,)
        self._first, self._steps = iter(first), zip(following, rewards, ends, strict=True)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        return next(self._first), {}

    def step(self, action):
        self.actions.append(np.array(action))
        observation, reward, end = next(self._steps)
        return observation, float(reward), bool(end), False, {}


def _dressed(env, limit, episodic):
    """Add what the library's environments of the first domain have around them."""
    env = RescaleAction(TimeLimit(env, limit), np.float32(-1.0), np.float32(1.0))
    env = wrappers.EpisodeMonitor(wrappers.ClipAction(env))
    return EpisodicRewards(env) if episodic else env


def _monitor(env):
    return next(x for x in wrappers.layers(env) if isinstance(x, wrappers.EpisodeMonitor))


def replay_episodic(case: Case, report: Report) -> None:
    """Replay both kinds of rewards in a scripted environment."""
    high = case.take('action_scale').numpy()
    for kind in ('ep_rews', 'normal'):
        report.stage = kind
        names = ('action', 'obs', 'inner_env_reward', 'inner_env_done', 'obs_after_reset')
        action, following, rewards, ends, first = (
            case.take(f'{kind}/{name}').numpy() for name in names
        )
        inner = ScriptedEnv(first, following, rewards, ends, high)
        env = _dressed(inner, case.config['test_timesteps'], kind == 'ep_rews')
        results = {'reward': [], 'done': [], 'info_Steps': [], 'info_Rewards': []}
        env.reset()
        for one in action:
            _, reward, terminated, truncated, _ = env.step(one)
            results['reward'].append(float(reward))
            results['done'].append(int(terminated or truncated))
            results['info_Steps'].append(_monitor(env)._length)
            results['info_Rewards'].append(_monitor(env)._return)
            if terminated or truncated:
                env.reset()
        for name, values in results.items():
            report.compare('env', f'{kind}/{name}', np.array(values))
        report.compare('env', f'{kind}/inner_env_action', np.array(inner.actions))


class ScriptedGame:
    """Plays recorded screens and rewards back: one screen per reset and per step."""

    lives = 0

    def __init__(self, screens, rewards, lengths, num_actions):
        self.num_actions = num_actions
        self._screens, self._rewards = screens, iter(rewards)
        self._lengths = itertools.cycle(lengths)
        self.shown, self.actions = -1, []
        self._left = 0

    def reset(self):
        self.shown += 1
        self._left = next(self._lengths)

    def step(self, action):
        self.shown += 1
        self.actions.append(action)
        self._left -= 1
        return next(self._rewards), self._left <= 0

    def screen(self):
        return np.kron(self._screens[self.shown], np.ones((10, 10, 1), np.uint8))


def replay_atari(case: Case, report: Report) -> None:
    """Replay the Atari preprocessing on scripted screens."""
    names = ('inner_frames_base', 'inner_rewards', 'steps/action')
    screens, rewards, actions = (case.take(name).numpy() for name in names)
    game = ScriptedGame(screens, rewards, case.config['lengths'], int(actions.max()) + 1)
    limit, noop, frames = (case.config[key] for key in ('test_timesteps', 'noop', 'frames'))
    env = EpisodicRewards(wrappers.EpisodeMonitor(AtariEnv(game, limit, noop, frames)))
    results = {name: [] for name in ('reward', 'done', 'info_Steps', 'info_Rewards')}
    results |= {'inner_frame_index': [], 'frame': []}
    resets = 0

    def reset():
        nonlocal resets
        before = len(game.actions)
        observation, _ = env.reset()
        report.compare('env', f'reset{resets}/obs', observation)
        taken = np.array(game.actions[before:])
        report.compare('env', f'reset{resets}/inner_actions', taken)
        if resets == 0:
            report.compare('env', 'reset0/inner_frames_seen', np.array(game.shown + 1))
        resets += 1

    reset()
    for i, action in enumerate(actions):
        observation, reward, terminated, truncated, _ = env.step(action)
        if case.has(f'obs_at/{i}'):
            report.compare('env', f'obs_at/{i}', observation)
        results['reward'].append(float(reward))
        results['done'].append(int(terminated or truncated))
        results['info_Steps'].append(_monitor(env)._length)
        results['info_Rewards'].append(_monitor(env)._return)
        results['inner_frame_index'].append(game.shown)
        results['frame'].append(observation[..., -1])
        if terminated or truncated:
            reset()
    for name, values in results.items():
        report.compare('env', f'steps/{name}', np.array(values))
    report.compare('env', 'inner_actions', np.array(game.actions))


# --- The order of training ------------------------------------------------------------------------


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

    def append(self, transition):
        self._real.append(transition)
        self.entries.append(transition)

    def commit(self):
        self._events.extend(['store'] * self._real.pending)
        self._real.commit()


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
        acted = [real.replace(acted=real.acted + i).epsilon().item() for i in range(steps)]
        report.compare('epsilon', 'eps_act_at_step', np.array(acted))


def _learner_agent(case):
    name = case.config.get('basis_alg', case.config['alg'])
    wrapped = 'basis_alg' in case.config
    config = rrd.get_config(name) if wrapped else bases.BASES[name].get_config()
    cls = rrd.RRDAgent if wrapped else bases.base_class({'basis_alg': name})
    small = {'hidden_dims': (4, 4), 'reward_hidden_dims': (4, 4), 'conv_features': (2, 2, 2)}
    for key, value in {**case.config, **small, 'dense_dim': 4}.items():
        if key in config and key != 'basis_alg':
            config[key] = value
    # Wide steps, so that every update of a target shows.
    config.update({key: 0.1 for key in ('q_lr', 'pi_lr') if key in config})
    fields = ('iterations', 'timesteps', 'buffer_size', 'batch_size', 'warmup', 'train_batches')
    given = {key: case.config[key] for key in (*fields, 'test_timesteps', 'env_type')}
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
    return _dressed(script, limit, case.config['env_type'] == 'ep_rews')


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
        return np.full((210, 160, 3), self._left % 256, np.uint8)


def _atari_script(case, steps):
    """An Atari environment whose game pays an episode's recorded reward at its end."""
    toy, config = case.parsed('toy'), case.config
    rewards = case.take('transitions/rews').numpy()
    if len(rewards) != steps:
        raise CaseError(f'{len(rewards)} rewards for {steps} steps')
    game = _SmallScreens(rewards, toy['lengths'], toy['n'], config['noop'])
    env = AtariEnv(game, config['test_timesteps'], config['noop'], config['frames'])
    return EpisodicRewards(wrappers.EpisodeMonitor(env))


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


SUBJECTS = {
    'env_ep_rews': replay_episodic,
    'env_atari': replay_atari,
    'learner': replay_learner,
}
