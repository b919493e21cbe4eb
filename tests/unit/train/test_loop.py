"""What the loops share."""

import numpy as np
import pytest

from purerl.envs.make import make
from purerl.train.config import MAX_SEED
from purerl.train.loop import evaluation_seed, random_return


@pytest.mark.parametrize('seed', [0, MAX_SEED])
def test_the_largest_seed_has_an_evaluation_and_a_baseline(seed):
    seeds = [evaluation_seed(seed)]

    def make_env(seed):
        seeds.append(seed)
        return make('Pendulum-v1', seed=seed, max_episode_steps=5)

    assert np.isfinite(random_return(make_env, 1, seed))
    assert len({seed, *seeds}) == 3
    assert all(0 <= other <= MAX_SEED for other in seeds)
