"""optim against optax 0.2.8, step by step, and TensorFlow 1's formulas written out in numpy."""

import doctest

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.core import optim, trees

STEPS = 35
RTOL = 2e-6
SHAPES = {
    'zeta': {'kernel': (3, 4), 'bias': (4,)},
    'Dense_2': {'kernel': (4, 2), 'bias': (2,)},
    'Dense_10': {'kernel': (2, 1)},
    'alpha': {'log_value': ()},
}


def random_tree(rng, scale=1.0):
    return {
        module: {
            name: (scale * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in leaves.items()
        }
        for module, leaves in SHAPES.items()
    }


def gradients(seed=0):
    """Gradients of widely different sizes, so that clipping both acts and does not."""
    rng = np.random.default_rng(seed)
    return [random_tree(rng, scale=10.0 ** rng.uniform(-3, 1)) for _ in range(STEPS)]


def to_torch(tree):
    return trees.map(torch.tensor, tree)


def is_kernel(tree):
    return {k: is_kernel(v) if isinstance(v, dict) else k == 'kernel' for k, v in tree.items()}


def label_by_module(tree):
    return {module: 'slow' if module.startswith('Dense') else 'fast' for module in tree}


LABELS = {
    'zeta': {'kernel': 'fast', 'bias': 'frozen'},
    'Dense_2': {'kernel': 'slow', 'bias': 'slow'},
    'Dense_10': {'kernel': 'frozen'},
    'alpha': {'log_value': 'fast'},
}
MASK = {
    'zeta': {'kernel': True, 'bias': False},
    'Dense_2': {'kernel': False, 'bias': False},
    'Dense_10': {'kernel': True},
    'alpha': {'log_value': True},
}
PREFIX_MASK = {'zeta': True, 'Dense_2': False, 'Dense_10': {'kernel': False}, 'alpha': True}

# Each entry builds the transformation from either library.
TRANSFORMATIONS = {
    'identity': lambda o: o.identity(),
    'set_to_zero': lambda o: o.set_to_zero(),
    'scale': lambda o: o.scale(-0.3),
    'scale_by_learning_rate': lambda o: o.scale_by_learning_rate(0.07),
    'scale_by_schedule': lambda o: o.scale_by_schedule(o.linear_schedule(1.0, 0.1, 20)),
    'scale_by_adam': lambda o: o.scale_by_adam(0.8, 0.95, 1e-5),
    'scale_by_adam_eps_root': lambda o: o.scale_by_adam(eps_root=1e-3),
    'scale_by_rms': lambda o: o.scale_by_rms(),
    'scale_by_rms_eps_outside': lambda o: o.scale_by_rms(0.7, 1e-3, 0.5, eps_in_sqrt=False),
    'scale_by_stddev': lambda o: o.scale_by_stddev(0.9, 1e-2),
    'scale_by_stddev_eps_outside': lambda o: o.scale_by_stddev(0.9, 1e-2, 1.0, eps_in_sqrt=False),
    'trace': lambda o: o.trace(0.9),
    'trace_nesterov': lambda o: o.trace(0.9, nesterov=True),
    'clip': lambda o: o.clip(0.5),
    'clip_by_global_norm': lambda o: o.clip_by_global_norm(1.5),
    'add_decayed_weights': lambda o: o.add_decayed_weights(0.1),
    'add_decayed_weights_none': lambda o: o.add_decayed_weights(0.0),
    'add_decayed_weights_mask': lambda o: o.add_decayed_weights(0.1, mask=MASK),
    'adam': lambda o: o.adam(3e-4),
    'adam_eps': lambda o: o.adam(1e-2, b1=0.5, b2=0.99, eps=1.5e-4),
    'adam_schedule': lambda o: o.adam(o.cosine_decay_schedule(3e-4, 30, 0.1)),
    'adamw': lambda o: o.adamw(1e-2),
    'adamw_mask_callable': lambda o: o.adamw(1e-2, weight_decay=0.1, mask=is_kernel),
    'adamw_mask_tree': lambda o: o.adamw(1e-2, weight_decay=0.1, mask=MASK),
    'sgd': lambda o: o.sgd(0.1),
    'sgd_momentum': lambda o: o.sgd(0.1, momentum=0.9),
    'sgd_nesterov': lambda o: o.sgd(o.exponential_decay(0.1, 5, 0.9), 0.9, nesterov=True),
    'rmsprop': lambda o: o.rmsprop(1e-3),
    'rmsprop_momentum': lambda o: o.rmsprop(1e-3, momentum=0.9, initial_scale=1.0),
    'rmsprop_nesterov': lambda o: o.rmsprop(
        1e-3, 0.95, 1e-3, eps_in_sqrt=False, momentum=0.8, nesterov=True
    ),
    'rmsprop_centered': lambda o: o.rmsprop(1e-3, eps=1e-2, centered=True, momentum=0.9),
    'chain': lambda o: o.chain(o.clip_by_global_norm(1.0), o.adam(1e-3), o.scale(0.5)),
    'masked_tree': lambda o: o.masked(o.adam(1e-2), MASK),
    'masked_callable': lambda o: o.masked(o.sgd(1e-2, momentum=0.9), is_kernel),
    'masked_prefix': lambda o: o.masked(o.adamw(1e-2), PREFIX_MASK),
    'multi_transform': lambda o: o.multi_transform(
        {
            'slow': o.chain(o.clip_by_global_norm(1.0), o.adam(1e-4)),
            'fast': o.adamw(1e-2),
            'frozen': o.set_to_zero(),
        },
        LABELS,
    ),
    'multi_transform_callable': lambda o: o.multi_transform(
        {
            'slow': o.sgd(1e-2),
            'fast': o.adam(o.linear_schedule(1e-2, 0.0, 20)),
            'unused': o.clip_by_global_norm(1.0),
        },
        label_by_module,
    ),
}
TRACED = (
    'adam_schedule',
    'adamw_mask_callable',
    'rmsprop_centered',
    'sgd_nesterov',
    'chain',
    'masked_prefix',
    'multi_transform',
)


def named_leaves(state_dict, path=()):
    if not isinstance(state_dict, dict):
        return {path: np.asarray(state_dict)}
    named = {}
    for name, child in state_dict.items():
        named.update(named_leaves(child, (*path, name)))
    return named


def assert_same(ours, theirs, atol=0.0):
    """Compare paths, dtypes, shapes and values with those of Flax's state dict of `theirs`."""
    ours = {path: leaf.numpy() for path, leaf in trees.leaves_with_path(ours)}
    theirs = named_leaves(flax.serialization.to_state_dict(theirs))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        expected = theirs[path]
        assert (leaf.dtype, leaf.shape) == (expected.dtype, expected.shape), path
        if leaf.dtype == np.int32:
            np.testing.assert_array_equal(leaf, expected, err_msg=str(path))
        else:
            # Sums cancel: what is left carries the rounding of the leaf's larger values.
            floor = max(atol, 0.2 * RTOL * np.abs(expected).max())
            np.testing.assert_allclose(leaf, expected, RTOL, floor, err_msg=str(path))


def compare_with_optax(build, make_update):
    theirs, ours = build(optax), build(optim)
    start = random_tree(np.random.default_rng(1))
    their_params, our_params = jax.tree.map(jnp.asarray, start), to_torch(start)
    their_state, our_state = theirs.init(their_params), ours.init(our_params)
    assert_same(our_state, their_state)
    update = make_update(ours, our_state, our_params)
    for grads in gradients():
        their_updates, their_state = theirs.update(
            jax.tree.map(jnp.asarray, grads), their_state, their_params
        )
        their_params = optax.apply_updates(their_params, their_updates)
        our_updates, our_state = update(to_torch(grads), our_state, our_params)
        our_params = optim.apply_updates(our_params, our_updates)
        assert_same(our_updates, their_updates)
        assert_same(our_state, their_state)
        assert_same(our_params, their_params, atol=1e-6)  # they pass through zero


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_matches_optax(name):
    compare_with_optax(TRANSFORMATIONS[name], lambda tx, state, params: tx.update)


@pytest.mark.parametrize('name', TRACED)
def test_traced_matches_optax(name):
    """A graph traced at the first step serves all: it holds no counts, and writes in no place."""

    def make_update(tx, state, params):
        # Gradients of their own: make_fx takes one tensor given twice for one input.
        leaves, structure = trees.flatten((to_torch(gradients()[-1]), state, params))

        def flat_update(*leaves):
            return trees.leaves(tx.update(*trees.unflatten(structure, leaves)))

        graph = make_fx(flat_update)(*leaves)
        targets = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
        assert targets
        for target in targets:
            operator = target.removeprefix('aten.').split('.')[0]
            assert not operator.endswith('_') and operator != '_local_scalar_dense', target
        result = trees.structure((params, state))
        return lambda *args: trees.unflatten(result, graph(*trees.leaves(args)))

    compare_with_optax(TRANSFORMATIONS[name], make_update)


@pytest.mark.parametrize('name', ['chain', 'multi_transform', 'adam_schedule'])
def test_compiles_without_graph_breaks(name):
    tx = TRANSFORMATIONS[name](optim)
    compiled = torch.compile(tx.update, fullgraph=True, backend='eager')
    params = to_torch(random_tree(np.random.default_rng(1)))
    state = compiled_state = tx.init(params)
    for grads in map(to_torch, gradients()[:3]):
        updates, state = tx.update(grads, state, params)
        compiled_updates, compiled_state = compiled(grads, compiled_state, params)
        assert_close((updates, state), (compiled_updates, compiled_state), rtol=0)


def assert_close(tree, other, rtol):
    trees.map(lambda x, y: torch.testing.assert_close(x, y, rtol=rtol, atol=0), tree, other)


@pytest.mark.parametrize('name', ['chain', 'multi_transform', 'rmsprop_centered', 'adam_schedule'])
def test_vmap_equals_loop(name):
    tx = TRANSFORMATIONS[name](optim)
    members = [to_torch(random_tree(np.random.default_rng(seed))) for seed in (1, 2)]
    states = [tx.init(params) for params in members]
    # Different counts too: member 1 has taken a step that member 0 has not.
    _, states[1] = tx.update(members[0], states[1], members[1])
    stacked, stacked_state = trees.stack(members), trees.stack(states)
    for pair in zip(gradients(3)[:5], gradients(4)[:5], strict=True):
        grads = [to_torch(tree) for tree in pair]
        results = [tx.update(*row) for row in zip(grads, states, members, strict=True)]
        states = [state for _, state in results]
        updates, stacked_state = torch.func.vmap(tx.update)(
            trees.stack(grads), stacked_state, stacked
        )
        for i in range(2):
            assert_close(trees.index((updates, stacked_state), i), results[i], rtol=1e-6)


def test_update_is_differentiable():
    """The derivative of sgd's step with respect to the gradient is minus the learning rate."""
    tx = optim.chain(optim.clip(10.0), optim.sgd(0.25, momentum=0.9))
    params = {'w': torch.tensor([1.0, 2.0])}

    def first_update(grads):
        return tx.update(grads, tx.init(params), params)[0]['w'].sum()

    slope = torch.func.grad(first_update)({'w': torch.tensor([3.0, 4.0])})['w']
    assert torch.equal(slope, torch.tensor([-0.25, -0.25]))


def test_count_saturates():
    tx = optim.scale_by_adam()
    params = {'w': torch.ones(2)}
    last = torch.tensor(2**31 - 1, dtype=torch.int32)
    updates, state = tx.update(params, tx.init(params)._replace(count=last), params)
    assert state.count == last
    assert torch.isfinite(updates['w']).all()


def test_state_holds_new_tensors_on_the_device_of_the_params():
    params = {'w': torch.nn.Parameter(torch.ones(2, device='meta'))}
    tx = optim.adamw(optim.constant_schedule(1e-3))
    for leaf in trees.leaves(tx.init(params)):
        assert leaf.device.type == 'meta'
        assert type(leaf) is torch.Tensor and not leaf.requires_grad


def test_incremental_update_matches_optax():
    rng = np.random.default_rng(0)
    new, old = random_tree(rng), random_tree(rng)
    ours = optim.incremental_update(to_torch(new), to_torch(old), 0.005)
    theirs = optax.incremental_update(
        jax.tree.map(jnp.asarray, new), jax.tree.map(jnp.asarray, old), 0.005
    )
    assert_same(ours, theirs)


def test_global_norm():
    tree = {'b': torch.tensor([3.0, 0.0]), 'a': {'c': torch.tensor(-4.0)}}
    assert optim.global_norm(tree) == 5.0
    assert optim.global_norm({}) == 0.0


def test_clip_by_global_norm_adds_nothing_to_the_norm():
    tx = optim.clip_by_global_norm(1e-6)
    grads = {'w': torch.tensor([3e-6, 4e-6])}
    clipped, _ = tx.update(grads, tx.init(grads))
    torch.testing.assert_close(clipped['w'], torch.tensor([6e-7, 8e-7]), rtol=1e-6, atol=0)


# --- TensorFlow 1 ----------------------------------------------------------------------------


def run(tx, start, grads):
    params = torch.tensor(start)
    state = tx.init(params)
    path = []
    for g in grads:
        updates, state = tx.update(torch.tensor(g), state, params)
        params = optim.apply_updates(params, updates)
        path.append(params.numpy())
    return np.stack(path)


def tf_problem():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((2, 3)).astype(np.float32)
    return start, (0.1 * rng.standard_normal((STEPS, 2, 3))).astype(np.float32)


def test_tf_adam():
    start, grads = tf_problem()
    lr, b1, b2, eps = 0.01, 0.9, 0.999, 1e-2
    p, m, v = start.astype(np.float64), 0.0, 0.0
    expected = []
    for t, g in enumerate(grads.astype(np.float64), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        lr_t = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        p = p - lr_t * m / (np.sqrt(v) + eps)
        expected.append(p)
    # 1 - 0.999**t in float32 is off by up to 6e-5, of steps of at most 0.01.
    path = run(optim.tf_adam(lr, b1, b2, eps), start, grads)
    np.testing.assert_allclose(path, np.stack(expected), rtol=0, atol=2e-6)
    assert np.abs(path - run(optim.adam(lr, b1, b2, eps), start, grads)).max() > 1e-2


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('centered', [False, True])
def test_tf_rmsprop(momentum, centered):
    start, grads = tf_problem()
    lr, decay, eps = 0.01, 0.95, 1e-3
    p, mean, square, step = start.astype(np.float64), 0.0, 1.0, 0.0
    expected = []
    for g in grads.astype(np.float64):
        square = decay * square + (1 - decay) * g**2
        mean = decay * mean + (1 - decay) * g
        denominator = square - mean**2 if centered else square
        step = momentum * step + lr * g / np.sqrt(denominator + eps)
        p = p - step
        expected.append(p)
    path = run(optim.tf_rmsprop(lr, decay, momentum, eps, centered), start, grads)
    np.testing.assert_allclose(path, np.stack(expected), rtol=2e-6, atol=1e-6)


# --- Schedules -------------------------------------------------------------------------------

SCHEDULES = {
    'constant': lambda o: o.constant_schedule(0.3),
    'linear': lambda o: o.linear_schedule(1e-3, 1e-5, 20, transition_begin=5),
    'linear_no_steps': lambda o: o.linear_schedule(1e-3, 1e-5, 0),
    'linear_negative_begin': lambda o: o.linear_schedule(1e-3, 1e-5, 20, transition_begin=-3),
    'polynomial': lambda o: o.polynomial_schedule(1.0, 0.1, 2, 17),
    'polynomial_power': lambda o: o.polynomial_schedule(0.1, 1.0, 0.7, 17, 3),
    'cosine': lambda o: o.cosine_decay_schedule(3e-4, 25),
    'cosine_alpha': lambda o: o.cosine_decay_schedule(3e-4, 25, alpha=0.1, exponent=2.5),
    'warmup': lambda o: o.warmup_constant_schedule(0.0, 3e-4, 11),
    'warmup_cosine': lambda o: o.warmup_cosine_decay_schedule(0.0, 3e-4, 7, 30, 1e-5),
    'warmup_cosine_exponent': lambda o: o.warmup_cosine_decay_schedule(1e-4, 1, 7, 30, exponent=2),
    'exponential': lambda o: o.exponential_decay(1e-2, 10, 0.9),
    'exponential_stairs': lambda o: o.exponential_decay(
        1e-2, 6, 0.5, transition_begin=4, staircase=True, end_value=1.5e-3
    ),
    'exponential_growth': lambda o: o.exponential_decay(1e-2, 10, 1.5, end_value=2e-2),
    'exponential_rate_zero': lambda o: o.exponential_decay(1e-2, 10, 0),
    'exponential_no_steps': lambda o: o.exponential_decay(1e-2, 0, 0.9),
    'piecewise': lambda o: o.piecewise_constant_schedule(0.1, {20: 0.1, 10: 0.5, 33: 2.0}),
    'piecewise_none': lambda o: o.piecewise_constant_schedule(0.1),
    'join': lambda o: o.join_schedules(
        [
            o.linear_schedule(0.0, 1.0, 5),
            o.constant_schedule(1.0),
            o.exponential_decay(1.0, 3, 0.5),
        ],
        [5, 12],
    ),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_matches_optax(name):
    theirs, ours = SCHEDULES[name](optax), SCHEDULES[name](optim)
    counts = torch.arange(45, dtype=torch.int32)
    values = [ours(count) for count in counts]
    assert all(value.dtype == torch.float32 and value.shape == () for value in values)
    expected = np.array([theirs(jnp.asarray(count.numpy())) for count in counts], np.float32)
    # A cosine near -1 loses its leading digits, hence the absolute part.
    atol = 1e-7 * np.abs(expected).max()
    np.testing.assert_allclose(torch.stack(values), expected, rtol=2e-6, atol=atol)
    mapped = torch.func.vmap(ours)(counts)
    torch.testing.assert_close(mapped, torch.stack(values), rtol=1e-6, atol=float(atol))


# --- Interning -------------------------------------------------------------------------------


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_equal_arguments_give_the_same_object(name):
    # Functions are equal if they are the same: `label_by_module` is, a fresh lambda is not.
    assert TRANSFORMATIONS[name](optim) is TRANSFORMATIONS[name](optim)


@pytest.mark.parametrize('name', SCHEDULES)
def test_equal_arguments_give_the_same_schedule(name):
    assert SCHEDULES[name](optim) is SCHEDULES[name](optim)


def test_interning_fills_in_defaults_and_tells_values_apart():
    assert optim.adam(3e-4) is optim.adam(learning_rate=3e-4, b1=0.9)
    assert optim.adam(3e-4) is not optim.adam(3e-5)
    assert optim.masked(optim.sgd(1.0), {'a': True}) is not optim.masked(
        optim.sgd(1.0), {'b': True}
    )
    assert hash(optim.adam(3e-4)) == hash(optim.adam(3e-4))


def test_changing_an_argument_later_changes_nothing():
    mask = {'w': True, 'b': False}
    optim.adamw(0.1, weight_decay=1.0, mask=mask)
    mask['b'] = True
    tx = optim.adamw(0.1, weight_decay=1.0, mask={'w': True, 'b': False})
    params = {'w': torch.ones(1), 'b': torch.ones(1)}
    updates, _ = tx.update(trees.map(torch.zeros_like, params), tx.init(params), params)
    assert updates['b'] == 0 and updates['w'] < 0


def test_parameters_keep_their_dtype():
    params = {'w': torch.ones(2, dtype=torch.bfloat16), 'i': torch.ones(2, dtype=torch.int32)}
    updates = {'w': torch.ones(2), 'i': torch.full((2,), 0.6)}
    applied = optim.apply_updates(params, updates)
    assert {name: value.dtype for name, value in applied.items()} == {
        'w': torch.bfloat16,
        'i': torch.int32,
    }


def test_unhashable_arguments_are_not_remembered():
    class Unhashable:
        __hash__ = None

        def __call__(self, tree):
            return is_kernel(tree)

    mask = Unhashable()
    assert optim.masked(optim.sgd(1.0), mask) is not optim.masked(optim.sgd(1.0), mask)


# --- Errors ----------------------------------------------------------------------------------


def test_weight_decay_without_params():
    tx = optim.adamw(1e-3)
    params = {'w': torch.ones(2)}
    with pytest.raises(ValueError, match=r'add_decayed_weights.*params'):
        tx.update(params, tx.init(params))


def test_unknown_label():
    tx = optim.multi_transform({'fast': optim.sgd(1.0)}, {'a': {'b': 'slow', 'c': 'fast'}})
    with pytest.raises(ValueError, match="label 'slow' at 'a/b' is none of \\['fast'\\]"):
        tx.init({'a': {'b': torch.ones(1), 'c': torch.ones(1)}})


def test_mask_that_does_not_fit():
    tx = optim.masked(optim.sgd(1.0), {'a': True, 'c': False})
    with pytest.raises(ValueError, match=r"a dict of \('a', 'c'\) where .* a dict of \('a', 'b'\)"):
        tx.init({'a': torch.ones(1), 'b': torch.ones(1)})
    tx = optim.masked(optim.sgd(1.0), {'a': {'b': True}})
    with pytest.raises(ValueError, match='where the tree has a leaf'):
        tx.init({'a': torch.ones(1)})


def test_chain_with_another_state():
    tx = optim.chain(optim.scale(1.0), optim.scale(2.0))
    with pytest.raises(ValueError, match='chain of 2 transformations got a state of 1'):
        tx.update({}, (optim.EmptyState(),))


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: optim.cosine_decay_schedule(1.0, 0), 'positive decay_steps, got 0'),
        (lambda: optim.warmup_cosine_decay_schedule(0.0, 1.0, 9, 9), 'positive decay_steps, got 0'),
        (lambda: optim.piecewise_constant_schedule(1.0, {3: -1.0}), 'negative scale'),
        (lambda: optim.join_schedules([optim.constant_schedule(1.0)], [3]), 'need 0 boundaries'),
    ],
)
def test_schedule_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_example_in_the_docstring_runs():
    results = doctest.testmod(optim)
    assert results.attempted > 0 and results.failed == 0
