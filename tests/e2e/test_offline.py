"""The offline launcher, from the command line's flags to the files that it leaves."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest
import torch
from interruptions import contents, crash_at

from experiments import evaluate as evaluate_launcher
from experiments import offline as launcher
from purerl.agents.infom.rebrac import ReBRACAgent, get_config
from purerl.core import jit, random, trees
from purerl.core.checkpoint import CheckpointError, load_checkpoint
from purerl.core.flax_io import save_flax
from purerl.data import d4rl, exorl
from purerl.data.check import DatasetError
from purerl.envs.make import make
from purerl.train import offline, phases
from purerl.train.collect import collect
from purerl.train.config import ROOT, RunError, load_agent
from purerl.train.plotting import read_csv
from purerl.train.seeds import stack, unstack

SMALL = {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,), 'batch_size': 8, 'actor_freq': 2}
FLAGS = {
    'env_name': 'Pendulum-v1',
    'seed': 5,
    'run_name': 'run',
    'jit': 'trace',
    'tqdm': False,
    'pretraining_steps': 12,
    'finetuning_steps': 12,
    'pretraining_size': 200,
    'log_interval': 5,
    'eval_interval': 10,
    'eval_episodes': 1,
    'save_interval': 0,
    'agent.actor_hidden_dims': '8',
    'agent.value_hidden_dims': '8',
    'agent.batch_size': 8,
    'agent.actor_freq': 2,
}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'pendulum.hdf5'
    collect('Pendulum-v1', path, policy='random', num_transitions=300)
    return path


@pytest.fixture
def validated(monkeypatch):
    """Give every dataset a validation part, as OGBench's have one."""
    load = phases.load_dataset

    def load_with_validation(name, **options):
        train, _ = load(name, **options)
        return train, trees.map(lambda array: array[::-1].copy(), train)

    monkeypatch.setattr(phases, 'load_dataset', load_with_validation)


def run(folder, dataset, **changes):
    flags = {**FLAGS, 'save_dir': str(folder), 'pretraining_dataset': dataset, **changes}
    return launcher.main(['offline', *(f'--{name}={value}' for name, value in flags.items())])


def saved_agent(folder, like):
    return load_checkpoint(folder / 'run/checkpoints', like=like)[0]


def new_agent(seed=5):
    config = get_config()
    config.update(SMALL)
    return ReBRACAgent.create(seed, torch.zeros(1, 3), torch.zeros(1, 1), config)


def test_what_a_run_leaves(tmp_path, dataset, validated):
    run(tmp_path, dataset)
    folder = tmp_path / 'run'
    pretraining = read_csv(folder / 'pretraining_train.csv')
    finetuning = read_csv(folder / 'finetuning_train.csv')
    assert list(pretraining['step']) == [5, 10]
    assert list(finetuning['step']) == [15, 20]
    assert {'training/bc/bc_loss', 'validation/bc/bc_loss'} <= pretraining.keys()
    # The update at step 15 is partial, so the actor's columns begin empty.
    assert np.isnan(finetuning['training/actor/actor_loss']).tolist() == [True, False]
    assert list(read_csv(folder / 'finetuning_eval.csv')['step']) == [13, 20]
    assert (folder / 'curves.png').exists()
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['step'] == 24
    assert np.isfinite([summary['return'], summary['random_return']]).all()


def test_draws_are_in_the_originals_order(tmp_path, dataset, validated):
    """The same run, written out in the plainest way, from one numpy stream."""
    run(tmp_path, dataset)
    settings = offline.Settings(
        env_name='Pendulum-v1', pretraining_dataset=str(dataset), pretraining_size=200
    )
    loaded = phases.load_phases(load_agent('purerl/agents/infom/rebrac.py', SMALL), settings)
    stream, rows = np.random.RandomState(5), []
    loaded['pretraining'].train.sample(1, stream)
    with jit.use_mode('trace'):
        agent = new_agent()
        for i in range(1, 25):
            data = loaded['pretraining' if i <= 12 else 'finetuning']
            batch = data.train.sample(8, stream)
            if i <= 12:
                agent, _ = agent.pretrain(batch)
            else:
                agent, _ = agent.finetune(batch, full_update=i % 2 == 0)
            if i % 5 == 0:
                val_batch = data.val.sample(8, stream)
                loss = agent.pretraining_loss if i <= 12 else agent.finetuning_loss
                rows.append({key: float(value) for key, value in loss(val_batch)[1].items()})
            if i in (13, 20):
                stream.randint(0, 2**32)
    for (path, ours), (_, theirs) in zip(
        trees.leaves_with_path(agent),
        trees.leaves_with_path(saved_agent(tmp_path, agent)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg='/'.join(path))
    logged = read_csv(tmp_path / 'run/finetuning_train.csv')
    for row, i in ((rows[2], 0), (rows[3], 1)):
        for key, value in row.items():
            assert logged[f'validation/{key}'][i] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_phases_are_normalised_separately(dataset):
    settings = offline.Settings(
        env_name='Pendulum-v1', pretraining_dataset=str(dataset), pretraining_size=100
    )
    loaded = phases.load_phases(load_agent('purerl/agents/infom/rebrac.py'), settings)
    assert loaded['pretraining'].train.size == 100
    assert loaded['finetuning'].train.size > 200
    for data in loaded.values():
        np.testing.assert_allclose(data.train['observations'].mean(0), 0, atol=1e-5)
    means = [data.train.obs_mean for data in loaded.values()]
    assert not np.array_equal(*means)


def test_equal_phases_share_their_data(dataset):
    settings = offline.Settings(
        pretraining_dataset=str(dataset), pretraining_size=100, finetuning_size=100
    )
    loaded = phases.load_phases(load_agent('purerl/agents/infom/rebrac.py'), settings)
    assert loaded['pretraining'] is loaded['finetuning']


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ({}, ('cube-single-play-singletask-v0', 'cube-single-play-ft-singletask-v0')),
        ({'pretraining_dataset': 'a.npz'}, ('a.npz', 'a.npz')),
        ({'finetuning_dataset': 'b.npz'}, ('b.npz', 'b.npz')),
        ({'pretraining_dataset': 'a.npz', 'finetuning_dataset': 'b'}, ('a.npz', 'b')),
        ({'env_name': 'D4RL/door/human-v2'}, ('D4RL/door/human-v2', 'D4RL/door/human-v2')),
        (
            {'env_name': 'walker_flip'},
            ('rnd_reward_free_walker', 'rnd_reward_labeled_walker_flip'),
        ),
        ({'env_name': 'walker_flip', 'finetuning_dataset': 'b.hdf5'}, ('b.hdf5', 'b.hdf5')),
    ],
)
def test_where_datasets_come_from(flags, expected):
    names = phases.dataset_names(offline.Settings(**flags))
    assert (names['pretraining'], names['finetuning']) == expected


def test_seeds_in_one_program_are_those_of_single_runs(tmp_path, dataset, validated):
    run(tmp_path, dataset)
    run(tmp_path, dataset, run_name='both', seed=4, num_seeds=2)
    for name in ('pretraining_train.csv', 'finetuning_train.csv'):
        ours = read_csv(tmp_path / 'both/seed_001' / name)
        single = read_csv(tmp_path / 'run' / name)
        for column in single:
            np.testing.assert_allclose(ours[column], single[column], rtol=2e-5, atol=2e-5)


def test_restoring_another_runs_agent(tmp_path, dataset):
    run(tmp_path, dataset, pretraining_steps=1, finetuning_steps=0)
    agent = saved_agent(tmp_path, new_agent())
    restored = offline.restore_agent(new_agent(0), str(tmp_path / 'run'), None)
    assert trees.leaves(trees.map(torch.equal, agent, restored)) == [True] * len(
        trees.leaves(agent)
    )
    save_flax(tmp_path / 'params_7.pkl', agent)
    restored = offline.restore_agent(new_agent(0), str(tmp_path), 7)
    assert all(trees.leaves(trees.map(torch.equal, agent, restored)))
    run(tmp_path, dataset, run_name='next', restore_path=tmp_path / 'run', finetuning_steps=0)
    with pytest.raises(RunError, match=r'--restore_epoch.*params_7\.pkl'):
        offline.restore_agent(agent, str(tmp_path), None)
    wider = load_agent('purerl/agents/infom/rebrac.py', {**SMALL, 'value_hidden_dims': (9,)})
    wider = ReBRACAgent.create(0, torch.zeros(1, 3), torch.zeros(1, 1), wider.config)
    with pytest.raises(CheckpointError, match=r'saved with value_hidden_dims=\(8,\), not \(9,\)$'):
        offline.restore_agent(wider, str(tmp_path / 'run'), None)
    with pytest.raises(RunError, match='matches 0 folders'):
        offline.restore_agent(agent, str(tmp_path / 'nothing'), None)


def test_restoring_the_agents_of_several_seeds(tmp_path, dataset):
    run(tmp_path, dataset, pretraining_steps=1, finetuning_steps=0, num_seeds=2)
    like = stack([new_agent(0), new_agent(0)])
    members = unstack(saved_agent(tmp_path, like), 2)
    for seed, member in zip((5, 6), members, strict=True):
        restored = offline.restore_agent(new_agent(0), str(tmp_path / 'run'), None, seed)
        assert all(trees.leaves(trees.map(torch.equal, member, restored)))
    flags = {'restore_path': tmp_path / 'run', 'finetuning_steps': 0, 'run_name': 'next'}
    run(tmp_path, dataset, num_seeds=2, **flags)
    with pytest.raises(RunError, match='has seeds 5 to 6, but not 7'):
        run(tmp_path, dataset, seed=7, overwrite=True, **flags)


def test_evaluating_a_run_needs_no_dataset(tmp_path, dataset):
    run(tmp_path, dataset)
    moved = dataset.rename(dataset.with_name('away.hdf5'))
    try:
        result = evaluate_launcher.main(['evaluate', f'--run={tmp_path / "run"}', '--episodes=1'])
    finally:
        moved.rename(dataset)
    assert np.isfinite(result['statistics'][0]['episode.return'])


# --- Mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        ({'pretraining_dataset': 'nothing.hdf5'}, DatasetError, 'nothing.hdf5: no such file'),
        ({'pretraining_dataset': 'a.txt'}, DatasetError, 'unknown dataset format'),
        ({'env_name': 'MountainCarContinuous-v0'}, RunError, r'observations of shape \(3,\)'),
        ({'env_name': 'Acrobot-v1'}, RunError, 'Discrete'),
        ({'obs_norm_type': 'max'}, RunError, 'obs_norm_type'),
        ({'agent.alpha_actr': 1}, RunError, "did you mean 'alpha_actor'"),
        ({'agent.batch_size': 0}, RunError, 'agent.batch_size must be at least 1, not 0'),
        ({'agent.actor_freq': 0}, RunError, 'agent.actor_freq must be at least 1, not 0'),
        ({'agent.value_hidden_dims': '8,0'}, RunError, 'agent.value_hidden_dims must be positive'),
        ({'agent.tau': 5}, RunError, 'agent.tau must lie between 0 and 1, not 5'),
        ({'agent.lr': 'nan'}, RunError, 'agent.lr must be finite, not nan'),
        ({'p_aug': 1.5}, RunError, 'p_aug must be at most 1, not 1.5'),
        ({'seed': 2**32}, RunError, 'seed must be at most 4294967295'),
        (
            {'num_seeds': 2, 'p_aug': 0.5, 'inplace_aug': False},
            RunError,
            'set --p_aug=1 or --inplace_aug',
        ),
    ],
)
def test_mistakes_stop_before_anything_is_written(tmp_path, dataset, changes, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, dataset, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('key', 'shape', 'dtype', 'message'),
    [
        ('actions', (2,), np.int64, r'actions are int64 \(20, 2\).*continuous'),
        ('actions', (), np.float32, r'actions are float32 \(20,\).*continuous'),
        ('observations', (2, 3), np.float32, r'shape \(20, 2, 3\).*vectors'),
        (
            'observations',
            (8, 8, 3),
            np.float32,
            r'float32 \(20, 8, 8, 3\), but images must be uint8',
        ),
        (
            'observations',
            (3, 8, 8),
            np.uint8,
            r'uint8 \(20, 3, 8, 8\), but images must be uint8 \(N, he',
        ),
    ],
)
def test_data_that_no_agent_takes_are_refused(
    tmp_path, dataset, monkeypatch, key, shape, dtype, message
):
    def load(name, **options):
        array = np.ones((20, *shape), dtype)
        observations = {'observations': array, 'next_observations': array}
        changed = observations if key == 'observations' else {key: array}
        return {**walker_data(20, 0), **changed}, None

    monkeypatch.setattr(phases, 'load_dataset', load)
    with pytest.raises(DatasetError, match=message):
        run(tmp_path, dataset, eval_interval=0)
    assert not list(tmp_path.iterdir())


def test_old_files_get_the_time_limit_of_the_environment(tmp_path, dataset):
    path, arrays = tmp_path / 'old.hdf5', d4rl.read(dataset)
    del arrays['timeouts']
    d4rl.save(path, arrays)
    run(tmp_path, path, eval_interval=0)


def test_goals_want_an_end_that_the_file_names(tmp_path, dataset):
    path, arrays = tmp_path / 'endless.hdf5', d4rl.read(dataset)
    ends = np.zeros(len(arrays['rewards']))
    d4rl.save(path, {**arrays, 'terminals': ends, 'timeouts': ends})
    settings = settings_for(tmp_path, path)
    with pytest.raises(DatasetError, match=r'endless\.hdf5: no episode ends in it.*goals'):
        offline.train(load_agent('purerl/agents/infom/hilp.py'), settings)
    assert not (tmp_path / 'runs').exists()


def test_a_latent_that_is_not_inferred_yet_is_named(tmp_path, dataset):
    changes = {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,), 'batch_size': 8}
    agent = load_agent('purerl/agents/infom/hilp.py', changes)
    offline.train(agent, settings_for(tmp_path, dataset, finetuning_steps=0))
    run_folder = tmp_path / 'runs/run'
    with pytest.raises(RunError, match='before finetuning, where the agent infers the latent'):
        evaluate_launcher.main(['evaluate', f'--run={run_folder}', '--episodes=1'])


def test_nested_observations_become_one_vector(tmp_path, dataset, monkeypatch):
    def load(name, **options):
        data = walker_data(20, 0)
        nested = {'b': data['observations'], 'a': np.ones((20, 2, 3))}
        return {
            **data,
            'rewards': np.ones(20),
            'observations': nested,
            'next_observations': nested,
        }, None

    monkeypatch.setattr(phases, 'load_dataset', load)
    run(tmp_path, dataset, eval_interval=0)
    example = json.loads((tmp_path / 'run/agent.json').read_text())
    assert example['observations']['shape'] == [1, 30]


def walker_data(num, seed):
    rng = np.random.RandomState(seed)
    ends = np.zeros(num)
    ends[9::10] = 1
    return {
        'observations': rng.standard_normal((num, 24)),
        'actions': rng.uniform(-1, 1, (num, 6)),
        'next_observations': rng.standard_normal((num, 24)),
        'terminals': ends,
        'masks': np.ones(num),
    }


def test_exorls_files_by_the_name_of_a_task(tmp_path, monkeypatch):
    monkeypatch.setattr(exorl, 'FOLDER', str(tmp_path))
    exorl.save(tmp_path / 'rnd_reward_free_walker.hdf5', walker_data(40, 0))
    exorl.save(tmp_path / 'rnd_reward_free_walker_val.hdf5', walker_data(20, 1))
    labelled = {**walker_data(30, 2), 'rewards': np.ones(30)}
    exorl.save(tmp_path / 'rnd_reward_labeled_walker_flip.hdf5', labelled)
    agent = load_agent('purerl/agents/infom/rebrac.py', SMALL)
    changes = {'env_name': 'walker_flip', 'pretraining_dataset': None, 'log_interval': 1}
    settings = settings_for(tmp_path, None, **changes, pretraining_size=35)
    loaded = phases.load_phases(agent, settings)
    assert [data.train.size for data in loaded.values()] == [35, 30]
    assert 'rewards' not in loaded['pretraining'].train
    monkeypatch.setattr(offline, 'make', functools.partial(make, max_episode_steps=15))
    summary = offline.train(agent, settings)
    assert 0 <= summary['return'][0] <= 15
    table = read_csv(tmp_path / 'runs/run/pretraining_train.csv')
    assert np.isfinite(table['validation/bc/bc_loss']).all()
    evaluations = read_csv(tmp_path / 'runs/run/finetuning_eval.csv')
    assert list(evaluations['evaluation/episode.length']) == [15]


def test_data_without_rewards_is_not_for_finetuning(tmp_path):
    file = tmp_path / 'free.hdf5'
    exorl.save(file, walker_data(40, 0))
    agent = load_agent('purerl/agents/infom/rebrac.py', SMALL)
    settings = settings_for(tmp_path, file, env_name='walker_flip')
    with pytest.raises(DatasetError, match=r'free\.hdf5: no rewards to finetune on'):
        offline.train(agent, settings)
    assert not (tmp_path / 'runs').exists()
    settings = dataclasses.replace(settings, finetuning_steps=0)
    assert offline.train(agent, settings)['return'] is None


def test_datasets_of_two_environments_are_refused(tmp_path, dataset):
    other = tmp_path / 'car.hdf5'
    collect('MountainCarContinuous-v0', other, policy='random', num_transitions=20)
    with pytest.raises(DatasetError, match=r'car\.hdf5: observations have shape \(2,\).*\(3,\)'):
        run(tmp_path / 'runs', dataset, finetuning_dataset=other)
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('agent', 'changes', 'message'),
    [
        ('rebrac', {'encoder': 'impala_debug'}, 'vectors of 3 numbers.*choose --agent.encoder=mlp'),
        ('infom', {'encoder': 'mlp'}, 'set clip_flow_goals=False'),
    ],
)
def test_an_encoder_that_does_not_fit(tmp_path, dataset, agent, changes, message):
    agent = load_agent(f'purerl/agents/infom/{agent}.py', changes)
    with pytest.raises(RunError, match=message):
        offline.train(agent, settings_for(tmp_path, dataset))
    assert not (tmp_path / 'runs').exists()


@pytest.fixture
def images(monkeypatch):
    """Put images in the place of every dataset's observations."""
    load = phases.load_dataset

    def load_images(name, **options):
        train, val = load(name)
        shape = len(train['actions']), 8, 8, 3
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return {**train, 'observations': images, 'next_observations': images}, val

    monkeypatch.setattr(phases, 'load_dataset', load_images)


@pytest.mark.usefixtures('images')
def test_seeds_crop_images_on_their_own(tmp_path, dataset):
    agent = load_agent('purerl/agents/infom/rebrac.py', {**SMALL, 'encoder': 'impala_debug'})
    flags = {'p_aug': 0.5, 'eval_interval': 0, 'obs_norm_type': 'none', 'log_interval': 1}
    tables = {}
    for name, settings in {
        'single': settings_for(tmp_path, dataset, run_name='single', seed=6, **flags),
        'both': settings_for(tmp_path, dataset, run_name='both', num_seeds=2, **flags),
    }.items():
        offline.train(agent, settings)
        seed = {'single': '', 'both': 'seed_001'}[name]
        tables[name] = read_csv(tmp_path / 'runs' / name / seed / 'finetuning_train.csv')
    for column, values in tables['single'].items():
        np.testing.assert_allclose(tables['both'][column], values, rtol=2e-5, atol=2e-5)


def test_latents_are_inferred_from_batches_of_which_some_are_augmented(tmp_path, dataset):
    batches = iter([{'rewards': np.ones(2), 'aug1_observations': 0}, {'rewards': np.zeros(2)}] * 2)
    data = types.SimpleNamespace(sample=lambda *_: next(batches))
    world = offline.World(settings_for(tmp_path, dataset, eval_interval=0), 0)
    batch = world.inference_batch(data, 2, 3)
    assert list(batch) == ['rewards']
    np.testing.assert_array_equal(batch['rewards'], [1, 1, 0])


@pytest.mark.usefixtures('images')
@pytest.mark.parametrize('encoder', [None, 'mlp'])
def test_images_want_an_encoder_of_images(tmp_path, dataset, encoder):
    agent = load_agent('purerl/agents/infom/rebrac.py', {'encoder': encoder})
    with pytest.raises(RunError, match=r'images of shape \(8, 8, 3\).*impala_small'):
        offline.train(agent, settings_for(tmp_path, dataset, eval_interval=0))
    assert not (tmp_path / 'runs').exists()


@pytest.mark.usefixtures('images')
def test_an_agent_that_compares_two_copies_of_images_asks_for_them(tmp_path, dataset):
    changes = {**SMALL, 'encoder': 'impala_debug'}
    agent = load_agent('purerl/agents/infom/dino_rebrac.py', changes)
    with pytest.raises(RunError, match='set --p_aug=1 --num_aug=2 --noinplace_aug'):
        offline.train(agent, settings_for(tmp_path, dataset, p_aug=1.0))
    assert not (tmp_path / 'runs').exists()


def test_entries_that_an_agent_reads_and_does_not_declare(tmp_path, dataset):
    undeclared = ("frozenset({'next_actions'})", 'frozenset()')
    agent = copy_of_rebrac(tmp_path, undeclared)
    message = "lacks '?next_actions.*ReBRACAgent has to declare 'next_actions' in `needs`"
    with pytest.raises(RunError, match=message):
        offline.train(agent, settings_for(tmp_path, dataset))
    assert not (tmp_path / 'runs').exists()


def test_rewards_and_masks_that_the_data_lack(tmp_path, dataset, monkeypatch):
    load = phases.load_dataset

    def load_without(name, **options):
        train, val = load(name)
        return {key: value for key, value in train.items() if key != 'masks'}, val

    monkeypatch.setattr(phases, 'load_dataset', load_without)
    agent = load_agent('purerl/agents/infom/rebrac.py', SMALL)
    with pytest.raises(RunError, match=r"the batch lacks 'masks'.*single-task --env_name"):
        offline.train(agent, settings_for(tmp_path, dataset))
    assert not (tmp_path / 'runs').exists()


def test_goals_want_the_end_of_the_first_episode(tmp_path, dataset):
    agent = load_agent('purerl/agents/infom/hilp.py')
    with pytest.raises(RunError, match='its first episode has 199 transitions, but only 30'):
        offline.train(agent, settings_for(tmp_path, dataset, pretraining_size=30))
    assert not (tmp_path / 'runs').exists()


def test_a_bug_in_a_loss_keeps_its_traceback(tmp_path, dataset):
    agent = copy_of_rebrac(tmp_path, ("self.config['alpha_actor']", "{}['a table of its own']"))
    with pytest.raises(KeyError, match='a table of its own'):
        offline.train(agent, settings_for(tmp_path, dataset))


def test_an_online_agent_is_sent_to_the_other_loop(tmp_path):
    with pytest.raises(RunError, match=r'no pretrain.*experiments\.online'):
        launcher.main(['offline', f'--save_dir={tmp_path}', '--agent=purerl/agents/jaxrl5/sac.py'])


# --- Needs -----------------------------------------------------------------------------------


GOALS = """
            'value_p_curgoal': 0.2, 'value_p_trajgoal': 0.5, 'value_p_randomgoal': 0.3,
            'value_geom_sample': True, 'value_geom_start_offset': 1,
            'actor_p_curgoal': 0.0, 'actor_p_trajgoal': 1.0, 'actor_p_randomgoal': 0.0,
            'actor_geom_sample': True, 'actor_geom_start_offset': 1,
            'gc_negative': True, 'relabel_reward': False, 'p_aug': None, 'frame_stack': None,
"""


def copy_of_rebrac(folder, *replacements):
    text = (ROOT / 'purerl/agents/infom/rebrac.py').read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    file = folder / 'copy.py'
    file.write_text(text)
    return load_agent(str(file), SMALL)


def settings_for(folder, dataset, **changes):
    values = {'env_name': 'Pendulum-v1', 'seed': 5, 'save_dir': str(folder / 'runs')}
    values |= {'pretraining_dataset': str(dataset), 'jit': 'off', 'tqdm': False}
    values |= {'pretraining_steps': 2, 'finetuning_steps': 2, 'eval_episodes': 1}
    return offline.Settings(**{**values, 'run_name': 'run', 'tensorboard': False, **changes})


def test_goals_are_provided_for_agents_that_need_them(tmp_path, dataset, monkeypatch):
    agent = copy_of_rebrac(
        tmp_path,
        ("frozenset({'next_actions'})", "frozenset({'next_actions', 'goals'})"),
        ("'agent_name': 'rebrac',", f"'agent_name': 'goals', {GOALS}"),
        (
            '    def pretrain(self, batch):',
            "    def pretrain(self, batch):\n        batch['value_goals']",
        ),
    )
    offline.train(agent, settings_for(tmp_path, dataset))
    load = phases.load_dataset

    def without_episodes(name, **options):
        train, val = load(name)
        return {**train, 'dones': np.zeros_like(train['dones'])}, val

    monkeypatch.setattr(phases, 'load_dataset', without_episodes)
    with pytest.raises(DatasetError, match='no episode ends'):
        offline.train(agent, settings_for(tmp_path, dataset, run_name='other'))
    assert not (tmp_path / 'runs/other').exists()


def test_an_unknown_need_is_named(tmp_path, dataset):
    agent = copy_of_rebrac(tmp_path, ("frozenset({'next_actions'})", "frozenset({'miracles'})"))
    with pytest.raises(RunError, match=r'needs miracles; this loop provides .*goals'):
        offline.train(agent, settings_for(tmp_path, dataset))


def test_targets_are_reset_and_latents_inferred_between_the_phases(tmp_path, dataset):
    agent = copy_of_rebrac(
        tmp_path,
        (
            '    def target_update(',
            '    def target_reset(self):\n'
            '        return self.replace(rng=torch.full_like(self.rng, 7))\n\n'
            '    def infer_latent(self, batch):\n'
            "        assert len(batch['rewards']) in (20, 2)  # two in the rehearsal\n"
            "        return torch.ones(2) * batch['rewards'].mean()\n\n"
            '    def target_update(',
        ),
        (
            '    def finetune(self, batch, full_update=True):',
            '    def finetune(self, batch, full_update=True):\n'
            "        assert batch['latents'].shape == (8, 2)",
        ),
        (
            'def sample_actions(self, observations, seed, temperature=1.0)',
            'def sample_actions(self, observations, seed, latents, temperature=1.0)',
        ),
        ("'agent_name': 'rebrac',", "'agent_name': 'latents', 'num_latent_inference_samples': 20,"),
    )
    offline.train(agent, settings_for(tmp_path, dataset, num_seeds=2, finetuning_steps=1))
    # A key of (7, 7), once split, after the only step of finetuning.
    examples = torch.zeros(1, 3), torch.zeros(1, 1)
    tree = stack([agent.agent_class.create(5, *examples, agent.config) for _ in range(2)])
    folder = tmp_path / 'runs/run/checkpoints'
    saved, state, _ = load_checkpoint(folder, like=tree)
    assert torch.equal(saved.rng[0], random.split(torch.full((2,), 7))[0])
    latents = [world['latent'] for world in state['state']['worlds']]
    assert latents[0].shape == (2,)
    assert not np.array_equal(*latents)


def imagining_copy(folder):
    return copy_of_rebrac(
        folder,
        ("frozenset({'next_actions'})", "frozenset({'next_actions', 'model_rollouts'})"),
        (
            '    def target_update(',
            '    def predict_rewards(self, observations, actions):\n'
            '        return observations.sum(-1)\n\n'
            '    def predict_next_observations(self, observations, actions):\n'
            '        return observations + 1\n\n'
            '    def target_update(',
        ),
        (
            "        info = prefixed('critic', critic_info)",
            "        info = prefixed('critic', critic_info)\n"
            "        if 'model_rewards' in batch:\n"
            "            info['model_gain'] = (\n"
            "                batch['model_next_observations'] - batch['model_observations']\n"
            '            ).mean()\n'
            "            info['model_error'] = (\n"
            "                batch['model_rewards'] - batch['model_observations'].sum(-1)\n"
            '            ).abs().max()',
        ),
        (
            "'agent_name': 'rebrac',",
            "'agent_name': 'imagines', 'num_model_rollouts': 5, 'num_model_rollout_steps': 1,",
        ),
    )


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_model_rollouts_come_with_batches_once_there_are_enough(tmp_path, dataset, num_seeds):
    agent = imagining_copy(tmp_path)
    settings = settings_for(
        tmp_path, dataset, finetuning_steps=5, log_interval=1, num_seeds=num_seeds, eval_interval=0
    )
    offline.train(agent, settings)
    folder = tmp_path / 'runs/run'
    table = read_csv((folder if num_seeds == 1 else folder / 'seed_001') / 'finetuning_train.csv')
    # Five transitions a step; a batch has eight, and more than eight must be there.
    expected = [np.nan, np.nan, 1, 1, 1]
    np.testing.assert_allclose(table['training/model_gain'], expected, atol=1e-6)
    np.testing.assert_allclose(table['training/model_error'], np.subtract(expected, 1), atol=1e-6)


def test_model_rollouts_survive_an_interruption(tmp_path, dataset):
    agent = imagining_copy(tmp_path)
    settings = settings_for(
        tmp_path, dataset, finetuning_steps=6, log_interval=1, save_interval=2, eval_interval=0
    )
    offline.train(agent, dataclasses.replace(settings, run_name='whole'))
    with crash_at(offline.World, 'batch', 14):
        offline.train(agent, settings)
    offline.train(agent, dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'runs/run') == contents(tmp_path / 'runs/whole')
