"""What recordings of jaxrl5's learners hold besides ops: schedules, draws, candidates, choices."""

import sys

import torch

from experiments.reference.case import CaseError
from purerl.agents.jaxrl5.objectives import IMPLICIT_WEIGHTS
from purerl.core import random
from purerl.core.jit import jit

_IMPLICIT = 'sample_implicit_policy'


def config_of(case, cls) -> dict:
    """Return the config that makes the recorded agent.

    Learning rates may be recorded as optax's cosine schedule; fields that the recording does not
    name are at the agent's defaults.

    Raises:
        CaseError: for another schedule.
    """
    config = {**sys.modules[cls.__module__].get_config(), **case.config}
    rate = config.get('actor_lr')
    if isinstance(rate, dict):
        schedule = rate.get('cosine_decay_schedule')
        if schedule is None or schedule.keys() != {'init_value', 'decay_steps'}:
            raise CaseError(f'actor_lr: unknown schedule {rate}')
        config['actor_lr'] = schedule['init_value']
        config['decay_steps'] = schedule['decay_steps']
    return config


def candidates(case, prefix: str, agent, call: str, observations) -> dict:
    """Return what lies between an observation and the action: candidates, their values, a choice.

    Args:
        prefix: below which it is recorded.
        agent: with the key of the call.
        call: `eval_actions` or `sample_implicit_policy`.
        observations: one observation.
    """
    repeated, actions, rng = jit(lambda agent, x: agent.propose(x))(agent, observations)
    qs, vs = agent.compute_q(repeated, actions), agent.value(repeated)
    found = {'candidates': actions, 'key_after_sampler': rng, 'qs': qs, 'vs': vs}
    if call != _IMPLICIT:
        return {**found, 'index': qs.argmax()}
    weigh = IMPLICIT_WEIGHTS[agent.critic_objective]
    weights = weigh((qs - vs)[None], agent.critic_hyperparam)[0]
    index = random.choice(random.split(rng)[1], len(actions), p=weights)
    # At the recorded values: the quantile's weights divide by advantages that may be tiny.
    qs, vs = (torch.from_numpy(case.tensors[f'{prefix}/{name}']) for name in ('qs', 'vs'))
    choice_p = weigh((qs - vs)[None], agent.critic_hyperparam)[0]
    return {**found, 'choice_p': choice_p, 'index': index}


def replay_draws(case, report, agent, name) -> None:
    """Compare what update t drew: ``fn/draws_<t>/out``."""
    t = name.removeprefix('draws_')
    num = len(case.take(f'batch/{t}/actions'))
    time, noise, dropout_key, rng = agent.replace(rng=case.take(f'key/{t}')).draw(num)
    drawn = {'time': time, 'noise': noise, 'dropout_key': dropout_key, 'key_after': rng}
    report.compare_tree('fn', f'fn/{name}/out', drawn)


def replay_trained_policy(case, report, agent, name) -> None:
    """Compare how a trained policy, whose parameters are recorded, acts."""
    prefix = f'fn/{name}'
    networks = case.take_tree('fn/trained_policy/params')
    if name == 'trained_policy':  # the parameters
        return
    states = {key: getattr(agent, key).replace(params=x) for key, x in networks.items()}
    calls = case.parsed('trained_policy', {}).get('calls', ())
    n = int(name.removeprefix('trained_policy_'))
    if n >= len(calls):
        raise CaseError(f'the metadata entry trained_policy does not say how {prefix} was called')
    agent = agent.replace(rng=case.take(f'{prefix}/in/key'), **states)
    observations = case.take(f'{prefix}/in/observations')
    action, after = getattr(agent, calls[n])(observations)
    action = action.reshape(case.tensors[f'{prefix}/out/action'].shape)  # () for one dimension
    outputs = {
        'action': action,
        'key_out': after.rng,
        **candidates(case, f'{prefix}/out', agent, calls[n], observations),
    }
    report.compare_tree('fn', f'{prefix}/out', outputs)


# Functions by their names under fn/, called as (case, report, agent, name).
CASES = {
    r'draws_\d+': replay_draws,
    r'trained_policy(?:_\d+)?': replay_trained_policy,
}

# Forward passes with the final parameters.
FUNCTIONS = {
    'critic': lambda agent, x: {'q': agent.critic(x['observations'], x['actions'])},
    'value': lambda agent, x: {'v': agent.value(x['observations'])},
    'score_model': lambda agent, x: {
        'eps': agent.score_model(x['observations'], x['actions'], x['time'])
    },
}
