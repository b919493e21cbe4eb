"""TD3: targets by hand, the delayed actor, noise."""

import pytest
import torch

from purerl.agents.jaxrl5 import td3
from purerl.core import random, trees
from purerl.core.jit import use_mode

OBSERVATIONS, ACTIONS, BATCH = 4, 2, 8


def make_agent(seed=0, **overrides):
    config = td3.get_config()
    config.update({'hidden_dims': (16, 8), **overrides})
    return td3.TD3Learner.create(seed, torch.zeros(OBSERVATIONS), torch.zeros(ACTIONS), config)


def make_batch(seed=0, num=BATCH):
    keys = random.split(random.key(seed), 5)
    return {
        'observations': random.normal(keys[0], (num, OBSERVATIONS)),
        'actions': random.uniform(keys[1], (num, ACTIONS), -1.0, 1.0),
        'rewards': random.normal(keys[2], (num,)),
        'masks': random.bernoulli(keys[3], 0.7, (num,)).float(),
        'next_observations': random.normal(keys[4], (num, OBSERVATIONS)),
    }


def same(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_losses_by_hand():
    agent, batch = make_agent(actor_delay=1), make_batch()
    updated, info = agent.update(batch)

    next_actions = agent.target_actor(batch['next_observations'])
    noise = 0.2 * random.normal(random.split(agent.rng)[0], next_actions.shape)
    next_qs = agent.target_critic(batch['next_observations'], next_actions + noise.clamp(-0.5, 0.5))
    target_q = batch['rewards'] + 0.99 * batch['masks'] * next_qs.amin(0)
    qs = agent.critic(batch['observations'], batch['actions'])
    torch.testing.assert_close(info['critic_loss'], (qs - target_q).square().mean())
    torch.testing.assert_close(info['q'], qs.mean())

    actions = agent.actor(batch['observations'])
    actor_loss = -updated.critic(batch['observations'], actions).mean()
    torch.testing.assert_close(info['actor_loss'], actor_loss)


@pytest.mark.parametrize('mode', ['off', 'trace'])
@pytest.mark.parametrize('delay, utd_ratio', [(1, 1), (2, 1), (3, 1), (2, 4)])
def test_actor_target_and_key_wait(delay, utd_ratio, mode):
    agent = make_agent(actor_delay=delay)
    with use_mode(mode):
        for i in range(1, 7):
            before = agent
            agent, info = agent.update(make_batch(i), utd_ratio)
            moved = i % delay == 0
            assert same(before.actor, agent.actor) is not moved
            assert same(before.target_actor, agent.target_actor) is not moved
            assert (info['actor_loss'] == 0).item() is not moved
            splits = 4 * utd_ratio + moved  # four keys for each critic step, one for the actor's
            key = before.rng
            for _ in range(splits):
                key = random.split(key)[1]
            assert torch.equal(agent.rng, key)
    assert agent.actor.step == 6 // delay
    assert agent.critic.step == 6 * utd_ratio


def test_target_actions_may_leave_the_bounds():
    # A policy at its bound, and noise: the target critics see actions beyond 1.
    agent = make_agent(target_policy_noise=1.0)
    params = dict(agent.target_actor.params)
    params['OutputDenseMean'] = {
        **params['OutputDenseMean'],
        'bias': torch.full((ACTIONS,), 20.0),
    }
    agent = agent.replace(target_actor=agent.target_actor.replace(params=params))
    batch = make_batch()
    _, info = agent.update(batch)
    noise = random.normal(random.split(agent.rng)[0], (BATCH, ACTIONS)).clamp(-0.5, 0.5)
    assert noise.max() > 0
    next_qs = agent.target_critic(batch['next_observations'], 1.0 + noise)
    target_q = batch['rewards'] + 0.99 * batch['masks'] * next_qs.amin(0)
    qs = agent.critic(batch['observations'], batch['actions'])
    torch.testing.assert_close(info['critic_loss'], (qs - target_q).square().mean())


def test_exploration_is_the_policy_and_clipped_noise():
    agent = make_agent(exploration_noise=0.3)
    observations = torch.zeros(4000, OBSERVATIONS)
    actions, moved = agent.sample_actions(observations)
    mode, same_agent = agent.eval_actions(observations)
    assert (actions - mode).std().item() == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(moved.rng, agent.rng) and same(same_agent, agent)
    loud, _ = make_agent(exploration_noise=10.0).sample_actions(observations)
    assert loud.abs().max() == 1


def test_critics_are_drawn_for_each_target():
    some = make_agent(num_qs=5, num_min_qs=2)
    plain = make_agent(num_qs=5)
    assert same(some.critic.params, plain.critic.params)
    (a, _), (b, _) = (x.update(make_batch()) for x in (some, plain))
    assert torch.equal(a.rng, b.rng)
    assert not same(a.critic.params, b.critic.params)


def test_dropout_and_layer_norm_are_of_the_critics():
    agent = make_agent(critic_dropout_rate=0.5, critic_layer_norm=True)
    assert 'LayerNorm_0' in agent.critic.params['VmapStateActionValue_0']['MLP_0']
    assert 'LayerNorm_0' not in agent.actor.params['MLP_0']
    without = make_agent(critic_layer_norm=True)
    losses = [x.update(make_batch())[1]['critic_loss'] for x in (agent, without)]
    assert not torch.equal(*losses)


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'num_min_qs': 3}, 'num_min_qs=3 must lie between 1 and num_qs=2'),
        ({'actor_delay': 0}, 'actor_delay must be at least 1, got 0'),
    ],
)
def test_create_refuses(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**overrides)


def test_batches_divide_into_updates():
    with pytest.raises(ValueError, match='does not divide into utd_ratio=3'):
        make_agent().update(make_batch(), 3)
