"""AWAC's files, as their authors' code wrote them: pickled arrays of dicts."""

import os
import pickle

import numpy as np
import pytest

from purerl.data import binary
from purerl.data.check import DatasetError
from purerl.data.load import load_dataset


def demonstration(start, steps):
    rng = np.random.RandomState(abs(start))
    states = start + np.arange(steps + 1, dtype=np.float64)[:, None] * np.ones((1, 3))
    return {
        'observations': np.array([{'state_observation': row} for row in states[:-1]]),
        'next_observations': [{'state_observation': row} for row in states[1:]],
        'actions': list(rng.uniform(-2, 2, (steps, 2))),
        'rewards': np.arange(steps + 1) - 10.0,
        'terminals': np.arange(steps) == steps - 1,
        'env_infos': [{'goal_achieved': True}] * steps,
        'agent_infos': np.array([None] * steps),
    }


def rollout(start, steps):
    rng = np.random.RandomState(abs(start))
    states = start + np.arange(steps + 1, dtype=np.float32)[:, None] * np.ones((1, 3))
    return {
        'observations': states[:-1],
        'next_observations': states[1:],
        'actions': rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        'rewards': np.full((steps, 1), -1.0),
        'terminals': np.zeros((steps, 1), bool),
        'env_infos': {'x': np.zeros(steps)},
    }


def write(folder, demonstrations, rollouts):
    np.save(folder / 'pen2_sparse.npy', np.array(demonstrations, dtype=object))
    np.save(folder / 'pen_bc_sparse4.npy', np.array(rollouts, dtype=object))
    return folder / 'pen2_sparse.npy'


@pytest.fixture
def path(tmp_path):
    demonstrations = [demonstration(100 * i, 3) for i in range(1, 6)]
    return write(tmp_path, demonstrations, [rollout(-100 * i, 2) for i in range(1, 4)])


def test_rows_by_hand(path):
    arrays = binary.load(path)
    # 4 of 5 demonstrations of 3 steps, 2 of 3 rollouts of 2 steps.
    firsts = [100, 101, 102, 200, 201, 202, 300, 301, 302, 400, 401, 402, -100, -99, -200, -199]
    assert arrays['observations'][:, 0].tolist() == firsts
    assert arrays['next_observations'][:, 1].tolist() == [x + 1 for x in firsts]
    assert arrays['rewards'].tolist() == [-10, -9, -8] * 4 + [-1] * 4
    assert np.flatnonzero(arrays['dones']).tolist() == [2, 5, 8, 11, 13, 15]
    assert arrays['masks'].tolist() == [1] * 16
    assert np.abs(arrays['actions']).max() == np.float32(1 - 1e-5)
    assert {key: a.dtype.name for key, a in arrays.items() if key != 'dones'} == dict.fromkeys(
        ('observations', 'next_observations', 'actions', 'rewards', 'masks'), 'float32'
    )


def test_options(path):
    kept = binary.load(path, remove_terminals=False, include_bc_data=False, clip_to_eps=False)
    assert np.flatnonzero(kept['masks'] == 0).tolist() == [2, 5, 8, 11]
    assert np.abs(kept['actions']).max() > 1


def test_by_path_and_by_name(path, monkeypatch):
    monkeypatch.setattr(binary, 'FOLDER', str(path.parent))
    by_path, validation = load_dataset(path)
    by_name, _ = load_dataset('pen-binary-v0', eps=1e-5)
    assert validation is None
    for key in by_path:
        np.testing.assert_array_equal(by_path[key], by_name[key])
    with pytest.raises(DatasetError, match=r'door2_sparse\.npy: no such file'):
        load_dataset('door-binary-v0')


class Evil:
    def __reduce__(self):
        return os.system, ('touch pwned',)


def test_a_file_that_runs_code_is_refused(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    np.save(path, np.array([Evil()] * 5, dtype=object))
    with pytest.raises(DatasetError, match=r'posix\.system, which is refused'):
        binary.load(path)
    assert not (path.parent / 'pwned').exists()


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r'pen2_sparse\.npy: not a readable file'):
        binary.load(path)


def test_other_contents(path):
    np.save(path, np.zeros((3, 2)))
    with pytest.raises(DatasetError, match=r'an array \(3, 2\) of float64'):
        binary.load(path)
    np.save(path, np.array([{'observations': 1}] * 3, dtype=object))
    with pytest.raises(DatasetError, match='no trajectories as AWAC published them'):
        binary.load(path)
    np.save(path, np.array([demonstration(0, 2)], dtype=object))
    with pytest.raises(DatasetError, match='of 1 trajectories none is left'):
        binary.load(path)
    short = {**demonstration(0, 4), 'rewards': np.zeros(3)}
    np.save(path, np.array([short] * 2, dtype=object))
    with pytest.raises(DatasetError, match=r"'rewards' has 2 rows.*index 2"):
        binary.load(path)
    wide = {**demonstration(0, 2), 'actions': np.zeros((2, 5))}
    np.save(path, np.array([wide] * 2, dtype=object))
    with pytest.raises(DatasetError, match='do not belong together'):
        binary.load(path)
    with pytest.raises(DatasetError, match='are in a file <domain>2_sparse'):
        binary.load(path.with_name('pen.npy'))


def test_missing_rollouts(path):
    path.with_name('pen_bc_sparse4.npy').unlink()
    with pytest.raises(DatasetError, match=r'pen_bc_sparse4\.npy: no such file'):
        binary.load(path)
    assert len(binary.load(path, include_bc_data=False)['rewards']) == 12


@pytest.mark.parametrize('protocol', range(2, 6))
def test_any_protocol(path, protocol):
    expected = binary.load(path)
    with path.open('rb') as file:
        header = file.read(128)
    trajectories = np.array([demonstration(100 * i, 3) for i in range(1, 6)], dtype=object)
    path.write_bytes(header + pickle.dumps(trajectories, protocol))
    np.testing.assert_array_equal(binary.load(path)['rewards'], expected['rewards'])
