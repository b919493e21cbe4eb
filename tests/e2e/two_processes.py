"""Programs that two processes run together, under torchrun."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path


@contextlib.contextmanager
def started(*program):
    """Start a file, or a module after '-m', from the repository's root, with one thread each.

    What has not ended with the block is ended.
    """
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    process = subprocess.Popen(
        [*torchrun, *map(str, program)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        # Not killed: torchrun ends its processes, within 30 seconds.
        process.terminate()
        process.communicate()


def run(*program, seconds=600):
    """Run a program to its end, which has to be a good one."""
    with started(*program) as process:
        output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
