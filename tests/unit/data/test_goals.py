import numpy as np
import pytest

from purerl.agents.infom import crl_infonce, td_infonce
from purerl.core import random
from purerl.data.check import DatasetError
from purerl.data.dataset import Dataset
from purerl.data.goals import GCDataset, require_goals

ENDS = (9, 24, 39)


def dataset(ends=ENDS, n=40, **settings):
    terminals = np.zeros(n, np.float32)
    terminals[list(ends)] = 1
    steps = np.arange(n, dtype=np.float32)
    arrays = {
        'observations': steps[:, None],
        'next_observations': steps[:, None] + 1,
        'actions': np.zeros((n, 1), np.float32),
        'rewards': np.full(n, 5, np.float32),
        'masks': 1 - terminals,
        'terminals': terminals,
    }
    return Dataset(arrays, name='walk.npz', **settings)


def config(**changes):
    goals = {
        'p_curgoal': 0.0,
        'p_trajgoal': 1.0,
        'p_randomgoal': 0.0,
        'geom_sample': True,
        'geom_start_offset': 1,
    }
    both = {f'{kind}_{key}': value for kind in ('value', 'actor') for key, value in goals.items()}
    shared = {
        'discount': 0.9,
        'gc_negative': True,
        'relabel_reward': False,
        'p_aug': None,
        'frame_stack': None,
    }
    return {**both, **shared, **changes}


def goal_of(kind, n=4000, **changes):
    sampler = GCDataset(dataset(), config(**changes))
    idxs = np.random.RandomState(1).randint(40, size=n)
    return idxs, sampler.sample_goals(idxs, kind, np.random.RandomState(2))


def end_of(idxs):
    return np.array(ENDS)[np.searchsorted(ENDS, idxs)]


@pytest.mark.parametrize('geometric', [True, False])
def test_trajectory_goals_lie_ahead_in_the_same_episode(geometric):
    idxs, goals = goal_of('value', value_geom_sample=geometric)
    assert (goals <= end_of(idxs)).all()
    assert (goals > idxs)[idxs < end_of(idxs)].all()
    np.testing.assert_array_equal(goals[idxs == end_of(idxs)], idxs[idxs == end_of(idxs)])


def test_geometric_distances():
    sampler = GCDataset(dataset(ends=(39,)), config(discount=0.5))
    goals = sampler.sample_goals(np.zeros(20000, int), 'value', np.random.RandomState(0))
    shares = np.bincount(goals, minlength=5)[:5] / 20000
    np.testing.assert_allclose(shares, [0, 0.5, 0.25, 0.125, 0.0625], atol=0.01)


def test_uniform_distances():
    sampler = GCDataset(dataset(ends=(39,)), config(actor_geom_sample=False))
    goals = sampler.sample_goals(np.full(20000, 29), 'actor', np.random.RandomState(0))
    shares = np.bincount(goals, minlength=40)[31:39] / 20000
    np.testing.assert_allclose(shares, 1 / 9, atol=0.01)


def test_the_three_kinds_of_goals_mix():
    changes = {'value_p_curgoal': 0.2, 'value_p_trajgoal': 0.5, 'value_p_randomgoal': 0.3}
    idxs, goals = goal_of('value', n=40000, **changes)
    elsewhere = (goals < idxs) | (goals > end_of(idxs))
    inside = (end_of(idxs) - idxs + 1) / 40  # what random goals hit by chance
    assert abs(elsewhere.mean() - 0.3 * (1 - inside.mean())) < 0.01
    far_from_end = idxs < end_of(idxs)
    assert abs((goals == idxs)[far_from_end].mean() - (0.2 + 0.3 / 40)) < 0.01


def test_the_offset_does_not_move_geometric_goals():
    np.testing.assert_array_equal(
        goal_of('value')[1], goal_of('value', value_geom_start_offset=5)[1]
    )


def test_uniform_goals_with_an_offset_above_one_are_crossed():
    idxs, goals = goal_of('value', n=6, value_geom_sample=False, value_geom_start_offset=2)
    assert goals.shape == (6, 6)
    assert (goals <= end_of(idxs)[:, None]).all()
    _, plain = goal_of('value', n=6, value_geom_sample=False)
    np.testing.assert_array_equal(np.diagonal(goals), plain)


@pytest.mark.parametrize(('negative', 'at_goal', 'elsewhere'), [(True, 0, -1), (False, 1, 0)])
def test_relabelled_rewards(negative, at_goal, elsewhere):
    sampler = GCDataset(dataset(), config(gc_negative=negative))
    batch = sampler.sample(4, np.random.RandomState(0), np.array([9, 5, 39, 0]))
    np.testing.assert_array_equal(
        batch['relabeled_rewards'], [at_goal, elsewhere, at_goal, elsewhere]
    )
    np.testing.assert_array_equal(batch['relabeled_masks'], [0, 1, 0, 1])
    np.testing.assert_array_equal(batch['rewards'], [5, 5, 5, 5])
    assert batch['relabeled_rewards'].dtype == np.float32


def test_relabelling_replaces_rewards_and_masks():
    batch = GCDataset(dataset(), config(relabel_reward=True)).sample(8, random.key(0))
    np.testing.assert_array_equal(batch['rewards'], batch['relabeled_rewards'])
    np.testing.assert_array_equal(batch['masks'], batch['relabeled_masks'])


def test_goals_are_normalised_observations():
    data = dataset(obs_norm_type='normal')
    sampler = GCDataset(data, config())
    sampler.normalize_observations()
    batch = sampler.sample(1, np.random.RandomState(0), np.array([39]))
    np.testing.assert_array_equal(batch['value_goals'], data['observations'][[39]])


def test_goals_are_stacked_once():
    sampler = GCDataset(dataset(frame_stack=3), config(frame_stack=3))
    batch = sampler.sample(2, np.random.RandomState(0), np.array([9, 39]))
    np.testing.assert_array_equal(batch['value_goals'], [[7, 8, 9], [37, 38, 39]])
    assert batch['observations'].shape == batch['actor_goals'].shape == (2, 3)


def test_goal_images_are_augmented():
    frames = np.random.RandomState(0).randint(0, 256, (40, 6, 6, 3)).astype(np.uint8)
    base = dataset()
    images = {**base.arrays, 'observations': frames, 'next_observations': frames}
    idxs = np.array(ENDS)  # the goals are these states themselves
    sampler = GCDataset(Dataset(images), config(p_aug=1.0))
    batch = sampler.sample(3, np.random.RandomState(0), idxs)
    assert (batch['value_goals'] != frames[idxs]).any()
    np.testing.assert_array_equal(batch['value_goals'], batch['actor_goals'])
    np.testing.assert_array_equal(batch['observations'], frames[idxs])


def test_an_episode_that_is_cut_off_ends_with_the_data():
    sampler = GCDataset(dataset(ends=(9, 24)), config(value_geom_sample=False))
    goals = sampler.sample_goals(np.full(500, 30), 'value', np.random.RandomState(0))
    assert set(goals) == set(range(31, 40))


def test_a_dataset_without_episodes_is_refused():
    with pytest.raises(DatasetError, match=r'walk.npz: no episode ends.*terminals'):
        GCDataset(dataset(ends=()), config())


def test_a_dataset_that_says_nothing_about_episodes_is_refused():
    arrays = {key: array for key, array in dataset().arrays.items() if key != 'terminals'}
    with pytest.raises(DatasetError, match=r"walk.npz: there is neither 'terminals' nor 'dones'"):
        GCDataset(Dataset(arrays, name='walk.npz'), config())


def test_probabilities_must_sum_to_one():
    with pytest.raises(DatasetError, match=r'actor_p_curgoal .* must be 1, not 0.7'):
        GCDataset(dataset(), config(actor_p_trajgoal=0.7))


def test_the_configs_frame_stack_must_be_the_datasets():
    with pytest.raises(DatasetError, match='frame_stack is 3 in the config, but None'):
        GCDataset(dataset(), config(frame_stack=3))


def test_a_config_without_what_goals_are_drawn_by_is_refused():
    for missing in (['discount'], ['actor_geom_sample', 'gc_negative']):
        entries = {name: value for name, value in config().items() if name not in missing}
        with pytest.raises(DatasetError, match=f'lacks {", ".join(missing)}, by which goals'):
            GCDataset(dataset(), entries)


def test_geometric_distances_need_a_discount_below_one():
    with pytest.raises(DatasetError, match=r'discount of 1\.0 makes endless'):
        GCDataset(dataset(), config(discount=1.0))
    uniform = {'value_geom_sample': False, 'actor_geom_sample': False}
    GCDataset(dataset(), config(discount=1.0, **uniform)).sample(4, np.random.RandomState(0))


# --- Agents' own configs --------------------------------------------------------------------------

agents_configs = pytest.mark.parametrize('module', [crl_infonce, td_infonce])


@agents_configs
def test_agents_configs_draw_later_states(module):
    sampler = GCDataset(dataset(), module.get_config())
    idxs = np.random.RandomState(1).randint(40, size=500)
    batch = sampler.sample(500, np.random.RandomState(0), idxs)
    for kind in ('value', 'actor'):
        require_goals(batch, f'{kind}_goals')
        goals = batch[f'{kind}_goals'][:, 0]
        assert (goals >= np.minimum(idxs + 1, end_of(idxs))).all()
        assert (goals <= end_of(idxs)).all()


@agents_configs
@pytest.mark.parametrize(
    'overrides',
    [
        {'value_p_curgoal': 0.5, 'value_p_trajgoal': 0.5},
        {'value_p_randomgoal': 0.5, 'value_p_trajgoal': 0.5},
        {'actor_p_curgoal': 0.5, 'actor_p_trajgoal': 0.5},
        {'actor_p_randomgoal': 0.5, 'actor_p_trajgoal': 0.5},
        {'value_geom_sample': False},
        {'actor_geom_sample': True},
        {'discount': 0.5},
        {'gc_negative': False},
        {'relabel_reward': True},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_every_entry_of_agents_configs_about_goals_counts(module, overrides):
    batches = []
    for changes in ({}, overrides):
        entries = module.get_config()
        assert all(name in entries for name in changes)
        entries.update(changes)
        sampler = GCDataset(dataset(), entries)
        batches.append(sampler.sample(200, np.random.RandomState(0)))
    plain, changed = batches
    assert any((plain[key] != changed[key]).any() for key in plain)
    kind = next(iter(overrides)).partition('_')[0]
    if kind in ('value', 'actor'):
        assert (plain[f'{kind}_goals'] != changed[f'{kind}_goals']).any()


# --- What agents ask of batches -------------------------------------------------------------------


def test_batches_must_hold_a_goal_for_each_observation():
    batch = {'observations': np.zeros((4, 2)), 'value_goals': np.zeros((4, 4, 2))}
    with pytest.raises(ValueError, match=r'lacks actor_goals .*GCDataset'):
        require_goals(batch, 'actor_goals')
    expected = r'value_goals have shape \(4, 4, 2\), .*value_geom_start_offset above 1 .*to 1'
    with pytest.raises(ValueError, match=expected):
        require_goals(batch, 'value_goals')
    require_goals({**batch, 'value_goals': np.ones((4, 2))}, 'value_goals')
