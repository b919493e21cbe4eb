import importlib.machinery
import importlib.metadata
import importlib.util
import json
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from purerl.core import jit, trees
from purerl.core.checkpoint import latest_step
from purerl.train import seeds
from purerl.train.config import RunError, load_agent
from purerl.train.load_run import load_run
from purerl.train.logging import Clock, SeedLogger, Table, scalars
from purerl.train.run import Run, RunSettings, read_json

AGENT = load_agent('purerl/agents/jaxrl5/sac.py')
EXAMPLE = {'observations': torch.zeros(1, 3), 'actions': torch.zeros(1, 2)}


def settings(folder, **changes):
    values = {'save_dir': str(folder), 'run_name': 'run', 'tqdm': False, 'tensorboard': False}
    return RunSettings(**{**values, 'jit': 'off', **changes})


def begun(folder, total=10, agent=AGENT, **changes):
    run = Run('online', agent, settings(folder, **changes), 'Env-v0')
    run.begin(total, total, EXAMPLE)
    return run


def finished(folder, step=4, **changes):
    """Make a run with a row and a checkpoint."""
    with begun(folder, **changes) as run:
        run.restore({'x': torch.zeros(2)})
        run.logger.log('train', step, [{'training/loss': 1.0}])
        run.save(step, {'x': torch.arange(2.0)}, {'note': 'kept'})
    return run


def test_a_run_is_described_before_its_first_step(tmp_path):
    begun(tmp_path, seed=7)
    flags = read_json(tmp_path / 'run/flags.json')
    assert flags['seed'] == 7
    assert flags['agent'] == 'purerl/agents/jaxrl5/sac.py'
    assert read_json(tmp_path / 'run/config.json')['hidden_dims'] == [256, 256]
    versions = read_json(tmp_path / 'run/versions.json')
    assert versions['torch'] == importlib.metadata.version('torch')
    assert versions['jit'] == 'off'
    assert versions['threads'] == torch.get_num_threads()
    assert read_json(tmp_path / 'run/agent.json')['observations'] == {
        'shape': [1, 3],
        'dtype': 'float32',
    }


def test_the_automatic_name_is_that_of_the_settings(tmp_path):
    def name(agent=AGENT, **changes):
        run = Run('online', agent, settings(tmp_path, run_name=None, **changes), 'Env-v0')
        return str(run.folder.relative_to(tmp_path))

    other = load_agent(AGENT.path, {'tau': 0.1})
    assert name().startswith('Env-v0/sac_sd000_')
    assert name() == name(tqdm=True, resume=True)
    assert len({name(), name(seed=1), name(jit='trace'), name(other)}) == 4


@pytest.mark.parametrize('changes', [{}, {'resume': True, 'overwrite': True}])
def test_starting_over_is_refused(tmp_path, changes):
    finished(tmp_path)
    with pytest.raises(RunError, match=r'resume.*overwrite'):
        begun(tmp_path, **changes)


def test_overwriting_deletes_what_runs_write_and_nothing_else(tmp_path):
    finished(tmp_path)
    for name in ('notes.txt', 'notes.csv'):
        (tmp_path / 'run' / name).write_text('mine')
    begun(tmp_path, overwrite=True)
    assert not (tmp_path / 'run/checkpoints').exists()
    assert not (tmp_path / 'run/train.csv').exists()
    with begun(tmp_path, resume=True) as run:
        run.restore({})
    for name in ('notes.txt', 'notes.csv'):
        assert (tmp_path / 'run' / name).read_text() == 'mine'


def test_a_run_whose_overwriting_was_killed_can_be_overwritten(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    finished(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, 'unlink', interrupt)
        begun(tmp_path, overwrite=True)
    begun(tmp_path, overwrite=True)
    assert latest_step(tmp_path / 'run/checkpoints') is None


@pytest.mark.parametrize('changes', [{'overwrite': True}, {'resume': True}])
def test_one_process_at_a_time_writes_into_a_folder(tmp_path, changes):
    finished(tmp_path)
    with begun(tmp_path, resume=True):
        with pytest.raises(RunError, match='another process is writing this run'):
            begun(tmp_path, **changes)
        assert latest_step(tmp_path / 'run/checkpoints') == 4
    begun(tmp_path, **changes)


def test_a_run_that_another_process_went_on_with_is_not_started_over(tmp_path):
    run = Run('online', AGENT, settings(tmp_path, resume=True), 'Env-v0')
    finished(tmp_path)
    with pytest.raises(RunError, match='gone on with this run meanwhile'):
        run.begin(10, 10, EXAMPLE)


@pytest.mark.parametrize('content', ['{}', '[]', '{'])
def test_a_run_of_something_else(tmp_path, content):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/flags.json').write_text(content)
    with pytest.raises(RunError, match=r'flags.json'):
        begun(tmp_path, resume=True)
    with pytest.raises(RunError, match=r'flags.json'):
        load_run(tmp_path / 'run')


@pytest.mark.parametrize(
    'file, content, message',
    [
        ('config.json', 'null', 'config.json is damaged: it holds no object'),
        ('versions.json', 'null', 'versions.json is damaged: it holds no object'),
        ('versions.json', '{}', 'versions.json is damaged: it lacks jit'),
        ('flags.json', '{"loop": "online"}', 'flags.json is damaged: it lacks agent'),
        ('flags.json', '[' * 100_000, 'flags.json cannot be read'),
    ],
)
def test_damaged_descriptions_are_refused(tmp_path, file, content, message):
    finished(tmp_path)
    (tmp_path / 'run' / file).write_text(content)
    with pytest.raises(RunError, match=message):
        begun(tmp_path, resume=True)


def test_shapes_that_are_gone_are_refused(tmp_path):
    finished(tmp_path)
    (tmp_path / 'run/agent.json').write_text('{}')
    with pytest.raises(RunError, match=r'agent.json is damaged: it lacks observations'):
        load_run(tmp_path / 'run')


def test_a_folder_without_a_run_is_not_overwritten(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/notes.txt').write_text('mine')
    with pytest.raises(RunError, match='no run that could be overwritten'):
        begun(tmp_path, overwrite=True)


def test_other_records_are_not_taken_for_a_run(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/mine.csv').write_text('step\n1\n')
    with pytest.raises(RunError, match='holds CSV files, but no run to go on with'):
        begun(tmp_path, resume=True)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / 'run').write_text('mine')
    with pytest.raises(RunError, match='run is a file; choose another run_name'):
        begun(tmp_path)
    with pytest.raises(RunError, match=r'run/run cannot be written \(.*Not a directory'):
        begun(tmp_path / 'run')
    assert (tmp_path / 'run').read_text() == 'mine'


def test_resuming_a_run_that_is_not_there_starts_it(tmp_path):
    run = begun(tmp_path, resume=True)
    assert run.start == 0
    assert (tmp_path / 'run/flags.json').exists()


def test_resuming_goes_on_from_the_checkpoint(tmp_path):
    finished(tmp_path)
    with (tmp_path / 'run/train.csv').open('a') as file:
        file.write('5,2.0\n6,')
    with begun(tmp_path, resume=True) as run:
        assert run.start == 4
        tree, state = run.restore({'x': torch.zeros(2)})
    assert torch.equal(tree['x'], torch.arange(2.0))
    assert state == {'note': 'kept'}
    assert (tmp_path / 'run/train.csv').read_text() == 'step,training/loss\n4,1.0\n'


def test_a_damaged_checkpoint_says_what_can_be_done(tmp_path):
    with begun(tmp_path, keep_checkpoints=0) as run:
        for step in (2, 4):
            run.save(step, {'x': torch.zeros(2)}, {})
    (tensors,) = (tmp_path / 'run/checkpoints').glob('*04.*.safetensors')
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with (
        pytest.raises(RunError, match=r'damaged.*--overwrite, or delete its files.* from step 2$'),
        begun(tmp_path, keep_checkpoints=0, resume=True) as run,
    ):
        run.restore({'x': torch.zeros(2)})


@pytest.mark.parametrize(
    ('changes', 'overrides', 'message'),
    [
        ({'seed': 1}, {}, 'started with --seed=0, not 1'),
        ({'jit': 'trace'}, {}, 'started with --jit=off, not trace'),
        ({}, {'tau': 0.5}, r'started with --agent\.tau=0.005, not 0.5'),
    ],
)
def test_resuming_with_other_settings_names_the_first(tmp_path, changes, overrides, message):
    finished(tmp_path)
    agent = load_agent(AGENT.path, overrides)
    with pytest.raises(RunError, match=message):
        begun(tmp_path, resume=True, agent=agent, **changes)


def test_resuming_with_another_agent_or_loop(tmp_path):
    finished(tmp_path)
    with pytest.raises(RunError, match='started with --agent='):
        begun(tmp_path, resume=True, agent=load_agent('experiments/configs/jaxrl5/redq.py'))
    with pytest.raises(RunError, match=r'is a run of experiments\.online'):
        Run('offline', AGENT, settings(tmp_path, resume=True), 'Env-v0')


def test_a_run_cannot_end_before_its_checkpoint(tmp_path):
    finished(tmp_path, step=4)
    with pytest.raises(RunError, match='at step 4 already, beyond 3'):
        begun(tmp_path, total=3, resume=True)


def test_a_resumed_run_keeps_its_mode(tmp_path, monkeypatch):
    monkeypatch.setenv('PURERL_JIT', 'off')
    finished(tmp_path, jit='auto')
    monkeypatch.setenv('PURERL_JIT', 'trace')
    with begun(tmp_path, jit='auto', resume=True):
        assert jit.get_mode() == 'off'


@pytest.mark.parametrize(
    ('planned', 'num_seeds', 'mode'),
    [(100, 1, 'trace'), (1_000_000, 1, 'inductor'), (4_000, 2, 'trace'), (4_000, 4, 'inductor')],
)
def test_the_mode_follows_the_planned_updates(tmp_path, monkeypatch, planned, num_seeds, mode):
    monkeypatch.delenv('PURERL_JIT', raising=False)
    monkeypatch.setattr(jit, '_has_compiler', lambda: True)
    with begun(tmp_path, total=planned, jit='auto', num_seeds=num_seeds):
        assert read_json(tmp_path / 'run/versions.json')['jit'] == mode


def test_an_unknown_mode_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv('PURERL_JIT', 'fast')
    with pytest.raises(RunError, match=r'PURERL_JIT: .*fast'):
        begun(tmp_path, jit='auto')
    assert not (tmp_path / 'run').exists()


def test_a_file_of_the_users_does_not_keep_the_curves_from_being_drawn(
    tmp_path, monkeypatch, capsys
):
    run = finished(tmp_path)
    (tmp_path / 'run/notes.csv').write_text('mine\n')
    assert run.plot() == tmp_path / 'run/curves.png'

    def save(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', save)
    assert run.plot() is None
    assert 'No space left' in capsys.readouterr().err


def test_other_versions_are_told(tmp_path, capsys):
    finished(tmp_path)
    path = tmp_path / 'run/versions.json'
    path.write_text(json.dumps({**read_json(path), 'torch': '1.0'}))
    begun(tmp_path, resume=True)
    assert 'warning: torch was 1.0' in capsys.readouterr().err


def test_a_signal_asks_for_a_stop_and_a_second_one_acts(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with begun(tmp_path) as run:
        assert not run.stop_requested
        signal.raise_signal(signal.SIGINT)
        assert run.stop_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# --- Records ---------------------------------------------------------------------------------


def test_a_table_grows_by_columns(tmp_path):
    table = Table(tmp_path / 'a.csv')
    table.append({'step': 1, 'a': np.float32(0.1)})
    table.append({'step': 2, 'b': 0.1, 'a': np.float64(1 / 3)})
    table.append({'step': 3, 'b': None})
    assert table.path.read_text() == ('step,a,b\n1,0.1,\n2,0.3333333333333333,0.1\n3,,\n')


def test_a_table_is_cut_back_to_its_rows_and_columns(tmp_path):
    table = Table(tmp_path / 'a.csv')
    table.append({'step': 1, 'a': 1})
    text, state = table.path.read_text(), table.state()
    table.append({'step': 2, 'b': 2})
    again = Table(table.path)
    again.restore(state)
    assert table.path.read_text() == text
    again.append({'step': 2, 'b': 2})
    assert table.path.read_text() == 'step,a,b\n1,1,\n2,,2\n'


def test_a_table_that_lost_rows_is_refused(tmp_path):
    table = Table(tmp_path / 'a.csv')
    table.append({'step': 1, 'a': 1})
    state = table.state()
    table.path.write_text('step,a\n')
    with pytest.raises(RunError, match='has lost rows'):
        table.restore(state)
    table.path.write_bytes(b'step,a\xff\n\x00\xff')
    with pytest.raises(RunError, match='has lost rows'):
        table.restore(state)
    table.path.unlink()
    with pytest.raises(RunError, match='has lost rows'):
        table.restore(state)
    with pytest.raises(RunError, match='No such file'):
        table.state()


def test_a_table_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / 'a.csv').mkdir()
    with pytest.raises(RunError, match=r'a\.csv could not be written .*is the disk full'):
        Table(tmp_path / 'a.csv').append({'step': 1})


def test_tables_begun_after_a_checkpoint_are_removed(tmp_path):
    logger = SeedLogger(tmp_path, tensorboard=False, start=0)
    logger.log('train', 1, {'a': 1})
    state = logger.state()
    logger.log('eval', 2, {'a': 1})
    SeedLogger(tmp_path, tensorboard=False, start=1).restore(state)
    assert [path.name for path in tmp_path.glob('*.csv')] == ['train.csv']


@pytest.mark.parametrize('start', [0, 1])
def test_tensorboard_events_are_purged_on_resume(tmp_path, start):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = SeedLogger(tmp_path, tensorboard=True, start=0)
    for step in (1, 2, 3):
        logger.log('train', step, {'a': step})
    logger.close()
    logger = SeedLogger(tmp_path, tensorboard=True, start=start)
    logger.log('train', start + 1, {'a': 20})
    logger.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    kept = [(1, 1)][:start]
    assert [(event.step, event.value) for event in events.Scalars('a')] == [*kept, (start + 1, 20)]


def test_events_that_cannot_be_written_end_the_run_with_one_error(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, 'No space left on device')

    logger = SeedLogger(tmp_path, tensorboard=True, start=0)
    logger.log('train', 1, {'a': 1})
    writer = 'torch.utils.tensorboard.SummaryWriter'
    monkeypatch.setattr(f'{writer}.add_scalar', fail)
    monkeypatch.setattr(f'{writer}.close', fail)
    with pytest.raises(RunError, match=r'tensorboard could not be written.*No space left'):
        logger.log('train', 2, {'a': 1})
    logger.close()


def test_the_clock_goes_on_after_a_resume(tmp_path):
    clock = Clock(tmp_path, start=0)
    clock.tick(10)
    clock.tick(20)
    first = float((tmp_path / 'timing.csv').read_text().splitlines()[1].split(',')[2])
    Clock(tmp_path, start=10).tick(15)
    rows = [line.split(',') for line in (tmp_path / 'timing.csv').read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ['10', '15']
    assert float(rows[1][2]) > first


@pytest.mark.parametrize('content', [b'a,b\n1,2\n', b'\xff\x00', b'step,time/total_time\n1,x\n'])
def test_a_damaged_record_of_times_begins_anew(tmp_path, content):
    (tmp_path / 'timing.csv').write_bytes(content)
    Clock(tmp_path, start=10).tick(15)
    lines = (tmp_path / 'timing.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in lines] == ['step', '15']


class WandbStub(types.ModuleType):
    """Records what a run sends."""

    def __init__(self):
        super().__init__('wandb')
        self.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
        self.inits, self.rows, self.finished = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, metrics, step):
        self.rows.append((step, metrics))

    def finish(self):
        self.finished += 1


def test_wandb_gets_all_seeds_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    stub = WandbStub()
    monkeypatch.setitem(sys.modules, 'wandb', stub)
    for resume in (False, True):
        with begun(tmp_path, wandb=True, wandb_mode='offline', num_seeds=2, resume=resume) as run:
            run.logger.log('train', 3, [{'a': 1}, {'a': 2}])
    assert stub.rows[:2] == [(3, {'seed_000/a': 1}), (3, {'seed_001/a': 2})]
    assert stub.inits[0]['mode'] == 'offline'
    assert stub.inits[0]['config']['agent']['tau'] == 0.005
    assert stub.inits[0]['id'] == stub.inits[1]['id']
    assert stub.finished == 2


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with (
        pytest.raises(RunError, match=r'pip install .purerl\[logging\]'),
        begun(tmp_path, wandb=True),
    ):
        pass
    assert not (tmp_path / 'run').exists()


def test_a_refusal_of_wandb_is_one_error(tmp_path, monkeypatch):
    stub = WandbStub()
    monkeypatch.setitem(sys.modules, 'wandb', stub)
    monkeypatch.delattr(WandbStub, 'init')
    with pytest.raises(RunError, match=r'wandb login.*--resume'), begun(tmp_path, wandb=True):
        pass


def test_scalars_keep_their_precision():
    metrics = scalars({'a': torch.tensor(0.1), 'b': torch.ones(2), 'c': 3}, 'x/')
    assert metrics == {'x/a': np.float32(0.1), 'x/c': 3}


# --- Seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize('num', [1, 3])
def test_mapping_over_seeds_is_calling_for_each(num):
    trees_in = [{'x': torch.arange(2.0) + i, 'none': None} for i in range(num)]
    arrays = [np.full(2, i, np.float32) for i in range(num)]

    def fn(tree, y):
        y = torch.as_tensor(y)
        return {'sum': tree['x'] + y, 'none': None}, tree['x'].sum()

    with jit.use_mode('trace'):
        out, total = seeds.over_seeds(fn, num)(seeds.stack(trees_in), seeds.stack(arrays))
    for i, (tree, value) in enumerate(
        zip(seeds.unstack(out, num), seeds.unstack(total, num), strict=True)
    ):
        expected, expected_total = fn(trees_in[i], torch.from_numpy(arrays[i]))
        assert tree['none'] is None
        assert torch.equal(torch.as_tensor(tree['sum']), expected['sum'])
        assert torch.equal(value, expected_total)


def test_stacking_one_seed_changes_nothing():
    tree = {'x': torch.zeros(2)}
    assert seeds.stack([tree]) is tree
    assert seeds.unstack(tree, 1)[0] is tree
    assert trees.leaves(seeds.stack([tree, tree]))[0].shape == (2, 2)
