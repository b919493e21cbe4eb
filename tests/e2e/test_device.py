"""Every agent and launcher on a second device, and on a GPU where there is one."""

import json
import subprocess
import sys

import pytest
import torch

from purerl.train.config import ROOT

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


@pytest.mark.parametrize(
    'flags',
    [
        pytest.param([], id='second'),
        pytest.param(['--device=cuda', '--jit=trace'], id='cuda_trace', marks=CUDA),
        pytest.param(['--device=cuda', '--jit=inductor'], id='cuda_inductor', marks=CUDA),
    ],
)
def test_agents_and_launchers_work_on_the_device(flags):
    command = [sys.executable, '-m', 'tests.device_checks', *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    errors = dict(map(json.loads, result.stdout.splitlines()))
    assert {'infom', 'sac', 'drq', 'rrd/rrd_sac', 'experiments.online'} <= errors.keys()
    failed = {name: error for name, error in errors.items() if error is not None}
    assert not failed, '\n'.join(failed.values())
