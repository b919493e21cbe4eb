"""Settings of the whole test suite; they stand before anything imports JAX."""

import os

import torch

# Code generation costs seconds per program: tests that want it ask for it.
os.environ.setdefault('PURERL_JIT', 'trace')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_THREEFRY_PARTITIONABLE', 'true')  # the default from JAX 0.5 on

torch.set_num_threads(1)
