"""trees against jax.tree and flax.serialization."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import flax.serialization
import flax.struct
import jax
import ml_collections
import numpy as np
import pytest
import torch

from purerl.core import trees


class Point(NamedTuple):
    y: Any
    x: Any


@trees.dataclass
class Node:
    b: Any
    a: Any
    name: Any = trees.static(default='n')


@flax.struct.dataclass
class FlaxNode:
    b: Any
    a: Any
    name: Any = flax.struct.field(pytree_node=False, default='n')


def both(build):
    return build(Node), build(FlaxNode)


# Each builds the same tree from our dataclass and from Flax's.
TREES = {
    'leaf': lambda node: 1,
    'none': lambda node: None,
    'empty': lambda node: {'a': {}, 'b': [], 'c': ()},
    'dict': lambda node: {'z': 1, 'a': {'y': 2, 'B': 3}, 'Dense_10': 4, 'Dense_2': 5},
    'list': lambda node: [1, [2, None, 3], []],
    'tuple': lambda node: (1, (2, (3,)), None),
    'namedtuple': lambda node: Point({'q': 1, 'p': 2}, (3, Point(4, 5))),
    'dataclass': lambda node: node({'z': 1, 'a': 2}, node(3, None, name='inner')),
    'everything': lambda node: {
        'state': node(Point([1, 2], None), (3, {'k': 4})),
        'list': [node(5, 6), {'x': (7,)}],
    },
}


@pytest.mark.parametrize('name', TREES)
def test_leaves_order_and_paths(name):
    ours, theirs = both(TREES[name])
    assert trees.leaves(ours) == jax.tree.leaves(theirs)
    paths = dict(trees.leaves_with_path(ours))
    assert list(paths.values()) == trees.leaves(ours)
    state = flax.serialization.to_state_dict(theirs)
    for path, leaf in paths.items():
        node = state
        for part in path:
            node = node[part]
        assert node == leaf


@pytest.mark.parametrize('name', TREES)
def test_round_trip(name):
    tree = TREES[name](Node)
    leaves, treedef = trees.flatten(tree)
    again = trees.unflatten(treedef, leaves)
    assert trees.flatten(again) == (leaves, treedef)
    assert again == tree or name in ('dataclass', 'everything')  # dataclasses compare by identity
    assert hash(treedef) == hash(trees.structure(TREES[name](Node)))
    doubled = trees.map(lambda x: 2 * x, tree)
    assert trees.leaves(doubled) == [2 * x for x in leaves]
    if leaves:
        with pytest.raises(ValueError, match='fewer'):
            trees.unflatten(treedef, leaves[:-1])
    with pytest.raises(ValueError, match='more'):
        trees.unflatten(treedef, [*leaves, 0])


@pytest.mark.parametrize('name', TREES)
def test_unflattener_rebuilds_what_unflatten_would(name):
    leaves, treedef = trees.flatten(TREES[name](Node))
    rebuild = trees.unflattener(treedef)
    again = rebuild(leaves)
    assert trees.flatten(again) == (leaves, treedef)
    assert again == trees.unflatten(treedef, leaves) or name in ('dataclass', 'everything')
    for wrong in (leaves[:-1], [*leaves, 0]):
        if wrong != leaves:
            with pytest.raises(ValueError):
                rebuild(wrong)


@pytest.mark.parametrize('name', TREES)
@pytest.mark.parametrize('expected', TREES)
def test_flattener_tells_what_flatten_would(name, expected):
    tree = TREES[name](Node)
    leaves, treedef = trees.flatten(tree)
    expected_treedef = trees.structure(TREES[expected](Node))
    as_expected = trees.flattener(expected_treedef)(tree)
    assert as_expected == (leaves if treedef == expected_treedef else None)


def test_flattener_sees_every_difference():
    tree = {'a': Node(torch.zeros(2), (1, [2]), name='n'), 'b': Point(3, None)}
    treedef = trees.structure(tree)
    node, point = tree['a'], tree['b']
    others = [
        {'a': node.replace(name='m'), 'b': point},
        {'a': node.replace(a=(1, [2, 3])), 'b': point},
        {'a': node.replace(a=[1, [2]]), 'b': point},
        {'a': node.replace(b=None), 'b': point},
        {'a': node.replace(b={'c': torch.zeros(2)}), 'b': point},
        {'a': node, 'b': Point(3, 4)},
        {'a': node, 'b': (3, None)},
        {'a': node, 'c': point},
        {'a': node},
        OrderedDict(tree),  # an equal structure, but not one that is expected
    ]
    assert trees.flattener(treedef)(tree) == trees.leaves(tree)
    for other in others:
        assert trees.flattener(treedef)(other) is None


def test_structures_differ():
    structures = [trees.structure(build(Node)) for build in TREES.values()]
    structures += [trees.structure(Node(1, 2, name='other')), trees.structure(Node(1, 2))]
    structures += [trees.structure({'a': 1}), trees.structure({'b': 1}), trees.structure([1])]
    assert len(set(structures)) == len(structures)


def test_subclasses_of_dict_are_dicts():
    tree = OrderedDict([('z', 1), ('a', 2)])
    assert trees.flatten(tree) == trees.flatten({'a': 2, 'z': 1})


def test_insertion_order_does_not_matter():
    first, second = {'a': 1, 'b': {'d': 2, 'c': 3}}, {'b': {'c': 3, 'd': 2}, 'a': 1}
    assert trees.flatten(first) == trees.flatten(second)
    assert trees.map(lambda x, y: (x, y), first, second) == {
        'a': (1, 1),
        'b': {'c': (3, 3), 'd': (2, 2)},
    }


def test_map_names_the_first_difference():
    tree = {'a': {'kernel': 1, 'bias': 2}, 'b': 3}
    with pytest.raises(ValueError, match=r"'a/bias'.*first"):
        trees.map(lambda x, y: x, tree, {'a': {'kernel': 1}, 'b': 3})
    with pytest.raises(ValueError, match=r"'c'.*other"):
        trees.map(lambda x, y: x, tree, {**tree, 'c': 1})
    with pytest.raises(ValueError, match='static'):
        trees.map(lambda x, y: x, Node(1, 2), Node(1, 2, name='other'))
    with pytest.raises(ValueError, match='containers'):
        trees.map(lambda x, y: x, [1, 2], (1, 2))


def test_stack_and_index():
    members = [Node({'k': torch.full((2,), float(i))}, torch.tensor(i)) for i in range(3)]
    stacked = trees.stack(members)
    assert stacked.b['k'].shape == (3, 2)
    for i, member in enumerate(members):
        part = trees.index(stacked, i)
        assert torch.equal(part.b['k'], member.b['k'])
        assert torch.equal(part.a, member.a)
        assert part.name == 'n'


def test_dataclasses_are_frozen_and_replace():
    node = Node(1, 2)
    with pytest.raises(AttributeError):
        node.a = 3
    changed = node.replace(a=5)
    assert (changed.a, changed.b, changed.name, node.a) == (5, 1, 'n', 2)
    with pytest.raises(TypeError):
        node.replace(c=1)


def test_dataclasses_pass_through_torch_func():
    nodes = Node(torch.arange(3.0), {'k': torch.ones(3, 2)})
    out = torch.func.vmap(lambda n: n.replace(a={'k': n.a['k'] * n.b}))(nodes)
    assert type(out) is Node and out.name == 'n'
    assert torch.equal(out.a['k'][:, 0], torch.arange(3.0))
    gradient = torch.func.grad(lambda n: (n.a['k'] * n.b).sum())(
        Node(torch.tensor(2.0), {'k': torch.ones(2)})
    )
    assert torch.equal(gradient.b, torch.tensor(2.0))
    assert torch.equal(gradient.a['k'], torch.full((2,), 2.0))


def test_trees_of_batched_tensors_do_not_run_constructors():
    @trees.dataclass
    class Checked:
        x: Any

        def __post_init__(self):
            if not isinstance(self.x, torch.Tensor):
                raise TypeError('x must be a tensor')

    assert trees.map(lambda x: tuple(x.shape), Checked(torch.zeros(2))).x == (2,)


def test_frozen_dict():
    config = ml_collections.ConfigDict({'lr': 1e-3, 'dims': [4, 5], 'inner': {'a': (1, [2])}})
    frozen = trees.FrozenDict(config)
    same = trees.FrozenDict({'inner': {'a': [1, (2,)]}, 'dims': (4, 5), 'lr': 1e-3})
    assert frozen == same and hash(frozen) == hash(same)
    assert frozen != trees.FrozenDict({**frozen, 'lr': 1e-4})
    assert frozen['inner']['a'] == (1, (2,))
    assert dict(**frozen).keys() == {'lr', 'dims', 'inner'}
    assert len(frozen) == 3 and 'lr' in frozen and 'nothing' not in frozen
    assert 'FrozenDict' in repr(frozen)
    config.lr = 5.0
    assert frozen['lr'] == 1e-3
    with pytest.raises(TypeError):
        frozen['lr'] = 2
    with pytest.raises(TypeError, match='unhashable'):
        trees.FrozenDict({'x': {1, 2}})
    assert trees.leaves({'config': frozen}) == [frozen]


def test_a_pickled_frozen_dict_is_found_by_a_process_with_other_hashes(tmp_path):
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(trees.FrozenDict({'a': 'text'})))
    program = (
        'import pickle; from purerl.core.trees import FrozenDict; '
        f'loaded = pickle.load(open({str(tmp_path / "a.pkl")!r}, "rb")); '
        'assert loaded in {FrozenDict({"a": "text"}): 1}'
    )
    for seed in ('1', '2'):
        environment = {**os.environ, 'PYTHONHASHSEED': seed}
        subprocess.run([sys.executable, '-c', program], check=True, env=environment)


def test_arrays_are_leaves():
    tree = {'a': np.zeros((2, 2)), 'b': torch.zeros(2), 'c': 'text'}
    assert [type(leaf) for leaf in trees.leaves(tree)] == [np.ndarray, torch.Tensor, str]
