r"""Collects a dataset from a real environment, with a validation part of a tenth of its size.

    python -m experiments.collect --env_name=cube-single-v0 --dataset_type=play \
        --num_episodes=1000 --path=data/cube-single-play-v0.npz
    python -m experiments.collect --env_name=Hopper-v5 --policy=random \
        --num_transitions=100000 --path=data/hopper-random.hdf5
    python -m experiments.collect --policy=checkpoint --checkpoint=runs/hopper --nodeterministic \
        --num_transitions=100000 --path=data/hopper-trained.hdf5
    python -m experiments.collect --policy=replay --checkpoint=runs/hopper \
        --path=data/hopper-medium-replay.hdf5
    python -m experiments.collect --env_name=walker_walk --policy=random \
        --num_episodes=100 --path=data/walker/buffer
    python -m experiments.collect --policy=checkpoint --checkpoint=runs/drq --nodeterministic \
        --num_transitions=125000 --path=data/cheetah-run.safetensors
"""

from purerl.train.collect import Settings, collect_dataset
from purerl.train.config import launch, parse


def main(argv):
    return collect_dataset(parse(argv, Settings, usage=__doc__).settings)


if __name__ == '__main__':
    launch(main)
