"""Evaluates a run of any launcher: online, offline, pretrain_finetune, offline_to_online, rrd.

python -m experiments.evaluate --run=runs/Pendulum-v1/sac_sd042_1a2b3c4d --episodes=20 --video
python -m experiments.evaluate --run=runs/Hopper-v5/idql --inference_variant=N=256
"""

from purerl.train.config import launch, parse
from purerl.train.evaluate_run import Settings, evaluate_run


def main(argv):
    return evaluate_run(parse(argv, Settings, usage=__doc__).settings)


if __name__ == '__main__':
    launch(main)
