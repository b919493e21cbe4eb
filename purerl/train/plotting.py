"""Curves of runs, from the CSV files that they write."""

import csv
import difflib
from pathlib import Path

import numpy as np

from purerl.core.files import atomic_path

# The results that `plot_run` draws, where a run has them, in this order; prefixes such as
# 'evaluation/' come before them.
_RESULTS = (
    'episode.return',
    'episode.normalized_return',
    'episode.success',
    'episode.length',
)
_MAX_CURVES = 12
_RESAMPLES = 2000
_GRID_POINTS = 200


def read_csv(path):
    """Reads a run's CSV file.

    Args:
        path: Path of the file; one of its columns is `step`.

    Returns:
        A dict of float64 arrays (T,); empty or non-numeric cells are NaN.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no rows or no column `step`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    if not rows or 'step' not in rows[0]:
        raise ValueError(f"{path} has no rows or no column 'step'")
    return {
        name: np.array([_to_float(row[name]) for row in rows])
        for name in rows[0]
        if name is not None
    }


def seed_folders(run_dir):
    """Lists the folders that hold a run's CSV files.

    Args:
        run_dir: Folder of a run: of one seed, or with a subfolder `seed_000`, ... per seed.

    Returns:
        A list of paths.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f'the run folder {run_dir} does not exist')
    return sorted(run_dir.glob('seed_*')) or [run_dir]


def read_curves(folders, csv_name, column):
    """Reads one column of several seeds.

    Args:
        folders: Folders of the seeds.
        csv_name: Name of the CSV file in each.
        column: Name of the column.

    Returns:
        A list with a tuple of arrays (steps, values) per seed, in the order of the steps; rows
        without a value are left out.

    Raises:
        FileNotFoundError: If a folder has no such file; the message has the files that are there.
        ValueError: If a file has no such column, or no value in it; the message has the nearest
            names.
    """
    curves = []
    for folder in map(Path, folders):
        path = folder / csv_name
        if not path.is_file():
            present = sorted(file.name for file in folder.glob('*.csv')) or ['none']
            raise FileNotFoundError(
                f'{folder} has no {csv_name}; its CSV files: {", ".join(present)}'
            )
        table = read_csv(path)
        if column not in table:
            near = difflib.get_close_matches(column, table, n=3, cutoff=0.3) or sorted(table)
            raise ValueError(f'{path} has no column {column!r}; the nearest are {", ".join(near)}')
        present = ~np.isnan(table[column]) & ~np.isnan(table['step'])
        if not present.any():
            raise ValueError(f'{path} has no value in its column {column!r}')
        # A resumed run may have written a step twice; the later row counts.
        by_step = dict(zip(table['step'][present], table[column][present], strict=True))
        steps = np.array(sorted(by_step))
        curves.append((steps, np.array([by_step[step] for step in steps])))
    return curves


def on_common_steps(curves):
    """Interpolates several seeds' curves onto the same steps.

    Args:
        curves: List of tuples (steps, values) of increasing steps.

    Returns:
        A tuple of steps (G,) and values (N, G): the seeds' own steps where they agree, otherwise
        an even grid over the range that all seeds cover.

    Raises:
        ValueError: If the seeds have no step in common.
    """
    first = curves[0][0]
    if all(np.array_equal(steps, first) for steps, _ in curves):
        return first, np.stack([values for _, values in curves])
    low = max(steps[0] for steps, _ in curves)
    high = min(steps[-1] for steps, _ in curves)
    if low > high:
        raise ValueError('the seeds have no step in common')
    grid = np.linspace(low, high, 1 if low == high else _GRID_POINTS)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])


def confidence_band(values, method='bootstrap', seed=0):
    """Computes a 95% confidence band of the mean over seeds.

    Args:
        values: Array (N, G), one row per seed.
        method: 'bootstrap' (percentiles of the means of resampled seeds) or 'normal' (mean +- 1.96
            standard errors, with ddof 1).
        seed: Seed of the resampling.

    Returns:
        A tuple of arrays (low, high), each (G,); for one seed both are its curve.

    Raises:
        ValueError: If there is no such method.
    """
    mean, count = values.mean(axis=0), len(values)
    if method not in ('bootstrap', 'normal'):
        raise ValueError(f"the band must be 'bootstrap' or 'normal', not {method!r}")
    if count == 1:
        return mean, mean
    if method == 'normal':
        half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(count)
        return mean - half, mean + half
    chosen = np.random.RandomState(seed).randint(count, size=(_RESAMPLES, count))
    weights = np.stack([(chosen == i).sum(axis=1) for i in range(count)], axis=1) / count
    low, high = np.percentile(weights @ values, [2.5, 97.5], axis=0)
    return low, high


def plot_runs(groups, path, column, csv_name='eval.csv', band='bootstrap'):
    """Draws one column of several groups of runs, with a confidence band over each group's seeds.

    Args:
        groups: Dict from a label to the list of run folders that are its seeds; a folder with
            subfolders `seed_000`, ... counts as all of these.
        path: Path of the PNG to write.
        column: Column to draw.
        csv_name: CSV file of the runs that has the column.
        band: 'bootstrap' or 'normal', see `confidence_band`.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If a file has no such column, or no group is given.
    """
    if not groups:
        raise ValueError('there are no runs to draw')
    figure, axes = _figure(1)
    for label, run_dirs in groups.items():
        folders = [folder for run_dir in run_dirs for folder in seed_folders(run_dir)]
        curves = read_curves(folders, csv_name, column)
        _draw(axes[0], curves, band, f'{label} ({len(curves)})')
    names = {'bootstrap': 'bootstrap 95%', 'normal': 'mean ± 1.96 standard errors'}
    axes[0].set_title(f'{column}: mean over seeds, {names[band]}', fontsize=9)
    axes[0].legend(fontsize=8)
    return _save(figure, path)


def plot_run(run_dir):
    """Draws the main curves of one run into `curves.png` in its folder.

    These are returns, successes and lengths of episodes, then losses, from all of the run's CSV
    files; curves of several seeds come with a bootstrap 95% band.

    Args:
        run_dir: Folder of a run: of one seed, or with a subfolder `seed_000`, ... per seed.

    Returns:
        The path of `curves.png`.

    Raises:
        FileNotFoundError: If the folder is missing, or has no CSV file with a curve.
    """
    folders = seed_folders(run_dir)
    drawn = _main_curves(folders)
    if not drawn:
        raise FileNotFoundError(f'{run_dir} has no CSV file with a curve to draw')
    figure, axes = _figure(len(drawn))
    for axis, (csv_name, column) in zip(axes, drawn, strict=True):
        _draw(axis, read_curves(folders, csv_name, column), 'bootstrap', None)
        axis.set_title(f'{Path(csv_name).stem}: {column}', fontsize=8)
    return _save(figure, Path(run_dir) / 'curves.png')


def _main_curves(folders):
    """Lists (CSV file, column) of what is worth drawing: results first, then losses."""
    results, losses = [], []
    for csv_name in sorted({file.name for file in folders[0].glob('*.csv')}):
        if not all((folder / csv_name).is_file() for folder in folders):
            continue
        try:
            tables = [read_csv(folder / csv_name) for folder in folders]
        except ValueError:  # no row yet, or no table of the run
            continue
        for column in tables[0]:
            if not _has_common_steps(tables, column):
                continue
            if _result(column) in _RESULTS:
                results.append((csv_name, column))
            elif column.endswith('loss') and not column.startswith('validation/'):
                losses.append((csv_name, column))
    results.sort(key=lambda item: _RESULTS.index(_result(item[1])))
    return (results + losses)[:_MAX_CURVES]


def _has_common_steps(tables, column):
    """Returns whether all seeds have values of a column, over ranges of steps that overlap."""
    ranges = []
    for table in tables:
        steps = table['step'][np.isfinite(table.get(column, np.full(len(table['step']), np.nan)))]
        if not len(steps):
            return False
        ranges.append((steps.min(), steps.max()))
    return max(low for low, _ in ranges) <= min(high for _, high in ranges)


def _result(column):
    return column.rpartition('/')[2]


def _figure(count):
    # Built without pyplot: no global state, and no display needed.
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'purerl[plot]'") from error

    columns = min(count, 3)
    rows = -(-count // columns)
    size = (6.4, 4.0) if count == 1 else (4.2 * columns, 3.0 * rows)
    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes


def _draw(axis, curves, band, label):
    steps, values = on_common_steps(curves)
    low, high = confidence_band(values, band)
    marker = 'o' if len(steps) == 1 else None
    (line,) = axis.plot(steps, values.mean(axis=0), label=label, marker=marker)
    axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def _save(figure, path):
    path = Path(path)
    with atomic_path(path) as temporary:
        # The software's version among the metadata would make equal figures unequal files.
        figure.savefig(temporary, format='png', dpi=120, metadata={'Software': None})
    return path


def _to_float(cell):
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float('nan')
