"""The last bits of squashed actions, as a recording has them.

The density of an action a = tanh(x) holds log(1 + 1e-6 - a^2). Near the bounds the last bit of a
moves it by up to a hundredth and more, and matrix products that are summed in another order decide
that bit. A replay is therefore repeated with the recorded actions; where an op has none, with its
own, of which a few are those of neighbouring samples if that explains the recorded losses.
"""

import contextlib
import itertools

import torch

from experiments.reference.case import Case
from experiments.reference.compare import LIMIT
from experiments.reference.rrd_tensors import relabelled
from experiments.reference.rrd_variables import base_of
from purerl.agents.rrd import networks

_CANDIDATES = 8  # actions per loss that are looked at: those closest to the bounds
_UNITS = 8  # by which their samples may be off
_REPLACED = 3  # actions that may differ
_EXPLAINED = 2e-6  # error of a loss that is rounding of the loss itself


@contextlib.contextmanager
def using(actions):
    """Have `networks.tanh` give these actions in the place of its own, where they are near."""
    tanh = networks.tanh

    def rounded(x):
        value = tanh(x)
        for given in actions:
            if given.shape == value.shape and (value - given).abs().max() < LIMIT:
                return given + (1 - given * given) * (x - x.detach())
        return value

    networks.tanh = rounded
    try:
        yield
    finally:
        networks.tanh = tanh


def settle(case: Case, agent, batch, t: int) -> list:
    """Return the actions that op `t` is to take in the place of its own.

    Args:
        case: the recording.
        agent: before the op.
        batch: the op's, with its noises.
        t: the op's number.
    """
    base = base_of(agent)
    if not hasattr(base, 'temperature'):
        return []
    names = [f'eval/{t}/{name}' for name in ('pi_act', 'pi_next_act')]
    if all(name in case.tensors for name in names):
        return [torch.from_numpy(case.tensors[name]) for name in names]
    return _explained(case, base, relabelled(agent, batch), t)


def _explained(case, base, batch, t):
    """Return actions of both policy calls of an op with which its losses are the recorded ones."""
    calls = {
        'Pi_loss': ('observations', 'policy_noises', base.actor_loss, None),
        'Q_loss': ('next_observations', 'next_policy_noises', base.critic_loss, base.critic.params),
    }
    found = []
    for name, (observations, noises, loss, params) in calls.items():
        mean, _, std = networks.gaussian(base.actor(base.normalize(batch[observations])))
        samples = mean + batch[noises] * std
        recorded = case.tensors.get(f'info/{t}/{name}')
        if recorded is None:
            found.append(networks.tanh(samples))
            continue

        def loss_of(actions, loss=loss, params=params):
            with using([actions]):
                return float(loss(batch, params)[0])

        found.append(_nearest(samples, loss_of, float(recorded)))
    return found


def _nearest(samples, loss_of, recorded):
    """Return the actions, of as few others than its own as possible, that explain a loss best."""
    actions = networks.tanh(samples)
    own, scale = loss_of(actions), max(1.0, abs(recorded))
    options = [
        (i, value, loss_of(_replaced(actions, [(i, value)])) - own)
        for i in actions.abs().flatten().argsort(descending=True)[:_CANDIDATES].tolist()
        for value in _neighbours(samples.flatten()[i])
    ]
    best, chosen = abs(own - recorded) / scale, ()
    for count in range(1, _REPLACED + 1):
        if best <= _EXPLAINED:
            break
        for some in itertools.combinations(options, count):
            error = abs(own + sum(change for *_, change in some) - recorded) / scale
            if error < best and len({i for i, *_ in some}) == count:
                best, chosen = error, some
    return _replaced(actions, [(i, value) for i, value, _ in chosen])


def _neighbours(sample):
    """Return the other actions that samples within some units in the last place have."""
    unit = torch.nextafter(sample.abs(), torch.tensor(torch.inf)) - sample.abs()
    values = networks.tanh(sample + unit * torch.arange(-_UNITS, _UNITS + 1))
    return sorted(set(values.tolist()) - {networks.tanh(sample).item()})


def _replaced(actions, values):
    replaced = actions.flatten().clone()
    for i, value in values:
        replaced[i] = value
    return replaced.reshape(actions.shape)
