"""Settings of the whole test suite; they stand before anything imports JAX."""

import os
import sys

import pytest
import torch

# Code generation costs seconds per program: tests that want it ask for it.
os.environ.setdefault('PURERL_JIT', 'trace')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_THREEFRY_PARTITIONABLE', 'true')  # the default from JAX 0.5 on

torch.set_num_threads(1)

# On Python 3.13 and later dm_control, and OGBench's package, which requires it, cannot be installed
# (its dependency labmaze has no wheels): the `test` extra leaves them out there.
IS_WITHOUT = sys.version_info >= (3, 13)
FILES = [
    'unit/data/test_ogbench.py',
    'unit/envs/test_dmc.py',
    'unit/train/test_collect_exorl.py',
]
TESTS = {
    'test_a_name_is_looked_up_in_ogbenchs_folder',
    'test_a_plan_oracle_moves_the_cube',
    'test_a_scene_whose_cube_ends_out_of_sight_is_collected_again',
    'test_a_trained_agent_collects_in_ogbenchs_format',
    'test_an_unknown_name_is_refused_with_the_nearest',
    'test_exorls_files_by_the_name_of_a_task',
    'test_images_that_cannot_be_rendered_say_what_to_do',
    'test_offline_agents_explore_with_keys',
    'test_ogbench_goes_on_bit_for_bit',
    'test_ogbench_single_task_reports_success_and_is_reproducible',
    'test_oracle_datasets_load_with_the_rewards_of_a_single_task',
    'test_oracles_act_and_are_determined_by_the_seed',
    'test_the_oracles_options_are_flags',
}
collect_ignore = FILES if IS_WITHOUT else []


def pytest_collection_modifyitems(items):
    """Skip what needs OGBench's package or dm_control where they cannot be installed."""
    for item in items if IS_WITHOUT else ():
        if item.originalname in TESTS:
            item.add_marker(pytest.mark.skip(reason='neither ogbench nor dm_control'))


def pytest_report_header():
    """Say what is not run."""
    if not IS_WITHOUT:
        return ''
    return (
        f'neither ogbench nor dm_control: not running {", ".join(FILES)}, {len(TESTS)} more tests'
    )
