"""The C kernels give the bits of the numpy code, and stand down where there is no compiler."""

import os
import subprocess
import sys

import pytest
import torch

from purerl.core import native, random

KEYS = random.split(random.key(3), 6)
LAYOUTS = {
    'one': KEYS[0],
    'several': KEYS,
    'apart': KEYS[::2],
    'transposed': KEYS.reshape(2, 3, 2).transpose(0, 1),
    'expanded': KEYS[0].expand(2, 3, 2),
    'none': KEYS[:0],
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', ['pairs', 'bits', 'uniform', 'normal'])
@pytest.mark.parametrize('n', [0, 1, 7, 4099])
def test_c_and_numpy_agree_on_every_bit(name, n, layout):
    keys = LAYOUTS[layout]
    result = getattr(torch.ops.purerl, name)(keys, n)
    assert torch.equal(result, random._KERNELS[name](keys, n))
    assert result.is_contiguous()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_counts_are_shared_by_all_keys_or_each_has_its_own(layout):
    keys = LAYOUTS[layout]
    shared = torch.tensor([5, 2**32 - 1, 0, 9])[::2]
    rows = torch.arange(keys.shape[:-1].numel() * 3).reshape(*keys.shape[:-1], 3).flip(-1)
    for counts in (shared, rows):
        result = torch.ops.purerl.block(keys, counts)
        assert torch.equal(result, random._KERNELS['block'](keys, counts))


@pytest.mark.parametrize('name', ['log', 'log1p', 'erfinv'])
def test_functions_of_numbers_in_any_layout(name):
    x = random.uniform(KEYS[0], (5, 4, 3))
    for numbers in (x, x[0, 0, 0], x.transpose(0, 2), x[:, ::2], x[:0]):
        result = getattr(torch.ops.purerl, name)(numbers)
        assert torch.equal(result, random._KERNELS[name](numbers))


def test_what_does_not_fit_into_memory_is_an_error():
    # The message shows, too, that it is the kernels in C that these tests compare with numpy's.
    with pytest.raises(RuntimeError, match='no result of this size can be made'):
        torch.ops.purerl.normal(KEYS[0], 10**15)


@pytest.mark.parametrize('environment', [{'PATH': ''}, {'PURERL_NATIVE': '0'}])
def test_numpy_serves_without_a_compiler_or_when_asked_for(environment):
    program = (
        'from purerl.core import random\n'
        'used, cipher = [], random._threefry_numpy\n'
        'random._threefry_numpy = lambda *x: used.append(x) or cipher(*x)\n'
        'print(random.normal(random.key(0), (3,)).tolist())\n'
        'assert used\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', program],
        env={k: v for k, v in os.environ.items() if k not in ('CC', 'PURERL_NATIVE')} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(random.normal(random.key(0), (3,)).tolist())


def test_a_torch_without_the_interface_is_left_to_numpy(monkeypatch):
    monkeypatch.setitem(native._FUNCTIONS, 'torch', ('get_dim', 'no_such_function'))
    assert not native.register(())


def test_vector_instructions_are_asked_for_once(monkeypatch, tmp_path):
    from torch._inductor import cpu_vec_isa

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    native.has_claimed_vectors.cache_clear()
    try:
        first = native.has_claimed_vectors()
        assert first == bool(list(tmp_path.rglob('vectors-*')))
        assert first == bool(cpu_vec_isa.valid_vec_isa_list())
        native.has_claimed_vectors.cache_clear()
        monkeypatch.setattr(cpu_vec_isa, 'valid_vec_isa_list', lambda: pytest.fail('asked again'))
        assert native.has_claimed_vectors()
    finally:
        native.has_claimed_vectors.cache_clear()
