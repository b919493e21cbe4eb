r"""Trains RRD, IRCR or one of their base algorithms on episodic rewards, with the original's flags.

    python -m experiments.rrd --alg=rrd --basis_alg=sac --env=Ant-v5
    python -m experiments.rrd --alg=rrd --basis_alg=sac --rrd_bias_correction=True --env=Ant-v5
    python -m experiments.rrd --alg=ircr --basis_alg=td3 --env=Walker2d-v5
    python -m experiments.rrd --alg=rrd --basis_alg=dqn --env=Assault
    python -m experiments.rrd --alg=rrd --basis_alg=sac --env=Ant-v5 --num_envs=4
    python -m experiments.rrd --alg=sac --env_type=normal --env=Hopper-v5 --pi_lr=1e-3

--alg is a file of purerl/agents/rrd; --<field> changes a field of its config, as --agent.<field>
does. After an interruption the same command with --resume goes on, bit for bit.
"""

import re

import gymnasium
from absl import flags as absl_flags

from purerl.envs.atari import is_atari
from purerl.train.config import RunError, launch, load_agent, parse
from purerl.train.episodic import Settings, train

FOLDER = 'purerl/agents/rrd'
DEFAULT_ALGORITHM = 'rrd'
DEFAULT_BASES = {'atari': 'dqn', 'mujoco': 'sac'}  # by the original's names of the domains
RENAMED = {'pi_delay_freq': 'policy_delay'}  # the original's names of fields
ATARI_ONLY = {
    'sticky',
    'noop',
    'frames',
    'frame_max',
    'life_loss_ends',
    'test_eps',
    'rews_scale',
}
LEFT_OUT = {
    'tag': '--run_name names the folder of a run',
    'save_rews': "all episodes' returns are recorded, in episodes.csv and eval.csv",
}


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


def translate(argv):
    """Turn the original's flags into those of the library's launchers."""
    if any(re.match('--?agent(=|$)', argument) for argument in argv):
        return argv
    try:
        given = absl_flags.FlagValues().read_flags_from_files(argv[1:], force_gnu=True)
    except absl_flags.Error as error:
        raise RunError(str(error)) from error
    argv = [argv[0], *given]
    for name in filter(LEFT_OUT.get, _names(argv)):
        raise RunError(f'--{name} of the original is left out: {LEFT_OUT[name]}')
    algorithm, argv = _take(argv, 'alg', default=DEFAULT_ALGORITHM)
    base, argv = _take(argv, 'basis_alg')
    variant, argv = _take(argv, 'optimizer')  # the learning rate depends on it
    environment, argv = _take(argv, 'env', 'env_name')
    _check_version(environment)
    agent_class = load_agent(f'{FOLDER}/{algorithm}.py').agent_class
    if hasattr(agent_class, 'variant'):  # it has a base
        games = environment is not None and is_atari(environment)
        base = base or DEFAULT_BASES['atari' if games else 'mujoco']
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
    flags = [f'--agent={path}'] + ([f'--env_name={environment}'] if environment else [])
    return [argv[0], *flags, *(_dotted(argument, fields) for argument in argv[1:])]


def _names(argv):
    """Return the names of the flags given, of switches (--no<name>) too."""
    names = [a.lstrip('-').partition('=')[0] for a in argv[1:] if a.startswith('-')]
    return [*names, *(name.removeprefix('no') for name in names if name.startswith('no'))]


def _check_atari_flags(argv, environment):
    for name in () if is_atari(environment) else filter(ATARI_ONLY.__contains__, _names(argv)):
        raise RunError(f'--{name} is for Atari games (--env=Assault); {environment} is none')


def _check_version(environment):
    """Refuse the ids of gym 0.18, which gymnasium no longer has."""
    match = re.fullmatch(r'(\w+)-v[123]', environment or '')
    if match is not None and f'{match[1]}-v5' in gymnasium.registry:
        raise RunError(f'gymnasium has no {environment}: --env={match[1]}-v5 is its successor')


def _check_optimizer(optimizer, base):
    if optimizer is not None and base != 'dqn':
        raise RunError(
            f'--optimizer={optimizer} belongs to DQN (--alg=dqn, or --basis_alg=dqn around it), '
            f'not to {base}'
        )


def _dotted(argument, fields):
    """Make a flag that names a field of the agent's config one of the agent's."""
    name, equals, value = argument.lstrip('-').partition('=')
    field = RENAMED.get(name, name)
    if argument.startswith('-') and field in fields:
        return f'--agent.{field}{equals}{value}'
    return (
        f'--noagent.{name[2:]}'
        if argument == f'--no{name[2:]}' and name[2:] in fields
        else argument
    )


def main(argv):
    arguments = parse(translate(argv), Settings, f'{FOLDER}/{DEFAULT_ALGORITHM}.py', __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
