"""Replays recordings of the RRD originals' agents.

The originals are TensorFlow graphs: variables have scoped names, noise is fed from outside, and one
call of the recording (`train`, `target_update`, ...) is one run of the graph. Parameters are always
loaded: TensorFlow's random initialisation cannot be reproduced. Layers' sizes are those of the
recorded parameters.
"""

import numpy as np
import torch

from experiments.reference import squashing
from experiments.reference.case import Case, CaseError
from experiments.reference.compare import LIMIT, Report, error_of
from experiments.reference.rrd_tensors import gradients, intermediates
from experiments.reference.rrd_variables import (
    base_of,
    slots,
    statistics,
    variables,
    widths,
    with_variables,
)
from purerl.agents.rrd import bases, ircr, networks, rrd
from purerl.core import jit, trees

_NOISES = {
    'target_noise': 'target_noises',
    'pi_noise': 'policy_noises',
    'pi_next_noise': 'next_policy_noises',
}
_INFOS = {
    'actor_loss': 'Pi_loss',
    'critic_loss': 'Q_loss',
    'critic_reg_loss': 'Q_reg_loss',
    'reward_loss': 'R_loss',
    'reward_variance': 'R_var',
}
_CALLS = {'train': 'train', 'train_q': 'train_critic', 'train_pi': 'train_actor'}
_WRAPPERS = {  # how each is configured, and what it is
    'rrd': (rrd.get_config, rrd.RRDAgent),
    'ircr': (ircr.get_config, ircr.IRCRAgent),
}


def replay_agent(case: Case, report: Report) -> None:
    """Replay one agent's recording.

    Where an error is above the limit, a second replay takes a squashed Gaussian's actions as the
    original rounded them (`squashing`).

    Raises:
        CaseError: if an input is missing, or does not fit the agent.
    """
    report.stage = 'create'
    agent = with_variables(_create(case), _take(case, 'init'))
    values = list(_replayed(case, report, agent))
    again = [None] * len(values)
    if any(_is_off(case, kind, name, value) for kind, name, value in values):
        with jit.use_mode('off'):
            again = [value for *_, value in _replayed(case, report, agent, rounded=True)]
    report.stage = 'comparison'
    for (kind, name, value), other in zip(values, again, strict=True):
        report.compare(kind, name, value, other)


def _is_off(case, kind, name, value):
    reference = case.tensors.get(name)
    if reference is None or reference.dtype.kind != 'f' or tuple(value.shape) != reference.shape:
        return False
    return error_of(kind, np.asarray(value), reference)[0] > LIMIT


def _replayed(case, report, agent, rounded=False):
    """Run the recording's calls; iterates over (kind, name, value) of all that they give.

    `rounded`: whether squashed actions are rounded as the recording's.
    """
    if case.has('actions_before_normalizer'):
        yield from _actions(case, agent, 'actions_before_normalizer', {})
    for op in case.ops:
        report.stage = f'{op["call"]} {op.get("t", op.get("n", ""))}'.strip()
        agent = yield from _op(case, agent, op, rounded)
    yield from _named('params', 'final', variables(agent))
    for i, how in enumerate(case.parsed('actions')):
        report.stage = f'actions/{i}'
        yield from _actions(case, agent, f'actions/{i}', how)


def _named(kind, prefix, tree):
    return [(kind, f'{prefix}/{name}', value) for name, value in tree.items()]


def _create(case):
    wrapper, _, name = case.agent.rpartition('_')
    if name not in bases.BASES or (wrapper and wrapper not in _WRAPPERS):
        raise CaseError(f'there is no algorithm {case.agent!r}')
    if wrapper:
        get_config, cls = _WRAPPERS[wrapper]
        config = get_config(name)
    else:
        config, cls = bases.BASES[name].get_config(), bases.base_class({'basis_alg': name})
    for key, value in {**case.config, **widths(case)}.items():
        if key in config and key != 'basis_alg':
            config[key] = value
    observations = torch.zeros(1, *case.config['obs_dims'])
    return cls.create(case.seed, observations, torch.zeros(1, *case.config['acts_dims']), config)


# --- Ops ------------------------------------------------------------------------------------------


def _take(case, prefix):
    return {name[len(prefix) + 1 :]: case.take(name) for name in list(case.below(prefix))}


def _take_batch(case, agent, prefix):
    """Take a recorded batch under the library's names, with one axis less for scalars."""
    batch = {}
    for name, value in _take(case, prefix).items():
        if name in ('rews', 'done', 'rrd_rews', 'rrd_var_coef'):
            value = value.squeeze(-1).float()
        names = {'obs': 'observations', 'obs_next': 'next_observations', 'acts': 'actions'}
        lead = 'rrd_' if name.startswith('rrd_') else ''
        plain = name.removeprefix('rrd_')
        batch[_NOISES.get(name) or lead + names.get(plain, plain.replace('rews', 'rewards'))] = (
            value
        )
    if 'done' in batch:
        batch['masks'] = 1 - batch.pop('done')
    if isinstance(agent, ircr.IRCRAgent) and 'rewards' in batch:  # recorded after the scaling
        bounds = {'return_low': torch.tensor(0.0), 'return_high': torch.tensor(1.0)}
        batch |= {'returns': batch.pop('rewards'), **bounds}
    return batch


def _op(case, agent, op, rounded):
    """Run one call; iterates over what it gives, and returns the new agent."""
    if op['call'] == 'normalizer_update':
        if op.get('noop'):
            return agent
        agent = agent.update_normalizer(_take_batch(case, agent, f'norm/{op["n"]}'))
        found = dict(statistics(base_of(agent).normalizer))
        yield from _named('params', f'normalizer/{op["n"]}', found)
        return agent
    if op['call'] == 'target_update':
        agent = agent.update_target()
        if case.has(f'target_update/{op["n"]}'):
            target = {n: x for n, x in variables(agent).items() if n.startswith('target/')}
            yield from _named('params', f'target_update/{op["n"]}', target)
        return agent
    batch = _take_batch(case, agent, f'batch/{op["t"]}')
    actions = squashing.settle(case, agent, batch, op['t']) if rounded else []
    with squashing.using(actions):
        agent, found = _train(case, agent, batch, op)
    yield from found
    return agent


def _train(case, agent, batch, op):
    """Train once; returns the new agent and (kind, name, value) of what is recorded of it."""
    t, call = op['t'], op['call']
    found, grads = [], {}
    if case.has(f'eval/{t}'):
        values = intermediates(case, agent, batch, f'eval/{t}')
        found += [('eval', name, value) for name, value in values]
    if case.has(f'grad/{t}') or case.has(f'opt/{t}'):
        grads = gradients(agent, batch, call)
    if case.has(f'grad/{t}'):
        found += _named('grad', f'grad/{t}', grads)
    agent, info = getattr(agent, _CALLS[call])(batch)
    named = {_INFOS[key]: value for key, value in info.items() if key in _INFOS}
    found += _named('info', f'info/{t}', named)
    if case.has(f'params/{t}'):
        found += _named('params', f'params/{t}', variables(agent))
    if case.has(f'opt/{t}'):
        found += _named('opt', f'opt/{t}', slots(agent, grads))
    return agent, found


# --- Actions --------------------------------------------------------------------------------------


def _actions(case, agent, prefix, how):
    base = base_of(agent)
    observations = case.take(f'{prefix}/observations')
    if not hasattr(base, 'actor'):
        yield from _discrete_actions(case, base, prefix, how, observations)
        return
    if case.has(f'{prefix}/noise'):
        out = base.act(observations, case.take(f'{prefix}/noise').float())
    else:
        out = agent.eval_actions(observations)[0]
    yield 'actions', f'{prefix}/out', out
    if not case.has(f'{prefix}/info'):
        return
    seen = base.normalize(observations)[None]
    q = base.critic(seen, out[None])
    values = {'Q_average': q if q.ndim == 1 else q[0]}
    if hasattr(base, 'temperature'):
        outputs = base.actor(seen)
        values['Pi_step_std'] = networks.gaussian(outputs)[2]
        log_p = networks.squashed_sample(outputs, torch.zeros_like(out)[None])[1]
        values['Q_average'] = networks.smaller(q) - base.alpha() * log_p
    values['Q_average'] = values['Q_average'][:, None]
    yield from _named('actions', f'{prefix}/info', values)


def _discrete_actions(case, base, prefix, how, observations):
    """Actions with the original's draws from numpy's global stream."""
    stream = np.random.RandomState(how.get('np_seed', 0))
    size = base.config['num_actions']
    if observations.ndim == 1:  # the original divides by 255 while it acts, always
        observations = observations / 255.0
    if not how.get('test_info') and how.get('step_counter', 0) < how.get('warmup', 0):
        yield 'actions', f'{prefix}/out', torch.tensor(stream.randint(size))
        return
    epsilon = how.get('eps_act', 0.0)
    uniform = stream.uniform() if how.get('explore') else 1.1  # above any epsilon
    random_action = stream.randint(size) if uniform <= epsilon else 0
    config = {**base.config, 'eps_l': epsilon, 'eps_r': epsilon}
    agent = base.replace(config=trees.FrozenDict(config))
    yield (
        'actions',
        f'{prefix}/out',
        agent.act(observations, torch.tensor(uniform), torch.tensor(random_action)),
    )
    if case.has(f'{prefix}/q'):
        q = base.critic(base.normalize(observations)[None])
        yield 'actions', f'{prefix}/q', q
        if case.has(f'{prefix}/info'):
            yield 'actions', f'{prefix}/info/Q_average', q.amax(-1, keepdim=True)
