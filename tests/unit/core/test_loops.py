"""Loops: the same as a Python loop in every mode, one body whatever the number of iterations."""

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
