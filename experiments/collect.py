"""Collects a dataset from a real environment, with a validation part of a tenth of its size.

    python -m experiments.collect --env_name=cube-single-v0 --dataset_type=play \
        --num_episodes=1000 --path=data/cube-single-play-v0.npz
    python -m experiments.collect --env_name=Hopper-v5 --policy=random \
        --num_transitions=100000 --path=data/hopper-random.hdf5
"""

from absl import app, flags

from purerl.train.collect import collect

FLAGS = flags.FLAGS

flags.DEFINE_string('env_name', 'cube-single-v0', 'Environment, or the name of an OGBench dataset.')
flags.DEFINE_enum(
    'policy',
    'oracle',
    ['oracle', 'random'],
    "oracle: OGBench's own scripts (cube, scene, puzzle); random: samples of the action space.",
)
flags.DEFINE_enum(
    'dataset_type',
    'play',
    ['play', 'noisy'],
    'Kind of oracle: play follows noisy plans, noisy acts in closed loop with noisy actions.',
)
flags.DEFINE_integer('num_episodes', None, 'Number of episodes to train on.', lower_bound=1)
flags.DEFINE_integer(
    'num_transitions', None, 'Number of transitions to train on, instead.', lower_bound=1
)
flags.DEFINE_integer('episode_length', 1000, "Transitions per oracle's episode.", lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Random seed; it determines the whole dataset.')
flags.DEFINE_string(
    'path',
    None,
    "File to write: .npz for OGBench's format (which holds no rewards: they are computed from the "
    "states when it is loaded), .hdf5 for D4RL's. The validation part gets -val before the ending. "
    'InFOM looks for its pretraining data under the name <env>-<type>-v0.npz '
    '(cube-single-play-v0.npz) and for its finetuning data, collected with another seed, under '
    '<env>-<type>-ft-v0.npz (cube-single-play-ft-v0.npz).',
    required=True,
)
flags.mark_flags_as_mutual_exclusive(['num_episodes', 'num_transitions'], required=True)


def main(_):
    paths = collect(
        FLAGS.env_name,
        FLAGS.path,
        policy=FLAGS.policy,
        dataset_type=FLAGS.dataset_type,
        num_episodes=FLAGS.num_episodes,
        num_transitions=FLAGS.num_transitions,
        episode_length=FLAGS.episode_length,
        seed=FLAGS.seed,
    )
    for path in paths:
        print(f'wrote {path}')


if __name__ == '__main__':
    app.run(main)
