r"""Trains an agent online.

    python -m experiments.online --env_name=HalfCheetah-v5 --agent=purerl/agents/jaxrl5/sac.py
    python -m experiments.online --env_name=Pendulum-v1 --max_steps=20000 --start_training=1000 \
        --agent.actor_lr=1e-3
    python -m experiments.online --agent=experiments/configs/jaxrl5/droq.py
    MUJOCO_GL=egl python -m experiments.online --agent=experiments/configs/jaxrl5/drq.py \
        --env_name=cheetah_run

After an interruption the same command with --resume goes on, bit for bit.
"""

from purerl.train.config import launch, parse
from purerl.train.online import Settings, train

DEFAULT_AGENT = 'purerl/agents/jaxrl5/sac.py'


def main(argv):
    arguments = parse(argv, Settings, DEFAULT_AGENT, __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
