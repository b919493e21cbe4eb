"""Runs that are cut short, and what must not depend on that."""

import contextlib
import itertools
import os
import random
import subprocess
import time
from pathlib import Path

import pytest


class Crash(Exception):
    """Stands for a killed process."""


@contextlib.contextmanager
def crash_at(target, name, count):
    """Make the `count`-th call of a method raise, and the block with it."""
    original, calls = getattr(target, name), itertools.count(1)

    def method(self, *args, **kwargs):
        if next(calls) == count:
            raise Crash
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Crash):
        patched.setattr(target, name, method)
        yield


def contents(folder):
    """Everything that must not depend on interruptions, as bytes by path."""
    files = [*folder.rglob('*.csv'), *folder.rglob('checkpoints/*'), folder / 'summary.json']
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if file.name != 'timing.csv'
    }


def start(command, **environment):
    """Start a launcher from the repository's root, uncompiled and with one thread."""
    environment = {**os.environ, 'PURERL_JIT': 'off', 'OMP_NUM_THREADS': '1', **environment}
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after_a_checkpoint(process, folder, seconds=60):
    """Kill a run's process at some moment after it has written its first checkpoint."""
    deadline = time.monotonic() + seconds
    try:
        while not list(folder.glob('checkpoints/*.json')):
            assert process.poll() is None, 'the run ended too early'
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.SystemRandom().uniform(0, 0.3))
    finally:
        process.kill()
        process.wait()
