"""The C kernels give the bits of the numpy code, and stand down where there is no compiler."""

import subprocess
import sys

import pytest
import torch

from purerl.core import native, random

KERNELS = {
    'pairs': random._pairs_kernel,
    'bits': random._bits_kernel,
    'uniform': random._uniform_kernel,
    'normal': random._normal_kernel,
}


@pytest.fixture
def without_native(monkeypatch):
    def run(kernel, *args):
        with monkeypatch.context() as patch:
            patch.setattr(native, 'library', lambda: None)
            return kernel(*args)

    return run


@pytest.mark.parametrize('name', KERNELS)
@pytest.mark.parametrize('n', [0, 1, 7, 4099])
def test_c_and_numpy_agree_on_every_bit(name, n, without_native):
    assert native.library() is not None, 'this test needs a C compiler'
    keys = random.split(random.key(3), 5)
    expected = without_native(KERNELS[name], keys, n)
    assert torch.equal(KERNELS[name](keys, n), expected)
    assert torch.equal(KERNELS[name](keys[2], n), expected[2])


def test_without_a_compiler_numpy_serves():
    program = (
        'from purerl.core import native, random\n'
        'assert native.library() is None\n'
        'print(random.normal(random.key(0), (3,)).tolist())'
    )
    result = subprocess.run(
        [sys.executable, '-c', program],
        env={'PATH': '', 'PURERL_NATIVE': '1'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(random.normal(random.key(0), (3,)).tolist())


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv('PURERL_NATIVE', '0')
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


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
