"""ExORL's episodes and InFOM's HDF5 files of them."""

import shutil
from collections import namedtuple
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments import relabel as launcher
from purerl.data import d4rl, exorl
from purerl.data.check import DatasetError
from purerl.data.load import load_dataset
from purerl.envs import dmc
from purerl.train.config import RunError

STEPS = (3, 2, 4, 3)


def write_episodes(folder, lengths=STEPS, change=None):
    """Writes episodes whose every number tells its place: 100 * episode + row."""
    folder.mkdir(parents=True)
    for index, length in enumerate(lengths):
        place = (100.0 * index + np.arange(length + 1))[:, None]
        episode = {
            'observation': np.tile(place, (1, 2)).astype(np.float32),
            'action': (place / 1000).astype(np.float32),
            'reward': place.astype(np.float32),
            'discount': np.ones((length + 1, 1), np.float32),
            'physics': np.repeat(place, 3, axis=1) + 1 / 3,
        }
        if change is not None:
            change(index, episode)
        np.savez(folder / f'episode_{index:06d}_{length}.npz', **episode)
    return folder


@pytest.fixture
def episodes(tmp_path):
    return write_episodes(tmp_path / 'buffer')


@pytest.fixture
def task(monkeypatch):
    """A task whose reward is the first number of the state; it knows three."""

    def reward(state):
        if state.shape != (3,):
            raise ValueError('Input physics state has shape')
        assert state.dtype == np.float64
        return state[0]

    monkeypatch.setattr(dmc, 'reward_function', lambda name: reward)


def test_rows_become_transitions(episodes):
    arrays = exorl.load_episodes(episodes)
    np.testing.assert_array_equal(
        arrays['observations'][:, 0], [0, 1, 2, 100, 101, 200, 201, 202, 203, 300, 301, 302]
    )
    np.testing.assert_array_equal(arrays['next_observations'], arrays['observations'] + 1)
    actions = (arrays['next_observations'][:, :1] / 1000).astype(np.float32)
    np.testing.assert_array_equal(arrays['actions'], actions)
    np.testing.assert_array_equal(arrays['terminals'], [0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(arrays['masks'], np.ones(12))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert 'rewards' not in arrays


def test_a_discount_of_zero_is_a_termination(tmp_path):
    def change(index, episode):
        if index == 1:
            episode['discount'][-1] = 0

    arrays = exorl.load_episodes(write_episodes(tmp_path / 'buffer', (2, 2), change))
    np.testing.assert_array_equal(arrays['masks'], [1, 1, 1, 0])
    np.testing.assert_array_equal(arrays['terminals'], [0, 1, 0, 1])


def test_rewards_come_from_the_states_after_the_actions(episodes, task):
    arrays = exorl.load_episodes(episodes, env_name='walker_flip')
    expected = (arrays['next_observations'][:, 0].astype(np.float64) + 1 / 3).astype(np.float32)
    np.testing.assert_array_equal(arrays['rewards'], expected)


@pytest.mark.parametrize(
    ('skip_size', 'max_size', 'chosen'),
    [
        (0, None, [0, 1, 2, 3]),
        (0, 12, [0, 1, 2, 3]),
        (0, 11, [0, 1, 2]),
        (0, 8, [0, 1]),
        (3, 6, [1, 2]),
        # The episode that the boundary lies in is taken whole.
        (2, 7, [0, 1, 2]),
        (4, 5, [1, 2]),
        (9, None, [3]),
    ],
)
def test_whole_episodes_are_chosen_by_size(episodes, skip_size, max_size, chosen):
    arrays = exorl.load_episodes(episodes, skip_size=skip_size, max_size=max_size)
    assert sorted(set(arrays['observations'][:, 0].astype(int) // 100)) == chosen


def test_validation_data_follow_the_training_data(episodes):
    train, val = exorl.load_pair(episodes, max_size=5, val_size=4)
    assert (train['observations'][-1, 0], val['observations'][0, 0]) == (101, 200)
    assert len(val['masks']) == 4
    with pytest.raises(DatasetError, match='max_size has to say'):
        exorl.load_pair(episodes, val_size=4)


def test_actions_are_clipped(tmp_path):
    def change(index, episode):
        episode['action'][:] = 1

    folder = write_episodes(tmp_path / 'buffer', (2,), change)
    assert exorl.load_episodes(folder)['actions'].max() == np.float32(1 - 1e-5)
    assert exorl.load_episodes(folder, action_clip_eps=None)['actions'].max() == 1


def test_files_are_read_as_they_were_written(episodes, tmp_path, task):
    arrays = exorl.load_episodes(episodes, env_name='walker_flip')
    path = tmp_path / 'a.hdf5'
    exorl.save(path, arrays)
    again = exorl.load_file(path)
    assert sorted(again) == sorted(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key], array)
    assert len(exorl.load_file(path, max_size=5)['rewards']) == 5
    train, val = load_dataset(path, max_size=5)
    assert (len(train['rewards']), val) == (5, None)
    exorl.save(tmp_path / 'a_val.hdf5', exorl.load_episodes(episodes, max_size=3))
    assert len(load_dataset(path)[1]['masks']) == 3
    for option in ({'skip_size': 1}, {'val_size': 1}, {'env_name': 'walker_flip'}):
        with pytest.raises(DatasetError, match='for folders of episodes'):
            load_dataset(path, **option)


def test_infoms_own_files_are_read(tmp_path):
    with h5py.File(tmp_path / 'a.hdf5', 'w') as file:
        for key in exorl.REQUIRED:
            size = (4, 2) if 'ob' in key or key == 'actions' else (4,)
            file[key] = np.zeros(size, np.float32)
        file['rewards'] = np.arange(4) / 3  # in double precision
    arrays = exorl.load_file(tmp_path / 'a.hdf5')
    np.testing.assert_array_equal(arrays['rewards'], (np.arange(4) / 3).astype(np.float32))


def test_formats_are_told_apart(episodes, tmp_path):
    assert len(load_dataset(episodes)[0]['masks']) == 12
    rows = {'observations': np.zeros((3, 2)), 'actions': np.zeros((3, 1)), 'rewards': np.zeros(3)}
    ends = {'terminals': np.array([0, 0, 1]), 'timeouts': np.zeros(3)}
    d4rl.save(tmp_path / 'd4rl.hdf5', {**rows, **ends, 'next_observations': np.zeros((3, 2))})
    assert not exorl.is_aggregated(tmp_path / 'd4rl.hdf5')
    assert 'dones' in load_dataset(tmp_path / 'd4rl.hdf5')[0]


def test_names(tmp_path, monkeypatch, episodes):
    monkeypatch.setattr(exorl, 'FOLDER', str(tmp_path))
    assert exorl.exorl_files('point_mass_maze_reach_top_left') == {
        'pretraining': tmp_path / 'rnd_reward_free_point_mass_maze.hdf5',
        'finetuning': tmp_path / 'rnd_reward_labeled_point_mass_maze_reach_top_left.hdf5',
    }
    files = exorl.exorl_files('walker_flip', 'proto', '/elsewhere')
    assert files['pretraining'] == Path('/elsewhere/proto_reward_free_walker.hdf5')
    with pytest.raises(DatasetError, match='no task of dm_control'):
        exorl.exorl_files('Hopper-v5')
    for name, stem in (
        ('walker_flip', 'rnd_reward_labeled_walker_flip'),
        ('rnd_reward_free_walker', 'rnd_reward_free_walker'),
    ):
        with pytest.raises(DatasetError, match=rf'{stem}\.hdf5: no such file.*experiments.relabel'):
            load_dataset(name)
        exorl.save(tmp_path / f'{stem}.hdf5', exorl.load_episodes(episodes))
        assert len(load_dataset(name)[0]['masks']) == 12
    # What lies where the name says goes before.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(episodes, 'walker_flip')
    (tmp_path / 'walker_flip' / 'episode_000003_3.npz').unlink()
    assert len(load_dataset('walker_flip')[0]['masks']) == 9


def spoil(key, row, value):
    def change(index, episode):
        if index == 2:
            episode[key][row] = value

    return change


def drop(key):
    def change(index, episode):
        if index == 2:
            del episode[key]

    return change


def cut(key, rows):
    def change(index, episode):
        if index == 2:
            for name in [key] if key else list(episode):
                episode[name] = episode[name][:rows]

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (spoil('observation', 3, np.nan), r"'observation' holds a non-finite value.* index 3"),
        (spoil('discount', 1, 2), r"'discount' holds .*outside \[0, 1\] \(2.0\) at index 1"),
        (spoil('physics', 4, np.inf), r"'physics' holds a non-finite value.* index 4"),
        (drop('action'), "the key 'action' is missing"),
        (drop('physics'), "the key 'physics' is missing, from which rewards"),
        (cut('action', 4), "'discount' has 5 rows, but 'action' has 4: they disagree from index 4"),
        (cut('physics', 4), r"'physics' has 4 rows.*index 4"),
        (cut(None, 4), r'4 rows, but an episode of the 4 transitions .* cut off from index 4'),
    ],
)
def test_damaged_episodes_are_refused_by_name(tmp_path, task, change, message):
    folder = write_episodes(tmp_path / 'buffer', change=change)
    with pytest.raises(DatasetError, match=rf'episode_000002_4\.npz: .*{message}'):
        exorl.load_episodes(folder, env_name='walker_flip')


def test_a_state_of_another_domain_is_refused(tmp_path, task):
    def change(index, episode):
        episode['physics'] = episode['physics'][:, :2]

    folder = write_episodes(tmp_path / 'buffer', change=change)
    with pytest.raises(DatasetError, match=r"episode_000000_3.*'physics' at index 1 is no state"):
        exorl.load_episodes(folder, env_name='walker_flip')


def test_what_is_no_folder_of_episodes_is_refused(tmp_path, episodes):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DatasetError, match='no whole episode from transition 0 on'):
        exorl.load_episodes(tmp_path / 'empty')
    with pytest.raises(DatasetError, match='from transition 12 on among the next 5'):
        exorl.load_episodes(episodes, skip_size=12, max_size=5)
    path = episodes / 'episode_000001_2.npz'
    encrypted = bytearray(path.read_bytes())
    encrypted[6] = encrypted[encrypted.index(b'PK\x01\x02') + 8] = 1
    for damaged in (encrypted, b'PK\x03\x04 nothing'):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r'episode_000001_2\.npz: not a readable npz file'):
            exorl.load_episodes(episodes)
    (episodes / 'backup.npz').write_bytes(b'')
    with pytest.raises(DatasetError, match=r'backup\.npz: not the name of an ExORL episode'):
        exorl.load_episodes(episodes)


def test_damaged_files_are_refused(episodes, tmp_path):
    path = tmp_path / 'a.hdf5'
    arrays = exorl.load_episodes(episodes)
    arrays['masks'][4] = np.nan
    with pytest.raises(DatasetError, match=r"a\.hdf5: 'masks' holds a non-finite .* index 4"):
        exorl.save(path, arrays)
    assert not path.exists()
    exorl.save(path, exorl.load_episodes(episodes))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r'a\.hdf5: not a readable HDF5 file'):
        exorl.load_file(path)


def test_a_full_disk_leaves_nothing(episodes, tmp_path, monkeypatch):
    path = tmp_path / 'a.hdf5'
    exorl.save(path, exorl.load_episodes(episodes, max_size=3))
    before = path.read_bytes()
    usage = namedtuple('usage', 'free')(1000)
    monkeypatch.setattr(exorl.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(OSError, match=r'No space left.*Nothing half-written'):
        exorl.save(path, exorl.load_episodes(episodes))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.hdf5', 'buffer']


def test_episodes_are_not_written_among_others(episodes):
    with pytest.raises(DatasetError, match='holds episodes already'):
        exorl.save_episodes(episodes, [])


def test_the_launcher_writes_both_files(episodes, tmp_path, task, capsys, monkeypatch):
    monkeypatch.setattr(exorl, 'FOLDER', str(tmp_path))
    flags = ['--env_name=walker_flip', f'--episodes={episodes}', '--val_size=4']
    launcher.main(['relabel', *flags, '--dataset_size=5'])
    path = tmp_path / 'rnd_reward_labeled_walker_flip.hdf5'
    assert capsys.readouterr().out.splitlines() == [
        f'wrote {path} (5 transitions)',
        f'wrote {path.with_name(path.stem + "_val.hdf5")} (4 transitions)',
    ]
    train, val = load_dataset('walker_flip')
    assert (len(train['rewards']), len(val['rewards'])) == (5, 4)
    launcher.main(['relabel', *flags, '--dataset_size=5', '--norewards', '--skip_size=3'])
    train, val = load_dataset(exorl.exorl_files('walker_flip')['pretraining'])
    assert (len(train['masks']), 'rewards' in train) == (2, False)
    assert train['observations'][0, 0] == 100


@pytest.mark.parametrize(
    ('flags', 'error', 'message'),
    [
        ([], RunError, 'which task'),
        (['--env_name=Hopper-v5'], DatasetError, 'no task of dm_control'),
        (['--env_name=walker_flip', '--path=a.npz'], RunError, r'must end in \.hdf5'),
        (['--env_name=walker_flip', '--dataset_size=0'], RunError, 'dataset_size'),
    ],
)
def test_the_launcher_refuses(flags, error, message):
    with pytest.raises(error, match=message):
        launcher.main(['relabel', *flags])
