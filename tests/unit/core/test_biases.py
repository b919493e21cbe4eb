"""Biases are added by the kernels that read a product, and the sum is the same."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from purerl.core import jit, random


@pytest.mark.parametrize(
    'layer, called',
    [
        (lambda x, w, b: torch.relu(x @ w + b), 'mm_out'),
        (lambda x, w, b: torch.relu(b + x @ w), 'mm_out'),
        (lambda x, w, b: torch.relu(torch.addmm(b, x, w, beta=0.5, alpha=2.0)), 'addmm_out'),
    ],
)
def test_sums_are_the_same(layer, called):
    x, w = (random.normal(random.key(i), (16, 16)) for i in range(2))
    bias = random.normal(random.key(2), (16,))
    compiled = jit.jit(layer, mode='inductor')
    with torch._inductor.config.patch(force_disable_caches=True):
        result, (code,) = run_and_get_code(compiled, x, w, bias)
    assert f'aoti_torch_cpu_{called}(' in code
    torch.testing.assert_close(result, layer(x, w, bias), rtol=1e-5, atol=1e-5)
