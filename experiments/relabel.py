r"""Makes HDF5 files of ExORL's episodes, with or without a task's rewards.

    python -m experiments.relabel --env_name=walker_flip --norewards
    python -m experiments.relabel --env_name=walker_flip --skip_size=5000000 --dataset_size=500000
    python -m experiments.relabel --env_name=walker_flip --episodes=data/walker/buffer \
        --dataset_size=90000 --val_size=10000 --path=data/walker_flip.hdf5
"""

from purerl.train.config import launch, parse
from purerl.train.relabel import Settings, relabel


def main(argv):
    return relabel(parse(argv, Settings, usage=__doc__).settings)


if __name__ == '__main__':
    launch(main)
