"""Both phases of every agent: what a run records, resuming bit for bit, two seeds at once."""

import functools
import shutil

import numpy as np
import pytest

from experiments import pretrain_finetune as launcher
from purerl.envs.make import make
from purerl.train import offline
from purerl.train.collect import collect
from purerl.train.config import ROOT, RunError, load_agent
from purerl.train.plotting import read_csv

AGENTS = sorted(
    path.stem
    for path in (ROOT / 'purerl/agents/infom').glob('*.py')
    if 'get_config' in path.read_text()
)
SMALL = {
    'batch_size': 8,
    'actor_freq': 2,
    'latent_dim': 4,
    'num_flow_goals': 2,
    'num_flow_steps': 2,
    'num_latent_inference_samples': 12,
    'num_model_rollouts': 12,
}
REQUIRED = {'dino_rebrac': {'encoder': 'mlp'}}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'pendulum.hdf5'
    collect('Pendulum-v1', path, policy='random', num_transitions=300)
    return path


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    monkeypatch.setattr(offline, 'make', functools.partial(make, max_episode_steps=10))


def run(folder, name, dataset, *more):
    path = f'purerl/agents/infom/{name}.py'
    fields = {key: '(8,)' for key in load_agent(path).config if key.endswith('hidden_dims')}
    fields |= {key: SMALL[key] for key in SMALL if key in load_agent(path).config}
    fields |= REQUIRED.get(name, {})
    flags = {
        'agent': path,
        'env_name': 'Pendulum-v1',
        'pretraining_dataset': dataset,
        'pretraining_steps': 4,
        'finetuning_steps': 4,
        'log_interval': 1,
        'eval_interval': 4,
        'eval_episodes': 1,
        'save_interval': 2,
        'keep_checkpoints': 0,
        'num_seeds': 2,
        'jit': 'trace',
        'tqdm': False,
        'tensorboard': False,
        'save_dir': folder,
        **{f'agent.{key}': value for key, value in fields.items()},
    }
    arguments = [f'--{key}={value}' for key, value in flags.items()]
    return launcher.main(['pretrain_finetune', *arguments, *more])


def files_of(folder):
    """The records that hold nothing of the clock; the last one has the tensors' checksum."""
    tables = [path for path in folder.rglob('*.csv') if path.name != 'timing.csv']
    checkpoint = folder / 'checkpoints/checkpoint_0000000008.json'
    return [str(path.relative_to(folder)) for path in (*sorted(tables), checkpoint)]


def test_the_family_is_complete():
    assert len(AGENTS) == 9


@pytest.mark.filterwarnings('ignore:model_buffer_size')
@pytest.mark.parametrize('name', AGENTS)
def test_two_seeds_train_and_resume_to_the_same_bits(tmp_path, dataset, name):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    summary = run(tmp_path, name, dataset, '--run_name=whole')
    assert np.isfinite(summary['return']).all()
    for i in range(2):
        pretraining = read_csv(whole / f'seed_00{i}' / 'pretraining_train.csv')
        finetuning = read_csv(whole / f'seed_00{i}' / 'finetuning_train.csv')
        assert list(pretraining['step']) == [1, 2, 3, 4]
        assert list(finetuning['step']) == [5, 6, 7, 8]
        assert np.isfinite(pretraining['training/grad/norm']).all()
        assert np.isfinite(finetuning['training/grad/norm']).all()
        assert list(read_csv(whole / f'seed_00{i}' / 'finetuning_eval.csv')['step']) == [5, 8]
    seeds = [read_csv(whole / f'seed_00{i}' / 'finetuning_train.csv') for i in range(2)]
    assert not np.array_equal(*(table['training/grad/norm'] for table in seeds))

    # As after a crash in step 7 or 8: the tables are ahead of the checkpoint.
    shutil.copytree(whole, resumed)
    for path in (resumed / 'checkpoints').glob('*0000000008*'):
        path.unlink()
    run(tmp_path, name, dataset, '--run_name=resumed', '--resume')
    assert files_of(whole) == files_of(resumed)
    for file in files_of(whole):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file


def test_contrasting_single_transitions_is_refused_before_the_run(tmp_path, dataset):
    with pytest.raises(RunError, match='batch_size must be above 1'):
        run(tmp_path, 'fb_repr', dataset, '--run_name=single', '--agent.batch_size=1')
    assert not (tmp_path / 'single').exists()
