"""What holds for every agent: compiled equals eager, vmap equals loop, known values are learnt."""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from experiments.configs.jaxrl5 import bc as bc_config
from experiments.configs.jaxrl5 import (
    ddpm_iql_finetune,
    ddpm_iql_offline,
    droq,
    iql_antmaze,
    iql_mujoco,
    redq,
)
from experiments.configs.jaxrl5 import td3 as td3_config
from purerl.agents.infom import (
    crl_infonce,
    dino_rebrac,
    encoders,
    fb_repr,
    hilp,
    infom,
    iql,
    mbpo_rebrac,
    rebrac,
    td_infonce,
)
from purerl.agents.infom.networks import MLP
from purerl.agents.jaxrl5 import bc, ddpm_iql, ddpm_iql_simple, sac, td3
from purerl.agents.jaxrl5 import iql as jaxrl5_iql
from purerl.core import random, trees
from purerl.core.jit import CompiledFunction, jit, use_mode, vmap
from purerl.core.state import TrainState

OBSERVATIONS, ACTIONS, LATENTS, BATCH = 5, 3, 4, 16

INFOM = {
    'actor_hidden_dims': (16, 8),
    'value_hidden_dims': (16, 8),
    'actor_layer_norm': True,
    'lr': 3e-3,
    'tau': 0.1,
}
JAXRL5 = {'hidden_dims': (16, 8), 'actor_lr': 3e-3, 'critic_lr': 3e-3, 'tau': 0.1}
SAC_SIZES = {**JAXRL5, 'temp_lr': 3e-3}
IDQL_SIZES = {
    'critic_hidden_dims': (16, 8),
    'mlp_resnet_hidden_dim': 8,
    'time_dim': 8,
    'N': 4,
    'actor_lr': 3e-3,
    'critic_lr': 3e-3,
    'value_lr': 3e-3,
    'tau': 0.1,
}


class Case(NamedTuple):
    cls: Any
    get_config: Any
    overrides: dict
    steps: dict  # name: (agent, batch) -> (agent, info)
    prepare: Any = lambda agent: agent  # what comes after `create`


OFFLINE = {
    'pretrain': lambda agent, batch: agent.pretrain(batch),
    'full': lambda agent, batch: agent.finetune(batch),
    'partial': lambda agent, batch: agent.finetune(batch, full_update=False),
}
ONLINE = {
    'update': lambda agent, batch: agent.update(batch),
    'utd_4': lambda agent, batch: agent.update(
        {name: x for name, x in batch.items() if not name.startswith('observation_')}, 4
    ),
}


UPDATE = {'update': ONLINE['update']}
IDQL = {
    **UPDATE,
    'critic': lambda agent, batch: agent.critic_update(batch),
    'actor': lambda agent, batch: agent.actor_update(batch),
}


def with_model_entries(batch):
    """Add the batch itself, backwards, as transitions of a model."""
    order = list(reversed(range(BATCH)))
    entries = {f'model_{name}': x[order] for name, x in batch.items() if len(x) == BATCH}
    return {**batch, **entries}


MODELLED = {  # critic and actor on transitions of a model, or on the data
    **OFFLINE,
    'modelled': lambda agent, batch: agent.finetune(with_model_entries(batch)),
}


def centre_per_row(agent):
    """Give DINO's centre and its moments the shape that they get in the first full update."""
    name = 'modules_target_repr_center'

    def widen(tree):
        wide = tree[name]['value'].expand(BATCH, -1).clone()
        return {**tree, name: {'value': wide}}

    network = agent.network
    adam, *rest = network.opt_state
    adam = adam._replace(mu=widen(adam.mu), nu=widen(adam.nu))
    network = network.replace(params=widen(network.params), opt_state=(adam, *rest))
    return agent.replace(network=network)


DINO = functools.partial(
    Case, dino_rebrac.DINOReBRACAgent, dino_rebrac.get_config, prepare=centre_per_row
)
HILP = functools.partial(Case, hilp.HILPAgent, hilp.get_config)
IQL = functools.partial(Case, iql.IQLAgent, iql.get_config)
SAC = functools.partial(Case, sac.SACLearner)


def without_noise(step):
    """Put back the last biases of psi: their gradient is zero, so that only rounding moves them."""

    def quiet_step(agent, batch):
        agent, info = step(agent, batch)
        params = agent.network.params
        psi = dict(params['modules_critic']['psi'])
        for layer in ('Dense_2', 'LayerNorm_1'):
            psi[layer] = {**psi[layer], 'bias': torch.zeros_like(psi[layer]['bias'])}
        critic = {**params['modules_critic'], 'psi': psi}
        network = agent.network.replace(params={**params, 'modules_critic': critic})
        return agent.replace(network=network), info

    return quiet_step


TD_STEPS = {name: without_noise(step) for name, step in OFFLINE.items()}
CRL = functools.partial(Case, crl_infonce.CRLInfoNCEAgent, crl_infonce.get_config)
TD = functools.partial(Case, td_infonce.TDInfoNCEAgent, td_infonce.get_config)
CRL_SIZES = {**INFOM, 'reward_hidden_dims': (16, 8), 'latent_dim': LATENTS}
del CRL_SIZES['tau']
FLOW = functools.partial(Case, infom.InFOMAgent, infom.get_config)
FLOW_SIZES = {
    'intention_encoder_hidden_dims': (16, 8),
    'reward_hidden_dims': (16, 8),
    'latent_dim': LATENTS,
    'num_flow_goals': 3,
    'num_flow_steps': 4,
}
FB = functools.partial(Case, fb_repr.ForwardBackwardRepresentationAgent, fb_repr.get_config)
FULL_IDQL = functools.partial(Case, ddpm_iql.DDPMIQLLearner, ddpm_iql.get_config)
BC_SIZES = {'hidden_dims': (16, 8), 'actor_lr': 3e-3}
FB_SIZES = {
    'forward_repr_hidden_dims': (16, 8),
    'backward_repr_hidden_dims': (16, 8),
    'latent_dim': LATENTS,
}
CASES = {
    'rebrac': Case(
        rebrac.ReBRACAgent,
        rebrac.get_config,
        {**INFOM, 'alpha_actor': 0.1, 'alpha_critic': 0.1},
        OFFLINE,
    ),
    'iql_awr': IQL(INFOM, OFFLINE),
    'iql_ddpgbc': IQL({**INFOM, 'actor_loss': 'ddpgbc'}, OFFLINE),
    'iql_ddpgbc_std': IQL({**INFOM, 'actor_loss': 'ddpgbc', 'const_std': False}, OFFLINE),
    'dino_rebrac': DINO(overrides={**INFOM, 'encoder': 'mlp'}, steps=OFFLINE),
    'dino_rebrac_alphas': DINO(
        overrides={
            **INFOM,
            'encoder': 'mlp',
            'alpha_actor': 0.1,
            'alpha_critic': 0.1,
            'normalize_q_loss': False,
            'tanh_squash': False,
        },
        steps=OFFLINE,
    ),
    'hilp': HILP({**INFOM, 'latent_dim': LATENTS}, OFFLINE),
    'hilp_std': HILP({**INFOM, 'latent_dim': LATENTS, 'const_std': False}, OFFLINE),
    'fb_repr': FB({**INFOM, **FB_SIZES}, OFFLINE),
    'fb_repr_std': FB(
        {**INFOM, **FB_SIZES, 'const_std': False, 'repr_agg': 'min', 'normalize_q_loss': True},
        OFFLINE,
    ),
    'mbpo_rebrac': Case(
        mbpo_rebrac.MBPOReBRACAgent,
        mbpo_rebrac.get_config,
        {
            **INFOM,
            'transition_hidden_dims': (16, 8),
            'reward_hidden_dims': (16, 8),
            'alpha_actor': 0.1,
            'alpha_critic': 0.1,
        },
        MODELLED,
    ),
    'crl_infonce': CRL(CRL_SIZES, OFFLINE),
    'crl_infonce_symmetric': CRL(
        {
            **CRL_SIZES,
            'contrastive_loss': 'symmetric_infonce',
            'const_std': False,
            'normalize_q_loss': False,
        },
        OFFLINE,
    ),
    'td_infonce': TD({**CRL_SIZES, 'tau': 0.1}, TD_STEPS),
    'td_infonce_min': TD(
        {
            **CRL_SIZES,
            'tau': 0.1,
            'logit_agg': 'min',
            'const_std': False,
            'normalize_q_loss': False,
        },
        TD_STEPS,
    ),
    'infom': FLOW({**INFOM, **FLOW_SIZES}, OFFLINE),
    'infom_encoding': FLOW(
        {
            **INFOM,
            **FLOW_SIZES,
            'critic_latent_type': 'encoding',
            'q_agg': 'mean',
            'normalize_q_loss': True,
            'const_std': False,
            'clip_flow_goals': False,
            'value_layer_norm': True,
        },
        OFFLINE,
    ),
    'sac': SAC(sac.get_config, SAC_SIZES, ONLINE),
    'redq': SAC(redq.get_config, {**SAC_SIZES, 'num_qs': 4}, ONLINE),
    'droq': SAC(droq.get_config, {**SAC_SIZES, 'critic_dropout_rate': 0.2}, ONLINE),
    'td3': Case(td3.TD3Learner, td3.get_config, JAXRL5, ONLINE),
    'td3_drawn': Case(
        td3.TD3Learner,
        td3.get_config,
        {
            **JAXRL5,
            'num_qs': 4,
            'num_min_qs': 2,
            'critic_dropout_rate': 0.2,
            'critic_layer_norm': True,
        },
        ONLINE,
    ),
    'bc': Case(bc.BCLearner, bc.get_config, BC_SIZES, UPDATE),
    'bc_regularised': Case(
        bc.BCLearner,
        bc.get_config,
        {
            **BC_SIZES,
            'use_layer_norm': True,
            'dropout_rate': 0.2,
            'weight_decay': 0.1,
            'entropy_bonus': 0.1,
            'decay_steps': 10,
        },
        UPDATE,
    ),
    'jaxrl5_iql': Case(
        jaxrl5_iql.IQLLearner, jaxrl5_iql.get_config, {**JAXRL5, 'value_lr': 3e-3}, UPDATE
    ),
    'ddpm_iql': FULL_IDQL({**IDQL_SIZES, 'actor_hidden_dims': (16, 8)}, IDQL),
    'ddpm_iql_quantile': FULL_IDQL(
        {
            **IDQL_SIZES,
            'actor_architecture': 'ln_resnet',
            'actor_dropout_rate': 0.2,
            'actor_layer_norm': True,
            'critic_objective': 'quantile',
            'actor_objective': 'soft_adv',
        },
        IDQL,
    ),
    'ddpm_iql_exponential': FULL_IDQL(
        {
            **IDQL_SIZES,
            'actor_hidden_dims': (16, 8),
            'critic_objective': 'exponential',
            'actor_objective': 'exp_adv',
        },
        UPDATE,
    ),
    'ddpm_iql_simple': Case(
        ddpm_iql_simple.DDPMIQLLearner,
        ddpm_iql_simple.get_config,
        {**IDQL_SIZES, 'actor_dropout_rate': 0.2},
        IDQL,
    ),
}
# What the temperature of an entropy bonus or a penalty would shift in the probes.
PROBES = {
    'rebrac': {'alpha_actor': 0.0, 'alpha_critic': 0.0},
    'mbpo_rebrac': {'alpha_actor': 0.0, 'alpha_critic': 0.0},
    'iql_awr': {'alpha': 100.0},
    'iql_ddpgbc': {'alpha': 0.0},
    'sac': {'backup_entropy': False, 'init_temperature': 1e-4, 'temp_lr': 0.0},
    'redq': {'backup_entropy': False, 'init_temperature': 1e-4, 'temp_lr': 0.0},
    'droq': {
        'backup_entropy': False,
        'init_temperature': 1e-4,
        'temp_lr': 0.0,
        'critic_dropout_rate': 0.01,
    },
    'td3': {'target_policy_noise': 0.0},
    'jaxrl5_iql': {'temperature': 100.0, 'value_lr': 1e-2},
    'ddpm_iql': {'value_lr': 1e-2, 'decay_steps': None, 'actor_tau': 0.1, 'N': 64},
    'ddpm_iql_simple': {
        'value_lr': 1e-2,
        'decay_steps': None,
        'actor_tau': 0.1,
        'actor_dropout_rate': None,
        'N': 64,
    },
}


def make_agent(name, seed=0, observations=OBSERVATIONS, actions=ACTIONS, **overrides):
    case = CASES[name]
    config = case.get_config()
    config.update({**case.overrides, **overrides})
    examples = torch.zeros(1, observations), torch.zeros(1, actions)
    return case.prepare(case.cls.create(seed, *examples, config))


def make_batch(seed=0):
    rng = np.random.RandomState(seed)
    masks = (rng.uniform(size=BATCH) > 0.2).astype(np.float32)
    return {
        'observations': rng.standard_normal((BATCH, OBSERVATIONS)).astype(np.float32),
        'actions': rng.uniform(-0.9, 0.9, (BATCH, ACTIONS)).astype(np.float32),
        'rewards': rng.standard_normal(BATCH).astype(np.float32),
        'masks': masks,
        'next_observations': rng.standard_normal((BATCH, OBSERVATIONS)).astype(np.float32),
        'next_actions': rng.uniform(-0.9, 0.9, (BATCH, ACTIONS)).astype(np.float32),
        'value_goals': rng.standard_normal((BATCH, OBSERVATIONS)).astype(np.float32),
        'actor_goals': rng.standard_normal((BATCH, OBSERVATIONS)).astype(np.float32),
        'relabeled_rewards': masks - 1,
        'relabeled_masks': masks,
        'latents': rng.standard_normal((BATCH, LATENTS)).astype(np.float32),
        'terminals': 1 - masks,
        'dones': 1 - masks,
        'observation_min': np.full(OBSERVATIONS, -1.5, np.float32),
        'observation_max': np.full(OBSERVATIONS, 1.5, np.float32),
    }


def run(agent, step, num=3):
    for i in range(num):
        agent, info = step(agent, make_batch(i))
    return agent, info


def assert_close(ours, expected):
    """Equal up to float32 rounding."""
    assert trees.structure(ours) == trees.structure(expected)
    pairs = zip(trees.leaves_with_path(ours), trees.leaves(expected), strict=True)
    for (path, a), b in pairs:
        assert a.dtype == b.dtype
        message = functools.partial('{}: {}'.format, '/'.join(path))
        # Adam divides gradients by their own size, which magnifies rounding near zero.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6, msg=message)


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    small = functools.partial(MLP, hidden_dims=(16, 8), layer_norm=True)
    monkeypatch.setitem(encoders.encoder_modules, 'mlp', small)


all_agents = pytest.mark.parametrize('name', CASES)
all_steps = pytest.mark.parametrize(
    'name, step', [(name, step) for name, case in CASES.items() for step in case.steps]
)


# --- Compilation and vmap -------------------------------------------------------------------------


@all_steps
def test_traced_equals_eager(name, step):
    results = {}
    for mode in ('off', 'trace'):
        with use_mode(mode):
            results[mode] = run(make_agent(name), CASES[name].steps[step])
    assert_close(results['trace'], results['off'])


@pytest.mark.parametrize('name', ['rebrac', 'droq'])
def test_generated_code_equals_eager(name):
    # The graph is the traced one of the test above; two agents show that it survives Inductor.
    step = (
        next(iter(reversed(CASES[name].steps.values()))) if name == 'rebrac' else ONLINE['update']
    )
    results = {}
    for mode in ('off', 'inductor'):
        with use_mode(mode):
            results[mode] = run(make_agent(name), step)
    assert_close(results['inductor'], results['off'])


@all_steps
def test_vmap_equals_loop(name, step):
    step = CASES[name].steps[step]
    agents = [make_agent(name, seed) for seed in range(4)]
    many = jit(lambda agents, batch: vmap(lambda agent: step(agent, batch))(agents))
    stacked, info = run(trees.stack(agents), many, 2)
    assert many.num_programs == 1
    for i, agent in enumerate(agents):
        assert_close((trees.index(stacked, i), trees.index(info, i)), run(agent, step, 2))


def programs(cls):
    functions = {name: getattr(cls, name) for name in dir(cls)}
    return {k: f.num_programs for k, f in functions.items() if isinstance(f, CompiledFunction)}


@all_agents
def test_one_program_for_each_static_flag(name):
    case = CASES[name]
    for step in case.steps.values():  # the first calls trace
        run(make_agent(name), step, 1)
    before = programs(case.cls)
    for seed in (0, 7):
        agent = make_agent(name, seed)
        for _ in range(2):
            for step in case.steps.values():
                agent, _ = run(agent, step, 2)
    assert programs(case.cls) == before


def test_full_and_partial_updates_are_two_programs():
    agent = make_agent('rebrac', lr=1.5e-3)  # a config that no other test has
    before = programs(rebrac.ReBRACAgent)['finetune']
    for full_update in (True, False, True, False):
        agent, _ = agent.finetune(make_batch(), full_update=full_update)
    assert programs(rebrac.ReBRACAgent)['finetune'] == before + 2


# --- Purity and determinism -----------------------------------------------------------------------


@all_steps
def test_same_seed_twice_is_identical(name, step):
    step = CASES[name].steps[step]
    assert identical(run(make_agent(name, 3), step), run(make_agent(name, 3), step))
    assert not identical(run(make_agent(name, 3), step), run(make_agent(name, 4), step))


@all_steps
@pytest.mark.parametrize('mode', ['off', 'trace'])
def test_updates_leave_the_agent_untouched_and_share_no_memory(name, step, mode):
    agent = make_agent(name)
    before = trees.map(torch.clone, agent)
    for tensor in trees.leaves(agent):
        assert type(tensor) is torch.Tensor and not tensor.requires_grad
    assert_no_shared_memory(agent)
    with use_mode(mode):
        updated, _ = run(agent, CASES[name].steps[step], 2)
    assert identical(agent, before)
    assert trees.structure(updated) == trees.structure(agent)
    for old, new in zip(trees.leaves(agent), trees.leaves(updated), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert_no_shared_memory(updated)


def assert_no_shared_memory(agent):
    """What is saved, or changed in place by a compiler, must be stored once only."""
    storages = [x.untyped_storage().data_ptr() for x in trees.leaves(agent) if x.numel() > 2]
    assert len(set(storages)) == len(storages)


@all_steps
def test_info_holds_finite_scalars(name, step):
    _, info = run(make_agent(name), CASES[name].steps[step])
    for key, value in info.items():
        assert value.shape == ((BATCH,) if key == 'adv' and name == 'jaxrl5_iql' else ()), key
        assert torch.isfinite(value).all(), key


OWN_TARGETS = {
    **dict.fromkeys(['fb_repr', 'fb_repr_std'], ('modules_target_critic',)),
    **dict.fromkeys(['dino_rebrac', 'dino_rebrac_alphas'], ('modules_target_repr_center',)),
}


@all_agents
def test_targets_start_as_copies(name):
    agent = make_agent(name)
    if hasattr(agent, 'network'):
        params = agent.network.params
        own = OWN_TARGETS.get(
            name, ()
        )  # without an online network, or, for parity, not synchronised
        for target in [key for key in params if 'target' in key and key not in own]:
            assert identical(params[target], params[target.replace('target_', '')])
    else:
        for target in [field for field in vars(agent) if field.startswith('target_')]:
            if isinstance(getattr(agent, target), TrainState):
                online = getattr(agent, target.removeprefix('target_'))
                assert identical(getattr(agent, target).params, online.params)


# --- Actions --------------------------------------------------------------------------------------


def sampled(agent, observations, seed=0):
    if hasattr(agent, 'eval_actions'):
        agent = agent.replace(rng=random.key(seed))
        return agent.sample_actions(observations)[0]
    inputs = {}
    if hasattr(agent, 'infer_latent'):
        inputs['latents'] = np.ones((*observations.shape[:-1], LATENTS), np.float32)
    return agent.sample_actions(observations, seed=random.key(seed), **inputs)


UNBOUNDED = ('bc', 'bc_regularised', 'jaxrl5_iql')  # Gaussians as they are, as in the original


@all_agents
def test_actions(name):
    agent = make_agent(name)
    observations = make_batch()['observations']
    actions = sampled(agent, observations)
    assert actions.shape == (BATCH, ACTIONS) and actions.dtype == torch.float32
    assert actions.abs().max() <= 1 or name in UNBOUNDED
    assert torch.equal(actions, sampled(agent, torch.from_numpy(observations)))
    assert not torch.equal(actions, sampled(agent, observations, seed=1))
    assert sampled(agent, observations[0]).shape == (ACTIONS,)
    with use_mode('off'):
        torch.testing.assert_close(actions, sampled(agent, observations), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['rebrac', 'iql_awr', 'iql_ddpgbc_std'])
def test_temperature_zero_gives_the_mode(name):
    agent = make_agent(name)
    observations = torch.from_numpy(make_batch()['observations'])
    mode = agent.network.select('actor')(observations).mode().clamp(-1, 1)
    for seed in (0, 1):
        actions = agent.sample_actions(observations, seed=random.key(seed), temperature=0.0)
        torch.testing.assert_close(actions, mode, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['sac', 'redq', 'droq', 'td3', 'bc', 'jaxrl5_iql'])
def test_online_actions_advance_the_key_and_evaluation_does_not(name):
    agent = make_agent(name)
    observations = make_batch()['observations']
    first, moved = agent.sample_actions(observations)
    second, _ = moved.sample_actions(observations)
    assert not torch.equal(first, second)
    mode, same = agent.eval_actions(observations)
    assert identical(same, agent)
    assert torch.equal(mode, moved.eval_actions(observations)[0])


# --- Creation -------------------------------------------------------------------------------------


def published(module, name):
    """What `test_every_shipped_config_builds` takes, for each domain of a file of configs."""
    configs = [functools.partial(module.get_config, domain) for domain in module.DOMAINS]
    return [(module.DDPMIQLLearner, get_config, name) for get_config in configs]


@pytest.mark.parametrize(
    'cls, get_config, name',
    [
        (rebrac.ReBRACAgent, rebrac.get_config, 'rebrac'),
        (iql.IQLAgent, iql.get_config, 'iql'),
        (fb_repr.ForwardBackwardRepresentationAgent, fb_repr.get_config, 'fb_repr'),
        (mbpo_rebrac.MBPOReBRACAgent, mbpo_rebrac.get_config, 'mbpo_rebrac'),
        (hilp.HILPAgent, hilp.get_config, 'hilp'),
        (crl_infonce.CRLInfoNCEAgent, crl_infonce.get_config, 'crl_infonce'),
        (td_infonce.TDInfoNCEAgent, td_infonce.get_config, 'td_infonce'),
        (infom.InFOMAgent, infom.get_config, 'infom'),
        (sac.SACLearner, sac.get_config, 'sac'),
        (redq.SACLearner, redq.get_config, 'redq'),
        (droq.SACLearner, droq.get_config, 'droq'),
        (td3.TD3Learner, td3.get_config, 'td3'),
        (td3_config.TD3Learner, td3_config.get_config, 'td3'),
        (bc.BCLearner, bc.get_config, 'bc'),
        (bc_config.BCLearner, bc_config.get_config, 'bc'),
        (jaxrl5_iql.IQLLearner, jaxrl5_iql.get_config, 'iql'),
        (iql_antmaze.IQLLearner, iql_antmaze.get_config, 'iql'),
        (iql_mujoco.IQLLearner, iql_mujoco.get_config, 'iql'),
        (ddpm_iql.DDPMIQLLearner, ddpm_iql.get_config, 'ddpm_iql'),
        (ddpm_iql_simple.DDPMIQLLearner, ddpm_iql_simple.get_config, 'ddpm_iql_simple'),
        *published(ddpm_iql_finetune, 'ddpm_iql'),
        *published(ddpm_iql_offline, 'ddpm_iql_simple'),
    ],
)
def test_every_shipped_config_builds(cls, get_config, name):
    config = get_config()
    assert config.agent_name == name
    assert get_config() is not config
    agent = cls.create(0, torch.zeros(1, 17), torch.zeros(1, 6), config)
    assert cls.needs <= {'next_actions', 'goals', 'augmentations', 'model_rollouts'}
    config.agent_name = 'changed'  # the agent keeps what it was made with
    assert agent.config['agent_name'] == name


@pytest.mark.parametrize(
    'name, overrides, message',
    [
        ('iql_awr', {'actor_loss': 'bc'}, "actor_loss must be awr or ddpgbc, got 'bc'"),
        ('iql_awr', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('rebrac', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('fb_repr', {'repr_agg': 'max'}, "repr_agg must be mean or min, got 'max'"),
        ('fb_repr', {'latent_dim': 1}, 'latent_dim must be above 1, got 1'),
        ('fb_repr', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('crl_infonce', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('td_infonce', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('mbpo_rebrac', {'encoder': 'impalla'}, "unknown encoder 'impalla'"),
        ('mbpo_rebrac', {'model_next_actions': 'own'}, "neighbours or policy, got 'own'"),
        ('sac', {'num_min_qs': 3}, 'num_min_qs=3 must lie between 1 and num_qs=2'),
        ('redq', {'num_min_qs': 0}, 'num_min_qs=0 must lie between 1'),
        ('sac', {'init_temperature': 0.0}, r'init_temperature must be above 0, not 0\.0'),
        ('droq', {'critic_dropout_rate': 1.5}, r'a dropout rate must not be above 1, as 1\.5 is'),
    ],
)
def test_create_refuses(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(name, **overrides)


@all_agents
@pytest.mark.parametrize('seed', [1.0, '0', None])
def test_seeds_are_integers(name, seed):
    with pytest.raises(TypeError, match='seed'):
        make_agent(name, seed)


@pytest.mark.parametrize('name', ['sac', 'redq', 'droq'])
def test_batches_divide_into_updates(name):
    with pytest.raises(ValueError, match='does not divide into utd_ratio=3'):
        make_agent(name).update(make_batch(), 3)


def test_rebrac_needs_next_actions():
    assert rebrac.ReBRACAgent.needs == {'next_actions'}
    batch = make_batch()
    del batch['next_actions']
    with pytest.raises(ValueError, match='the batch lacks next_actions'):
        make_agent('rebrac').finetune(batch)


def test_redq_draws_some_critics_for_each_target():
    agent = make_agent('redq', num_qs=4, num_min_qs=2)
    kernels = trees.leaves(agent.target_critic.params)
    assert {len(kernel) for kernel in kernels} == {4}
    assert agent.target_critic.model_def is not agent.critic.model_def
    plain = make_agent('redq', num_qs=4, num_min_qs=None)
    assert identical(plain.critic.params, agent.critic.params)
    (a, _), (b, _) = (run(x, ONLINE['update'], 1) for x in (agent, plain))
    assert torch.equal(a.rng, b.rng)  # the split happens in either case
    assert not identical(a.critic.params, b.critic.params)


def test_negative_dropout_rates_are_none():
    agents = [make_agent('droq', critic_dropout_rate=rate) for rate in (-0.5, None)]
    assert identical(*(run(agent, ONLINE['update'], 1)[0].critic.params for agent in agents))


def test_droq_drops_out_in_updates():
    params = [
        run(make_agent('droq', critic_dropout_rate=rate), ONLINE['update'], 1)[0].critic.params
        for rate in (None, 0.5)
    ]
    assert not identical(*params)


# --- Probes with known values ---------------------------------------------------------------------
# One or two states whose values are known, and a few hundred updates of tiny networks.


def probe_batch(states, actions, rewards, masks, next_states):
    masks = np.asarray(masks, np.float32)
    return {
        'observations': np.eye(2, dtype=np.float32)[states],
        'actions': actions[:, None].astype(np.float32),
        'rewards': np.asarray(rewards, np.float32),
        'masks': masks,
        'next_observations': np.eye(2, dtype=np.float32)[next_states],
        'next_actions': np.zeros((len(masks), 1), np.float32),
        'terminals': 1 - masks,
        'dones': 1 - masks,
    }


def train(name, batch, num=200, **overrides):
    offline = 'lr' in CASES[name].get_config()
    rates = {'lr': 1e-2} if offline else {'actor_lr': 1e-2, 'critic_lr': 1e-2}
    overrides = {**rates, **PROBES[name], 'discount': 0.5, **overrides}
    agent = make_agent(name, observations=2, actions=1, **overrides)
    batch = trees.map(torch.from_numpy, batch)
    for i in range(num):
        if offline:  # first the critic, so that the actor does not run after a critic's errors
            agent, _ = agent.finetune(batch, full_update=i >= num // 2)
        else:
            agent, _ = agent.update(batch)
    return agent


def critic_values(agent, batch):
    observations, actions = (torch.from_numpy(batch[k]) for k in ('observations', 'actions'))
    if hasattr(agent, 'network'):
        return agent.network.select('critic')(observations, actions=actions)
    return agent.critic(observations, actions)


probes = pytest.mark.parametrize('name', PROBES)
SPREAD = np.linspace(-1, 1, 32)


@probes
def test_probe_values_are_discounted_and_stop_at_the_end(name):
    """From state 0 to state 1 for nothing, then 1 and the end: Q is the discount, then 1."""
    states = np.arange(32) % 2
    batch = probe_batch(states, SPREAD, states, 1 - states, 1 - states)
    # Reaching the end, the next observation would be state 0 again: its value must not count.
    values = critic_values(train(name, batch), batch)
    expected = torch.from_numpy(np.where(states, 1.0, 0.5)).float()
    assert (values - expected).abs().max() < 0.15


@probes
def test_probe_the_actor_finds_the_best_action(name):
    zeros = np.zeros(32, int)
    batch = probe_batch(zeros, SPREAD, -((SPREAD - 0.5) ** 2), np.zeros(32), zeros)
    observations = torch.from_numpy(batch['observations'][:1])
    modes = []
    for seed in range(3):  # at this learning rate a single actor may end beside the optimum
        agent = train(name, batch, 300, seed=seed)
        if hasattr(agent, 'network'):
            mode = agent.network.select('actor')(observations).mode()
        else:
            mode, _ = agent.eval_actions(observations)
        modes.append(mode.item())
    # The pessimistic critics' minimum has its best action a little off the true one.
    assert abs(np.median(modes) - 0.5) < 0.2


def test_probe_expectile_value_lies_above_the_mean():
    """Two actions pay 0 and 1: the 0.9-expectile of their values is 0.9."""
    zeros = np.zeros(32, int)
    actions = np.repeat([-1.0, 1.0], 16)
    batch = probe_batch(zeros, actions, actions > 0, np.zeros(32), zeros)
    agent = train('iql_awr', batch, 300, expectile=0.9, tau=1.0)
    value = agent.network.select('value')(torch.from_numpy(batch['observations'][:1]))
    assert abs(value.item() - 0.9) < 0.03


@pytest.mark.parametrize('initial, target, falls', [(1.0, -50.0, True), (0.01, 50.0, False)])
def test_probe_temperature_moves_towards_the_target_entropy(initial, target, falls):
    agent = make_agent('sac', init_temperature=initial, target_entropy=target)
    updated, info = run(agent, ONLINE['update'], 5)
    assert (updated.temp() < agent.temp()).item() is falls
    assert info['temperature'].item() == pytest.approx(initial, rel=0.05)
