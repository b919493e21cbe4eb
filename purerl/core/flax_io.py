"""Flax's checkpoints, in and out, without JAX.

    state = load_flax('params_1000000.pkl')          # nested dicts of numpy arrays
    agent = restore_flax(agent, state)               # an agent of the same algorithm
    save_flax('exported/params_1000000.pkl', agent)  # what the original's restore_agent reads

Two formats are read and written, both holding ``flax.serialization.to_state_dict(agent)``: pickles
``{'agent': state}`` (OGBench, InFOM) and msgpack (``flax.serialization.to_bytes``, and the single
files of ``flax.training.checkpoints``, as in jaxrl5).

Pickles go through `load_safe_pickle`, which runs no code from the file: each name that a pickle
may refer to stands in a table of this module, with an own implementation, and every other name is
an error.
"""

import io
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from purerl.core import trees
from purerl.core.checkpoint import CheckpointError, as_leaf, as_tensor, difference, replacing

_MAX_PARTS = 10**6  # of a state dict: far more than an agent has
_CHUNK_BYTES = 2**30  # msgpack holds less than 2**31 bytes per object; Flax splits from here on
_CHUNKED = '__msgpack_chunked_array__'
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's msgpack extension types


# --- Agents ----------------------------------------------------------------------------------


def load_flax(path: str | os.PathLike) -> Any:
    """Read a Flax checkpoint.

    Args:
        path: a pickle or a msgpack file, told apart by their first bytes.

    Returns:
        Nested dicts of numpy arrays and numbers. A pickle's outer ``{'agent': ...}`` is taken off;
        bfloat16 arrays, which numpy lacks, become float32.

    Raises:
        CheckpointError: if the file is missing, damaged, or a pickle of anything but arrays and
            plain containers.
        ImportError: if the file is msgpack and the `flax` extra is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f'{path}: a folder, not a file (an Orbax checkpoint? restore it with Orbax, and save '
            'flax.serialization.to_bytes(agent))'
        )
    try:
        with path.open('rb') as file:
            head = file.read(2)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error})') from error
    if path.suffix in ('.pkl', '.pickle') or (len(head) == 2 and head[0] == 0x80):
        state = load_safe_pickle(path)
        if isinstance(state, dict) and set(state) == {'agent'}:
            return state['agent']
        return state
    return _load_msgpack(path)


def restore_flax(agent, state_dict: Mapping):
    """Put a Flax state dict's values into an agent, or into any part of one.

    Args:
        agent: a tree whose paths are the state dict's: an agent of the same algorithm with the
            same network sizes. Its values are not used. Leaves below the names in its class's
            `changes_shape`, if it has that, may have other shapes.
        state_dict: what `load_flax` returns, or ``flax.serialization.to_state_dict``; mappings of
            any kind (``FrozenDict``) of arrays and numbers. Keys, uint32 there, become int64.

    Returns:
        A tree like `agent`, on its devices and with its dtypes.

    Raises:
        CheckpointError: if paths are missing or unexpected, or shapes or kinds of dtype differ
            (the message names the first of each), or if there are a million of them.
    """
    given = dict(trees.leaves_with_path(_plain_dicts(state_dict, iter(range(_MAX_PARTS)))))
    expected = dict(trees.leaves_with_path(agent))
    flexible = getattr(agent, 'changes_shape', frozenset())
    restored, misfits = [], []
    for path, like in expected.items():
        if path in given:
            try:
                fixed = flexible.isdisjoint(path)
                restored.append(_restore_leaf(given[path], like, fixed))
            except ValueError as error:
                misfits.append(f'{"/".join(path)} ({error})')
    missing = ['/'.join(path) for path in expected if path not in given]
    unexpected = ['/'.join(path) for path in given if path not in expected]
    if missing or unexpected or misfits:
        problems = difference(missing, unexpected, misfits)
        raise CheckpointError(f'the Flax state does not fit {type(agent).__name__}: {problems}')
    return trees.unflatten(trees.structure(agent), restored)


def to_flax(agent) -> Any:
    """Return what ``flax.serialization.to_state_dict`` gives for the original of `agent`.

    Args:
        agent: a tree of tensors.

    Returns:
        Nested dicts of numpy arrays, with empty dicts for empty containers, and None. JAX has no
        64-bit integers by default: int64 tensors whose last axis has two entries, none negative,
        are keys and become uint32, all others int32; bfloat16 becomes float32.

    Raises:
        CheckpointError: if an int64 value does not fit; the message names its path.
    """
    return _to_state_dict(agent, ())


def save_flax(path: str | os.PathLike, agent) -> None:
    """Write an agent as a checkpoint that the original restores.

    Args:
        path: ending in ``.pkl`` for ``{'agent': state}`` as a pickle, which any version of numpy
            opens (InFOM's `restore_agent` looks for ``params_<epoch>.pkl``); or in ``.msgpack``
            for ``flax.serialization.from_bytes``.
        agent: a tree of tensors.

    Raises:
        CheckpointError: if the file cannot be written.
        ImportError: if the path ends in ``.msgpack`` and the `flax` extra is not installed.
        ValueError: if the path ends in anything else.
    """
    path = Path(path)
    if path.suffix == '.pkl':
        buffer = io.BytesIO()
        _PortablePickler(buffer, protocol=4).dump({'agent': to_flax(agent)})
        content = buffer.getbuffer()
    elif path.suffix == '.msgpack':
        content = _pack_msgpack(to_flax(agent))
    else:
        raise ValueError(f'{path}: a Flax checkpoint ends in .pkl or .msgpack')
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _plain_dicts(node, room: Iterator):
    """Make dicts of all containers, one item of `room` for each part.

    A short pickle of containers that share their parts unfolds to any number of them.
    """
    if next(room, None) is None:
        raise CheckpointError(f'the Flax state has more than {_MAX_PARTS} parts: it is no agent')
    children = node if isinstance(node, Mapping) else trees.children(node)
    if children is None:
        return node
    return {str(name): _plain_dicts(child, room) for name, child in children.items()}


def _restore_leaf(value, like, fixed_shape):
    """Return `value` as the kind of leaf that `like` is.

    Raises:
        ValueError: if shape (where it is fixed) or kind of dtype differ, or the value does not fit.
    """
    spec = as_tensor(like)
    array = np.asarray(value)
    if array.dtype.name == 'bfloat16':
        array = array.astype(np.float32)
    wanted = f'{str(spec.dtype).removeprefix("torch.")} {tuple(spec.shape)}'
    kinds = 'b' if spec.dtype == torch.bool else 'iuf' if spec.is_floating_point() else 'iu'
    misshapen = fixed_shape and array.shape != tuple(spec.shape)
    if misshapen or array.dtype.kind not in kinds:
        raise ValueError(f'{array.dtype} {array.shape}, expected {wanted}')
    # PyTorch knows neither other byte orders nor, in most conversions, the wider unsigned dtypes.
    native = np.int64 if array.dtype.kind == 'u' else array.dtype.newbyteorder('=')
    tensor = torch.from_numpy(array.astype(native, order='C')).to(spec.dtype)
    if not spec.is_floating_point() and not np.array_equal(tensor.numpy(), array):
        raise ValueError(f'{array.dtype} with values too large, expected {wanted}')
    return as_leaf(tensor, like)


def _to_state_dict(node, path):
    if node is None:
        return None
    children = trees.children(node)
    if children is not None:
        return {name: _to_state_dict(child, (*path, name)) for name, child in children.items()}
    tensor = as_tensor(node).detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    array = tensor.numpy().copy()
    if array.dtype != np.int64:
        return array
    is_key = array.ndim > 0 and array.shape[-1] == 2 and (array >= 0).all()
    narrow = array.astype(np.uint32 if is_key else np.int32)
    if not np.array_equal(narrow, array):
        raise CheckpointError(f'{"/".join(path)}: a value does not fit into {narrow.dtype}')
    return narrow


class _PortablePickler(pickle.Pickler):
    """Writes arrays as ``numpy.ndarray(shape, dtype, buffer)``.

    numpy's own way names a private module, which numpy 2 calls otherwise than numpy 1, where many
    of the originals run.
    """

    def reducer_override(self, obj):
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, obj.dtype.str, obj.tobytes())
        return NotImplemented


# --- msgpack ---------------------------------------------------------------------------------


def _msgpack():
    try:
        import msgpack
    except ImportError:
        raise ImportError(
            "Flax's msgpack files need the msgpack package: pip install 'purerl[flax]'"
        ) from None
    return msgpack


def _load_msgpack(path: Path):
    msgpack = _msgpack()

    def extension(code, data):
        if code == _COMPLEX:
            return complex(*msgpack.unpackb(data))
        if code not in (_NDARRAY, _SCALAR):
            raise _Refused(f'holds the unknown msgpack extension type {code}')
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        array = _decode_array(buffer, _Dtype(dtype.decode()), tuple(shape))
        return array if code == _NDARRAY else array[()]

    try:
        content = path.read_bytes()
        state = msgpack.unpackb(content, ext_hook=extension, raw=False, strict_map_key=False)
        return _join_chunks(state)
    except _Refused as error:
        raise CheckpointError(f'{path}: {error}') from None
    except Exception as error:
        raise CheckpointError(
            f'{path}: damaged, or not a Flax checkpoint ({type(error).__name__}: {error})'
        ) from error


def _join_chunks(node):
    if not isinstance(node, dict):
        return node
    if _CHUNKED in node:
        chunks, shape = node['chunks'], node['shape']
        flat = np.concatenate([chunks[str(i)] for i in range(len(chunks))])
        return flat.reshape([shape[str(i)] for i in range(len(shape))])
    return {name: _join_chunks(child) for name, child in node.items()}


def _pack_msgpack(state) -> bytes:
    msgpack = _msgpack()

    def extension(array):
        content = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(_NDARRAY, msgpack.packb(content, use_bin_type=True))

    return msgpack.packb(_split_chunks(state), default=extension)


def _split_chunks(node):
    if isinstance(node, dict):
        return {name: _split_chunks(child) for name, child in node.items()}
    if not isinstance(node, np.ndarray) or node.nbytes <= _CHUNK_BYTES:
        return node
    size = _CHUNK_BYTES // node.itemsize
    starts = range(0, node.size, size)
    return {
        _CHUNKED: True,
        'shape': {str(i): length for i, length in enumerate(node.shape)},
        'chunks': {str(i): node.reshape(-1)[j : j + size] for i, j in enumerate(starts)},
    }


# --- Pickles ---------------------------------------------------------------------------------
# The unpickler sees only objects of the three classes below: functions that are called with what
# the pickle gives them, and dtypes and arrays under construction, which `_plain` resolves. None
# has attributes that a pickle could write.


def load_safe_pickle(file: str | os.PathLike | BinaryIO, objects: bool = False) -> Any:
    """Read a pickle of numpy or JAX arrays and plain containers, running no code from it.

    Args:
        file: a path, or a file open for reading bytes.
        objects: whether arrays of objects, with one axis, are admitted too; they become lists.

    Returns:
        Dicts, lists, tuples, sets, strings, bytes, numbers, None, and numpy arrays and scalars
        (writeable; bfloat16 as float32). ``OrderedDict`` and Flax's ``FrozenDict`` become dicts,
        JAX's arrays become numpy's.

    Raises:
        CheckpointError: if the pickle refers to anything else (the message names it), or is
            damaged.
    """
    if isinstance(file, str | os.PathLike):
        try:
            with open(file, 'rb') as opened:
                return load_safe_pickle(opened, objects)
        except OSError as error:
            raise CheckpointError(f'{file}: cannot be read ({error})') from error
    name = getattr(file, 'name', 'pickle')
    try:
        return _plain(_RestrictedUnpickler(file).load(), {}, objects)
    except _Refused as error:
        raise CheckpointError(f'{name}: {error}') from None
    except Exception as error:
        raise CheckpointError(
            f'{name}: damaged, or not a pickle of arrays and plain containers '
            f'({type(error).__name__}: {error})'
        ) from error


class _Refused(Exception):
    """A file holds something that has no place in a checkpoint; the message lacks the file."""


# The implementation in Python, because the one in C reserves gigabytes when a damaged file numbers
# an object wrongly; arrays are read in one piece by either.
class _RestrictedUnpickler(pickle._Unpickler):
    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(
                f'refers to {module}.{name}, which is refused: only arrays and plain containers '
                'are loaded, and nothing of it was run'
            ) from None


class _Function:
    """A function that a pickle may call, but not look into or change."""

    __slots__ = ('_call',)

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state):
        raise _Refused('tries to change a function')


# Numbers, booleans and text, as pickles ('f4') and msgpack files ('float32') call them.
_DTYPE_CODE = re.compile(r'[<>|=]?[biufcSU]\d+|bool|(u?int|float|complex)\d+')


class _Dtype:
    """A numpy dtype under construction: the code in its constructor, the byte order as state."""

    __slots__ = ('_code', '_order')

    def __init__(self, code, align=False, copy=True):
        self._code, self._order = code, ''

    def __setstate__(self, state):
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise _Refused('holds structured arrays')
        self._order = order if order in ('<', '>') else ''

    @property
    def is_bfloat16(self) -> bool:
        return self._code is _BFLOAT16 or self._code == 'bfloat16'

    def resolve(self) -> np.dtype:
        if not isinstance(self._code, str) or not _DTYPE_CODE.fullmatch(self._code):
            raise _Refused(f'holds arrays of dtype {self._code!r}')
        dtype = np.dtype(self._code)
        return dtype.newbyteorder(self._order) if self._order else dtype


class _Array:
    """A numpy array under construction: empty when it is made, its contents as state."""

    __slots__ = ('value',)

    def __setstate__(self, state):
        *_, shape, dtype, fortran_order, content = state
        if isinstance(content, list) and len(shape) == 1:
            self.value = content  # of objects: `_plain` knows whether that is admitted
            return
        self.value = _decode_array(content, dtype, shape, 'F' if fortran_order else 'C')


def _decode_array(content, dtype: _Dtype, shape: tuple[int, ...], order: str = 'C') -> np.ndarray:
    """Return a writeable array of the bytes `content`; bfloat16 widened to float32."""
    if not isinstance(content, bytes | bytearray):
        raise _Refused('holds arrays of objects')
    plain = np.dtype('<u2') if dtype.is_bfloat16 else dtype.resolve()
    array = np.ndarray(shape, plain, content, order=order).copy()
    if array.nbytes != len(content):
        raise ValueError(f'{len(content)} bytes for an array {array.shape} of {plain}')
    if dtype.is_bfloat16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


def _new_array(shape, dtype, content):
    return _decode_array(content, _Dtype(dtype), shape)


def _empty_array(_kind, _shape, _typecode):
    return _Array()


def _array_from_buffer(content, dtype, shape, order, axis_order=None):
    if order == 'K' and axis_order is not None:
        return _decode_array(content, dtype, shape).transpose(axis_order)
    return _decode_array(content, dtype, shape, order)


def _scalar(dtype, content):
    return _decode_array(content, dtype, ())[()]


def _jax_array(_make, _args, state, _aval):
    array = _Array()
    array.__setstate__(state)
    return array


def _encode_latin1(text, encoding):
    if encoding != 'latin1':
        raise _Refused(f'holds bytes encoded as {encoding!r}')
    return text.encode('latin1')


_BFLOAT16 = _Function(float)

_ADMITTED: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): _Function(_new_array),
    ('numpy', 'dtype'): _Function(_Dtype),
    ('jax._src.array', '_reconstruct_array'): _Function(_jax_array),
    ('jax._src.device_array', 'reconstruct_device_array'): _Function(_jax_array),  # jax < 0.4
    ('ml_dtypes', 'bfloat16'): _BFLOAT16,
    ('flax.core.frozen_dict', 'FrozenDict'): _Function(dict),
    ('collections', 'OrderedDict'): _Function(dict),
    ('_codecs', 'encode'): _Function(_encode_latin1),  # how protocols 0 to 2 write bytes ...
    ('__builtin__', 'bytes'): _Function(lambda: b''),  # ... and none
}
for _numpy in ('numpy.core', 'numpy._core'):  # numpy 1, numpy 2
    _ADMITTED[f'{_numpy}.multiarray', '_reconstruct'] = _Function(_empty_array)
    _ADMITTED[f'{_numpy}.multiarray', 'scalar'] = _Function(_scalar)
    _ADMITTED[f'{_numpy}.numeric', '_frombuffer'] = _Function(_array_from_buffer)
for _builtins in ('builtins', '__builtin__'):  # protocols 3 and up, protocols 0 to 2
    for _kind in (complex, set, frozenset):
        _ADMITTED[_builtins, _kind.__name__] = _Function(_kind)


def _plain(node, seen: dict[int, Any], objects: bool):
    """Replace the arrays and dtypes under construction by real ones.

    Args:
        node: what the unpickler made.
        seen: results by identity, so that shared containers stay shared; a container that is met
            again before its result stands contains itself.
        objects: whether arrays of objects are admitted.
    """
    if isinstance(node, _Array) and isinstance(node.value, list):
        if not objects:
            raise _Refused('holds arrays of objects')
        return _plain(node.value, seen, objects)
    if isinstance(node, _Array):
        return node.value
    if isinstance(node, _Dtype):
        return node.resolve()
    if isinstance(node, _Function):
        raise _Refused('holds a function or a class')
    if not isinstance(node, dict | list | tuple | set | frozenset):
        return node
    if id(node) not in seen:
        seen[id(node)] = _Refused
        if isinstance(node, dict):
            seen[id(node)] = {
                _plain(k, seen, objects): _plain(v, seen, objects) for k, v in node.items()
            }
        else:
            seen[id(node)] = type(node)([_plain(item, seen, objects) for item in node])
    if seen[id(node)] is _Refused:
        raise _Refused('holds a container that contains itself')
    return seen[id(node)]
