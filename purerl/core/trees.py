"""Pytrees: nested containers of arrays, flattened as JAX flattens them.

Containers are dicts (keys sorted, as in JAX; ``torch.utils._pytree`` keeps insertion order),
lists, tuples, NamedTuples and dataclasses registered with `dataclass`; ``None`` is an empty
subtree. Everything else is a leaf.

    leaves, treedef = trees.flatten(agent)
    agent = trees.unflatten(treedef, leaves)
    halved = trees.map(lambda x: x / 2, params)
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

Path = tuple[str, ...]


class FrozenDict(Mapping):
    """An immutable, hashable mapping for static configuration (hash computed once).

    Nested mappings and lists are frozen too, so that two configs with equal entries are equal and
    compile to the same program.
    """

    __slots__ = ('_entries', '_hash')

    def __init__(self, *args, **kwargs):
        self._entries = {key: _freeze(value) for key, value in dict(*args, **kwargs).items()}
        self._hash = hash(frozenset(self._entries.items()))

    def __getitem__(self, key):
        return self._entries[key]

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        if self is other:
            return True
        return isinstance(other, FrozenDict) and self._entries == other._entries

    def __repr__(self):
        return f'FrozenDict({self._entries})'


def _freeze(value):
    if isinstance(value, FrozenDict):
        return value
    if isinstance(value, Mapping) or hasattr(value, 'to_dict'):
        return FrozenDict(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


# --- Registered dataclasses ------------------------------------------------------------------

_STATIC = {'purerl_static': True}
_dataclass_fields: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {}


def static(**kwargs) -> Any:
    """A dataclass field that is part of the tree's structure, not one of its leaves."""
    return dataclasses.field(metadata=_STATIC, **kwargs)


def dataclass(cls):
    """Make `cls` a frozen dataclass and a pytree (the counterpart of ``flax.struct.dataclass``).

    Fields declared with `static()` belong to the structure and must be hashable; the others are
    children. ``torch.func`` transformations accept instances too. Instances get
    ``replace(**changes)``.
    """
    cls.replace = dataclasses.replace
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    dynamic = tuple(f.name for f in fields if 'purerl_static' not in f.metadata)
    constant = tuple(f.name for f in fields if 'purerl_static' in f.metadata)
    _dataclass_fields[cls] = (dynamic, constant)

    def to_children(node):
        children = [getattr(node, name) for name in dynamic]
        return children, tuple(getattr(node, name) for name in constant)

    def from_children(children, constants):
        return _build(cls, dynamic, children, constant, constants)

    torch_pytree.register_pytree_node(cls, to_children, from_children)
    return cls


def _build(cls, dynamic, children, constant, constants):
    # Not `cls(...)`: a tree of batched tensors or of names need not pass a constructor's checks.
    node = object.__new__(cls)
    node.__dict__.update(zip(dynamic, children, strict=True))
    node.__dict__.update(zip(constant, constants, strict=True))
    return node


# --- Flattening ------------------------------------------------------------------------------
# A treedef is a nested tuple (kind, structure, children), hashable and comparable; None stands
# for a leaf.

_LEAF = None
_EMPTY = ('none', (), ())


def _is_namedtuple(node) -> bool:
    return isinstance(node, tuple) and hasattr(node, '_fields')


def _expand(node):
    """Return (kind, structure, children names, children), or None for a leaf."""
    kind = type(node)
    if kind is dict:
        names = tuple(sorted(node))
        return 'dict', names, names, [node[name] for name in names]
    if kind in _dataclass_fields:
        dynamic, constant = _dataclass_fields[kind]
        structure = (kind, tuple(getattr(node, name) for name in constant))
        return 'dataclass', structure, dynamic, [getattr(node, name) for name in dynamic]
    if kind is tuple or kind is list:
        return kind.__name__, len(node), range(len(node)), node
    if _is_namedtuple(node):
        return 'namedtuple', kind, node._fields, node
    if isinstance(node, dict):
        names = tuple(sorted(node))
        return 'dict', names, names, [node[name] for name in names]
    return None


def children(node) -> dict[str, Any] | None:
    """Return a container's children under the names that Flax's ``to_state_dict`` uses.

    None for a leaf; an empty dict for ``None``, which is an empty subtree.
    """
    if node is None:
        return {}
    expanded = None if isinstance(node, torch.Tensor) else _expand(node)
    if expanded is None:
        return None
    return {str(name): child for name, child in zip(expanded[2], expanded[3], strict=True)}


def flatten(tree) -> tuple[list, Any]:
    """Return the leaves, in JAX's order, and a hashable description of the structure."""
    leaves: list = []
    return leaves, _flatten_into(tree, leaves)


def _flatten_into(node, leaves):
    if node is None:
        return _EMPTY
    if isinstance(node, torch.Tensor):
        leaves.append(node)
        return _LEAF
    expanded = _expand(node)
    if expanded is None:
        leaves.append(node)
        return _LEAF
    kind, structure, _, children = expanded
    return (kind, structure, tuple([_flatten_into(child, leaves) for child in children]))


def flatten_as(treedef, tree) -> list | None:
    """Return the leaves of a tree that is expected to have a known structure.

    Args:
        treedef: from `flatten`.
        tree: a tree.

    Returns:
        What `flatten` would return, in a third of its time; None where the tree differs, or may
        differ: then `flatten` tells.
    """
    leaves: list = []
    return leaves if _collect(treedef, tree, leaves) else None


def _collect(treedef, node, leaves) -> bool:
    if treedef is _LEAF:
        leaves.append(node)
        return node is not None and (isinstance(node, torch.Tensor) or _expand(node) is None)
    kind, structure, children = treedef
    if kind == 'dict':
        if type(node) is not dict or len(node) != len(children):
            return False
        members, names = node, structure
    elif kind == 'dataclass':
        cls, constants = structure
        if type(node) is not cls:
            return False
        members, (names, constant) = node.__dict__, _dataclass_fields[cls]
        if tuple([members[name] for name in constant]) != constants:
            return False
    elif kind == 'none':
        return node is None
    else:
        expected = structure if kind == 'namedtuple' else tuple if kind == 'tuple' else list
        if type(node) is not expected or len(node) != len(children):
            return False
        members, names = node, range(len(children))
    try:
        for name, child in zip(names, children, strict=True):
            member = members[name]
            if child is _LEAF and type(member) is torch.Tensor:
                leaves.append(member)
            elif not _collect(child, member, leaves):
                return False
    except KeyError:
        return False
    return True


def unflatten(treedef, leaves: Sequence):
    """Rebuild the tree that `flatten` took apart.

    Raises:
        ValueError: if there are more or fewer leaves than the structure holds.
    """
    remaining = iter(leaves)
    try:
        tree = next(remaining) if treedef is _LEAF else _unflatten_from(treedef, remaining)
    except StopIteration:
        raise ValueError('unflatten got fewer leaves than the structure holds') from None
    for _ in remaining:
        raise ValueError(f'unflatten got {len(leaves)} leaves, more than the structure holds')
    return tree


def _unflatten_from(treedef, leaves: Iterator):
    kind, structure, children = treedef
    nodes = [
        next(leaves) if child is _LEAF else _unflatten_from(child, leaves) for child in children
    ]
    if kind == 'dict':
        return dict(zip(structure, nodes, strict=True))
    if kind == 'dataclass':
        cls, constants = structure
        dynamic, constant = _dataclass_fields[cls]
        return _build(cls, dynamic, nodes, constant, constants)
    if kind == 'tuple':
        return tuple(nodes)
    if kind == 'list':
        return nodes
    if kind == 'namedtuple':
        return structure(*nodes)
    return None


def leaves(tree) -> list:
    """Return the leaves of `tree` in JAX's order."""
    return flatten(tree)[0]


def structure(tree):
    """Return the structure of `tree`: hashable, equal for trees that `map` can join."""
    return flatten(tree)[1]


def leaves_with_path(tree) -> list[tuple[Path, Any]]:
    """Return (path, leaf) pairs; a path holds the names that Flax's ``to_state_dict`` uses."""
    pairs: list[tuple[Path, Any]] = []

    def visit(node, path):
        named = children(node)
        if named is None:
            pairs.append((path, node))
            return
        for name, child in named.items():
            visit(child, (*path, name))

    visit(tree, ())
    return pairs


def map(fn: Callable, tree, *rest):
    """Apply `fn` leaf by leaf over trees of one structure, and return a tree of the results.

    Raises:
        ValueError: if the structures differ; the message names the first path that does.
    """
    first, treedef = flatten(tree)
    columns = [first]
    for other in rest:
        other_leaves, other_treedef = flatten(other)
        if other_treedef != treedef:
            raise ValueError(f'trees.map: {_difference(tree, other)}')
        columns.append(other_leaves)
    return unflatten(treedef, [fn(*row) for row in zip(*columns, strict=True)])


def _difference(tree, other) -> str:
    ours = {'/'.join(path) for path, _ in leaves_with_path(tree)}
    theirs = {'/'.join(path) for path, _ in leaves_with_path(other)}
    for path in sorted(ours ^ theirs):
        side = 'first' if path in ours else 'other'
        return f'the trees differ at {path!r}, which only the {side} one has'
    return 'the trees have the same leaves but different containers or static fields'


def stack(trees: Sequence):
    """Stack trees of one structure along a new leading axis, for `vmap` over them."""
    return map(lambda *tensors: torch.stack(tensors), *trees)


def index(tree, i: int):
    """Return member `i` of a stacked tree."""
    return map(lambda tensor: tensor[i], tree)
