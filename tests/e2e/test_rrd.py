"""The launcher of RRD's family: whole runs, interrupted ones, several seeds, refusals."""

import json

import gymnasium
import numpy as np
import pytest

from experiments import evaluate as evaluate_launcher
from experiments import rrd as launcher
from purerl.core import jit, trees
from purerl.core.checkpoint import latest_step
from purerl.train import episodic
from purerl.train.config import RunError, load_agent
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
VARIANTS = {
    'rrd_sac': {'rrd_bias_correction': True},
    'rrd_td3': {'basis_alg': 'td3'},
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


def contents(folder):
    """Everything that a run determines: its records and its last checkpoint."""
    files = [*sorted(folder.rglob('*.csv')), *sorted((folder / 'checkpoints').glob('*'))]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if file.name != 'timing.csv'
    }


class Crash(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize('name', VARIANTS)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, name):
    run(tmp_path / 'whole', **VARIANTS[name])
    whole = contents(tmp_path / 'whole' / 'run')

    step, calls = episodic.World.step, 0

    def crash(self, action):
        nonlocal calls
        calls += 1
        if calls == 47:  # in the middle of an episode, after the first checkpoint
            raise Crash
        return step(self, action)

    with monkeypatch.context() as patched:
        patched.setattr(episodic.World, 'step', crash)
        with pytest.raises(Crash):
            run(tmp_path / 'killed', **VARIANTS[name])
    assert latest_step(tmp_path / 'killed/run/checkpoints') == 30
    run(tmp_path / 'killed', **VARIANTS[name], resume=True)
    resumed = contents(tmp_path / 'killed' / 'run')
    assert resumed == whole


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


@pytest.mark.parametrize('alg, basis_alg', [('rrd', 'sac'), ('rrd', 'td3')])
def test_several_seeds_are_single_runs(tmp_path, alg, basis_alg):
    flags = {'alg': alg, 'basis_alg': basis_alg, 'train_batches': 3}
    run(tmp_path / 'both', **flags, num_seeds=2)
    for i, seed in enumerate((3, 4)):
        run(tmp_path / str(seed), **flags, seed=seed)
        both = read_csv(tmp_path / f'both/run/seed_{i:03d}/eval.csv')
        single = read_csv(tmp_path / f'{seed}/run/eval.csv')
        for key, column in single.items():
            np.testing.assert_allclose(both[key], column, rtol=1e-4)


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


def test_seeds_that_get_ready_apart_learn_apart(tmp_path, monkeypatch):
    """Policies are delayed, and both seeds start learning in another iteration."""
    wrap(monkeypatch, Uneven)
    flags = {'basis_alg': 'td3', 'warmup': 5, 'timesteps': 8}
    run(tmp_path / 'both', **flags, num_seeds=2)
    both = load_run(tmp_path / 'both/run')
    updates = [world['counts'][1] for world in both.state]
    assert updates[0] != updates[1]
    for i, seed in enumerate((3, 4)):
        run(tmp_path / str(seed), **flags, seed=seed)
        single = load_run(tmp_path / f'{seed}/run')
        assert single.state[0]['counts'][1] == updates[i]
        pairs = zip(trees.leaves(both.agents[i]), trees.leaves(single.agents[0]), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


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
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / 'run').exists()


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


def test_compiled_runs_equal_eager_ones(tmp_path):
    run(tmp_path / 'eager')
    run(tmp_path / 'traced', jit='trace')
    for name in ('train', 'eval'):
        eager, traced = (read_csv(tmp_path / f'{x}/run/{name}.csv') for x in ('eager', 'traced'))
        for key, column in eager.items():
            np.testing.assert_allclose(traced[key], column, rtol=1e-4)
    assert jit.get_mode() != 'inductor'
