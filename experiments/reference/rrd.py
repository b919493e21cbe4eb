"""Replays recordings of the RRD originals' agents.

The originals are TensorFlow graphs: variables have scoped names, noise is fed from outside, and one
call of the recording (`train`, `target_update`, ...) is one run of the graph. Parameters are always
loaded: TensorFlow's random initialisation cannot be reproduced.
"""

import contextlib

import numpy as np
import torch

from experiments.reference.case import Case, CaseError, flatten
from experiments.reference.compare import LIMIT, Report, error_of
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
# Of the twins: signs of the parameters' nudges, factors of the actions.
_NUDGES = ((1, 1 - 2.0**-24), (1, 1 + 2.0**-23), (-1, 1.0), (0, 1 - 2.0**-24), (0, 1 + 2.0**-23))
_CALLS = {'train': 'train', 'train_q': 'train_critic', 'train_pi': 'train_actor'}


def replay_agent(case: Case, report: Report) -> None:
    """Replay one agent's recording.

    Where an error is above the limit, further replays tell whether it is rounding: their initial
    parameters, and all actions of a squashed Gaussian, differ from the first one's in the last bit.

    Raises:
        CaseError: if an input is missing, or does not fit the agent.
    """
    report.stage = 'create'
    agent = with_variables(_create(case), _take(case, 'init'))
    values = list(_replayed(case, report, agent))
    twins = []
    if any(_is_off(case, kind, name, value) for kind, name, value in values):
        for sign, factor in _NUDGES:
            with _nudged_actions(factor), jit.use_mode('off'):
                replayed = _replayed(case, report, _nudged_parameters(agent, sign))
                twins.append([value for *_, value in replayed])
    report.stage = 'comparison'
    for i, (kind, name, value) in enumerate(values):
        report.compare(kind, name, value, [twin[i] for twin in twins])


def _is_off(case, kind, name, value):
    reference = case.tensors.get(name)
    if reference is None or reference.dtype.kind != 'f' or tuple(value.shape) != reference.shape:
        return False
    return error_of(kind, np.asarray(value), reference)[0] > LIMIT


def _nudged_parameters(agent, sign):
    """Move every other parameter up (`sign`) by a unit in the last place, the others down."""

    def nudged(x):
        signs = sign * (1 - 2 * (torch.arange(x.numel()) % 2))
        return x * (1 + signs.reshape(x.shape) * 2.0**-23)

    return with_variables(agent, {name: nudged(x) for name, x in variables(agent).items()})


@contextlib.contextmanager
def _nudged_actions(factor):
    """Multiply the squashed Gaussian's actions by a factor beside one."""
    tanh = networks.tanh
    networks.tanh = lambda x: (tanh(x) * factor).clamp(-1.0, 1.0)
    try:
        yield
    finally:
        networks.tanh = tanh


def _replayed(case, report, agent):
    """Run the recording's calls; iterates over (kind, name, value) of all that they give."""
    if case.has('actions_before_normalizer'):
        yield from _actions(case, agent, 'actions_before_normalizer', {})
    for op in case.ops:
        report.stage = f'{op["call"]} {op.get("t", op.get("n", ""))}'.strip()
        agent = yield from _op(case, agent, op)
    yield from _named('params', 'final', variables(agent))
    for i, how in enumerate(case.parsed('actions')):
        report.stage = f'actions/{i}'
        yield from _actions(case, agent, f'actions/{i}', how)


def _named(kind, prefix, tree):
    return [(kind, f'{prefix}/{name}', value) for name, value in tree.items()]


def _create(case):
    wrapper, _, name = case.agent.rpartition('_')
    wrapper = wrapper or None
    if name not in bases.BASES:
        raise CaseError(f'there is no algorithm {name!r}')
    if wrapper is None:
        config, cls = bases.BASES[name].get_config(), bases.base_class({'basis_alg': name})
    else:
        module, cls = {'rrd': (rrd, rrd.RRDAgent), 'ircr': (ircr, ircr.IRCRAgent)}[wrapper]
        config = module.get_config(name)
    for key, value in case.config.items():
        if key in config and key != 'basis_alg':
            config[key] = value
    widths = case.parsed('shrunk_widths')
    for key in ('hidden_dims', 'reward_hidden_dims', 'conv_features', 'dense_dim'):
        if key in config:
            config[key] = _shrunk(
                config[key], widths['conv' if key.startswith('conv') else 'dense']
            )
    observations = torch.zeros(1, *case.config['obs_dims'])
    return cls.create(case.seed, observations, torch.zeros(1, *case.config['acts_dims']), config)


def _shrunk(width, widths):
    if isinstance(width, tuple | list):
        return tuple(_shrunk(one, widths) for one in width)
    return widths.get(str(width), width)


# --- Variables ------------------------------------------------------------------------------------


def base_of(agent):
    """Return a wrapper's base, or the agent itself."""
    return getattr(agent, 'base', agent)


def _scopes(agent) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return, by TensorFlow's scope, a field and the path in its parameters."""
    base, scopes = base_of(agent), {}
    kinds = {'main': '', 'target': 'target_'}
    for scope, prefix in kinds.items():
        if hasattr(base, f'{prefix}actor'):
            scopes[f'{scope}/policy/net'] = (f'{prefix}actor', ())
        if 'value_1' not in base.critic.params:
            scopes[f'{scope}/value/net'] = (f'{prefix}critic', ())
            continue
        value = 'q_value' if hasattr(base, 'temperature') else 'value'
        for i in (1, 2):
            scopes[f'{scope}/{value}_{i}/net'] = (f'{prefix}critic', (f'value_{i}',))
    if hasattr(base, 'temperature'):
        scopes['main/alpha'] = ('temperature', ())
    if hasattr(agent, 'reward'):
        scopes['rrd/net'] = ('reward', ())
    return scopes


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _to_scope(scope, params):
    """Name a network's parameters as TensorFlow does: the trunk's layers beside the others."""
    trunk = {
        f'{"r" if scope.startswith("rrd") else "q"}_{name}': value
        for name, value in params.get('trunk', {}).items()
    }
    return {**{name: value for name, value in params.items() if name != 'trunk'}, **trunk}


def _scoped(agent, take) -> dict:
    """Return ``{scope/name: take(state)'s leaf}`` of all networks that have what is taken."""
    tree = {}
    for scope, (field, path) in _scopes(agent).items():
        state = getattr(agent if field == 'reward' else base_of(agent), field)
        params = take(state)
        if params is not None:
            named = _to_scope(scope, _at(params, path))
            tree |= {f'{scope}/{name}': leaf for name, leaf in flatten(named).items()}
    return tree


def variables(agent) -> dict:
    """Return an agent's variables under TensorFlow's names."""
    tree = _scoped(agent, lambda state: state.params)
    normalizer = base_of(agent).normalizer
    if normalizer is not None:
        tree |= {f'normalizer/normalizer_variables/{n}': x for n, x in _statistics(normalizer)}
    return tree


def _statistics(normalizer):
    return [(name, getattr(normalizer, name)) for name in ('sum', 'sum_sqr', 'cnt', 'mean', 'std')]


def with_variables(agent, values: dict):
    """Return an agent with the given variables, all of them.

    Raises:
        CaseError: if names or shapes differ.
    """
    expected = variables(agent)
    if values.keys() != expected.keys():
        raise CaseError(f'{sorted(values.keys() ^ expected.keys())[0]}: only on one side')
    for name, value in values.items():
        if value.shape != expected[name].shape:
            raise CaseError(
                f'{name}: shape {tuple(value.shape)}, not {tuple(expected[name].shape)}'
            )
    replaced = {id(leaf): values[name] for name, leaf in expected.items()}
    return trees.map(lambda leaf: replaced.get(id(leaf), leaf), agent)


def _optimizers(agent):
    """Return the states with optimisers in the order in which the original makes them."""
    base = base_of(agent)
    states = [getattr(base, name, None) for name in ('actor', 'temperature', 'critic')]
    states.append(getattr(agent, 'reward', None))
    return [state.opt_state[0] for state in states if state is not None]


def _slots(agent) -> dict:
    """Return the optimisers' variables under TensorFlow's names."""
    tree = {}
    for field, name in (('mu', 'Adam'), ('nu', 'Adam_1')):
        moments = _scoped(
            agent, lambda state, f=field: state.opt_state and getattr(state.opt_state[0], f)
        )
        tree |= {f'{key}/{name}': moment for key, moment in moments.items()}
    for i, state in enumerate(_optimizers(agent)):
        suffix = f'_{i}' if i else ''
        for j, beta in ((1, 0.9), (2, 0.999)):
            tree[f'beta{j}_power{suffix}'] = np.float32(beta ** (state.count.item() + 1))
    return tree


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


def _op(case, agent, op):
    """Run one call; iterates over what it gives, and returns the new agent."""
    if op['call'] == 'normalizer_update':
        if op.get('noop'):
            return agent
        agent = agent.update_normalizer(_take_batch(case, agent, f'norm/{op["n"]}'))
        statistics = dict(_statistics(base_of(agent).normalizer))
        yield from _named('params', f'normalizer/{op["n"]}', statistics)
        return agent
    if op['call'] == 'target_update':
        agent = agent.update_target()
        if case.has(f'target_update/{op["n"]}'):
            target = {n: x for n, x in variables(agent).items() if n.startswith('target/')}
            yield from _named('params', f'target_update/{op["n"]}', target)
        return agent
    t = op['t']
    batch = _take_batch(case, agent, f'batch/{t}')
    if case.has(f'eval/{t}'):
        yield from _intermediates(case, agent, batch, f'eval/{t}')
    if case.has(f'grad/{t}'):
        yield from _named('grad', f'grad/{t}', _gradients(agent, batch, op['call']))
    agent, info = getattr(agent, _CALLS[op['call']])(batch)
    named = {_INFOS[key]: value for key, value in info.items() if key in _INFOS}
    yield from _named('info', f'info/{t}', named)
    if case.has(f'params/{t}'):
        yield from _named('params', f'params/{t}', variables(agent))
    if case.has(f'opt/{t}'):
        yield from _named('opt', f'opt/{t}', _slots(agent))
    return agent


def _relabelled(agent, batch):
    """The batch that the base sees."""
    return agent._relabelled(batch) if agent is not base_of(agent) else batch


def _gradients(agent, batch, call):
    base, relabelled = base_of(agent), _relabelled(agent, batch)

    def gradient(loss, state):
        return torch.func.grad(lambda params: loss(params)[0])(state.params)

    found = {}
    if call in ('train', 'train_pi') and hasattr(base, 'actor'):
        found['actor'] = gradient(lambda p: base.actor_loss(relabelled, p), base.actor)
    if call in ('train', 'train_q'):
        found['critic'] = gradient(lambda p: base.critic_loss(relabelled, p), base.critic)
    if call == 'train' and hasattr(base, 'temperature'):
        log_prob = base.actor_loss(relabelled, None)[1]['log_prob']
        size = batch['actions'].shape[-1]
        found['temperature'] = gradient(
            lambda p: (base.temperature_loss(log_prob, size, p),), base.temperature
        )
    if hasattr(agent, 'reward') and call != 'train_pi':
        found['reward'] = gradient(lambda p: agent.reward_loss(batch, p), agent.reward)
    fields = {id(getattr(agent if n == 'reward' else base, n)): g for n, g in found.items()}
    return _scoped(agent, lambda state: fields.get(id(state)))


# --- Intermediate tensors -------------------------------------------------------------------------


def _intermediates(case, agent, batch, prefix):
    """What the graph holds in the middle of an update."""
    values = _tensors(agent, batch)
    for name in case.children(prefix):
        if name not in values:
            raise CaseError(f'{prefix}/{name}: no counterpart')
        value = values[name]
        if value.ndim == case.tensors[f'{prefix}/{name}'].ndim - 1:
            value = value[..., None]
        yield 'eval', f'{prefix}/{name}', value


def _tensors(agent, batch):
    base, batch = base_of(agent), _relabelled(agent, batch) | batch
    seen = {key: base.normalize(batch[key]) for key in ('observations', 'next_observations')}
    relabelled = _relabelled(agent, batch)
    free = {**relabelled, 'rewards': torch.tensor(0.0), 'masks': torch.tensor(1.0)}
    values = {
        'obs_normalized': seen['observations'],
        'obs_next_normalized': seen['next_observations'],
        'q_t': base.target_values(free) / base.config['gamma'],
    }
    info = base.critic_loss(relabelled, base.critic.params)[1]
    values |= {'q_loss': info['critic_loss'], 'q_reg_loss': info.get('critic_reg_loss')}
    if not hasattr(base, 'actor'):
        values['q'] = q = base.critic(seen['observations'])
        taken = q.gather(-1, batch['actions'].long()[..., None])
        values |= {'q_acts': taken, 'q_pi': q.amax(-1)}
    else:
        values['pi_loss'] = base.actor_loss(relabelled, None)[0]
        values |= _policy_tensors(base, batch, seen)
    if hasattr(agent, 'reward'):
        values |= _reward_tensors(agent, batch)
    return values


def _policy_tensors(base, batch, seen):
    now, following = seen['observations'], seen['next_observations']
    if hasattr(base, 'temperature'):
        values = {'log_alpha': base.temperature(), 'alpha': base.alpha()}
        actions = {}
        for name, key, noise in (
            ('pi', 'observations', 'policy_noises'),
            ('pi_next', 'next_observations', 'next_policy_noises'),
        ):
            outputs = base.actor(seen[key])
            parts = dict(zip(('mean', 'logstd', 'std'), networks.gaussian(outputs), strict=True))
            values |= {f'{name}.{part}': value for part, value in parts.items()}
            values[f'{name}_sample'] = parts['mean'] + batch[noise] * parts['std']
            actions[name], log_p = networks.squashed_sample(outputs, batch[noise])
            values |= {f'{name}_act': actions[name], f'{name}_log_p': log_p}
        size = batch['actions'].shape[-1]
        log_prob = values['pi_log_p'].mean()
        values['alpha_loss'] = base.temperature_loss(log_prob, size, None)
        pi, pi_t = actions['pi'], actions['pi_next']
    else:
        pi = torch.tanh(base.actor(now))
        smoothed = 'target_noises' in batch
        pi_t = base.target_actions(batch) if smoothed else torch.tanh(base.target_actor(following))
        values = {'pi': pi, 'pi_t': pi_t}
    q, q_pi = base.critic(now, batch['actions']), base.critic(now, pi)
    if q.ndim == 1:
        return {**values, 'q': q, 'q_pi': q_pi}
    q_t = base.target_critic(following, pi_t)
    values |= {'q_1': q[0], 'q_2': q[1], 'q_t_1': q_t[0], 'q_t_2': q_t[1]}
    if not hasattr(base, 'temperature'):
        return {**values, 'q_pi': q_pi[0], 'q_pi_2': q_pi[1]}
    soft = networks.smaller(q_pi) - values['alpha'] * values['pi_log_p']
    return {**values, 'q_pi': soft, 'q_pi_1': q_pi[0], 'q_pi_2': q_pi[1]}


def _reward_tensors(agent, batch):
    predicted = agent.predict(batch, 'rrd_')
    normalize = agent.base.normalize
    total, info = agent.reward_loss(batch, None)
    values = {
        'rrd_obs_normalized': normalize(batch['rrd_observations']),
        'rrd_obs_next_normalized': normalize(batch['rrd_next_observations']),
        'rrd_rews_pred': predicted,
        'rrd': predicted.mean(1),
        'rews_pred': agent.predict(batch),
        'r_loss': info['reward_loss'],
        'r_total_loss': total,
    }
    if 'reward_variance' in info:
        values |= {'r_var': info['reward_variance'], 'r_var_single': agent.variances(predicted)}
    return values


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
    stream = np.random.RandomState(how['np_seed'])
    size = base.config['num_actions']
    if not how['test_info'] and how['step_counter'] < how['warmup']:
        yield 'actions', f'{prefix}/out', torch.tensor(stream.randint(size))
        return
    uniform = stream.uniform() if how['explore'] else 1.1  # above any epsilon
    random_action = stream.randint(size) if uniform <= how['eps_act'] else 0
    config = {**base.config, 'eps_l': how['eps_act'], 'eps_r': how['eps_act']}
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
