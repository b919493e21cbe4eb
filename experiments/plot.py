"""Draws curves of runs into a PNG.

    python -m experiments.plot exp/run                     # exp/run/curves.png
    python -m experiments.plot --path=returns.png --column=evaluation/episode.return \
        iql=exp/iql_0,exp/iql_1 rebrac=exp/rebrac
"""

import sys
from pathlib import Path

from absl import app, flags

from purerl.train.plotting import plot_run, plot_runs

FLAGS = flags.FLAGS

flags.DEFINE_string('path', None, 'PNG to write; without it each run gets its own curves.png.')
flags.DEFINE_string('column', 'evaluation/episode.return', 'Column to draw (with --path).')
flags.DEFINE_string('csv', 'eval.csv', 'CSV file of the runs that has the column (with --path).')
flags.DEFINE_enum(
    'band',
    'bootstrap',
    ['bootstrap', 'normal'],
    'Confidence band over seeds: bootstrap 95%, or mean +- 1.96 standard errors.',
)


def parse_groups(arguments):
    """Reads `label=folder,folder` and bare folders, which are their own labels."""
    groups = {}
    for argument in arguments:
        label, separator, folders = argument.partition('=')
        if separator and not Path(argument).is_dir():
            groups.setdefault(label, []).extend(folders.split(','))
        else:
            groups.setdefault(argument, []).append(argument)
    return groups


def main(argv):
    if len(argv) < 2:
        raise app.UsageError('give the folders of the runs to draw')
    try:
        if FLAGS.path is None:
            paths = [plot_run(folder) for folder in argv[1:]]
        else:
            groups = parse_groups(argv[1:])
            paths = [plot_runs(groups, FLAGS.path, FLAGS.column, FLAGS.csv, FLAGS.band)]
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')
    for path in paths:
        print(f'wrote {path}')


if __name__ == '__main__':
    app.run(main)
