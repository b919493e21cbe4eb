"""What is native: kernels in C, vector instructions, the C library's allocator.

The kernels (``kernels.c``) are compiled on first import and kept for later processes. Those of
`random` return the bits that its numpy code returns, 20 to 60 times faster. Where there is no C
compiler, or with ``PURERL_NATIVE=0`` in the environment, Python serves.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name('kernels.c')
_FILE = str(_SOURCE).encode()  # PyTorch keeps the address of these bytes
# Contraction is off because the fused multiply-adds are written out where XLA has them. What
# PyTorch raises passes through.
_FLAGS = (
    '-O3', '-march=native', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math',
    '-fexceptions', '-shared', '-fPIC',
)  # fmt: skip

_POINTER = ctypes.c_void_p

# What kernels.c calls of PyTorch's stable C interface, by its structs and in their order.
_FUNCTIONS = {
    'torch': (
        'get_dim', 'get_sizes', 'get_strides', 'get_data_ptr', 'empty_strided',
        'delete_tensor_object', 'check',
    ),
    'onednn': ('_reinterpret_tensor', 'cpu__linear_pointwise'),
}  # fmt: skip


def register(operators: Iterable[str], structs: Sequence[str] = ('torch',)) -> bool:
    """Register the functions of ``kernels.c`` as the CPU kernels of operators (of ``purerl``).

    PyTorch, and what it compiles, then calls them without a detour through Python.

    Args:
        operators: names.
        structs: which of the functions in ``kernels.c`` they need.

    Returns:
        Whether that was done; not where there is no C compiler, or it is not wanted.
    """
    library = _library()
    if library is None:
        return False
    torch_library = ctypes.CDLL(torch._C.__file__)
    try:
        start, add = (_function(torch_library, f'library_{name}') for name in ('init_impl', 'impl'))
        for struct in structs:
            functions = [_function(torch_library, name) for name in _FUNCTIONS[struct]]
            addresses = [ctypes.cast(function, _POINTER).value for function in functions]
            getattr(library, f'bind_{struct}')((_POINTER * len(addresses))(*addresses))
    except AttributeError:  # a torch without this interface
        return False
    handle = _POINTER()  # of a torch.library.Library, which is there to stay
    failed = start(b'purerl', b'CPU', _FILE, ctypes.c_uint32(0), ctypes.byref(handle))
    for name in operators:
        kernel = ctypes.cast(getattr(library, f'op_{name}'), _POINTER)
        failed |= add(handle, name.encode(), kernel)
    if failed:
        raise RuntimeError(f'torch {torch.__version__} did not take the kernels of {_SOURCE.name}')
    return True


def _function(torch_library, name):
    return getattr(torch_library, f'aoti_torch_{name}')


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    if os.environ.get('PURERL_NATIVE') == '0':
        return None
    compiler = os.environ.get('CC') or shutil.which('gcc') or shutil.which('cc')
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def _build(compiler: str) -> Path:
    """Compile unless this source was compiled before by this compiler on this kind of machine."""
    identity = (_SOURCE.read_bytes(), compiler.encode(), ' '.join(_FLAGS).encode(), _machine())
    digest = hashlib.sha256(b'\0'.join(identity)).hexdigest()[:16]
    path = _cache_folder() / f'kernels-{digest}.so'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            command = [compiler, *_FLAGS, '-o', str(built), str(_SOURCE), '-lm']
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            built.replace(path)
    return path


def _machine() -> bytes:
    """What -march=native depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        described = next(line for line in lines if line.lower().startswith(('flags', 'features')))
    except (OSError, StopIteration):
        described = platform.processor()
    return f'{platform.machine()} {described}'.encode()


def _cache_folder() -> Path:
    base = os.environ.get('XDG_CACHE_HOME')
    try:
        return (Path(base) if base else Path.home() / '.cache') / 'purerl'
    except RuntimeError:  # no home folder
        return Path(tempfile.gettempdir()) / f'purerl-{os.getuid()}'


@functools.cache
def has_claimed_vectors() -> bool:
    """Whether the compiler can use all vector instructions that the processor claims to have.

    TorchInductor finds out at every start, in processes that import torch, which takes a second.
    Here a yes is kept for later processes.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    compiler = os.environ.get('CXX') or shutil.which('g++') or ''
    identity = (torch.__version__.encode(), compiler.encode(), _machine())
    digest = hashlib.sha256(b'\0'.join(identity)).hexdigest()[:16]
    path = _cache_folder() / f'vectors-{digest}'
    if path.exists():
        return True
    probed = valid_vec_isa_list()
    valid_vec_isa_list.cache_clear()
    with config.patch({'cpp.vec_isa_ok': True}):
        claimed = valid_vec_isa_list()
    valid_vec_isa_list.cache_clear()
    if not probed or probed != claimed:
        return False
    with contextlib.suppress(OSError):  # without a folder to write to, the next process asks again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return True


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back to the kernel.

    Every update allocates a new state and frees the old one; fetching those pages anew costs a
    256-wide SAC update 2%. Elsewhere than with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
