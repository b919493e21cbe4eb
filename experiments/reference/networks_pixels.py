"""Replays recordings of jaxrl5's networks for images, of its augmentation and its normaliser."""

import functools
import re

import numpy as np
import torch

from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from experiments.reference.networks import dropout_keys, initialised
from purerl.agents.jaxrl5 import encoders, images, networks
from purerl.core import nn
from purerl.data.normalizers import Normalizer

# Modules that are made from their recorded arguments, as those of states are.
MODULES = {
    'D4PGEncoder': encoders.D4PGEncoder,
    'ResNetV2Encoder': encoders.ResNetV2Encoder,
    'ResNetV2Block': encoders.ResNetV2Block,
    'MyGroupNorm': encoders.MyGroupNorm,
}


def example(shapes: dict) -> dict:
    """Make example observations from a config's ``{'pixels': {name: shape}, ...}``."""
    examples = {}
    for kind, entries in shapes.items():
        dtype = torch.uint8 if kind == 'pixels' else torch.float32
        entries = entries if isinstance(entries, dict) else {kind: entries}
        examples |= {name: torch.zeros(shape, dtype=dtype) for name, shape in entries.items()}
    return examples


# --- PixelMultiplexer -----------------------------------------------------------------------------

_ENCODER = re.compile(r'D4PG\(features ([\d,]+); filters ([\d,]+); strides ([\d,]+); (\w+)\)')
_BASE = r'MLP\(([\d,]+)\) activate_final(?: dropout ([\d.]+))?( LN)?'
_POLICY = re.compile(rf'TanhDeterministic\({_BASE}, action_dim (\d+)\)')
_CRITICS = re.compile(rf'Ensemble\(StateActionValue\({_BASE}\), (\d+)\)')


def _sizes(text):
    return tuple(int(size) for size in text.split(','))


def _matched(pattern, text):
    match = pattern.fullmatch(text)
    if match is None:
        raise CaseError(f'unknown network {text!r}')
    return match.groups()


def _encoder_class(text):
    features, filters, strides, padding = _matched(_ENCODER, text)
    return functools.partial(
        encoders.D4PGEncoder, _sizes(features), _sizes(filters), _sizes(strides), padding
    )


def _network_class(text):
    """Return what makes the network, and the number of its members (None: no ensemble)."""
    is_policy = text.startswith('TanhDeterministic')
    sizes, dropout, layer_norm, num = _matched(_POLICY if is_policy else _CRITICS, text)
    base_cls = functools.partial(
        networks.MLP,
        hidden_dims=_sizes(sizes),
        activate_final=True,
        dropout_rate=float(dropout) if dropout else None,
        use_layer_norm=bool(layer_norm),
    )
    if is_policy:
        return functools.partial(networks.TanhDeterministic, base_cls, int(num)), None
    critic_cls = functools.partial(networks.StateActionValue, base_cls)
    return functools.partial(networks.Ensemble, critic_cls, num=int(num)), int(num)


def replay_multiplexer(case: Case, report: Report, prefix: str, entry: dict) -> None:
    """Replay one call of a multiplexer, with its gradients where they are recorded."""
    network_cls, members = _network_class(entry['network'])
    observations = case.take_tree(f'{prefix}/in/observations')
    module = encoders.PixelMultiplexer(
        _encoder_class(entry['encoder']),
        network_cls,
        entry['latent_dim'],
        entry.get('stop_gradient', False),
        entry.get('pixel_keys', ('pixels',)),
        entry.get('depth_keys', ()),
        has_state='state' in observations,
    )
    inputs = [observations]
    if f'{prefix}/in/actions' in case.tensors:
        inputs.append(case.take(f'{prefix}/in/actions'))
    params = initialised(case, report, prefix, module, inputs)
    rngs = dropout_keys(case, report, prefix, entry, members)

    def run(params):
        return nn.apply(module, params, *inputs, training=entry['training'], rngs=rngs)

    outputs = {'y': run(params)}
    if case.has(f'{prefix}/out/grad_mean_square'):
        loss = torch.func.grad(lambda params: run(params).square().mean())
        outputs['grad_mean_square'] = loss(params)
    report.compare_tree('fn', f'{prefix}/out', outputs)


# --- Augmentation and normalisation ---------------------------------------------------------------


def replay_augmentation(case: Case, report: Report) -> None:
    """Replay the file of crops, cameras' augmentation, unpacking and the normaliser."""
    for name in case.children('fn'):
        report.stage = prefix = f'fn/{name}'
        replay = next((f for pattern, f in _SUBJECTS.items() if re.fullmatch(pattern, name)), None)
        if replay is None:
            raise CaseError(f'{prefix}: purerl has no counterpart')
        report.compare_tree(
            'fn', f'{prefix}/out', replay(case.take_tree(f'{prefix}/in'), case.config.get(name))
        )


def _crop(inputs, entry):
    """One image at its own key."""
    offsets = images.crop_offsets(inputs['key'][None], entry['padding'])
    cropped = images.crop(inputs['img'][None], offsets, entry['padding'])
    return {'crop_from': offsets[0].int(), 'img': cropped[0]}


def _batched_crop(inputs, entry):
    return {
        'obs': {
            **inputs['obs'],
            'pixels': images.random_crop(inputs['key'], inputs['obs']['pixels']),
        }
    }


def _augment(inputs, entry):
    keys = entry['pixel_keys'], entry['depth_keys']
    return {'obs': images.augment(inputs['key'], inputs['obs'], *keys)}


def _unpack(inputs, entry):
    return images.unpack(inputs, ['pixels'])


def _normalize(inputs, entry):
    outputs = {}
    for name, tensor in inputs.items():
        array = tensor.numpy()
        statistics = Normalizer.of(array)
        outputs[name] = {key: np.asarray(value) for key, value in statistics._asdict().items()}
        if name != 'dones':
            normalized = statistics.normalize(array)
            outputs[name]['normalized'] = normalized
            outputs[name]['unnormalized'] = statistics.unnormalize(2 * normalized)
    return outputs


_SUBJECTS = {
    r'random_crop_\d+_\d+': _crop,
    'batched_random_crop': _batched_crop,
    r'aug_\w+': _augment,
    'unpack': _unpack,
    'gaussian_normalizer': _normalize,
}
