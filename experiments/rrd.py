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

from purerl.envs.atari import is_atari
from purerl.train.config import RunError, launch, load_agent, parse
from purerl.train.episodic import Settings, train

FOLDER = 'purerl/agents/rrd'
DEFAULT_ALGORITHM = 'rrd'
DEFAULT_BASES = {'atari': 'dqn', 'mujoco': 'sac'}  # by the original's names of the domains


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
    algorithm, argv = _take(argv, 'alg', default=DEFAULT_ALGORITHM)
    base, argv = _take(argv, 'basis_alg')
    variant, argv = _take(argv, 'optimizer')  # the learning rate depends on it
    environment, argv = _take(argv, 'env', 'env_name')
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
    fields = set(load_agent(path).config)
    flags = [f'--agent={path}'] + ([f'--env_name={environment}'] if environment else [])
    return [argv[0], *flags, *(_dotted(argument, fields) for argument in argv[1:])]


def _check_optimizer(optimizer, base):
    if optimizer is not None and base != 'dqn':
        raise RunError(
            f'--optimizer={optimizer} belongs to DQN (--alg=dqn, or --basis_alg=dqn around it), '
            f'not to {base}'
        )


def _dotted(argument, fields):
    """Make a flag that names a field of the agent's config one of the agent's."""
    name = argument.lstrip('-').partition('=')[0]
    if argument.startswith('-') and name in fields:
        return f'--agent.{argument.lstrip("-")}'
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
