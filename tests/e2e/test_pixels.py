"""Images from end to end: DrQ online, killed and resumed; its data; PixelBC on them.

The environment draws its own images, so that nothing here needs OpenGL.
"""

import dataclasses
import importlib
import sys

import numpy as np
import pytest
from interruptions import contents, crash_at, kill_after_a_checkpoint, start
from safetensors.numpy import load_file

from experiments import collect as collect_launcher
from experiments import evaluate as evaluate_launcher
from experiments import offline_to_online as offline_launcher
from experiments import online as launcher
from purerl.core import jit
from purerl.data.memory_efficient import MemoryEfficientReplayBuffer
from purerl.train import collect_images, offline, online
from purerl.train.collect import collect
from purerl.train.config import RunError, load_agent, parse
from purerl.train.load_run import load_run
from purerl.train.plotting import read_csv

LAMP = '''
"""A lamp on a line: the image is bright where it stands, the reward its closeness to the middle."""

import gymnasium
import numpy as np


class Lamp(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    camera_id = 0
    physics = property(lambda self: self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.count = self.np_random.uniform(-1, 1), 0
        return np.array([self.x]), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 0.1 * float(action[0]), -1, 1))
        self.count += 1
        return np.array([self.x]), 1 - abs(self.x), False, self.count == 14, {}

    def render(self, height=8, width=8, camera_id=0):
        image = np.full((height, width, 3), 10 * camera_id, np.uint8)
        column = min(int((self.x + 1) / 2 * width), width - 1)
        image[:, column] += np.uint8(100 + self.count)
        return image


gymnasium.register('Lamp-v0', lambda **kwargs: Lamp())
'''
ENV = 'purerl_lamp:Lamp-v0'
AGENT = (
    'purerl/agents/jaxrl5/drq.py',
    {
        'cnn_features': (4,),
        'cnn_filters': (3,),
        'cnn_strides': (2,),
        'latent_dim': 4,
        'hidden_dims': (8,),
    },
)


@pytest.fixture(scope='module', autouse=True)
def lamp(tmp_path_factory):
    folder = tmp_path_factory.mktemp('packages')
    (folder / 'purerl_lamp.py').write_text(LAMP)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))


def settings(folder, **changes):
    values = {
        'env_name': ENV,
        'seed': 3,
        'save_dir': str(folder),
        'run_name': 'run',
        'jit': 'off',
        'tqdm': False,
        'tensorboard': False,
        'image_size': 8,
        'num_stack': 2,
        'max_steps': 60,
        'start_training': 15,
        'batch_size': 4,
        'log_interval': 4,
        'eval_interval': 12,
        'eval_episodes': 1,
        'save_interval': 5,
    }
    return online.Settings(**{**values, **changes})


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drq')
    online.train(load_agent(*AGENT), settings(folder))
    return folder / 'run'


def test_steps_count_the_environments_steps(finished):
    # Actions are taken twice: 30 of them, of which the 15th is the first to train.
    assert list(read_csv(finished / 'train.csv')['step']) == [32, 40, 48, 56]
    assert list(read_csv(finished / 'eval.csv')['step']) == [24, 48]
    episodes = read_csv(finished / 'episodes.csv')
    assert list(episodes['step']) == [14, 28, 42, 56]
    assert set(episodes['training/episode.length']) == {7}
    assert [path.stem for path in finished.glob('checkpoints/*.json')] == ['checkpoint_0000000060']


@pytest.mark.parametrize(('name', 'count'), [('step', 6), ('step', 23), ('batch', 9), ('state', 3)])
def test_an_interrupted_run_ends_as_the_whole_one(tmp_path, finished, name, count):
    with crash_at(online.World, name, count):
        online.train(load_agent(*AGENT), settings(tmp_path))
    online.train(load_agent(*AGENT), settings(tmp_path, resume=True))
    assert contents(tmp_path / 'run') == contents(finished)


def test_a_killed_process(tmp_path, finished, lamp):
    flags = dataclasses.asdict(settings(tmp_path))
    command = [sys.executable, '-m', 'experiments.online', f'--agent={AGENT[0]}']
    command += [f'--agent.{k}={",".join(map(str, np.ravel(v)))}' for k, v in AGENT[1].items()]
    command += [f'--{k}={v}' for k, v in flags.items() if v is not None and v is not False]
    command += ['--notqdm', '--notensorboard']
    kill_after_a_checkpoint(start(command, PYTHONPATH=str(lamp)), tmp_path / 'run')
    assert start([*command, '--resume'], PYTHONPATH=str(lamp)).wait() == 0
    assert contents(tmp_path / 'run') == contents(finished)


def test_full_stacks_train_alike(tmp_path, finished):
    """A ring that stores every stack has other rows, so that other batches are drawn."""
    online.train(load_agent(*AGENT), settings(tmp_path, memory_efficient_replay_buffer=False))
    rows = read_csv(tmp_path / 'run/train.csv')
    assert np.isfinite(rows['training/critic_loss']).all()
    ours = read_csv(tmp_path / 'run/episodes.csv')
    theirs = read_csv(finished / 'episodes.csv')
    assert ours['training/episode.return'][0] == theirs['training/episode.return'][0]


def test_several_cameras_small_rings_and_seeds(tmp_path):
    agent = load_agent(AGENT[0], {**AGENT[1], 'pixel_keys': ('pixels', 'pixels_1')})
    changes = {'cameras': '0,5', 'buffer_size': 14, 'num_seeds': 2, 'action_repeat': 1}
    online.train(agent, settings(tmp_path, max_steps=40, utd_ratio=2, save_interval=0, **changes))
    for seed in ('seed_000', 'seed_001'):
        rows = read_csv(tmp_path / 'run' / seed / 'train.csv')
        assert list(rows['step']) == [16, 20, 24, 28, 32, 36, 40]
        assert np.isfinite(rows['training/critic_loss']).all()


def test_videos_show_the_images_and_change_no_figure(tmp_path):
    changes = {'eval_interval': 6, 'max_steps': 24, 'start_training': 10}
    online.train(load_agent(*AGENT), settings(tmp_path, save_video=True, **changes))
    for step in ('12', '24'):
        assert (tmp_path / f'run/videos/eval_00000000{step}.mp4').stat().st_size > 0
    online.train(load_agent(*AGENT), settings(tmp_path, run_name='unfilmed', **changes))
    tables = [(tmp_path / name / 'eval.csv').read_bytes() for name in ('run', 'unfilmed')]
    assert tables[0] == tables[1]


# --- What comes after -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def dataset(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'lamp.safetensors'
    arguments = [f'--path={path}', '--num_transitions=40', '--nodeterministic', '--seed=1']
    arguments += ['--policy=checkpoint', f'--checkpoint={finished}']
    assert collect_launcher.main(['collect', *arguments]) == [path]
    return path


def test_evaluating_a_run(finished):
    arguments = ['evaluate', f'--run={finished}', '--episodes=2', '--seed=1']
    result = evaluate_launcher.main(arguments)
    assert result['statistics'][0]['episode.length'] == 7
    assert evaluate_launcher.main(arguments) == result


def test_a_runs_evaluation_is_filmed(finished):
    arguments = ['evaluate', f'--run={finished}', '--episodes=2', '--seed=1']
    unfilmed = evaluate_launcher.main(arguments)
    assert evaluate_launcher.main([*arguments, '--video', '--video_episodes=2']) == unfilmed
    assert (finished / 'videos/evaluation_0000000060.mp4').stat().st_size > 0


def test_evaluations_offline_are_filmed(tmp_path):
    collect(ENV, tmp_path / 'lamp.hdf5', policy='random', num_transitions=40)
    small = {'actor_hidden_dims': (4,), 'value_hidden_dims': (4,), 'batch_size': 4}
    values = {
        'env_name': ENV, 'pretraining_dataset': str(tmp_path / 'lamp.hdf5'),
        'save_dir': str(tmp_path), 'run_name': 'run', 'jit': 'off', 'tqdm': False,
        'tensorboard': False, 'pretraining_steps': 1, 'finetuning_steps': 1, 'eval_episodes': 2,
        'video_episodes': 3,
    }  # fmt: skip
    offline.train(load_agent('purerl/agents/infom/rebrac.py', small), offline.Settings(**values))
    assert (tmp_path / 'run/videos/eval_0000000002.mp4').stat().st_size > 0
    table = read_csv(tmp_path / 'run/finetuning_eval.csv')
    assert list(table['evaluation/episode.length']) == [14]


def test_collecting(dataset, finished, tmp_path):
    data = MemoryEfficientReplayBuffer.load(dataset)
    assert data.is_drawable.sum() == 40
    assert data.env_options == {
        'action_repeat': 2, 'image_size': 8, 'num_stack': 2, 'cameras': None,
    }  # fmt: skip
    batch = data.sample(40, None, idxs=np.flatnonzero(data.is_drawable))
    assert batch['dones'].sum() == 6  # five whole episodes and the last one
    assert (batch['masks'] == 1).all()
    # Each image shows where the lamp is: the same as the environment gives for these actions.
    env = load_run(finished).make_env(seed=1)
    observation, _ = env.reset()
    for i in range(7):
        np.testing.assert_array_equal(batch['observations']['pixels'][i], observation['pixels'])
        observation, reward, *_ = env.step(batch['actions'][i])
        assert batch['rewards'][i] == np.float32(reward)
        np.testing.assert_array_equal(
            batch['next_observations']['pixels'][i], observation['pixels']
        )

    for flag in ('--path=x.npz', '--path=x.hdf5'):
        arguments = ['--policy=checkpoint', f'--checkpoint={finished}', '--num_episodes=1', flag]
        with pytest.raises(RunError, match=r"must end in '\.safetensors'"):
            collect_launcher.main(['collect', *arguments])


def test_collecting_episodes(finished, tmp_path):
    arguments = ['--policy=checkpoint', f'--checkpoint={finished}', '--num_episodes=2']
    arguments += [f'--path={tmp_path / "new" / "two.safetensors"}']
    (path,) = collect_launcher.main(['collect', *arguments])
    data = MemoryEfficientReplayBuffer.load(path)
    assert data.is_drawable.sum() == 14
    assert len(data) == 14 + 2 * 2


def test_datasets_grow_with_their_episodes(finished, tmp_path, monkeypatch):
    paths = [tmp_path / f'{rows}.safetensors' for rows in (collect_images._FIRST_ROWS, 5)]
    for path in paths:
        monkeypatch.setattr(collect_images, '_FIRST_ROWS', int(path.stem))
        arguments = [f'--path={path}', '--num_episodes=6', '--policy=checkpoint']
        collect_launcher.main(['collect', *arguments, f'--checkpoint={finished}'])
    whole, grown = (load_file(path) for path in paths)
    assert whole.keys() == grown.keys()
    assert all((whole[name] == grown[name]).all() for name in whole)


def clone(folder, dataset, **changes):
    flags = {
        'agent': 'experiments/configs/jaxrl5/pixel_bc.py',
        'env_name': ENV,
        'dataset': dataset,
        'seed': 2,
        'save_dir': folder,
        'run_name': 'bc',
        'jit': 'trace',
        'tqdm': False,
        'tensorboard': False,
        'max_steps': 12,
        'batch_size': 4,
        'log_interval': 3,
        'eval_interval': 6,
        'eval_episodes': 1,
        'save_interval': 4,
        'agent.cnn_features': '4,',
        'agent.cnn_filters': '3,',
        'agent.cnn_strides': '2,',
        'agent.hidden_dims': '8,',
        **changes,
    }
    return offline_launcher.main(['offline', *(f'--{k}={v}' for k, v in flags.items())])


def test_cloning_what_was_collected(tmp_path, dataset):
    summary = clone(tmp_path, dataset)
    assert summary['step'] == 12
    assert list(read_csv(tmp_path / 'bc/train.csv')['step']) == [3, 6, 9, 12]
    assert np.isfinite(read_csv(tmp_path / 'bc/train.csv')['training/nll']).all()
    lengths = read_csv(tmp_path / 'bc/eval.csv')['evaluation/episode.length']
    assert list(lengths) == [7, 7]  # seen as the data were collected
    clone(tmp_path, dataset, run_name='again')
    assert (tmp_path / 'again/train.csv').read_bytes() == (tmp_path / 'bc/train.csv').read_bytes()


@pytest.mark.parametrize(('flag', 'given', 'found'), [('image_size', 9, 8), ('num_stack', 4, 2)])
def test_flags_that_contradict_the_dataset_are_refused(tmp_path, dataset, flag, given, found):
    with pytest.raises(RunError, match=rf'{flag}={given}, but the images of .* have {found}'):
        clone(tmp_path, dataset, **{flag: given})
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_rendered_stop_before_anything_is_written(
    tmp_path, dataset, finished, monkeypatch
):
    with pytest.raises(RunError, match='cannot be seen through camera foo'):
        clone(tmp_path, dataset, cameras='foo')
    assert not list(tmp_path.iterdir())

    def render(self, **kwargs):
        raise OSError('no display')

    monkeypatch.setattr(sys.modules['purerl_lamp'].Lamp, 'render', render)
    with pytest.raises(RunError, match=r'cannot be seen through camera 0.*no display'):
        evaluate_launcher.main(['evaluate', f'--run={finished}', '--episodes=1'])


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('agent', 'changes', 'message'),
    [
        (('purerl/agents/jaxrl5/sac.py', {}), {}, 'acts by states, not by images'),
        (AGENT, {'image_size': None}, 'must be a dict with the images pixels'),
        (AGENT, {'cameras': '0,5'}, r'looks at pixels, but the observations have pixels, pixels_1'),
        (AGENT, {'env_name': 'Pendulum-v1'}, 'Pendulum-v1 cannot be seen'),
        (AGENT, {'image_size': 2}, 'images of 2x2, which are too small'),
        (AGENT, {'buffer_size': 2}, 'a ring of 2 rows cannot hold'),
        (AGENT, {'num_stack': 0}, 'num_stack must be at least 1'),
    ],
)
def test_mistakes_stop_before_anything_is_written(tmp_path, agent, changes, message):
    with pytest.raises(RunError, match=message):
        online.train(load_agent(*agent), settings(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_the_launchers_defaults_are_those_of_images(tmp_path):
    with pytest.raises(RunError, match='batch_size must be at least 1'):
        launcher.main(['online', f'--agent={AGENT[0]}', '--batch_size=0'])
    arguments = parse(['online', f'--agent={AGENT[0]}'], online.Settings, AGENT[0])
    found = arguments.settings
    assert (found.env_name, found.image_size, found.num_stack) == ('cheetah_run', 64, 3)
    assert (found.max_steps, found.start_training, found.repeat) == (500_000, 1000, 4)


@pytest.fixture(autouse=True)
def quick():
    with jit.use_mode('off'):
        yield
