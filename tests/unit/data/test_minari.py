import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from purerl.data import minari as loader
from purerl.data.check import DatasetError

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)


def episode(i, steps, terminated, nested):
    observations = np.arange(2 * (steps + 1), dtype=np.float64).reshape(-1, 2) + 100 * i
    flags = np.zeros(steps, bool)
    ends = flags.copy()
    ends[-1] = True
    return EpisodeBuffer(
        id=i,
        observations={'a': observations, 'b': observations + 1} if nested else observations,
        actions=np.full((steps, 1), 1.0, np.float32),
        rewards=np.arange(steps, dtype=np.float64),
        terminations=ends if terminated else flags,
        truncations=flags if terminated else ends,
    )


def create(space, action_space, episodes):
    minari.create_dataset_from_buffers(
        'walk/test-v0',
        episodes,
        observation_space=space,
        action_space=action_space,
        algorithm_name='none',
        author='nobody',
        author_email='nobody@example.org',
        code_permalink='https://example.org',
        description='two episodes',
    )


@pytest.fixture(params=[False, True], ids=['flat', 'nested'])
def dataset(request, tmp_path, monkeypatch):
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    nested = request.param
    space = gymnasium.spaces.Dict({'a': BOX, 'b': BOX}) if nested else BOX
    episodes = [episode(0, 3, True, nested), episode(1, 2, False, nested)]
    create(space, gymnasium.spaces.Box(-1, 1, (1,), np.float32), episodes)
    return tmp_path / 'walk' / 'test-v0', nested


def test_transitions_by_hand(dataset):
    folder, nested = dataset
    arrays = loader.load('walk/test-v0')
    observations, following = arrays['observations'], arrays['next_observations']
    if nested:
        np.testing.assert_array_equal(observations['b'], observations['a'] + 1)
        observations, following = observations['a'], following['a']
    assert observations[:, 0].tolist() == [0, 2, 4, 100, 102]
    assert following[:, 0].tolist() == [2, 4, 6, 102, 104]
    assert observations.dtype == np.float32
    assert arrays['masks'].tolist() == [1, 1, 0, 1, 1]
    assert arrays['terminals'].tolist() == [0, 0, 1, 0, 1]
    assert arrays['rewards'].tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(loader.load(folder)['rewards'], arrays['rewards'])


def test_actions_are_clipped_on_request(dataset):
    assert (loader.load('walk/test-v0')['actions'] == 1).all()
    clipped = loader.load('walk/test-v0', action_clip_eps=1e-2)['actions']
    np.testing.assert_array_equal(clipped, np.float32(0.99))


@pytest.mark.parametrize(
    ('low', 'high', 'expected'), [(0.0, 4.0, -0.5), (-2.0, 2.0, 0.5), (-2.0, np.inf, 1.0)]
)
def test_actions_are_rescaled_as_environments_do(tmp_path, monkeypatch, low, high, expected):
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    create(BOX, gymnasium.spaces.Box(low, high, (1,), np.float32), [episode(0, 3, True, False)])
    actions = loader.load('walk/test-v0')['actions']
    np.testing.assert_array_equal(actions, np.full((3, 1), expected, np.float32))


def test_a_dataset_that_is_not_there(dataset):
    with pytest.raises(DatasetError, match=r'walk/other-v0.*minari download walk/other-v0'):
        loader.load('walk/other-v0')


def test_a_damaged_dataset(dataset):
    folder, _ = dataset
    for file in (folder / 'data').glob('*.hdf5'):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DatasetError, match='minari cannot read the dataset'):
        loader.load(folder)
