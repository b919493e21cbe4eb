"""jaxrl5's IQL: losses by hand, the order of its steps, any number of critics."""

import pytest
import torch

from purerl.agents.jaxrl5 import iql
from purerl.core import random, trees

OBSERVATIONS, ACTIONS, BATCH = 4, 2, 8


def make_agent(seed=0, **overrides):
    config = iql.get_config()
    config.update({'hidden_dims': (16, 8), **overrides})
    return iql.IQLLearner.create(seed, torch.zeros(OBSERVATIONS), torch.zeros(ACTIONS), config)


def make_batch(seed=0):
    keys = random.split(random.key(seed), 5)
    return {
        'observations': random.normal(keys[0], (BATCH, OBSERVATIONS)),
        'actions': random.uniform(keys[1], (BATCH, ACTIONS), -1.0, 1.0),
        'rewards': random.normal(keys[2], (BATCH,)),
        'masks': random.bernoulli(keys[3], 0.7, (BATCH,)).float(),
        'next_observations': random.normal(keys[4], (BATCH, OBSERVATIONS)),
    }


@pytest.mark.parametrize('num_qs', [1, 2, 3])
def test_losses_by_hand_in_the_order_value_actor_critics(num_qs):
    agent, batch = make_agent(num_qs=num_qs, temperature=3.0, expectile=0.9), make_batch()
    updated, info = agent.update(batch)
    q = agent.target_critic(batch['observations'], batch['actions']).amin(0)

    diff = q - agent.value(batch['observations'])
    value_loss = (torch.where(diff > 0, 0.9, 0.1) * diff**2).mean()
    torch.testing.assert_close(info['value_loss'], value_loss)

    # Policy and critics see the new value, the policy the old target critics.
    adv = q - updated.value(batch['observations'])
    torch.testing.assert_close(info['adv'], adv)
    log_probs = agent.actor(batch['observations']).log_prob(batch['actions'])
    actor_loss = -(torch.exp(3.0 * adv).clamp(max=100) * log_probs).mean()
    torch.testing.assert_close(info['actor_loss'], actor_loss)

    target_q = batch['rewards'] + 0.99 * batch['masks'] * updated.value(batch['next_observations'])
    qs = agent.critic(batch['observations'], batch['actions'])
    torch.testing.assert_close(info['critic_loss'], (qs - target_q).square().sum(0).mean())
    for i in range(num_qs):
        torch.testing.assert_close(info[f'q{i + 1}'], qs[i].mean())
    assert f'q{num_qs + 1}' not in info


def test_weights_stop_at_a_hundred():
    agent, batch = make_agent(temperature=1e6), make_batch()
    params = dict(agent.value.params)
    params['OutputVDense'] = {**params['OutputVDense'], 'bias': torch.full((1,), -5.0)}
    agent = agent.replace(value=agent.value.replace(params=params))
    _, info = agent.update(batch)
    assert info['adv'].min() > 0
    log_probs = agent.actor(batch['observations']).log_prob(batch['actions'])
    torch.testing.assert_close(info['actor_loss'], -100 * log_probs.mean())


def test_targets_follow_the_critics_from_after_the_step():
    agent, batch = make_agent(tau=0.3), make_batch()
    updated, _ = agent.update(batch)
    expected = trees.map(
        lambda new, old: 0.3 * new + 0.7 * old, updated.critic.params, agent.critic.params
    )
    for ours, reference in zip(
        trees.leaves(updated.target_critic.params), trees.leaves(expected), strict=True
    ):
        torch.testing.assert_close(ours, reference)


def test_the_policy_alone_has_a_schedule():
    agent = make_agent(decay_steps=1)
    once, _ = agent.update(make_batch())
    twice, _ = once.update(make_batch(1))
    kernels = [x.actor.params['OutputDenseMean']['kernel'] for x in (agent, once, twice)]
    assert not torch.equal(kernels[0], kernels[1])
    assert torch.equal(kernels[1], kernels[2])
    values = [x.value.params['OutputVDense']['kernel'] for x in (once, twice)]
    assert not torch.equal(*values)


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'num_qs': 0}, 'num_qs=0: IQL needs at least one critic'),
        ({'decay_steps': -1}, 'positive decay_steps, got -1'),
    ],
)
def test_create_refuses(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**overrides)
