"""Training in two processes, against training in one.

This file is also the program of the two: it makes all runs that the tests look at.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from purerl.core import checkpoint, parallel, trees
from purerl.envs.make import make
from purerl.train import offline, online
from purerl.train.collect import collect
from purerl.train.config import RunError, load_agent
from purerl.train.load_run import load_run
from purerl.train.plotting import read_csv
from purerl.train.run import Run, read_json

WIDTHS = {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,)}
SMALL = {**WIDTHS, 'batch_size': 8, 'actor_freq': 2}
IQL = ('purerl/agents/infom/iql.py', SMALL)
REBRAC = ('purerl/agents/infom/rebrac.py', SMALL)
DINO = ('purerl/agents/infom/dino_rebrac.py', {**SMALL, 'encoder': 'mlp'})
SAC = ('purerl/agents/jaxrl5/sac.py', {'hidden_dims': (8,)})
STEPS = 9


def settings(folder, dataset, name, **changes):
    values = {
        'env_name': 'Pendulum-v1',
        'pretraining_dataset': str(dataset),
        'seed': 3,
        'save_dir': str(folder),
        'run_name': name,
        'jit': 'trace',
        'tqdm': False,
        'tensorboard': False,
        'pretraining_steps': STEPS,
        'finetuning_steps': STEPS,
        'log_interval': 4,
        'eval_interval': 12,
        'eval_episodes': 1,
        'save_interval': 6,
    }
    return offline.Settings(**{**values, **changes})


@contextlib.contextmanager
def short_episodes():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(offline, 'make', functools.partial(make, max_episode_steps=10))
        yield patched


# --- In the two processes ------------------------------------------------------------------------


def outcome(agent, settings):
    """Train; return how it ends."""
    try:
        return offline.train(load_agent(*agent), settings)['step']
    except SystemExit as end:
        return f'exit {end.code}'
    except RunError as error:
        return str(error)


def at_call(method, count, act):
    """Have something done at a method's `count`-th call."""
    calls = itertools.count(1)

    def acting(self, *args, **kwargs):
        if next(calls) == count:
            act()
        return method(self, *args, **kwargs)

    return acting


def stop_in_the_second(agent, settings):
    with pytest.MonkeyPatch.context() as patched:
        if parallel.rank():
            stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
            patched.setattr(offline.World, 'batch', at_call(offline.World.batch, 9, stop))
        return outcome(agent, settings)


def diverge(agent, settings):
    """Let the second process's networks drift away."""
    update = offline._Calls.update

    def drifting(self, *args):
        agent, info = update(self, *args)
        params = trees.map(lambda p: p + parallel.rank(), agent.network.params)
        return agent.replace(network=agent.network.replace(params=params)), info

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(offline._Calls, 'update', drifting)
        return outcome(agent, settings)


def fill_the_disk(agent, settings):
    def save_file(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, 'save_file', save_file)
        return outcome(agent, settings)


def keep_agents(folder):
    """Have each process keep its agent whenever one is saved."""
    save = Run.save

    def keeping(self, step, tree, state):
        path = folder / 'agents' / f'{self.folder.name}_{parallel.rank()}.pt'
        torch.save(trees.leaves(tree), path)
        save(self, step, tree, state)

    return keeping


def main(folder, dataset):
    torch.set_num_threads(1)
    folder = Path(folder)
    with parallel.processes('cpu'), short_episodes() as patched:
        rank = parallel.rank()
        patched.setattr(Run, 'save', keep_agents(folder))
        of = functools.partial(settings, folder, dataset)
        # A folder for each process: that of the second one has to stay away.
        own = functools.partial(settings, folder / f'rank_{rank}', dataset)
        outcomes = {
            'iql': outcome(IQL, own('iql')),
            'iql_seeds': outcome(IQL, own('iql_seeds', num_seeds=2)),
            'rebrac': outcome(REBRAC, of('rebrac')),
            'stopped': stop_in_the_second(REBRAC, of('stopped')),
            'resumed': outcome(REBRAC, of('stopped', resume=True)),
            'dino': outcome(DINO, of('dino', jit='off')),
            'again': outcome(REBRAC, of('rebrac')),
            'diverged': diverge(IQL, of('diverged')),
            'full': fill_the_disk(IQL, of('full')),
        }
    Path(folder, f'outcomes_{rank}.json').write_text(json.dumps(outcomes))


# --- The tests -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'pendulum.hdf5'
    collect('Pendulum-v1', path, policy='random', num_transitions=300)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory, dataset):
    import two_processes

    folder = tmp_path_factory.mktemp('runs')
    (folder / 'agents').mkdir()
    two_processes.run(__file__, folder, dataset)
    return folder


@pytest.fixture(scope='module')
def outcomes(folder):
    return [read_json(folder / f'outcomes_{rank}.json') for rank in range(2)]


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_two_processes_learn_what_one_does(tmp_path, folder, dataset, outcomes, num_seeds):
    name = 'iql' if num_seeds == 1 else 'iql_seeds'
    assert [result[name] for result in outcomes] == [2 * STEPS, 2 * STEPS]
    with short_episodes():
        offline.train(load_agent(*IQL), settings(tmp_path, dataset, name, num_seeds=num_seeds))
    found, expected = folder / 'rank_0' / name, tmp_path / name
    agents = [trees.leaves(load_run(path).agents) for path in (found, expected)]
    for leaf, expected_leaf in zip(*agents, strict=True):
        tolerance = 1e-5 if leaf.is_floating_point() else 0
        torch.testing.assert_close(leaf, expected_leaf, rtol=tolerance, atol=tolerance)
    tables = sorted(path.relative_to(expected) for path in expected.rglob('*_train.csv'))
    assert len(tables) == 2 * num_seeds
    for path in tables:
        table, expected_table = read_csv(found / path), read_csv(expected / path)
        assert list(table) == list(expected_table)
        for key, column in expected_table.items():
            if not key.endswith(('_max', '_min')):  # of a process's rows
                np.testing.assert_allclose(table[key], column, rtol=1e-4, atol=1e-5, err_msg=key)
    for path in expected.rglob('*_eval.csv'):
        lengths = [read_csv(base / path.relative_to(expected)) for base in (found, expected)]
        assert list(lengths[0]['step']) == list(lengths[1]['step']) == [10, 12]


def test_the_second_process_writes_nothing(folder, outcomes):
    assert (folder / 'rank_0/iql/summary.json').exists()
    assert not (folder / 'rank_1').exists()


@pytest.mark.parametrize('name', ['iql', 'iql_seeds', 'rebrac', 'resumed', 'dino'])
def test_both_end_with_the_same_agent(folder, outcomes, name):
    assert [result[name] for result in outcomes] == [2 * STEPS, 2 * STEPS]
    run = 'stopped' if name == 'resumed' else name
    first, second = (torch.load(folder / 'agents' / f'{run}_{rank}.pt') for rank in range(2))
    assert len(first) == len(second)
    assert all(map(torch.equal, first, second))


def test_a_signal_to_one_stops_both_and_they_resume_to_the_same_bits(folder, outcomes):
    from interruptions import contents

    for result in outcomes:
        assert result['stopped'] == f'exit {128 + signal.SIGTERM}'
        assert result['resumed'] == 2 * STEPS
    assert contents(folder / 'stopped') == contents(folder / 'rebrac')


def test_errors_of_the_first_process_end_both(outcomes):
    assert 'holds an earlier run' in outcomes[0]['again']
    assert 'No space left' in outcomes[0]['full']
    assert outcomes[1]['again'] == outcomes[1]['full'] == 'exit 1'


def test_processes_that_drift_apart_are_noticed(folder, outcomes):
    for result in outcomes:
        assert 'no longer hold the same agent after step 6: network/params/' in result['diverged']
    assert not list(folder.glob('diverged/checkpoints/*'))


def test_another_number_of_processes_cannot_resume(folder, dataset, outcomes):
    resumed = settings(folder, dataset, 'rebrac', resume=True)
    with pytest.raises(RunError, match='was started in 2 processes, not 1'):
        offline.train(load_agent(*REBRAC), resumed)


@pytest.fixture
def three_launched(monkeypatch):
    for name, value in {'RANK': '1', 'WORLD_SIZE': '3', 'LOCAL_RANK': '1'}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, 'batch_size=8 cannot be divided among 3 processes'),
        ({'device': 'cuda:1'}, 'cannot share device=cuda:1'),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path, dataset, three_launched, changes, message):
    agent = load_agent(IQL[0], {**SMALL, 'batch_size': 9 if changes else 8})
    with pytest.raises(RunError, match=message):
        offline.train(agent, settings(tmp_path, dataset, 'run', **changes))
    assert not list(tmp_path.iterdir())


def test_other_loops_refuse_several_processes(tmp_path, three_launched):
    with pytest.raises(RunError, match=r'3 processes, but experiments\.online trains in one'):
        online.train(load_agent(*SAC), online.Settings(save_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_the_launcher_under_torchrun(tmp_path, dataset):
    """It prints once, and a signal to torchrun ends it with a checkpoint."""
    import two_processes

    endless = settings(tmp_path, dataset, 'run', finetuning_steps=10**6, eval_interval=0)
    flags = dataclasses.asdict(endless).items()
    flags = [f'--{name}={value}' for name, value in flags if value is not None]
    fields = [f'--agent.{name}={value}' for name, value in SMALL.items()]
    command = ['experiments.offline', f'--agent={REBRAC[0]}', *fields, *flags]
    deadline = time.monotonic() + 120
    with two_processes.started('-m', *command) as process:
        while not list(tmp_path.glob('run/checkpoints/*.json')) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert output.count('run folder:') == output.count('stopped after step') == 1, output
    step = int(output.partition('stopped after step ')[2].partition('.')[0])
    assert list(tmp_path.glob(f'run/checkpoints/*{step:010d}.json'))


if __name__ == '__main__':
    main(*sys.argv[1:])
