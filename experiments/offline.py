r"""Pretrains and finetunes an agent on datasets.

    python -m experiments.offline --agent=purerl/agents/infom/rebrac.py \
        --env_name=cube-single-play-singletask-v0
    python -m experiments.offline --env_name=cube-single-play-singletask-v0 \
        --pretraining_dataset=data/cube-single-play-v0.npz \
        --finetuning_dataset=data/cube-single-play-ft-v0.npz --agent.alpha_actor=0.1
    python -m experiments.offline --env_name=Hopper-v5 --pretraining_dataset=data/hopper.hdf5

Several processes divide the batches of one run among them:

    torchrun --standalone --nproc_per_node=4 -m experiments.offline --device=cuda ...

After an interruption the same command with --resume goes on, bit for bit.
"""

from purerl.train.config import launch, parse
from purerl.train.offline import Settings, train

DEFAULT_AGENT = 'purerl/agents/infom/rebrac.py'


def main(argv):
    arguments = parse(argv, Settings, DEFAULT_AGENT, __doc__)
    return train(arguments.agent, arguments.settings)


if __name__ == '__main__':
    launch(main)
