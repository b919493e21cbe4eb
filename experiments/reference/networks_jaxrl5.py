"""Replays recordings of jaxrl5's networks, ensembles and distributions."""

import functools
import re

import torch

from experiments.reference import diffusion_jaxrl5, networks_pixels
from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from experiments.reference.networks import dropout_keys, initialised
from experiments.reference.randoms import replay_jaxrl5_rng
from purerl.agents.jaxrl5 import networks
from purerl.core import diffusion, nn, random
from purerl.core.distributions import TanhTransformed


def replay_networks(case: Case, report: Report) -> None:
    """Replay one of the files of networks; each of their subjects names its replayer."""
    if case.case == 'rng':
        replay_jaxrl5_rng(case, report)
        return
    if case.case == 'augment_normalize':
        networks_pixels.replay_augmentation(case, report)
        return
    for name in case.children('fn'):
        report.stage = f'fn/{name}'
        _replayer_of(case, name)(case, report, f'fn/{name}')


def _replayer_of(case, name):
    for pattern, replay in diffusion_jaxrl5.SUBJECTS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return functools.partial(replay, match=match)
    entry = case.config.get(name)
    if isinstance(entry, dict) and entry.get('fn') == 'subsample_ensemble':
        return functools.partial(_replay_subsample, entry=entry)
    if isinstance(entry, dict) and 'params' in entry:
        return functools.partial(_replay_distribution, entry=entry)
    if isinstance(entry, dict) and entry.get('module') == 'PixelMultiplexer':
        return functools.partial(networks_pixels.replay_multiplexer, entry=entry)
    if isinstance(entry, dict) and 'module' in entry:
        return functools.partial(_replay_module, entry=entry)
    for pattern, replay in _SUBJECTS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return functools.partial(replay, match=match)
    raise CaseError(f'fn/{name}: purerl has no counterpart')


# --- Modules from their recorded descriptions -----------------------------------------------------

_MODULES = {
    'MLP': networks.MLP,
    'MLPResNet': networks.MLPResNet,
    'MLPResNetBlock': networks.MLPResNetBlock,
    'FourierFeatures': diffusion.FourierFeatures,
    'StateValue': networks.StateValue,
    'StateActionValue': networks.StateActionValue,
    'Temperature': networks.Temperature,
    'Normal': networks.Normal,
    'TanhNormal': networks.TanhNormal,
    'TanhDeterministic': networks.TanhDeterministic,
    **networks_pixels.MODULES,
}
_NOT_ARGUMENTS = ('module', 'call_kwargs', 'dropout_rng_paths', 'note', 'params', 'training')
_BASE = re.compile(r'MLP\(([\d,]+)\)( activate_final)?(?: dropout ([\d.]+))?( LN)?')
_ENSEMBLE = re.compile(r'Ensemble\((\w+)\((.*)\)\)')


def _base_cls(text):
    """``MLP(12,8) activate_final dropout .3 LN``"""
    match = _BASE.fullmatch(text)
    if match is None:
        raise CaseError(f'unknown base network {text!r}')
    sizes, activate_final, dropout, layer_norm = match.groups()
    return functools.partial(
        networks.MLP,
        hidden_dims=tuple(int(size) for size in sizes.split(',')),
        activate_final=bool(activate_final),
        dropout_rate=float(dropout) if dropout else None,
        use_layer_norm=bool(layer_norm),
    )


def _make_module(entry, inputs, action_dim=None):
    arguments = {name: value for name, value in entry.items() if name not in _NOT_ARGUMENTS}
    name = entry['module']
    if name == 'DDPM':
        return diffusion_jaxrl5.make_ddpm(entry)
    match = _ENSEMBLE.fullmatch(name)
    if match and match[1] in _MODULES:
        member = functools.partial(_MODULES[match[1]], base_cls=_base_cls(match[2]))
        return networks.Ensemble(member, arguments['num'])
    if name not in _MODULES:
        raise CaseError(f'unknown network class {name!r}')
    if 'base' in arguments:
        arguments['base_cls'] = _base_cls(arguments.pop('base'))
    for argument in ('activations', 'act'):
        if argument in arguments:
            arguments[argument] = diffusion_jaxrl5.ACTIVATIONS[arguments[argument]]
    if name in ('MLPResNetBlock', 'ResNetV2Block'):
        arguments['in_features'] = inputs[0].shape[-1]
    if action_dim is not None:
        arguments.setdefault('action_dim', action_dim)
    return _MODULES[name](**arguments)


_INPUTS = ('x', 'inputs', 'observations', 'actions', 's', 'a', 'time')


def _inputs(case, prefix):
    return [case.take(f'{prefix}/in/{n}') for n in _INPUTS if f'{prefix}/in/{n}' in case.tensors]


def _replay_module(case, report, prefix, entry):
    inputs = _inputs(case, prefix)
    action_dim = None
    if f'{prefix}/out/mode' in case.tensors:
        action_dim = case.tensors[f'{prefix}/out/mode'].shape[-1]
    module = _make_module(entry, inputs, action_dim)
    params = initialised(case, report, prefix, module, inputs)
    rngs = dropout_keys(case, report, prefix, entry, entry.get('num'))

    def run(**kwargs):
        return nn.apply(module, params, *inputs, rngs=rngs, **kwargs)

    def run_members(training):
        return nn.apply(module, params, *inputs, training, rngs=rngs)

    if 'call_kwargs' in entry:
        outputs = {'y': run(**entry['call_kwargs'])}
    elif 'training' in entry:
        dist = run(training=entry['training'])
        sample = dist.sample(seed=case.take(f'{prefix}/in/key'))
        outputs = {'mode': dist.mode(), 'sample': sample}
    else:
        outputs = {
            'train': run_members(True),
            'eval': nn.apply(module, params, *inputs),
            'eval_explicit': run_members(False),
        }
    report.compare_tree('fn', f'{prefix}/out', outputs)


# --- Ensembles ------------------------------------------------------------------------------------


def _replay_choice(case, report, prefix, match):
    num_sample, num = int(match[1]), int(match[2])
    key = case.take(f'{prefix}/in/key')
    indices = random.choice(key, num, (num_sample,), replace=False)
    report.compare('fn', f'{prefix}/out/indices', indices)


def _replay_subsample(case, report, prefix, entry):
    key, num_sample, num_qs = (
        case.take(f'{prefix}/in/key'), entry['num_sample'], entry['num_qs'],
    )  # fmt: skip
    source = entry['params'].removesuffix('/params')
    params = networks.subsample_ensemble(key, case.take_tree(entry['params']), num_sample, num_qs)
    whole = case.config[source.removeprefix('fn/')]
    inputs = _inputs(case, source)
    ensemble = _make_module({**whole, 'num': num_sample}, inputs)
    outputs = {
        'indices': random.choice(key, num_qs, (num_sample,), replace=False),
        'params': params,
        'q': nn.apply(ensemble, params, *inputs),
    }
    report.compare_tree('fn', f'{prefix}/out', outputs)


# --- Distributions --------------------------------------------------------------------------------


def _replay_policy_parameters(case, report, prefix, match):
    """Parameters that several entries share: ``normal_state`` of ``normal_state_b`` and others."""
    users = [
        name
        for name, entry in case.config.items()
        if isinstance(entry, dict) and entry.get('params') == f'{prefix}/params'
    ]
    if not users:
        raise CaseError(f'{prefix}: purerl has no counterpart')
    inputs = [case.take(f'fn/{users[0]}/in/observations')]
    initialised(case, report, prefix, _make_module(case.config[users[0]], inputs), inputs)


def _replay_distribution(case, report, prefix, entry):
    observations = case.take(f'{prefix}/in/observations')
    actions, key = case.take(f'{prefix}/in/actions'), case.take(f'{prefix}/in/key')
    params = case.take_tree(entry['params'])
    module = _make_module(entry, [observations])

    def own_log_prob(params):
        return nn.apply(module, params, observations).sample_and_log_prob(seed=key)[1]

    def log_prob(params):
        return nn.apply(module, params, observations).log_prob(actions)

    dist = nn.apply(module, params, observations)
    inner = getattr(dist, 'distribution', dist)
    sample = dist.sample(seed=key)
    outputs = {
        'loc': inner.loc,
        'std': inner.stddev(),
        'mode': dist.mode(),
        'sample': sample,
        'sample_n4': dist.sample(case.take(f'{prefix}/in/key2'), (4,)),
        'log_prob_actions': log_prob(params),
        'log_prob_own_sample': own_log_prob(params),
    }
    optional = {  # not recorded for every policy
        'entropy': lambda: dist.entropy(),
        'log_prob_own_sample_uncached': lambda: dist.log_prob(sample),
        'grad_mean_log_prob_actions': lambda: _mean_gradient(log_prob, params),
        'grad_mean_log_prob_own_sample': lambda: _mean_gradient(own_log_prob, params),
    }
    names = case.children(f'{prefix}/out')
    outputs.update({name: f() for name, f in optional.items() if name in names})
    report.compare_tree('fn', f'{prefix}/out', outputs)


def _mean_gradient(function, params):
    return torch.func.grad(lambda params: function(params).mean())(params)


def _replay_tanh_edges(case, report, prefix, match):
    """Log-densities of a squashed standard normal close to its bounds, and at them."""
    actions = case.take(f'{prefix}/in/actions')
    at_one = case.take(f'{prefix}/in/actions_at_one')
    dist = _squashed(torch.zeros_like(actions), torch.ones_like(actions))
    report.compare('fn', f'{prefix}/out/log_prob_unit_normal', dist.log_prob(actions))
    report.compare('fn', f'{prefix}/out/log_prob_at_one', dist.log_prob(at_one))


def _replay_tanh_fldj(case, report, prefix, match):
    """The logarithm of tanh's derivative."""
    x = case.take(f'{prefix}/in/x')[:, None]
    dist = _squashed(torch.zeros_like(x), torch.ones_like(x))
    report.compare('fn', f'{prefix}/out/y', dist._log_det(x))


def _replay_tanh_saturated(case, report, prefix, match):
    """Samples that tanh rounds to +-1, and the same moved off the bounds."""
    key = case.take(f'{prefix}/in/key')
    dist = _squashed(case.take(f'{prefix}/in/loc'), case.take(f'{prefix}/in/scale'))
    sample, log_prob = dist.sample_and_log_prob(seed=key)
    clipped = sample.clamp(-0.99999, 0.99999)
    # At the recorded values: so close to the bounds, one ulp of theirs moves the density by 1e-3.
    recorded = torch.from_numpy(case.tensors[f'{prefix}/out/clipped_sample'])
    outputs = {
        'sample': sample,
        'mode': dist.mode(),
        'sat_count': (sample.abs() == 1).sum(),
        'log_prob_own_sample': log_prob,
        'log_prob_own_sample_uncached': dist.log_prob(sample),
        'clipped_sample': clipped,
        'log_prob_clipped_sample': dist.log_prob(recorded),
    }
    report.compare_tree('fn', f'{prefix}/out', outputs)


def _squashed(loc, scale) -> TanhTransformed:
    return TanhTransformed(networks.TfpNormalDiag(loc, scale))


# --- Functions ------------------------------------------------------------------------------------


def _replay_mish(case, report, prefix, match):
    report.compare('fn', f'{prefix}/out/y', nn.mish(case.take(f'{prefix}/in/x')))


_SUBJECTS = {
    r'choice_(\d+)_of_(\d+)_\d+': _replay_choice,
    'tanh_edges': _replay_tanh_edges,
    'tanh_fldj': _replay_tanh_fldj,
    'tanh_saturated': _replay_tanh_saturated,
    'mish': _replay_mish,
    r'(?:tanh|normal)_\w+': _replay_policy_parameters,
}
