"""What `purerl.train.offline_to_online` checks before anything is compiled or written."""

import contextlib
import sys

import torch
from gymnasium.spaces import Dict, Space

from purerl.core import jit
from purerl.data import d4rl
from purerl.envs.make import make
from purerl.train.config import Agent, RunError
from purerl.train.config import check_settings as check_fields
from purerl.train.loop import check_environment, check_seen, is_resumable
from purerl.train.transitions import CLONED, ENTRIES


def check_settings(settings) -> None:
    """Refuse settings that do not fit together.

    Raises:
        RunError: if so.
    """
    check_fields(settings)
    if settings.take_top is not None and settings.filter_threshold is not None:
        raise RunError('take_top and filter_threshold both choose episodes: give one of them')
    if settings.take_top is not None and not 0 < settings.take_top <= 100:
        raise RunError(f'take_top is a percentage above 0, not {settings.take_top}')
    if not 0 < settings.train_ratio <= 1:
        raise RunError(f'train_ratio must lie above 0 and not above 1, not {settings.train_ratio}')
    if not settings.total_steps:
        raise RunError('max_steps and online_max_steps are both 0: there is nothing to do')
    if settings.train_actor_finetuning and settings.batch_size % 2:
        raise RunError(
            f'train_actor_finetuning takes halves of batch_size={settings.batch_size}: make it even'
        )


def check_agent(agent: Agent, settings) -> None:
    """Refuse an agent without the methods that the settings ask for.

    Raises:
        RunError: if so.
    """
    needed = {'update': 'every run', 'eval_actions': 'every run'}
    if settings.evaluate_implicit:
        needed['sample_implicit_policy'] = '--evaluate_implicit'
    if settings.online_max_steps:
        needed['critic_update'] = '--online_max_steps'
        if settings.sample_implicit_policy:
            needed['sample_implicit_policy'] = '--sample_implicit_policy'
        if settings.train_actor_finetuning:
            needed['actor_update'] = '--train_actor_finetuning'
    missing = [name for name in needed if not hasattr(agent.agent_class, name)]
    if missing:
        hint = ''
        if hasattr(agent.agent_class, 'pretrain'):
            hint = (
                '; an agent with pretrain and finetune trains with experiments.offline or '
                'experiments.pretrain_finetune'
            )
        raise RunError(
            f'{agent.path} cannot train here: {agent.agent_class.__name__} has no '
            f'{" and no ".join(missing)}, which {needed[missing[0]]} needs{hint}'
        )
    if agent.needs:
        raise RunError(
            f'{agent.path} needs {", ".join(sorted(agent.needs))}, which this loop does not provide'
        )


def check_data(agent: Agent, settings, example: dict) -> None:
    """Refuse observations and actions that the agent is not made for.

    Args:
        agent: the agent's file and config.
        settings: `purerl.train.offline_to_online.Settings`.
        example: observations and actions of the dataset, one row of each.

    Raises:
        RunError: for images where the agent acts by states, states where it acts by images, or
            anything else that is not one vector per transition.
    """
    has_images = isinstance(example['observations'], dict)
    if 'pixel_keys' in agent.config:
        if not has_images:
            raise RunError(
                f'{agent.path} acts by images, but {settings.dataset} has states: choose an agent '
                'that acts by states, such as purerl/agents/jaxrl5/bc.py'
            )
        return
    if has_images:
        raise RunError(
            f'{agent.path} acts by states, but {settings.dataset} has images: use '
            'purerl/agents/jaxrl5/pixel_bc.py'
        )
    for key in CLONED:
        shape = example[key].shape[1:]
        if len(shape) != 1:
            raise RunError(
                f'{settings.dataset} has {key} of shape {shape} per transition, but {agent.path} '
                'takes vectors: collect data whose observations and actions are vectors'
            )


def check_env(settings, example: dict) -> None:
    """Refuse an environment that cannot be acted in, seen, filmed, or is not the dataset's.

    Args:
        settings: `purerl.train.offline_to_online.Settings`.
        example: observations and actions of the dataset, one row of each.

    Raises:
        RunError: if so, or if there is no such environment.
    """
    try:
        env = make(settings.env_name, **settings.eval_env_options)
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(str(error)) from error
    with contextlib.closing(env):
        if settings.image_size is not None:
            check_seen(env)
        check_environment(env, settings.save_video)
        is_resumable(env)
        for key, space in (('observations', env.observation_space), ('actions', env.action_space)):
            given, expected = _shapes_of(example[key]), _shapes_of(space)
            if given != expected:
                raise RunError(
                    f'{settings.dataset} has {key} of shape {given}, but {settings.env_name} has '
                    f'{expected}: set the --env_name it was collected in'
                )


def _shapes_of(node):
    """Shapes of one entry of a dataset, or of a space."""
    if isinstance(node, dict | Dict):
        return {name: _shapes_of(child) for name, child in sorted(node.items())}
    return tuple(node.shape if isinstance(node, Space) else node.shape[1:])


def warn_of_scales(settings) -> None:
    """Say so where the rewards of the two phases have different scales."""
    scaled = settings.normalize_returns and d4rl.is_locomotion(settings.env_name)
    if scaled and settings.online_max_steps:
        print(
            'warning: the rewards of the dataset are scaled (normalize_returns) and those of the '
            'environment are not, as in the original: --nonormalize_returns trains on one scale',
            file=sys.stderr,
        )


def entries_to_learn_from(agent_file: Agent, agent, rows: dict) -> tuple[str, ...]:
    """Return which entries of the data batches are to hold, trying an update uncompiled.

    An agent that clones behaviour gets observations and actions only, as in the original, whose
    launchers know it by its name.

    Args:
        agent_file: the agent's file and config.
        agent: an agent.
        rows: a few transitions, with all entries that the data has.

    Raises:
        RunError: if the agent cannot use them.
    """
    problem = None
    for keys in (CLONED, tuple(rows)):
        try:
            with jit.use_mode('off'), torch.no_grad():
                agent.update({key: rows[key] for key in keys})
            return keys
        except KeyError as error:
            problem = error
        except ValueError as error:
            raise RunError(f'{agent_file.path} cannot learn from the dataset: {error}') from error
    if problem.args[0] not in ENTRIES:
        raise problem
    raise RunError(
        f'{agent_file.path} cannot learn from the dataset: there are no {problem.args[0]} in it, '
        f'only {", ".join(rows)}'
    )
