"""jit: three modes, one result; one program per structure, shapes and static arguments."""

import functools
import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.core import jit as jit_module
from purerl.core import nn, optim, random, trees
from purerl.core.jit import jit, use_mode, vmap
from purerl.core.state import TrainState

MODES = ('off', 'trace', 'inductor')
X = torch.from_numpy(np.random.RandomState(0).standard_normal((16, 4)).astype(np.float32))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.ensemble = nn.Vmap(nn.Dense(8), 2)
        self.out = nn.Dense(1)

    def forward(self, x):
        return self.out(nn.gelu(self.ensemble(x))).squeeze(-1)


@trees.dataclass
class Learner:
    """A small agent: keyed noise, an ensemble, a gradient with aux, Adam."""

    rng: torch.Tensor
    state: TrainState
    scale: Any = trees.static()

    @classmethod
    def create(cls, seed, scale=0.1):
        rng, key = random.split(random.key(seed))
        params = nn.init(Net(), key, X)
        return cls(rng, TrainState.create(Net(), params, optim.adam(3e-3)), scale)

    def _update(self, batch, full=True):
        rng, key = random.split(self.rng)
        x = batch['x'] + self.scale * random.normal(key, batch['x'].shape)

        def loss_fn(params):
            loss = (self.state(x, params=params) - batch['y']).square().mean()
            return loss, {'loss': loss}

        state, info = self.state.apply_loss_fn(loss_fn)
        return self.replace(rng=rng, state=state if full else self.state), info

    @jit(static_argnames=('full',))
    def update(self, batch, full=True):
        return self._update(batch, full)


BATCH = {'x': X, 'y': X.sum(-1)}


def assert_close(ours, expected):
    ours_leaves, structure = trees.flatten(ours)
    expected_leaves, expected_structure = trees.flatten(expected)
    assert structure == expected_structure
    for a, b in zip(ours_leaves, expected_leaves, strict=True):
        assert a.dtype == b.dtype
        # Adam's first steps divide gradients by their own size: rounding near zero shows.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def run(step, learner, num=5):
    for _ in range(num):
        learner, info = step(learner, BATCH)
    return learner, info


def test_modes_agree():
    results = {}
    for mode in MODES:
        step = jit(lambda learner, batch: learner._update(batch), mode=mode)
        results[mode] = run(step, Learner.create(0))
        assert step.num_programs == (mode != 'off')
    for mode in MODES:
        assert_close(results[mode], results['off'])
    assert torch.equal(results['inductor'][0].rng, results['off'][0].rng)


@pytest.mark.parametrize('mode', MODES)
def test_mode_in_force(mode):
    fn = jit(lambda x: x + 1)
    with use_mode(mode):
        assert jit_module.get_mode() == mode
        assert torch.equal(fn(X), X + 1)
    assert fn.num_programs == (mode != 'off')


def test_one_program_for_each_static_value():
    # A program of its own: the class's is shared with whichever tests ran before.
    update = jit(Learner._update, static_argnames=('full',))
    learner = Learner.create(0)
    for _ in range(3):
        learner, _ = update(learner, BATCH)
        learner, _ = update(learner, BATCH, full=False)
        learner, _ = update(learner, BATCH, False)
        learner, _ = update(learner, BATCH, full=True)
    assert update.num_programs == 2
    update(Learner.create(1), BATCH)  # another seed is the same program
    assert update.num_programs == 2
    update(Learner.create(0, scale=0.5), BATCH)  # another static field is not
    assert update.num_programs == 3


def test_nothing_to_compute(caplog):
    fn = jit(lambda x, y: (y, x), mode='inductor')
    first, second = fn(X, 2 * X)
    assert torch.equal(first, 2 * X)
    assert torch.equal(second, X)
    assert 'artifact' not in caplog.text


@pytest.mark.parametrize('mode', MODES)
def test_only_what_is_computed_is_compiled(mode):
    used, unused = X.clone(), X.clone()
    fn = jit(lambda tree: {'new': 2 * tree['used'], 'old': tree, 'row': tree['used'][0]}, mode=mode)
    for factor in (1, 3):  # a first call and one of the program
        tree = {'used': factor * used, 'unused': factor * unused}
        result = fn(tree)
        assert torch.equal(result['new'], 2 * factor * X)
        assert torch.equal(result['row'], factor * X[0])
        assert all(result['old'][name] is tree[name] for name in tree)


def test_named_arguments_are_another_structure_as_in_jax():
    fn = jit(lambda x, y: x - y, mode='trace')
    for call in (lambda: fn(2 * X, X), lambda: fn(2 * X, y=X), lambda: fn(y=X, x=2 * X)) * 2:
        assert torch.equal(call(), X)
    assert fn.num_programs == 3


def test_new_shapes_are_new_programs():
    fn = jit(lambda x: x * x.shape[0], mode='trace')
    for n in (2, 3, 2, 3):
        assert torch.equal(fn(torch.ones(n)), torch.full((n,), float(n)))
    assert fn.num_programs == 2
    assert torch.equal(fn(torch.ones(2, dtype=torch.int64)), torch.tensor([2, 2]))
    assert fn.num_programs == 3


def _loss_and_its_product(x):
    def loss(x, w):
        return (x @ w).square().sum()

    return torch.func.grad(loss)(x, x), torch.tanh(x @ x)


def test_equal_products_are_computed_once():
    fn = jit(_loss_and_its_product, mode='trace')
    x = torch.ones(3, 3)
    fn(x)
    with torch.profiler.profile() as profile:
        fn(x)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts['aten::mm'] == 2  # the shared product, and the gradient's


def test_equal_products_are_generated_once():
    fn = jit(_loss_and_its_product, mode='inductor')
    with torch._inductor.config.patch(force_disable_caches=True):
        _, (code,) = run_and_get_code(fn, torch.ones(3, 3))
    assert code.count('aoti_torch_cpu_mm_out') == 2


def test_results_do_not_depend_on_strides():
    fn = jit(lambda x: x.reshape(-1), mode='trace')
    x = torch.arange(6.0).reshape(2, 3)
    fn(x.T.contiguous())
    assert torch.equal(fn(x.T), x.T.reshape(-1))
    assert fn.num_programs == 1


@pytest.mark.parametrize('mode', MODES)
def test_results_are_contiguous_and_inputs_untouched(mode):
    fn = jit(lambda x: {'t': x['a'].T, 'same': x['a']}, mode=mode)
    a = torch.arange(6.0).reshape(2, 3)
    out = fn({'a': a})
    assert torch.equal(out['t'], a.T) and torch.equal(out['same'], a)
    assert torch.equal(a, torch.arange(6.0).reshape(2, 3))
    assert mode == 'off' or out['t'].is_contiguous()


@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_arrays_and_numbers(mode):
    fn = jit(lambda tree, factor=2.0: {'out': tree['x'] * factor}, mode=mode)
    expected = torch.arange(3.0) * 2
    assert torch.equal(fn({'x': torch.arange(3.0)})['out'], expected)
    assert torch.equal(fn({'x': np.arange(3, dtype=np.float32)})['out'], expected)
    double = fn({'x': np.arange(3, dtype=np.float64)})['out']
    assert double.dtype == torch.float32 and torch.equal(double, expected)
    assert torch.equal(fn({'x': torch.arange(3.0)}, 3)['out'], torch.arange(3.0) * 3)
    assert torch.equal(fn({'x': torch.arange(3.0)}, factor=np.float64(3))['out'].float(),
                       torch.arange(3.0) * 3)  # fmt: skip
    integers = fn({'x': np.arange(3)}, 2)['out']
    assert integers.dtype == torch.int64
    assert torch.equal(fn({'x': np.float32(1.5)})['out'], torch.tensor(3.0))
    assert fn({'x': np.int32(2)}, np.int32(3))['out'].dtype == torch.int32
    backwards = np.arange(3, dtype=np.float32)[::-1]
    assert torch.equal(fn({'x': backwards})['out'], expected.flip(0))


def test_numbers_are_not_baked_in():
    fn = jit(lambda x, factor=2.0: x * factor, mode='trace')
    assert [fn(X, f)[0, 0] for f in (1.0, 5.0)] == [X[0, 0], X[0, 0] * 5]
    assert fn.num_programs == 1


def test_none_and_nested_results():
    fn = jit(lambda x, y=None: (x, [x + 1, None], {'y': y}), mode='trace')
    out = fn(X)
    assert out[1][1] is None and out[2] == {'y': None}
    assert torch.equal(fn(X, X)[2]['y'], X)
    assert fn.num_programs == 2


def test_what_is_no_array_must_be_static():
    fn = jit(lambda x, name: x, mode='trace')
    with pytest.raises(TypeError, match="'critic' of type str must be declared in static_argnames"):
        fn(X, 'critic')
    static = jit(
        lambda x, name: x if name == 'critic' else -x, mode='trace', static_argnames=('name',)
    )
    assert torch.equal(static(X, 'critic'), X) and torch.equal(static(X, name='actor'), -X)


def test_wrong_arguments():
    fn = jit(lambda x: x, mode='trace')
    for call in (lambda: fn(X, X), lambda: fn(), lambda: fn(X, y=X)):
        with pytest.raises(TypeError):
            call()
    static = jit(lambda x, flag=True: x, mode='trace', static_argnames=('flag',))
    for call in (lambda: static(X, True, X), lambda: static(X, True, flag=False)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match=r"no arguments \['flag'\]"):
        jit(lambda x: x, static_argnames=('flag',))
    with pytest.raises(ValueError, match='compilation mode'):
        jit(lambda x: x, mode='fast')
    with pytest.raises(ValueError, match='inductor, trace, off'):
        jit_module.set_mode('eager')


def test_a_failed_trace_leaves_no_program():
    fn = jit(lambda x: x @ torch.ones(3), mode='trace')
    with pytest.raises(RuntimeError):
        fn(torch.ones(2))
    assert fn.num_programs == 0
    assert fn(torch.ones(3)) == 3


@pytest.mark.parametrize('mode', ['trace', 'inductor'])
def test_tensors_that_are_no_arguments_are_refused(mode):
    constant = torch.ones(3)
    with pytest.raises(ValueError, match=r'closes over a tensor.*pass it as an argument'):
        jit(lambda x: x + constant, mode=mode)(torch.ones(3))


def test_methods_keep_their_names():
    assert Learner.update.__name__ == 'update'
    learner = Learner.create(0)
    bound = learner.update
    assert_close(bound(BATCH), learner.update(BATCH))


# --- Under transformations ------------------------------------------------------------------------


def test_steps_aside_under_transformations():
    fn = jit(lambda x: (x.sin() * 2).sum(), mode='trace')
    torch.testing.assert_close(torch.func.grad(fn)(X), 2 * X.cos())
    assert torch.func.vmap(fn)(X).shape == (16,)
    torch.func.jvp(fn, (X,), (X,))
    torch.func.vmap(torch.func.grad(fn))(X)
    make_fx(fn)(X)
    make_fx(fn, tracing_mode='fake')(X)
    assert fn.num_programs == 0
    outer = jit(lambda x: fn(x) + fn(2 * x), mode='trace')
    torch.testing.assert_close(outer(X), fn.fn(X) + fn.fn(2 * X))
    assert (outer.num_programs, fn.num_programs) == (1, 0)


@pytest.mark.parametrize('mode', ['trace', 'inductor'])
def test_jit_of_vmap_equals_loop(mode):
    learners = [Learner.create(seed) for seed in range(3)]

    @functools.partial(jit, mode=mode)
    def many(learners, batch):
        return vmap(lambda learner, batch: learner.update(batch), in_dims=(0, None))(
            learners, batch
        )

    stacked, info = run(many, trees.stack(learners), 3)
    assert many.num_programs == 1
    for i, learner in enumerate(learners):
        with use_mode('off'):
            expected = run(lambda agent, batch: agent.update(batch), learner, 3)
        # Batched matrix products add up in another order, which Adam's division magnifies.
        assert_close((trees.index(stacked, i), trees.index(info, i)), expected)


def test_vmap_of_trees():
    def fn(tree, factor, index=None):
        out = tree['x'] * factor
        return {'out': out, 'none': None, 'index': index, 'constant': torch.ones(2)}

    tree = {'x': torch.arange(6.0).reshape(3, 2), 'none': None}
    out = vmap(fn, in_dims=(0, None))(tree, torch.tensor(2.0))
    assert torch.equal(out['out'], tree['x'] * 2) and out['none'] is None
    assert out['constant'].shape == (3, 2)
    out = vmap(fn, in_dims=(1, 0))(tree, torch.tensor([1.0, 3.0]))
    assert torch.equal(out['out'], (tree['x'] * torch.tensor([1.0, 3.0])).T)
    out = vmap(fn)(tree, torch.arange(3.0), torch.arange(3))
    assert torch.equal(out['index'], torch.arange(3))
    nested = vmap(vmap(lambda tree: tree['x'] + 1))({'x': torch.zeros(2, 3), 'none': None})
    assert torch.equal(nested, torch.ones(2, 3))


# --- Settings -------------------------------------------------------------------------------------


@pytest.fixture
def no_mode(monkeypatch):
    monkeypatch.setattr(jit_module._Settings, 'mode', None)
    return monkeypatch


def test_environment_variable(no_mode):
    no_mode.setenv('PURERL_JIT', 'off')
    assert jit_module.get_mode() == 'off'
    no_mode.setattr(jit_module._Settings, 'mode', None)
    no_mode.setenv('PURERL_JIT', 'quickly')
    with pytest.raises(ValueError, match="got 'quickly'"):
        jit_module.get_mode()
    no_mode.delenv('PURERL_JIT')
    no_mode.setattr(jit_module._Settings, 'mode', None)
    no_mode.setattr(jit_module, '_has_compiler', lambda: True)
    assert jit_module.get_mode() == 'inductor'


def test_set_mode_and_use_mode(no_mode):
    jit_module.set_mode('trace')
    with pytest.raises(RuntimeError), use_mode('off'):
        assert jit_module.get_mode() == 'off'
        raise RuntimeError
    assert jit_module.get_mode() == 'trace'


def test_without_a_compiler_the_traced_graph_runs(no_mode):
    no_mode.setattr(jit_module.shutil, 'which', lambda name: None)
    no_mode.setattr(torch.cuda, 'is_available', lambda: False)
    jit_module._has_compiler.cache_clear()
    try:
        fn = jit(lambda x: x + 1)
        with use_mode('inductor'), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for _ in range(3):
                assert torch.equal(fn(X), X + 1)
            assert jit_module.get_mode() == 'trace'
            assert jit_module.mode_for(10**6, wide=True) == 'trace'
        assert len(caught) == 1 and 'no C++ compiler' in str(caught[0].message)
    finally:
        jit_module._has_compiler.cache_clear()


def test_mode_for(monkeypatch):
    monkeypatch.setattr(jit_module, '_has_compiler', lambda: True)
    assert jit_module.mode_for(1_000, wide=True) == 'trace'
    assert jit_module.mode_for(5_000, wide=True) == 'inductor'
    assert jit_module.mode_for(5_000, wide=False) == 'trace'
    assert jit_module.mode_for(50_000, wide=False) == 'inductor'


def test_libraries_that_a_killed_compiler_cut_off_are_compiled_again(tmp_path):
    program = (
        'import torch\n'
        'from purerl.core.jit import jit\n'
        "fn = jit(lambda x: torch.cumsum(x * x, 0), mode='inductor')\n"
        'print(fn(torch.arange(4.0)).tolist())\n'
    )
    environment = os.environ | {'TORCHINDUCTOR_CACHE_DIR': str(tmp_path)}
    for _ in range(2):
        command = [sys.executable, '-c', program]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.stdout.strip() == '[0.0, 1.0, 5.0, 14.0]', result.stderr
        libraries = list(tmp_path.rglob('*.so'))
        assert libraries
        for library in libraries:
            library.write_bytes(b'')


@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_what_is_on_the_cpu_goes_to_where_the_rest_is(mode):
    add = jit(lambda x, y, z: {'sum': x + y, 'own': z}, mode=mode)
    there = trees.device_put({'x': X}, 'meta')['x']
    for x in (X.numpy(), X):
        devices = trees.map(lambda leaf: leaf.device.type, add(x, there, X))
        assert devices == {'sum': 'meta', 'own': 'meta'}
    assert add(X, X, X)['sum'].device.type == 'cpu'


def test_arguments_on_two_devices_are_refused():
    with FakeTensorMode():
        x, y = (torch.empty(2, device=device) for device in ('cuda:0', 'cuda:1'))
        with pytest.raises(ValueError, match='several devices: cuda:0, cuda:1'):
            jit(lambda x, y: x + y, mode='off')(x, y)


@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_static_values_of_other_types_are_other_programs(mode):
    double = jit(lambda x, s: x / 2 if s is True else x * s, static_argnames=('s',), mode=mode)
    x = torch.arange(3)
    assert double(x, s=1).dtype == torch.int64
    assert double(x, s=1.0).dtype == torch.float32
    assert double(x, s=True).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_further_positional_arguments_leave_named_ones_alone(mode):
    def fn(x, *rest, flag=0):
        return x * flag + sum(rest)

    compiled = jit(fn, static_argnames=('flag',), mode=mode)
    assert compiled(torch.ones(2), 1.0, 7.0, flag=2).tolist() == [10, 10]

    def leading(x, flag, *rest):
        return x * flag + sum(rest)

    assert jit(leading, static_argnames=('flag',), mode=mode)(torch.ones(2), 3).tolist() == [3, 3]
    if mode == 'trace':
        with pytest.raises(TypeError, match='pass flag by name'):
            jit(leading, static_argnames=('flag',), mode=mode)(torch.ones(2), 3, 1.0)
