"""Hopper: hop backward, and somersaults.

The reward is the suite's for hopping, with the opposite direction, or with the torso's angular
momentum (linear up to 5 kg m^2/s) in the place of its speed.
"""

from dm_control.rl import control
from dm_control.suite import common, hopper
from dm_control.utils import rewards

from purerl.envs.dmc_tasks import models

_TIME_LIMIT = 20.0  # seconds: 1000 steps
_CONTROL_TIMESTEP = 0.02  # seconds
_STAND_HEIGHTS = (0.6, 2)  # metres
_HOP_SPEED = 2  # metres per second
_SPIN = 5  # kg m^2/s


def make(random, environment_kwargs, direction=1, flip=False):
    """Makes a hopper task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `control.Environment`.
        direction: 1 for forward, -1 for backward.
        flip: Turn over instead of hop.

    Returns:
        A `control.Environment`.
    """
    model = models.edited('hopper.xml', floor={'size': '100 1 .2'})
    physics = Physics.from_xml_string(model, common.ASSETS)
    task = Hopper(direction, flip, random)
    defaults = {'time_limit': _TIME_LIMIT, 'control_timestep': _CONTROL_TIMESTEP}
    return control.Environment(physics, task, **{**defaults, **environment_kwargs})


class Physics(models.AngularMomentum, hopper.Physics):
    """The suite's physics and the torso's angular momentum."""


class Hopper(hopper.Hopper):
    """The suite's task with another reward."""

    def __init__(self, direction, flip, random):
        super().__init__(hopping=True, random=random)
        self._direction = direction
        self._flip = flip

    def get_reward(self, physics):
        standing = rewards.tolerance(physics.height(), _STAND_HEIGHTS)
        if self._flip:
            moved, wanted, margin, value_at_margin = physics.angular_momentum(), _SPIN, _SPIN, 0
        else:
            moved, wanted, margin, value_at_margin = physics.speed(), _HOP_SPEED, 1, 0.5
        return standing * rewards.tolerance(
            self._direction * moved,
            bounds=(wanted, float('inf')),
            margin=margin,
            value_at_margin=value_at_margin,
            sigmoid='linear',
        )
