"""What is particular to TD InfoNCE: its losses by hand, its targets, encoders, and bad input."""

import numpy as np
import pytest
import torch

from purerl.agents.infom import crl_infonce, encoders
from purerl.agents.infom.td_infonce import TDInfoNCEAgent, get_config
from purerl.core import random, trees
from purerl.core.jit import use_mode

SMALL = {
    'actor_hidden_dims': (16,),
    'value_hidden_dims': (16,),
    'reward_hidden_dims': (16,),
    'latent_dim': 4,
    'lr': 1e-2,
    'tau': 0.1,
}
SIZE = 6


@pytest.fixture(autouse=True)
def traced():
    with use_mode('trace'):
        yield


def make_agent(seed=0, shape=(5,), actions=3, **overrides):
    config = get_config()
    config.update({**SMALL, **overrides})
    return TDInfoNCEAgent.create(seed, torch.zeros(1, *shape), torch.zeros(1, actions), config)


def make_batch(shape=(5,)):
    rng = np.random.RandomState(0)
    names = ('observations', 'next_observations', 'value_goals', 'actor_goals')
    batch = {name: rng.standard_normal((SIZE, *shape)).astype(np.float32) for name in names}
    if len(shape) == 3:
        batch = {name: (x > 0).astype(np.uint8) * 255 for name, x in batch.items()}
    for name in ('actions', 'next_actions'):
        batch[name] = rng.uniform(-0.9, 0.9, (SIZE, 3)).astype(np.float32)
    batch['rewards'] = rng.standard_normal(SIZE).astype(np.float32)
    return trees.map(torch.from_numpy, batch)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def critic_logits(agent, name, observations, goals, actions):
    return agent.network.select(name)(observations, goals, actions=actions).numpy()


def moved(agent):
    """The agent with a target critic that differs from the critic."""
    params = agent.network.params
    target = trees.map(lambda x: x * 1.5 + 0.01, params['modules_critic'])
    return agent.replace(
        network=agent.network.replace(params={**params, 'modules_target_critic': target})
    )


def expected_loss(agent, batch, next_actions, aggregate):
    observations, actions = batch['observations'], batch['actions']
    next_logits, logits = (
        critic_logits(agent, 'critic', observations, batch[name], actions)
        for name in ('next_observations', 'value_goals')
    )
    identity = np.eye(SIZE)
    mixed = identity * next_logits + (1 - identity) * logits
    weights = aggregate(
        critic_logits(
            agent, 'target_critic', batch['next_observations'], batch['value_goals'], next_actions
        ),
        0,
    )
    weights = np.exp(log_softmax(weights))
    loss1 = -np.stack([np.diagonal(log_softmax(x)) for x in mixed])
    loss2 = -(weights * log_softmax(logits)).sum(-1)
    return (0.1 * loss1 + 0.9 * loss2).mean(), mixed


@pytest.mark.parametrize('agg', ['mean', 'min'])
def test_contrastive_loss(agg):
    agent, batch = moved(make_agent(logit_agg=agg, discount=0.9)), make_batch()
    aggregate = getattr(np, agg)
    expected, mixed = expected_loss(agent, batch, batch['next_actions'], aggregate)
    _, info = agent.pretraining_loss(batch)
    assert info['critic/contrastive_loss'].item() == pytest.approx(expected, rel=1e-5)
    assert info['critic/v_max'].item() == pytest.approx(mixed.max(), rel=1e-5)
    assert info['critic/logits_pos'].item() == pytest.approx(
        np.diagonal(mixed.mean(0)).mean(), rel=1e-4
    )

    policy = agent.network.select('actor')(batch['next_observations'])
    expected, _ = expected_loss(agent, batch, policy.mode(), aggregate)
    _, info = agent.finetuning_loss(batch)
    assert info['critic/contrastive_loss'].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('agg', ['mean', 'min'])
def test_actor_loss(agg):
    agent, batch = make_agent(logit_agg=agg), make_batch()
    actions = agent.network.select('actor')(batch['observations']).mode()
    logits = critic_logits(agent, 'critic', batch['observations'], batch['actor_goals'], actions)
    weights = np.exp(log_softmax(getattr(np, agg)(logits, 0)))
    rewards = agent.network.select('reward')(batch['actor_goals']).numpy()
    q = SIZE * np.diagonal(weights) * rewards
    _, info = agent.finetuning_loss(batch)
    assert info['actor/q_mean'].item() == pytest.approx(q.mean(), rel=1e-4)


def test_sampled_next_actions_depend_on_the_key():
    batch = make_batch()
    for const_std in (True, False):
        agent = moved(make_agent(const_std=const_std))
        losses = [
            agent.finetuning_loss(batch, full_update=False, rng=random.key(seed))[0]
            for seed in (1, 2)
        ]
        assert torch.equal(*losses) is const_std


def test_only_rounding_moves_the_last_biases_of_psi():
    agent, batch = make_agent(lr=0.1), make_batch()

    def loss(critic):
        return agent.pretraining_loss(batch, {**agent.network.params, 'modules_critic': critic})[0]

    gradient = torch.func.grad(loss)(agent.network.params['modules_critic'])
    for layer in ('Dense_1', 'LayerNorm_0'):
        assert gradient['psi'][layer]['bias'].abs().max() < 1e-7
        assert gradient['phi'][layer]['bias'].abs().max() > 1e-4


# --- The target critic ----------------------------------------------------------------------------


def critics(agent):
    params = agent.network.params
    return [trees.leaves(params[f'modules_{name}']) for name in ('critic', 'target_critic')]


@pytest.mark.parametrize('step', ['pretrain', 'finetune', 'partial'])
def test_target_follows_the_parameters_from_before_the_step(step):
    agent, batch = moved(make_agent()), make_batch()
    if step == 'pretrain':
        updated, _ = agent.pretrain(batch)
    else:
        updated, _ = agent.finetune(batch, full_update=step == 'finetune')
    for online, old, new in zip(*critics(agent), critics(updated)[1], strict=True):
        torch.testing.assert_close(new, 0.1 * online + 0.9 * old)


def test_target_reset_copies_the_critic_and_changes_nothing_else():
    agent = moved(make_agent())
    before = trees.map(torch.clone, agent)
    reset = agent.target_reset()
    for online, target in zip(*critics(reset), strict=True):
        assert torch.equal(online, target)
        assert online.data_ptr() != target.data_ptr()
    for a, b in zip(trees.leaves(agent), trees.leaves(before), strict=True):
        assert torch.equal(a, b)
    restored = reset.network.params | {
        'modules_target_critic': before.network.params['modules_target_critic']
    }
    rest = reset.replace(network=reset.network.replace(params=restored))
    for a, b in zip(trees.leaves(rest), trees.leaves(before), strict=True):
        assert torch.equal(a, b)


# --- Encoders, with which the original fails ------------------------------------------------------


@pytest.mark.parametrize('name, shape', [('mlp', (5,)), ('impala_debug', (6, 5, 3))])
def test_encoders_are_those_of_crl(name, shape, monkeypatch):
    small = {
        'mlp': lambda: encoders.MLP((8,)),
        'impala_debug': lambda: encoders.ImpalaEncoder(
            num_blocks=1, stack_sizes=(2,), mlp_hidden_dims=(8,)
        ),
    }
    monkeypatch.setitem(encoders.encoder_modules, name, small[name])
    agent = make_agent(3, shape, encoder=name)
    config = crl_infonce.get_config()
    overrides = {key: value for key, value in SMALL.items() if key in config}
    config.update({**overrides, 'encoder': name})
    crl = crl_infonce.CRLInfoNCEAgent.create(3, torch.zeros(1, *shape), torch.zeros(1, 3), config)
    for module in ('critic', 'actor', 'reward'):
        ours, theirs = (x.network.params[f'modules_{module}'] for x in (agent, crl))
        assert trees.structure(ours) == trees.structure(theirs)
        for a, b in zip(trees.leaves(ours), trees.leaves(theirs), strict=True):
            assert torch.equal(a, b)
    assert {'encoder', 'actor_net', 'mean_net'} == set(agent.network.params['modules_actor'])

    batch = make_batch(shape)
    with use_mode('off'):
        updated, _ = agent.pretrain(batch)
        updated, info = updated.target_reset().finetune(batch)
        actions = updated.sample_actions(batch['observations'], seed=random.key(0))
    assert actions.shape == (SIZE, 3)
    assert all(torch.isfinite(value) for value in info.values())
    changed = updated.network.params['modules_actor']['encoder']
    pairs = zip(
        trees.leaves(changed),
        trees.leaves(agent.network.params['modules_actor']['encoder']),
        strict=True,
    )
    assert any(not torch.equal(a, b) for a, b in pairs)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, method, remedy',
    [
        ('next_actions', 'pretrain', 'return_next_actions=True'),
        ('value_goals', 'pretrain', 'GCDataset'),
        ('value_goals', 'finetune', 'GCDataset'),
        ('actor_goals', 'finetune', 'GCDataset'),
    ],
)
def test_missing_entries_are_reported_with_the_remedy(name, method, remedy):
    batch = make_batch()
    del batch[name]
    with pytest.raises(ValueError, match=rf'lacks {name} .*{remedy}'):
        getattr(make_agent(), method)(batch)


def test_finetuning_needs_no_next_actions():
    batch = make_batch()
    del batch['next_actions']
    make_agent().finetune(batch)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="logit_agg must be mean or min, got 'max'"):
        make_agent(logit_agg='max')
