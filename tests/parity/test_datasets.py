"""Replays recorded datasets of the originals through `purerl.data`."""

from pathlib import Path

import numpy as np
import pytest

from experiments.reference.case import load
from experiments.reference.datasets import replay_infom_dataset, replay_jaxrl5_dataset

RECORDINGS = Path(__file__).parent / 'recordings'
PATHS = sorted(RECORDINGS.glob('*/dataset__*.safetensors'))
REPLAYS = {'infom': replay_infom_dataset, 'idql': replay_jaxrl5_dataset}


@pytest.mark.parametrize('path', PATHS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_every_recorded_result_is_reproduced(path):
    case = load(path)
    missing = {key for key in case.tensors if '/out/' in key}
    for key, computed in REPLAYS[case.system](case):
        assert key in missing, f'{key} is not in the file, or came twice'
        missing.remove(key)
        recorded = case.tensors[key]
        assert computed.shape == recorded.shape, key
        if recorded.dtype.kind == 'f':
            assert computed.dtype in (np.float32, np.float64), key
            scale = max(1.0, float(np.abs(recorded).max(initial=0)))
            np.testing.assert_allclose(computed, recorded, rtol=0, atol=1e-6 * scale, err_msg=key)
        else:
            np.testing.assert_array_equal(computed, recorded, err_msg=key)
    assert not missing
