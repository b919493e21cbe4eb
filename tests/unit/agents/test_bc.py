"""Behaviour cloning: the loss by hand, weight decay, the entropy bonus, the learning rate."""

import math

import pytest
import torch

from purerl.agents.jaxrl5 import bc, networks
from purerl.core import random, trees

OBSERVATIONS, ACTIONS, BATCH = 4, 2, 8


def make_agent(seed=0, **overrides):
    config = bc.get_config()
    config.update({'hidden_dims': (16, 8), **overrides})
    return bc.BCLearner.create(seed, torch.zeros(OBSERVATIONS), torch.zeros(ACTIONS), config)


def make_batch(seed=0):
    key, other = random.split(random.key(seed))
    return {
        'observations': random.normal(key, (BATCH, OBSERVATIONS)),
        'actions': random.uniform(other, (BATCH, ACTIONS), -1.0, 1.0),
    }


def test_loss_is_the_likelihood_under_a_deviation_of_a_tenth():
    agent, batch = make_agent(), make_batch()
    _, info = agent.update(batch)
    means = agent.eval_actions(batch['observations'])[0]
    z = (batch['actions'] - means) / 0.1
    log_prob = (-0.5 * z.square() - math.log(0.1) - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(info['nll'], -log_prob.mean(), rtol=1e-5, atol=1e-5)


def test_the_deviation_has_no_gradient():
    agent = make_agent()
    for i in range(3):
        agent, _ = agent.update(make_batch(i))
    assert torch.equal(agent.actor.params['OutpuLogStd'], torch.zeros(ACTIONS))


def test_samples_spread_by_a_tenth_around_the_mode():
    agent = make_agent()
    observations = torch.zeros(4000, OBSERVATIONS)
    actions, _ = agent.sample_actions(observations)
    spread = actions - agent.eval_actions(observations)[0]
    assert spread.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.05)


def moves(agent, **replaced):
    """How far one update moves each parameter of two agents apart."""
    updated = agent.update(make_batch())[0].actor.params
    other = agent.replace(**replaced).update(make_batch())[0].actor.params
    return trees.map(lambda a, b: (a - b).abs().max().item(), updated, other)


def test_weight_decay_spares_biases_only():
    plain, decayed = make_agent(), make_agent(weight_decay=0.5)
    apart = moves(plain, actor=decayed.actor)
    for path, distance in trees.leaves_with_path(apart):
        # The log deviations decay too, from zero to zero.
        assert (distance > 1e-6) == (path[-1] == 'kernel'), path


def test_masks():
    params = {
        'MLP_0': {'Dense_0': {'kernel': 0, 'bias': 0}, 'LayerNorm_0': {'scale': 0, 'bias': 0}},
        'OutputDenseMean': {'kernel': 0, 'bias': 0},
        'InputDense': {'kernel': 0},
        'OutpuLogStd': 0,
    }
    everything = bc.get_weight_decay_mask(params)
    assert everything == {
        'MLP_0': {
            'Dense_0': {'kernel': True, 'bias': False},
            'LayerNorm_0': {'scale': True, 'bias': False},
        },
        'OutputDenseMean': {'kernel': True, 'bias': False},
        'InputDense': {'kernel': True},
        'OutpuLogStd': True,
    }
    assert networks.get_weight_decay_mask(params) == {
        **everything,
        'OutputDenseMean': {'kernel': False, 'bias': False},
        'InputDense': {'kernel': False},
    }


def test_the_entropy_bonus_of_a_fixed_deviation_only_adds_noise():
    agent = make_agent()
    assert agent.entropy_bonus is None
    with_bonus = make_agent(entropy_bonus=0.5)
    plain, info = agent.update(make_batch())
    updated, bonus_info = with_bonus.update(make_batch())
    assert torch.equal(info['nll'], bonus_info['nll'])
    assert torch.equal(info['entropy'], bonus_info['entropy'])
    gradients = [x.actor.opt_state[0].mu['OutputDenseMean']['kernel'] for x in (plain, updated)]
    assert not torch.allclose(*gradients)


def test_dropout_is_active_in_updates_only():
    agent = make_agent(dropout_rate=0.5)
    plain = make_agent()
    observations = make_batch()['observations']
    assert torch.equal(agent.eval_actions(observations)[0], plain.eval_actions(observations)[0])
    nlls = [x.update(make_batch())[1]['nll'] for x in (agent, plain)]
    assert not torch.equal(*nlls)


def test_the_learning_rate_falls_to_zero():
    agent = make_agent(decay_steps=3)
    for _ in range(3):
        agent, _ = agent.update(make_batch())
    still, _ = agent.update(make_batch())
    for before, after in zip(
        trees.leaves(agent.actor.params), trees.leaves(still.actor.params), strict=True
    ):
        assert torch.equal(before, after)
    with pytest.raises(ValueError, match='positive decay_steps, got 0'):
        make_agent(decay_steps=0)


@pytest.mark.parametrize('scale', [None, 1.0, 1e-4])
def test_the_last_layer_of_an_mlp_can_start_small(scale):
    # The original passes the scale as another argument of the initialiser, and fails.
    mlp = networks.MLP((64, 64), scale_final=scale)
    plain = networks.MLP((64, 64))
    x = torch.zeros(32)
    ours, expected = (networks.nn.init(module, random.key(0), x) for module in (mlp, plain))
    assert torch.equal(ours['Dense_0']['kernel'], expected['Dense_0']['kernel'])
    factor = 1.0 if scale is None else math.sqrt(scale)
    torch.testing.assert_close(ours['Dense_1']['kernel'], expected['Dense_1']['kernel'] * factor)
