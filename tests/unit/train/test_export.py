"""A replay buffer as a dataset of D4RL's."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from experiments import collect as launcher
from purerl.core import jit
from purerl.data import d4rl
from purerl.data.replay import ReplayBuffer, transition
from purerl.train import online
from purerl.train.config import RunError, load_agent
from purerl.train.export import export_replay, to_d4rl

SPACE = Box(-np.inf, np.inf, (1,), np.float32)


def filled(capacity, count):
    """Episodes of three steps: every other one terminates, the others are cut off."""
    buffer = ReplayBuffer.from_spaces(SPACE, Box(-1, 1, (1,), np.float32), capacity)
    for i in range(count):
        last, cut = i % 3 == 2, i % 6 == 5
        action = np.full(1, i - 1.5, np.float32)
        state = np.array([i], np.float32)
        buffer.insert(transition(state, action, i, last and not cut, cut, state + 1))
    return buffer.state_dict()


def test_rows_by_hand():
    arrays = to_d4rl(filled(20, 8))
    assert arrays['observations'][:, 0].tolist() == list(range(8))
    assert arrays['next_observations'][:, 0].tolist() == list(range(1, 9))
    assert arrays['actions'][:4, 0].tolist() == [-1, -0.5, 0.5, 1]  # what the environment took
    assert np.flatnonzero(arrays['terminals']).tolist() == [2]
    assert np.flatnonzero(arrays['timeouts']).tolist() == [5]


def test_a_full_ring_begins_with_its_oldest_row():
    assert to_d4rl(filled(5, 7))['rewards'].tolist() == [2, 3, 4, 5, 6]
    assert to_d4rl(filled(7, 7))['rewards'].tolist() == list(range(7))


def test_dictionaries_are_not_exported():
    space = Dict({'pixels': Box(0, 255, (2, 2, 3), np.uint8)})
    buffer = ReplayBuffer.from_spaces(space, SPACE, 3)
    image = {'pixels': np.zeros((2, 2, 3), np.uint8)}
    buffer.insert(transition(image, np.zeros(1), 0, False, False, image))
    with pytest.raises(RunError, match='no array of observations: only vectors'):
        to_d4rl(buffer.state_dict())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    settings = online.Settings(
        env_name='Pendulum-v1',
        save_dir=str(folder),
        run_name='run',
        jit='off',
        tqdm=False,
        tensorboard=False,
        max_steps=230,
        start_training=228,
        batch_size=4,
        eval_interval=0,
        num_seeds=2,
    )
    with jit.use_mode('off'):
        online.train(load_agent('purerl/agents/jaxrl5/sac.py', {'hidden_dims': (4,)}), settings)
    return folder / 'run'


def test_a_runs_buffer_is_a_dataset(tmp_path, run, capsys):
    path = tmp_path / 'replay.hdf5'
    flags = ['--policy=replay', f'--checkpoint={run}', f'--path={path}']
    assert launcher.main(['collect', *flags]) == [path]
    raw, arrays = d4rl.read(path), d4rl.load(path)
    assert len(raw['rewards']) == 230
    assert np.flatnonzero(raw['timeouts']).tolist() == [199]
    assert len(arrays['rewards']) == 228  # without the time limit's row and the last one
    assert np.flatnonzero(arrays['dones']).tolist() == [198, 227]
    launcher.main(['collect', *flags, '--num_transitions=50', '--checkpoint_seed=43'])
    fewer = d4rl.read(path)
    assert len(fewer['rewards']) == 50
    assert not np.array_equal(fewer['observations'], raw['observations'][:50])
    assert capsys.readouterr().err.count('warning: the replay buffer holds') == 0
    launcher.main(['collect', *flags, '--num_transitions=231'])
    assert 'holds 230 transitions, fewer than num_transitions=231' in capsys.readouterr().err
    assert len(d4rl.read(path)['rewards']) == 230


def test_mistakes(tmp_path, run):
    with pytest.raises(ValueError, match=r"must end in '\.hdf5'"):
        export_replay(run, tmp_path / 'a.npz')
    with pytest.raises(ValueError, match='trained the seeds 42, 43, not 7'):
        export_replay(run, tmp_path / 'a.hdf5', trained_seed=7)
    with pytest.raises(RunError, match='go together'):
        launcher.main(['collect', '--policy=replay', f'--path={tmp_path / "a.hdf5"}'])
