"""Recorded reference cases: loading them, with checks, and keeping account of their tensors.

The format is described in docs/reference_cases.md.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from purerl.core import trees


class CaseError(Exception):
    """A recording cannot be replayed; the message says why in one line."""


@dataclasses.dataclass
class Case:
    """One recording.

    Attributes:
        path: where it was read from.
        tensors: all its tensors, by name.
        metadata: the header, strings.
        system, agent, case, seed: what was run.
        config: the full config; JSON's lists are tuples.
        ops: the calls that were recorded, each with ``call`` and ``kwargs``.
        consumed: names of the tensors that a replay has taken as its inputs.
    """

    path: pathlib.Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    system: str
    agent: str
    case: str
    seed: int
    config: dict[str, Any]
    ops: tuple[dict[str, Any], ...]
    consumed: set[str] = dataclasses.field(default_factory=set)

    def has(self, prefix: str) -> bool:
        """Whether there is a tensor `prefix`, or one below it."""
        return prefix in self.tensors or any(True for _ in self.below(prefix))

    def below(self, prefix: str):
        """Iterate over the full names of the tensors below ``prefix/``."""
        return (name for name in self.tensors if name.startswith(f'{prefix}/'))

    def children(self, prefix: str) -> list[str]:
        """The names right below ``prefix/``, numbers in their order."""
        start = len(prefix) + 1
        found = {name[start:].split('/')[0] for name in self.below(prefix)}
        return sorted(found, key=lambda name: (not name.isdigit(), len(name), name))

    def take(self, name: str) -> torch.Tensor:
        """Return one tensor as an input of the replay.

        Raises:
            CaseError: if the recording lacks it.
        """
        if name not in self.tensors:
            raise CaseError(f'the recording lacks {name}')
        self.consumed.add(name)
        return torch.from_numpy(self.tensors[name].copy())

    def take_tree(self, prefix: str) -> dict[str, Any]:
        """Return everything below ``prefix/`` as an input: nested dicts, empty if there is none."""
        return nested({name[len(prefix) + 1 :]: self.take(name) for name in self.below(prefix)})

    def parsed(self, key: str, default=None):
        """Return an entry of the metadata that holds JSON."""
        if key not in self.metadata:
            return default
        return _parse(key, self.metadata[key])


def load(path: str | pathlib.Path) -> Case:
    """Read a recording.

    Raises:
        CaseError: if the file is unreadable, or its metadata is missing, malformed or of a kind
            that purerl does not reproduce (64-bit JAX, the non-partitionable threefry).
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise CaseError('a folder without recordings (*.safetensors)')
    try:
        with safe_open(path, 'np') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (AttributeError, OSError, SafetensorError, TypeError, ValueError) as error:
        raise CaseError(f'not a readable safetensors file ({_one_line(error)})') from error
    missing = [key for key in ('system', 'agent', 'case', 'seed', 'config') if key not in metadata]
    if missing:
        raise CaseError(f'the metadata lack {", ".join(missing)}')
    _check_versions(metadata)
    config = _parse('config', metadata['config'])
    ops = _parse('ops', metadata.get('ops', '[]'))
    if not isinstance(config, dict):
        raise CaseError('the metadata entry config is not a JSON object')
    if not isinstance(ops, tuple):
        raise CaseError('the metadata entry ops is not a JSON list')
    try:
        seed = int(metadata['seed'])
    except ValueError:
        raise CaseError(f'the seed {metadata["seed"]!r} is not an integer') from None
    return Case(
        path, tensors, metadata, metadata['system'], metadata['agent'], metadata['case'], seed,
        config, ops,
    )  # fmt: skip


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())


def _parse(key: str, text: str):
    try:
        return _tuples(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CaseError(f'the metadata entry {key} is not JSON ({error})') from error


def _tuples(value):
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


_REQUIRED_VERSIONS = {
    'jax_threefry_partitionable': True,
    'flax_fix_rng_separator': False,
    'jax_enable_x64': False,
}


def _check_versions(metadata: dict[str, str]) -> None:
    versions = _parse('versions', metadata.get('versions', '{}'))
    if not isinstance(versions, dict):
        raise CaseError('the metadata entry versions is not a JSON object')
    for name, required in _REQUIRED_VERSIONS.items():
        if versions.get(name, required) is not required:
            raise CaseError(f'recorded with {name}={versions[name]}, purerl reproduces {required}')


def flatten(tree) -> dict[str, Any]:
    """Name the leaves of a tree as recordings do: ``a/b/c``."""
    return {'/'.join(path): leaf for path, leaf in trees.leaves_with_path(tree)}


def nested(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten`: ``{'a/b': x}`` to ``{'a': {'b': x}}``."""
    tree: dict[str, Any] = {}
    for name, value in entries.items():
        *parents, leaf = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
