"""The flags of RRD's original, as those of the library's launchers.

``--alg`` and ``--basis_alg`` become the agent's file and its argument, ``--<field>`` of the agent's
config becomes ``--agent.<field>``, and ``--env`` is ``--env_name``. Bases are told apart by what
their files offer, never by their names.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence

import gymnasium
from absl import flags as absl_flags

from purerl.envs.atari import is_atari
from purerl.train.config import RunError, load_agent, takes_argument
from purerl.train.episodic import Settings

FOLDER = 'purerl/agents/rrd'
DEFAULT_ALGORITHM = 'rrd'
_RENAMED = {'pi_delay_freq': 'policy_delay'}  # the original's names of fields
_ATARI_ONLY = {'sticky', 'noop', 'frames', 'frame_max', 'life_loss_ends', 'test_eps', 'rews_scale'}
_LOOP_FLAGS = {field.name for field in dataclasses.fields(Settings)}
_LEFT_OUT = {
    'tag': '--run_name names the folder of a run',
    'save_rews': "all episodes' returns are recorded, in episodes.csv and eval.csv",
}


def translate(argv: Sequence[str]) -> list[str]:
    """Turn the original's flags into those of the library's launchers.

    Args:
        argv: the program's name and its arguments; as they are if ``--agent`` is among them.

    Raises:
        RunError: for flags that do not go together, or that were left out.
    """
    if any(re.match('--?agent(=|$)', argument) for argument in argv):
        return argv
    try:
        given = absl_flags.FlagValues().read_flags_from_files(argv[1:], force_gnu=True)
    except absl_flags.Error as error:
        raise RunError(str(error)) from error
    argv = [argv[0], *given]
    for name in filter(_LEFT_OUT.get, _names(argv)):
        raise RunError(f'--{name} of the original is left out: {_LEFT_OUT[name]}')
    algorithm, argv = _take(argv, 'alg', default=DEFAULT_ALGORITHM)
    base, argv = _take(argv, 'basis_alg')
    variant, argv = _take(argv, 'optimizer')  # the learning rate depends on it
    environment, argv = _take(argv, 'env', 'env_name')
    _check_version(environment)
    agent_class = load_agent(f'{FOLDER}/{algorithm}.py').agent_class
    if hasattr(agent_class, 'variant'):  # it has a base
        games = environment is not None and is_atari(environment)
        base = base or agent_class.default_base(games)
        _check_optimizer(variant, base)
        base = agent_class.variant(base, environment)
        variant = f'{base}_{variant}' if variant else base
    elif base is not None:
        raise RunError(f'--basis_alg={base} belongs to --alg=rrd or --alg=ircr, not to {algorithm}')
    else:
        _check_optimizer(variant, algorithm)
    path = f'{FOLDER}/{algorithm}.py' + (f':{variant}' if variant else '')
    agent = load_agent(path)
    fields = set(agent.config)
    _check_atari_flags(argv, environment or agent.settings.get('env_name', Settings.env_name))
    flags = [f'--agent={path}'] + ([] if environment is None else [f'--env_name={environment}'])
    return [argv[0], *flags, *(_dotted(argument, fields) for argument in argv[1:])]


def _take(argv, *names, default=None):
    """Take a flag out of the arguments; returns its value and the others."""
    value, rest, arguments = default, [], iter(argv)
    for argument in arguments:
        name, equals, given = argument.lstrip('-').partition('=')
        if argument.startswith('-') and name in names:
            value = given if equals else next(arguments, None)
            if value is None:
                raise RunError(f'{argument} needs a value')
        else:
            rest.append(argument)
    return value, rest


def _names(argv):
    """Return the names of the flags given, of switches (--no<name>) too."""
    names = [a.lstrip('-').partition('=')[0] for a in argv[1:] if a.startswith('-')]
    return [*names, *(name.removeprefix('no') for name in names if name.startswith('no'))]


def _check_atari_flags(argv, environment):
    for name in () if is_atari(environment) else filter(_ATARI_ONLY.__contains__, _names(argv)):
        raise RunError(f'--{name} is for Atari games (--env=Assault); {environment} is none')


def _check_version(environment):
    """Refuse the ids of gym 0.18, which gymnasium no longer has."""
    match = re.fullmatch(r'(\w+)-v[123]', environment or '')
    if match is not None and f'{match[1]}-v5' in gymnasium.registry:
        raise RunError(f'gymnasium has no {environment}: --env={match[1]}-v5 is its successor')


def _check_optimizer(optimizer, base):
    if optimizer is not None and not takes_argument(f'{FOLDER}/{base}.py'):
        raise RunError(
            f'--optimizer={optimizer} belongs to DQN (--alg=dqn, or --basis_alg=dqn around it), '
            f'not to {base}'
        )


def _dotted(argument, fields):
    """Make a flag that names a field of the agent's config one of the agent's."""
    name, equals, value = argument.lstrip('-').partition('=')
    field = _RENAMED.get(name, name)
    if argument.startswith('-') and field in fields:
        return f'--agent.{field}{equals}{value}'
    if argument == f'--no{name[2:]}' and name[2:] in fields:
        return f'--noagent.{name[2:]}'
    known = {name, name.removeprefix('no')} & _LOOP_FLAGS
    if argument.startswith('--') and not known and '.' not in name:
        nearest = difflib.get_close_matches(name, [*fields, *_LOOP_FLAGS], 1, cutoff=0.8)
        if nearest:
            raise RunError(f'unknown flag --{name}; the nearest is --{nearest[0]}')
    return argument
