"""The launcher of jaxrl5's offline agents, from the flags to the files that it leaves."""

import dataclasses
import json
import sys

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict
from interruptions import contents, crash_at, kill_after_a_checkpoint, start

from experiments import collect as collect_launcher
from experiments import evaluate as evaluate_launcher
from experiments import offline as offline_launcher
from experiments import offline_to_online as launcher
from purerl.core import jit, random, trees
from purerl.core.checkpoint import load_checkpoint
from purerl.data import d4rl, episodes
from purerl.data.check import DatasetError
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.data.replay import transition
from purerl.train import offline_to_online as loop
from purerl.train.collect import collect
from purerl.train.config import RunError, load_agent
from purerl.train.export import export_replay
from purerl.train.load_run import load_run
from purerl.train.plotting import read_csv

IDQL = (
    'purerl/agents/jaxrl5/ddpm_iql.py',
    {'critic_hidden_dims': (8,), 'actor_hidden_dims': (8,), 'N': 3, 'T': 2},
)
IQL = ('purerl/agents/jaxrl5/iql.py', {'hidden_dims': (8,)})
BC = ('purerl/agents/jaxrl5/bc.py', {'hidden_dims': (8,)})
IMAGES = Box(0, 255, (12, 12, 3, 2), np.uint8)
FLAGS = {
    'env_name': 'InvertedPendulum-v5',
    'seed': 3,
    'run_name': 'run',
    'jit': 'off',
    'tqdm': False,
    'tensorboard': False,
    'batch_size': 8,
    'max_steps': 20,
    'log_interval': 5,
    'eval_interval': 10,
    'eval_episodes': 1,
    'save_interval': 6,
    'online_start_training': 4,
    'online_batch_size': 4,
    'online_eval_interval': 8,
    'online_eval_episodes': 1,
}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'data.hdf5'
    collect('InvertedPendulum-v5', path, policy='random', num_transitions=300)
    return str(path)


@pytest.fixture(autouse=True)
def quick():
    with jit.use_mode('off'):
        yield


def run(folder, dataset, agent=IDQL, **changes):
    values = {**FLAGS, 'save_dir': str(folder), 'dataset': dataset, **changes}
    return loop.train(load_agent(*agent), loop.Settings(**values))


def saved(folder, like):
    return load_checkpoint(folder / 'run/checkpoints', like=like)[0]


def new_agent(agent=IDQL, seed=3):
    loaded = load_agent(*agent)
    return loaded.agent_class.create(seed, torch.zeros(1, 4), torch.zeros(1, 1), loaded.config)


def assert_same(ours, expected):
    for (path, a), (_, b) in zip(
        trees.leaves_with_path(ours), trees.leaves_with_path(expected), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg='/'.join(path))


# --- What a run does -------------------------------------------------------------------------


def test_the_launcher(tmp_path, dataset):
    flags = {**FLAGS, 'save_dir': tmp_path, 'dataset': dataset, 'online_max_steps': 10}
    flags |= {'agent.critic_hidden_dims': '8', 'agent.actor_hidden_dims': '8'}
    flags |= {'inference_variants': 'N=2,4;M=0', 'evaluate_implicit': True, 'jit': 'trace'}
    summary = launcher.main(
        ['offline_to_online', *(f'--{name}={value}' for name, value in flags.items())]
    )
    folder = tmp_path / 'run'
    assert summary['step'] == 30
    assert np.isfinite([*summary['return'], *summary['random_return']]).all()
    assert json.loads((folder / 'summary.json').read_text()) == summary
    offline = read_csv(folder / 'train.csv')
    assert list(offline['step']) == [5, 10, 15, 20]
    assert {'training/actor_loss', 'validation/actor_loss', 'training/q'} <= offline.keys()
    online = read_csv(folder / 'online_train.csv')
    assert list(online['step']) == [25, 30]
    assert {'training/critic_loss', 'training/value_loss'} <= online.keys()
    assert 'training/actor_loss' not in online
    names = {f'evaluation/{prefix}episode.return' for prefix in ('', 'N=4/', 'implicit/')}
    evaluations = read_csv(folder / 'eval.csv')
    assert list(evaluations['step']) == [10, 20]
    assert names <= evaluations.keys()
    assert list(read_csv(folder / 'online_eval.csv')['step']) == [28]
    assert (folder / 'curves.png').exists()


def test_draws_are_the_originals(tmp_path, dataset):
    """The same run, written out in the plainest way."""
    run(tmp_path, dataset, IQL)
    arrays = d4rl.load(dataset)
    train, held_out = episodes.split(arrays, 0.95, np.random.default_rng(3))
    key, stream, rows = random.key(42), np.random.default_rng(3), []
    agent = new_agent(IQL)
    for i in range(21):
        draw_key, key = random.split(key)
        idxs = random.randint(draw_key, (8,), 0, len(train['rewards'])).numpy()
        if i == 0:
            continue  # the launcher drops the first batch
        agent, info = agent.update({name: array[idxs] for name, array in train.items()})
        if i % 5 == 0:
            idxs = stream.integers(len(held_out['rewards']), size=8)
            batch = {name: array[idxs] for name, array in held_out.items()}
            rows.append({'training/': info, 'validation/': agent.update(batch)[1]})
    assert_same(saved(tmp_path, agent), agent)
    logged = read_csv(tmp_path / 'run/train.csv')
    for i, row in enumerate(rows):
        for prefix, info in row.items():
            for name in ('actor_loss', 'critic_loss', 'value_loss', 'v', 'q1', 'q2'):
                assert logged[prefix + name][i] == pytest.approx(float(info[name]), rel=1e-6)
    assert 'training/adv' not in logged  # one number per transition


def test_all_transitions_in_the_order_of_the_other_launcher(tmp_path, dataset):
    run(tmp_path, dataset, BC, train_ratio=1.0, max_steps=3, eval_interval=0)
    arrays, key, agent = d4rl.load(dataset), random.key(42), new_agent(BC)
    for _ in range(3):
        draw_key, key = random.split(key)
        idxs = random.randint(draw_key, (8,), 0, len(arrays['rewards'])).numpy()
        agent, _ = agent.update({k: arrays[k][idxs] for k in ('observations', 'actions')})
    assert_same(saved(tmp_path, agent), agent)
    assert not list((tmp_path / 'run').glob('eval.csv'))


def test_online_batches_are_half_online_half_offline(tmp_path, dataset, monkeypatch):
    batches, world = [], None

    def remember(self, num):
        nonlocal world
        world = self
        batches.append((num, original(self, num)))
        return batches[-1][1]

    original = loop.World.mixed_batch
    monkeypatch.setattr(loop.World, 'mixed_batch', remember)
    run(tmp_path, dataset, max_steps=2, online_max_steps=8, train_actor_finetuning=True)
    assert [num for num, _ in batches] == [4, 4] * 4  # critic's and batch_size / 2
    data = world.sampler.train
    online, offline = np.random.default_rng(3 + 1241), np.random.default_rng(3)
    for i, (num, batch) in enumerate(batches):
        held = 5 + i // 2  # transitions at the time
        expected = world.buffer['observations'][online.integers(held, size=num)]
        np.testing.assert_array_equal(batch['observations'][:num], expected)
        expected = data.take(offline.integers(data.size, size=num))['observations']
        np.testing.assert_array_equal(batch['observations'][num:], expected)
    table = read_csv(tmp_path / 'run/online_train.csv')
    assert {'training/actor_loss', 'training/critic_loss'} <= table.keys()


def test_online_rewards_are_shifted_as_the_datasets(tmp_path, dataset, monkeypatch):
    flags = {'max_steps': 0, 'online_max_steps': 3}
    run(tmp_path, dataset, **flags)
    monkeypatch.setattr(d4rl, 'reward_shift', lambda env_name: -1.0)
    run(tmp_path / 'shifted', dataset, **flags)
    states = [load_run(folder / 'run').state[0] for folder in (tmp_path, tmp_path / 'shifted')]
    plain, shifted = (state['buffer']['arrays/rewards'] for state in states)
    np.testing.assert_allclose(shifted, plain - 1, rtol=1e-6)


def test_variants_change_nothing_but_the_evaluation(tmp_path, dataset):
    run(tmp_path, dataset, online_max_steps=6)
    changes = {'inference_variants': 'N=2,8', 'evaluate_implicit': True, 'eval_interval': 3}
    run(tmp_path / 'other', dataset, online_max_steps=6, **changes)
    agents = [saved(folder, new_agent()) for folder in (tmp_path, tmp_path / 'other')]
    assert all(trees.leaves(trees.map(torch.equal, *agents)))


def test_seeds_in_one_program_are_those_of_single_runs(tmp_path, dataset):
    run(tmp_path, dataset, online_max_steps=8)
    run(tmp_path, dataset, run_name='both', seed=2, num_seeds=2, online_max_steps=8)
    for name in ('train.csv', 'eval.csv', 'online_train.csv'):
        ours = read_csv(tmp_path / 'both/seed_001' / name)
        single = read_csv(tmp_path / 'run' / name)
        for column in single:
            np.testing.assert_allclose(ours[column], single[column], rtol=1e-5, atol=1e-6)


def test_filtered_data(tmp_path, dataset):
    settings = loop.Settings(env_name='InvertedPendulum-v5', dataset=dataset)
    arrays = d4rl.load(dataset)
    median = float(np.median(episodes.boundaries(arrays).returns))
    for flags, choice in (
        ({'filter_threshold': median}, {'threshold': median}),
        ({'take_top': 30.0}, {'take_top': 30.0}),
    ):
        kept = loop.transitions.load(dataclasses.replace(settings, **flags))
        expected = episodes.filter_returns(arrays, **choice)
        assert 0 < len(kept['rewards']) < len(arrays['rewards'])
        for key in kept:
            np.testing.assert_array_equal(kept[key], expected[key])
    run(tmp_path, dataset, IQL, filter_threshold=median, max_steps=2)
    with pytest.raises(DatasetError, match=r'no finished episode returns 1000\.0 or more'):
        run(tmp_path / 'none', dataset, IQL, filter_threshold=1000.0)


def test_cosine_decay_takes_the_planned_steps(tmp_path, dataset):
    run(tmp_path, dataset, IQL, cosine_decay=True, max_steps=4)
    config = json.loads((tmp_path / 'run/config.json').read_text())
    assert config['decay_steps'] == 4
    evaluate_launcher.main(['evaluate', f'--run={tmp_path / "run"}', '--episodes=1'])


def test_evaluating_collecting_and_exporting(tmp_path, dataset):
    run(tmp_path, dataset, online_max_steps=6)
    folder = tmp_path / 'run'
    evaluation = ['evaluate', f'--run={folder}', '--episodes=1']
    result = evaluate_launcher.main(evaluation)
    assert np.isfinite(result['statistics'][0]['episode.return'])
    changed = evaluate_launcher.main([*evaluation, '--inference_variant=N=64'])
    assert changed['statistics'] != result['statistics']
    with pytest.raises(RunError, match='N must be at least 1'):
        evaluate_launcher.main([*evaluation, '--inference_variant=N=0'])
    with pytest.raises(RunError, match='several values'):
        evaluate_launcher.main([*evaluation, '--inference_variant=N=1,2'])
    command = ['collect', '--policy=checkpoint', f'--checkpoint={folder}', '--num_transitions=20']
    for i, extra in enumerate([[], ['--nodeterministic']]):
        path = tmp_path / f'{i}.hdf5'
        collect_launcher.main([*command, f'--path={path}', *extra])
        assert len(d4rl.read(path)['rewards']) == 20
    replay = [
        'collect',
        '--policy=replay',
        f'--checkpoint={folder}',
        f'--path={tmp_path / "r.hdf5"}',
    ]
    collect_launcher.main(replay)
    assert len(d4rl.read(tmp_path / 'r.hdf5')['rewards']) == 6


def test_a_run_that_never_acted_has_nothing_to_export(tmp_path, dataset):
    run(tmp_path, dataset, max_steps=1)
    flags = ['--policy=replay', f'--checkpoint={tmp_path}/run', f'--path={tmp_path}/r.hdf5']
    with pytest.raises(RunError, match='no replay buffer that can be exported'):
        collect_launcher.main(['collect', *flags])


def test_rewards_are_only_needed_by_those_who_learn_from_them(tmp_path, dataset, monkeypatch):
    load = loop.transitions.load_dataset

    def without(*args, **options):
        arrays, _ = load(*args, **options)
        return {key: arrays[key] for key in ('observations', 'actions', 'dones')}, None

    monkeypatch.setattr(loop.transitions, 'load_dataset', without)
    run(tmp_path, dataset, BC, max_steps=2)
    with pytest.raises(
        RunError, match='no next_observations in it, only actions, dones, observations'
    ):
        run(tmp_path / 'other', dataset, IQL)
    with pytest.raises(DatasetError, match='no rewards to filter'):
        run(tmp_path / 'other', dataset, BC, take_top=10.0)


def test_acting_by_the_implicit_policy(tmp_path, dataset):
    flags = {'max_steps': 2, 'online_max_steps': 8, 'sample_implicit_policy': True}
    run(tmp_path, dataset, **flags)
    run(tmp_path, dataset, run_name='both', seed=2, num_seeds=2, **flags)
    run(tmp_path, dataset, run_name='best', **{**flags, 'sample_implicit_policy': False})
    single, both, best = (load_run(tmp_path / name).state for name in ('run', 'both', 'best'))
    actions = [state['buffer']['arrays/actions'] for state in (single[0], both[1], best[0])]
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-4)
    assert not np.allclose(actions[0], actions[2], atol=1e-2)


def test_nested_observations_become_one_vector(tmp_path, monkeypatch):
    rows = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    nested = {'goal': rows[:, 0], 'body': {'b': rows[:, 1:2], 'a': rows[:, 2:, None]}}
    arrays = {'observations': nested, 'actions': rows[:, :1] / 12, 'terminals': np.eye(4)[3]}
    monkeypatch.setattr(loop.transitions, 'load_dataset', lambda name, **options: (arrays, None))
    loaded = loop.transitions.load(loop.Settings(dataset='some/nested-v0'))
    np.testing.assert_array_equal(loaded['observations'], rows[:, [2, 1, 0]])  # as flattened spaces
    assert loaded['dones'].tolist() == [False, False, False, True]


def images():
    """A buffer with 40 transitions, whose episodes have 10."""
    rng, space = np.random.default_rng(0), IMAGES
    spaces = Dict({'pixels': space}), Box(-1, 1, (2,), np.float32)
    buffer = MemoryEfficientReplayBuffer.from_spaces(*spaces, capacity=60)
    observation = {'pixels': rng.integers(0, 256, space.shape, np.uint8)}
    for i in range(40):
        following = {'pixels': rng.integers(0, 256, space.shape, np.uint8)}
        following['pixels'][..., 0] = observation['pixels'][..., 1]
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        buffer.insert(transition(observation, action, 0.0, False, i % 10 == 9, following))
        observation = following
    return buffer


def test_cloning_from_images(tmp_path):
    buffer, path = images(), tmp_path / 'images.safetensors'
    buffer.save(path)
    cnn = {'cnn_features': (4, 4), 'cnn_filters': (3, 3), 'cnn_strides': (2, 1)}
    file = ('purerl/agents/jaxrl5/pixel_bc.py', {'hidden_dims': (8,), 'latent_dim': 6, **cnn})
    flags = {'max_steps': 3, 'eval_interval': 0, 'log_interval': 1}
    run(tmp_path, str(path), file, **flags)

    loaded = load_agent(*file)
    example = torch.zeros((1, *IMAGES.shape), dtype=torch.uint8)
    agent = loaded.agent_class.create(3, {'pixels': example}, torch.zeros(1, 2), loaded.config)
    stream = np.random.default_rng(3)
    for _ in range(3):
        agent, _ = agent.update(buffer.sample(8, stream, keys=('observations', 'actions')))
    assert_same(saved(tmp_path, agent), agent)
    for wrong in ({'take_top': 5.0}, {'filter_threshold': 5.0}, {'online_max_steps': 5}):
        with pytest.raises(RunError, match='images'):
            loop.transitions.load(loop.Settings(dataset=str(path), **wrong))


def test_values_of_image_datasets_are_checked(tmp_path):
    def load(key, value, is_drawable=True, **flags):
        buffer, path = images(), tmp_path / 'images.safetensors'
        row = np.flatnonzero(buffer.is_drawable == is_drawable)[5]
        buffer.arrays[key][row] = value
        buffer.save(path)
        return row, loop.transitions.load(loop.Settings(dataset=str(path), **flags))

    row, loaded = load('actions', 1.0)  # as a saturated policy acts
    np.testing.assert_array_equal(loaded['actions'][row], np.float32(1 - 1e-5))
    for key in ('actions', 'rewards', 'masks'):
        with pytest.raises(DatasetError, match=rf"images\.safetensors: '{key}' holds a non-fin"):
            load(key, np.nan)
        load(key, np.nan, is_drawable=False)  # no batch holds it
    with pytest.raises(RunError, match=r'actions reach 2.*--clip_actions'):
        load('actions', 2.0)
    row, loaded = load('actions', -2.0, clip_actions=True)
    np.testing.assert_array_equal(loaded['actions'][row], np.float32(-1 + 1e-5))


# --- Mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        ({'dataset': None}, RunError, 'which data'),
        ({'dataset': 'nothing.hdf5'}, DatasetError, 'nothing.hdf5: no such file'),
        ({'take_top': 10.0, 'filter_threshold': 1.0}, RunError, 'give one of them'),
        ({'take_top': 0.0}, RunError, 'take_top is a percentage'),
        ({'train_ratio': 0.0}, RunError, 'train_ratio must lie above 0'),
        ({'train_ratio': 1e-4}, RunError, r'train_ratio=0\.0001 leaves none of the 2\d\d trans'),
        ({'max_steps': 0}, RunError, 'nothing to do'),
        ({'env_name': 'MountainCarContinuous-v0'}, RunError, r'shape \(4,\).*has \(2,\)'),
        ({'env_name': 'Acrobot-v1'}, RunError, 'Discrete'),
        ({'env_name': 'Pendulum-v7'}, RunError, 'unknown environment'),
        ({'inference_variants': 'N=0'}, RunError, 'N must be at least 1'),
        ({'agent': IQL, 'online_max_steps': 5}, RunError, 'no critic_update.*online_max_steps'),
        ({'agent': BC, 'evaluate_implicit': True}, RunError, 'no sample_implicit_policy'),
        (
            {'agent': ('purerl/agents/infom/rebrac.py', {})},
            RunError,
            r'no update and no eval_actions.*experiments\.offline or experiments\.pretrain_fine',
        ),
        (
            {'train_actor_finetuning': True, 'online_max_steps': 5, 'batch_size': 7},
            RunError,
            'make it even',
        ),
    ],
)
def test_mistakes_stop_before_anything_is_written(tmp_path, dataset, changes, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, changes.pop('dataset', dataset), **changes)
    assert not list(tmp_path.iterdir())


def test_an_agent_with_needs_is_refused(tmp_path, dataset):
    agent = load_agent(*BC)
    cls = type('Needy', (agent.agent_class,), {'needs': frozenset({'goals'})})
    settings = loop.Settings(**FLAGS, save_dir=str(tmp_path), dataset=dataset)
    with pytest.raises(RunError, match='needs goals, which this loop does not provide'):
        loop.train(dataclasses.replace(agent, agent_class=cls), settings)
    assert not list(tmp_path.iterdir())


def test_actions_beyond_the_bounds(tmp_path, dataset):
    path = tmp_path / 'wide.hdf5'
    arrays = d4rl.read(dataset)
    d4rl.save(path, {**arrays, 'actions': 2 * arrays['actions']})
    with pytest.raises(RunError, match=r'wide\.hdf5: actions reach 1\.9.*--clip_actions'):
        run(tmp_path / 'runs', str(path), IQL)
    assert not (tmp_path / 'runs').exists()
    run(tmp_path / 'runs', str(path), IQL, clip_actions=True, max_steps=1)


@pytest.mark.parametrize('agent', [BC, IQL, IDQL, ('purerl/agents/jaxrl5/pixel_bc.py', {})])
def test_agents_of_states_and_of_images_are_told_apart(tmp_path, dataset, agent):
    path, folder = tmp_path / 'images.safetensors', tmp_path / 'runs'
    images().save(path)
    by_images = 'pixel' in agent[0]
    data = dataset if by_images else str(path)
    message = 'by images, but .* has states' if by_images else r'by states, but .* use .*pixel_bc'
    with pytest.raises(RunError, match=message):
        run(folder, data, agent, eval_interval=0)
    assert not folder.exists()


@pytest.mark.parametrize(
    ('key', 'shape', 'dtype'),
    [('observations', (30, 8, 8, 3), np.uint8), ('actions', (30,), np.float32)],
)
def test_what_is_no_vector_is_refused(tmp_path, key, shape, dtype):
    path = tmp_path / 'odd.hdf5'
    arrays = {
        'observations': np.zeros((30, 4)),
        'actions': np.zeros((30, 1)),
        **{name: np.zeros(30) for name in ('rewards', 'terminals')},
        'timeouts': np.arange(30) % 10 == 9,
    }
    d4rl.save(path, {**arrays, key: np.zeros(shape, dtype)})
    with pytest.raises(RunError, match=rf'odd\.hdf5 has {key} of shape .* takes vectors'):
        run(tmp_path / 'runs', str(path), BC, eval_interval=0)
    assert not (tmp_path / 'runs').exists()


def test_old_files_get_the_time_limit_of_the_environment(tmp_path):
    dataset, path = str(tmp_path / 'new.hdf5'), tmp_path / 'old.hdf5'
    collect('Pendulum-v1', dataset, policy='random', num_transitions=450)
    arrays = d4rl.read(dataset)
    assert arrays['timeouts'].sum() == 3
    with h5py.File(path, 'w') as file:
        for key in ('observations', 'actions', 'rewards', 'terminals'):
            file[key] = arrays[key]
    settings = loop.Settings(env_name='Pendulum-v1', dataset=str(path))
    given = loop.transitions.load(dataclasses.replace(settings, dataset=dataset))
    np.testing.assert_array_equal(loop.transitions.load(settings)['rewards'], given['rewards'])


def test_filtering_needs_the_ends_of_episodes(tmp_path, dataset, monkeypatch):
    load = loop.transitions.load_dataset

    def without(*args, **options):
        arrays, _ = load(*args, **options)
        return {key: array for key, array in arrays.items() if key != 'dones'}, None

    monkeypatch.setattr(loop.transitions, 'load_dataset', without)
    with pytest.raises(DatasetError, match=r"data\.hdf5: there is neither 'terminals' nor"):
        run(tmp_path, dataset, take_top=50.0)


def test_filtering_needs_an_end_that_the_file_names(tmp_path):
    rows = np.arange(12, dtype=np.float32)[:, None]
    arrays = {'observations': rows, 'actions': rows / 12, 'rewards': rows[:, 0]}
    arrays |= {'terminals': np.zeros(12, bool), 'timeouts': np.zeros(12, bool)}
    path = tmp_path / 'whole.hdf5'
    d4rl.save(path, arrays)
    settings = loop.Settings(dataset=str(path))
    assert len(loop.transitions.load(settings)['rewards']) == 11
    for flags in ({'take_top': 50.0}, {'filter_threshold': 0.0}):
        with pytest.raises(DatasetError, match=r'whole\.hdf5: no episode ends in it'):
            loop.transitions.load(dataclasses.replace(settings, **flags))
    for key in ('terminals', 'timeouts'):
        d4rl.save(path, {**arrays, key: np.arange(12) == 11})
        kept = loop.transitions.load(dataclasses.replace(settings, take_top=50.0))
        assert len(kept['rewards']) == 11


def test_locomotion_online_warns_of_two_scales(dataset, capsys):
    settings = loop.Settings(env_name='Hopper-v5', online_max_steps=1)
    loop.offline_checks.warn_of_scales(settings)
    assert '--nonormalize_returns trains on one scale' in capsys.readouterr().err
    loop.offline_checks.warn_of_scales(dataclasses.replace(settings, normalize_returns=False))
    assert not capsys.readouterr().err


def test_the_other_offline_loop_says_where_these_agents_belong(tmp_path):
    with pytest.raises(RunError, match=r'dataset with experiments\.offline_to_online'):
        offline_launcher.main(['offline', f'--save_dir={tmp_path}', f'--agent={IQL[0]}'])


# --- Interruptions ---------------------------------------------------------------------------


ONLINE = {'online_max_steps': 14, 'inference_variants': 'N=2,4'}


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp('uninterrupted')
    with jit.use_mode('off'):
        run(folder, dataset, **ONLINE)
    return contents(folder / 'run')


@pytest.mark.parametrize(
    ('method', 'count'),
    [('step', 1), ('step', 3), ('step', 11), ('mixed_batch', 6), ('evaluate', 2), ('state', 3)],
)
def test_resuming_is_bit_for_bit(tmp_path, dataset, uninterrupted, method, count):
    with crash_at(loop.World, method, count):
        run(tmp_path, dataset, **ONLINE)
    run(tmp_path, dataset, resume=True, **ONLINE)
    assert contents(tmp_path / 'run') == uninterrupted
    assert {'train.csv', 'online_train.csv', 'online_eval.csv'} <= set(uninterrupted)


def test_a_killed_process(tmp_path, dataset, uninterrupted):
    flags = {**FLAGS, **ONLINE, 'save_dir': tmp_path, 'dataset': dataset, 'agent': IDQL[0]}
    flags |= {'agent.critic_hidden_dims': 8, 'agent.actor_hidden_dims': 8}
    flags |= {'agent.N': 3, 'agent.T': 2}
    command = [sys.executable, '-m', 'experiments.offline_to_online']
    command += [f'--{name}={value}' for name, value in flags.items()]
    kill_after_a_checkpoint(start(command), tmp_path / 'run')
    assert start([*command, '--resume']).wait() == 0
    assert contents(tmp_path / 'run') == uninterrupted


def test_an_offline_run_goes_on_online(tmp_path, dataset, uninterrupted):
    flags = {**ONLINE, 'online_max_steps': 0}
    run(tmp_path, dataset, **{**flags, 'max_steps': 15})
    run(tmp_path, dataset, resume=True, **flags)
    run(tmp_path, dataset, resume=True, **{**flags, 'online_max_steps': 9})
    with pytest.raises(RunError, match=r'max_steps was 20 and can no longer become 25'):
        run(tmp_path, dataset, resume=True, **{**ONLINE, 'max_steps': 25})
    run(tmp_path, dataset, resume=True, **ONLINE)
    ours = contents(tmp_path / 'run')
    assert ours['online_train.csv'] == uninterrupted['online_train.csv']
    like = new_agent()
    expected = run(tmp_path / 'other', dataset, **ONLINE)
    agents = [saved(folder, like) for folder in (tmp_path, tmp_path / 'other')]
    assert all(trees.leaves(trees.map(torch.equal, *agents)))
    assert json.loads(ours['summary.json']) == expected


class AntMazeRewards(gymnasium.Wrapper):
    """Zeros and ones, as D4RL's mazes pay."""

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(action[0] > 0), terminated, truncated, info


def test_exported_rewards_are_the_environments(tmp_path, dataset, monkeypatch):
    def entry_point(**options):
        return AntMazeRewards(gymnasium.make('InvertedPendulum-v5', **options))

    spec = EnvSpec('ToyAntMaze-v0', entry_point=entry_point)
    monkeypatch.setitem(gymnasium.registry, 'ToyAntMaze-v0', spec)
    run(tmp_path, dataset, env_name='ToyAntMaze-v0', max_steps=2, online_max_steps=30)
    export_replay(tmp_path / 'run', tmp_path / 'replay.hdf5')
    stored = load_run(tmp_path / 'run').state[0]['buffer']
    assert set(stored['arrays/rewards'][: stored['size']]) == {-1, 0}
    assert set(d4rl.read(tmp_path / 'replay.hdf5')['rewards']) == {0, 1}
