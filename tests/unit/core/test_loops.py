"""Loops and branches: the same as Python's in every mode.

A loop has one body whatever the number of iterations, and of two branches only one runs.
"""

import pytest
import torch

from purerl.core import loops, random, trees
from purerl.core.jit import get_mode, grad, jit, use_mode, vmap

W = {
    'kernel': 0.3 * random.normal(random.key(0), (4, 4)),
    'bias': random.normal(random.key(1), (4,)),
}
X = random.normal(random.key(2), (3, 4))


def body(i, x, w):
    return x + 0.1 * torch.tanh(x @ w['kernel'] + w['bias'] + i)


def unstacked(tree):
    return [trees.index(tree, i) for i in range(len(tree['bias']))]


def looped(num, x, w):
    for i in range(num):
        x = body(i, x, w)
    return x


def integrate(w, x, num=5):
    return loops.fori(num, body, x, w)


def loss(w, x):
    """Differentiates with respect to w, though not through the loop."""
    return (integrate(w, x) @ w['kernel']).square().sum()


def expected_gradient(w):
    x = looped(5, X, w)
    return grad(lambda w: (x @ w['kernel']).square().sum())(w)


@pytest.mark.parametrize('mode', ['off', 'trace', 'inductor'])
def test_equals_a_python_loop(mode):
    for num in (0, 1, 5):
        result = jit(lambda w, x, num=num: integrate(w, x, num), mode=mode)(W, X)
        torch.testing.assert_close(result, looped(num, X, W))


@pytest.mark.parametrize('mode', ['off', 'trace', 'inductor'])
def test_vmap_over_some_of_the_leaves(mode):
    many = trees.map(lambda w: torch.stack([w, -w, 2 * w]), W)
    result = jit(vmap(integrate, in_dims=(0, None)), mode=mode)(many, X)
    torch.testing.assert_close(result, torch.stack([looped(5, X, w) for w in unstacked(many)]))


@pytest.mark.parametrize('mode', ['trace', 'inductor'])
def test_carries_of_any_strides(mode):
    def run(w, x):
        return integrate(w, x.mT), integrate(w, x[:, :1].expand(4, 4))

    x = random.normal(random.key(4), (4, 4))
    results = jit(run, mode=mode)(W, x)
    torch.testing.assert_close(results[0], looped(5, x.mT, W))
    torch.testing.assert_close(results[1], looped(5, x[:, :1].expand(4, 4), W))


def test_vmap_over_another_axis_and_twice():
    nested = random.normal(random.key(3), (2, 3, 5, 4))
    result = jit(vmap(vmap(integrate, in_dims=(None, 0)), in_dims=(None, 1)), mode='trace')(
        W, nested
    )
    torch.testing.assert_close(result, looped(5, nested, W).transpose(0, 1))


def test_nothing_differentiates_through_it():
    expected = expected_gradient(W)
    assert expected['bias'].abs().max() == 0
    for mode in ('off', 'trace'):
        trees.map(torch.testing.assert_close, jit(grad(loss), mode=mode)(W, X), expected)


def test_gradient_under_vmap():
    many = trees.map(lambda w: torch.stack([w, 2 * w]), W)
    result = jit(vmap(grad(loss), in_dims=(0, None)), mode='trace')(many, X)
    expected = trees.stack([expected_gradient(w) for w in unstacked(many)])
    trees.map(torch.testing.assert_close, result, expected)


def test_the_body_is_traced_once():
    calls = []

    def counted(i, x, w):
        calls.append(i)
        return body(i, x, w)

    jit(lambda x, w: loops.fori(50, counted, x, w), mode='trace')(X, W)
    assert len(calls) == 1


def test_bodies_differ_in_name_where_they_differ_in_a_constant():
    def scaled(factor):
        return jit(lambda x: loops.fori(2, lambda i, x: x * factor, x), mode='trace')(X)

    torch.testing.assert_close(scaled(2.0), 4 * X)
    torch.testing.assert_close(scaled(3.0), 9 * X)


def test_bodies_differ_in_name_where_a_constant_has_another_type():
    def times(dtype):
        fn = lambda c: (torch.tensor([200], dtype=dtype) * 2).float()  # noqa: E731
        return jit(lambda x: loops.cond(x.sum() > 0, fn, lambda c: c, x), mode='trace')

    assert times(torch.int64)(torch.ones(1)) == 400
    assert times(torch.uint8)(torch.ones(1)) == 144  # it wraps around


def test_the_iterations_number_is_on_the_carrys_device():
    def body(i, x):
        assert i.device == x.device
        return x

    loops.fori(1, body, X.to('meta'))


def test_loops_nest():
    def outer(i, x):
        return loops.fori(2, lambda j, x, i: x + i + j, x, i)

    result = jit(vmap(lambda x: loops.fori(3, outer, x)), mode='trace')(X)
    torch.testing.assert_close(result, X + 2 * (0 + 1 + 2) + 3 * (0 + 1))


def test_the_carry_keeps_structure_shapes_and_types():
    def run(body):
        return jit(lambda x: loops.fori(2, body, x), mode='trace')(X)

    with pytest.raises(ValueError, match=r'makes \(3,\) torch.float32 of the carry \(3, 4\)'):
        run(lambda i, x: x.sum(-1))
    with pytest.raises(ValueError, match='structure'):
        run(lambda i, x: (x, x))


def test_the_body_takes_its_tensors_as_operands():
    with pytest.raises(ValueError, match='closes over a tensor'):
        jit(lambda x: loops.fori(2, lambda i, y: y + x, x), mode='trace')(X)


def test_outputs_do_not_alias_inputs():
    result = jit(lambda x: loops.fori(0, lambda i, x: x, x), mode='trace')(X)
    assert result.data_ptr() != X.data_ptr()
    assert get_mode() == 'trace'
    with use_mode('off'):
        assert loops.fori(0, lambda i, x: x, X) is not None


# --- Branches -------------------------------------------------------------------------------------


def raised(w, x):
    return {'x': torch.sinh(x @ w['kernel']), 'unchanged': w['bias']}


def lowered(w, x):
    return {'x': -x, 'unchanged': w['bias']}


def choose(predicate, w, x):
    return loops.cond(predicate, raised, lowered, w, x)


def chosen(predicate, w, x):
    return (raised if predicate else lowered)(w, x)


def assert_same(results, expected):
    trees.map(torch.testing.assert_close, results, expected)


@pytest.mark.parametrize('mode', ['off', 'trace', 'inductor'])
def test_a_branch_is_taken(mode):
    run = jit(choose, mode=mode)
    for predicate in (torch.tensor(True), torch.tensor(False)):
        result = run(predicate, W, X)
        assert_same(result, chosen(predicate, W, X))
        assert mode == 'off' or result['unchanged'].data_ptr() != W['bias'].data_ptr()


@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_the_other_branch_does_not_run(mode):
    run = jit(choose, mode=mode)
    for predicate in (torch.tensor(True), torch.tensor(False)):
        run(predicate, W, X)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run(predicate, W, X)
        names = {event.key for event in profile.key_averages()}
        assert ('aten::sinh' in names) is predicate.item()
        assert ('aten::neg' in names) is not predicate.item()


@pytest.mark.parametrize('mode', ['off', 'trace', 'inductor'])
def test_branches_under_vmap(mode):
    many = trees.map(lambda w: torch.stack([w, -w, 2 * w]), W)
    one, each = torch.tensor(True), torch.tensor([True, False, True])

    def run(*args, in_dims):
        return jit(vmap(choose, in_dims=in_dims), mode=mode)(*args)

    assert_same(
        run(one, many, X, in_dims=(None, 0, None)),
        trees.stack([raised(w, X) for w in unstacked(many)]),
    )
    assert_same(
        run(each, many, X, in_dims=(0, 0, None)),
        trees.stack([chosen(p, w, X) for p, w in zip(each, unstacked(many), strict=True)]),
    )
    assert_same(
        run(each, W, X, in_dims=(0, None, None)), trees.stack([chosen(p, W, X) for p in each])
    )


def test_an_iterations_number_is_where_the_carry_is():
    seen = []

    def count(i, x):
        seen.append(i.device.type)
        return x + i

    loops.fori(2, count, X.to('meta'))
    assert seen == ['meta', 'meta']


def test_branches_under_vmap_twice():
    each = torch.tensor([True, False])
    nested = random.normal(random.key(3), (3, 2, 5, 4))
    result = jit(vmap(vmap(choose, in_dims=(0, None, 0)), in_dims=(None, None, 0)), mode='trace')(
        each, W, nested
    )
    rows = [trees.stack([chosen(p, W, x) for p, x in zip(each, xs, strict=True)]) for xs in nested]
    assert_same(result, trees.stack(rows))


def test_nothing_differentiates_through_branches():
    def loss(w, x):
        return (choose(torch.ones((), dtype=torch.bool), w, x)['x'] * w['bias']).sum()

    expected = grad(lambda w: (raised(W, X)['x'] * w['bias']).sum())(W)
    for mode in ('off', 'trace'):
        assert_same(jit(grad(loss), mode=mode)(W, X), expected)


def test_branches_return_the_same_kind_of_result():
    def run(true_fn, false_fn):
        return jit(lambda p, x: loops.cond(p, true_fn, false_fn, x), mode='trace')(
            torch.tensor(True), X
        )

    with pytest.raises(ValueError, match=r'returns \(3,\) torch.float32, the other \(3, 4\)'):
        run(lambda x: x.sum(-1), lambda x: x)
    with pytest.raises(ValueError, match='structure'):
        run(lambda x: (x, x), lambda x: x)
    with pytest.raises(ValueError, match='closes over a tensor'):
        jit(lambda p, x: loops.cond(p, lambda y: y + x, lambda y: y, x), mode='trace')(
            torch.tensor(True), X
        )
