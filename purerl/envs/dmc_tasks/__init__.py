"""Tasks that InFOM adds to dm_control's suite, for the data of ExORL.

    TASKS['walker', 'flip'](random, **environment_kwargs) -> dm_control's Environment

Source: ``custom_dmc_tasks/`` of chongyi-zheng/infom @ f0356dd: rewards, speeds, targets and
episode lengths. Models, observations and starts are those of the installed suite
(`dm_control.suite`) and of its manipulation tasks, by subclassing; where the original's model
differs from the suite's, the suite's is edited.

Left out: the original's `quadruped_escape` and `quadruped_fetch`, which are the suite's own (it
takes the suite's as well), and `jaco_reach_multitask`, whose four rewards its own wrappers cannot
take.
"""

import importlib

# Module and function arguments by domain and task; importing dm_control is left to `load`.
TASKS = {
    ('cheetah', 'walk'): ('cheetah', {'speed': 2.0}),
    ('cheetah', 'walk_backward'): ('cheetah', {'speed': 2.0, 'direction': -1}),
    ('cheetah', 'run_backward'): ('cheetah', {'speed': 10.0, 'direction': -1}),
    ('cheetah', 'flip'): ('cheetah', {'speed': 5.0, 'flip': True}),
    ('cheetah', 'flip_backward'): ('cheetah', {'speed': 5.0, 'direction': -1, 'flip': True}),
    ('walker', 'flip'): ('walker', {}),
    ('hopper', 'hop_backward'): ('hopper', {'direction': -1}),
    ('hopper', 'flip'): ('hopper', {'flip': True}),
    ('hopper', 'flip_backward'): ('hopper', {'direction': -1, 'flip': True}),
    ('quadruped', 'stand'): ('quadruped', {'term': 'stand'}),
    ('quadruped', 'jump'): ('quadruped', {'term': 'jump', 'threshold': 1.0}),
    ('quadruped', 'roll'): ('quadruped', {'term': 'roll', 'threshold': 0.5}),
    ('quadruped', 'roll_fast'): ('quadruped', {'term': 'roll', 'threshold': 5.0}),
    **{
        (domain, f'reach_{vertical}_{horizontal}'): (domain, {'target': (x * size, y * size)})
        for domain, size in (('jaco', 0.09), ('point_mass_maze', 0.15))
        for vertical, y in (('top', 1), ('bottom', -1))
        for horizontal, x in (('left', -1), ('right', 1))
    },
}


def load(domain, task, random, **environment_kwargs):
    """Makes one of the tasks of `TASKS`.

    Args:
        domain: For example `walker`.
        task: For example `flip`.
        random: The `np.random.RandomState` that episodes' starts are drawn from.
        **environment_kwargs: Of dm_control's `Environment` (`time_limit` in seconds).

    Returns:
        A `dm_env.Environment` with `physics` and `task`.
    """
    module, options = TASKS[domain, task]
    make = importlib.import_module(f'{__name__}.{module}').make
    return make(random, environment_kwargs, **options)
