"""The online launcher, from the command line's flags to the files that it leaves."""

import dataclasses
import json
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.envs.registration import EnvSpec

from experiments import evaluate as evaluate_launcher
from experiments import online as launcher
from purerl.agents.jaxrl5.sac import SACLearner, get_config
from purerl.core import jit, trees
from purerl.core.checkpoint import load_checkpoint
from purerl.envs.make import make
from purerl.train import online
from purerl.train.config import RunError, load_agent
from purerl.train.plotting import read_csv

FLAGS = {
    'env_name': 'Pendulum-v1',
    'seed': 5,
    'run_name': 'run',
    'jit': 'trace',
    'tqdm': False,
    'max_steps': 30,
    'start_training': 10,
    'batch_size': 8,
    'log_interval': 5,
    'eval_interval': 15,
    'eval_episodes': 1,
    'save_interval': 0,
    'agent.hidden_dims': '8,8',
}


def run(folder, **changes):
    flags = {**FLAGS, 'save_dir': str(folder), **changes}
    return launcher.main(['online', *(f'--{name}={value}' for name, value in flags.items())])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('online')
    run(folder)
    return folder / 'run'


def agent_of(seed):
    config = get_config()
    config.hidden_dims = (8, 8)
    return SACLearner.create(seed, torch.zeros(1, 3), torch.zeros(1, 1), config)


def test_what_a_run_leaves(finished):
    assert (finished / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert list(finished.glob('tensorboard/events*'))
    assert list(read_csv(finished / 'train.csv')['step']) == [10, 15, 20, 25, 30]
    assert 'training/critic_loss' in read_csv(finished / 'train.csv')
    assert list(read_csv(finished / 'eval.csv')['step']) == [15, 30]
    assert np.isfinite(read_csv(finished / 'eval.csv')['evaluation/episode.return']).all()
    assert list(read_csv(finished / 'timing.csv')['step']) == [10, 15, 20, 25, 30]
    summary = json.loads((finished / 'summary.json').read_text())
    last = read_csv(finished / 'eval.csv')['evaluation/episode.return'][-1]
    assert summary['step'] == 30
    assert summary['return'] == [last]
    assert summary['random_return'][0] != last


def test_the_loop_is_the_originals_stream_for_stream(finished):
    """The same run, written out in the plainest way."""
    env = make('Pendulum-v1', seed=5)
    stream, rows = np.random.default_rng(5), []
    with jit.use_mode('trace'):
        agent = agent_of(5)
        observation, _ = env.reset()
        for i in range(1, 31):
            if i < 10:
                action = env.action_space.sample()
            else:
                action, agent = agent.sample_actions(observation)
                action = action.numpy()
            following, reward, terminated, _, _ = env.step(action)
            rows.append(
                {
                    'observations': observation,
                    'actions': action,
                    'rewards': np.float32(reward),
                    'masks': np.float32(1.0 - terminated),
                    'next_observations': following,
                }
            )
            observation = following
            if i >= 10:
                idxs = stream.integers(len(rows), size=8)
                batch = {key: np.stack([rows[j][key] for j in idxs]) for key in rows[0]}
                agent, info = agent.update(batch, 1)
    saved, _, _ = load_checkpoint(finished / 'checkpoints', like=agent)
    for (path, ours), (_, theirs) in zip(
        trees.leaves_with_path(agent), trees.leaves_with_path(saved), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg='/'.join(path))
    logged = read_csv(finished / 'train.csv')['training/critic_loss'][-1]
    assert logged == pytest.approx(float(info['critic_loss']), rel=1e-6)


def test_evaluation_does_not_disturb_training(finished, tmp_path):
    run(tmp_path, eval_interval=7)
    assert (tmp_path / 'run/train.csv').read_bytes() == (finished / 'train.csv').read_bytes()
    run(tmp_path, eval_interval=0, run_name='never')
    assert (tmp_path / 'never/train.csv').read_bytes() == (finished / 'train.csv').read_bytes()
    assert not (tmp_path / 'never/eval.csv').exists()


def test_the_seed_decides(finished, tmp_path):
    run(tmp_path)
    assert (tmp_path / 'run/train.csv').read_bytes() == (finished / 'train.csv').read_bytes()
    run(tmp_path, seed=6, run_name='other')
    assert (tmp_path / 'other/train.csv').read_bytes() != (finished / 'train.csv').read_bytes()


def test_seeds_in_one_program_are_those_of_single_runs(finished, tmp_path):
    summary = run(tmp_path, seed=4, num_seeds=2)
    assert len(summary['return']) == 2
    for name in ('train.csv', 'eval.csv'):
        ours = read_csv(tmp_path / 'run/seed_001' / name)
        single = read_csv(finished / name)
        assert ours.keys() == single.keys()
        for column in ours:
            np.testing.assert_allclose(ours[column], single[column], rtol=2e-5, atol=2e-5)
    last_q = [read_csv(tmp_path / f'run/seed_00{i}/train.csv')['training/q'][-1] for i in (0, 1)]
    assert last_q[0] != pytest.approx(last_q[1], rel=1e-3)
    assert (tmp_path / 'run/curves.png').exists()


def test_several_updates_per_step_and_small_buffers(tmp_path):
    run(tmp_path, utd_ratio=3, buffer_size=12, agent='experiments/configs/jaxrl5/droq.py')
    assert np.isfinite(read_csv(tmp_path / 'run/train.csv')['training/critic_loss']).all()


def test_evaluating_a_run(finished, capsys):
    result = evaluate_launcher.main(['evaluate', f'--run={finished}', '--episodes=2', '--seed=3'])
    assert result['step'] == 30
    assert json.loads((finished / 'evaluation.json').read_text()) == result
    again = evaluate_launcher.main(['evaluate', f'--run={finished}', '--episodes=2', '--seed=3'])
    assert again == result
    other = evaluate_launcher.main(['evaluate', f'--run={finished}', '--episodes=2', '--seed=4'])
    assert other['statistics'] != result['statistics']
    assert 'mean return' in capsys.readouterr().out


class Images(gymnasium.Env):
    """Colour images, with continuous actions."""

    def __init__(self, render_mode=None):
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros((84, 84, 3), np.uint8), {}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'env_name': 'CartPole-v1'}, 'CartPole-v1 has the action space Discrete'),
        ({'env_name': 'Pendulum-v11'}, "unknown environment 'Pendulum-v11'.*Pendulum-v1"),
        ({'agent': 'purerl/agents/infom/rebrac.py'}, r"rebrac\.py has no field 'hidden_dims'"),
        ({'agent.num_min_qs': 7}, 'num_min_qs=7'),
        ({'batch_size': 0}, 'batch_size must be at least 1'),
        ({'max_steps': 3, 'action_repeat': 4}, 'max_steps=3 has no room for an action'),
        ({'agent.actor_lr': -3e-4}, 'agent.actor_lr must be at least 0, not -0.0003'),
        ({'env_name': 'gymnasium:Nowhere-v0'}, 'Nowhere-v0 cannot be made'),
        ({'env_name': 'Images-v0'}, r'Images-v0 has the observation space Box.*takes vectors'),
    ],
)
def test_mistakes_stop_before_anything_is_written(tmp_path, monkeypatch, changes, message):
    monkeypatch.setitem(gymnasium.registry, 'Images-v0', EnvSpec('Images-v0', Images))
    with pytest.raises(RunError, match=message):
        run(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('observation', 'reward', 'message'),
    [
        (1.0, np.nan, 'the reward nan'),
        (1.0, -1e39, r'the reward -1e\+39'),
        (np.inf, 0.0, 'inf inf inf'),
    ],
)
def test_numbers_that_are_not_finite_end_the_run(
    tmp_path, monkeypatch, observation, reward, message
):
    def step(self, action):
        return np.full(3, observation, np.float32), reward, False, False, {}

    monkeypatch.setattr(PendulumEnv, 'step', step)
    with pytest.raises(RunError, match=f'Pendulum-v1.*{message}.*not'):
        run(tmp_path)


def test_a_run_that_ends_before_its_first_update_says_so(tmp_path, capsys):
    run(tmp_path, max_steps=5, eval_interval=0)
    assert 'with start_training=10 nothing is learnt' in capsys.readouterr().err


@pytest.mark.parametrize(
    'agent, message',
    [
        ('infom/rebrac', r'has no update.*experiments\.offline'),
        ('jaxrl5/iql', r'takes no utd_ratio.*experiments\.offline_to_online'),
        ('jaxrl5/ddpm_iql', r'takes no utd_ratio.*experiments\.offline_to_online'),
    ],
)
def test_an_offline_agent_is_sent_to_the_other_loop(tmp_path, agent, message):
    arguments = [f'--save_dir={tmp_path}', f'--agent=purerl/agents/{agent}.py']
    with pytest.raises(RunError, match=message):
        launcher.main(['online', '--env_name=Pendulum-v1', *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('device', ['cuda:99', 'meta', 'abacus'])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(RunError, match=f'^device={device} cannot be used here .* --device out'):
        run(tmp_path, device=device)
    assert not list(tmp_path.iterdir())


def test_another_device_on_resuming_is_warned_of(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / 'run')
    versions = json.loads((tmp_path / 'run/versions.json').read_text())
    assert versions['device'] == 'cpu'
    versions['device'] = 'NVIDIA H200'
    (tmp_path / 'run/versions.json').write_text(json.dumps(versions))
    run(tmp_path, resume=True)
    assert 'device was NVIDIA H200 when this run started and is cpu now' in capsys.readouterr().err


def test_an_agent_with_needs_is_refused(tmp_path):
    agent = load_agent('purerl/agents/jaxrl5/sac.py')
    cls = type('Needy', (agent.agent_class,), {'needs': frozenset({'goals'})})
    settings = online.Settings(env_name='Pendulum-v1', save_dir=str(tmp_path))
    with pytest.raises(RunError, match='needs goals, which only datasets have'):
        online.train(dataclasses.replace(agent, agent_class=cls), settings)
    assert not list(tmp_path.iterdir())
