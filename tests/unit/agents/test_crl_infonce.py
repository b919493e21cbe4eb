"""What is particular to CRL with InfoNCE: its losses by hand, its policy, and bad input."""

import numpy as np
import pytest
import torch

from purerl.agents.infom.crl_infonce import CRLInfoNCEAgent, get_config
from purerl.core import trees
from purerl.core.jit import use_mode
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset

SMALL = {
    'actor_hidden_dims': (16,),
    'value_hidden_dims': (16,),
    'reward_hidden_dims': (16,),
    'latent_dim': 4,
    'lr': 1e-2,
}


@pytest.fixture(autouse=True)
def traced():
    with use_mode('trace'):
        yield


def make_agent(seed=0, observations=5, actions=3, **overrides):
    config = get_config()
    config.update({**SMALL, **overrides})
    return CRLInfoNCEAgent.create(
        seed, torch.zeros(1, observations), torch.zeros(1, actions), config
    )


def make_batch(size=6):
    rng = np.random.RandomState(0)
    names = ('observations', 'value_goals', 'actor_goals')
    batch = {name: rng.standard_normal((size, 5)).astype(np.float32) for name in names}
    batch['actions'] = rng.uniform(-0.9, 0.9, (size, 3)).astype(np.float32)
    batch['rewards'] = rng.standard_normal(size).astype(np.float32)
    return trees.map(torch.from_numpy, batch)


def softmax(x, axis):
    exp = np.exp(x - x.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def logits_of(agent, batch, goals, actions):
    critic = agent.network.select('critic')
    v, phi, psi = critic(batch['observations'], batch[goals], actions=actions, info=True)
    logits = np.einsum('eik,ejk->eij', phi.numpy(), psi.numpy()) / 2
    np.testing.assert_allclose(v.numpy(), np.exp(logits), rtol=1e-5)
    return logits


@pytest.mark.parametrize('kind', ['forward_infonce', 'symmetric_infonce'])
def test_contrastive_loss(kind):
    agent, batch = make_agent(contrastive_loss=kind, logsumexp_penalty_coeff=0.5), make_batch()
    logits = logits_of(agent, batch, 'value_goals', batch['actions'])

    def positive(axis):
        return np.log(np.stack([np.diagonal(softmax(x, axis)) for x in logits]))

    if kind == 'forward_infonce':
        penalty = np.log(np.exp(logits).sum(-1)) ** 2
        expected = (-positive(1) + 0.5 * penalty).mean()
    else:
        expected = (-positive(1) - positive(0)).mean()
    loss, info = agent.pretraining_loss(batch)
    assert info['critic/contrastive_loss'].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected + info['bc/bc_loss'].item(), rel=1e-5)
    means = logits.mean(0)
    correct = means.argmax(1) == np.arange(6)
    assert info['critic/categorical_accuracy'].item() == pytest.approx(correct.mean())
    beats_previous = [means[i, i] > means[i, i - 1] for i in range(6)]
    assert info['critic/binary_accuracy'].item() == pytest.approx(np.mean(beats_previous))


@pytest.mark.parametrize('normalize', [True, False])
def test_actor_loss(normalize):
    agent, batch = make_agent(normalize_q_loss=normalize, alpha=0.3), make_batch()
    actions = agent.network.select('actor')(batch['observations']).mode()
    weights = softmax(logits_of(agent, batch, 'actor_goals', actions).min(0), 1)
    rewards = agent.network.select('reward')(batch['actor_goals']).numpy()
    q = 6 * np.diagonal(weights) * rewards
    _, info = agent.finetuning_loss(batch)
    assert info['actor/q_mean'].item() == pytest.approx(q.mean(), rel=1e-4)
    scale = np.abs(q).mean() if normalize else 1
    assert info['actor/q_loss'].item() == pytest.approx(-q.mean() / scale, rel=1e-4)
    bc_loss = -0.3 * info['actor/bc_log_prob'].item()
    assert info['actor/bc_loss'].item() == pytest.approx(bc_loss, rel=1e-5)


def test_the_policy_goes_where_the_reward_is():
    """The action's sign decides which of two states follows; only one of them is rewarded."""
    rng = np.random.RandomState(0)
    actions = rng.uniform(-1, 1, (32, 1)).astype(np.float32)
    states = np.eye(3, dtype=np.float32)
    later = states[np.where(actions[:, 0] > 0, 1, 2)]
    batch = {
        'observations': np.where(np.arange(32)[:, None] % 2 == 0, states[0], later),
        'actions': actions,
        'value_goals': later,
        'actor_goals': later,
    }
    batch['rewards'] = batch['observations'][:, 1].copy()
    agent = make_agent(observations=3, actions=1, alpha=0.0)
    for step in range(200):
        agent, info = agent.finetune(batch, full_update=step >= 100)
    chosen = agent.network.select('actor')(torch.from_numpy(states[0])).mode()
    assert chosen.item() > 0.5
    assert info['reward/reward_loss'].item() < 0.01


def test_partial_updates_leave_the_actors_gradient_at_zero():
    agent, batch = make_agent(), make_batch()
    partial, info = agent.finetune(batch, full_update=False)
    actor = 'modules_actor'
    for before, after in zip(
        trees.leaves(agent.network.params[actor]),
        trees.leaves(partial.network.params[actor]),
        strict=True,
    ):
        assert torch.equal(before, after)
    assert not any(name.startswith('actor/') for name in info)


# --- Bad input ------------------------------------------------------------------------------------


def test_missing_goals_are_reported_with_the_remedy():
    agent, batch = make_agent(), make_batch()
    del batch['value_goals']
    for call in (agent.pretrain, agent.finetune, agent.pretraining_loss):
        with pytest.raises(ValueError, match=r'lacks value_goals .*GCDataset'):
            call(batch)
    batch = make_batch()
    del batch['actor_goals']
    agent.pretrain(batch)
    agent.finetune(batch, full_update=False)
    with pytest.raises(ValueError, match=r'lacks actor_goals .*GCDataset'):
        agent.finetune(batch)


def test_crossed_goals_are_refused():
    steps = np.arange(20, dtype=np.float32)
    arrays = {'observations': steps[:, None], 'actions': steps[:, None] / 20, 'rewards': steps}
    data = Dataset({**arrays, 'terminals': steps == 19})
    agent = make_agent(observations=1, actions=1, actor_geom_start_offset=2)
    batch = GCDataset(data, agent.config).sample(4, np.random.RandomState(0))
    assert batch['actor_goals'].shape == (4, 4, 1)
    with pytest.raises(ValueError, match=r'actor_goals have shape \(4, 4, 1\), .*set it to 1'):
        agent.finetune(batch)


def test_an_unknown_contrastive_loss_is_refused():
    with pytest.raises(ValueError, match=r"contrastive_loss must be forward_.*, got 'nce'"):
        make_agent(contrastive_loss='nce')
