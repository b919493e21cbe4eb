"""What is particular to DINO-ReBRAC: views, the teacher's centre, and the chain of keys."""

import functools

import numpy as np
import pytest
import torch

from purerl.agents.infom import encoders
from purerl.agents.infom.dino_rebrac import DINOReBRACAgent, get_config
from purerl.agents.infom.networks import MLP
from purerl.core import random, trees
from purerl.core.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from purerl.core.jit import jit, use_mode, vmap
from purerl.train.seeds import stack

BATCH = 6
SIZE = 8  # of a representation


@pytest.fixture(autouse=True)
def traced_and_small(monkeypatch):
    small = {
        'mlp': functools.partial(MLP, hidden_dims=(16, SIZE), layer_norm=True),
        'impala_debug': functools.partial(
            encoders.ImpalaEncoder, num_blocks=1, stack_sizes=(4, 4), mlp_hidden_dims=(SIZE,)
        ),
        'resnet_34': functools.partial(
            encoders.ResNetEncoder, stage_sizes=(1, 1), num_filters=SIZE // 2
        ),
    }
    for name, encoder in small.items():
        monkeypatch.setitem(encoders.encoder_modules, name, encoder)
    with use_mode('trace'):
        yield


def make_agent(seed=0, shape=(5,), **overrides):
    config = get_config()
    small = {'actor_hidden_dims': (16,), 'value_hidden_dims': (16,), 'lr': 3e-3, 'tau': 0.1}
    config.update({**small, 'encoder': 'mlp' if len(shape) == 1 else 'impala_debug', **overrides})
    return DINOReBRACAgent.create(seed, torch.zeros(1, *shape), torch.zeros(1, 3), config)


def make_batch(seed=0, shape=(5,)):
    rng = np.random.RandomState(seed)

    def observations():
        if len(shape) == 3:
            return rng.randint(0, 256, (BATCH, *shape), dtype=np.uint8)
        return rng.standard_normal((BATCH, *shape)).astype(np.float32)

    batch = {
        'observations': observations(),
        'next_observations': observations(),
        'actions': rng.uniform(-0.9, 0.9, (BATCH, 3)).astype(np.float32),
        'next_actions': rng.uniform(-0.9, 0.9, (BATCH, 3)).astype(np.float32),
        'rewards': rng.standard_normal(BATCH).astype(np.float32),
        'masks': np.ones(BATCH, np.float32),
    }
    if len(shape) == 3:
        batch.update(aug1_observations=observations(), aug2_observations=observations())
    return batch


def identical(first, second):
    pairs = zip(trees.leaves(first), trees.leaves(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def center(agent):
    return agent.network.params['modules_target_repr_center']['value']


def moments(agent):
    adam = agent.network.opt_state[0]
    return [m['modules_target_repr_center']['value'] for m in (adam.mu, adam.nu)]


# --- The centre -----------------------------------------------------------------------------------


def test_the_centre_has_a_row_for_each_of_the_batch_after_a_full_update():
    agent, shapes = make_agent(), []
    for full_update in (False, True, False, True):
        agent, _ = agent.finetune(make_batch(), full_update=full_update)
        shapes.append([tuple(x.shape) for x in (center(agent), *moments(agent))])
    one, rows = (SIZE,), (BATCH, SIZE)
    assert shapes == [[one] * 3, [rows, one, one], [rows] * 3, [rows] * 3]
    assert not any(moment.any() for moment in moments(agent))


def test_a_centre_that_has_moved_fits_batches_of_its_size_only():
    agent, _ = make_agent().finetune(make_batch())
    smaller = {key: rows[:2] for key, rows in make_batch().items()}
    for call in (agent.finetune, agent.pretrain, agent.finetuning_loss):
        with pytest.raises(ValueError, match=f'set --agent.batch_size={BATCH}'):
            call(smaller)


def test_the_centre_averages_the_teachers_two_views():
    shape = (8, 8, 3)
    agent, batch = make_agent(shape=shape, target_repr_center_tau=0.25), make_batch(shape=shape)
    teacher = agent.network.select('target_encoder')
    views = [teacher(torch.from_numpy(batch[f'aug{i}_observations'])) for i in (1, 2)]
    updated, _ = agent.finetune(batch)
    torch.testing.assert_close(center(updated), 0.25 * (views[0] + views[1]) / 2)


def test_pretraining_does_not_move_the_centre():
    agent, _ = make_agent().pretrain(make_batch())
    assert torch.equal(center(agent), torch.zeros(SIZE))


def test_shapes_settle_within_one_cycle():
    agent = make_agent(discount=0.9)  # a config that no other test has
    for full_update in (True, False, True, False):
        agent, _ = agent.finetune(make_batch(), full_update=full_update)
    before = DINOReBRACAgent.finetune.num_programs
    for full_update in (True, False, False, True):
        agent, _ = agent.finetune(make_batch(1), full_update=full_update)
    assert DINOReBRACAgent.finetune.num_programs == before


def test_growing_centres_over_seeds_equal_a_loop():
    agents = [make_agent(seed) for seed in range(3)]
    many = jit(vmap(lambda agent: agent.finetune(make_batch())[0]))
    stacked = many(many(trees.stack(agents)))
    for i, agent in enumerate(agents):
        for _ in range(2):
            agent, _ = agent.finetune(make_batch())
        torch.testing.assert_close(center(trees.index(stacked, i)), center(agent))


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_checkpoints_of_finetuning_fit_a_new_agent(tmp_path, num_seeds):
    agents = []
    for seed in range(num_seeds):
        agent = make_agent(seed)
        for _ in range(2):
            agent, _ = agent.finetune(make_batch(seed))
        agents.append(agent)
    save_checkpoint(tmp_path, 2, stack(agents), {})
    new = stack([make_agent(seed + 7) for seed in range(num_seeds)])
    loaded, _, _ = load_checkpoint(tmp_path, like=new)
    assert identical(loaded, stack(agents))


def test_checkpoints_of_other_sizes_are_refused(tmp_path):
    save_checkpoint(tmp_path, 1, make_agent(actor_hidden_dims=(8,)), {})
    with pytest.raises(CheckpointError, match='modules_actor'):
        load_checkpoint(tmp_path, like=make_agent())


# --- Representations ------------------------------------------------------------------------------


def test_dino_loss_by_hand():
    teacher, student = torch.tensor([[0.04, 0.0]]), torch.tensor([[0.0, 0.2]])
    p = torch.softmax(torch.tensor([0.0, 1.0]), 0)  # the centre takes the lead to the other side
    log_q = torch.log_softmax(torch.tensor([0.0, 2.0]), 0)
    loss = DINOReBRACAgent.dino_loss(teacher, student, torch.tensor([0.04, -0.04]))
    torch.testing.assert_close(loss, -(p * log_q).sum())


def test_the_teacher_is_not_differentiated():
    gradient = torch.func.grad(DINOReBRACAgent.dino_loss)(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.1]]), torch.zeros(2)
    )
    assert not gradient.any()


def test_views_are_noised_within_bounds():
    agent, batch = make_agent(repr_noise=2.0, repr_noise_clip=0.5), make_batch()
    batch = trees.map(torch.from_numpy, batch)
    first, second = agent.augment(batch, random.key(0))
    for view in (first, second):
        noise = view - batch['observations']
        assert 0.4 < noise.abs().max() < 0.5001
    assert not torch.equal(first, second)


def test_finetuning_sends_no_gradient_into_the_encoder():
    agent, batch = make_agent(), make_batch()
    tuned, _ = agent.finetune(batch)
    assert identical(tuned.network.params['modules_encoder'], encoder_of(agent))
    pretrained, _ = agent.pretrain(batch)
    assert not identical(encoder_of(pretrained), encoder_of(agent))
    tuned, _ = pretrained.finetune(batch)  # only the momentum moves it
    assert not identical(encoder_of(tuned), encoder_of(pretrained))


def encoder_of(agent):
    return agent.network.params['modules_encoder']


def test_target_reset_copies_the_encoder_only():
    agent, _ = make_agent().pretrain(make_batch())
    before = trees.map(torch.clone, agent)
    params, old = agent.target_reset().network.params, agent.network.params
    assert identical(agent, before)
    assert identical(params['modules_target_encoder'], params['modules_encoder'])
    assert not identical(params['modules_target_encoder'], old['modules_target_encoder'])
    rest = [name for name in old if name != 'modules_target_encoder']
    assert identical([params[name] for name in rest], [old[name] for name in rest])
    storages = [leaf.untyped_storage().data_ptr() for leaf in trees.leaves(params)]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize('encoder', ['impala_debug', 'resnet_34'])
def test_images(encoder):
    shape = (8, 8, 3)
    agent = make_agent(shape=shape, encoder=encoder)
    batch = make_batch(shape=shape)
    with use_mode('off'):
        for step in (agent.pretrain, agent.finetune):
            _, info = step(batch)
            assert torch.isfinite(torch.stack(list(info.values()))).all()
        assert agent.sample_actions(batch['observations'][0], random.key(0)).shape == (3,)


# --- Keys -----------------------------------------------------------------------------------------


def test_full_updates_go_on_with_a_key_of_the_loss():
    agent, batch = make_agent(), make_batch()
    new_rng, rng = random.split(agent.rng)
    assert torch.equal(agent.pretrain(batch)[0].rng, new_rng)
    assert torch.equal(agent.finetune(batch, full_update=False)[0].rng, new_rng)
    assert torch.equal(agent.finetune(batch)[0].rng, random.split(rng)[0])


# --- Bad input ------------------------------------------------------------------------------------


def test_an_encoder_is_needed():
    with pytest.raises(ValueError, match=r"encoder .*'mlp'"):
        make_agent(encoder=None)
    with pytest.raises(ValueError, match="unknown encoder 'impalla'"):
        make_agent(encoder='impalla')


def test_next_actions_are_needed_in_finetuning():
    batch = make_batch()
    del batch['next_actions']
    agent, _ = make_agent().pretrain(batch)
    with pytest.raises(ValueError, match=r'lacks next_actions .*return_next_actions=True'):
        agent.finetune(batch)


@pytest.mark.parametrize('call', ['pretrain', 'finetune'])
def test_images_come_with_augmented_copies(call):
    batch = make_batch(shape=(8, 8, 3))
    del batch['aug1_observations'], batch['aug2_observations']
    agent = make_agent(shape=(8, 8, 3))
    with pytest.raises(ValueError, match=r'lacks aug1_observations.*p_aug=1, num_aug=2'):
        getattr(agent, call)(batch)


def test_partial_updates_need_no_augmented_copies():
    batch = make_batch(shape=(8, 8, 3))
    del batch['aug1_observations'], batch['aug2_observations']
    make_agent(shape=(8, 8, 3)).finetune(batch, full_update=False)
