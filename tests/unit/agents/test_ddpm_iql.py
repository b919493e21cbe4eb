"""IDQL: objectives by hand, candidates and choices, both variants."""

import numpy as np
import pytest
import torch

from purerl.agents.jaxrl5 import ddpm_iql, ddpm_iql_simple, objectives
from purerl.core import checkpoint, random, trees
from purerl.core.jit import use_mode

OBSERVATIONS, ACTIONS, BATCH = 4, 2, 8
MODULES = {'full': ddpm_iql, 'simple': ddpm_iql_simple}
SIZES = {'critic_hidden_dims': (16, 8), 'mlp_resnet_hidden_dim': 8, 'time_dim': 8}
both = pytest.mark.parametrize('variant', MODULES)


def make_agent(variant='full', seed=0, observations=OBSERVATIONS, actions=ACTIONS, **overrides):
    config = MODULES[variant].get_config()
    config.update({**SIZES, **overrides})
    if variant == 'full':
        config.actor_hidden_dims = (16, 8)
    examples = torch.zeros(observations), torch.zeros(actions)
    return MODULES[variant].DDPMIQLLearner.create(seed, *examples, config)


def make_batch(seed=0):
    keys = random.split(random.key(seed), 5)
    return {
        'observations': random.normal(keys[0], (BATCH, OBSERVATIONS)),
        'actions': random.uniform(keys[1], (BATCH, ACTIONS), -1.0, 1.0),
        'rewards': random.normal(keys[2], (BATCH,)),
        'masks': random.bernoulli(keys[3], 0.7, (BATCH,)).float(),
        'next_observations': random.normal(keys[4], (BATCH, OBSERVATIONS)),
    }


def same(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def differing(first, second):
    return {
        name
        for name in ('score_model', 'target_score_model', 'critic', 'target_critic', 'value')
        if not same(getattr(first, name), getattr(second, name))
    }


# --- Objectives ----------------------------------------------------------------------------------

DIFF = torch.tensor([-2.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 3.0])


def test_quantile_loss():
    expected = [1.4, 0.35, 7e-4, 0.0, 3e-4, 0.15, 0.9]
    losses = objectives.quantile_loss(DIFF, 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    slopes = torch.func.grad(lambda x: objectives.quantile_loss(x, 0.3).sum())(DIFF)
    np.testing.assert_allclose(slopes, [-0.7, -0.7, -0.7, 0.7, 0.3, 0.3, 0.3], rtol=1e-5)


@pytest.mark.parametrize('mode, beyond', [('zero', 6.0), ('first', 12.0), ('second', 15.0)])
def test_the_exponential_goes_on_as_its_taylor_polynomial(mode, beyond):
    bound = np.log(6.0)
    x = torch.tensor([-1.0, 0.0, bound, bound + 1])
    values = objectives.exp_w_clip(x, bound, mode)
    np.testing.assert_allclose(values, [np.exp(-1), 1.0, 6.0, beyond], rtol=1e-5)


def test_exponential_loss_has_the_clipped_exponential_as_its_slope():
    slopes = torch.func.grad(lambda x: objectives.exponential_loss(x, 2.0).sum())(DIFF)
    np.testing.assert_allclose(slopes, np.minimum(np.exp(2 * DIFF.numpy()), 6) - 1, atol=1e-5)


def test_unknown_clipping():
    with pytest.raises(ValueError, match="zero, first or second, got 'third'"):
        objectives.exp_w_clip(DIFF, 1.0, 'third')


@pytest.mark.parametrize(
    'objective, expected',
    [
        ('soft_adv', [0.3, 0.3, 0.3, 0.3, 0.7, 0.7, 0.7]),
        ('hard_adv', [0, 0, 1, 1, 1, 1, 1]),
        ('exp_adv', np.minimum(np.exp(2 * DIFF.numpy()), 100)),
        ('bc', np.ones(7)),
    ],
)
def test_weights_of_the_data(objective, expected):
    weights = objectives.ACTOR_WEIGHTS[objective](DIFF, torch.tensor(0.7), torch.tensor(2.0))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_weights_of_candidates():
    adv = torch.tensor([[-2.0, 0.5, 1.0]])
    weights = {name: f(adv, torch.tensor(0.8)) for name, f in objectives.IMPLICIT_WEIGHTS.items()}
    np.testing.assert_allclose(weights['expectile'][0], np.array([0.2, 0.8, 0.8]) / 1.8, rtol=1e-5)
    np.testing.assert_allclose(weights['quantile'][0], np.array([-0.1, 1.6, 0.8]) / 2.3, rtol=1e-5)
    np.testing.assert_allclose(weights['exponential'][0], np.full(3, 0.64), rtol=1e-5)


def test_a_choice_beyond_the_candidates_is_the_last_one():
    # As in the original: cumulative sums of negative weights fall, and none reaches the draw.
    agent = make_agent(critic_objective='exponential', critic_hyperparam=-0.7, N=4)
    observation = torch.ones(OBSERVATIONS)
    _, candidates, _ = agent.propose(observation[None])
    beyond = agent._pick(candidates, torch.tensor([4]), observation)
    assert torch.equal(beyond, candidates[3])
    for seed in range(8):
        actor = agent.replace(rng=random.key(seed))
        action, _ = actor.sample_implicit_policy(observation)
        _, candidates, _ = actor.propose(observation[None])
        assert (action == candidates).all(-1).any()


# --- Updates -------------------------------------------------------------------------------------


@pytest.mark.parametrize('actor_objective', objectives.ACTOR_WEIGHTS)
@pytest.mark.parametrize('critic_objective', objectives.VALUE_LOSSES)
def test_losses_by_hand_in_the_order_actor_value_critics(critic_objective, actor_objective):
    agent = make_agent(critic_objective=critic_objective, actor_objective=actor_objective)
    batch = make_batch()
    updated, info = agent.update(batch)
    observations, actions = batch['observations'], batch['actions']
    share, temperature = torch.tensor(0.7), torch.tensor(3.0)

    # The policy sees value and critics from before the update.
    adv = agent.target_critic(observations, actions).amin(0) - agent.value(observations)
    weights = objectives.ACTOR_WEIGHTS[actor_objective](adv, share, temperature)
    time, noise, _, rng = agent.draw(BATCH)
    alpha_hats = agent.alpha_hats[time.long()][:, None]
    noisy = alpha_hats.sqrt() * actions + (1 - alpha_hats).sqrt() * noise
    errors = (agent.score_model(observations, noisy, time[:, None]) - noise).square().sum(-1)
    torch.testing.assert_close(info['actor_loss'], (errors * weights).mean())
    torch.testing.assert_close(info['weights'], weights.mean())
    assert torch.equal(updated.rng, rng)

    value_loss = objectives.VALUE_LOSSES[critic_objective](adv, share).mean()
    torch.testing.assert_close(info['value_loss'], value_loss)

    next_v = updated.value(batch['next_observations'])
    target_q = batch['rewards'] + 0.99 * batch['masks'] * next_v
    qs = agent.critic(observations, actions)
    torch.testing.assert_close(info['critic_loss'], (qs - target_q).square().mean())


@both
def test_parts_of_an_update(variant):
    agent, batch = make_agent(variant), make_batch()
    critic, critic_info = agent.critic_update(batch)
    actor, actor_info = agent.actor_update(batch)
    whole, info = agent.update(batch)
    assert differing(agent, critic) == {'critic', 'target_critic', 'value'}
    assert differing(agent, actor) == {'score_model', 'target_score_model'}
    assert torch.equal(critic.rng, agent.rng) and torch.equal(actor.rng, whole.rng)
    assert not differing(
        whole, actor.replace(**{name: getattr(critic, name) for name in differing(agent, critic)})
    )
    assert info.keys() == critic_info.keys() | actor_info.keys()


def test_eval_loss_moves_the_key_only():
    agent = make_agent(actor_architecture='ln_resnet', actor_dropout_rate=0.5)
    after, info = agent.eval_loss(make_batch())
    assert not differing(agent, after)
    assert torch.equal(after.rng, agent.draw(BATCH)[-1])
    _, same_info = agent.eval_loss(make_batch())
    assert torch.equal(info['actor_loss'], same_info['actor_loss'])  # no dropout


def test_dropout_is_of_the_residual_network():
    for architecture, matters in (('ln_resnet', True), ('mlp', False)):
        losses = [
            make_agent(actor_architecture=architecture, actor_dropout_rate=rate)
            .update(make_batch())[1]['actor_loss']
            .item()
            for rate in (None, 0.5)
        ]
        assert (losses[0] != losses[1]) is matters


@both
def test_all_parameters_of_the_score_model_decay(variant):
    # A gradient of zero leaves AdamW's decay, 1e-4 times the learning rate.
    agent = make_agent(variant, actor_lr=1.0, decay_steps=None)
    zeros = trees.map(torch.zeros_like, agent.score_model.params)
    after = agent.score_model.apply_gradients(zeros).params
    for before, ours in zip(
        trees.leaves(agent.score_model.params), trees.leaves(after), strict=True
    ):
        torch.testing.assert_close(ours, before * (1 - 1e-4), rtol=1e-6, atol=1e-9)


# --- Acting --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_the_best_candidate_is_chosen(variant, mode):
    agent = make_agent(variant, N=16)
    observation = random.normal(random.key(5), (OBSERVATIONS,))
    with use_mode(mode):
        action, moved = agent.eval_actions(observation)
    repeated, candidates, rng = agent.propose(observation)
    assert candidates.shape == (16, ACTIONS)
    qs = agent.target_critic(repeated, candidates).amin(0)
    torch.testing.assert_close(action, candidates[qs.argmax()])
    assert torch.equal(moved.rng, random.split(rng)[0])


@both
def test_shapes_of_actions(variant):
    agent = make_agent(variant, actions=1, N=3)
    for shape in [(), (1,), (5,), (2, 3)]:
        observations = np.ones((*shape, OBSERVATIONS), np.float32)
        actions, moved = agent.eval_actions(observations)
        assert actions.shape == (*shape, 1)
        assert not torch.equal(moved.rng, agent.rng)


@both
def test_a_batch_of_one_acts_as_its_observation(variant):
    agent = make_agent(variant)
    observation = random.normal(random.key(5), (OBSERVATIONS,))
    for call in ('eval_actions', 'sample_actions', 'sample_implicit_policy'):
        if hasattr(agent, call):
            one, _ = getattr(agent, call)(observation)
            batch, _ = getattr(agent, call)(observation[None])
            assert torch.equal(batch[0], one)


@both
def test_rows_of_a_batch_choose_among_their_own(variant):
    agent = make_agent(variant, N=8)
    observations = random.normal(random.key(5), (6, OBSERVATIONS))
    actions, _ = agent.eval_actions(observations)
    _, candidates, _ = agent.propose(observations)
    candidates = candidates.reshape(6, 8, ACTIONS)
    for action, own in zip(actions, candidates, strict=True):
        assert (action == own).all(-1).any()


@pytest.mark.parametrize('critic_objective', objectives.IMPLICIT_WEIGHTS)
def test_the_implicit_policy_draws_by_advantage(critic_objective):
    agent = make_agent(critic_objective=critic_objective, N=7)
    observation = random.normal(random.key(5), (OBSERVATIONS,))
    action, moved = agent.sample_implicit_policy(observation)
    repeated, candidates, rng = agent.propose(observation)
    rng, key = random.split(rng)
    adv = agent.compute_q(repeated, candidates) - agent.value(repeated)
    weights = objectives.IMPLICIT_WEIGHTS[critic_objective](adv, torch.tensor(0.7))
    torch.testing.assert_close(action, candidates[random.choice(key, 7, p=weights).long()])
    assert torch.equal(moved.rng, rng)
    batch, _ = agent.sample_implicit_policy(observation.expand(5, -1))
    assert len({tuple(row.tolist()) for row in batch}) > 1  # rows draw for themselves


@both
def test_settings_of_the_sampler_can_be_replaced(variant):
    agent = make_agent(variant)
    observation = random.normal(random.key(5), (OBSERVATIONS,))
    seen = [agent.eval_actions(observation)[0]]
    for changes in ({'N': 1}, {'M': 2}, {'clip_sampler': False}, {'ddpm_temperature': 0.1}):
        changed = agent.replace(**changes)
        seen.append(changed.eval_actions(observation)[0])
    assert len({tuple(action.tolist()) for action in seen}) == len(seen)
    for changes in ({'N': 0}, {'M': -1}, {'T': 0}):
        with pytest.raises(ValueError, match=f'{next(iter(changes))} must be at least'):
            agent.replace(**changes).eval_actions(observation)
    with pytest.raises(ValueError, match=f'T=50 .* more than the {agent.T} of the schedule'):
        agent.replace(T=50).eval_actions(observation)


# --- Creation ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'beta_schedule': 'vpp'}, "beta_schedule must be cosine, linear or vp, got 'vpp'"),
        ({'T': 0}, 'T must be at least 1 denoising step, got 0'),
        ({'N': 0}, 'N must be at least 1 candidate per observation, got 0'),
        ({'M': -1}, 'M must be at least 0 repetitions of the last denoising step, got -1'),
        ({'num_qs': 0}, 'num_qs=0: IDQL needs at least one critic'),
        ({'time_dim': 1}, 'time_dim must be at least 2 features of the time, got 1'),
        ({'decay_steps': 0}, 'positive decay_steps, got 0'),
    ],
)
def test_create_refuses(variant, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(variant, **overrides)


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'actor_architecture': 'resnet'}, "must be mlp or ln_resnet, got 'resnet'"),
        ({'critic_objective': 'l2'}, "must be expectile, quantile or exponential, got 'l2'"),
        ({'actor_objective': 'awr'}, "must be soft_adv, hard_adv, exp_adv or bc, got 'awr'"),
    ],
)
def test_unknown_names(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**overrides)


@both
def test_checkpoints_of_another_number_of_steps(variant, tmp_path):
    path = tmp_path / 'agent.safetensors'
    checkpoint.save_tree(path, make_agent(variant, T=5))
    assert same(checkpoint.load_tree(path, make_agent(variant, 1)), make_agent(variant))
    with pytest.raises(checkpoint.CheckpointError, match=r'betas \(float32 \(5,\), expected.*10'):
        checkpoint.load_tree(path, make_agent(variant, T=10))
