import numpy as np
import pytest
import torch

from purerl.core import random
from purerl.data import sampling
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset, augment, normalize, random_crop


def arrays(n=12, ends=(3, 7, 11)):
    terminals = np.zeros(n, np.float32)
    terminals[list(ends)] = 1
    steps = np.arange(n, dtype=np.float32)
    return {
        'observations': np.stack([steps, 10 * steps], axis=1),
        'next_observations': np.stack([steps + 0.5, 10 * steps + 5], axis=1),
        'actions': steps[:, None] / 100,
        'rewards': steps,
        'masks': 1 - terminals,
        'terminals': terminals,
    }


def images(n=12):
    rng = np.random.RandomState(0)
    values = rng.randint(0, 256, (2, n, 5, 6, 3)).astype(np.uint8)
    return {**arrays(n), 'observations': values[0], 'next_observations': values[1]}


# --- Batches ----------------------------------------------------------------------------------


def test_a_batch_takes_the_same_rows_of_every_array():
    batch = Dataset(arrays()).sample(5, np.random.RandomState(0))
    expected = np.random.RandomState(0).randint(12, size=5)
    np.testing.assert_array_equal(batch['rewards'], expected)
    np.testing.assert_array_equal(batch['observations'][:, 1], 10 * expected)
    assert sorted(batch) == sorted(arrays())


@pytest.mark.parametrize(
    'rng', [np.random.default_rng(1), torch.Generator().manual_seed(1), random.key(1)]
)
def test_other_random_sources(rng):
    batch = Dataset(arrays()).sample(64, rng)
    assert set(batch['rewards'].astype(int)) == set(range(12))


def test_given_indices_and_keys():
    batch = Dataset(arrays()).sample(2, np.random.RandomState(0), np.array([4, 9]), ['rewards'])
    assert list(batch) == ['rewards']
    np.testing.assert_array_equal(batch['rewards'], [4, 9])


def test_nested_observations():
    given = arrays()
    for key in ('observations', 'next_observations'):
        given[key] = {'state': given[key], 'index': np.arange(12)}
    batch = Dataset(given).sample(3, np.random.RandomState(0), np.array([0, 5, 11]))
    np.testing.assert_array_equal(batch['observations']['index'], [0, 5, 11])
    assert batch['next_observations']['state'].shape == (3, 2)


def test_next_actions_are_the_following_rows():
    dataset = Dataset(arrays(), return_next_actions=True)
    batch = dataset.sample(3, np.random.RandomState(0), np.array([0, 3, 11]))
    np.testing.assert_allclose(batch['next_actions'][:, 0], [0.01, 0.04, 0.11])


def test_the_callers_arrays_stay_writable_and_the_datasets_are_not():
    given = arrays()
    dataset = Dataset(given)
    given['rewards'][0] = 7
    with pytest.raises(ValueError, match='read-only'):
        dataset['rewards'][0] = 1


def test_float64_is_cast_once():
    dataset = Dataset({**arrays(), 'observations': np.zeros((12, 2))})
    assert dataset['observations'].dtype == np.float32


@pytest.mark.parametrize('broken', [{}, {'observations': np.zeros((0, 2))}])
def test_a_dataset_needs_observations(broken):
    with pytest.raises(DatasetError):
        Dataset(broken)


# --- Normalisation ----------------------------------------------------------------------------


def test_normal_statistics_and_bounds():
    raw = arrays()['observations']
    dataset = Dataset(arrays(), obs_norm_type='normal')
    dataset.normalize_observations()
    np.testing.assert_allclose(dataset['observations'].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(dataset['observations'].std(0), 1, rtol=1e-6)
    batch = dataset.sample(2, np.random.RandomState(0), np.array([0, 11]))
    np.testing.assert_allclose(batch['observation_min'], (raw[0] - raw.mean(0)) / raw.std(0))
    np.testing.assert_array_equal(batch['observations'][1], batch['observation_max'])
    expected = (raw[3] + [0.5, 5] - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(dataset['next_observations'][3], expected, rtol=1e-6)


def test_bounded_maps_to_minus_one_and_one():
    dataset = Dataset(arrays(), obs_norm_type='bounded')
    dataset.normalize_observations()
    np.testing.assert_array_equal(dataset['observations'][[0, 11]], [[-1, -1], [1, 1]])
    np.testing.assert_allclose(dataset.normalize_observations(np.array([[5.5, 0.0]])), [[0, -1]])


def test_none_keeps_images_as_they_are():
    dataset = Dataset(images())
    dataset.normalize_observations()
    assert dataset['observations'].dtype == np.uint8
    np.testing.assert_array_equal(
        dataset.sample(1, np.random.RandomState(0))['observation_max'],
        images()['observations'].max(0),
    )


@pytest.mark.parametrize('kind', ['normal', 'bounded'])
def test_normalised_images_are_float32_without_wrapping_around(kind):
    raw = images()['observations'].astype(np.float64)
    dataset = Dataset(images(), obs_norm_type=kind)
    dataset.normalize_observations()
    assert dataset['observations'].dtype == np.float32
    if kind == 'normal':
        expected = (raw - raw.mean(0)) / np.sqrt(raw.var(0) + 1e-8)
    else:
        expected = 2 * (raw - raw.min(0)) / (raw.max(0) - raw.min(0)) - 1
    np.testing.assert_allclose(dataset['observations'], expected, rtol=1e-5, atol=1e-6)


def test_constant_dimensions_are_named():
    given = arrays()
    given['observations'][:, 1] = 4
    dataset = Dataset(given, name='somewhere.npz', obs_norm_type='bounded')
    with pytest.warns(UserWarning, match=r"somewhere.npz.*\[1\] never change.*'normal'"):
        dataset.normalize_observations()
    assert np.isnan(dataset['observations'][:, 1]).all()


def test_normalising_is_done_once_and_before_use():
    dataset = Dataset(arrays(), obs_norm_type='normal')
    with pytest.raises(DatasetError, match='has to run first'):
        dataset.normalize_observations(np.zeros((1, 2)))
    dataset.normalize_observations()
    with pytest.raises(DatasetError, match='normalised already'):
        dataset.normalize_observations()


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'none', 'normal' or 'bounded', got 'standard'"):
        normalize(np.zeros(2), 0, 1, 1, 0, 'standard')


# --- Frames -----------------------------------------------------------------------------------


def test_frames_stop_at_the_start_of_an_episode():
    dataset = Dataset(arrays(), frame_stack=3)
    batch = dataset.sample(4, np.random.RandomState(0), np.array([0, 3, 4, 10]))
    first = batch['observations'][:, ::2]  # the first coordinate of each frame
    np.testing.assert_array_equal(first, [[0, 0, 0], [1, 2, 3], [4, 4, 4], [8, 9, 10]])
    following = batch['next_observations'][:, ::2]
    np.testing.assert_array_equal(following, [[0, 0, 0.5], [2, 3, 3.5], [4, 4, 4.5], [9, 10, 10.5]])


def test_frames_of_an_episode_that_is_cut_off():
    dataset = Dataset(arrays(ends=(3, 7)), frame_stack=2)
    batch = dataset.sample(2, np.random.RandomState(0), np.array([8, 9]))
    np.testing.assert_array_equal(batch['observations'][:, ::2], [[8, 8], [8, 9]])


def test_frames_need_episode_ends():
    given = arrays()
    del given['terminals']
    with pytest.raises(DatasetError, match="neither 'terminals' nor 'dones'"):
        Dataset(given, frame_stack=2).sample(2, np.random.RandomState(0))


def test_image_frames_are_stacked_along_channels():
    dataset = Dataset(images(), frame_stack=2)
    batch = dataset.sample(1, np.random.RandomState(0), np.array([5]))
    expected = np.concatenate(images()['observations'][[4, 5]], axis=-1)
    np.testing.assert_array_equal(batch['observations'][0], expected)


# --- Augmentation -----------------------------------------------------------------------------


def test_random_crop_by_hand():
    image = np.arange(12).reshape(1, 3, 4, 1)
    unshifted = random_crop(image, np.array([[2, 2]]), 2)
    np.testing.assert_array_equal(unshifted, image)
    down_left = random_crop(image, np.array([[3, 0]]), 2)
    np.testing.assert_array_equal(down_left[0, :, :, 0], [[4, 4, 4, 5], [8, 8, 8, 9], [8, 8, 8, 9]])


def test_random_crop_equals_padding_and_slicing():
    rng = np.random.RandomState(0)
    batch = rng.randn(8, 5, 6, 2)
    crop_from = rng.randint(0, 7, (8, 2))
    padded = np.pad(batch, ((0, 0), (3, 3), (3, 3), (0, 0)), mode='edge')
    expected = [p[i : i + 5, j : j + 6] for p, (i, j) in zip(padded, crop_from, strict=True)]
    np.testing.assert_array_equal(random_crop(batch, crop_from, 3), expected)


def test_augment_crops_all_keys_by_the_same_shifts_and_leaves_vectors():
    image = np.random.RandomState(0).randn(4, 5, 5, 1)
    batch = {'a': image, 'b': {'image': image, 'vector': np.ones((4, 2))}}
    augment(batch, ['a', 'b'], sampling.resolve(np.random.RandomState(1)), 'aug_')
    np.testing.assert_array_equal(batch['aug_a'], batch['aug_b']['image'])
    assert (batch['aug_a'] != image).any()
    np.testing.assert_array_equal(batch['aug_b']['vector'], np.ones((4, 2)))
    np.testing.assert_array_equal(batch['a'], image)


def test_augmentation_adds_copies_or_replaces():
    rng = np.random.RandomState
    plain = Dataset(images()).sample(4, rng(0))
    copies = Dataset(images(), p_aug=1.0, num_aug=2).sample(4, rng(0))
    np.testing.assert_array_equal(copies['observations'], plain['observations'])
    added = {f'aug{i}_{key}' for i in (1, 2) for key in ('observations', 'next_observations')}
    assert set(copies) - set(plain) == added
    assert (copies['aug1_observations'] != copies['aug2_observations']).any()
    replaced = Dataset(images(), p_aug=1.0, inplace_aug=True).sample(4, rng(0))
    assert set(replaced) == set(plain)
    np.testing.assert_array_equal(replaced['observations'], copies['aug1_observations'])


def test_the_augmentation_probability_decides_by_batch():
    dataset = Dataset(images(), p_aug=0.3)
    rng = np.random.RandomState(0)
    augmented = sum('aug1_observations' in dataset.sample(2, rng) for _ in range(300))
    assert 60 < augmented < 120
