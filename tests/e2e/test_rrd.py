"""The launcher of RRD's family: whole runs, interrupted ones, several seeds, refusals."""

import copy
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from interruptions import contents, crash_at

from experiments import collect as collect_launcher
from experiments import evaluate as evaluate_launcher
from experiments import rrd as launcher
from purerl.core import random, trees
from purerl.core.checkpoint import latest_step
from purerl.envs.episodic import make_episodic, options_of
from purerl.train import episodic, episodic_world
from purerl.train.config import RunError, load_agent
from purerl.train.episodic_lanes import lane_seed
from purerl.train.load_run import load_run
from purerl.train.plotting import read_csv

FLAGS = {
    'alg': 'rrd',
    'basis_alg': 'sac',
    'env': 'Pendulum-v1',
    'seed': 3,
    'run_name': 'run',
    'jit': 'off',
    'tqdm': False,
    'tensorboard': False,
    'epochs': 1,
    'cycles': 2,
    'iterations': 3,
    'timesteps': 10,
    'train_batches': 3,
    'test_rollouts': 1,
    'test_timesteps': 12,
    'warmup': 15,
    'batch_size': 8,
    'save_cycles': 1,
    'hidden_dims': '8,8',
    'rrd_batch_size': 8,
    'rrd_sample_size': 4,
    'reward_hidden_dims': '8,8',
}
ATARI = {
    'basis_alg': 'dqn',
    'env': 'Assault',
    'conv_features': '2,2,2',
    'dense_dim': 4,
    'noop': 4,
    'hidden_dims': None,
}
CART_POLE = {'basis_alg': 'dqn', 'env': 'CartPole-v1'}
VARIANTS = {
    'rrd_sac': {'rrd_bias_correction': True},
    'rrd_td3': {'basis_alg': 'td3', 'num_seeds': 2},
    'ircr_sac': {'alg': 'ircr'},
    'ddpg': {'alg': 'ddpg', 'basis_alg': None},
    'rrd_dqn_atari': ATARI,
    'ircr_dqn_atari': {**ATARI, 'alg': 'ircr', 'sticky': True},
}
RRD_ONLY = ('rrd_batch_size', 'rrd_sample_size', 'reward_hidden_dims')


def run(folder, **changes):
    flags = {**FLAGS, 'save_dir': str(folder), **changes}
    if flags['alg'] != 'rrd':
        flags = {name: value for name, value in flags.items() if name not in RRD_ONLY}
    arguments = [f'--{name}={value}' for name, value in flags.items() if value is not None]
    return launcher.main(['rrd', *arguments])


@pytest.mark.parametrize('name', VARIANTS)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, name):
    run(tmp_path / 'whole', **VARIANTS[name])
    whole = contents(tmp_path / 'whole' / 'run')

    # In the middle of an episode, after the first checkpoint.
    with crash_at(episodic.World, 'step', 47 * VARIANTS[name].get('num_seeds', 1)):
        run(tmp_path / 'killed', **VARIANTS[name])
    assert latest_step(tmp_path / 'killed/run/checkpoints') == 30
    run(tmp_path / 'killed', **VARIANTS[name], resume=True)
    assert contents(tmp_path / 'killed' / 'run') == whole


def test_what_a_run_leaves(tmp_path):
    summary = run(tmp_path)
    folder = tmp_path / 'run'
    assert summary == json.loads((folder / 'summary.json').read_text())
    assert summary['step'] == 60
    train = read_csv(folder / 'train.csv')
    # 12 steps are one episode: after 20 steps there are too few, after 30 (24 stored) enough.
    assert list(train['step']) == [30, 60]
    assert {'training/critic_loss', 'training/reward_loss'} <= set(train)
    evaluation = read_csv(folder / 'eval.csv')
    assert list(evaluation['step']) == [30, 60]
    assert list(evaluation['evaluation/episode.length']) == [12, 12]
    episodes = read_csv(folder / 'episodes.csv')
    assert list(episodes['step']) == [12, 24, 36, 48, 60]
    # The records are of the true rewards, not of the sum at the end.
    assert (episodes['training/episode.final_reward'] > episodes['training/episode.return']).all()


@pytest.mark.parametrize('name', ['rrd_sac', 'rrd_dqn_atari'])
def test_a_run_can_be_evaluated_from_its_folder(tmp_path, capsys, name):
    run(tmp_path, **VARIANTS[name])
    argv = ['evaluate', f'--run={tmp_path / "run"}', '--episodes=2']
    evaluate_launcher.main(argv)
    assert 'episode.length: 12' in capsys.readouterr().out


@pytest.mark.parametrize('alg', ['rrd', 'ircr', 'sac'])
def test_agents_collect_with_their_noise(tmp_path, alg):
    run(tmp_path, alg=alg, basis_alg=None if alg == 'sac' else 'sac', cycles=1)
    flags = ['--policy=checkpoint', '--nodeterministic', '--num_transitions=30']
    collect_launcher.main(
        ['x', *flags, f'--checkpoint={tmp_path / "run"}', f'--path={tmp_path / "data.hdf5"}']
    )
    actions = [load_run(tmp_path / 'run').policy(explore=e) for e in (False, True)]
    keys = [random.key(i) for i in range(2)]
    same, noisy = ([act(np.zeros(3, np.float32), key) for key in keys] for act in actions)
    assert same[0] == same[1] and noisy[0] != noisy[1]


def test_a_buffer_of_episodes_is_not_exported(tmp_path):
    run(tmp_path, cycles=1)
    flags = ['--policy=replay', f'--checkpoint={tmp_path / "run"}', f'--path={tmp_path}/x.hdf5']
    with pytest.raises(RunError, match='no replay buffer that can be exported; runs of'):
        collect_launcher.main(['x', *flags])


def test_names_tell_a_base_from_what_is_around_it():
    files = ('sac.py', 'rrd.py:sac', 'ircr.py:sac')
    names = [load_agent(f'{launcher.FOLDER}/{file}').name for file in files]
    assert names == ['sac', 'rrd_sac', 'ircr_sac']


def test_games_are_evaluated_as_the_run_tests_them(tmp_path):
    """With `test_eps` random actions."""
    run(tmp_path, **ATARI, cycles=1, iterations=1, warmup=0, test_eps=1.0)
    trained = load_run(tmp_path / 'run')
    observation = np.zeros((84, 84, 4), np.uint8)
    acts = [int(trained.policy()(observation, random.key(i))) for i in range(20)]
    assert set(acts) == set(range(7))
    trained.flags['test_eps'] = 0.0
    assert len({int(trained.policy()(observation, random.key(i))) for i in range(20)}) == 1


@pytest.mark.parametrize('basis_alg, num_envs', [('sac', 1), ('td3', 1), ('sac', 2)])
def test_several_seeds_are_single_runs(tmp_path, basis_alg, num_envs):
    flags = {'basis_alg': basis_alg, 'num_envs': num_envs}
    run(tmp_path / 'both', **flags, num_seeds=2)
    for i, seed in enumerate((3, 4)):
        run(tmp_path / str(seed), **flags, seed=seed)
        for name in ('eval', 'train'):
            both = read_csv(tmp_path / f'both/run/seed_{i:03d}/{name}.csv')
            single = read_csv(tmp_path / f'{seed}/run/{name}.csv')
            assert both.keys() == single.keys()
            for key, column in single.items():
                np.testing.assert_allclose(both[key], column, rtol=1e-5, atol=1e-6)


def wrap(monkeypatch, wrapper):
    """Have the loop make its environments in a wrapper, which may look at their `seed`."""
    make_env = episodic.Settings.make_env

    def make_wrapped(self, seed=None):
        env = wrapper(make_env(self, seed))
        env.seed = seed
        return env

    monkeypatch.setattr(episodic.Settings, 'make_env', make_wrapped)


class Uneven(gymnasium.Wrapper):
    """Ends episodes after 5 steps, or after 9 for seed 4."""

    seed = None

    def reset(self, **kwargs):
        self.left = 9 if self.seed == 4 else 5
        return self.env.reset(**kwargs)

    def step(self, action):
        observation, reward, _, truncated, info = self.env.step(action)
        self.left -= 1
        info['episode'] = {'return': 0.0, 'length': 1}
        return observation, reward, self.left == 0, truncated, info


@pytest.mark.parametrize('train_batches', [1, 3])
def test_seeds_that_get_ready_apart_learn_apart(tmp_path, monkeypatch, train_batches):
    """Policies are delayed, and both seeds start learning in another iteration."""
    wrap(monkeypatch, Uneven)
    flags = {'basis_alg': 'td3', 'warmup': 5, 'timesteps': 8, 'iterations': 1, 'cycles': 6}
    flags['train_batches'] = train_batches  # one: a cycle has policies' losses of one seed only
    run(tmp_path / 'both', **flags, num_seeds=2)
    both = load_run(tmp_path / 'both/run')
    updates = [world['counts'][1] for world in both.state]
    assert updates[0] != updates[1]
    for i, seed in enumerate((3, 4)):
        run(tmp_path / str(seed), **flags, seed=seed)
        single = load_run(tmp_path / f'{seed}/run')
        assert single.state[0]['counts'][1] == updates[i]
        tables = (f'both/run/seed_{i:03d}/train.csv', f'{seed}/run/train.csv')
        steps = [list(read_csv(tmp_path / table)['step']) for table in tables]
        assert steps[0] == steps[1]  # a cycle in which one seed has not begun counts for the other
        pairs = zip(trees.leaves(both.agents[i]), trees.leaves(single.agents[0]), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# --- Several environments at a time ---------------------------------------------------------------

THREE = {'num_envs': 3, 'timesteps': 12, 'test_timesteps': 10}
LANES = {
    'rrd_sac': THREE,
    'ircr_td3': {**THREE, 'alg': 'ircr', 'basis_alg': 'td3'},
    'sac': {**THREE, 'alg': 'sac', 'basis_alg': None},
    'rrd_dqn': {**THREE, 'basis_alg': 'dqn', 'env': 'CartPole-v1', 'test_timesteps': 30},
    'rrd_dqn_atari': {**ATARI, 'num_envs': 2},
}


@pytest.mark.parametrize('name', LANES)
def test_each_lane_is_an_environment_of_its_own(tmp_path, monkeypatch, name):
    entries, remember = {}, episodic.World._remember

    def note(self, entry, lane):
        entries.setdefault(lane, []).append(copy.deepcopy(entry))
        remember(self, entry, lane)

    monkeypatch.setattr(episodic.World, '_remember', note)
    run(tmp_path, **LANES[name])
    trained = load_run(tmp_path / 'run')
    assert len(entries) == LANES[name]['num_envs']
    episodes = []
    for lane, transitions in entries.items():
        seed, episode = lane_seed(trained.flags['seed'], lane), []
        env = make_episodic(trained.flags['env_name'], seed, **options_of(trained.flags))
        observation, _ = env.reset()
        for i, entry in enumerate(transitions):
            following, reward, terminated, truncated, _ = env.step(entry['actions'])
            np.testing.assert_array_equal(entry['observations'], observation)
            np.testing.assert_array_equal(entry['next_observations'], following)
            end = terminated or (truncated and following.ndim == 3)
            assert (entry['rewards'], entry['masks']) == (reward, float(not end))
            episode.append(entry['actions'])
            observation = following
            if terminated or truncated:
                episodes.append((i, lane, episode))
                observation, episode = env.reset()[0], []
    # The buffer holds the episodes in the order in which they have ended.
    buffer = trained.state[0]['buffer']
    held = buffer['buffer']['arrays/actions'] if 'buffer' in buffer else buffer['arrays']['actions']
    episodes.sort(key=lambda episode: episode[:2])
    np.testing.assert_array_equal(held, np.concatenate([episode[2] for episode in episodes]))


@pytest.mark.parametrize(
    'name, mode', [(n, 'sync') for n in LANES] + [('rrd_dqn', 'async'), ('rrd_dqn_atari', 'async')]
)
def test_killed_runs_of_several_environments_go_on_bit_for_bit(tmp_path, name, mode):
    run(tmp_path / 'whole', **LANES[name])
    whole = contents(tmp_path / 'whole/run')
    # In the middle of episodes; so was the checkpoint.
    with crash_at(episodic.World, 'step', 17):
        run(tmp_path / 'killed', **LANES[name], vectorization_mode=mode)
    assert latest_step(tmp_path / 'killed/run/checkpoints') in (30, 36)
    run(tmp_path / 'killed', **LANES[name], vectorization_mode=mode, resume=True)
    assert contents(tmp_path / 'killed/run') == whole


def test_an_environment_whose_process_is_killed_ends_the_run_with_one_error(tmp_path, monkeypatch):
    made = []
    make_lanes = episodic_world.make_lanes
    monkeypatch.setattr(
        episodic_world, 'make_lanes', lambda *args: made.append(make_lanes(*args)) or made[-1]
    )
    monkeypatch.setattr(episodic_world.World, 'count', lambda *_: made[0].processes[1].kill())
    flags = {'basis_alg': 'dqn', 'env': 'CartPole-v1', 'num_envs': 2, 'timesteps': 12}
    with pytest.raises(RunError, match=r'step \d+: the process of one of the 2'):
        run(tmp_path, **flags, warmup=12, vectorization_mode='async')


def test_steps_and_updates_do_not_depend_on_the_number_of_environments(tmp_path):
    flags = {'basis_alg': 'dqn', 'env': 'CartPole-v1', 'timesteps': 12, 'test_timesteps': 4}
    for num_envs in (1, 3):
        run(tmp_path / str(num_envs), **flags, warmup=12, num_envs=num_envs)
        trained = load_run(tmp_path / f'{num_envs}/run')
        assert trained.state[0]['counts'] == (72, 18) and trained.agents[0].base.acted == 72
    for name in ('train', 'eval', 'episodes'):
        one, three = (read_csv(tmp_path / f'{n}/run/{name}.csv') for n in (1, 3))
        assert len(one['step']) == len(three['step'])
    assert list(three['step'])[:4] == [10, 11, 12, 22]


def test_a_run_goes_on_with_the_same_number_of_environments(tmp_path):
    run(tmp_path, **THREE)
    with pytest.raises(RunError, match='was started with --num_envs=3, not 2'):
        run(tmp_path, **{**THREE, 'num_envs': 2}, resume=True)


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'alg': 'sac', 'basis_alg': None, 'env': 'CartPole-v1'}, 'needs continuous actions'),
        ({'alg': 'dqn', 'basis_alg': None}, 'needs discrete actions'),
        ({'basis_alg': 'dqn'}, 'needs discrete actions'),
        ({'basis_alg': 'a2c'}, "basis_alg must be dqn, ddpg, td3, sac, got 'a2c'"),
        ({'alg': 'sac'}, '--basis_alg=sac belongs to --alg=rrd or --alg=ircr'),
        ({'rrd_sample_size': 20, 'rrd_batch_size': 20}, 'longer than any episode'),
        ({'rrd_sample_size': 1, 'rrd_bias_correction': True}, 'rrd_sample_size=1 is too short'),
        ({'rrd_batch_size': 3}, 'rrd_batch_size=3 has no room'),
        ({'env': 'Asault', 'basis_alg': 'dqn'}, 'the nearest names are Assault'),
        ({'env_type': 'sparse'}, 'env_type'),
        ({**ATARI, 'test_eps': 2}, 'test_eps must be at most 1, not 2'),
        ({'num_envs': 0}, 'num_envs must be at least 1, not 0'),
        ({'num_envs': -2}, 'num_envs must be at least 1, not -2'),
        ({'num_envs': 3}, 'timesteps=10 is no multiple of num_envs=3'),
        ({'num_envs': 2, 'vectorization_mode': 'threads'}, 'vectorization_mode'),
        ({**CART_POLE, 'eps_decay': 0}, 'eps_decay=0 must be at least 1'),
        ({**CART_POLE, 'hidden_dims': '8,8,8'}, r'hidden_dims=\(8, 8, 8\) must be 2 widths'),
        ({'hidden_dims': '8,8,8'}, r'hidden_dims=\(8, 8, 8\) must be 2 widths'),
        ({'basis_alg': 'td3', 'hidden_dims': '8,'}, r'hidden_dims=\(8,\) must be 2 widths'),
        ({'basis_alg': 'ddpg', 'hidden_dims': '8,'}, r'hidden_dims=\(8,\) must be 2 widths'),
        ({'reward_hidden_dims': '8,8,8'}, r'reward_hidden_dims=\(8, 8, 8\) must be 2 widths'),
        ({**ATARI, 'conv_features': '2,2'}, r'conv_features=\(2, 2\) must be 3 widths'),
        ({'seed': 5_000_000_000}, 'must be at most 4294967295, not 5000000000'),
        ({'seed': 2**32 - 1, 'num_seeds': 2}, r'seed \+ num_seeds - 1 must be at most 4294967295'),
        ({'env': 'Ant-v2'}, 'gymnasium has no Ant-v2: --env=Ant-v5 is its successor'),
        ({'sticky': True}, '--sticky is for Atari games .* Pendulum-v1 is none'),
        ({**CART_POLE, 'frames': 2}, '--frames is for Atari games .* CartPole-v1 is none'),
        ({'env': ''}, "unknown environment ''"),
        ({**CART_POLE, 'eps_l': 2}, 'agent.eps_l must lie between 0 and 1, not 2'),
        ({'basis_alg': 'td3', 'std_act': -1}, 'agent.std_act must be at least 0, not -1'),
        ({'tag': 'x'}, '--tag of the original is left out: --run_name'),
        ({'save_rews': True}, '--save_rews of the original is left out'),
        ({'optimizer': 'adam'}, '--optimizer=adam belongs to DQN .* not to sac'),
        ({'alg': 'td3', 'basis_alg': None, 'optimizer': 'rmsprop'}, 'belongs to DQN .* not to td3'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / 'run').exists()


def test_a_run_that_ends_before_its_warmup_says_so(tmp_path, capsys):
    run(tmp_path, warmup=61)
    assert 'with warmup=61 nothing is learnt' in capsys.readouterr().err


def test_a_run_none_of_whose_episodes_ends_in_time_says_so(tmp_path, capsys):
    run(tmp_path, warmup=0, cycles=1, iterations=1)  # ten steps, and episodes have twelve
    error = capsys.readouterr().err
    assert 'nothing was learnt: of the 10 steps 0 are of episodes that have ended' in error
    assert not (tmp_path / 'run/train.csv').exists()


class Counts(gymnasium.Env):
    """Observes whole numbers."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dtype='int64', render_mode=None):
        self.observation_space = gymnasium.spaces.Box(0, 200, (2,), dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(2, 100, self.observation_space.dtype), {}

    def step(self, action):
        return self.reset()[0], 1.0, False, False, {}


@pytest.mark.parametrize('dtype', ['int64', 'uint8', 'float16'])
def test_vectors_of_whole_numbers_are_no_pixels(tmp_path, monkeypatch, dtype):
    spec = EnvSpec('Counts-v0', entry_point=Counts, kwargs={'dtype': dtype})
    monkeypatch.setitem(gymnasium.registry, 'Counts-v0', spec)
    run(tmp_path, alg='dqn', basis_alg=None, env='Counts-v0')
    trained = load_run(tmp_path / 'run')
    observation, _ = trained.make_env(seed=0).reset()
    np.testing.assert_array_equal(observation, np.float32([100, 100]))
    assert (trained.examples['observations'].dtype, observation.dtype) == (torch.float32, 'float32')


@pytest.mark.parametrize('flag, nearest', [('pi_lrr=3', 'pi_lr'), ('nowarmups', 'warmup')])
def test_misspelt_flags_are_told_with_the_nearest(flag, nearest):
    with pytest.raises(RunError, match=f'unknown flag --{flag.split("=")[0]}; .* --{nearest}$'):
        launcher.translate(['rrd', '--alg=td3', f'--{flag}'])


def test_other_flags_are_no_misspelt_ones():
    flags = ['--nodevice_replay', '--notqdm', '--agent.policy_delay=3', '--verbosity=1']
    assert launcher.translate(['rrd', '--alg=td3', *flags])[2:] == flags


class Images(gymnasium.Env):
    """Colour images, with discrete or continuous actions."""

    def __init__(self, continuous=False, render_mode=None):
        box = gymnasium.spaces.Box
        self.observation_space = box(0, 255, (84, 84, 3), np.uint8)
        self.action_space = box(-1, 1, (2,)) if continuous else gymnasium.spaces.Discrete(3)


@pytest.mark.parametrize(
    'alg, env',
    [
        ('dqn', 'Colours-v0'),
        ('dqn', 'FrozenLake-v1'),
        ('dqn', 'Blackjack-v1'),
        ('sac', 'ColoursContinuous-v0'),
    ],
)
def test_observations_that_no_agent_takes_are_refused(tmp_path, monkeypatch, alg, env):
    for name, continuous in (('Colours-v0', False), ('ColoursContinuous-v0', True)):
        spec = EnvSpec(name, entry_point=Images, kwargs={'continuous': continuous})
        monkeypatch.setitem(gymnasium.registry, name, spec)
    with pytest.raises(RunError, match=r'needs a Box with one axis, .* images are those of Atari'):
        run(tmp_path, alg=alg, basis_alg=None, env=env)
    assert not (tmp_path / 'run').exists()


def test_flag_files_and_the_originals_names_are_read(tmp_path):
    (tmp_path / 'flags').write_text('--alg=td3\n--pi_delay_freq=3\n--env=Hopper-v5\n')
    flags = launcher.translate(['rrd', f'--flagfile={tmp_path / "flags"}', '--epochs=1'])
    agent = '--agent=purerl/agents/rrd/td3.py'
    expected = [agent, '--env_name=Hopper-v5', '--agent.policy_delay=3', '--epochs=1']
    assert flags == ['rrd', *expected]


def test_an_agent_of_another_loop_is_refused(tmp_path):
    agent = load_agent('purerl/agents/jaxrl5/sac.py')
    with pytest.raises(RunError, match='does not train on whole episodes'):
        episodic.train(agent, episodic.Settings(save_dir=str(tmp_path)))


@pytest.mark.parametrize('reward', [float('nan'), float('inf')])
def test_rewards_that_are_not_finite_end_the_run_and_keep_its_data(tmp_path, monkeypatch, reward):

    class Broken(gymnasium.Wrapper):
        def step(self, action):
            observation, paid, terminated, truncated, info = self.env.step(action)
            self.steps = getattr(self, 'steps', 0) + 1
            return observation, reward if self.steps == 40 else paid, terminated, truncated, info

    wrap(monkeypatch, Broken)
    with pytest.raises(
        RunError, match=r'Pendulum-v1, step 40: the reward (nan|inf) is not a finite'
    ):
        run(tmp_path)
    assert latest_step(tmp_path / 'run/checkpoints') == 30
    assert list(read_csv(tmp_path / 'run/eval.csv')['step']) == [30]


def test_an_environment_that_never_ends_an_episode_ends_the_run(tmp_path, monkeypatch):

    class Endless(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, _, _, info = self.env.step(action)
            return observation, reward, False, False, info

    wrap(monkeypatch, Endless)
    with pytest.raises(RunError, match='step 13: an episode has not ended after 12 steps'):
        run(tmp_path)


@pytest.mark.parametrize('num_envs', [1, 2])
def test_compiled_runs_equal_eager_ones(tmp_path, num_envs):
    run(tmp_path / 'eager', num_envs=num_envs)
    run(tmp_path / 'traced', num_envs=num_envs, jit='trace')
    for name in ('train', 'eval'):
        eager, traced = (read_csv(tmp_path / f'{x}/run/{name}.csv') for x in ('eager', 'traced'))
        for key, column in eager.items():
            np.testing.assert_allclose(traced[key], column, rtol=1e-5, atol=1e-6)
