"""Replays recordings of InFOM's networks and encoders."""

import functools
import inspect
import re

from experiments.reference.case import Case, CaseError, flatten
from experiments.reference.compare import Report
from purerl.agents.infom import encoders, networks
from purerl.core import nn


def replay_networks(case: Case, report: Report) -> None:
    """Initialise every recorded module at its key, and run it on its recorded parameters."""
    for name, entry in case.config.items():
        report.stage = f'fn/{name}'
        _replay_network(case, report, f'fn/{name}', entry)


def _replay_network(case, report, prefix, entry):
    inputs = [case.take(f'{prefix}/in/{arg}') for arg in entry['args']]
    kwargs = entry['call_kwargs']
    module = make_module(entry['module'], inputs)
    _drop_unreached(module, case, f'{prefix}/params')
    params = nn.init(module, case.take(f'{prefix}/in/key'), *inputs, **kwargs)
    # Big encoders are recorded once: the parameters that they run on are the initial ones.
    initial = 'init' if case.has(f'{prefix}/init') else 'params'
    report.compare_tree('init', f'{prefix}/{initial}', params)
    recorded = case.take_tree(f'{prefix}/params')
    if flatten(recorded).keys() != flatten(params).keys():
        raise CaseError(f'{prefix}/params does not hold the parameters of the module')
    out, sown = nn.apply_with_intermediates(module, recorded, *inputs, **kwargs)
    report.compare_tree('fn', f'{prefix}/out', _outputs(case, prefix, entry['kind'], out, sown))


def _drop_unreached(module, case, prefix):
    """Drop submodules without recorded parameters: Flax makes none for what a call never reaches.

    If the call does reach one of them after all, the replay fails.
    """
    for name, child in list(module.named_children()):
        if case.has(f'{prefix}/{name}'):
            _drop_unreached(child, case, f'{prefix}/{name}')
        elif any(True for _ in child.parameters()):
            setattr(module, name, None)


def _outputs(case, prefix, kind, out, sown):
    """Name a network's results as the recording does."""
    if kind == 'array':
        return {'y': out}
    if kind == 'mlp':
        features = [values[-1] for values in sown.values()]
        return {'y': out, **({'feature': features[0]} if features else {})}
    if kind.startswith('tuple:'):
        return dict(zip(kind.removeprefix('tuple:').split(','), out, strict=True))
    if kind == 'dist':
        return _distribution_outputs(case, prefix, out)
    raise CaseError(f'{prefix}: unknown kind of output {kind!r}')


def _distribution_outputs(case, prefix, dist):
    key = case.take(f'{prefix}/in/sample_key')
    inner = getattr(dist, 'distribution', dist)
    sample, log_prob = dist.sample_and_log_prob(seed=key)
    if dist is inner:
        own = {'mean': inner.loc, 'stddev': dist.stddev(), 'entropy': dist.entropy()}
    else:
        own = {'base_stddev': dist.stddev()}  # a squashed policy hands on the inner one's
    return {
        'loc': inner.loc,
        'scale_diag': inner.stddev(),
        'mode': dist.mode(),
        'log_prob': dist.log_prob(case.take(f'{prefix}/in/eval_actions')),
        'sample': dist.sample(seed=key),
        'sample_n4': dist.sample(seed=key, sample_shape=(4,)),
        'sal_sample': sample,
        'sal_log_prob': log_prob,
        **own,
    }


# --- Modules from their recorded descriptions -----------------------------------------------------

_CLASSES = {
    name: value
    for module in (networks, encoders)
    for name, value in vars(module).items()
    if inspect.isclass(value) and issubclass(value, nn.Module) and not name.startswith('_')
}
_CLASSES.update(GroupNorm=nn.GroupNorm, LayerNorm=nn.LayerNorm)
_ACTIVATIONS = {
    name: getattr(nn, name) for name in ('relu', 'tanh', 'gelu', 'silu', 'swish', 'elu')
}
_LAYERS = {
    'Conv(use_bias=False,kaiming_normal)': functools.partial(
        nn.Conv, use_bias=False, kernel_init=nn.kaiming_normal()
    ),
}
_GROUP_NORM = re.compile(r'GroupNorm\(num_groups=(\d+),epsilon=([\d.e-]+)\)')


def make_module(description: dict, inputs=()) -> nn.Module:
    """Build a module from ``{"class": ..., argument: value}``; modules may be nested.

    Raises:
        CaseError: for an unknown class, activation, layer or initialiser.
    """
    arguments = {name: _argument(name, value) for name, value in description.items()}
    name = arguments.pop('class', None)
    members = arguments.pop('ensemblize', 1)
    if name == 'registered':
        encoder = arguments.pop('name')
        if encoder not in encoders.encoder_modules:
            raise CaseError(f'unknown encoder {encoder!r}')
        make = encoders.encoder_modules[encoder]
    elif name in _CLASSES:
        make = _CLASSES[name]
    else:
        raise CaseError(f'unknown network class {name!r}')
    if name == 'ResNetBlock':
        arguments['in_features'] = inputs[0].shape[-1]
        arguments['act'] = _named(_ACTIVATIONS, arguments['act'])
    module = make(**arguments)
    return nn.Vmap(module, members) if members > 1 else module


def _argument(name, value):
    if isinstance(value, dict) and 'class' in value:
        return make_module(value)
    if isinstance(value, dict) and value.keys() == {'default_init'}:
        return networks.default_init(value['default_init'])
    if isinstance(value, dict):
        raise CaseError(f'unknown description of {name}: {value}')
    if name == 'activations':
        return _named(_ACTIVATIONS, value)
    if name == 'block_cls':
        return _named(_CLASSES, value)
    if name == 'conv':
        return _named(_LAYERS, value)
    match = _GROUP_NORM.fullmatch(value) if name == 'norm' else None
    if match:
        return functools.partial(nn.GroupNorm, num_groups=int(match[1]), epsilon=float(match[2]))
    return value


def _named(table, name):
    if name not in table:
        raise CaseError(f'{name!r} is none of {", ".join(sorted(table))}')
    return table[name]
