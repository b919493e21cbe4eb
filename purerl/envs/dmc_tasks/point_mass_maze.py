"""Point mass in a maze: go from the top left room to a place in one of the four.

The arena is the suite's `point_mass` with contacts and a cross of two walls. The reward is 1
within 1.5 cm of the target and falls off by 0.1 at 3 cm, times a factor from 0.8 to 1 for small
actions.
"""

from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import common, point_mass
from dm_control.utils import rewards

from purerl.envs.dmc_tasks import models

_TIME_LIMIT = 20.0  # seconds: 1000 steps
_TARGET_SIZE = 0.015  # metres
_WALL_LENGTH, _WALL_WIDTH = 0.18, 0.02  # metres, each from its middle
_STARTS = ((-0.29, -0.15), (0.15, 0.29))  # ranges of x and y (metres)


def make(random, environment_kwargs, target):
    """Makes a maze task.

    Args:
        random: The episodes' random source.
        environment_kwargs: Of `control.Environment`.
        target: Its x and y (metres).

    Returns:
        A `control.Environment`.
    """
    physics = Physics.from_xml_string(arena(target), common.ASSETS)
    task = Maze(np.array(target), random)
    return control.Environment(physics, task, **{'time_limit': _TIME_LIMIT, **environment_kwargs})


def arena(target):
    """Returns the model, as an XML string.

    Args:
        target: Its x and y (metres); it is drawn there, and touches nothing.
    """
    root = models.read('point_mass.xml')
    option = root.find('option')
    option.remove(option.find('flag'))  # which disables contacts
    world = root.find('worldbody')
    first = [child.get('name') for child in world].index('pointmass')
    for i, (axis, size) in enumerate(
        (
            ('0 1 0', (_WALL_LENGTH, _WALL_WIDTH, _WALL_WIDTH)),
            ('1 0 0', (_WALL_WIDTH, _WALL_LENGTH, _WALL_WIDTH)),
        )
    ):
        wall = {
            'name': f'maze_{"yx"[i]}',
            'type': 'box',
            'material': 'site',
            'pos': '0 0 .02',
            'zaxis': axis,
            'size': ' '.join(map(str, size)),
        }
        world.insert(first + i, ElementTree.Element('geom', wall))
    x, y = target
    geom = world.find("geom[@name='target']")
    geom.attrib.update({'pos': f'{x} {y} .01', 'contype': '0', 'conaffinity': '0'})
    return ElementTree.tostring(root)


class Physics(point_mass.Physics):
    """The suite's physics, with the distance to any point."""

    def distance_to(self, target):
        """Returns the distance (metres) from the mass to `target` (2,) in the plane."""
        return np.linalg.norm(target - self.named.data.geom_xpos['pointmass'][:2])


class Maze(point_mass.PointMass):
    """The suite's task with another start and a fixed target.

    The original draws the start from numpy's global stream; here it is from the task's.
    """

    def __init__(self, target, random):
        super().__init__(randomize_gains=False, random=random)
        self._target = target

    def initialize_episode(self, physics):
        super().initialize_episode(physics)
        physics.data.qpos[:2] = [self.random.uniform(*bounds) for bounds in _STARTS]

    def get_reward(self, physics):
        small_control = rewards.tolerance(
            physics.control(), margin=1, value_at_margin=0, sigmoid='quadratic'
        ).mean()
        near_target = rewards.tolerance(
            physics.distance_to(self._target), bounds=(0, _TARGET_SIZE), margin=_TARGET_SIZE
        )
        return near_target * ((small_control + 4) / 5)
