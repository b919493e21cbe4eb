"""Replays any recording: finds the replayer of its kind, runs it and keeps the account."""

import pathlib

from absl import logging

from experiments.reference import (
    networks_infom,
    networks_jaxrl5,
    rrd,
    rrd_data,
    rrd_envs,
    rrd_learner,
)
from experiments.reference.agents import FAMILIES, replay_agent
from experiments.reference.case import Case, CaseError, load
from experiments.reference.compare import Report
from experiments.reference.datasets import replay_infom_dataset, replay_jaxrl5_dataset
from experiments.reference.randoms import replay_jax_random
from purerl.core import jit


def _dataset_replayer(replay_dataset):
    """Wrap a generator of (name, array) pairs."""

    def run(case: Case, report: Report) -> None:
        case.consumed |= {
            name
            for name in case.tensors
            if name.startswith(('dataset/', 'fn/')) and '/out/' not in name
        }
        try:
            for name, array in replay_dataset(case):
                report.compare('batch', name, array)
        except KeyError as error:
            raise CaseError(f'the recording, or purerl, lacks {error}') from error

    return run


# Recordings that are not agents', by (system, agent).
SUBJECTS = {
    ('infom', 'jax_random'): replay_jax_random,
    ('infom', 'networks'): networks_infom.replay_networks,
    ('infom', 'dataset'): _dataset_replayer(replay_infom_dataset),
    ('idql', 'networks'): networks_jaxrl5.replay_networks,
    ('idql', 'dataset'): _dataset_replayer(replay_jaxrl5_dataset),
}


def replay(case: Case, mode: str = 'trace') -> Report:
    """Replay one recording in a compilation mode of `purerl.core.jit`.

    Whatever keeps the replay from its end is a failure of the report, never an exception.
    """
    report = Report(case)
    try:
        with jit.use_mode(mode):
            _replayer(case)(case, report)
    except CaseError as error:
        report.fail(str(error))
    except Exception as error:  # a recording outside an agent's domain may fail in any way
        logging.debug('%s', case.path, exc_info=True)
        stage = f'{report.stage}: ' if report.stage else ''
        report.fail(f'{stage}{type(error).__name__}: {" ".join(str(error).split())}')
    else:
        report.finish()
    return report


def _replayer(case: Case):
    if (case.system, case.agent) in SUBJECTS:
        return SUBJECTS[case.system, case.agent]
    if case.system == 'rrd':
        subjects = {**rrd_data.SUBJECTS, **rrd_envs.SUBJECTS, **rrd_learner.SUBJECTS}
        return subjects.get(case.agent, rrd.replay_agent)
    if case.system not in FAMILIES:
        known = ', '.join(sorted([*FAMILIES, 'rrd']))
        raise CaseError(f'unknown system {case.system!r} (known: {known})')
    return replay_agent


def recordings(paths) -> list[pathlib.Path]:
    """List the recordings among files and folders (searched to any depth).

    A folder without recordings stands in the list itself, so that it fails.
    """
    found = []
    for path in map(pathlib.Path, paths):
        below = sorted(path.rglob('*.safetensors')) if path.is_dir() else []
        found += below or [path]
    return found


def replay_file(path: pathlib.Path, mode: str = 'trace') -> tuple[bool, str]:
    """Replay a file; return whether it passed, and one line or two to print."""
    try:
        case = load(path)
    except CaseError as error:
        return False, f'FAIL {path}\n     {error}'
    report = replay(case, mode)
    errors = '  '.join(f'{kind} {_figure(error)}' for kind, error in report.errors.items())
    lines = [f'{"PASS" if report.passed else "FAIL"} {path}  {errors}'.rstrip()]
    lines += [f'     note: {note}' for note in report.notes]
    if report.left_out:
        lines.append(f'     left out as ill-conditioned: {_leaves(report.left_out)}')
    if report.failures:
        lines.append(f'     {report.failures[0]}')
        if len(report.failures) > 1:
            lines.append(f'     and {len(report.failures) - 1} more failures')
    return report.passed, '\n'.join(lines)


def _figure(error: float) -> str:
    return f'{error:.1e}' if error else '0'


def _leaves(names: list[str]) -> str:
    return f'{len(names)} tensors, {names[0]} first'
