"""Walker: somersaults, standing upright in between.

The reward is the suite's for walking, with the torso's angular momentum (linear up to
5 kg m^2/s) in the place of its speed.
"""

from dm_control.rl import control
from dm_control.suite import walker
from dm_control.utils import rewards

from purerl.envs.dmc_tasks import models

_TIME_LIMIT = 25.0  # seconds: 1000 steps
_CONTROL_TIMESTEP = 0.025  # seconds
_STAND_HEIGHT = 1.2  # metres
_SPIN = 5.0  # kg m^2/s


def make(random, environment_kwargs):
    """Makes the task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `control.Environment`.

    Returns:
        A `control.Environment`.
    """
    physics = Physics.from_xml_string(*walker.get_model_and_assets())
    defaults = {'time_limit': _TIME_LIMIT, 'control_timestep': _CONTROL_TIMESTEP}
    return control.Environment(physics, Flip(random), **{**defaults, **environment_kwargs})


class Physics(models.AngularMomentum, walker.Physics):
    """The suite's physics and the torso's angular momentum."""


class Flip(walker.PlanarWalker):
    """The suite's task with another reward."""

    def __init__(self, random):
        super().__init__(move_speed=0, random=random)

    def get_reward(self, physics):
        standing = rewards.tolerance(
            physics.torso_height(),
            bounds=(_STAND_HEIGHT, float('inf')),
            margin=_STAND_HEIGHT / 2,
        )
        upright = (1 + physics.torso_upright()) / 2
        spinning = rewards.tolerance(
            physics.angular_momentum(),
            bounds=(_SPIN, float('inf')),
            margin=_SPIN,
            value_at_margin=0,
            sigmoid='linear',
        )
        return (3 * standing + upright) / 4 * (5 * spinning + 1) / 6
