"""Diffusion models: schedules against their formulae, the chain against score functions in closed
form."""

import functools

import numpy as np
import pytest
import torch

from purerl.agents.jaxrl5.networks import MLP, MLPResNet
from purerl.core import diffusion, nn, random
from purerl.core.jit import jit, use_mode, vmap

SCHEDULES = sorted(diffusion.BETA_SCHEDULES)
STEPS = (1, 2, 5, 50, 1000)


def vp(t, T):
    return 1 - np.exp(-0.1 / T - 0.5 * (10 - 0.1) * (2 * t - 1) / T**2)


def cosine(t, T):
    def share(t):
        return np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.clip(1 - share(t) / share(t - 1), 0, 0.999)


def linear(t, T):
    return 1e-4 + (2e-2 - 1e-4) * (t - 1) / max(T - 1, 1)


@pytest.mark.parametrize('T', STEPS)
@pytest.mark.parametrize('name, formula', [('vp', vp), ('cosine', cosine), ('linear', linear)])
def test_schedules_follow_their_formulae(name, formula, T):
    betas, alphas, alpha_hats = diffusion.make_schedule(name, T)
    expected = formula(np.arange(1, T + 1, dtype=np.float64), T)
    for tensor in (betas, alphas, alpha_hats):
        assert tensor.shape == (T,) and tensor.dtype == torch.float32
    np.testing.assert_allclose(betas, expected, rtol=1e-4, atol=3e-7)
    torch.testing.assert_close(alphas, 1 - betas)
    np.testing.assert_allclose(alpha_hats, np.cumprod(1 - expected), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize('T', STEPS)
@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules_destroy_the_signal_step_by_step(name, T):
    betas, _, alpha_hats = diffusion.make_schedule(name, T)
    assert (betas > 0).all() and (betas < 1).all()
    assert (alpha_hats.diff() < 0).all() and (alpha_hats > 0).all()


def test_schedules_take_other_constants():
    ends = diffusion.linear_beta_schedule(6, 1e-3, 0.3)[[0, -1]]
    torch.testing.assert_close(ends, torch.tensor([1e-3, 0.3]))
    wider = diffusion.cosine_beta_schedule(7, s=0.1)
    assert (wider[:-1] > diffusion.cosine_beta_schedule(7)[:-1])[0]


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: diffusion.make_schedule('vpp', 5), "must be cosine, linear or vp, got 'vpp'"),
        (lambda: diffusion.make_schedule('vp', 0), 'T must be at least 1 denoising step, got 0'),
        (lambda: diffusion.check_sampling(5, N=0), 'N must be at least 1 candidate'),
        (lambda: diffusion.check_sampling(5, 1, M=-1), 'M must be at least 0 repetitions'),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [2, 8, 9])
def test_learnable_features_are_cosines_and_sines_of_learnt_frequencies(size):
    module = diffusion.FourierFeatures(size)
    x = torch.arange(12).reshape(6, 2)
    params = nn.init(module, random.key(0), x)
    assert params['kernel'].shape == (size // 2, 2)
    angles = 2 * np.pi * x.double() @ params['kernel'].double().mT
    expected = torch.cat([angles.cos(), angles.sin()], -1).float()
    torch.testing.assert_close(nn.apply(module, params, x), expected, rtol=0, atol=2e-5)


def test_fixed_features_are_a_geometric_series():
    module = diffusion.FourierFeatures(8, learnable=False)
    x = torch.tensor([[0.0], [1.0], [7.0]])
    assert nn.init(module, random.key(0), x) == {}
    angles = x.numpy() * 10_000.0 ** (-np.arange(4) / 3)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(nn.apply(module, {}, x), expected, atol=1e-6)
    with pytest.raises(ValueError, match='at least 4 features'):
        diffusion.FourierFeatures(3, learnable=False)


def make_ddpm(dropout_rate=None):
    return diffusion.DDPM(
        cond_encoder_cls=functools.partial(MLP, hidden_dims=(6, 6), activations=nn.mish),
        reverse_encoder_cls=functools.partial(
            MLPResNet, num_blocks=2, out_dim=3, hidden_dim=8, dropout_rate=dropout_rate
        ),
        time_preprocess_cls=functools.partial(diffusion.FourierFeatures, 4),
    )


def ddpm_inputs(num=5):
    key = random.key(1)
    return random.normal(key, (num, 4)), random.normal(random.fold_in(key, 1), (num, 3))


def test_score_network_has_the_original_names():
    params = nn.init(make_ddpm(), random.key(0), *ddpm_inputs(), torch.zeros(5, 1))
    assert sorted(params) == ['FourierFeatures_0', 'MLPResNet_0', 'MLP_0']
    assert params['MLPResNet_0']['Dense_0']['kernel'].shape == (3 + 4 + 6, 8)


def test_one_time_stands_for_all_rows():
    module, (s, a) = make_ddpm(), ddpm_inputs()
    params = nn.init(module, random.key(0), s, a, torch.zeros(5, 1))
    time = torch.full((5, 1), 3, dtype=torch.int32)
    whole = nn.apply(module, params, s, a, time)
    torch.testing.assert_close(nn.apply(module, params, s, a, time[:1]), whole)
    assert not torch.allclose(nn.apply(module, params, s, a, time[:1] + 1), whole)


# --- Sampling ------------------------------------------------------------------------------------


def point_score(T, name='vp'):
    """The true noise where the data is one action, which is the first part of the observation."""
    alpha_hats = diffusion.make_schedule(name, T)[2]

    def score(params, observations, actions, time):
        alpha_hat = params['alpha_hats'].index_select(0, time.reshape(-1))
        return (actions - alpha_hat.sqrt() * observations[:, :2]) / (1 - alpha_hat).sqrt()

    return score, {'alpha_hats': alpha_hats}


def sample(score, params, T, observations, key=None, name='vp', **kwargs):
    arguments = {'sample_temperature': 1.0, **kwargs}
    return diffusion.ddpm_sampler(
        score,
        params,
        T,
        random.key(0) if key is None else key,
        2,
        observations,
        diffusion.make_schedule(name, T),
        **arguments,
    )


OBSERVATIONS = torch.tensor([[0.5, -0.25, 9.0], [-0.75, 0.0, 9.0], [1.0, -1.0, 9.0]])


@pytest.mark.parametrize('mode', ['off', 'trace'])
@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('T', [1, 2, 5, 30])
def test_the_chain_ends_at_the_data(name, T, mode):
    score, params = point_score(T, name)
    with use_mode(mode):
        run = jit(lambda params, x: sample(score, params, T, x, name=name, clip_sampler=False))
        actions, _ = run(params, OBSERVATIONS)
    torch.testing.assert_close(actions, OBSERVATIONS[:, :2], rtol=0, atol=1e-4)


@pytest.mark.parametrize('repeat, times', [(0, [3, 2, 1, 0]), (2, [3, 2, 1, 0, 0, 0])])
def test_the_last_step_is_repeated(repeat, times):
    seen = []

    def score(params, observations, actions, time):
        seen.append(time.item())
        return torch.zeros_like(actions)

    _, rng = sample(score, {}, 4, OBSERVATIONS, repeat_last_step=repeat)
    assert seen == times
    expected = random.split(random.key(0))[1]
    for _ in times:  # every step takes a key, the last ones too
        expected = random.split(expected)[0]
    assert torch.equal(rng, expected)


def test_compile_time_does_not_grow_with_the_steps():
    calls = []

    def score(params, observations, actions, time):
        calls.append(1)
        return params['w'] * actions

    run = jit(lambda params, x: sample(score, params, 100, x), mode='trace')
    run({'w': torch.tensor(0.5)}, OBSERVATIONS)
    assert len(calls) == 1


def test_actions_are_clipped_in_the_end_and_where_asked_in_between():
    seen = {True: [], False: []}
    for clip in seen:

        def score(params, observations, actions, time, clip=clip):
            seen[clip].append(actions.abs().max().item())
            return actions * -50

        actions, _ = sample(score, {}, 5, OBSERVATIONS, clip_sampler=clip)
        assert actions.abs().max() <= 1
    assert max(seen[True][1:]) <= 1 < 100 < max(seen[False])


@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
def test_temperature_scales_the_noise_of_all_steps_but_the_last(temperature):
    betas, alphas, alpha_hats = diffusion.make_schedule('linear', 2)

    def erase_first(params, observations, actions, time):
        """Noise that takes the first step to zero, and leaves the last one still."""
        return torch.where(time > 0, actions * (1 - alpha_hats[1]).sqrt() / (1 - alphas[1]), 0.0)

    observations = torch.zeros(4000, 3)
    actions, _ = sample(
        erase_first, {}, 2, observations, name='linear', sample_temperature=temperature
    )
    expected = temperature**2 * betas[1] / alphas[0]
    assert actions.var().item() == pytest.approx(expected.item(), rel=0.05, abs=1e-9)


def test_dropout_in_samples_has_its_own_key():
    module = make_ddpm(dropout_rate=0.5)
    s, a = ddpm_inputs()
    params = nn.init(module, random.key(0), s, a, torch.zeros(5, 1))

    def run(dropout_key):
        schedule = diffusion.make_schedule('vp', 3)
        return diffusion.ddpm_sampler(
            functools.partial(nn.apply, module),
            params,
            3,
            random.key(2),
            3,
            s,
            schedule,
            1.0,
            dropout_key=dropout_key,
        )

    plain, rng = run(None)
    first, first_rng = run(random.key(0))
    again, _ = run(random.key(0))
    other, _ = run(random.key(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, plain)
    assert torch.equal(rng, first_rng)


def test_vmap_equals_loop():
    score, params = point_score(4)
    keys = random.split(random.key(3), 3)

    def run(key, x):
        return sample(score, params, 4, x, key, clip_sampler=False, sample_temperature=0.7)

    actions, rngs = vmap(run, in_dims=(0, None))(keys, OBSERVATIONS)
    for i, key in enumerate(keys):
        one, rng = run(key, OBSERVATIONS)
        torch.testing.assert_close(actions[i], one)
        assert torch.equal(rngs[i], rng)
