import numpy as np
import pytest

from purerl.data.check import DatasetError
from purerl.data.normalizers import Normalizer


def test_columns_get_zero_mean_and_unit_variance():
    array = np.array([[0.0, 10.0], [2.0, 30.0]])
    normalizer = Normalizer.of(array)
    np.testing.assert_array_equal(normalizer.means, np.float32([1, 20]))
    np.testing.assert_array_equal(normalizer.stds, np.float32([1, 10]))  # ddof 0
    np.testing.assert_array_equal(normalizer.mins, [0, 10])
    np.testing.assert_array_equal(normalizer.maxs, [2, 30])
    np.testing.assert_array_equal(normalizer.normalize(array), [[-1, -1], [1, 1]])
    np.testing.assert_array_equal(normalizer.unnormalize(normalizer.normalize(array)), array)


def test_constant_columns_are_refused():
    normalizer = Normalizer.of(np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0]]))
    with pytest.raises(DatasetError, match=r'columns \[1, 2\] never change'):
        normalizer.normalize(np.zeros(3))
