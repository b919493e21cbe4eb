"""Checkpoints: safetensors for arrays, JSON for everything else, written atomically.

A tree becomes one safetensors file whose tensors are named by their path in the tree
(``network/params/modules_actor/Dense_0/kernel``):

    save_tree('agent.safetensors', agent)
    agent = load_tree('agent.safetensors', like=agent)

A checkpoint is a pair of files: the arrays, and a JSON file that names them. Renaming the JSON
file into place is what makes the checkpoint exist, so that a process killed at any moment leaves
either the previous checkpoint or the new one:

    save_checkpoint(folder, step, agent, {'numpy': generator.bit_generator.state}, keep=2)
    agent, host_state, step = load_checkpoint(folder, like=agent)

Checksums over both files turn silent corruption into an error. One process at a time may write
into a folder.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from purerl.core import trees
from purerl.core.files import atomic_path

_FORMAT = 'purerl-checkpoint-1'
_CHECKSUM = 'purerl_sha256'
_TREE = 'tree'
_HOST = 'host_state'
_OURS = re.compile(r'checkpoint_(\d+)(\.[0-9a-f]{16}\.safetensors|\.json)')
_MAX_FIELDS = 5  # that a message names
_DTYPES = (
    {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
)


class CheckpointError(RuntimeError):
    """A file that cannot be read, written, or made to fit; the message names it."""


# --- Trees -----------------------------------------------------------------------------------


def save_tree(path: str | os.PathLike, tree, metadata: Mapping[str, str] | None = None) -> None:
    """Write the leaves of `tree` to one safetensors file, atomically.

    Args:
        path: the file to write; an older file of that name is replaced once the new one is on
            the disk.
        tree: leaves are tensors of any device, numpy arrays or Python numbers. Dtypes and shapes,
            0-d and empty ones included, are kept as they are.
        metadata: strings to store in the file's header.

    Raises:
        CheckpointError: if a leaf or a name cannot be stored, or the file cannot be written.
    """
    tensors = {'/'.join(names): leaf for names, leaf in _named_leaves(tree, path).items()}
    _write_tensors(path, _as_storable(tensors, path), dict(metadata or {}))


def load_tree(path: str | os.PathLike, like):
    """Read a tree that `save_tree` wrote.

    Args:
        path: the file to read.
        like: a tree of the structure, shapes and dtypes to expect; each loaded leaf is put on the
            device of its counterpart (the CPU for meta tensors). Its values are not used.

    Returns:
        A tree of the structure of `like`.

    Raises:
        CheckpointError: if the file is missing, damaged, or does not fit `like`; the message names
            the first paths that are missing, unexpected or of another shape or dtype.
    """
    tensors, _ = _read_tensors(path)
    return _fit(tensors, like, path)


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the strings that `save_tree` was given, without reading the tensors.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _readable(path) as file:
        metadata = file.metadata() or {}
    return {name: text for name, text in metadata.items() if name != _CHECKSUM}


# --- Checkpoints -----------------------------------------------------------------------------


def save_checkpoint(
    folder: str | os.PathLike, step: int, tree, host_state, keep: int | None = None
) -> Path:
    """Write a checkpoint, and remove old ones once it is safely on the disk.

    Args:
        folder: where the checkpoints of one run lie; made if there is none.
        step: number of the checkpoint; an older one of the same number is replaced.
        tree: the agent, or any tree that `save_tree` accepts.
        host_state: everything else that a resumed run needs: nested dicts, lists and tuples of
            strings, booleans, floats, integers of any size, None, and numpy arrays, numpy scalars
            or tensors anywhere among them.
        keep: how many checkpoints to keep, this one included: the others with the largest step
            numbers. None keeps all.

    Returns:
        The path of the checkpoint's JSON file.

    Raises:
        CheckpointError: if something cannot be stored or written (a full disk, for example); the
            older checkpoints are then as they were.
        ValueError: if `keep` is below 1 or `step` below 0.
    """
    if keep is not None and keep < 1:
        raise ValueError(f'keep is {keep}; at least the new checkpoint must be kept')
    if step < 0:
        raise ValueError(f'step is {step}; steps are counted from 0')
    folder = Path(folder)
    path = folder / f'checkpoint_{step:010d}.json'

    arrays: dict[str, Any] = {}
    encoded = _encode(host_state, (_HOST,), arrays, path)
    for names, leaf in _named_leaves(tree, path).items():
        arrays['/'.join((_TREE, *names))] = leaf
    tensors = _as_storable(arrays, path)
    checksum = _checksum(tensors, {})
    body = {
        'format': _FORMAT,
        'step': step,
        'tensors': f'{path.stem}.{checksum[:16]}.safetensors',
        'tensors_sha256': checksum,
        'host_state': encoded,
        'config': _config_of(tree),
    }

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot hold checkpoints ({error})') from error
    try:
        _write_tensors(folder / body['tensors'], tensors, {}, checksum)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**body, 'sha256': _json_checksum(body)}, indent=1))
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_leftovers(folder)
        raise
    if keep is not None:
        others = [other for other in available_steps(folder) if other != step]
        for old in others[: max(0, len(others) - (keep - 1))]:
            (folder / f'checkpoint_{old:010d}.json').unlink()
    _remove_leftovers(folder)
    return path


def load_checkpoint(folder: str | os.PathLike, step: int | None = None, *, like):
    """Read a checkpoint that `save_checkpoint` wrote.

    Args:
        folder: where the checkpoints lie.
        step: which one; None for the latest.
        like: a tree of the structure, shapes and dtypes to expect, as in `load_tree`. If its class
            has `changes_shape`, a set of names, leaves below these may have other shapes: those of
            an agent whose training changes them.

    Returns:
        (tree, host_state, step).

    Raises:
        CheckpointError: if there is no such checkpoint, it is damaged, or it does not fit `like`;
            the message names what differs, fields of the agents' configs included.
    """
    folder = Path(folder)
    steps = available_steps(folder)
    if not steps:
        raise CheckpointError(f'{folder}: no checkpoint here')
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise CheckpointError(f'{folder}: no checkpoint of step {step}; there are {steps}')

    path = folder / f'checkpoint_{step:010d}.json'
    body = _read_json(path)
    tensors_path = folder / body['tensors']
    tensors, checksum = _read_tensors(tensors_path)
    if checksum != body['tensors_sha256']:
        raise CheckpointError(f'{tensors_path}: not the file that {path.name} was written with')

    arrays, tree_tensors = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(f'{_HOST}/'):
            arrays[name] = tensor
        else:
            tree_tensors[name.removeprefix(_TREE).removeprefix('/')] = tensor
    try:
        tree = _fit(tree_tensors, like, tensors_path)
    except CheckpointError as error:
        reasons = _config_difference(body.get('config', {}), _config_of(like))
        raise CheckpointError(f'{error}{reasons}') from None
    return tree, _decode(body['host_state'], arrays), step


def _config_of(tree) -> dict[str, str]:
    """Fields of an agent's config as text; empty for other trees."""
    config = getattr(tree, 'config', None)
    return {key: repr(config[key]) for key in config} if isinstance(config, Mapping) else {}


def _config_difference(saved: Mapping[str, str], ours: Mapping[str, str]) -> str:
    names = [name for name in sorted({*saved, *ours}) if saved.get(name) != ours.get(name)]
    if not (saved and names):
        return ''
    fields = [f'{name}={saved.get(name)}, not {ours.get(name)}' for name in names[:_MAX_FIELDS]]
    more = f' and {len(names) - _MAX_FIELDS} more' if len(names) > _MAX_FIELDS else ''
    return f'. It was saved with {"; ".join(fields)}{more}'


def available_steps(folder: str | os.PathLike) -> list[int]:
    """Return the step numbers of the complete checkpoints in `folder`, in ascending order."""
    found = (_OURS.fullmatch(path.name) for path in Path(folder).glob('checkpoint_*.json'))
    return sorted(int(match[1]) for match in found if match)


def latest_step(folder: str | os.PathLike) -> int | None:
    """Return the largest step number among the complete checkpoints, or None without any."""
    return max(available_steps(folder), default=None)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed or failed save left: temporaries, and arrays that no JSON names."""
    for path in folder.glob('.checkpoint_*.tmp'):
        if _OURS.fullmatch(path.name[1 : -len('.tmp')]):
            shutil.rmtree(path)
    for path in folder.glob('checkpoint_*.safetensors'):
        match = _OURS.fullmatch(path.name)
        if match and not _is_named(path, folder / f'checkpoint_{match[1]}.json'):
            path.unlink()


def _is_named(tensors_path: Path, json_path: Path) -> bool:
    if not json_path.exists():
        return False
    try:
        return _read_json(json_path)['tensors'] == tensors_path.name
    except CheckpointError:
        return True  # a damaged JSON file is for its owner to look into: keep what it may name


# --- Atomic writing --------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """As `files.atomic_path`, with a `CheckpointError` where the file cannot be written."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f'{path}: could not be written ({error})') from error


# --- safetensors -----------------------------------------------------------------------------


def _write_tensors(path, tensors, metadata, checksum=None) -> None:
    checksum = checksum or _checksum(tensors, metadata)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={**metadata, _CHECKSUM: checksum})


def _read_tensors(path) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the tensors of a file and its verified checksum, None where the file has none."""
    with _readable(path) as file:
        metadata = file.metadata() or {}
        # Clones, because these tensors are windows into the file, which may be replaced.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, metadata):
        raise CheckpointError(f'{path}: damaged, its contents do not match its checksum')
    return tensors, checksum


@contextlib.contextmanager
def _readable(path):
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such file')
    try:
        with safe_open(path, framework='pt') as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f'{path}: damaged or not a safetensors file ({error})') from error


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        if tensor.numel():  # an empty one may have strides that cannot be viewed
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _named_leaves(tree, path) -> dict[tuple[str, ...], Any]:
    leaves = {}
    for names, leaf in trees.leaves_with_path(tree):
        bad = [name for name in names if '/' in name or name == '__metadata__']
        if bad:
            raise CheckpointError(f'{path}: the key {bad[0]!r} in {names} cannot name a tensor')
        if names in leaves:
            raise CheckpointError(f'{path}: two leaves have the path {"/".join(names)!r}')
        leaves[names] = leaf
    return leaves


def _as_storable(leaves: Mapping[str, Any], path) -> dict[str, torch.Tensor]:
    """Turn leaves into contiguous CPU tensors of which no two share memory."""
    tensors: dict[str, torch.Tensor] = {}
    storages = set()
    for name, leaf in leaves.items():
        try:
            tensor = as_tensor(leaf).detach().cpu().contiguous()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            kind = f'{type(leaf).__name__} {getattr(leaf, "dtype", "")}'.strip()
            raise CheckpointError(f'{path}: {name!r} ({kind}) cannot be stored: {error}') from error
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f'{path}: {name!r} has dtype {tensor.dtype}, which has no place')
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors


def as_tensor(leaf) -> torch.Tensor:
    """Return a leaf (tensor, numpy array or scalar, Python number) as a tensor of its own dtype.

    Raises:
        TypeError, ValueError, OverflowError: if PyTorch has nothing of that kind.
    """
    if isinstance(leaf, torch.Tensor):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic):
        array = np.asarray(leaf, order='C')
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if isinstance(leaf, float):
        return torch.tensor(leaf, dtype=torch.float64)
    if isinstance(leaf, bool | int):
        return torch.tensor(leaf)
    raise TypeError('neither an array nor a number')


def as_leaf(tensor: torch.Tensor, like):
    """Return a tensor as the kind of leaf that `like` is: the inverse of `as_tensor`."""
    if isinstance(like, torch.Tensor):
        return tensor.to('cpu' if like.is_meta else like.device)
    if isinstance(like, np.ndarray | np.generic):
        array = tensor.numpy()
        return array if isinstance(like, np.ndarray) else array[()]
    return type(like)(tensor.item())


def _fit(tensors: Mapping[str, torch.Tensor], like, path):
    expected = {'/'.join(names): leaf for names, leaf in _named_leaves(like, path).items()}
    specs = {name: as_tensor(leaf) for name, leaf in expected.items()}
    flexible = getattr(like, 'changes_shape', frozenset())
    misfits = [
        f'{name} ({_describe(tensors[name])}, expected {_describe(specs[name])})'
        for name in expected
        if name in tensors and flexible.isdisjoint(name.split('/'))
        if _describe(tensors[name]) != _describe(specs[name])
    ]
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected or misfits:
        problems = difference(missing, unexpected, misfits)
        raise CheckpointError(f'{path}: checkpoint of another architecture: {problems}')
    leaves = [as_leaf(tensors[name], leaf) for name, leaf in expected.items()]
    return trees.unflatten(trees.structure(like), leaves)


def difference(missing: list[str], unexpected: list[str], misfits: list[str]) -> str:
    """Say in one line what does not fit, with the first three paths of each kind."""
    kinds = {'missing': missing, 'unexpected': unexpected, 'of another shape or dtype': misfits}
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            parts.append(f'{kind}: {", ".join(sorted(names)[:3])}{more}')
    return '; '.join(parts)


def _describe(tensor: torch.Tensor) -> str:
    return f'{str(tensor.dtype).removeprefix("torch.")} {tuple(tensor.shape)}'


# --- JSON ------------------------------------------------------------------------------------
# What JSON has no form for is written as an object with one key that starts with '$'. Objects of
# the user's that have such a key, or keys that are not strings, are written as '$dict'.


def _encode(value, where: tuple[str, ...], arrays: dict[str, Any], path):
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        name = f'{_HOST}/{len(arrays)}'
        arrays[name] = value
        if isinstance(value, torch.Tensor):
            return {'$tensor': name}
        return {'$array' if isinstance(value, np.ndarray) else '$scalar': name}
    if kind in (list, tuple):
        items = [_encode(v, (*where, str(i)), arrays, path) for i, v in enumerate(value)]
        return items if kind is list else {'$tuple': items}
    if kind is dict:
        items = {k: _encode(v, (*where, str(k)), arrays, path) for k, v in value.items()}
        if all(type(key) is str and not key.startswith('$') for key in items):
            return items
        return {'$dict': [[_encode(k, where, arrays, path), v] for k, v in items.items()]}
    raise CheckpointError(
        f'{path}: {"/".join(where)} is a {kind.__name__}, which JSON has no form for'
    )


def _decode(value, arrays: Mapping[str, torch.Tensor]):
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tag, content = next(iter(value.items())) if len(value) == 1 else ('', None)
    if tag == '$tensor':
        return arrays[content]
    if tag == '$array':
        return arrays[content].numpy()
    if tag == '$scalar':
        return arrays[content].numpy()[()]
    if tag == '$tuple':
        return tuple(_decode(item, arrays) for item in content)
    if tag == '$dict':
        return {_decode(key, arrays): _decode(item, arrays) for key, item in content}
    return {key: _decode(item, arrays) for key, item in value.items()}


def _json_checksum(body: dict) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _read_json(path: Path) -> dict:
    try:
        body = json.loads(path.read_text())
        checksum = body.pop('sha256')
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f'{path}: damaged or not a checkpoint ({error!r})') from error
    if checksum != _json_checksum(body):
        raise CheckpointError(f'{path}: damaged, its contents do not match its checksum')
    if body.get('format') != _FORMAT:
        raise CheckpointError(f'{path}: format {body.get("format")!r}, expected {_FORMAT!r}')
    return body
