r"""Pretrains an agent on data without rewards, and finetunes it on data with the task's rewards.

    python -m experiments.pretrain_finetune --env_name=cube-single-play-singletask-task1-v0 \
        --agent=purerl/agents/infom/infom.py --agent.alpha=30
    python -m experiments.pretrain_finetune --agent=experiments/configs/infom/infom.py:cube_single
    python -m experiments.pretrain_finetune --agent=experiments/configs/infom/iql.py:cube_single \
        --env_name=cube-single-play-singletask-task2-v0 \
        --pretraining_dataset=data/cube-single-play-v0.npz \
        --finetuning_dataset=data/cube-single-play-ft-v0.npz

A file of configs/infom holds the published values of one agent for each domain. After an
interruption the same command with --resume goes on, bit for bit.
"""

from purerl.train.config import launch, parse
from purerl.train.offline import Settings, train

DEFAULT_AGENT = 'purerl/agents/infom/infom.py'


def main(argv):
    arguments = parse(argv, Settings, DEFAULT_AGENT, __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
