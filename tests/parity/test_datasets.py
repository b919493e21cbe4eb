"""Replays recorded datasets of the originals through `purerl.data`."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open

from experiments.reference.datasets import replay_infom_dataset, replay_jaxrl5_dataset

RECORDINGS = Path(__file__).parent / 'recordings'
CASES = {
    'infom/dataset__default': replay_infom_dataset,
    'idql/dataset__core': replay_jaxrl5_dataset,
    'idql/dataset__replay_buffer': replay_jaxrl5_dataset,
    'idql/dataset__d4rl': replay_jaxrl5_dataset,
    'idql/dataset__binary': replay_jaxrl5_dataset,
}


def load_case(name):
    with safe_open(RECORDINGS / f'{name}.safetensors', 'np') as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return SimpleNamespace(
        tensors=tensors,
        config=json.loads(metadata['config']),
        seed=int(metadata['seed']),
        case=metadata['case'],
        agent=metadata['agent'],
        notes=metadata['notes'],
    )


@pytest.mark.parametrize(('name', 'replay'), CASES.items(), ids=CASES)
def test_every_recorded_result_is_reproduced(name, replay):
    case = load_case(name)
    missing = {key for key in case.tensors if '/out/' in key}
    for key, computed in replay(case):
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
