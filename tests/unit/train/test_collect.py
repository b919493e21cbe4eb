"""Collected datasets: layout, determinism, and that the loaders read them."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from experiments import collect as launcher
from purerl.core import random
from purerl.data import d4rl, ogbench
from purerl.envs.make import make
from purerl.train import collect as collect_module
from purerl.train import offline, online
from purerl.train.collect import (
    collect,
    collect_episodes,
    collect_from_run,
    collect_oracle_episodes,
    random_policy,
    to_d4rl,
    to_ogbench,
)
from purerl.train.config import RunError, load_agent
from purerl.train.evaluation import policy_of
from purerl.train.load_run import load_run


class Counter(gymnasium.Env):
    """Observes the step's index; terminates after three steps; mutates one observation buffer."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer = np.zeros(1, dtype=np.float32)
        return self.buffer, {}

    def step(self, action):
        self.buffer += 1
        return self.buffer, float(self.buffer[0]), bool(self.buffer[0] == 3), False, {}


def constant(observation, key):
    return np.full(2, 0.5, dtype=np.float32)


def test_ogbench_rows_are_states_and_the_last_one_has_no_action():
    arrays = to_ogbench(collect_episodes(Counter(), constant, random.key(0), num_transitions=5))
    np.testing.assert_array_equal(arrays['observations'][:, 0], [0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(arrays['terminals'], [0, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(arrays['actions'][:, 0], [0.5, 0.5, 0.5, 0, 0.5, 0.5, 0])
    assert {key: value.dtype for key, value in arrays.items()} == {
        'observations': np.float32,
        'actions': np.float32,
        'terminals': bool,
    }


def test_d4rl_rows_are_transitions_with_terminations_and_timeouts_apart():
    arrays = to_d4rl(collect_episodes(Counter(), constant, random.key(0), num_transitions=5))
    np.testing.assert_array_equal(arrays['observations'][:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(arrays['next_observations'][:, 0], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(arrays['rewards'], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(arrays['terminals'], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(arrays['timeouts'], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(arrays['actions'], np.full((5, 2), 0.5))


def test_the_policy_gets_the_chain_of_keys():
    keys = []

    def policy(observation, key):
        keys.append(key.tolist())
        return np.zeros(2, dtype=np.float32)

    collect_episodes(Counter(), policy, random.key(3), num_episodes=2)
    key, expected = random.key(3), []
    for _ in range(6):
        key, used = random.split(key)
        expected.append(used.tolist())
    assert keys == expected


@pytest.mark.parametrize('sizes', [{}, {'num_episodes': 1, 'num_transitions': 1}])
def test_exactly_one_size_is_needed(sizes):
    with pytest.raises(ValueError, match='either'):
        collect_episodes(Counter(), constant, random.key(0), **sizes)
    with pytest.raises(ValueError, match='either'):
        collect('Hopper-v5', 'x.npz', policy='random', **sizes)


def test_a_size_must_be_positive():
    with pytest.raises(ValueError, match='must be positive'):
        collect_episodes(Counter(), constant, random.key(0), num_episodes=0)


def test_mujoco_states_reproduce_the_observations():
    env = make('HalfCheetah-v5')
    episodes = collect_episodes(env, random_policy(env), random.key(0), num_transitions=12, seed=1)
    arrays = to_d4rl(episodes)
    # HalfCheetah observes all positions but the first, and all velocities.
    states = np.concatenate([arrays['infos/qpos'][:, 1:], arrays['infos/qvel']], axis=1)
    np.testing.assert_array_equal(arrays['observations'], states.astype(np.float32))


def test_random_datasets_are_written_read_and_the_same_for_the_same_seed(tmp_path):
    def run(name, seed):
        paths = collect(
            'Hopper-v5', tmp_path / name, policy='random', num_transitions=120, seed=seed
        )
        assert [path.name for path in paths] == [name, name.replace('.hdf5', '-val.hdf5')]
        return d4rl.read(paths[0]), d4rl.read(paths[1])

    train, val = run('a.hdf5', 1)
    assert (len(train['rewards']), len(val['rewards'])) == (120, 12)
    assert d4rl.load(tmp_path / 'a.hdf5')['observations'].shape[1] == 11
    again, val_again = run('b.hdf5', 1)
    for key in train:
        np.testing.assert_array_equal(train[key], again[key])
        np.testing.assert_array_equal(val[key], val_again[key])
    other, _ = run('c.hdf5', 2)
    assert (train['observations'] != other['observations']).any()
    # Neither is the validation data of one seed the training data of the next.
    assert (val['observations'] != other['observations'][:12]).any()


def test_a_policy_is_called(tmp_path):
    collect('Pendulum-v1', tmp_path / 'p.hdf5', policy=lambda o, key: np.ones(1), num_episodes=1)
    np.testing.assert_array_equal(d4rl.read(tmp_path / 'p.hdf5')['actions'], np.ones((200, 1)))


@pytest.mark.parametrize(
    ('env_name', 'dataset_type', 'has_buttons'),
    [
        ('cube-double-v0', 'noisy', False),
        ('scene-v0', 'noisy', True),
        ('puzzle-3x3-v0', 'play', True),
    ],
)
def test_oracles_act_and_are_determined_by_the_seed(env_name, dataset_type, has_buttons):
    before = np.random.get_state()[1].copy()
    first, again, other = (
        to_ogbench(collect_oracle_episodes(env_name, dataset_type, 1, seed, episode_length=15))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert ('button_states' in first) == has_buttons
    assert len(first['observations']) == 16
    assert np.abs(first['actions'][:-1]).max(axis=1).min() > 0
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert (first['actions'] != other['actions']).any()


@pytest.mark.parametrize(
    ('dataset_type', 'option', 'value'),
    [
        ('play', 'noise', 0.0),
        ('play', 'noise_smoothing', 3.0),
        ('noisy', 'min_norm', 0.9),
        ('play', 'p_random_action', 1.0),
    ],
)
def test_the_oracles_options_are_flags(tmp_path, dataset_type, option, value):
    flags = [f'--dataset_type={dataset_type}', '--num_episodes=1', '--episode_length=8']
    launcher.main(['collect', *flags, f'--path={tmp_path}/usual.npz'])
    launcher.main(['collect', *flags, f'--{option}={value}', f'--path={tmp_path}/other.npz'])
    usual, other = (ogbench.load(tmp_path / f'{name}.npz') for name in ('usual', 'other'))
    assert (usual['actions'] != other['actions']).any()


def test_a_scene_whose_cube_ends_out_of_sight_is_collected_again(monkeypatch):
    qpos = np.zeros((3, 17))
    hidden = qpos.copy()
    hidden[-1, 15] = 0.3
    episodes = iter([{'qpos': hidden}, {'qpos': qpos}])
    monkeypatch.setattr(collect_module, '_run_oracles', lambda *args, **kwargs: next(episodes))
    (episode,) = collect_oracle_episodes('scene-v0', 'play', 1)
    assert episode['qpos'] is qpos


def test_a_plan_oracle_moves_the_cube():
    (episode,) = collect_oracle_episodes('cube-single-v0', 'play', 1, seed=0, episode_length=120)
    cube = episode['qpos'][:, 14:17]
    assert cube[:, 2].max() > 0.08  # metres above the table; at rest its centre is at 0.02
    assert np.linalg.norm(cube[-1, :2] - cube[0, :2]) > 0.03


def test_oracle_datasets_load_with_the_rewards_of_a_single_task(tmp_path):
    path = tmp_path / 'cube-single-play-v0.npz'
    collect('cube-single-play-singletask-v0', path, num_transitions=25, episode_length=15)
    train, val = ogbench.load_pair(path, env_name='cube-single-singletask-v0')
    assert (len(train['actions']), len(val['actions'])) == (25, 2)
    assert set(np.unique(train['rewards'])) <= {-1.0, 0.0}
    np.testing.assert_array_equal(np.flatnonzero(train['terminals']), [14, 24])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('Hopper-v5', 'x.npz'), 'no scripted oracle for Hopper-v5'),
        (('antmaze-medium-v0', 'x.npz'), 'no scripted oracle for antmaze-medium-v0'),
        (('cube-single-v0', 'x.csv'), "must end in '.npz'"),
        (('cube-single-v0', 'x.npz', 'oracle', 'plaid'), "'play' or 'noisy', not 'plaid'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        collect(*arguments, num_episodes=1)


def test_the_launcher_writes_both_files(tmp_path):
    path = tmp_path / 'pendulum.npz'
    # In a process of its own, because absl's flags are one set per process.
    command = [sys.executable, '-m', 'experiments.collect', '--env_name=Pendulum-v1']
    command += ['--policy=random', '--num_episodes=2', f'--path={path}']
    result = subprocess.run(
        command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == ['wrote', str(path), 'wrote', f'{tmp_path}/pendulum-val.npz']
    assert len(ogbench.load(path)['actions']) == 400
    assert len(ogbench.load(f'{tmp_path}/pendulum-val.npz')['actions']) == 200


def test_a_path_may_begin_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flags = ['--env_name=Pendulum-v1', '--policy=random', '--num_transitions=10']
    launcher.main(['collect', *flags, '--path=~/data/pendulum.npz'])
    assert (tmp_path / 'data' / 'pendulum-val.npz').is_file()


def test_the_launcher_ends_mistakes_with_one_line(tmp_path):
    def main(**flags):
        return launcher.main(['collect', *(f'--{name}={value}' for name, value in flags.items())])

    with pytest.raises(RunError, match=r'where to\?'):
        main(num_episodes=1)
    with pytest.raises(RunError, match='go together'):
        main(path='x.npz', num_episodes=1, policy='checkpoint')
    with pytest.raises(RunError, match='go together'):
        main(path='x.npz', num_episodes=1, checkpoint=tmp_path)
    with pytest.raises(RunError, match='takes --num_transitions, not'):
        main(path='x.hdf5', num_episodes=1, policy='replay', checkpoint=tmp_path)
    with pytest.raises(RunError, match='either a number of episodes'):
        main(path='x.npz')
    with pytest.raises(RunError, match=r'flags.json cannot be read'):
        main(path='x.npz', num_episodes=1, policy='checkpoint', checkpoint=tmp_path)


@pytest.mark.parametrize('name', ['file/data.npz', 'folder.npz'])
def test_a_place_that_cannot_be_written_is_refused_before_collecting(tmp_path, monkeypatch, name):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.npz').mkdir()
    monkeypatch.setattr(collect_module, 'make', None)
    flags = ['--env_name=Pendulum-v1', '--policy=random', '--num_episodes=1']
    with pytest.raises(RunError, match='choose another --path'):
        launcher.main(['collect', *flags, f'--path={tmp_path / name}'])


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    flags = ['--env_name=Pendulum-v1', '--policy=random', '--num_transitions=2']
    paths = launcher.main(['collect', *flags, '--path=~/data.hdf5'])
    assert paths[0] == tmp_path / 'data.hdf5'


# --- Trained agents ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def online_run(tmp_path_factory):
    """Two seeds in a MuJoCo environment, with a checkpoint at steps 8 and 16."""
    folder = tmp_path_factory.mktemp('online')
    settings = online.Settings(
        env_name='InvertedPendulum-v5', save_dir=str(folder), run_name='run', seed=3, num_seeds=2,
        max_steps=16, start_training=8, batch_size=4, save_interval=8, keep_checkpoints=0,
        eval_interval=0, log_interval=0, jit='off', tqdm=False, tensorboard=False,
    )  # fmt: skip
    agent = load_agent('purerl/agents/jaxrl5/sac.py', {'hidden_dims': (8,)})
    online.train(agent, settings)
    return folder / 'run'


@pytest.fixture(scope='module')
def offline_run(tmp_path_factory):
    """An agent of OGBench's cube, which sees two normalised frames."""
    folder = tmp_path_factory.mktemp('offline')
    path = folder / 'cube-single-play-v0.npz'
    collect('cube-single-v0', path, num_episodes=2, episode_length=12)
    settings = offline.Settings(
        env_name='cube-single-play-singletask-v0', pretraining_dataset=str(path),
        save_dir=str(folder), run_name='run', pretraining_steps=1, finetuning_steps=1,
        frame_stack=2, eval_interval=0, log_interval=0, jit='off', tqdm=False, tensorboard=False,
    )  # fmt: skip
    changes = {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,), 'batch_size': 4}
    offline.train(load_agent('purerl/agents/infom/rebrac.py', changes), settings)
    return folder / 'run'


def test_a_trained_agent_collects_in_d4rls_format(online_run, tmp_path):
    paths = collect_from_run(online_run, tmp_path / 'a.hdf5', num_transitions=20, seed=1)
    train, val = (d4rl.read(path) for path in paths)
    assert (len(train['rewards']), len(val['rewards'])) == (20, 2)
    trained = load_run(online_run)
    assert (trained.step, list(trained.seeds)) == (16, [3, 4])
    policy = policy_of(trained.agents[0])
    for observation, action in zip(train['observations'], train['actions'], strict=True):
        np.testing.assert_array_equal(action, policy(observation, None))
    assert d4rl.load(paths[0])['observations'].shape[1] == 4


def test_the_checkpoint_the_seed_and_the_noise_are_chosen(online_run, tmp_path):
    def run(name, **options):
        paths = collect_from_run(online_run, tmp_path / name, num_transitions=12, **options)
        return d4rl.read(paths[0])

    first, again = run('a.hdf5', seed=1), run('b.hdf5', seed=1)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    for name, options in {
        'c.hdf5': {'step': 8},
        'd.hdf5': {'trained_seed': 4},
        'e.hdf5': {'deterministic': False},
    }.items():
        other = run(name, seed=1, **options)
        np.testing.assert_array_equal(other['observations'][0], first['observations'][0])
        assert (other['actions'][0] != first['actions'][0]).any()
    noisy = [run(f'{seed}.hdf5', seed=seed, deterministic=False)['actions'] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    policy = load_run(online_run).policy()
    assert (noisy[0] != noisy[2]).all()
    assert np.abs(noisy[0]).max() <= 1
    assert policy(np.zeros(4, np.float32), None).shape == (1,)


def test_a_trained_agent_collects_in_ogbenchs_format(offline_run, tmp_path):
    path = tmp_path / 'cube-single-play-ft-v0.npz'
    collect_from_run(offline_run, path, num_transitions=12, seed=2)
    raw = ogbench.read(path)
    # Single frames, 28 wide, for the loader to stack; the last row has no action.
    assert raw['observations'].shape == (13, 28)
    trained = load_run(offline_run)
    assert trained.examples['observations'].shape == (1, 56)
    statistics = trained.state['normalization']
    before = np.concatenate([raw['observations'][:1], raw['observations'][:-1]])
    frames = np.stack([before, raw['observations']], axis=1)
    normal = (frames - statistics['mean']) / np.sqrt(statistics['var'] + 1e-8)
    policy = policy_of(trained.agents[0])
    for row, action in zip(
        normal.reshape(13, 56).astype(np.float32)[:-1], raw['actions'][:-1], strict=True
    ):
        np.testing.assert_allclose(policy(row, random.key(0)), action, atol=1e-6)
    train, val = ogbench.load_pair(path, env_name='cube-single-singletask-v0')
    assert (len(train['rewards']), len(val['rewards'])) == (12, 1)


def test_offline_agents_explore_with_keys(offline_run, tmp_path):
    calm, noisy, other = (
        ogbench.read(
            collect_from_run(
                offline_run, tmp_path / f'{i}.npz', num_transitions=3, seed=seed, deterministic=calm
            )[0]
        )['actions']
        for i, (seed, calm) in enumerate([(2, True), (2, False), (3, False)])
    )
    assert (calm[:3] != noisy[:3]).all()
    assert (noisy[:3] != other[:3]).all()


def test_what_does_not_fit_a_run_is_refused(online_run, tmp_path):
    path = tmp_path / 'a.hdf5'
    with pytest.raises(ValueError, match='trained the seeds 3, 4, not 5'):
        collect_from_run(online_run, path, trained_seed=5, num_episodes=1)
    with pytest.raises(
        RunError, match=r'Pendulum-v1 has observations of shape \(3,\), but .*\(4,\)'
    ):
        collect_from_run(online_run, path, env_name='Pendulum-v1', num_episodes=1)
    with pytest.raises(RunError, match='unknown environment'):
        collect_from_run(online_run, path, env_name='Pendulun-v1', num_episodes=1)
    assert not path.exists()


def test_the_launcher_collects_with_a_checkpoint(online_run, tmp_path, capsys):
    path = tmp_path / 'trained.npz'
    flags = ['--policy=checkpoint', f'--checkpoint={online_run}', '--nodeterministic']
    launcher.main(['collect', *flags, '--num_episodes=2', f'--path={path}'])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f'wrote {path}',
        f'wrote {tmp_path}/trained-val.npz',
    ]
    assert ogbench.load(path, add_info=True)['qpos'].shape[1] == 2
