import os
import resource

import gymnasium
import numpy as np
import ogbench.utils
import pytest

from purerl.data import ogbench as loader
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset

TASK = 'cube-single-singletask-task1-v0'


def states(lengths=(4, 2, 3), seed=0, **changes):
    """Rows as OGBench writes them: an episode of length T has T + 1 of them."""
    rng = np.random.RandomState(seed)
    n = sum(lengths) + len(lengths)
    terminals = np.zeros(n, bool)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = True
    arrays = {
        'observations': rng.randn(n, 28).astype(np.float32),
        'actions': rng.uniform(-1, 1, (n, 5)).astype(np.float32),
        'terminals': terminals,
        'qpos': rng.randn(n, 21),
        'qvel': rng.randn(n, 20),
    }
    arrays['actions'][0] = 1.0
    return {**arrays, **changes}


@pytest.fixture
def path(tmp_path):
    loader.save(tmp_path / 'cube-single-play-v0.npz', states())
    return tmp_path / 'cube-single-play-v0.npz'


def test_transitions_by_hand(tmp_path):
    rows = np.arange(6, dtype=np.float32)
    np.savez(
        tmp_path / 'a.npz',
        observations=rows[:, None],
        actions=rows[:, None] / 10,
        terminals=[0, 0, 1, 0, 0, 1],
    )
    arrays = loader.load(tmp_path / 'a.npz')
    assert arrays['observations'][:, 0].tolist() == [0, 1, 3, 4]
    assert arrays['next_observations'][:, 0].tolist() == [1, 2, 4, 5]
    assert arrays['terminals'].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(arrays['actions'][:, 0], [0, 0.1, 0.3, 0.4])


@pytest.mark.parametrize('lengths', [(4, 2, 3), (1,), (1, 1, 7)])
def test_equals_ogbenchs_own_loader(tmp_path, lengths):
    loader.save(tmp_path / 'a.npz', states(lengths))
    expected = ogbench.utils.load_dataset(str(tmp_path / 'a.npz'), add_info=True)
    arrays = loader.load(tmp_path / 'a.npz', add_info=True, action_clip_eps=None)
    assert sorted(arrays) == sorted(expected)
    for key in expected:
        np.testing.assert_allclose(arrays[key], expected[key], rtol=1e-7)
        assert arrays[key].dtype == np.float32


def test_images_stay_uint8(tmp_path):
    frames = np.random.RandomState(0).randint(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    loader.save(tmp_path / 'a.npz', states(observations=frames))
    arrays = loader.load(tmp_path / 'a.npz')
    assert arrays['next_observations'].dtype == np.uint8
    np.testing.assert_array_equal(arrays['observations'][:4], frames[:4])


def test_actions_are_clipped_and_sizes_limited(path):
    arrays = loader.load(path, max_size=3)
    assert {len(value) for value in arrays.values()} == {3}
    np.testing.assert_array_equal(arrays['actions'][0], np.float32(1 - 1e-5))
    assert loader.load(path, action_clip_eps=None)['actions'][0, 0] == 1.0


def test_relabelling_equals_ogbenchs(path):
    arrays = loader.load(path, env_name=TASK)
    env = gymnasium.make(TASK)
    expected = ogbench.utils.load_dataset(str(path), add_info=True)
    ogbench.relabel_utils.relabel_dataset(TASK, env, expected)
    np.testing.assert_array_equal(arrays['rewards'], expected['rewards'])
    np.testing.assert_array_equal(arrays['masks'], expected['masks'])
    again = loader.load(path, env_name=TASK, env=env)
    np.testing.assert_array_equal(again['rewards'], expected['rewards'])
    assert 'qpos' not in arrays
    env.close()


def test_relabelling_finds_successes(tmp_path):
    env = gymnasium.make(TASK)
    env.reset()
    rows = states()
    rows['qpos'][2, 14:17] = env.unwrapped._data.mocap_pos[0]
    env.close()
    loader.save(tmp_path / 'a.npz', rows)
    arrays = loader.load(tmp_path / 'a.npz', env_name=TASK)
    assert arrays['rewards'].tolist() == [-1, -1, 0] + [-1] * 6
    assert arrays['masks'].tolist() == [1, 1, 0] + [1] * 6


def test_relabelling_needs_positions(tmp_path):
    rows = states()
    del rows['qpos']
    loader.save(tmp_path / 'a.npz', rows)
    with pytest.raises(DatasetError, match=r"a.npz: the key 'qpos' is missing.*rewards of cube"):
        loader.load(tmp_path / 'a.npz', env_name=TASK)


def test_relabelling_needs_a_single_task(path):
    with pytest.raises(DatasetError, match=r'no rewards for cube-single-v0.*single-task'):
        loader.load(path, env_name='cube-single-v0')


def test_the_validation_file_beside_it(path):
    train, validation = loader.load_pair(path)
    assert validation is None
    loader.save(path.with_name('cube-single-play-v0-val.npz'), states((2,), seed=1))
    train, validation = loader.load_pair(path)
    assert len(train['actions']) == 9
    assert len(validation['actions']) == 2


def test_what_is_loaded_serves_goals(path):
    batch = GCDataset(
        Dataset(loader.load(path)),
        {
            **{f'{k}_p_{g}goal': float(g == 'traj') for k in ('value', 'actor')
               for g in ('cur', 'traj', 'random')},
            **{f'{k}_geom_sample': True for k in ('value', 'actor')},
            **{f'{k}_geom_start_offset': 1 for k in ('value', 'actor')},
            'discount': 0.9, 'gc_negative': True, 'relabel_reward': True, 'p_aug': None,
            'frame_stack': None,
        },
    ).sample(8, np.random.RandomState(0))  # fmt: skip
    assert batch['value_goals'].shape == (8, 28)
    assert batch['rewards'].shape == (8,)


NAMES = {
    'cube-single-play-v0': ('cube-single-v0', 'cube-single-play-v0'),
    'cube-single-play-singletask-v0': ('cube-single-singletask-v0', 'cube-single-play-v0'),
    'cube-single-play-singletask-task2-v0': (
        'cube-single-singletask-task2-v0',
        'cube-single-play-v0',
    ),
    'cube-single-play-ft-singletask-v0': ('cube-single-singletask-v0', 'cube-single-play-ft-v0'),
    'visual-antmaze-large-navigate-singletask-task5-v0': (
        'visual-antmaze-large-singletask-task5-v0',
        'visual-antmaze-large-navigate-v0',
    ),
}


@pytest.mark.parametrize(('name', 'expected'), NAMES.items())
def test_names(name, expected):
    assert loader.parse_name(name) == expected


@pytest.mark.parametrize('name', ['cube', 'cube-v0', 'singletask', 'cube-singletask-v0', ''])
def test_other_names_are_refused(name):
    with pytest.raises(DatasetError, match='no OGBench dataset name'):
        loader.parse_name(name)


# --- Damaged files ----------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r'nothing.npz: no such file.*check the path'):
        loader.load(tmp_path / 'nothing.npz')


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r'cube-single-play-v0.npz: not a readable npz'):
        loader.load(path)


def test_a_file_with_flipped_bytes_names_the_key(path):
    data = bytearray(path.read_bytes())
    at = data.index(b'qpos.npy') + 300
    data[at : at + 40] = bytes(40)
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="not a readable npz file at key 'qpos'"):
        loader.load(path, env_name=TASK)


@pytest.mark.parametrize(('offset', 'value'), [(6, 200), (8, 1)], ids=['version', 'encrypted'])
def test_a_file_with_flipped_bytes_in_its_directory(path, offset, value):
    data = bytearray(path.read_bytes())
    data[data.index(b'PK\x01\x02') + offset] = value
    data[6] |= value == 1  # the flag of encryption stands in an entry's own header too
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match=r'cube-single-play-v0.npz: not a readable npz'):
        loader.load(path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    rows = states()
    rows['actions'] = np.array([object()] * 12, dtype=object)
    np.savez(tmp_path / 'a.npz', **rows)
    with pytest.raises(DatasetError, match=r"a.npz: not a readable npz file at key 'actions'"):
        loader.load(tmp_path / 'a.npz')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'actions': np.zeros((5, 5))}, "'actions' has 5 rows.*12.*index 5"),
        ({'terminals': np.zeros(12)}, "'terminals' is 0 at the last row, index 11"),
        ({'terminals': np.ones(12)}, 'every row is the end of an episode'),
        ({'terminals': np.full(12, 2)}, "'terminals'.*2.*index 0"),
        ({'observations': np.full((12, 2), np.nan)}, "'observations'.*nan.*index 0"),
    ],
)
def test_a_wrong_dataset_names_file_key_and_index(tmp_path, changes, message):
    np.savez(tmp_path / 'a.npz', **states(**changes))
    with pytest.raises(DatasetError, match=f'a.npz: .*{message}'):
        loader.load(tmp_path / 'a.npz')


def test_a_missing_key(tmp_path):
    rows = states()
    del rows['terminals']
    np.savez(tmp_path / 'a.npz', **rows)
    with pytest.raises(DatasetError, match=r"the key 'terminals' is missing .*actions"):
        loader.load(tmp_path / 'a.npz')


# --- Writing ----------------------------------------------------------------------------------


def test_wrong_arrays_are_not_written(tmp_path):
    with pytest.raises(DatasetError, match="'terminals' is 0 at the last row"):
        loader.save(tmp_path / 'a.npz', states(terminals=np.zeros(12)))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    rows = states(observations=np.random.RandomState(0).randn(12, 20000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'could not write .*a\.npz.*free disk space'):
            loader.save(tmp_path / 'a.npz', rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_relabelling_leaves_numpys_global_stream_alone(tmp_path):
    rows = states()
    rows['qpos'] = rows['qpos'][:, :2]
    loader.save(tmp_path / 'a.npz', rows)
    before = np.random.get_state()[1].copy()
    arrays = loader.load(tmp_path / 'a.npz', env_name='pointmaze-medium-singletask-v0')
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert set(arrays['rewards']) <= {-1.0, 0.0}


def test_relabelling_needs_an_environment_that_exists(path):
    with pytest.raises(DatasetError, match=r'no rewards without .*cube-single-singletask-v0'):
        loader.load(path, env_name='cube-sinqle-singletask-v0')
