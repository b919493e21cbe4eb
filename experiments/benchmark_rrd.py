r"""Times acting and learning of RRD's family beside Stable-Baselines3.

    python -m experiments.benchmark_rrd --algorithms=sac,td3 --env=HalfCheetah-v5 --steps=5000
    python -m experiments.benchmark_rrd --algorithms=dqn --env=CartPole-v1
    python -m experiments.benchmark_rrd --algorithms=rrd:sac --num_envs=8 --round=96

Both sides take `steps` steps with one update each, 100 steps and then 100 updates, in the same
environment, with the same batch size, network widths and threads, by turns, after a warm-up that is
not timed (it compiles). Prints the settings, and one line per algorithm: the medians over the turns
of steps with their updates per second, and of their ratio. RRD and IRCR, and several environments
at a time, are timed alone. Needs `pip install -e '.[benchmark]'`.
"""

import contextlib
import importlib.metadata
import statistics
import time
from collections.abc import Callable

import torch
from absl import app, flags

from purerl.core import jit, native
from purerl.train.config import load_agent
from purerl.train.episodic import Settings
from purerl.train.episodic_lanes import MODES
from purerl.train.episodic_learner import Learner, run_iteration
from purerl.train.episodic_world import World
from purerl.train.run import create_agents

_ALGORITHMS = flags.DEFINE_list('algorithms', ['sac'], 'Of purerl/agents/rrd; rrd:dqn.')
_THEIRS = ('sac', 'td3', 'ddpg', 'dqn')
_ENV = flags.DEFINE_string('env', 'HalfCheetah-v5', 'A gymnasium id.')
_STEPS = flags.DEFINE_integer('steps', 5000, 'Timed steps.')
_TURNS = flags.DEFINE_integer('turns', 5, 'Turns that share these steps.', lower_bound=1)
_WARMUP = flags.DEFINE_integer('warmup_steps', 2000, 'Steps before that.')
_BATCH = flags.DEFINE_integer('batch_size', 256, 'Transitions per update.')
_WIDTH = flags.DEFINE_integer('width', 256, 'Width of both hidden layers.')
_MODE = flags.DEFINE_enum('jit', 'inductor', jit.MODES, 'How updates are compiled.')
_ROUND = flags.DEFINE_integer('round', 100, 'Steps, then updates (original: 100).')
_NUM_ENVS = flags.DEFINE_integer('num_envs', 1, 'Environments; a divisor of round.')
_VECTORIZATION = flags.DEFINE_enum('vectorization_mode', 'sync', MODES, 'How they are stepped.')


def train_ours(algorithm: str, opened: contextlib.ExitStack) -> Callable[[int], int]:
    """Return a function that goes on training with this library for at least so many steps.

    It returns how many it took: rounds are not cut.

    Args:
        algorithm: one of `--algorithms`.
        opened: closes its environments.
    """
    widths = (_WIDTH.value, _WIDTH.value)
    name, colon, base = algorithm.partition(':')
    path = f'purerl/agents/rrd/{name}.py{colon}{base}'
    agent = load_agent(path, {'hidden_dims': widths})
    settings = Settings(
        env_name=_ENV.value,
        env_type='normal',
        timesteps=_ROUND.value,
        train_batches=_ROUND.value,
        num_envs=_NUM_ENVS.value,
        vectorization_mode=_VECTORIZATION.value,
        batch_size=_BATCH.value,
        # An episode has to fit.
        buffer_size=max(_STEPS.value + _WARMUP.value, Settings.test_timesteps),
        warmup=1,
    )
    world = opened.enter_context(contextlib.closing(World(agent, settings, 0)))
    space, actions = world.envs.single_observation_space, world.envs.single_action_space
    size = actions.shape or (int(actions.n),)
    example = {'observations': torch.zeros(1, *space.shape), 'actions': torch.zeros(1, *size)}
    learner = Learner(create_agents(agent, [0], example)[0], 1)

    def train(steps):
        first, last = world.steps, world.steps + steps
        with jit.use_mode(_MODE.value):
            # An episode has to end before the first update, which belongs to the warm-up.
            while world.steps < last or world.updates == 0:
                run_iteration(learner, [world])
        return world.steps - first

    return train


def train_theirs(algorithm: str) -> Callable[[int], int]:
    """Return the same of Stable-Baselines3's algorithm of that name."""
    import stable_baselines3

    model = getattr(stable_baselines3, algorithm.upper())(
        'MlpPolicy',
        _ENV.value,
        batch_size=_BATCH.value,
        learning_starts=0,
        train_freq=_ROUND.value,
        gradient_steps=_ROUND.value,
        policy_kwargs={'net_arch': [_WIDTH.value, _WIDTH.value]},
        device='cpu',
        seed=0,
    )

    def train(steps):
        first = model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return model.num_timesteps - first

    return train


def by_turns(trainings: list[Callable[[int], int]]) -> list[list[float]]:
    """Warm up, then train by turns; return each one's steps per second in each turn."""
    for train in trainings:
        train(_WARMUP.value)
    steps = _STEPS.value // _TURNS.value
    rates = [[] for _ in trainings]
    for _ in range(_TURNS.value):
        for rate, train in zip(rates, trainings, strict=True):
            start = time.perf_counter()
            taken = train(steps)
            rate.append(taken / (time.perf_counter() - start))
    return rates


def _settings() -> str:
    versions = ', '.join(
        f'{package} {importlib.metadata.version(package)}'
        for package in ('torch', 'stable-baselines3', 'gymnasium')
    )
    return (
        f'{_ENV.value}: {_STEPS.value} steps and updates, batches of {_BATCH.value}, two layers of '
        f'{_WIDTH.value}, {_NUM_ENVS.value} environments ({_VECTORIZATION.value}), '
        f'{torch.get_num_threads()} threads, jit={_MODE.value}; {versions}'
    )


def main(_):
    native.keep_freed_memory()  # as every run does
    print(_settings())
    for algorithm in _ALGORITHMS.value:
        with contextlib.ExitStack() as opened:
            trainings = [train_ours(algorithm, opened)]
            if _NUM_ENVS.value == 1 and algorithm in _THEIRS:
                trainings.append(train_theirs(algorithm))
            ours, *theirs = by_turns(trainings)
        line = f'{algorithm}: purerl {statistics.median(ours):.0f}'
        for other in theirs:
            ratio = statistics.median(x / y for x, y in zip(ours, other, strict=True))
            line += f', Stable-Baselines3 {statistics.median(other):.0f}, {ratio:.2f}x'
        print(line, flush=True)


if __name__ == '__main__':
    app.run(main)
