"""Episodes in ExORL's format: collected, labelled, loaded."""

import numpy as np
import pytest

from experiments import collect as launcher
from experiments import online
from experiments import relabel as relabel_launcher
from purerl.data import exorl
from purerl.data.load import load_dataset
from purerl.envs.dmc import reward_function
from purerl.train import collect as collect_module
from purerl.train.collect import collect, collect_from_run, to_exorl
from purerl.train.config import RunError


def test_the_layout():
    episode = {
        'observations': np.arange(6.0).reshape(3, 2),
        'actions': np.array([[0.1], [0.2]], np.float32),
        'rewards': np.array([1.0, 2.0]),
        'physics': np.arange(3.0)[:, None] / 3,
        'truncated': False,
    }
    ended, cut_off = to_exorl([{**episode, 'terminated': end} for end in (True, False)])
    np.testing.assert_array_equal(ended['observation'], episode['observations'])
    np.testing.assert_array_equal(ended['action'], np.float32([[0], [0.1], [0.2]]))
    np.testing.assert_array_equal(ended['reward'], [[0], [1], [2]])
    np.testing.assert_array_equal(ended['discount'], [[1], [1], [0]])
    np.testing.assert_array_equal(cut_off['discount'], [[1], [1], [1]])
    np.testing.assert_array_equal(ended['physics'], episode['physics'])
    dtypes = {key: array.dtype for key, array in ended.items()}
    assert dtypes.pop('physics') == np.float64
    assert set(dtypes.values()) == {np.dtype(np.float32)}


def test_random_episodes_are_labelled_with_the_rewards_of_the_environment(tmp_path):
    folder = tmp_path / 'walker' / 'buffer'
    paths = collect('walker_flip', folder, policy='random', num_transitions=1030, seed=1)
    assert paths == [folder]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['episode_000000_1000.npz', 'episode_000001_30.npz']
    arrays = exorl.load_episodes(folder, env_name='walker_flip')
    recorded = []
    for name in names:
        with np.load(folder / name) as episode:
            recorded.append(episode['reward'][1:, 0])
            # The first row is the reset: its physics belong to its observation.
            np.testing.assert_array_equal(episode['physics'][0, 9:], episode['observation'][0, 15:])
    np.testing.assert_array_equal(arrays['rewards'], np.concatenate(recorded))
    assert arrays['terminals'].sum() == 2
    # Another task of the domain, from the same states.
    other = exorl.load_episodes(folder, env_name='walker_walk', max_size=1000)
    reward = reward_function('walker_walk')
    with np.load(folder / names[0]) as episode:
        expected = [reward(state) for state in episode['physics'][[1, 500, 1000]]]
    np.testing.assert_array_equal(other['rewards'][[0, 499, 999]], np.float32(expected))
    # The same seed gives the same data; nothing is written among other episodes.
    collect('walker_flip', tmp_path / 'again', policy='random', num_transitions=30, seed=1)
    again = exorl.load_episodes(tmp_path / 'again')
    np.testing.assert_array_equal(again['observations'], arrays['observations'][:30])
    with pytest.raises(ValueError, match='holds episodes already'):
        collect('walker_flip', folder, policy='random', num_transitions=30)


def test_the_launchers_go_together(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'buffer'
    flags = ['--env_name=jaco_reach_top_left', '--policy=random', '--num_episodes=2']
    launcher.main(['collect', *flags, f'--path={folder}'])
    assert capsys.readouterr().out.splitlines()[-1] == f'wrote {folder}'
    path = tmp_path / 'labelled.hdf5'
    flags = [f'--episodes={folder}', '--dataset_size=250', '--val_size=250', f'--path={path}']
    relabel_launcher.main(['relabel', '--env_name=jaco_reach_top_right', *flags])
    train, val = load_dataset(path)
    assert (train['rewards'].shape, val['observations'].shape) == ((250,), (250, 42))
    with pytest.raises(exorl.DatasetError, match="'physics' at index 1 is no state of this task"):
        relabel_launcher.main(['relabel', '--env_name=quadruped_jump', *flags])


def test_a_trained_agent_collects(tmp_path):
    flags = ['--env_name=walker_walk', '--max_steps=12', '--start_training=6', '--eval_interval=12']
    online.main(
        [
            'online',
            *flags,
            '--eval_episodes=1',
            '--batch_size=4',
            '--agent.hidden_dims=(8,)',
            '--notensorboard',
            f'--save_dir={tmp_path}',
            '--run_name=run',
        ]
    )
    folder = tmp_path / 'trained'
    assert collect_from_run(tmp_path / 'run', folder, num_transitions=5) == [folder]
    arrays = exorl.load_episodes(folder, env_name='walker_run')
    assert arrays['observations'].shape == (5, 24)
    assert np.abs(arrays['actions']).max() > 0


@pytest.mark.parametrize(('path', 'message'), [('a', "ExORL's format"), ('a.csv', 'must end in')])
def test_what_has_no_physics_is_refused_at_once(tmp_path, path, message, monkeypatch):
    monkeypatch.setattr(collect_module, 'make', None)
    flags = ['--env_name=Hopper-v5', '--policy=random', '--num_episodes=1']
    with pytest.raises(RunError, match=message):
        launcher.main(['collect', *flags, f'--path={tmp_path / path}'])
