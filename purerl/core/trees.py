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

import numpy as np
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

    def __reduce__(self):
        return FrozenDict, (self._entries,)  # without the hash, which differs between processes

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
        return _build(cls, dict(zip((*dynamic, *constant), (*children, *constants), strict=True)))

    torch_pytree.register_pytree_node(cls, to_children, from_children)
    return cls


def _build(cls, fields: dict):
    # Not `cls(...)`: a tree of batched tensors or of names need not pass a constructor's checks.
    node = object.__new__(cls)
    node.__dict__.update(fields)
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
        return _build(cls, dict(zip((*dynamic, *constant), (*nodes, *constants), strict=True)))
    if kind == 'tuple':
        return tuple(nodes)
    if kind == 'list':
        return nodes
    if kind == 'namedtuple':
        return structure(*nodes)
    return None


# --- Trees of a known structure ------------------------------------------------------------------
# As straight-line code, made once per structure: eight to twelve times as fast as walking it.

# What is a leaf at first sight.
_LEAVES = {torch.Tensor, np.ndarray, bool, int, float}
_BUILTIN = {'dict': dict, 'list': list, 'tuple': tuple}


class _Source:
    """Python source under construction, and the objects that it names."""

    def __init__(self):
        self.lines: list[str] = []
        self.objects: dict[str, Any] = {}

    def refer(self, value) -> str:
        """Return an expression for a value."""
        name = f'c{len(self.objects)}'
        self.objects[name] = value
        return name

    def function(self, argument: str) -> Callable:
        body = ''.join(f'    {line}\n' for line in self.lines)
        exec(f'def generated({argument}):\n{body}', self.objects)
        return self.objects['generated']


def flattener(treedef) -> Callable[[Any], list | None]:
    """Return a function that takes trees of one structure apart, in a tenth of `flatten`'s time.

    Args:
        treedef: from `flatten`.

    Returns:
        A function of a tree. It returns what `flatten` would; None where the tree differs, or may
        differ: then `flatten` tells.
    """
    source = _Source()
    leaves: list[str] = []

    def visit(treedef, node: str):
        if treedef is _LEAF:
            leaves.append(node)
            return
        kind, structure, children = treedef
        name = f'n{len(source.lines)}'
        source.lines.append(f'{name} = {node}')
        if kind == 'none':
            expect(f'{name} is None')
            return
        if kind == 'dataclass':
            cls, constants = structure
            names, constant_names = _dataclass_fields[cls]
            expect(f'type({name}) is {source.refer(cls)}')
            source.lines.append(f'{name} = {name}.__dict__')
            for field, value in zip(constant_names, constants, strict=True):
                field, value = f'{name}[{field!r}]', source.refer(value)
                # As tuples compare: what is the same is equal.
                expect(f'{field} is {value} or {field} == {value}')
        else:
            cls = structure if kind == 'namedtuple' else _BUILTIN[kind]
            names = structure if kind == 'dict' else range(len(children))
            expect(f'type({name}) is {source.refer(cls)} and len({name}) == {len(children)}')
        for key, child in zip(names, children, strict=True):
            visit(child, f'{name}[{_key(source, key)}]')

    def expect(condition):
        source.lines.append(f'if not ({condition}): return None')

    visit(treedef, 'tree')
    source.lines.append(f'return [{", ".join(leaves)}]')
    take_apart = source.function('tree')

    def flatten_known(tree):
        try:
            leaves = take_apart(tree)
        except KeyError:
            return None
        return leaves if leaves is not None and _are_leaves(leaves) else None

    return flatten_known


def _are_leaves(nodes: list) -> bool:
    if _LEAVES.issuperset([type(node) for node in nodes]):
        return True
    return all(
        node is not None and (isinstance(node, torch.Tensor) or _expand(node) is None)
        for node in nodes
    )


def unflattener(treedef) -> Callable[[Sequence], Any]:
    """Return a function that does what `unflatten` does for one structure, eight times as fast.

    The function raises ValueError if there are more or fewer leaves than the structure holds.
    """
    source = _Source()
    leaves: list[str] = []

    def visit(treedef) -> str:
        if treedef is _LEAF:
            leaves.append(f'l{len(leaves)}')
            return leaves[-1]
        kind, structure, children = treedef
        nodes = [visit(child) for child in children]
        if kind == 'none':
            return 'None'
        if kind == 'dict':
            return _display(source, structure, nodes)
        if kind == 'dataclass':
            cls, constants = structure
            dynamic, constant = _dataclass_fields[cls]
            values = [*nodes, *[source.refer(value) for value in constants]]
            fields = _display(source, (*dynamic, *constant), values)
            return f'{build}({source.refer(cls)}, {fields})'
        if kind == 'list':
            return f'[{", ".join(nodes)}]'
        name = source.refer(structure) if kind == 'namedtuple' else ''
        comma = ',' if kind == 'tuple' and nodes else ''
        return f'{name}({", ".join(nodes)}{comma})'

    build = source.refer(_build)
    tree = visit(treedef)
    source.lines.append(f'[{", ".join(leaves)}] = leaves')
    source.lines.append(f'return {tree}')
    return source.function('leaves')


def _key(source, key) -> str:
    return repr(key) if type(key) in (str, int) else source.refer(key)


def _display(source, keys, values: list[str]) -> str:
    entries = [f'{_key(source, key)}: {value}' for key, value in zip(keys, values, strict=True)]
    return f'{{{", ".join(entries)}}}'


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


def device_put(tree, device):
    """Put the tensors of a tree on a device; the counterpart of ``jax.device_put``.

    Args:
        tree: a pytree. Leaves that are not tensors stay as they are.
        device: a ``torch.device`` or its name.
    """
    return map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def stack(trees: Sequence):
    """Stack trees of one structure along a new leading axis, for `vmap` over them."""
    return map(lambda *tensors: torch.stack(tensors), *trees)


def index(tree, i: int):
    """Return member `i` of a stacked tree."""
    return map(lambda tensor: tensor[i], tree)
