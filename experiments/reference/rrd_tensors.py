"""What the RRD originals' graphs hold in the middle of an update: gradients and tensors."""

import torch
import torch.nn.functional as F

from experiments.reference.case import Case, CaseError
from experiments.reference.rrd_variables import base_of, learns, scoped
from purerl.agents.rrd import networks


def relabelled(agent, batch):
    """Return the batch that the base sees."""
    return agent._relabelled(batch) if agent is not base_of(agent) else batch


def gradients(agent, batch, call: str) -> dict:
    """Return the gradients that one call of the recording takes, by variable."""
    base, seen = base_of(agent), relabelled(agent, batch)

    def gradient(loss, state):
        return torch.func.grad(lambda params: loss(params)[0])(state.params)

    found = {}
    if call in ('train', 'train_pi') and hasattr(base, 'actor'):
        found['actor'] = gradient(lambda p: base.actor_loss(seen, p), base.actor)
    if call in ('train', 'train_q'):
        found['critic'] = gradient(lambda p: base.critic_loss(seen, p), base.critic)
    if call == 'train' and hasattr(base, 'temperature') and learns(base, base.temperature):
        log_prob = base.actor_loss(seen, None)[1]['log_prob']
        size = batch['actions'].shape[-1]
        found['temperature'] = gradient(
            lambda p: (base.temperature_loss(log_prob, size, p),), base.temperature
        )
    if hasattr(agent, 'reward') and call != 'train_pi':
        found['reward'] = gradient(lambda p: agent.reward_loss(batch, p), agent.reward)
    fields = {id(getattr(agent if n == 'reward' else base, n)): g for n, g in found.items()}
    return scoped(agent, lambda state: fields.get(id(state)))


def intermediates(case: Case, agent, batch, prefix: str):
    """Iterate over (name, value) of everything that is recorded below `prefix`.

    Raises:
        CaseError: if one has no counterpart.
    """
    values = _tensors(agent, batch)
    for name in case.children(prefix):
        if name not in values:
            raise CaseError(f'{prefix}/{name}: no counterpart')
        value = values[name]
        if value.ndim == case.tensors[f'{prefix}/{name}'].ndim - 1:
            value = value[..., None]
        yield f'{prefix}/{name}', value


def _tensors(agent, batch):
    base, seen = base_of(agent), relabelled(agent, batch)
    observations, following = (
        base.normalize(batch[key]) for key in ('observations', 'next_observations')
    )
    free = {**seen, 'rewards': torch.tensor(0.0), 'masks': torch.tensor(1.0)}
    values = {
        'obs_normalized': observations,
        'obs_next_normalized': following,
        'q_t': base.target_values(free) / base.config['gamma'],
    }
    info = base.critic_loss(seen, base.critic.params)[1]
    values |= {'q_loss': info['critic_loss'], 'q_reg_loss': info.get('critic_reg_loss')}
    if not hasattr(base, 'actor'):
        values |= _value_tensors(base, batch, observations, following)
    else:
        values['pi_loss'] = base.actor_loss(seen, None)[0]
        values |= _policy_tensors(base, batch, observations, following)
    if hasattr(agent, 'reward'):
        values |= _reward_tensors(agent, batch)
    return values


def _value_tensors(base, batch, observations, following):
    q, q_next = base.critic(observations), base.critic(following)
    best = F.one_hot(q_next.argmax(-1), q_next.shape[-1]).float()
    taken = q.gather(-1, batch['actions'].long()[..., None])
    return {'q': q, 'q_acts': taken, 'q_pi': q.amax(-1), 'q_next': q_next, 'pi_next': best}


def _policy_tensors(base, batch, observations, following):
    if hasattr(base, 'temperature'):
        return _gaussian_tensors(base, batch, observations, following)
    pi = torch.tanh(base.actor(observations))
    if 'target_noises' in batch:
        pi_t = base.target_actions(batch)
    else:
        pi_t = torch.tanh(base.target_actor(following))
    q = base.critic(observations, batch['actions'])
    q_pi = base.critic(observations, pi)
    values = {'pi': pi, 'pi_t': pi_t}
    if q.ndim == 1:
        return {**values, 'q': q, 'q_pi': q_pi}
    q_t = base.target_critic(following, pi_t)
    values |= {'q_1': q[0], 'q_2': q[1], 'q_t_1': q_t[0], 'q_t_2': q_t[1]}
    return {**values, 'q_pi': q_pi[0], 'q_pi_2': q_pi[1]}


def _gaussian_tensors(base, batch, observations, following):
    values = {'log_alpha': base.temperature(), 'alpha': base.alpha()}
    actions = {}
    for name, seen, noise in (
        ('pi', observations, 'policy_noises'),
        ('pi_next', following, 'next_policy_noises'),
    ):
        outputs = base.actor(seen)
        parts = dict(zip(('mean', 'logstd', 'std'), networks.gaussian(outputs), strict=True))
        values |= {f'{name}.{part}': value for part, value in parts.items()}
        values[f'{name}_sample'] = parts['mean'] + batch[noise] * parts['std']
        actions[name], log_p = networks.squashed_sample(outputs, batch[noise])
        values |= {f'{name}_act': actions[name], f'{name}_log_p': log_p}
    size = batch['actions'].shape[-1]
    values['alpha_loss'] = base.temperature_loss(values['pi_log_p'].mean(), size, None)
    q = base.critic(observations, batch['actions'])
    q_pi = base.critic(observations, actions['pi'])
    q_t = base.target_critic(following, actions['pi_next'])
    values |= {'q_1': q[0], 'q_2': q[1], 'q_t_1': q_t[0], 'q_t_2': q_t[1]}
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
