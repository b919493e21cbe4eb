"""TrainState against the original's formula written with jax.grad and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from purerl.core import nn, optim, random, trees
from purerl.core.state import TrainState

RTOL = 1e-5  # a few steps of float32 networks
RNG = np.random.RandomState(0)
X, Y = (RNG.standard_normal(shape).astype(np.float32) for shape in ((32, 5), (32, 3)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Dense(8)
        self.out = nn.Dense(3)

    def forward(self, x):
        return self.out(nn.tanh(self.hidden(x)))


def jax_net(params, x):
    hidden = jnp.tanh(x @ params['hidden']['kernel'] + params['hidden']['bias'])
    return hidden @ params['out']['kernel'] + params['out']['bias']


def make_state(tx, **kwargs):
    net = nn.ModuleDict({'net': Net(), 'target_net': Net()})
    x = torch.from_numpy(X)
    params = nn.init(net, random.key(0), net=x, target_net=x)
    return TrainState.create(net, params, tx, **kwargs)


def loss_of(state):
    def loss_fn(params):
        prediction = state.select('net')(torch.from_numpy(X), params=params)
        loss = (prediction - torch.from_numpy(Y)).square().mean()
        return loss, {'loss': loss}

    return loss_fn


def jax_loss(params):
    loss = ((jax_net(params['modules_net'], X) - Y) ** 2).mean()
    return loss, {'loss': loss}


def original_apply_loss_fn(params, opt_state, tx):
    """The original's step: every leaf differentiated, statistics over every leaf."""
    grads, info = jax.grad(jax_loss, has_aux=True)(params)
    leaves = jax.tree.leaves(grads)
    info['grad/max'] = jnp.max(jnp.array([g.max() for g in leaves]))
    info['grad/min'] = jnp.min(jnp.array([g.min() for g in leaves]))
    info['grad/norm'] = jnp.linalg.norm(jnp.array([jnp.linalg.norm(g) for g in leaves]), ord=1)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, info


OPTIMISERS = {
    'adam': lambda o: o.adam(1e-2),
    'adam_schedule': lambda o: o.adam(o.cosine_decay_schedule(1e-2, 4, 0.1)),
    'chain': lambda o: o.chain(o.clip_by_global_norm(0.1), o.adam(o.linear_schedule(1e-2, 0.0, 3))),
    'momentum': lambda o: o.sgd(0.1, momentum=0.9),
}


@pytest.mark.parametrize('frozen', [(), ('modules_target_net',)], ids=['whole', 'frozen'])
@pytest.mark.parametrize('name', OPTIMISERS)
def test_apply_loss_fn(name, frozen):
    state, tx = make_state(OPTIMISERS[name](optim)), OPTIMISERS[name](optax)
    params = jax.tree.map(lambda x: jnp.array(x.numpy()), state.params)
    opt_state = tx.init(params)
    for step in range(6):
        state, info = state.apply_loss_fn(loss_of(state), frozen=frozen)
        params, opt_state, expected = original_apply_loss_fn(params, opt_state, tx)
        assert state.step.item() == step + 2
        assert sorted(info) == sorted(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(info[key].numpy(), value, rtol=RTOL, err_msg=key)
    for (path, ours), theirs in zip(
        trees.leaves_with_path(state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=RTOL, atol=1e-7, err_msg=str(path))
    counts = zip(trees.leaves(state.opt_state), jax.tree.leaves(opt_state), strict=True)
    for ours, theirs in counts:
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=RTOL, atol=1e-7)


@pytest.mark.parametrize('name', OPTIMISERS)
def test_frozen_entries_change_nothing_else(name):
    whole = frozen = make_state(OPTIMISERS[name](optim))
    for _ in range(4):
        whole, whole_info = whole.apply_loss_fn(loss_of(whole))
        frozen, frozen_info = frozen.apply_loss_fn(loss_of(frozen), frozen=('modules_target_net',))
        assert trees.structure(whole) == trees.structure(frozen)
        pairs = [*zip(trees.leaves(whole), trees.leaves(frozen), strict=True)]
        pairs += [(whole_info[key], frozen_info[key]) for key in whole_info]
        if name == 'chain':  # the global norm adds its terms up in another order
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        else:
            assert all(torch.equal(a, b) for a, b in pairs)


def test_statistics_count_the_zero_gradients_of_frozen_entries():
    state = make_state(optim.sgd(0.1))

    def all_positive(params):
        return sum(leaf.sum() for leaf in trees.leaves(params['modules_net'])), {}

    for frozen in ((), ('modules_target_net',)):
        _, info = state.apply_loss_fn(all_positive, frozen=frozen)
        assert info['grad/max'] == 1
        assert info['grad/min'] == 0


def test_apply_gradients_to_some_entries():
    state = make_state(optim.adam(1e-2))
    grads = {'modules_net': trees.map(torch.ones_like, state.params['modules_net'])}
    stepped = state.apply_gradients(grads)
    for name, changed in (('modules_net', True), ('modules_target_net', False)):
        before, after = trees.leaves(state.params[name]), trees.leaves(stepped.params[name])
        assert all(torch.equal(a, b) != changed for a, b in zip(before, after, strict=True))
    assert trees.structure(stepped) == trees.structure(state)


def test_create():
    state = make_state(optim.adam(1e-3), step=0)
    assert state.step.shape == () and state.step.dtype == torch.int64 and state.step == 0
    assert make_state(None).opt_state is None
    assert make_state(None).model_def is state.model_def  # equal definitions are shared
    assert make_state(optim.adam(1e-3)).step == 1


def test_calls_use_stored_or_given_parameters():
    state, x = make_state(None), torch.from_numpy(X)
    expected = nn.apply(state.model_def, state.params, x, name='net')
    assert torch.equal(state(x, name='net'), expected)
    assert torch.equal(state.select('net')(x), expected)
    zeros = trees.map(torch.zeros_like, state.params)
    assert not state.select('net')(x, params=zeros).any()


def test_stored_parameters_are_constants_of_gradients():
    state, x = make_state(None), torch.from_numpy(X)

    def loss(params):
        constant = state.select('target_net')(x).sum()
        return constant + state.select('net')(x, params=params).sum()

    grads = torch.func.grad(loss)(state.params)
    assert not any(leaf.any() for leaf in trees.leaves(grads['modules_target_net']))
    assert any(leaf.any() for leaf in trees.leaves(grads['modules_net']))
