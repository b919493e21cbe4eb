"""Curves: reading, interpolation, bands by hand, and that figures are written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.plot import parse_groups
from purerl.train.plotting import (
    confidence_band,
    on_common_steps,
    plot_run,
    plot_runs,
    read_csv,
    read_curves,
    seed_folders,
)

RETURN = 'evaluation/episode.return'


def write_run(
    folder, steps=(0, 10, 20), values=(1.0, 2.0, 3.0), csv_name='eval.csv', column=RETURN
):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'{value},{step}' for step, value in zip(steps, values, strict=True)]
    (folder / csv_name).write_text('\n'.join([f'{column},step', *rows]) + '\n')
    return folder


def is_png(path):
    return path.read_bytes().startswith(b'\x89PNG') and path.stat().st_size > 5000


def test_empty_cells_are_nan_and_repeated_steps_count_once(tmp_path):
    (tmp_path / 'eval.csv').write_text('step,a,b\n0,1.5,\n10,,x\n20,3,2\n20,4,3\n')
    table = read_csv(tmp_path / 'eval.csv')
    np.testing.assert_array_equal(table['a'], [1.5, np.nan, 3, 4])
    np.testing.assert_array_equal(table['b'], [np.nan, np.nan, 2, 3])
    ((steps, values),) = read_curves([tmp_path], 'eval.csv', 'a')
    np.testing.assert_array_equal(steps, [0, 20])
    np.testing.assert_array_equal(values, [1.5, 4])


def test_missing_files_and_columns_are_named_with_the_nearest(tmp_path):
    run = write_run(tmp_path / 'run')
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        seed_folders(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'has no train\.csv; its CSV files: eval\.csv'):
        read_curves([run], 'train.csv', RETURN)
    with pytest.raises(ValueError, match=f"no column 'episode.retrun'; the nearest are {RETURN}"):
        read_curves([run], 'eval.csv', 'episode.retrun')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_csv(run / 'train.csv')
    (run / 'train.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match="no rows or no column 'step'"):
        read_csv(run / 'train.csv')
    (run / 'train.csv').write_text('a,step\n,2\n')
    with pytest.raises(ValueError, match="no value in its column 'a'"):
        read_curves([run], 'train.csv', 'a')


def test_seeds_are_subfolders_or_the_run_itself(tmp_path):
    run = write_run(tmp_path / 'run')
    assert seed_folders(run) == [run]
    seeds = [write_run(run / f'seed_{i:03d}') for i in range(2)]
    assert seed_folders(run) == seeds


def test_equal_steps_stay_and_different_ones_are_interpolated_where_all_have_values():
    steps, values = on_common_steps([(np.array([0, 4]), np.array([1.0, 2.0]))] * 2)
    np.testing.assert_array_equal(steps, [0, 4])
    assert values.shape == (2, 2)
    first = np.array([0.0, 10.0]), np.array([0.0, 10.0])
    second = np.array([5.0, 20.0]), np.array([0.0, 30.0])
    steps, values = on_common_steps([first, second])
    assert (steps[0], steps[-1]) == (5.0, 10.0)
    np.testing.assert_allclose(values[0], steps, rtol=1e-12)
    np.testing.assert_allclose(values[1], 2 * (steps - 5), rtol=1e-12)
    with pytest.raises(ValueError, match='no step in common'):
        on_common_steps([first, (np.array([11.0]), np.array([0.0]))])


def test_the_normal_band_is_1_96_standard_errors():
    values = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    low, high = confidence_band(values, 'normal')
    half = 1.96 * 2 / np.sqrt(3)
    np.testing.assert_allclose(low, [2 - half, 5], rtol=1e-12)
    np.testing.assert_allclose(high, [2 + half, 5], rtol=1e-12)


def test_the_bootstrap_band_covers_the_mean_and_is_reproducible():
    values = np.random.RandomState(0).normal(size=(40, 1))
    low, high = confidence_band(values)
    np.testing.assert_array_equal(confidence_band(values), (low, high))
    # For forty normal values it is close to the normal band.
    normal_low, normal_high = confidence_band(values, 'normal')
    np.testing.assert_allclose([low, high], [normal_low, normal_high], atol=0.05)
    # Two seeds: a quarter of the resamples are the lower one alone, so the band is both.
    low, high = confidence_band(np.array([[1.0], [3.0]]))
    assert (low[0], high[0]) == (1.0, 3.0)


def test_one_seed_has_no_band_and_an_unknown_band_is_refused():
    low, high = confidence_band(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(low, high)
    with pytest.raises(ValueError, match="'bootstrap' or 'normal', not 'wide'"):
        confidence_band(np.ones((2, 2)), 'wide')


@pytest.mark.parametrize('band', ['bootstrap', 'normal'])
def test_plot_runs_draws_groups_of_seeds(tmp_path, band):
    single = [write_run(tmp_path / f'a{i}', values=(i, i + 1, i + 2)) for i in range(3)]
    for i in range(2):
        write_run(tmp_path / 'b' / f'seed_{i:03d}', steps=(0, 5, 9 + i))
    groups = {'a': single, 'b': [tmp_path / 'b']}
    path = plot_runs(groups, tmp_path / 'deep' / 'out.png', RETURN, band=band)
    assert is_png(path)
    with pytest.raises(ValueError, match='no runs'):
        plot_runs({}, path, RETURN)


def test_plot_run_draws_what_is_there(tmp_path):
    run = write_run(tmp_path / 'run')
    write_run(run, csv_name='train.csv', column='training/critic/critic_loss')
    first = plot_run(run)
    assert first == run / 'curves.png'
    assert is_png(first)
    size = first.stat().st_size
    (run / 'train.csv').unlink()
    assert plot_run(run).stat().st_size < size
    for i in range(2):
        write_run(run / f'seed_{i:03d}', values=(i, 0, 1))
    assert is_png(plot_run(run))


def test_plot_run_refuses_a_folder_without_curves(tmp_path):
    with pytest.raises(FileNotFoundError, match='no CSV file with a curve'):
        plot_run(tmp_path)


def test_the_launcher_draws_runs_and_groups(tmp_path):
    runs = [str(write_run(tmp_path / name)) for name in 'abc']
    launch(runs[0])
    assert is_png(tmp_path / 'a' / 'curves.png')
    out = tmp_path / 'out.png'
    launch(f'--path={out}', f'both={runs[0]},{runs[1]}', runs[2])
    assert is_png(out)


@pytest.mark.parametrize('arguments', [('nowhere',), ('--path=out.png', 'a=nowhere')])
def test_the_launcher_says_in_one_line_what_is_missing(arguments):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        launch(*arguments)
    assert caught.value.stderr == 'error: the run folder nowhere does not exist\n'


def test_groups_collect_their_folders(tmp_path):
    folder = write_run(tmp_path / 'lr=1')
    assert parse_groups(['x=a', 'x=b,c', str(folder)]) == {
        'x': ['a', 'b', 'c'],
        str(folder): [str(folder)],
    }


def test_seeds_without_a_step_in_common_leave_the_figure_out(tmp_path):
    for i, steps in enumerate([(16, 44), (50,)]):
        write_run(tmp_path / f'seed_00{i}', steps, [1.0] * len(steps), 'episodes.csv')
    with pytest.raises(FileNotFoundError, match='no CSV file with a curve'):
        plot_run(tmp_path)
    for i in range(2):
        write_run(tmp_path / f'seed_00{i}')
    assert is_png(plot_run(tmp_path))


def launch(*arguments):
    # In a process of its own, because absl's flags are one set per process.
    root = Path(__file__).parents[3]
    command = [sys.executable, '-m', 'experiments.plot', *arguments]
    subprocess.run(command, cwd=root, check=True, stderr=subprocess.PIPE, text=True)
