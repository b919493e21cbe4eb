"""The agents of RRD's family: purity, compilation, seeds in parallel, formulae, learning."""

import functools
import math

import numpy as np
import pytest
import torch

from experiments.rrd import translate
from purerl.agents.rrd import bases, ddpg, dqn, ircr, networks, rrd, sac, td3
from purerl.core import trees
from purerl.core.jit import CompiledFunction, jit, use_mode, vmap

BATCH, SIZE, ACTIONS, SUB = 6, 4, 2, 3
SMALL = {'hidden_dims': (8, 8), 'reward_hidden_dims': (8, 8), 'conv_features': (2, 3, 3)}
SMALL |= {'dense_dim': 5, 'rrd_sample_size': SUB, 'rrd_batch_size': 2 * SUB}
IMAGE = (12, 12, 2)

CASES = {
    'ddpg': (ddpg.DDPGAgent, ddpg.get_config, {}),
    'td3': (td3.TD3Agent, td3.get_config, {'obs_normalization': True}),
    'sac': (sac.SACAgent, sac.get_config, {}),
    'sac_fixed_alpha': (sac.SACAgent, sac.get_config, {'alpha_lr': 0.0, 'train_target': 3}),
    'dqn': (dqn.DQNAgent, dqn.get_config, {'double': True, 'train_target': 2}),
    'dqn_images': (
        dqn.DQNAgent,
        functools.partial(dqn.get_config, 'rmsprop'),
        {'dueling': True, 'train_target': 2},
    ),
    'rrd_ddpg': (rrd.RRDAgent, functools.partial(rrd.get_config, 'ddpg'), {}),
    'rrd_td3': (
        rrd.RRDAgent,
        functools.partial(rrd.get_config, 'td3'),
        {'rrd_bias_correction': True},
    ),
    'rrd_sac': (rrd.RRDAgent, rrd.get_config, {'rrd_bias_correction': True}),
    'rrd_dqn_images': (rrd.RRDAgent, functools.partial(rrd.get_config, 'dqn'), {}),
    'ircr_sac': (ircr.IRCRAgent, ircr.get_config, {}),
    'ircr_td3': (ircr.IRCRAgent, functools.partial(ircr.get_config, 'td3'), {}),
    'ircr_dqn': (ircr.IRCRAgent, functools.partial(ircr.get_config, 'dqn'), {}),
}
all_agents = pytest.mark.parametrize('name', CASES)


def make_agent(name, seed=0, **overrides):
    cls, get_config, settings = CASES[name]
    config = get_config()
    small = {key: value for key, value in SMALL.items() if key in config}
    config.update({**small, **settings, **overrides})
    shape = IMAGE if name.endswith('images') else (SIZE,)
    return cls.create(seed, torch.zeros(1, *shape), torch.zeros(1, ACTIONS), config)


def make_batch(name, seed=0):
    stream = np.random.default_rng(seed)
    images, discrete = name.endswith('images'), 'dqn' in name

    def observations(*lead):
        if images:
            return stream.integers(0, 256, (*lead, *IMAGE), dtype=np.uint8)
        return stream.normal(size=(*lead, SIZE)).astype(np.float32)

    def actions(*lead):
        if discrete:
            return stream.integers(0, ACTIONS, lead)
        return stream.uniform(-1, 1, (*lead, ACTIONS)).astype(np.float32)

    batch = {
        'observations': observations(BATCH),
        'actions': actions(BATCH),
        'rewards': stream.normal(size=BATCH).astype(np.float32),
        'masks': (stream.random(BATCH) < 0.7).astype(np.float32),
        'next_observations': observations(BATCH),
    }
    if name.startswith('rrd'):
        batch |= {
            'rrd_observations': observations(2, SUB),
            'rrd_actions': actions(2, SUB),
            'rrd_next_observations': observations(2, SUB),
            'rrd_rewards': stream.normal(size=2).astype(np.float32),
            'rrd_var_coef': np.float32([0.5, 1.0]),
        }
    if name.startswith('ircr'):
        bounds = {'return_low': np.float32(-3), 'return_high': np.float32(4)}
        batch |= {'returns': stream.uniform(-3, 4, BATCH).astype(np.float32), **bounds}
    return trees.map(torch.as_tensor, batch)


def step(name, agent, i=0):
    agent = agent.update_normalizer(make_batch(name, 10 + i))
    both = [make_batch(name, i)]
    if 'td3' in name and i % 2:
        both.append(make_batch(name, 100 + i))
    return agent.update(*both)


def run(name, agent, count=3):
    info = None
    for i in range(count):
        agent, info = step(name, agent, i)
    return agent, info


def assert_close(a, b):
    for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def identical(a, b):
    return all(torch.equal(x, y) for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True))


def base_of(agent):
    return getattr(agent, 'base', agent)


# --- What holds for all ---------------------------------------------------------------------------


@all_agents
def test_traced_equals_eager(name):
    with use_mode('off'):
        eager = run(name, make_agent(name))
    with use_mode('trace'):
        assert_close(run(name, make_agent(name)), eager)


@all_agents
def test_vmap_equals_loop(name):
    agents = [make_agent(name, seed) for seed in range(2)]
    batch = make_batch(name)
    batches = [batch, make_batch(name, 1)] if 'td3' in name else [batch]
    many = jit(lambda agents, *batches: vmap(lambda agent: agent.update(*batches))(agents))
    stacked, info = many(trees.stack(agents), *batches)
    for i, agent in enumerate(agents):
        assert_close((trees.index(stacked, i), trees.index(info, i)), agent.update(*batches))


@all_agents
def test_no_program_is_traced_again(name):
    classes = {type(make_agent(name)), type(base_of(make_agent(name)))}

    def act_and_learn(seed):
        agent = make_agent(name, seed)
        for i in range(2):
            observations = make_batch(name, i)['observations']
            _, agent = agent.warmup_actions(observations)
            _, agent = agent.sample_actions(observations)
            agent.eval_actions(observations)
            agent, _ = step(name, agent, i)

    def programs():
        functions = [getattr(cls, name) for cls in classes for name in dir(cls)]
        return sum(f.num_programs for f in functions if isinstance(f, CompiledFunction))

    with use_mode('trace'):
        act_and_learn(0)
        before = programs()
        act_and_learn(7)
    assert programs() == before > 0


@all_agents
def test_updates_are_pure_and_deterministic(name):
    agent = make_agent(name)
    before = trees.map(torch.clone, agent)
    first = run(name, agent)
    assert identical(agent, before)
    assert identical(first, run(name, make_agent(name)))
    assert not identical(first[0], run(name, make_agent(name, 1))[0])
    assert trees.structure(first[0]) == trees.structure(agent)
    for value in first[1].values():
        assert value.shape == () and torch.isfinite(value)
    storages = [x.untyped_storage().data_ptr() for x in trees.leaves(first[0]) if x.numel() > 2]
    assert len(set(storages)) == len(storages)


@all_agents
def test_targets_start_as_copies_and_move_every_so_many_updates(name):
    agent = make_agent(name)
    base = base_of(agent)
    assert identical(base.target_critic.params, base.critic.params)
    every = base.config['train_target'] if base.config['train_target'] < 9 else 2
    config = trees.FrozenDict({**base.config, 'train_target': every})
    agent = agent.replace(base=base.replace(config=config)) if base is not agent else agent
    for i in range(1, 2 * every + 1):
        moved, _ = step(name, agent, i)
        old, new = (base_of(x).target_critic.params for x in (agent, moved))
        assert identical(old, new) == (i % every != 0)
        agent = moved


@all_agents
def test_actions(name):
    agent = make_agent(name)
    observations = make_batch(name)['observations']
    first, moved = agent.sample_actions(observations)
    again, _ = agent.sample_actions(observations)
    other, _ = moved.sample_actions(observations)
    assert torch.equal(first, again)
    mode, same = agent.eval_actions(observations)
    assert identical(same, agent)
    if 'dqn' in name:
        assert mode.shape == (BATCH,) and mode.dtype == torch.int64
        assert set(agent.warmup_actions(observations)[0].tolist()) <= set(range(ACTIONS))
        assert torch.equal(mode[0], agent.eval_actions(observations[0])[0])
    else:
        assert first.shape == (BATCH, ACTIONS) and not torch.equal(first, other)
        assert first.abs().max() <= 1
        assert torch.equal(agent.warmup_actions(observations)[0], first)
        torch.testing.assert_close(mode[0], agent.eval_actions(observations[0])[0])


@all_agents
def test_kernels_are_xaviers_and_biases_zero(name):
    for path, leaf in trees.leaves_with_path(make_agent(name)):
        if path[-1] == 'bias' and 'params' in path:
            assert not leaf.any()
        if path[-1] == 'kernel' and 'params' in path:
            field = math.prod(leaf.shape[:-2])
            limit = math.sqrt(6 / (field * (leaf.shape[-2] + leaf.shape[-1])))
            assert 0.3 * limit < leaf.abs().max() <= limit


# --- Formulae ------------------------------------------------------------------------------------


def test_ddpg_penalises_the_mean_over_kernels_and_biases():
    agent = make_agent('ddpg')
    params = trees.map(torch.ones_like, agent.critic.params)
    _, info = agent.critic_loss(make_batch('ddpg'), params)
    sizes = [leaf.numel() for leaf in trees.leaves(params)]
    assert len(sizes) == 6
    assert info['critic_reg_loss'].item() == pytest.approx(0.01 * np.mean(sizes) / 2)


def test_td3_smooths_and_clips_target_actions():
    agent = make_agent('td3')
    batch = make_batch('td3')
    plain = agent.target_actions({**batch, 'target_noises': torch.zeros(BATCH, ACTIONS)})
    high = agent.target_actions({**batch, 'target_noises': torch.full((BATCH, ACTIONS), 0.5)})
    torch.testing.assert_close(high, (plain + 0.5).clamp(max=1))
    _, noisy = agent._with_noises(batch)
    assert 0.2 < noisy['target_noises'].abs().max() <= 0.5


def test_the_densitys_log_std_is_not_floored():
    outputs = torch.tensor([[0.0, -10.0]])
    _, log_std, std = networks.gaussian(outputs)
    assert std.item() == pytest.approx(1e-2) and log_std.item() == -10
    _, log_prob = networks.squashed_sample(outputs, torch.zeros(1, 1))
    assert log_prob.item() == pytest.approx(10 - 0.5 * math.log(2 * math.pi), abs=1e-5)


def test_tanh_is_tensorflows_in_value_and_gradient():
    x = torch.linspace(-9, 9, 4001)
    y = networks.tanh(x)
    assert (y - torch.tanh(x)).abs().max() < 4e-7
    assert y.abs().max() == 1
    slopes = vmap(torch.func.grad(lambda x: networks.tanh(x)))(x)
    torch.testing.assert_close(slopes, 1 - y * y, rtol=0, atol=0)


def test_the_densitys_constants_are_added_first():
    """As in TensorFlow's optimised graph, where float32 keeps 8 units in the last place of 1e-6."""
    outputs = torch.tensor([[20.0, 0.0]])
    actions, log_prob = networks.squashed_sample(outputs, torch.zeros(1, 1))
    assert actions.item() == 1
    expected = -0.5 * math.log(2 * math.pi) - math.log(8 * 2.0**-23)
    assert log_prob.item() == pytest.approx(expected, abs=1e-5)


def test_one_call_of_a_wrapper_trains_only_a_part_of_its_base():
    agent, batch = make_agent('ircr_td3'), make_batch('ircr_td3')
    critic, _ = agent.train_critic(batch)
    actor, _ = agent.train_actor(batch)
    assert identical(critic.base.actor, agent.base.actor)
    assert identical(actor.base.critic, agent.base.critic)
    assert not identical(critic.base.critic, agent.base.critic)
    assert not identical(actor.base.actor, agent.base.actor)


def test_ties_of_the_critics_follow_the_first():
    grad = torch.func.grad(lambda q: networks.smaller(q).sum())(torch.ones(2, 3))
    assert grad.tolist() == [[1.0] * 3, [0.0] * 3]


def test_the_temperature_moves_towards_minus_the_actions_size():
    agent = make_agent('sac')
    for log_prob, rises in ((5.0, True), (-5.0, False)):
        grads = torch.func.grad(
            lambda p, x=log_prob: agent.temperature_loss(torch.tensor(x), ACTIONS, p)
        )(agent.temperature.params)
        after = agent.temperature.apply_gradients(grads)
        assert (after() > agent.temperature()).item() is rises
    fixed, _ = run('sac_fixed_alpha', make_agent('sac_fixed_alpha', alpha_init=0.1))
    assert fixed.alpha().item() == pytest.approx(0.1)


def test_double_q_takes_the_target_value_of_the_online_choice():
    batch = {**make_batch('dqn'), 'rewards': torch.zeros(BATCH), 'masks': torch.ones(BATCH)}
    agent = make_agent('dqn')
    other = make_agent('dqn', 5)
    agent = agent.replace(target_critic=other.target_critic)
    chosen = agent.critic(batch['next_observations']).argmax(-1)
    values = agent.target_critic(batch['next_observations'])
    expected = 0.99 * values[torch.arange(BATCH), chosen]
    torch.testing.assert_close(agent.target_values(batch), expected)
    plain = make_agent('dqn', double=False).replace(target_critic=other.target_critic)
    torch.testing.assert_close(plain.target_values(batch), 0.99 * values.amax(-1))


def test_dueling_values_have_the_base_as_their_mean():
    agent = make_agent('dqn_images')
    images = agent.normalize(make_batch('dqn_images')['observations'])
    params = dict(agent.critic.params)
    changed = {**params['q_base'], 'bias': params['q_base']['bias'] + 3}
    values = agent.critic(images)
    shifted = agent.critic(images, params={**params, 'q_base': changed})
    torch.testing.assert_close(shifted, values + 3)


@all_agents
def test_environments_explore_apart(name):
    """Noise, and the choice of random actions, differ by row; the key moves once."""
    agent = make_agent(name, **({'eps_l': 0.5, 'eps_r': 0.5} if 'dqn' in name else {}))
    observations = torch.as_tensor(make_batch(name)['observations'])[:1]
    observations = observations.repeat(40, *[1] * (observations.ndim - 1))
    actions, after = agent.sample_actions(observations)
    assert len(actions.unique(dim=0)) == (2 if 'dqn' in name else 40)
    _, single = agent.sample_actions(observations[0])
    assert torch.equal(after.rng, single.rng)
    if 'dqn' in name:
        base, single = (getattr(x, 'base', x) for x in (after, single))
        assert (base.acted, single.acted) == (40, 1)


def test_epsilon_falls_with_each_action_and_stays():
    agent = make_agent('dqn', eps_l=1.0, eps_r=0.2, eps_decay=4)
    observations = torch.zeros(SIZE)
    seen = []
    for _ in range(6):
        seen.append(agent.epsilon().item())
        _, agent = agent.sample_actions(observations)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    _, agent = make_agent('dqn').warmup_actions(observations)
    assert agent.acted == 1


def test_images_are_scaled_and_flat_observations_are_not():
    images = make_batch('dqn_images')['observations']
    assert make_agent('dqn_images').normalize(images).max() <= 1
    flat = torch.full((1, SIZE), 100.0)
    assert torch.equal(make_agent('dqn').normalize(flat), flat)


def test_predicted_rewards_replace_those_of_the_batch():
    batch = make_batch('rrd_sac')
    agent = make_agent('rrd_sac')
    with use_mode('off'):
        other, _ = agent.update({**batch, 'rewards': batch['rewards'] + 100})
        same, _ = agent.update(batch)
        assert identical(other, same)
        plain, _ = agent.base.update({**batch, 'rewards': agent.predict(batch)})
    assert identical(plain, same.base)
    bare = make_agent('sac')  # the same seed gives the same base without RRD
    assert identical(bare.critic.params, agent.base.critic.params)


def test_bias_correction_subtracts_the_means_variance():
    batch = make_batch('rrd_sac')
    corrected, info = make_agent('rrd_sac').reward_loss(batch, None)
    predicted = make_agent('rrd_sac').predict(batch, 'rrd_')
    variance = (predicted.var(1) * batch['rrd_var_coef'] / SUB).mean()
    torch.testing.assert_close(info['reward_variance'], variance)
    plain = (predicted.mean(1) - batch['rrd_rewards']).square().mean()
    torch.testing.assert_close(corrected, plain - variance)


def test_image_rewards_depend_on_the_action_by_their_output():
    agent = make_agent('rrd_dqn_images')
    batch = make_batch('rrd_dqn_images')
    outputs = torch.stack(
        [agent.predict({**batch, 'actions': torch.full((BATCH,), i)}) for i in range(ACTIONS)]
    )
    taken = outputs[batch['actions'], torch.arange(BATCH)]
    torch.testing.assert_close(agent.predict(batch), taken)


def test_guidance_rewards_scale_returns_and_survive_equal_ones():
    returns = torch.tensor([-2.0, 0.0, 2.0])
    low, high = torch.tensor(-2.0), torch.tensor(2.0)
    assert ircr.guidance_rewards(returns, low, high).tolist() == [0.0, 0.5, 1.0]
    assert ircr.guidance_rewards(returns, high, high).tolist() == [0.0, 0.0, 0.0]
    raw = make_agent('ircr_dqn')._relabelled(make_batch('ircr_dqn'))
    assert torch.equal(raw['rewards'], make_batch('ircr_dqn')['returns'])


# --- The normaliser -------------------------------------------------------------------------------


def test_normalizer_statistics():
    stream = np.random.default_rng(0)
    data = torch.tensor(stream.normal(3, 2, (40, 3)), dtype=torch.float32)
    state = networks.Normalizer.create((3,)).update(data[:10]).update(data[10:])
    torch.testing.assert_close(state.mean, data.mean(0))
    torch.testing.assert_close(state.std, data.std(0, correction=0), rtol=1e-4, atol=1e-5)
    assert state.cnt == 40
    far = torch.tensor([100.0, -100.0, 3.0])
    assert state.normalize(far)[:2].tolist() == [5.0, -5.0]


def test_normalizer_before_its_first_update_and_of_constants():
    empty = networks.Normalizer.create((3,))
    assert empty.normalize(torch.tensor([-0.1, 0.0, 7.0])).tolist() == [-5.0, 0.0, 5.0]
    constant = empty.update(torch.full((7, 3), 1234.567))
    assert torch.isfinite(constant.std).all() and (constant.std >= 1e-2).all()
    assert torch.isfinite(constant.normalize(torch.zeros(3))).all()


def test_normalization_can_be_turned_on_and_off():
    on = make_agent('ddpg').update_normalizer(make_batch('ddpg'))
    assert on.normalizer.cnt == 2 * BATCH
    off = make_agent('ddpg', obs_normalization=False)
    assert off.normalizer is None
    assert identical(off.update_normalizer(make_batch('ddpg')), off)


# --- Creation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, overrides, message',
    [
        ('sac', {'alpha_init': 0.0}, 'alpha_init=0.0 must be above 0'),
        ('dqn', {'optimizer': 'sgd'}, "optimizer must be adam or rmsprop, got 'sgd'"),
        ('dqn', {'dueling': True}, 'dueling=True needs image observations'),
        ('rrd_sac', {'basis_alg': 'a2c'}, "basis_alg must be dqn, ddpg, td3, sac, got 'a2c'"),
        ('rrd_sac', {'rrd_sample_size': 1}, 'rrd_sample_size=1 is too short'),
        ('rrd_sac', {'rrd_batch_size': 2}, 'rrd_batch_size=2 has no room'),
    ],
)
def test_create_refuses(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(name, **overrides)


def test_defaults_are_the_originals():
    assert rrd.get_config().rrd_sample_size == 64 and rrd.get_config('dqn').rrd_batch_size == 32
    assert ircr.get_config().polyak == 0.999 and ircr.get_config('td3').normalize_returns
    humanoid = ircr.get_config('sac_humanoid')
    assert (humanoid.alpha_lr, humanoid.alpha_init, humanoid.basis_alg) == (0.0, 0.1, 'sac')
    assert dqn.get_config().q_lr == 6.25e-5 and rrd.get_config('dqn_rmsprop').q_lr == 2.5e-4
    assert ircr.get_settings() == {'buffer_size': 300_000, 'batch_size': 512}
    assert ircr.get_settings('dqn')['warmup'] == rrd.get_settings('dqn')['warmup'] == 30_000
    assert rrd.get_settings() == {}
    assert set(bases.BASES) == {'dqn', 'ddpg', 'td3', 'sac'}


# --- Learning -------------------------------------------------------------------------------------


def test_probe_rewards_are_redistributed():
    """Only the first of two states pays: the reward network must tell them apart."""
    stream = np.random.default_rng(0)
    agent = make_agent('rrd_sac', r_lr=1e-2, rrd_bias_correction=False)
    for _ in range(150):
        states = stream.integers(0, 2, (2, SUB))
        batch = make_batch('rrd_sac')
        batch['rrd_observations'] = torch.eye(SIZE)[states]
        batch['rrd_next_observations'] = torch.zeros(2, SUB, SIZE)
        batch['rrd_rewards'] = torch.tensor((states == 0).mean(1), dtype=torch.float32)
        agent, _ = agent.train_reward(batch)
    probe = {
        'observations': torch.eye(SIZE)[:2],
        'next_observations': torch.zeros(2, SIZE),
        'actions': torch.zeros(2, ACTIONS),
    }
    torch.testing.assert_close(agent.predict(probe), torch.tensor([1.0, 0.0]), rtol=0, atol=0.2)


@pytest.mark.parametrize('name', ['ddpg', 'td3', 'sac'])
def test_probe_values_and_actions(name):
    """One step that pays -(a + 0.3)^2: the policy must find -0.3."""
    stream = np.random.default_rng(0)
    rates = {'q_lr': 1e-2, 'pi_lr': 1e-3, 'obs_normalization': False}
    extra = {'sac': {'alpha_init': 1e-3, 'alpha_lr': 0.0}, 'ddpg': {'q_reg': 0.0}}
    agent = make_agent(name, **rates, **extra.get(name, {}), hidden_dims=(32, 32))
    for _ in range(300):
        actions = stream.uniform(-1, 1, (32, ACTIONS)).astype(np.float32)
        batch = {
            'observations': torch.ones(32, SIZE),
            'actions': torch.tensor(actions),
            'rewards': torch.tensor(-((actions + 0.3) ** 2).sum(1)),
            'masks': torch.zeros(32),
            'next_observations': torch.ones(32, SIZE),
        }
        agent, _ = agent.update(*([batch, batch] if name == 'td3' else [batch]))
    mode, _ = agent.eval_actions(torch.ones(SIZE))
    assert (mode + 0.3).abs().max() < 0.3


def test_probe_dqn_learns_discounted_values():
    """From state 0 to state 1 for nothing, then 1 and the end."""
    agent = make_agent('dqn', q_lr=1e-2, gamma=0.5, train_target=5, Adam_eps=1e-8)
    states = np.arange(32) % 2
    batch = {
        'observations': torch.eye(SIZE)[states],
        'actions': torch.tensor(np.arange(32) // 2 % 2),
        'rewards': torch.tensor(states, dtype=torch.float32),
        'masks': torch.tensor(1 - states, dtype=torch.float32),
        'next_observations': torch.eye(SIZE)[1 - states],
    }
    for _ in range(200):
        agent, _ = agent.update(batch)
    values = agent.critic(torch.eye(SIZE)[:2])
    expected = torch.tensor([[0.5, 0.5], [1.0, 1.0]])
    torch.testing.assert_close(values, expected, rtol=0, atol=0.15)


def test_exploration_noise_has_the_configured_size():
    agent = make_agent('ddpg', std_act=0.1, obs_normalization=False)
    observations = torch.zeros(4000, SIZE)
    noise = agent.sample_actions(observations)[0] - agent.eval_actions(observations)[0]
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    'flags, agent',
    [
        ('--alg=ircr --env=Humanoid-v5', 'ircr.py:sac_humanoid'),
        ('--alg=ircr --env=Humanoid-v5 --basis_alg=td3', 'ircr.py:td3'),
        ('--alg=ircr --env=Ant-v5', 'ircr.py:sac'),
        ('--alg=rrd --env=Humanoid-v5', 'rrd.py:sac'),
        ('--alg=rrd --env=Assault --optimizer=rmsprop', 'rrd.py:dqn_rmsprop'),
        ('--alg=td3 --env=Ant-v5', 'td3.py'),
    ],
)
def test_flags_choose_the_config(flags, agent):
    arguments = translate(['rrd', *flags.split()])
    assert arguments[1] == f'--agent=purerl/agents/rrd/{agent}'
