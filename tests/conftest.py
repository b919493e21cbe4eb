"""Settings of the whole test suite; they stand before anything imports JAX."""

import os
import sys

import torch

# Code generation costs seconds per program: tests that want it ask for it.
os.environ.setdefault('PURERL_JIT', 'trace')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_THREEFRY_PARTITIONABLE', 'true')  # the default from JAX 0.5 on

torch.set_num_threads(1)

# dm_control cannot be installed on Python 3.13 and later (its dependency labmaze has no wheels):
# the `test` extra leaves it out there.
DMC_TESTS = ['unit/envs/test_dmc.py', 'unit/train/test_collect_exorl.py']
collect_ignore = DMC_TESTS if sys.version_info >= (3, 13) else []


def pytest_report_header():
    """Say what is not run."""
    return f'without dm_control: not running {", ".join(collect_ignore)}' if collect_ignore else ''
