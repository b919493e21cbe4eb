import numpy as np
import pytest

from purerl.data.check import DatasetError, check_arrays


def arrays(n=6, **changes):
    base = {
        'observations': np.zeros((n, 3), np.float32),
        'next_observations': np.zeros((n, 3), np.float32),
        'actions': np.zeros((n, 2), np.float32),
        'rewards': np.zeros(n, np.float32),
        'terminals': np.zeros(n, np.float32),
    }
    return {**base, **changes}


def with_value(shape, index, value):
    array = np.zeros(shape, np.float32)
    array[index] = value
    return array


def test_a_sound_dataset_passes_without_copies():
    given = arrays()
    checked = check_arrays(given, 'file', required=('observations', 'rewards'))
    assert sorted(checked) == sorted(given)
    assert all(checked[key] is given[key] for key in given)


def test_casts_to_the_librarys_dtypes():
    given = arrays(
        observations={'state': np.zeros((6, 3)), 'image': np.zeros((6, 2, 2, 3), np.uint8)},
        next_observations={'state': np.zeros((6, 3)), 'image': np.zeros((6, 2, 2, 3), np.uint8)},
        terminals=np.array([0, 1, 0, 0, 0, 1], bool),
        dones=np.array([0, 1, 0, 0, 0, 1], np.uint8),
        actions=np.zeros(6, np.int32),
    )
    checked = check_arrays(given, 'file')
    assert checked['observations']['state'].dtype == np.float32
    assert checked['observations']['image'].dtype == np.uint8
    assert checked['terminals'].dtype == np.float32
    assert checked['dones'].dtype == bool
    assert checked['actions'].dtype == np.int32


FAULTS = {
    'missing': ({'reward': np.zeros(6)}, r"'rewards'.*missing.*did you mean 'reward'"),
    'short': ({'actions': np.zeros((4, 2))}, r"'actions' has 4 rows.*has 6.*index 4"),
    'long': ({'actions': np.zeros((9, 2))}, r"'actions' has 9 rows.*index 6"),
    'nan': ({'observations': with_value((6, 3), (4, 1), np.nan)}, r"'observations'.*nan.*index 4"),
    'inf': ({'rewards': with_value(6, slice(2, 4), np.inf)}, r"'rewards'.*inf.*index 2 \(2 such"),
    'overflow': ({'rewards': np.full(6, 1e300)}, r"'rewards'.*inf.*index 0"),
    'object': ({'actions': np.array([None] * 6)}, r"'actions' has dtype object"),
    'text': ({'actions': np.array(['a'] * 6)}, r"'actions' has dtype <U1"),
    'complex': ({'actions': np.zeros((6, 2), complex)}, r"'actions' has dtype complex128"),
    'scalar': ({'rewards': np.float32(1)}, r"'rewards' is a single number"),
    'wide': ({'rewards': np.zeros((6, 2))}, r"'rewards' has shape \(6, 2\)"),
    'flag': ({'terminals': with_value(6, 5, 0.5)}, r"'terminals'.*0.5.*index 5"),
    'mask': ({'masks': with_value(6, 1, -1)}, r"'masks'.*-1.*index 1"),
    'dones': ({'dones': with_value(6, 3, 2)}, r"'dones'.*2.*index 3"),
    'shape': ({'next_observations': np.zeros((6, 4))}, r'\(3,\).*next_observations have \(4,\)'),
    'nested': ({'extra': {'a': with_value(6, 3, np.nan)}}, r"'extra/a'.*nan.*index 3"),
}


@pytest.mark.parametrize(('changes', 'message'), FAULTS.values(), ids=FAULTS)
def test_names_file_key_and_first_bad_index(changes, message):
    given = arrays(**changes)
    if 'reward' in changes:
        del given['rewards']
    with pytest.raises(DatasetError, match=message) as caught:
        check_arrays(given, 'some/file.npz', required=('observations', 'rewards'))
    assert str(caught.value).startswith('some/file.npz: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('empty', [{}, arrays(0), {'observations': {}}], ids=['no', '0', 'nested'])
def test_an_empty_dataset_is_refused(empty):
    with pytest.raises(DatasetError, match=r'missing|empty|no arrays'):
        check_arrays(empty, 'file', required=('observations',))


def test_what_is_no_dict_is_refused():
    with pytest.raises(DatasetError, match='expected a dict of arrays, got list'):
        check_arrays([1, 2], 'file')


def test_a_dataset_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)
