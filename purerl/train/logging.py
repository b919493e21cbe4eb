"""What a run records: CSV tables, TensorBoard events, Weights & Biases, a progress bar.

The CSV tables hold nothing of the clock, so that a resumed run's are those of the uninterrupted
one, byte for byte; wall-clock figures have a table of their own, `timing.csv`.
"""

import contextlib
import csv
import importlib.util
import io
import itertools
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import tqdm

from purerl.core.checkpoint import CheckpointError, replacing
from purerl.train.config import RunError

TIMING = 'timing.csv'
# Names of the other tables, of all loops.
TABLES = (
    'train',
    'eval',
    'episodes',
    'pretraining_train',
    'finetuning_train',
    'finetuning_eval',
    'online_train',
    'online_eval',
)


def scalars(metrics: Mapping, prefix: str = '') -> dict:
    """Return the scalars among `metrics` as numpy scalars or Python numbers, under `prefix`."""
    found = {}
    for key, value in metrics.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if np.ndim(value) == 0:
            found[prefix + key] = value[()] if isinstance(value, np.ndarray) else value
    return found


class Table:
    """A CSV file that grows by rows and, when a row has new names, by columns.

    Numbers are written in the shortest form that gives back the same float of their precision.
    """

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        self.rows = 0

    def append(self, row: Mapping) -> None:
        """Write one row.

        Raises:
            RunError: if the file cannot be written.
        """
        try:
            new = [name for name in row if name not in self.columns]
            if new:
                self._rewrite([*self.columns, *new], self.rows)
            with self.path.open('a', newline='') as file:
                csv.writer(file, lineterminator='\n').writerow(
                    [_cell(row.get(name)) for name in self.columns]
                )
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.rows += 1

    def state(self) -> dict:
        """Put the rows on the disk; return what `restore` needs to cut off all later ones.

        Raises:
            RunError: if the file is gone or cannot be written.
        """
        try:
            with self.path.open('rb+') as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return {'columns': list(self.columns), 'rows': self.rows}

    def restore(self, state: Mapping) -> None:
        """Cut the file back to the rows and columns that it had at a `state`.

        Raises:
            RunError: if the file lacks some of them, or cannot be written.
        """
        self.columns, self.rows = list(state['columns']), state['rows']
        try:
            self._rewrite(self.columns, self.rows)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _rewrite(self, columns, count):
        rows = _read_rows(self.path, count) if self.path.exists() else []
        if len(rows) < count or (rows and not set(self.columns) <= set(rows[0])):
            raise RunError(
                f'{self.path} has lost rows or columns that the checkpoint counts on; start over '
                'with --overwrite'
            )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(columns)
        writer.writerows([row.get(name, '') for name in columns] for row in rows)
        try:
            with replacing(self.path) as temporary:
                temporary.write_text(text.getvalue())
        except CheckpointError as error:
            raise OSError(str(error)) from error
        self.columns = list(columns)


def _read_rows(path, count=None):
    """Return the first `count` rows of a table (None: all); up to where it is damaged, if it is."""
    rows = []
    with path.open(newline='', errors='replace') as file:
        try:
            for row in itertools.islice(csv.DictReader(file), count):
                rows.append(row)
        except csv.Error:
            pass
    return rows


def _unwritable(path, error):
    return RunError(
        f'{path} could not be written ({error}); is the disk full, or the folder gone? '
        'Mend that, and --resume'
    )


def _cell(value) -> str:
    if value is None:
        return ''
    return str(value.item() if isinstance(value, np.float64 | np.integer | np.bool_) else value)


class SeedLogger:
    """The records of one seed: a CSV table per name, and TensorBoard events beside them."""

    def __init__(self, folder: Path, tensorboard: bool, start: int):
        """Open the records of a folder.

        Args:
            folder: where they lie.
            tensorboard: whether to write events.
            start: last step that is kept of a resumed run's events.
        """
        self.folder = folder
        self._tables: dict[str, Table] = {}
        self._tensorboard = tensorboard
        self._writer = None
        self._start = start

    def log(self, name: str, step: int, metrics: Mapping) -> None:
        """Append a row of scalars to `<name>.csv`."""
        if name not in self._tables:
            self._tables[name] = Table(self.folder / f'{name}.csv')
        self._tables[name].append({'step': step, **metrics})
        if self._tensorboard:
            try:
                self._log_events(step, metrics)
            except OSError as error:
                raise _unwritable(self.folder / 'tensorboard', error) from error

    def _log_events(self, step, metrics):
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A run that was killed may have left later events, even before its first checkpoint.
            folder = str(self.folder / 'tensorboard')
            self._writer = SummaryWriter(folder, purge_step=self._start + 1)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def state(self) -> dict:
        return {name: table.state() for name, table in self._tables.items()}

    def restore(self, state: Mapping) -> None:
        """Cut all tables back to a `state`; those of `TABLES` that it lacks are removed."""
        for name in TABLES:
            if name not in state:
                (self.folder / f'{name}.csv').unlink(missing_ok=True)
        for name, table_state in state.items():
            self._tables[name] = Table(self.folder / f'{name}.csv')
            self._tables[name].restore(table_state)

    def close(self) -> None:
        if self._writer is not None:
            # Events that a full disk has no room for are lost; tables and checkpoints are whole.
            with contextlib.suppress(OSError):
                self._writer.close()


class Clock:
    """Wall-clock figures: `timing.csv`, which goes on where a resumed run left off."""

    def __init__(self, folder: Path, start: int):
        self._path = folder / TIMING
        rows = self._kept_rows(start)
        self._before = float(rows[-1]['time/total_time']) if rows else 0.0
        self._table = Table(self._path)
        for row in rows:
            self._table.append(row)
        self._first = self._last = time.perf_counter()
        self._last_step = start

    def _kept_rows(self, start):
        if not self._path.exists():
            return []
        rows = [row for row in _read_rows(self._path) if _is_complete(row)]
        self._path.unlink()
        return [row for row in rows if int(row['step']) <= start]

    def tick(self, step: int) -> None:
        """Record the time since the last call."""
        now = time.perf_counter()
        per_step = (now - self._last) / max(step - self._last_step, 1)
        self._last, self._last_step = now, step
        total = self._before + now - self._first
        self._table.append({'step': step, 'time/epoch_time': per_step, 'time/total_time': total})


def _is_complete(row) -> bool:
    try:
        return int(row['step']) >= 0 and float(row['time/total_time']) >= 0
    except (KeyError, TypeError, ValueError):  # cut off, or damaged
        return False


def check_wandb() -> None:
    """Refuse to log to Weights & Biases without its package.

    Raises:
        RunError: if it is not installed.
    """
    if importlib.util.find_spec('wandb') is None:
        raise RunError("--wandb needs wandb: pip install 'purerl[logging]'")


class Wandb:
    """One Weights & Biases run; a resumed run goes on in it."""

    def __init__(self, folder: Path, options: Mapping, config: Mapping):
        """Start it.

        Raises:
            RunError: if wandb refuses, for want of a login or a network.
        """
        import wandb

        id_file = folder / 'wandb_id.txt'
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                dir=str(folder),
                name=folder.name,
                id=id_file.read_text(),
                resume='allow',
                config=dict(config),
                **options,
            )
        except Exception as error:  # wandb has errors of its own
            raise RunError(
                f'--wandb: {error}; log in (wandb login), or choose --wandb_mode=offline, and '
                '--resume'
            ) from error

    def log(self, step: int, metrics: Mapping) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class RunLogger:
    """The records of all seeds of a run, its clock and its progress bar."""

    def __init__(
        self,
        folder: Path,
        seed_folders: list[Path],
        *,
        start: int,
        total: int,
        tensorboard: bool,
        wandb: Wandb | None,
        progress: bool,
    ):
        self.seeds = [SeedLogger(seed_folder, tensorboard, start) for seed_folder in seed_folders]
        self._clock = Clock(folder, start)
        self._wandb = wandb
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            smoothing=0.1,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            disable=not progress,
        )
        self._figures: dict[str, str] = {}

    def log(self, name: str, step: int, metrics: Iterable[Mapping]) -> None:
        """Record one row per seed; see `SeedLogger.log`."""
        for i, row in enumerate(metrics):
            self.log_seed(i, name, step, row)

    def log_seed(self, i: int, name: str, step: int, metrics: Mapping) -> None:
        """Record a row of seed number `i`."""
        self.seeds[i].log(name, step, metrics)
        if self._wandb is not None:
            prefix = f'seed_{i:03d}/' if len(self.seeds) > 1 else ''
            self._wandb.log(step, {f'{prefix}{key}': value for key, value in metrics.items()})

    def tick(self, step: int) -> None:
        """Record the wall-clock time up to this step."""
        self._clock.tick(step)

    def advance(self, steps: int = 1) -> None:
        """Move the progress bar."""
        self._bar.update(steps)

    def show(self, **figures: float) -> None:
        """Show figures beside the progress bar, until they are replaced."""
        self._figures.update({name: f'{value:.4g}' for name, value in figures.items()})
        self._bar.set_postfix(self._figures, refresh=False)

    def state(self) -> list:
        return [seed.state() for seed in self.seeds]

    def restore(self, states: list) -> None:
        for seed, state in zip(self.seeds, states, strict=True):
            seed.restore(state)

    def close(self) -> None:
        self._bar.close()
        for seed in self.seeds:
            seed.close()
        if self._wandb is not None:
            self._wandb.close()


class NoLogger:
    """Stands for a `RunLogger` in processes that record nothing."""

    def _ignore(self, *args, **kwargs) -> None:
        pass

    log = log_seed = tick = advance = show = restore = close = _ignore
