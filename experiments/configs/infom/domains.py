"""The domains of InFOM's experiments, for which the files beside this one have configs.

Source: README.md of chongyi-zheng/infom @ f0356dd, which has commands for InFOM on all domains and
for the other agents on some; where it has none, there is no config.

What its commands set of the launcher's flags is in `SETTINGS`, except for `save_interval`, which
changes no result. A domain's four or five tasks have the same values: the first one is the default
of `env_name` (images: the only one).
"""

import difflib
from collections.abc import Mapping

import ml_collections

from purerl.train.config import RunError

_VISUAL = {
    'pretraining_steps': 250_000,
    'finetuning_steps': 100_000,
    'eval_interval': 10_000,
    'p_aug': 0.5,
    'frame_stack': 3,
}

SETTINGS = {
    'cheetah': {'env_name': 'cheetah_run'},
    'walker': {'env_name': 'walker_walk'},
    'quadruped': {'env_name': 'quadruped_run'},
    'jaco': {'env_name': 'jaco_reach_top_left'},
    'cube_single': {'env_name': 'cube-single-play-singletask-task1-v0'},
    'cube_double': {'env_name': 'cube-double-play-singletask-task1-v0'},
    'scene': {'env_name': 'scene-play-singletask-task1-v0'},
    'puzzle_4x4': {'env_name': 'puzzle-4x4-play-singletask-task1-v0'},
    'visual_cube_single': {'env_name': 'visual-cube-single-play-singletask-task1-v0', **_VISUAL},
    'visual_cube_double': {'env_name': 'visual-cube-double-play-singletask-task1-v0', **_VISUAL},
    'visual_scene': {'env_name': 'visual-scene-play-singletask-task1-v0', **_VISUAL},
    'visual_puzzle_4x4': {'env_name': 'visual-puzzle-4x4-play-singletask-task1-v0', **_VISUAL},
}


def configured(
    config: ml_collections.ConfigDict, domains: Mapping[str, Mapping], domain: str | None
) -> ml_collections.ConfigDict:
    """Return an agent's config with a domain's values in the place of its defaults.

    Args:
        config: the agent's defaults; changed in place.
        domains: for each domain the fields that differ.
        domain: which one.

    Raises:
        RunError: if there are no values for it; the message has the nearest name and all of them.
    """
    if domain not in domains:
        near = difflib.get_close_matches(domain or '', domains, n=1)
        fault = 'needs a domain' if domain is None else f'has no published values for {domain!r}'
        hint = f'; did you mean {near[0]}?' if near else '.'
        raise RunError(
            f'{config.agent_name} {fault}{hint} There are values for {", ".join(domains)} '
            "(--agent=<file>.py:<domain>); elsewhere take the agent's own file and "
            '--agent.<field> flags'
        )
    config.update(domains[domain])
    return config
