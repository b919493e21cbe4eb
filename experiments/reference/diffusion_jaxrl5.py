"""Replays recordings of jaxrl5's diffusion models, objectives and weight-decay masks."""

import functools
import re

import torch

from experiments.reference.case import CaseError, flatten, nested
from purerl.agents.jaxrl5 import bc, networks
from purerl.agents.jaxrl5.objectives import VALUE_LOSSES, exp_w_clip, exponential_loss
from purerl.core import diffusion, nn, random
from purerl.core.jit import jit

ACTIVATIONS = {'relu': nn.relu, 'tanh': nn.tanh, 'mish': nn.mish, 'swish': nn.swish}
_TIME = re.compile(r'FourierFeatures\((\d+), (learnable|fixed)\)')
_MLP = re.compile(r'MLP\(([\d,]+)\) (\w+)( use_layer_norm)?')
_RESNET = re.compile(
    r'MLPResNet\((\d+) blocks, hidden (\d+)(, LN)?(?:, dropout ([\d.]+))?, out (\d+)\) (\w+)'
)


def make_ddpm(entry) -> diffusion.DDPM:
    """Make a score network from its recorded description."""
    time = _TIME.fullmatch(entry['time'])
    if time is None:
        raise CaseError(f'unknown features of time {entry["time"]!r}')
    return diffusion.DDPM(
        cond_encoder_cls=_encoder_cls(entry['cond']),
        reverse_encoder_cls=_encoder_cls(entry['reverse']),
        time_preprocess_cls=functools.partial(
            diffusion.FourierFeatures, int(time[1]), learnable=time[2] == 'learnable'
        ),
    )


def _encoder_cls(text):
    """``MLP(16,14,3) mish use_layer_norm``, ``MLPResNet(2 blocks, hidden 12, out 3) swish``"""
    if match := _MLP.fullmatch(text):
        return functools.partial(
            networks.MLP,
            hidden_dims=tuple(int(size) for size in match[1].split(',')),
            activations=ACTIVATIONS[match[2]],
            use_layer_norm=bool(match[3]),
        )
    if match := _RESNET.fullmatch(text):
        return functools.partial(
            networks.MLPResNet,
            num_blocks=int(match[1]),
            hidden_dim=int(match[2]),
            use_layer_norm=bool(match[3]),
            dropout_rate=float(match[4]) if match[4] else None,
            out_dim=int(match[5]),
            activations=ACTIVATIONS[match[6]],
        )
    raise CaseError(f'unknown network {text!r}')


# --- Diffusion -----------------------------------------------------------------------------------


def _replay_betas(case, report, prefix, match):
    """``betas_vp_5``, ``betas_cosine_s0.1_7``, ``betas_linear_custom_6``"""
    name, variant, timesteps = match[1], match[2], int(match[3])
    if variant is None:
        values = diffusion.make_schedule(name, timesteps)
        outputs = dict(zip(('betas', 'alphas', 'alpha_hats'), values, strict=True))
    elif variant == 'custom':
        recorded = case.tensors[f'{prefix}/out/betas']
        ends = float(str(recorded[0])), float(str(recorded[-1]))
        outputs = {'betas': diffusion.linear_beta_schedule(timesteps, *ends)}
    else:
        outputs = {'betas': diffusion.cosine_beta_schedule(timesteps, s=float(variant[1:]))}
    report.compare_tree('fn', f'{prefix}/out', outputs)


def _replay_fixed_features(case, report, prefix, match):
    """Features of the time at fixed frequencies, which have no parameters."""
    module = diffusion.FourierFeatures(case.config[match[0]]['output_size'], learnable=False)
    y = nn.apply(module, {}, case.take(f'{prefix}/in/x'))
    report.compare_tree('fn', f'{prefix}/out', {'y': y})


def _take_shared(case, report, prefix, match):
    """What several samplers share."""
    case.take_tree(prefix)


def _replay_sampler(case, report, prefix, match):
    entry = case.config[match[0]]
    score_fn = _score_fn(case.config[entry['params'].split('/')[1]])
    observations = case.take(entry['observations'])
    key = case.take(f'{prefix}/in/key')
    schedule = diffusion.make_schedule(entry['beta_schedule'], entry['T'])

    @jit
    def sample(params, key, observations, schedule):
        return diffusion.ddpm_sampler(
            score_fn,
            params,
            entry['T'],
            key,
            entry['act_dim'],
            observations,
            schedule,
            entry['sample_temperature'],
            entry['repeat_last_step'],
            entry['clip_sampler'],
        )

    actions, rng = sample(case.take_tree(entry['params']), key, observations, schedule)
    first_noise = random.normal(random.split(key)[0], actions.shape)
    outputs = {'actions': actions, 'key': rng, 'first_noise': first_noise}
    report.compare_tree('fn', f'{prefix}/out', outputs)


def _score_fn(entry):
    if isinstance(entry, dict):
        return functools.partial(nn.apply, make_ddpm(entry))
    if 'a stand-in score function' in entry:
        return lambda params, s, a, time: 0.8 * a + 0.2 * torch.tanh(s @ params['W']) + 0.01 * time
    raise CaseError(f'unknown score function {entry!r}')


# --- Objectives, masks ---------------------------------------------------------------------------

_CLIP = 0.5  # where the recorded exp_w_clip begins


def _replay_losses(case, report, prefix, match):
    """``quantile_0.7``, ``expectile_grad_0.9``, ``exponential_1.0_zero``, ``exp_w_clip_first``"""
    diff = case.take(f'{prefix}/in/diff')
    for name in case.children(f'{prefix}/out'):
        parts = re.fullmatch(r'(exp_w_clip|[a-z]+)(_grad)?(?:_([\d.]+))?(?:_([a-z]+))?', name)
        loss = _named_loss(*parts.group(1, 3, 4)) if parts else None
        if loss is None:
            raise CaseError(f'{prefix}/out/{name}: purerl has no counterpart')
        if parts[2]:
            loss = torch.func.grad(lambda x, loss=loss: loss(x).sum())
        report.compare('fn', f'{prefix}/out/{name}', loss(diff))


def _named_loss(kind, number, mode):
    if kind == 'exp_w_clip':
        return lambda x: exp_w_clip(x, _CLIP, mode)
    if kind == 'exponential':
        return lambda x: exponential_loss(x, float(number), mode=mode)
    if kind in VALUE_LOSSES:
        return lambda x: VALUE_LOSSES[kind](x, float(number))
    return None


def _replay_compute_q(case, report, prefix, match):
    """The minimum over an ensemble, whose sizes are those of its parameters."""
    params = case.take_tree(f'{prefix}/params')
    kernel = flatten(params)['VmapStateActionValue_0/MLP_0/Dense_0/kernel']
    base_cls = functools.partial(networks.MLP, hidden_dims=kernel.shape[-1:], activate_final=True)
    critic_cls = functools.partial(networks.StateActionValue, base_cls=base_cls)
    ensemble = networks.Ensemble(critic_cls, len(kernel))
    inputs = [case.take(f'{prefix}/in/{name}') for name in ('observations', 'actions')]
    q = nn.apply(ensemble, params, *inputs).amin(0)
    report.compare_tree('fn', f'{prefix}/out', {'q': q})


_MASKS = {
    'bc_learner': bc.get_weight_decay_mask,
    'networks_mlp': networks.get_weight_decay_mask,
}


def _replay_mask(case, report, prefix, match):
    """Which parameters decay; the tree is that of the recorded mask itself."""
    names = (name.removeprefix(f'{prefix}/out/') for name in case.below(f'{prefix}/out'))
    params = nested({name: torch.zeros(()) for name in names})
    report.compare_tree('fn', f'{prefix}/out', _MASKS[match[1]](params))


SUBJECTS = {
    r'betas_(cosine|linear|vp)(?:_(custom|s[\d.]+))?_(\d+)': _replay_betas,
    r'fourier_fixed_\w+': _replay_fixed_features,
    r'ddpm_sampler(?:_params_\w+)?': _take_shared,
    r'ddpm_sampler_\d+': _replay_sampler,
    'losses': _replay_losses,
    'compute_q': _replay_compute_q,
    r'weight_decay_mask_(bc_learner|networks_mlp)': _replay_mask,
}
