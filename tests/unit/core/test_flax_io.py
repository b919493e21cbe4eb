import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.core import FrozenDict
from flax.training.train_state import TrainState as FlaxTrainState

import purerl
from purerl.core import flax_io, trees
from purerl.core.checkpoint import CheckpointError

# --- A Flax agent, and the same in PyTorch ---------------------------------------------------


class Net(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Dense(3)(x)
        x = flax.linen.LayerNorm()(x)
        return flax.linen.Dense(2)(x)


class FlaxAgent(flax.struct.PyTreeNode):
    rng: Any
    actor: FlaxTrainState
    target_critic: FlaxTrainState
    tau: float
    num_qs: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, seed):
        rng = jax.random.PRNGKey(seed)
        params = Net().init(rng, jnp.ones((1, 4)))['params']
        no_optimiser = optax.GradientTransformation(lambda _: None, lambda _: None)
        return cls(
            rng=rng,
            actor=FlaxTrainState.create(apply_fn=Net().apply, params=params, tx=optax.adam(1e-2)),
            target_critic=FlaxTrainState.create(
                apply_fn=Net().apply, params=params, tx=no_optimiser
            ),
            tau=0.005,
            num_qs=2,
        )

    @jax.jit
    def update(self, x):
        rng, key = jax.random.split(self.rng)

        def loss(params):
            noise = jax.random.normal(key, x.shape)
            return (self.actor.apply_fn({'params': params}, x + noise) ** 2).mean()

        grads = jax.grad(loss)(self.actor.params)
        return self.replace(actor=self.actor.apply_gradients(grads=grads), rng=rng)


class AdamState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class EmptyState(NamedTuple):
    pass


@trees.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    tx: Any = trees.static(default='adam')


@trees.dataclass
class Agent:
    rng: Any
    actor: State
    target_critic: State
    tau: Any
    num_qs: int = trees.static(default=2)


def make_agent(width=3):
    params = {
        'Dense_0': {'kernel': torch.zeros(4, width), 'bias': torch.zeros(width)},
        'Dense_1': {'kernel': torch.zeros(width, 2), 'bias': torch.zeros(2)},
        'LayerNorm_0': {'scale': torch.zeros(width), 'bias': torch.zeros(width)},
    }
    count = torch.tensor(0, dtype=torch.int32)
    return Agent(
        rng=torch.zeros(2, dtype=torch.int64),
        actor=State(torch.tensor(0), params, (AdamState(count, params, params), EmptyState())),
        target_critic=State(torch.tensor(0), params, None),
        tau=torch.tensor(0.0),
    )


@pytest.fixture(scope='module')
def flax_agent():
    agent = FlaxAgent.create(3)
    for i in range(3):
        agent = agent.update(jnp.full((5, 4), float(i)))
    return agent


@pytest.fixture(scope='module')
def state_dict(flax_agent):
    return flax.serialization.to_state_dict(flax_agent)


def dump(path, value, protocol=None):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def assert_agent_equals(agent, state_dict):
    theirs = dict(trees.leaves_with_path(state_dict))
    ours = dict(trees.leaves_with_path(agent))
    assert ours.keys() == theirs.keys()
    like = dict(trees.leaves_with_path(make_agent()))
    for path, leaf in ours.items():
        assert (leaf.dtype, leaf.shape) == (like[path].dtype, like[path].shape), path
        expected = np.asarray(theirs[path])
        np.testing.assert_array_equal(leaf.numpy().astype(expected.dtype), expected, str(path))


# --- Reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickled_jax_agent_is_restored(tmp_path, state_dict, protocol):
    path = dump(tmp_path / 'params_3.pkl', {'agent': state_dict}, protocol)
    assert_agent_equals(flax_io.restore_flax(make_agent(), flax_io.load_flax(path)), state_dict)


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickled_numpy_agent_is_restored(tmp_path, state_dict, protocol):
    as_numpy = jax.tree_util.tree_map(np.asarray, state_dict)
    path = dump(tmp_path / 'params_3.pkl', {'agent': as_numpy}, protocol)
    assert_agent_equals(flax_io.restore_flax(make_agent(), flax_io.load_flax(path)), state_dict)


@pytest.mark.parametrize('chunk_bytes', [2**30, 16])
def test_a_msgpack_agent_is_restored(tmp_path, monkeypatch, flax_agent, state_dict, chunk_bytes):
    monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', chunk_bytes)
    path = tmp_path / 'checkpoint_3'
    path.write_bytes(flax.serialization.to_bytes(flax_agent))
    assert_agent_equals(flax_io.restore_flax(make_agent(), flax_io.load_flax(path)), state_dict)


def test_a_fresh_agent_with_python_numbers_is_restored(tmp_path):
    state_dict = flax.serialization.to_state_dict(FlaxAgent.create(0))
    assert type(state_dict['actor']['step']) is int and type(state_dict['tau']) is float
    for name, content in {
        'a.pkl': pickle.dumps({'agent': state_dict}),
        'a': flax.serialization.msgpack_serialize(state_dict),
    }.items():
        (tmp_path / name).write_bytes(content)
        agent = flax_io.restore_flax(make_agent(), flax_io.load_flax(tmp_path / name))
        assert agent.tau == torch.tensor(0.005) and agent.actor.step == 0


def test_pickles_and_msgpack_are_told_apart_by_content(tmp_path):
    value = {'w': np.arange(3)}
    (tmp_path / 'a').write_bytes(pickle.dumps(value))
    (tmp_path / 'b').write_bytes(flax.serialization.msgpack_serialize(dict(value)))
    for name in 'ab':
        np.testing.assert_array_equal(flax_io.load_flax(tmp_path / name)['w'], [0, 1, 2])


def test_a_frozen_dict_and_a_live_state_dict_are_restored(tmp_path, state_dict):
    frozen = FrozenDict(state_dict)
    assert_agent_equals(flax_io.restore_flax(make_agent(), frozen), state_dict)
    path = dump(tmp_path / 'params.pkl', frozen)
    assert_agent_equals(flax_io.restore_flax(make_agent(), flax_io.load_flax(path)), state_dict)


def test_part_of_an_agent_is_restored(state_dict):
    params = flax_io.restore_flax(make_agent().actor.params, state_dict['actor']['params'])
    kernel = np.asarray(state_dict['actor']['params']['Dense_1']['kernel'])
    np.testing.assert_array_equal(params['Dense_1']['kernel'].numpy(), kernel)


def test_reading_needs_no_jax(tmp_path, state_dict):
    dump(tmp_path / 'params.pkl', {'agent': state_dict})
    code = (
        'import sys\n'
        'for name in ("jax", "jaxlib", "flax", "ml_dtypes", "msgpack"): sys.modules[name] = None\n'
        'from purerl.core import flax_io\n'
        'print(flax_io.load_flax(sys.argv[1])["rng"])\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'params.pkl')],
        env={**os.environ, 'PYTHONPATH': str(Path(purerl.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == str(np.asarray(state_dict['rng'])), result.stderr


def test_msgpack_without_the_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / 'a').write_bytes(flax.serialization.msgpack_serialize({'w': np.ones(1)}))
    monkeypatch.setitem(sys.modules, 'msgpack', None)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[flax\]'"):
        flax_io.load_flax(tmp_path / 'a')


@pytest.mark.parametrize('name', ['a.pkl', 'a.msgpack'])
def test_every_dtype_is_read(tmp_path, name):
    arrays = {
        'bool': np.array([True, False]),
        'u1': np.arange(3, dtype=np.uint8),
        'i8': np.array(-(2**60)),
        'f2': np.array([[1.5]], dtype=np.float16),
        'f8': np.zeros((0, 3)),
        'c8': np.array([1 + 2j], dtype=np.complex64),
        'text': np.array(['ab', 'c']),
        'scalar': np.float32(0.1),
    }
    if name == 'a.pkl':
        arrays['fortran'] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        arrays['big-endian'] = np.arange(3, dtype='>i4')
        content = pickle.dumps(arrays)
    else:
        del arrays['text']
        content = flax.serialization.msgpack_serialize(dict(arrays))
    (tmp_path / name).write_bytes(content)
    loaded = flax_io.load_flax(tmp_path / name)
    assert loaded.keys() == arrays.keys()
    for key, expected in arrays.items():
        assert type(loaded[key]) is type(expected), key
        assert (loaded[key].dtype, loaded[key].shape) == (expected.dtype, expected.shape), key
        np.testing.assert_array_equal(loaded[key], expected)
        if expected.shape:
            assert loaded[key].flags.writeable, key


@pytest.mark.parametrize('protocol', range(6))
def test_empty_arrays_are_read(tmp_path, protocol):
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'x': np.zeros((0, 3))}, protocol))
    assert flax_io.load_flax(tmp_path / 'a.pkl')['x'].shape == (0, 3)


def test_bfloat16_is_widened(tmp_path):
    values = jnp.array([[1.0, -2.5, 3e38], [0.1, jnp.inf, 0.0]], jnp.bfloat16)
    dump(tmp_path / 'a.pkl', {'w': values})
    (tmp_path / 'b').write_bytes(flax.serialization.msgpack_serialize({'w': values}))
    for name in ('a.pkl', 'b'):
        loaded = flax_io.load_flax(tmp_path / name)['w']
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, np.asarray(values.astype(jnp.float32)))
    like = {'w': torch.zeros(2, 3, dtype=torch.bfloat16)}
    restored = flax_io.restore_flax(like, {'w': values})['w']
    assert restored.dtype == torch.bfloat16
    np.testing.assert_array_equal(restored.float().numpy(), loaded)


# --- States that do not fit ------------------------------------------------------------------


def test_another_architecture_is_one_error_with_the_first_paths(state_dict):
    given = {**state_dict, 'temp': {'step': 1}}
    del given['rng']
    with pytest.raises(CheckpointError) as caught:
        flax_io.restore_flax(make_agent(width=5), given)
    message = str(caught.value)
    assert 'does not fit Agent' in message
    assert 'missing: rng' in message and 'unexpected: temp/step' in message
    assert (
        'actor/opt_state/0/mu/Dense_0/kernel (float32 (4, 3), expected float32 (4, 5))' in message
    )
    assert 'more' in message


@pytest.mark.parametrize(
    ('like', 'value'),
    [
        (torch.tensor(1, dtype=torch.int32), np.float32(1)),
        (torch.tensor(1, dtype=torch.int32), np.int64(2**31)),
        (torch.tensor(1, dtype=torch.uint8), np.int32(-1)),
        (torch.tensor(True), np.int32(1)),
        (torch.tensor(1.0), True),
        (torch.tensor(1.0), 'text'),
        (torch.tensor(1), np.uint64(2**63)),
    ],
)
def test_values_of_another_kind_are_refused(like, value):
    with pytest.raises(CheckpointError, match=r'a/b .*expected'):
        flax_io.restore_flax({'a': {'b': like}}, {'a': {'b': value}})


def test_values_in_other_byte_orders_and_memory_layouts_are_restored():
    given = {
        'swapped': np.arange(3, dtype='>f4'),
        'strided': np.arange(6, dtype=np.float64).reshape(2, 3).T[::-1],
        'key': np.array([1, 2**32 - 1], dtype=np.uint32),
    }
    like = {
        'swapped': torch.zeros(3),
        'strided': torch.zeros(3, 2),
        'key': torch.zeros(2, dtype=torch.int64),
    }
    restored = flax_io.restore_flax(like, given)
    for name, leaf in restored.items():
        np.testing.assert_array_equal(leaf.numpy(), given[name])
        assert leaf.is_contiguous()


# --- Writing ---------------------------------------------------------------------------------


def test_to_flax_is_what_flax_makes_of_the_same_agent(state_dict):
    ours = flax_io.to_flax(flax_io.restore_flax(make_agent(), state_dict))
    assert_same_state(ours, state_dict)


def assert_same_state(ours, theirs):
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and ours.keys() == theirs.keys()
        for name in theirs:
            assert_same_state(ours[name], theirs[name])
    elif theirs is None:
        assert ours is None
    else:
        assert type(ours) is np.ndarray
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('name', ['params_3.pkl', 'params_3.msgpack'])
@pytest.mark.parametrize('chunk_bytes', [2**30, 16])
def test_the_original_goes_on_from_an_exported_agent(
    tmp_path, monkeypatch, flax_agent, state_dict, name, chunk_bytes
):
    monkeypatch.setattr(flax_io, '_CHUNK_BYTES', chunk_bytes)
    path = tmp_path / name
    flax_io.save_flax(path, flax_io.restore_flax(make_agent(), state_dict))
    if path.suffix == '.pkl':
        loaded = pickle.loads(path.read_bytes())
        restored = flax.serialization.from_state_dict(FlaxAgent.create(0), loaded['agent'])
    else:
        restored = flax.serialization.from_bytes(FlaxAgent.create(0), path.read_bytes())
    x = jnp.ones((5, 4))
    expected = flax.serialization.to_state_dict(flax_agent.update(x))
    actual = flax.serialization.to_state_dict(restored.update(x))
    jax.tree_util.tree_map(np.testing.assert_array_equal, actual, expected)
    assert_agent_equals(flax_io.restore_flax(make_agent(), flax_io.load_flax(path)), state_dict)


def test_exported_pickles_name_nothing_that_only_one_numpy_has(tmp_path):
    flax_io.save_flax(tmp_path / 'a.pkl', make_agent())
    content = (tmp_path / 'a.pkl').read_bytes()
    assert b'numpy' in content and b'core' not in content


def test_integers_become_what_jax_has():
    exported = flax_io.to_flax(
        {
            'key': torch.tensor([0, 2**32 - 1]),
            'keys': torch.zeros(3, 2, dtype=torch.int64),
            'step': torch.tensor(7),
            'pair': torch.tensor([-1, 1]),
            'flag': torch.tensor(True),
            'half': torch.tensor([1.5], dtype=torch.bfloat16),
        }
    )
    assert {name: str(array.dtype) for name, array in exported.items()} == {
        'key': 'uint32',
        'keys': 'uint32',
        'step': 'int32',
        'pair': 'int32',
        'flag': 'bool',
        'half': 'float32',
    }
    with pytest.raises(CheckpointError, match='a/b'):
        flax_io.to_flax({'a': {'b': torch.tensor(2**31)}})


def test_exported_arrays_are_copies():
    kernel = torch.zeros(3)
    exported = flax_io.to_flax({'kernel': kernel})
    exported['kernel'][:] = 1
    assert kernel.sum() == 0


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'ends in \.pkl or \.msgpack'):
        flax_io.save_flax(tmp_path / 'a.pt', make_agent())


# --- Files that are damaged or hostile -------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile_pickles(marker):
    touch = f'touch {marker}'
    yield 'posix.system', pickle.dumps({'agent': {'w': Call(os.system, touch)}})
    yield 'builtins.eval', pickle.dumps([np.ones(2), Call(eval, f'open({marker!r}, "w")')])
    yield 'builtins.exec', pickle.dumps(Call(exec, f'open({marker!r}, "w")'), protocol=5)
    yield 'io.open', pickle.dumps(Call(open, marker, 'w'), protocol=0)
    yield 'builtins.getattr', pickle.dumps(Call(getattr, 'x', 'upper'))
    yield 'numpy.load', pickle.dumps(Call(np.load, marker))
    yield 'os.system', f'cos\nsystem\n(S{touch!r}\ntR.'.encode()
    yield 'os.system', f"(S'{touch}'\nios\nsystem\n.".encode()
    yield 'numpy.dtype.newbyteorder', b'\x80\x04\x8c\x05numpy\x8c\x12dtype.newbyteorder\x93.'
    yield 'os.system', b'\x80\x04cos\nsystem\n.'


def test_nothing_but_arrays_and_containers_is_loaded(tmp_path):
    marker = tmp_path / 'ran'
    for refused, content in hostile_pickles(str(marker)):
        path = tmp_path / 'hostile.pkl'
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            flax_io.load_flax(path)
        message = str(caught.value)
        assert 'hostile.pkl' in message and f'refers to {refused}, ' in message, message
        assert not marker.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (pickle.dumps(np.array([None, {}])), 'arrays of objects'),
        (pickle.dumps(np.zeros(2, dtype=[('a', 'f4')])), 'structured'),
        (pickle.dumps(np.array(['2020-01-01'], dtype='M8[D]')), "dtype 'M8'"),
        (pickle.dumps(np.ndarray), 'a function or a class'),
        (pickle.dumps({'f': jax._src.array._reconstruct_array}), 'a function or a class'),
        # sets attributes of the function that makes arrays
        (b'\x80\x04cnumpy\ndtype\n}\x8c\x05_callK\x00sb.', 'change a function'),
        (b'\x80\x04cnumpy\ndtype\nN}\x8c\x05_callK\x00s\x86b.', 'change a function'),
    ],
)
def test_arrays_of_other_things_are_refused(tmp_path, content, message):
    (tmp_path / 'a.pkl').write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'a\.pkl: .*{message}'):
        flax_io.load_safe_pickle(tmp_path / 'a.pkl')


def test_a_container_that_contains_itself_is_refused(tmp_path):
    cycle = [1]
    cycle.append({'again': cycle})
    with pytest.raises(CheckpointError, match='contains itself'):
        flax_io.load_safe_pickle(dump(tmp_path / 'a.pkl', cycle))


@pytest.mark.parametrize(
    'pair', [lambda x: [x, x], lambda x: {'a': x, 'b': x}], ids=['list', 'dict']
)
def test_shared_containers_are_not_unfolded_without_end(tmp_path, pair):
    state = pair(0)
    for _ in range(60):
        state = pair(state)
    state = flax_io.load_safe_pickle(dump(tmp_path / 'a.pkl', {'w': state}))
    with pytest.raises(CheckpointError, match='more than 1000000 parts'):
        flax_io.restore_flax({'w': torch.zeros(2)}, state)


def test_an_array_whose_bytes_disagree_with_its_shape_is_refused():
    for size in (2, 4):
        content = pickle.dumps(Call(np.ndarray, (3,), '<f4', bytes(4 * size)))
        with pytest.raises(CheckpointError, match='damaged'):
            flax_io.load_safe_pickle(io.BytesIO(content))


@pytest.mark.parametrize('name', ['a.pkl', 'a.msgpack'])
def test_truncated_and_garbled_files_are_one_error(tmp_path, name):
    path = tmp_path / name
    flax_io.save_flax(path, make_agent())
    whole = path.read_bytes()
    for content in (b'', whole[:1], whole[:40], whole[:-1], b'garbage' * 9):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r'a\.(pkl|msgpack): '):
            flax_io.load_flax(path)


def test_unknown_msgpack_extensions_are_refused(tmp_path):
    import msgpack

    (tmp_path / 'a').write_bytes(msgpack.packb({'w': msgpack.ExtType(77, b'x')}))
    with pytest.raises(CheckpointError, match='extension type 77'):
        flax_io.load_flax(tmp_path / 'a')


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r'a\.pkl: cannot be read'):
        flax_io.load_flax(tmp_path / 'a.pkl')
    with pytest.raises(CheckpointError, match=r'a\.pkl: cannot be read'):
        flax_io.load_safe_pickle(tmp_path / 'a.pkl')
    with pytest.raises(CheckpointError, match='Orbax'):
        flax_io.load_flax(tmp_path)


def test_arrays_of_objects_on_request():
    data = pickle.dumps(np.array([{'x': np.arange(3)}, np.array([None, 'a'])], dtype=object))
    loaded = flax_io.load_safe_pickle(io.BytesIO(data), objects=True)
    np.testing.assert_array_equal(loaded[0]['x'], np.arange(3))
    assert loaded[1] == [None, 'a']
    square = pickle.dumps(np.full((2, 2), None))
    with pytest.raises(CheckpointError, match='arrays of objects'):
        flax_io.load_safe_pickle(io.BytesIO(square), objects=True)


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_come_back_as_they_are(protocol):
    shared = [1, 2]
    value = {
        'shared': (shared, shared),
        'set': {1, 'a'},
        'frozen': frozenset([2]),
        'numbers': [1.5, 2**100, True, None, 1 + 2j],
        'bytes': b'\x00\xff',
        'ordered': OrderedDict(b=1, a=np.int32(2)),
        3: 'three',
    }
    loaded = flax_io.load_safe_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)))
    assert loaded == value
    assert list(loaded['ordered']) == ['b', 'a']
    assert loaded['shared'][0] is loaded['shared'][1]


def test_old_names_of_the_same_functions_are_known():
    new = pickle.dumps({'w': jnp.arange(3), 'v': np.arange(2)}, protocol=2)
    old = new.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    old = old.replace(
        b'jax._src.array\n_reconstruct_array\n',
        b'jax._src.device_array\nreconstruct_device_array\n',
    )
    assert old.count(b'device_array') == 2
    loaded = flax_io.load_safe_pickle(io.BytesIO(old))
    np.testing.assert_array_equal(loaded['w'], [0, 1, 2])
    np.testing.assert_array_equal(loaded['v'], [0, 1])


def test_a_wrongly_numbered_object_takes_no_memory():
    assert flax_io.load_safe_pickle(io.BytesIO(b'\x80\x04Nr\xff\xff\xff\x7f.')) is None


@trees.dataclass
class Growing:
    centre: Any
    weight: Any

    changes_shape = frozenset({'centre'})


def test_leaves_that_change_shape_may_have_another():
    like = Growing({'value': torch.zeros(3)}, torch.zeros(3))
    state = {'centre': {'value': np.ones((4, 3), np.float32)}, 'weight': np.ones(3, np.float32)}
    restored = flax_io.restore_flax(like, state)
    assert torch.equal(restored.centre['value'], torch.ones(4, 3))
    state['weight'] = np.ones(2, np.float32)
    with pytest.raises(CheckpointError, match='weight'):
        flax_io.restore_flax(like, state)
