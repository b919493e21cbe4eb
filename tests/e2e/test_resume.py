"""A run that is interrupted at any moment ends as the uninterrupted one does, bit for bit."""

import dataclasses
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interruptions import contents, crash_at, kill_after_a_checkpoint, start

from purerl.core import jit
from purerl.train import loop, offline, online
from purerl.train.collect import collect
from purerl.train.config import RunError, load_agent

SAC = ('purerl/agents/jaxrl5/sac.py', {'hidden_dims': (8,)})
REBRAC = (
    'purerl/agents/infom/rebrac.py',
    {'actor_hidden_dims': (8,), 'value_hidden_dims': (8,), 'batch_size': 8, 'actor_freq': 2},
)


@pytest.fixture(autouse=True)
def quick():
    with jit.use_mode('off'):
        yield


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'pendulum.hdf5'
    collect('Pendulum-v1', path, policy='random', num_transitions=300)
    return str(path)


def online_settings(folder, **changes):
    values = {
        'env_name': 'Pendulum-v1',
        'seed': 3,
        'save_dir': str(folder),
        'run_name': 'run',
        'jit': 'off',
        'tqdm': False,
        'tensorboard': False,
        'max_steps': 60,
        'start_training': 30,
        'batch_size': 8,
        'log_interval': 7,
        'eval_interval': 25,
        'eval_episodes': 1,
        'save_interval': 10,
    }
    return online.Settings(**{**values, **changes})


def offline_settings(folder, dataset, **changes):
    values = {
        'env_name': 'Pendulum-v1',
        'pretraining_dataset': dataset,
        'seed': 3,
        'save_dir': str(folder),
        'run_name': 'run',
        'jit': 'off',
        'tqdm': False,
        'tensorboard': False,
        'pretraining_steps': 15,
        'finetuning_steps': 15,
        'log_interval': 4,
        'eval_interval': 10,
        'eval_episodes': 1,
        'save_interval': 6,
    }
    return offline.Settings(**{**values, **changes})


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('uninterrupted')
    online.train(load_agent(*SAC), online_settings(folder))
    return contents(folder / 'run')


@pytest.mark.parametrize(
    ('method', 'count'), [('step', 4), ('step', 12), ('batch', 1), ('evaluate', 2), ('state', 4)]
)
def test_online(tmp_path, uninterrupted, method, count):
    settings = online_settings(tmp_path)
    with crash_at(online.World, method, count):
        online.train(load_agent(*SAC), settings)
    online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted
    assert {'train.csv', 'eval.csv', 'checkpoints/checkpoint_0000000060.json'} <= set(uninterrupted)


@pytest.fixture(scope='module')
def uninterrupted_offline(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp('uninterrupted_offline')
    offline.train(load_agent(*REBRAC), offline_settings(folder, dataset))
    return contents(folder / 'run')


@pytest.mark.parametrize('count', [5, 20, 29])
def test_offline(tmp_path, dataset, uninterrupted_offline, count):
    settings = offline_settings(tmp_path, dataset)
    with crash_at(offline.World, 'batch', count):
        offline.train(load_agent(*REBRAC), settings)
    offline.train(load_agent(*REBRAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted_offline


def test_global_random_numbers_are_neither_read_nor_written(tmp_path, dataset, uninterrupted):
    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(len(uninterrupted))
    before = states()
    online.train(load_agent(*SAC), online_settings(tmp_path))
    assert contents(tmp_path / 'run') == uninterrupted
    offline.train(load_agent(*REBRAC), offline_settings(tmp_path, dataset, run_name='offline'))
    assert states() == before


@pytest.mark.parametrize('finetuning_steps', [0, 7])
def test_raised_finetuning_steps(tmp_path, dataset, uninterrupted_offline, finetuning_steps):
    settings = offline_settings(tmp_path, dataset)
    offline.train(
        load_agent(*REBRAC), dataclasses.replace(settings, finetuning_steps=finetuning_steps)
    )
    offline.train(load_agent(*REBRAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted_offline


def test_several_seeds(tmp_path):
    settings = online_settings(tmp_path, num_seeds=2)
    whole = dataclasses.replace(settings, run_name='whole')
    online.train(load_agent(*SAC), whole)
    with crash_at(online.World, 'step', 95):
        online.train(load_agent(*SAC), settings)
    online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == contents(tmp_path / 'whole')


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    settings = online_settings(tmp_path)
    online.train(load_agent(*SAC), settings)
    online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted


def test_an_environment_without_snapshots_trains_but_does_not_resume(tmp_path, monkeypatch, capsys):
    def env_state(env):
        raise ValueError('a run in this environment cannot be resumed exactly')

    monkeypatch.setattr(loop, 'env_state', env_state)
    monkeypatch.setattr(loop, 'check_resumable', env_state)
    settings = online_settings(tmp_path, max_steps=50)
    online.train(load_agent(*SAC), settings)
    assert 'warning: a run in this environment' in capsys.readouterr().err
    with pytest.raises(RunError, match='cannot be resumed: no snapshots'):
        online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True, max_steps=60))


def test_raised_steps_continue_as_though_they_had_been_planned(tmp_path, uninterrupted):
    settings = online_settings(tmp_path, max_steps=50)
    online.train(load_agent(*SAC), settings)
    longer = dataclasses.replace(settings, max_steps=60, resume=True)
    online.train(load_agent(*SAC), longer)
    assert contents(tmp_path / 'run') == uninterrupted


def test_a_buffer_that_has_overwritten_something_does_not_grow(tmp_path):
    settings = online_settings(tmp_path, max_steps=50, buffer_size=20)
    online.train(load_agent(*SAC), settings)
    flags = json.loads((tmp_path / 'run/flags.json').read_text())
    (tmp_path / 'run/flags.json').write_text(json.dumps({**flags, 'buffer_size': None}))
    longer = dataclasses.replace(settings, max_steps=60, buffer_size=None, resume=True)
    with pytest.raises(RunError, match='resume with the same max_steps, or start with a larger'):
        online.train(load_agent(*SAC), longer)


def test_lowered_steps_end_as_though_they_had_been_planned(tmp_path, uninterrupted):
    settings = online_settings(tmp_path, max_steps=80)
    with crash_at(online.World, 'step', 52):
        online.train(load_agent(*SAC), settings)
    shorter = dataclasses.replace(settings, max_steps=60, resume=True)
    online.train(load_agent(*SAC), shorter)
    assert contents(tmp_path / 'run') == uninterrupted


def test_a_killed_process(tmp_path, uninterrupted):
    kill_and_resume('online', SAC, online_settings(tmp_path))
    assert contents(tmp_path / 'run') == uninterrupted


def test_a_killed_offline_process(tmp_path, dataset, uninterrupted_offline):
    settings = offline_settings(tmp_path, dataset)
    kill_and_resume('offline', REBRAC, settings)
    assert contents(tmp_path / 'run') == uninterrupted_offline


def kill_and_resume(launcher, agent, settings):
    """Start a run as a process, kill it at some moment after its first checkpoint, and go on."""
    path, overrides = agent
    command = [sys.executable, '-m', f'experiments.{launcher}', '--agent', path]
    command += [f'--agent.{name}={value}' for name, value in overrides.items()]
    flags = dataclasses.asdict(settings)
    command += [f'--{name}={value}' for name, value in flags.items() if value is not None]
    command = [part for part in command if part not in ('--resume=False', '--overwrite=False')]
    kill_after_a_checkpoint(start(command), Path(settings.save_dir, 'run'))
    assert start([*command, '--resume']).wait() == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(tmp_path, monkeypatch, capsys, uninterrupted, number):
    settings = online_settings(tmp_path)
    step = online.World.step

    def step_and_signal(self, action):
        if self.buffer.size == 33:
            os.kill(os.getpid(), number)
        return step(self, action)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(online.World, 'step', step_and_signal)
        online.train(load_agent(*SAC), settings)
    assert end.value.code == 128 + number
    assert 'stopped after step 34' in capsys.readouterr().err
    assert list(tmp_path.glob('run/checkpoints/checkpoint_0000000034.json'))
    online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted


def test_a_full_disk_stops_with_one_message_and_keeps_the_last_checkpoint(
    tmp_path, monkeypatch, uninterrupted
):
    settings = online_settings(tmp_path)
    with monkeypatch.context() as patched:
        fill_disk_after(patched, 2)
        with pytest.raises(RunError, match=r'No space left.*go on from step 20.*--resume'):
            online.train(load_agent(*SAC), settings)
    names = [path.name for path in tmp_path.glob('run/checkpoints/*')]
    assert len(names) == 2
    assert all('0000000020' in name for name in names)
    online.train(load_agent(*SAC), dataclasses.replace(settings, resume=True))
    assert contents(tmp_path / 'run') == uninterrupted


def fill_disk_after(patched, count):
    from purerl.core import checkpoint

    original, calls = checkpoint.save_file, []

    def save_file(*args, **kwargs):
        calls.append(None)
        if len(calls) > count:
            raise OSError(28, 'No space left on device')
        original(*args, **kwargs)

    patched.setattr(checkpoint, 'save_file', save_file)
