"""Quadruped: stand, jump, and roll, slowly and fast.

The reward is how upright the torso is (linear in its cosine), times a term of the task that goes
linearly from 1/2 to 1: the centre of mass's height, or the torso's speed in any direction.
"""

import numpy as np
from dm_control.rl import control
from dm_control.suite import common, quadruped
from dm_control.utils import rewards

_TIME_LIMIT = 20.0  # seconds: 1000 steps
_CONTROL_TIMESTEP = 0.02  # seconds
_FLOOR_SIZE = 10.0  # metres: 20 seconds at the suite's walking speed


def make(random, environment_kwargs, term, threshold=None):
    """Makes a quadruped task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `control.Environment`.
        term: 'stand', 'jump' or 'roll'.
        threshold: Height (metres) or speed (m/s) from which the term is 1; none for 'stand'.

    Returns:
        A `control.Environment`.
    """
    model = quadruped.make_model(floor_size=_FLOOR_SIZE)
    physics = quadruped.Physics.from_xml_string(model, common.ASSETS)
    task = Quadruped(term, threshold, random)
    defaults = {'time_limit': _TIME_LIMIT, 'control_timestep': _CONTROL_TIMESTEP}
    return control.Environment(physics, task, **{**defaults, **environment_kwargs})


class Quadruped(quadruped.Move):
    """The suite's task with another reward."""

    def __init__(self, term, threshold, random):
        super().__init__(desired_speed=threshold, random=random)
        self._term = term
        self._threshold = threshold

    def get_reward(self, physics):
        upright = rewards.tolerance(
            physics.torso_upright(),
            bounds=(1.0, float('inf')),
            sigmoid='linear',
            margin=2.0,
            value_at_margin=0,
        )
        if self._term == 'stand':
            return upright
        if self._term == 'jump':
            reached = physics.named.data.sensordata['center_of_mass'][2]
        else:
            reached = np.linalg.norm(physics.torso_velocity())
        return upright * rewards.tolerance(
            reached,
            bounds=(self._threshold, float('inf')),
            margin=self._threshold,
            value_at_margin=0.5,
            sigmoid='linear',
        )
