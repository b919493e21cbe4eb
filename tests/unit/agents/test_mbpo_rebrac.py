"""What is particular to MBPO-ReBRAC: its models, and whose transitions critic and actor see."""

import numpy as np
import pytest
import torch

from purerl.agents.infom import rebrac
from purerl.agents.infom.mbpo_rebrac import MBPOReBRACAgent, get_config
from purerl.core import trees
from purerl.core.jit import use_mode

BATCH = 8
SIZES = {'actor_hidden_dims': (16,), 'value_hidden_dims': (16,), 'lr': 3e-3, 'tau': 0.1}
WEIGHTS = {'alpha_actor': 0.3, 'alpha_critic': 0.2}
MODEL_SIZES = {'transition_hidden_dims': (16,), 'reward_hidden_dims': (16,)}


@pytest.fixture(autouse=True)
def traced():
    with use_mode('trace'):
        yield


def make_agent(seed=0, shape=(5,), **overrides):
    config = get_config()
    config.update({**SIZES, **WEIGHTS, **MODEL_SIZES, **overrides})
    return MBPOReBRACAgent.create(seed, torch.zeros(1, *shape), torch.zeros(1, 3), config)


def make_batch(seed=0):
    rng = np.random.RandomState(seed)
    arrays = {
        'observations': rng.standard_normal((BATCH, 5)),
        'next_observations': rng.standard_normal((BATCH, 5)),
        'actions': rng.uniform(-0.9, 0.9, (BATCH, 3)),
        'next_actions': rng.uniform(-0.9, 0.9, (BATCH, 3)),
        'rewards': rng.standard_normal(BATCH),
        'masks': np.ones(BATCH),
    }
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


def imagined(batch):
    return {f'model_{name}': value for name, value in batch.items()}


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_critic_and_actor_are_rebracs_on_the_models_transitions():
    agent = make_agent()
    config = rebrac.get_config()
    config.update({**SIZES, **WEIGHTS})
    plain = rebrac.ReBRACAgent.create(0, torch.zeros(1, 5), torch.zeros(1, 3), config)
    names = plain.network.params
    params = {name: agent.network.params[name] for name in names}
    plain = plain.replace(network=plain.network.replace(params=params))
    data, model = make_batch(1), make_batch(2)
    _, expected = plain.finetuning_loss(model)
    _, info = agent.finetuning_loss({**data, **imagined(model)})
    for name, value in expected.items():
        assert torch.equal(info[name], value), name
    # The models learn from the data, whatever is imagined.
    _, on_data = agent.finetuning_loss(data)
    for name in ('reward/reward_loss', 'transition/transition_loss'):
        assert torch.equal(info[name], on_data[name])


def test_without_imagined_transitions_the_data_take_their_place():
    agent, batch = make_agent(), make_batch()
    for full_update in (True, False):
        (a, _), (b, _) = (
            agent.finetune(given, full_update=full_update)
            for given in (batch, {**batch, **imagined(batch)})
        )
        assert identical(a, b)


def test_models_learn_a_linear_world():
    agent = make_agent(alpha_critic=0.0)
    matrix = torch.from_numpy(np.random.RandomState(9).standard_normal((3, 5))).float()
    batch = make_batch()
    batch['next_observations'] = batch['observations'] + 0.3 * batch['actions'] @ matrix
    batch['rewards'] = batch['observations'].sum(-1)
    for _ in range(300):
        agent, _ = agent.finetune(batch, full_update=False)
    following = agent.predict_next_observations(batch['observations'], batch['actions'])
    assert (following - batch['next_observations']).abs().max() < 0.1
    rewards = agent.predict_rewards(batch['observations'], batch['actions'])
    assert (rewards - batch['rewards']).abs().max() < 0.1


def test_pretraining_moves_the_transition_model_and_the_actor_only():
    agent = make_agent()
    pretrained, _ = agent.pretrain(make_batch())
    moved = {
        name
        for name, before in agent.network.params.items()
        if not identical(before, pretrained.network.params[name])
    }
    assert moved == {'modules_transition', 'modules_actor'}


def test_images_are_refused():
    with pytest.raises(ValueError, match=r'have to be vectors.*\(1, 8, 8, 3\)'):
        make_agent(shape=(8, 8, 3), encoder='impala_debug')


def test_finetuning_needs_next_actions():
    batch = make_batch()
    del batch['next_actions']
    with pytest.raises(ValueError, match=r'lacks next_actions .*return_next_actions=True'):
        make_agent().finetune(batch)
    # With imagined transitions the data's are of no use.
    make_agent().finetune({**batch, **imagined(make_batch())})
