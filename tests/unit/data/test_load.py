import numpy as np
import pytest

from purerl.data import d4rl, load, ogbench
from purerl.data.check import DatasetError
from purerl.data.load import load_dataset


def states():
    rng = np.random.RandomState(0)
    return {
        'observations': rng.randn(6, 28).astype(np.float32),
        'actions': rng.uniform(-1, 1, (6, 5)).astype(np.float32),
        'rewards': rng.randn(6).astype(np.float32),
        'terminals': np.array([0, 0, 1, 0, 0, 1], bool),
        'timeouts': np.zeros(6, bool),
        'qpos': rng.randn(6, 21),
    }


def test_npz_is_ogbench(tmp_path):
    ogbench.save(tmp_path / 'a.npz', states())
    train, validation = load_dataset(tmp_path / 'a.npz', max_size=3)
    assert len(train['observations']) == 3
    assert validation is None


@pytest.mark.parametrize('suffix', ['.hdf5', '.h5'])
def test_hdf5_is_d4rl(tmp_path, suffix):
    d4rl.save(tmp_path / f'a{suffix}', states())
    train, validation = load_dataset(str(tmp_path / f'a{suffix}'))
    assert train['dones'].sum() == 2
    assert validation is None


def test_a_name_is_looked_up_in_ogbenchs_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(load, 'OGBENCH_FOLDER', str(tmp_path))
    with pytest.raises(DatasetError, match=r'cube-single-play-v0.npz: no such file'):
        load_dataset('cube-single-play-v0')
    ogbench.save(tmp_path / 'cube-single-play-v0.npz', states())
    ogbench.save(tmp_path / 'cube-single-play-v0-val.npz', states())
    train, validation = load_dataset('cube-single-play-singletask-task1-v0')
    assert train['rewards'].tolist() == validation['rewards'].tolist() == [-1] * 4
    assert 'rewards' not in load_dataset('cube-single-play-v0')[0]


def test_a_folder_is_minari(tmp_path):
    with pytest.raises(DatasetError, match='minari cannot read'):
        load_dataset(tmp_path)


@pytest.mark.parametrize('name', ['data.csv', 'data.pkl', 'data.zip'])
def test_other_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_text('')
    with pytest.raises(DatasetError, match=r'unknown dataset format .*\.npz .*\.hdf5'):
        load_dataset(tmp_path / name)
