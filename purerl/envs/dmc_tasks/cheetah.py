"""Cheetah: run and walk, forward and backward, and somersaults.

Rewards: speed (metres per second) or angular momentum in the wanted direction, linear from 0 to 1
at the wanted value.
"""

from dm_control.rl import control
from dm_control.suite import cheetah, common
from dm_control.utils import rewards

from purerl.envs.dmc_tasks import models

_TIME_LIMIT = 10.0  # seconds: 1000 steps


def make(random, environment_kwargs, speed, direction=1, flip=False):
    """Makes a cheetah task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `control.Environment`.
        speed: Speed (m/s), or with `flip` angular momentum (kg m^2/s), from which the reward is 1.
        direction: 1 for forward, -1 for backward.
        flip: Turn over instead of run.

    Returns:
        A `control.Environment`.
    """
    model = models.edited('cheetah.xml', ground={'size': '200 .8 .5'})
    physics = Physics.from_xml_string(model, common.ASSETS)
    task = Cheetah(speed, direction, flip, random)
    return control.Environment(physics, task, **{'time_limit': _TIME_LIMIT, **environment_kwargs})


class Physics(models.AngularMomentum, cheetah.Physics):
    """The suite's physics and the torso's angular momentum."""


class Cheetah(cheetah.Cheetah):
    """The suite's task with another reward."""

    def __init__(self, speed, direction, flip, random):
        super().__init__(random=random)
        self._speed = speed
        self._direction = direction
        self._flip = flip

    def get_reward(self, physics):
        moved = physics.angular_momentum() if self._flip else physics.speed()
        return rewards.tolerance(
            self._direction * moved,
            bounds=(self._speed, float('inf')),
            margin=self._speed,
            value_at_margin=0,
            sigmoid='linear',
        )
