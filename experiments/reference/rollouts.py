"""Replays model rollouts, an op of the training loop and not of an agent.

``model_rollout`` is what the loop does after an update of finetuning: `purerl.train.rollouts`
imagines transitions from the observations ``batch/<t>/observations`` and puts them into a buffer.
Recorded are ``key/<t>_rollout``, the loop's key before it; ``info/<t>/<step>/`` with each step's
``actor_key``, ``actions``, ``rewards`` and ``next_observations``; and the buffer's fill after it,
``info/<t>/buffer_size`` and ``info/<t>/buffer_pointer``.
"""

from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from purerl.train.rollouts import ModelRollouts, imagine, model_step

_RESULTS = ('actions', 'rewards', 'next_observations')


def replay_model_rollout(case: Case, report: Report, agent, t: int) -> dict:
    """Imagine transitions, into a buffer with those that the ops before have recorded.

    Returns:
        What is recorded as the op's info, names joined with '/'.
    """
    rollouts = _rollouts_before(case, t)
    report.compare('key', f'key/{t}_rollout', rollouts.key)
    steps = []

    def step(agent, key, observations):
        transitions = model_step(agent, key, observations)
        steps.append({'actor_key': key, **{name: transitions[name] for name in _RESULTS}})
        return transitions

    observations = _array(case, f'batch/{t}/observations')
    imagine(step, agent, [rollouts], [observations], case.config)
    return {
        **{f'{i}/{name}': x for i, results in enumerate(steps) for name, x in results.items()},
        'buffer_size': rollouts.buffer.size,
        'buffer_pointer': rollouts.buffer.pointer,
    }


def _rollouts_before(case, t):
    """Return the loop's key and buffer as they are before op `t`."""
    finetuned = next((u for u, op in enumerate(case.ops) if op['call'] == 'finetune'), None)
    if finetuned is None:
        raise CaseError(f'op {t} imagines transitions, but no op is a finetune')
    batch = {name: x.numpy() for name, x in case.take_tree(f'batch/{finetuned}').items()}
    rollouts = ModelRollouts(batch, case.config, case.seed)
    for u in (u for u, op in enumerate(case.ops[:t]) if op['call'] == 'model_rollout'):
        observations = _array(case, f'batch/{u}/observations')
        for step in range(case.config['num_model_rollout_steps']):
            rollouts.next_key()
            results = {name: _array(case, f'info/{u}/{step}/{name}') for name in _RESULTS}
            rollouts.remember({'observations': observations, **results})
    return rollouts


def _array(case, name):
    return case.take(name).numpy()
