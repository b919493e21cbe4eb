import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import purerl
from purerl.core import checkpoint, trees
from purerl.core.checkpoint import CheckpointError


class Moments(NamedTuple):
    count: Any
    mu: Any


class Empty(NamedTuple):
    pass


@trees.dataclass
class Agent:
    rng: Any
    params: Any
    opt_state: Any
    target: Any
    name: str = trees.static(default='agent')


def make_agent(fill=1.0):
    kernel = torch.arange(6, dtype=torch.float32).reshape(2, 3) * fill
    return Agent(
        rng=torch.tensor([0, 2**32 - 1]),
        params={'Dense_0': {'kernel': kernel, 'bias': torch.full((3,), float(fill))}},
        opt_state=(Moments(torch.tensor(3, dtype=torch.int32), [kernel + 1, kernel + 2]), Empty()),
        target=None,
    )


def assert_same_tree(actual, expected):
    assert trees.structure(actual) == trees.structure(expected)
    for (path, a), (_, b) in zip(
        trees.leaves_with_path(actual), trees.leaves_with_path(expected), strict=True
    ):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), path
        assert torch.equal(a, b), path


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Trees -----------------------------------------------------------------------------------


def test_a_tree_comes_back_equal_and_the_file_names_its_paths(tmp_path):
    path = tmp_path / 'agent.safetensors'
    checkpoint.save_tree(path, make_agent(), {'seed': '3'})
    assert_same_tree(checkpoint.load_tree(path, like=make_agent(0.0)), make_agent())
    assert set(load_file(path)) == {
        'rng',
        'params/Dense_0/kernel',
        'params/Dense_0/bias',
        'opt_state/0/count',
        'opt_state/0/mu/0',
        'opt_state/0/mu/1',
    }
    assert checkpoint.load_metadata(path) == {'seed': '3'}
    assert files_in(tmp_path) == ['agent.safetensors']


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
    ],
)
@pytest.mark.parametrize('shape', [(), (0, 3), (2, 2)])
def test_every_dtype_and_shape_is_kept(tmp_path, dtype, shape):
    leaf = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    checkpoint.save_tree(tmp_path / 'x', {'leaf': leaf})
    assert_same_tree(checkpoint.load_tree(tmp_path / 'x', like={'leaf': leaf}), {'leaf': leaf})


def test_empty_tensors_with_strides_of_zero_are_kept(tmp_path):
    tree = {'leaf': torch.empty(1).as_strided((0, 4), (0, 0))}
    checkpoint.save_tree(tmp_path / 'x', tree)
    assert_same_tree(checkpoint.load_tree(tmp_path / 'x', like=tree), tree)


def test_views_transposes_and_shared_tensors_are_written_apart(tmp_path):
    flat = torch.arange(12.0)
    tree = {
        'all': flat,
        'part': flat[3:5],
        'same': flat,
        'turned': flat.reshape(3, 4).T,
        'spread': torch.ones(1).expand(5),
    }
    checkpoint.save_tree(tmp_path / 'x', tree)
    loaded = checkpoint.load_tree(tmp_path / 'x', like=tree)
    assert_same_tree(loaded, tree)
    loaded['all'].zero_()
    assert torch.equal(loaded['same'], flat)
    assert torch.equal(loaded['part'], flat[3:5])


def test_numbers_and_numpy_leaves_keep_their_kind(tmp_path):
    tree = {
        'a': 3,
        'b': True,
        'c': 0.1,
        'd': np.float32(2),
        'e': np.arange(3, dtype=np.uint8)[::-1],
    }
    checkpoint.save_tree(tmp_path / 'x', tree)
    loaded = checkpoint.load_tree(tmp_path / 'x', like=tree)
    assert {name: type(leaf) for name, leaf in loaded.items()} == {
        name: type(leaf) for name, leaf in tree.items()
    }
    assert (loaded['a'], loaded['b'], loaded['c'], loaded['d']) == (3, True, 0.1, 2)
    np.testing.assert_array_equal(loaded['e'], [2, 1, 0])


def test_a_meta_tree_describes_what_to_load(tmp_path):
    checkpoint.save_tree(tmp_path / 'x', {'w': torch.ones(2)})
    loaded = checkpoint.load_tree(tmp_path / 'x', like={'w': torch.empty(2, device='meta')})
    assert_same_tree(loaded, {'w': torch.ones(2)})


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    path = tmp_path / 'x'
    checkpoint.save_tree(path, {'w': torch.ones(1000)})
    loaded = checkpoint.load_tree(path, like={'w': torch.ones(1000)})
    with path.open('r+b') as file:
        file.truncate(0)
    assert loaded['w'].sum() == 1000


def test_another_architecture_is_one_error_with_the_first_paths(tmp_path):
    path = tmp_path / 'agent.safetensors'
    saved = {'Dense_0': {'kernel': torch.ones(2, 3)}, 'old': torch.ones(1), 'n': torch.tensor(1)}
    checkpoint.save_tree(path, saved)
    like = {'Dense_0': {'kernel': torch.ones(2, 4)}, 'n': torch.tensor(1.0)}
    like |= {f'new_{i}': torch.ones(1) for i in range(5)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_tree(path, like=like)
    message = str(caught.value)
    assert str(path) in message and 'another architecture' in message
    assert 'missing: new_0, new_1, new_2 and 2 more' in message
    assert 'unexpected: old' in message
    assert 'Dense_0/kernel (float32 (2, 3), expected float32 (2, 4))' in message
    assert 'n (int64 (), expected float32 ())' in message


@pytest.mark.parametrize('tree', [{'a/b': torch.ones(1)}, {'__metadata__': torch.ones(1)}])
def test_names_that_cannot_stand_in_a_path_are_refused(tmp_path, tree):
    with pytest.raises(CheckpointError, match='cannot name a tensor'):
        checkpoint.save_tree(tmp_path / 'x', tree)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    'leaf',
    ['text', object(), np.array(['a']), np.array([None]), torch.ones(1, dtype=torch.cdouble)],
)
def test_leaves_that_cannot_be_stored_are_refused_by_path(tmp_path, leaf):
    with pytest.raises(CheckpointError, match="'a/b'"):
        checkpoint.save_tree(tmp_path / 'x', {'a': {'b': leaf}})


@pytest.mark.parametrize('length', [0, 5, 40, -1])
def test_a_truncated_file_is_one_error_that_names_it(tmp_path, length):
    path = tmp_path / 'agent.safetensors'
    checkpoint.save_tree(path, make_agent())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r'agent\.safetensors: damaged'):
        checkpoint.load_tree(path, like=make_agent())


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    path = tmp_path / 'agent.safetensors'
    checkpoint.save_tree(path, make_agent(), {'seed': '3'})
    whole = path.read_bytes()
    harmless = 0  # blanks in the header, and the checksum's own name
    for position in range(len(whole)):
        path.write_bytes(whole)
        flip_byte(path, position)
        try:
            loaded = checkpoint.load_tree(path, like=make_agent())
        except CheckpointError as error:
            assert 'agent.safetensors' in str(error)
        else:
            assert_same_tree(loaded, make_agent())
            harmless += 1
    assert harmless < 25


def test_files_of_other_programs_load_without_a_checksum(tmp_path):
    save_file({'a/b': torch.ones(2)}, tmp_path / 'x')
    loaded = checkpoint.load_tree(tmp_path / 'x', like={'a': {'b': torch.zeros(2)}})
    assert_same_tree(loaded, {'a': {'b': torch.ones(2)}})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r'nothing\.safetensors: no such file'):
        checkpoint.load_tree(tmp_path / 'nothing.safetensors', like={})


def test_files_have_the_rights_that_new_files_have(tmp_path):
    (tmp_path / 'usual').touch()
    checkpoint.save_tree(tmp_path / 'x', {'w': torch.ones(1)})
    assert (tmp_path / 'x').stat().st_mode == (tmp_path / 'usual').stat().st_mode


# --- Checkpoints -----------------------------------------------------------------------------


def test_host_state_of_every_kind_survives(tmp_path):
    host_state = {
        'none': None,
        'flags': [True, False, 1, -0.0, 1e-320, float('inf')],
        'huge': [2**127 + 1, -(2**200)],
        'text': 'ü \ud800 $array',
        'tuple': (1, (2.5, 'x'), []),
        'empty': {},
        'arrays': {'u': np.arange(4, dtype=np.uint32), 'deep': [{'f': np.float64(0.1)}]},
        'none-writeable': np.broadcast_to(np.float32(3), (2, 2)),
        'zero-d': np.array(7, dtype=np.int16),
        'tensor': torch.arange(3, dtype=torch.uint8),
        'integer keys': {1: 'a', (2, 'b'): np.ones(1)},
        'our own tags': {'$array': 'x'},
        'a/b': np.zeros(2),
    }
    checkpoint.save_checkpoint(tmp_path, 5, {'w': torch.ones(1)}, host_state)
    _, loaded, step = checkpoint.load_checkpoint(tmp_path, like={'w': torch.ones(1)})
    assert step == 5
    assert list(loaded) == list(host_state)
    assert_same_host_state(loaded, host_state)


def assert_same_host_state(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same_host_state(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_same_host_state(a, b)
    elif isinstance(expected, np.ndarray):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)
    else:
        assert repr(actual) == repr(expected)


def test_generators_go_on_where_they_stopped(tmp_path):
    pcg = np.random.default_rng(0)
    mersenne = np.random.RandomState(1)
    torch_generator = torch.Generator().manual_seed(2)
    python = random.Random(3)
    mersenne.normal()  # leaves half of a pair cached
    host_state = {
        'pcg': pcg.bit_generator.state,
        'mersenne': mersenne.get_state(),
        'torch': torch_generator.get_state(),
        'python': python.getstate(),
    }
    checkpoint.save_checkpoint(tmp_path, 0, {}, host_state)
    expected = (
        pcg.random(),
        mersenne.normal(),
        torch.rand(2, generator=torch_generator).tolist(),
        python.random(),
    )

    _, loaded, _ = checkpoint.load_checkpoint(tmp_path, like={})
    pcg = np.random.default_rng(99)
    pcg.bit_generator.state = loaded['pcg']
    mersenne = np.random.RandomState(99)
    mersenne.set_state(loaded['mersenne'])
    torch_generator = torch.Generator()
    torch_generator.set_state(loaded['torch'])
    python = random.Random()
    python.setstate(loaded['python'])
    assert expected == (
        pcg.random(),
        mersenne.normal(),
        torch.rand(2, generator=torch_generator).tolist(),
        python.random(),
    )


@pytest.mark.parametrize('value', [{1, 2}, b'bytes', object(), Moments(1, 2), np.array(['a'])])
def test_host_state_without_a_form_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match=r'checkpoint_0000000001\.json'):
        checkpoint.save_checkpoint(tmp_path, 1, {}, {'env': {'seeds': value}})
    assert checkpoint.latest_step(tmp_path) is None


def test_refused_host_state_is_named_by_its_path(tmp_path):
    with pytest.raises(CheckpointError, match='host_state/env/seeds/1 is a set'):
        checkpoint.save_checkpoint(tmp_path, 1, {}, {'env': {'seeds': [0, {1}]}})


def test_the_latest_or_a_given_step_is_loaded(tmp_path):
    assert checkpoint.latest_step(tmp_path / 'no folder') is None
    for step in (900, 1000, 20_000_000_000):
        checkpoint.save_checkpoint(tmp_path, step, make_agent(step), {'at': step})
    assert checkpoint.latest_step(tmp_path) == 20_000_000_000
    assert checkpoint.available_steps(tmp_path) == [900, 1000, 20_000_000_000]
    tree, host_state, step = checkpoint.load_checkpoint(tmp_path, like=make_agent())
    assert (host_state, step) == ({'at': 20_000_000_000}, 20_000_000_000)
    tree, host_state, step = checkpoint.load_checkpoint(tmp_path, 900, like=make_agent())
    assert (host_state, step) == ({'at': 900}, 900)
    assert_same_tree(tree, make_agent(900))


def test_a_tree_that_is_one_tensor(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, torch.arange(3), {'x': np.ones(1)})
    tree, _, _ = checkpoint.load_checkpoint(tmp_path, like=torch.zeros(3, dtype=torch.int64))
    assert_same_tree(tree, torch.arange(3))


def test_missing_checkpoints_are_one_error(tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint here'):
        checkpoint.load_checkpoint(tmp_path, like={})
    checkpoint.save_checkpoint(tmp_path, 7, {}, None)
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 8; there are \[7\]'):
        checkpoint.load_checkpoint(tmp_path, 8, like={})


def test_only_the_newest_are_kept_and_other_files_stay(tmp_path):
    (tmp_path / 'notes.safetensors').touch()
    (tmp_path / 'checkpoint_best.safetensors').touch()
    for step in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, step, make_agent(step), None, keep=2)
    assert checkpoint.available_steps(tmp_path) == [2, 3]
    assert len(files_in(tmp_path)) == 6
    checkpoint.save_checkpoint(tmp_path, 1, make_agent(), None, keep=1)
    assert checkpoint.available_steps(tmp_path) == [1]
    assert len(files_in(tmp_path)) == 4


def test_a_step_can_be_saved_again(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, make_agent(1.0), 'old')
    checkpoint.save_checkpoint(tmp_path, 1, make_agent(2.0), 'new')
    tree, host_state, _ = checkpoint.load_checkpoint(tmp_path, like=make_agent())
    assert host_state == 'new'
    assert_same_tree(tree, make_agent(2.0))
    assert len(files_in(tmp_path)) == 2


def test_corruption_of_either_file_is_found(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 1, make_agent(), {'epsilon': 0.5, 'n': 7})
    (tensors_path,) = tmp_path.glob('*.safetensors')

    whole = path.read_text()
    for damaged in (whole.replace('0.5', '0.6'), whole[:-20], whole.replace('7', '8', 1), '', '[]'):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match=r'checkpoint_0000000001\.json: damaged'):
            checkpoint.load_checkpoint(tmp_path, like=make_agent())
    path.write_text(whole)

    flip_byte(tensors_path, -1)
    with pytest.raises(CheckpointError, match=f'{tensors_path.name}: damaged'):
        checkpoint.load_checkpoint(tmp_path, like=make_agent())
    checkpoint.save_tree(tensors_path, make_agent())
    with pytest.raises(CheckpointError, match='not the file that checkpoint_0000000001'):
        checkpoint.load_checkpoint(tmp_path, like=make_agent())


def test_a_damaged_checkpoint_keeps_its_files_when_the_next_is_saved(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 1, make_agent(), None)
    path.write_text(path.read_text()[:-5])
    checkpoint.save_checkpoint(tmp_path, 2, make_agent(), None)
    assert len(files_in(tmp_path)) == 4


@trees.dataclass
class Configured:
    x: Any
    config: Any = trees.static()


def test_fields_of_another_config_are_named(tmp_path):
    def agent(**config):
        return Configured(torch.zeros(config['T']), trees.FrozenDict(lr=1e-3, **config))

    checkpoint.save_checkpoint(tmp_path, 1, agent(T=5, name='a'), None)
    with pytest.raises(CheckpointError, match=r'another architecture.*saved with T=5, not 10$'):
        checkpoint.load_checkpoint(tmp_path, like=agent(T=10, name='a'))
    tree, _, _ = checkpoint.load_checkpoint(tmp_path, like=agent(T=5, name='b'))
    assert tree.config['name'] == 'b'


def test_another_format_version_is_refused(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 1, {}, None)
    body = json.loads(path.read_text())
    del body['sha256']
    body['format'] = 'purerl-checkpoint-9'
    body['sha256'] = checkpoint._json_checksum(body)
    path.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match='purerl-checkpoint-9'):
        checkpoint.load_checkpoint(tmp_path, like={})


def test_the_error_for_another_architecture_names_the_file(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, make_agent(), None)
    with pytest.raises(CheckpointError, match=r'checkpoint_0000000001\..*another architecture'):
        checkpoint.load_checkpoint(tmp_path, like={'w': torch.ones(1)})


@trees.dataclass
class Growing:
    centre: Any
    weight: Any

    changes_shape = frozenset({'centre'})


def test_leaves_that_change_shape_may_have_another(tmp_path):
    centre, weight = {'value': torch.rand(4, 3)}, torch.rand(3)
    checkpoint.save_checkpoint(tmp_path, 1, Growing(centre, weight), None)
    like = Growing({'value': torch.zeros(3)}, torch.zeros(3))
    loaded, _, _ = checkpoint.load_checkpoint(tmp_path, like=like)
    assert torch.equal(loaded.centre['value'], centre['value'])
    with pytest.raises(CheckpointError, match='another shape or dtype: weight'):
        checkpoint.load_checkpoint(tmp_path, like=like.replace(weight=torch.zeros(2)))


@pytest.mark.parametrize('arguments', [{'step': -1}, {'step': 1, 'keep': 0}])
def test_impossible_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=r'step is -1|keep is 0'):
        checkpoint.save_checkpoint(tmp_path, tree={}, host_state=None, **arguments)


# --- Failures while writing ------------------------------------------------------------------


def test_a_disk_that_fills_up_leaves_the_older_checkpoint(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, {'w': torch.ones(3)}, None)
    before = files_in(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            checkpoint.save_checkpoint(tmp_path, 2, {'w': torch.ones(10_000)}, None, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'could not be written' in str(caught.value) and str(tmp_path) in str(caught.value)
    assert files_in(tmp_path) == before
    _, _, step = checkpoint.load_checkpoint(tmp_path, like={'w': torch.ones(3)})
    assert step == 1


def test_no_space_for_the_json_removes_the_arrays_too(tmp_path, monkeypatch):
    checkpoint.save_checkpoint(tmp_path, 1, {'w': torch.ones(3)}, None)
    before = files_in(tmp_path)

    def full(*_args, **_kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(CheckpointError, match=r'checkpoint_0000000002\.json.*No space left'):
        checkpoint.save_checkpoint(tmp_path, 2, {'w': torch.ones(3)}, None, keep=1)
    assert files_in(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='cannot hold checkpoints'):
        checkpoint.save_checkpoint(tmp_path / 'file', 1, {}, None)


# Saves step 1, then forks children that save step 2 and kill themselves at their first, second,
# third ... operation on files; after each, exactly one of the two checkpoints must be there, whole.
KILLED = """
import os, pathlib, shutil, signal, sys
import numpy as np, torch
from purerl.core import checkpoint

torch.set_num_threads(1)
root = pathlib.Path(sys.argv[1])

def save(folder, step, **kwargs):
    tree = {'w': torch.full((1000,), float(step))}
    checkpoint.save_checkpoint(folder, step, tree, {'at': np.full(5, step)}, **kwargs)

def killed_save(folder, limit):
    calls = 0
    def counted(function, half=False):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == limit:
                if half:
                    function(*args, **kwargs)
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    checkpoint.save_file = counted(checkpoint.save_file, half=True)
    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    shutil.rmtree = counted(shutil.rmtree)
    for name in ('mkdir', 'write_text', 'unlink', 'chmod'):
        setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
    save(folder, 2, keep=1)
    os._exit(0)

limit, signalled, outcomes = 0, True, []
while signalled:
    limit += 1
    folder = root / str(limit)
    save(folder, 1)
    pid = os.fork()
    if pid == 0:
        killed_save(folder, limit)
    signalled = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    like = {'w': torch.zeros(1000)}
    tree, host_state, step = checkpoint.load_checkpoint(folder, like=like)
    assert (tree['w'] == step).all() and (host_state['at'] == step).all()
    outcomes.append(step)
    save(folder, 3, keep=1)
    assert len(list(folder.iterdir())) == 2, list(folder.iterdir())
print(*outcomes)
"""


def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path):
    root = str(Path(purerl.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, '-c', KILLED, str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': root},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    outcomes = [int(word) for word in result.stdout.split()]
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) >= 8 and outcomes.count(2) >= 4
