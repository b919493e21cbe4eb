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

from purerl.train.config import launch, parse
from purerl.train.episodic import Settings, train
from purerl.train.episodic_flags import DEFAULT_ALGORITHM, FOLDER, translate


def main(argv):
    arguments = parse(translate(argv), Settings, f'{FOLDER}/{DEFAULT_ALGORITHM}.py', __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
