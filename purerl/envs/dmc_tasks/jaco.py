"""Jaco arm: bring the hand to one of four places on the table.

The suite's own reaching task (`dm_control.manipulation.reach`, features, target site), with fixed
targets that the arm does not observe. The reward is 1 within 5 cm of the target and falls off by
0.1 at 10 cm.
"""

import numpy as np
from dm_control import composer
from dm_control.manipulation import reach
from dm_control.manipulation.shared import arenas, constants, observations, robots
from dm_control.utils import rewards

_TIME_LIMIT = 10.0  # seconds: 250 steps
_RADIUS = 0.05  # metres
_HEIGHT = 0.001  # metres


def make(random, environment_kwargs, target):
    """Makes a reaching task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `composer.Environment`.
        target: Its x and y (metres).

    Returns:
        A `composer.Environment`.
    """
    task = Reach(np.array([*target, _HEIGHT]))
    return composer.Environment(
        task, random_state=random, **{'time_limit': _TIME_LIMIT, **environment_kwargs}
    )


class Reach(reach.Reach):
    """The suite's task with a fixed, unobserved target.

    Args:
        target: Its position (3,), in metres.
    """

    def __init__(self, target):
        features = observations.PERFECT_FEATURES
        super().__init__(
            arena=arenas.Standard(),
            arm=robots.make_arm(obs_settings=features),
            hand=robots.make_hand(obs_settings=features),
            prop=None,
            obs_settings=features,
            workspace=reach._SITE_WORKSPACE,
            control_timestep=constants.CONTROL_TIMESTEP,
        )
        self._position = target
        del self._task_observables['target_position']

    def initialize_episode(self, physics, random_state):
        self.hand.set_grasp(physics, close_factors=random_state.uniform())
        self._tcp_initializer(physics, random_state)
        physics.bind(self._target).pos = self._position

    def get_reward(self, physics):
        hand = physics.bind(self.hand.tool_center_point).xpos
        distance = np.linalg.norm(hand - self._position)
        reward = rewards.tolerance(distance, bounds=(0, _RADIUS), margin=_RADIUS)
        return np.float32(reward)  # as in the original, whose rewards have single precision
