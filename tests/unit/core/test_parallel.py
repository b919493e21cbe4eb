"""Two processes that share each update, against what one computes from all rows.

This file is also their program: each saves what it found in a folder.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from purerl.core import jit, nn, optim, parallel, random, trees
from purerl.core.state import TrainState

X = random.normal(random.key(0), (8, 3))
Y = random.normal(random.key(1), (8, 1))


def tree_of(rank):
    """A tree with leaves of several dtypes and strides."""
    return {
        'matrix': torch.arange(6.0).reshape(2, 3).T + 10 * rank,
        'more': (torch.tensor(1.0 + rank), torch.tensor(7 + rank), None),
        'half': torch.full((2,), 1.0 + rank, dtype=torch.float16),
    }


def members_of(rank):
    """Three members, along the second axis of the first leaf."""
    return torch.arange(6.0).reshape(2, 3) * (1 + rank), torch.arange(3.0) + rank


def doubled_means(tree):
    return trees.map(lambda leaf: 2 * leaf, parallel.pmean(tree))


def mapped_means(x, y):
    return jit.vmap(lambda x, y: doubled_means((x, y)), in_dims=(1, 0))(x, y)


def make_state():
    net = nn.ModuleDict({'net': nn.Dense(1), 'target_net': nn.Dense(1)})
    params = nn.init(net, random.key(2), net=X, target_net=X)
    return TrainState.create(net, params, optim.sgd(0.1))


def loss_of(state, x, y):
    def loss_fn(params):
        loss = (state.select('net')(x, params=params) - y).square().mean()
        return loss, {'loss': loss}

    return loss_fn


def apply_loss_fn(state, x, y):
    state, info = state.apply_loss_fn(loss_of(state, x, y), frozen=('modules_target_net',))
    return state.params, {key: info[key] for key in ('grad/max', 'grad/min', 'grad/norm')}


def apply_gradients(state, x, y):
    grads, _ = torch.func.grad(loss_of(state, x, y), has_aux=True)(state.params)
    return state.apply_gradients(grads).params


STEPS = {'apply_loss_fn': apply_loss_fn, 'apply_gradients': apply_gradients}


@trees.dataclass
class Agent:
    rng: torch.Tensor
    noise: torch.Tensor


def update(agent, batch):
    """Draw, and average nothing."""
    rng, key = random.split(agent.rng)
    return Agent(rng, random.normal(key)), {'rows': batch}


# --- In the two processes ------------------------------------------------------------------------


def count_messages(call):
    original, calls = dist.all_reduce, []

    def all_reduce(*args, **kwargs):
        calls.append(None)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dist, 'all_reduce', all_reduce)
        call()
    return len(calls)


def outcome_of_a_failure():
    def fail():
        raise ValueError('in the first process')

    try:
        parallel.first(fail)
    except (ValueError, SystemExit) as error:
        return repr(error)
    return 'none'


def find(rank):
    agent = Agent(random.key(3), torch.tensor(0.0))
    stepped, info = parallel.step(update, agent, parallel.share(X))
    state, (x, y) = make_state(), parallel.share((X, Y))
    nan = torch.tensor([float('nan'), 1.0])
    return {
        'means': {mode: jit.jit(doubled_means, mode=mode)(tree_of(rank)) for mode in jit.MODES},
        'mapped': {mode: jit.jit(mapped_means, mode=mode)(*members_of(rank)) for mode in jit.MODES},
        'messages': {
            name: count_messages(lambda call=call: call(state, x, y))
            for name, call in STEPS.items()
        },
        'steps': {
            (name, mode): jit.jit(call, mode=mode)(state, x, y)
            for name, call in STEPS.items()
            for mode in ('off', 'trace')
        },
        'rows': info['rows'],
        'rng': stepped.rng,
        'noise': stepped.noise,
        'launched': parallel.launched(),
        'first': parallel.first(lambda: f'from {rank}'),
        'failure': outcome_of_a_failure(),
        'largest': parallel.largest(15 * rank),
        'same': parallel.difference({'x': nan, 'y': torch.tensor(True)}),
        'other': parallel.difference({'x': nan, 'y': [torch.zeros(2), torch.tensor(rank)]}),
    }


def main(folder):
    torch.set_num_threads(1)
    with parallel.processes('cpu'):
        rank = parallel.rank()
        found = find(rank)
    found['size afterwards'] = parallel.size()
    torch.save(found, Path(folder, f'{rank}.pt'))


# --- The tests -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    import two_processes

    folder = tmp_path_factory.mktemp('results')
    two_processes.run(__file__, folder)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('mode', jit.MODES)
def test_means_keep_shapes_and_dtypes(results, mode):
    first, second = tree_of(0), tree_of(1)
    for rank, result in enumerate(results):
        found = result['means'][mode]
        assert torch.equal(found['matrix'], first['matrix'] + second['matrix'])
        assert found['more'][0].item() == 3.0
        assert found['more'][1].item() == 2 * (7 + rank)  # an integer is each process's own
        assert found['more'][2] is None
        assert found['half'].dtype == torch.float16
        assert found['half'].tolist() == [3.0, 3.0]


@pytest.mark.parametrize('mode', jit.MODES)
def test_means_of_mapped_trees(results, mode):
    (x, y), (other_x, other_y) = members_of(0), members_of(1)
    for result in results:
        found_x, found_y = result['mapped'][mode]
        assert torch.equal(found_x, (x + other_x).T)
        assert torch.equal(found_y, y + other_y)


@pytest.mark.parametrize('mode', ['off', 'trace'])
@pytest.mark.parametrize('name', STEPS)
def test_steps_are_those_of_the_whole_batch(results, name, mode):
    expected = STEPS[name](make_state(), X, Y)
    for result in results:
        torch.testing.assert_close(result['steps'][name, mode], expected)
    found = [trees.leaves(result['steps'][name, mode]) for result in results]
    assert all(map(torch.equal, *found))


def test_a_step_sends_one_message(results):
    for result in results:
        assert result['messages'] == dict.fromkeys(STEPS, 1)


def test_each_process_has_its_rows_and_noise_and_the_key_stays_in_step(results):
    expected, _ = update(Agent(random.key(3), torch.tensor(0.0)), X)
    assert torch.equal(results[0]['rows'], X[0::2])
    assert torch.equal(results[1]['rows'], X[1::2])
    for result in results:
        assert torch.equal(result['rng'], expected.rng)
    assert results[0]['noise'] == expected.noise
    assert results[1]['noise'] != expected.noise


def test_the_first_process_acts_for_all(results):
    assert [result['first'] for result in results] == ['from 0', 'from 0']
    failures = [result['failure'] for result in results]
    assert failures == ["ValueError('in the first process')", 'SystemExit(1)']


def test_what_the_processes_agree_on(results):
    for result in results:
        assert result['largest'] == 15
        assert result['same'] is None
        assert result['other'] == 'y/1'
        assert (result['launched'], result['size afterwards']) == (2, 1)


def test_no_process_draws_what_the_first_one_draws(monkeypatch):
    agent = Agent(random.key(3), torch.tensor(0.0))
    taken = {tuple(key) for key in (agent.rng.tolist(), *random.split(agent.rng, 64).tolist())}
    for rank in range(1, 9):
        monkeypatch.setattr(parallel, 'rank', lambda rank=rank: rank)
        key = tuple(parallel.apart(agent).rng.tolist())
        assert key not in taken
        taken.add(key)


def test_rows_that_cannot_be_divided(monkeypatch):
    monkeypatch.setattr(parallel, 'size', lambda: 3)
    monkeypatch.setattr(parallel, 'rank', lambda: 1)
    with pytest.raises(ValueError, match='8 rows cannot be divided among 3'):
        parallel.share({'x': X})


def test_one_process_adds_nothing():
    tree = tree_of(0)
    assert parallel.pmean(tree) is tree
    assert parallel.share(tree) is tree
    agent = Agent(random.key(3), torch.tensor(0.0))
    assert parallel.apart(agent) is agent
    assert parallel.first(lambda: tree) is tree
    assert (parallel.largest(3), parallel.difference(tree)) == (3, None)


@pytest.mark.parametrize(
    ('environment', 'num', 'device'),
    [
        ({}, 1, 'cuda'),
        ({'RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_RANK': '0'}, 1, 'cuda'),
        ({'RANK': '3', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1'}, 4, 'cuda:1'),
    ],
)
def test_what_torchrun_has_started(monkeypatch, environment, num, device):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parallel.launched() == num
    assert parallel.device_of('cuda') == device
    assert parallel.device_of('cpu') == 'cpu'


if __name__ == '__main__':
    main(sys.argv[1])
