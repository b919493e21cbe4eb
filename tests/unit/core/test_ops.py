"""ops against jax.numpy, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from purerl.core import ops


@pytest.mark.parametrize('low, high', [(-1, 1), (-0.5, 2.0), (1.0, 1.0)])
def test_clip_and_its_gradient(low, high):
    x = np.array([-3, -1, -0.5, 0, 0.5, 1, 2, 3, np.inf, -np.inf, np.nan], np.float32)
    ours = ops.clip(torch.from_numpy(x), low, high)
    np.testing.assert_array_equal(ours.numpy(), np.asarray(jnp.clip(x, low, high)))
    finite = x[:8]
    gradient = torch.func.grad(lambda x: ops.clip(x, low, high).sum())(torch.from_numpy(finite))
    expected = jax.grad(lambda x: jnp.clip(x, low, high).sum())(finite)
    np.testing.assert_array_equal(gradient.numpy(), np.asarray(expected))


def test_clip_has_half_a_gradient_at_its_bounds():
    gradient = torch.func.grad(lambda x: ops.clip(x, -1, 1).sum())(torch.tensor([-1.0, 0.0, 1.0]))
    assert gradient.tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize('tau', [0.0, 0.005, 1.0, torch.tensor(0.005)])
def test_polyak(tau):
    rng = np.random.RandomState(0)
    online, target = ({'a': {'k': rng.randn(50).astype(np.float32)}} for _ in range(2))
    ours = ops.polyak(*(jax.tree.map(torch.from_numpy, t) for t in (online, target)), tau)
    tau = float(tau)
    expected = jax.tree.map(lambda p, tp: p * tau + tp * (1 - tau), online, target)
    # `1 - tau` of a float32 tensor is rounded once more than that of a Python number.
    np.testing.assert_allclose(ours['a']['k'].numpy(), expected['a']['k'], rtol=1e-6, atol=1e-8)
    if tau in (0.0, 1.0):
        kept = online if tau else target
        np.testing.assert_array_equal(ours['a']['k'].numpy(), kept['a']['k'])


def test_polyak_refuses_trees_that_differ():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="'b'"):
        ops.polyak({'a': x, 'b': x}, {'a': x}, 0.5)


def test_prefixed():
    assert ops.prefixed('critic', {'loss': 1, 'q/mean': 2}) == {
        'critic/loss': 1,
        'critic/q/mean': 2,
    }
