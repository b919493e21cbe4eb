r"""Trains an agent of jaxrl5 on a dataset and, with --online_max_steps, online after that.

    python -m experiments.offline_to_online --env_name=Hopper-v5 --dataset=data/hopper-medium.hdf5
    python -m experiments.offline_to_online --agent=experiments/configs/jaxrl5/iql_mujoco.py \
        --env_name=HalfCheetah-v5 --dataset=data/halfcheetah-medium-replay.hdf5
    python -m experiments.offline_to_online --dataset=data/hopper-medium.hdf5 \
        --agent=experiments/configs/jaxrl5/ddpm_iql_offline.py:hopper
    python -m experiments.offline_to_online --env_name=Hopper-v5 --dataset=data/hopper-medium.hdf5 \
        --inference_variants='N=16,64,256' --online_max_steps=1000000

After an interruption the same command with --resume goes on, bit for bit.
"""

from purerl.train.config import launch, parse
from purerl.train.offline_to_online import Settings, train

DEFAULT_AGENT = 'purerl/agents/jaxrl5/ddpm_iql.py'


def main(argv):
    arguments = parse(argv, Settings, DEFAULT_AGENT, __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
