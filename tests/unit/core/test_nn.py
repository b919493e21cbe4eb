"""nn against flax.linen: names, layouts, initial values, forward passes and gradients."""

import copy

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from purerl.core import nn, random, trees

RTOL = 1e-5  # sums of a few dozen products, added in another order
RNG = np.random.RandomState(0)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def flat(tree):
    return {'/'.join(path): np.asarray(leaf) for path, leaf in trees.leaves_with_path(tree)}


def to_torch(tree):
    return jax.tree.map(lambda x: torch.from_numpy(np.array(x)), tree)


def assert_same_values(ours, theirs, name=''):
    """The same bits, with the versions of JAX that round initial values as the recordings' did.

    Before 0.7 the inverse error function differs, from 0.11 on an initialiser's products.
    """
    if (0, 7) <= jax.__version_info__ < (0, 11):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=3e-7, atol=0, err_msg=name)


def assert_same_params(ours, theirs):
    """The same names and the same values."""
    ours, theirs = flat(ours), flat(theirs)
    assert sorted(ours) == sorted(theirs)
    for path, value in theirs.items():
        assert_same_values(ours[path], value, path)


def close(ours, theirs, rtol=RTOL):
    theirs = np.asarray(theirs)
    scale = np.abs(theirs).max(initial=1e-3)
    np.testing.assert_allclose(np.asarray(ours.detach()), theirs, rtol=rtol, atol=rtol * scale)


# --- Pairs of definitions -------------------------------------------------------------------------


class CompactMLP(nn.Module):
    def __init__(self, sizes, norm=False):
        super().__init__()
        self.layers = [self.compact(nn.Dense(size)) for size in sizes]
        self.norms = [self.compact(nn.LayerNorm()) for _ in sizes] if norm else []

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = nn.gelu(layer(x))
            x = self.norms[i](x) if self.norms else x
        return x


class LinenCompactMLP(linen.Module):
    sizes: tuple
    norm: bool = False

    @linen.compact
    def __call__(self, x):
        for size in self.sizes:
            x = linen.gelu(linen.Dense(size)(x))
            x = linen.LayerNorm()(x) if self.norm else x
        return x


class SetupNet(nn.Module):
    """Named parts, a numbered list, a nested compact part, a parameter of its own.

    Normalised layers here are not narrow: the variance of three numbers, by Flax's formula, may
    lose most of its digits, in either library.
    """

    def __init__(self):
        super().__init__()
        self.trunk = CompactMLP((16, 12), norm=True)
        for i, size in enumerate((5, 3)):
            self.add_module(f'blocks_{i}', nn.Dense(size, bias_init=nn.ones))
        self.head = nn.Dense(2, nn.orthogonal(), use_bias=False)
        self.declare('offset')

    def forward(self, x):
        x = self.trunk(x)
        for block in (self.blocks_0, self.blocks_1):
            x = nn.tanh(block(x))
        return self.head(x) + self.param('offset', nn.normal(0.1), (2,))


class LinenSetupNet(linen.Module):
    def setup(self):
        self.trunk = LinenCompactMLP((16, 12), norm=True)
        self.blocks = [linen.Dense(size, bias_init=linen.initializers.ones) for size in (5, 3)]
        self.head = linen.Dense(2, kernel_init=linen.initializers.orthogonal(), use_bias=False)
        self.offset = self.param('offset', linen.initializers.normal(0.1), (2,))

    def __call__(self, x):
        x = self.trunk(x)
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.head(x) + self.offset


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = [
            self.compact(nn.Conv(8, 3, 2)),
            self.compact(nn.Conv(4, (2, 3), (1, 2), padding='VALID', use_bias=False)),
        ]
        self.norm = self.compact(nn.GroupNorm(2, epsilon=1e-5))

    def forward(self, x):
        for conv in self.convs:
            x = nn.silu(conv(x))
        return self.norm(x)


class LinenConvNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.silu(linen.Conv(8, (3, 3), (2, 2))(x))
        x = linen.silu(linen.Conv(4, (2, 3), (1, 2), padding='VALID', use_bias=False)(x))
        return linen.GroupNorm(2, epsilon=1e-5)(x)


class EnsembleInSetup(nn.Module):
    """As InFOM's critics: an ensemble under a name, beside a plain part."""

    def __init__(self, num):
        super().__init__()
        self.value_net = nn.Vmap(CompactMLP((16, 12), norm=True), num)
        self.other = nn.Dense(12)

    def forward(self, x):
        return self.value_net(x) + self.other(x)


def linen_ensemble(cls, num, rngs=('params',)):
    return linen.vmap(
        cls,
        variable_axes={'params': 0},
        split_rngs=dict.fromkeys(rngs, True),
        in_axes=None,
        out_axes=0,
        axis_size=num,
    )


class LinenEnsembleInSetup(linen.Module):
    num: int

    def setup(self):
        self.value_net = linen_ensemble(LinenCompactMLP, self.num)((16, 12), norm=True)
        self.other = linen.Dense(12)

    def __call__(self, x):
        return self.value_net(x) + self.other(x)


class EnsembleInCompact(nn.Module):
    """As jaxrl5's critics: an ensemble under an automatic name."""

    def __init__(self, num):
        super().__init__()
        self.members = self.compact(nn.Vmap(SetupNet(), num))

    def forward(self, x):
        return self.members(x)


class LinenEnsembleInCompact(linen.Module):
    num: int

    @linen.compact
    def __call__(self, x):
        return linen_ensemble(LinenSetupNet, self.num)()(x)


class NestedEnsemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer = nn.Vmap(nn.Vmap(nn.Dense(3), 2), 3)

    def forward(self, x):
        return self.outer(x)


class LinenNestedEnsemble(linen.Module):
    def setup(self):
        self.outer = linen_ensemble(linen_ensemble(linen.Dense, 2), 3)(3)

    def __call__(self, x):
        return self.outer(x)


class TwoOfEach(nn.Module):
    """Automatic numbers count per class, in the order of registration."""

    def __init__(self):
        super().__init__()
        self.parts = [
            self.compact(nn.Dense(16)),
            self.compact(CompactMLP((12,))),
            self.compact(nn.LayerNorm()),
            self.compact(nn.Dense(2)),
            self.compact(CompactMLP((5, 2))),
        ]

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class LinenTwoOfEach(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = LinenCompactMLP((12,))(linen.Dense(16)(x))
        x = linen.Dense(2)(linen.LayerNorm()(x))
        return LinenCompactMLP((5, 2))(x)


for _cls in (LinenCompactMLP, LinenSetupNet):  # automatic names come from the class's name
    _cls.__name__ = _cls.__name__.removeprefix('Linen')

VECTORS, IMAGES = array(6, 5), array(2, 9, 8, 3)
PAIRS = {
    'dense': (nn.Dense(7), linen.Dense(7), VECTORS),
    'dense_without_bias': (nn.Dense(3, use_bias=False), linen.Dense(3, use_bias=False), VECTORS),
    'dense_of_one_vector': (nn.Dense(3), linen.Dense(3), VECTORS[0]),
    'layer_norm': (nn.LayerNorm(1e-5), linen.LayerNorm(1e-5), VECTORS * 3 + 1),
    'group_norm': (nn.GroupNorm(4), linen.GroupNorm(4), array(2, 5, 5, 8) * 3 + 1),
    'conv': (nn.Conv(4, 3), linen.Conv(4, (3, 3)), IMAGES),
    'conv_strides': (nn.Conv(4, 3, 2), linen.Conv(4, (3, 3), (2, 2)), IMAGES),
    'conv_even_window': (nn.Conv(4, (2, 4), (3, 2)), linen.Conv(4, (2, 4), (3, 2)), IMAGES),
    'conv_wide_stride': (nn.Conv(4, 2, 3), linen.Conv(4, (2, 2), (3, 3)), IMAGES),
    'conv_valid': (
        nn.Conv(4, 4, 2, padding='VALID'),
        linen.Conv(4, (4, 4), (2, 2), padding='VALID'),
        IMAGES,
    ),
    'conv_explicit': (
        nn.Conv(4, 3, 2, padding=((3, 1), (0, 2))),
        linen.Conv(4, (3, 3), (2, 2), padding=((3, 1), (0, 2))),
        IMAGES,
    ),
    'conv_padded_by_one': (nn.Conv(4, 3, padding=1), linen.Conv(4, (3, 3), padding=1), IMAGES),
    'conv_padded_by_axis': (
        nn.Conv(4, 3, 2, padding=[(1, 1), 2]),
        linen.Conv(4, (3, 3), (2, 2), padding=[(1, 1), 2]),
        IMAGES,
    ),
    'conv_padded_by_numbers': (
        nn.Conv(4, 3, padding=(1, 2)),
        linen.Conv(4, (3, 3), padding=(1, 2)),
        IMAGES,
    ),
    'conv_of_one_image': (nn.Conv(4, 3), linen.Conv(4, (3, 3)), IMAGES[0]),
    'conv_of_many_axes': (nn.Conv(4, 3), linen.Conv(4, (3, 3)), array(2, 3, 5, 4, 2)),
    'numbers': (TwoOfEach(), LinenTwoOfEach(), VECTORS),
    'setup': (SetupNet(), LinenSetupNet(), VECTORS),
    'conv_net': (ConvNet(), LinenConvNet(), IMAGES),
    'ensemble': (
        nn.Vmap(CompactMLP((16, 12)), 2),
        linen_ensemble(LinenCompactMLP, 2)((16, 12)),
        VECTORS,
    ),
    'ensemble_of_layers': (nn.Vmap(nn.Dense(3), 2), linen_ensemble(linen.Dense, 2)(3), VECTORS),
    'ensemble_in_setup': (EnsembleInSetup(2), LinenEnsembleInSetup(2), VECTORS),
    'ensemble_in_compact': (EnsembleInCompact(2), LinenEnsembleInCompact(2), VECTORS),
    'nested_ensembles': (NestedEnsemble(), LinenNestedEnsemble(), VECTORS),
}


@pytest.mark.parametrize('name', PAIRS)
def test_init_forward_and_gradients(name):
    ours, theirs, x = PAIRS[name]
    for seed in (0, 2**31 + 3):
        params = nn.init(ours, random.key(seed), torch.from_numpy(x))
        jax_params = theirs.init(jax.random.PRNGKey(seed), x)['params']
        # Heads are orthogonal, see test_orthogonal.
        assert_same_params(without_heads(params), without_heads(jax_params))

    weights = array(*nn.apply(ours, params, torch.from_numpy(x)).shape)

    def loss(params, x):
        out = nn.apply(ours, params, x)
        return (out * torch.from_numpy(weights)).sum(), out

    def jax_loss(params, x):
        out = theirs.apply({'params': params}, x)
        return (out * weights).sum(), out

    grads, out = torch.func.grad(loss, argnums=(0, 1), has_aux=True)(
        to_torch(jax_params), torch.from_numpy(x)
    )
    jax_grads, jax_out = jax.jit(jax.grad(jax_loss, argnums=(0, 1), has_aux=True))(jax_params, x)
    close(out, jax_out)
    close(grads[1], jax_grads[1])
    for path, grad in trees.leaves_with_path(grads[0]):
        close(grad, flat(jax_grads[0])['/'.join(path)])


def test_paddings_by_name_in_any_case():
    for name in ('same', 'Valid'):
        assert nn.Conv(4, 3, padding=name).padding == name.upper()
    assert nn.max_pool(torch.zeros(5, 5, 1), 3, 2, 'same').shape == (3, 3, 1)


@pytest.mark.parametrize('padding', ['CIRCULAR', 'CAUSAL', '', (1,), (1, 2, 3), ((1, 1), (1,))])
def test_other_paddings_are_refused_at_once(padding):
    with pytest.raises(ValueError, match=r'padding must be|each axis of an image'):
        nn.Conv(4, 3, padding=padding)


def test_kernels_have_two_axes():
    for size in ((3,), (3, 3, 3)):
        with pytest.raises(ValueError, match='each axis of an image'):
            nn.Conv(4, size)


def without_heads(params):
    if not isinstance(params, dict):
        return params
    return {name: without_heads(value) for name, value in params.items() if name != 'head'}


def test_parameters_are_plain_contiguous_tensors():
    params = nn.init(EnsembleInSetup(2), random.key(0), torch.from_numpy(VECTORS))
    for leaf in trees.leaves(params):
        assert type(leaf) is torch.Tensor
        assert leaf.dtype == torch.float32
        assert leaf.is_contiguous() and not leaf.requires_grad


# --- Initialisers ---------------------------------------------------------------------------------

I, J = nn, jax.nn.initializers
INITIALIZERS = {
    'zeros': (I.zeros, J.zeros),
    'ones': (I.ones, J.ones),
    'constant': (I.constant(0.3), J.constant(0.3)),
    'constant_integer': (I.constant(1), J.constant(1)),
    'normal': (I.normal(0.02), J.normal(0.02)),
    'normal_default': (I.normal(), J.normal()),
    **{
        name: (getattr(I, name)(), getattr(J, name)())
        for family in ('lecun', 'glorot', 'he', 'xavier', 'kaiming')
        for name in (f'{family}_normal', f'{family}_uniform')
    },
    **{
        f'{mode}_{distribution}': (
            I.variance_scaling(0.01, mode, distribution),
            J.variance_scaling(0.01, mode, distribution),
        )
        for mode in ('fan_in', 'fan_out', 'fan_avg', 'fan_geo_avg')
        for distribution in ('uniform', 'normal', 'truncated_normal')
    },
}


@pytest.mark.parametrize('shape', [(7, 5), (3, 3, 2, 8)], ids=str)
@pytest.mark.parametrize('name', INITIALIZERS)
def test_initializers(name, shape):
    ours, theirs = INITIALIZERS[name]
    expected = np.asarray(theirs(jax.random.PRNGKey(11), shape))
    result = ours(random.key(11), shape).numpy()
    assert result.dtype == expected.dtype
    assert_same_values(result, expected)


@pytest.mark.parametrize('shape', [(6, 4), (4, 6), (5, 5), (3, 3, 2, 8), (1, 1, 2, 8)], ids=str)
@pytest.mark.parametrize('scale', [1.0, 2**0.5])
def test_orthogonal(shape, scale):
    result = nn.orthogonal(scale)(random.key(11), shape)
    # Two QR decompositions of one matrix: equal up to the rounding of their reflections.
    expected = np.asarray(J.orthogonal(scale)(jax.random.PRNGKey(11), shape))
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
    matrix = result.reshape(-1, shape[-1])
    gram = matrix.mT @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.mT
    np.testing.assert_allclose(gram.numpy(), scale**2 * np.eye(len(gram)), atol=2e-6)


@pytest.mark.parametrize('arguments', [(1.0, 'fan_max', 'normal'), (1.0, 'fan_in', 'gaussian')])
def test_unknown_variance_scaling(arguments):
    with pytest.raises(ValueError, match='variance_scaling'):
        nn.variance_scaling(*arguments)


# --- Functions ------------------------------------------------------------------------------------

ACTIVATIONS = {
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.swish,
    'gelu': jax.nn.gelu,
    'mish': jax.nn.mish,
    'elu': jax.nn.elu,
    'tanh': jnp.tanh,
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_and_their_gradients(name):
    x = np.concatenate([np.linspace(-6, 6, 101), [0.0, 1e-8, 25.0]]).astype(np.float32)
    ours, theirs = getattr(nn, name), ACTIVATIONS[name]
    close(ours(torch.from_numpy(x)), theirs(x))
    gradient = torch.func.grad(lambda x: ours(x).sum())(torch.from_numpy(x))
    close(gradient, jax.grad(lambda x: theirs(x).sum())(x))


def test_gelu_ends_where_xlas_does():
    """Exactly 0, and so is the gradient: Adam makes full steps of the smallest."""
    x = np.linspace(-5, -4.8, 100_001).astype(np.float32)
    ours = nn.gelu(torch.from_numpy(x))
    gradient = torch.func.grad(lambda x: nn.gelu(x).sum())(torch.from_numpy(x))
    theirs = np.asarray(jax.jit(jax.nn.gelu)(x))
    ends = np.abs(x + 4.868) > 1e-3  # XLA's rounding decides there
    np.testing.assert_array_equal((ours.numpy() == 0)[ends], (theirs == 0)[ends])
    np.testing.assert_array_equal((gradient.numpy() == 0)[ends], (theirs == 0)[ends])
    assert (theirs == 0).any()


@pytest.mark.parametrize('size', [(7, 8), (8, 7), (1, 2), (5, 5)], ids=str)
@pytest.mark.parametrize('window, stride', [(2, 2), (3, 2), (3, 1), ((2, 3), (3, 2))])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_max_pool(size, window, stride, padding):
    pair = nn._pair
    if padding == 'VALID' and any(n < w for n, w in zip(size, pair(window), strict=True)):
        window = 1
    x = array(2, *size, 3) - 3  # all below zero mostly: padding must not win
    ours = nn.max_pool(torch.from_numpy(x), window, stride, padding)
    expected = linen.max_pool(x, pair(window), pair(stride), padding)
    np.testing.assert_array_equal(ours.numpy(), np.asarray(expected))


def test_layer_norm_of_equal_entries_is_finite():
    x = np.full((3, 5), 1234.567, np.float32)
    params = nn.init(nn.LayerNorm(), random.key(0), torch.from_numpy(x))
    ours = nn.apply(nn.LayerNorm(), params, torch.from_numpy(x))
    assert torch.isfinite(ours).all()
    assert ours.abs().max() < 1


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match='5 channels'):
        nn.init(nn.GroupNorm(4), random.key(0), torch.zeros(1, 2, 2, 5))


# --- Dropout --------------------------------------------------------------------------------------


class DropoutNet(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.dense = self.compact(nn.Dense(6))
        self.dropouts = [self.compact(nn.Dropout(rate)) for _ in range(2)]

    def forward(self, x, training=False):
        x = self.dropouts[0](self.dense(x), deterministic=not training)
        return self.dropouts[1](x + 1, deterministic=not training)


class LinenDropoutNet(linen.Module):
    rate: float

    @linen.compact
    def __call__(self, x, training=False):
        x = linen.Dropout(self.rate)(linen.Dense(6)(x), deterministic=not training)
        return linen.Dropout(self.rate)(x + 1, deterministic=not training)


@pytest.mark.parametrize('rate', [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_dropout_masks(rate, ensemble, training):
    ours, theirs = DropoutNet(rate), LinenDropoutNet(rate)
    if ensemble:
        ours = nn.Vmap(ours, 3)
        theirs = linen_ensemble(LinenDropoutNet, 3, ('params', 'dropout'))(rate)
    x = array(16, 5)
    jax_params = theirs.init(jax.random.PRNGKey(1), x)['params']
    params = nn.init(ours, random.key(1), torch.from_numpy(x))
    assert_same_params(params, jax_params)
    for seed in (0, 9):
        out = nn.apply(
            ours, params, torch.from_numpy(x), training, rngs={'dropout': random.key(seed)}
        )
        rngs = {'dropout': jax.random.PRNGKey(seed)}
        expected = np.asarray(theirs.apply({'params': jax_params}, x, training, rngs=rngs))
        np.testing.assert_array_equal(out.numpy() == 0, expected == 0)
        close(out, expected)


def test_dropout_without_its_key():
    x = torch.from_numpy(VECTORS)
    params = nn.init(DropoutNet(0.5), random.key(0), x)
    with pytest.raises(ValueError, match="Dropout_0 needs a 'dropout' key"):
        nn.apply(DropoutNet(0.5), params, x, True)
    nn.apply(DropoutNet(0.5), params, x, False)


# --- init and apply -------------------------------------------------------------------------------


def test_apply_names_what_is_missing_or_unexpected():
    x = torch.from_numpy(VECTORS)
    net = CompactMLP((4, 2))
    params = nn.init(net, random.key(0), x)
    missing = {**params, 'Dense_1': {'kernel': params['Dense_1']['kernel']}}
    with pytest.raises(RuntimeError, match=r'Dense_1\.bias'):
        nn.apply(net, missing, x)
    with pytest.raises(RuntimeError, match=r'Dense_2\.kernel'):
        nn.apply(net, {**params, 'Dense_2': params['Dense_1']}, x)
    ensemble = nn.Vmap(net, 2)
    params = nn.init(ensemble, random.key(0), x)
    with pytest.raises(RuntimeError, match=r'Dense_0\.bias'):
        nn.apply(ensemble, {**params, 'Dense_0': {'kernel': params['Dense_0']['kernel']}}, x)


def test_a_definition_holds_no_weights():
    net = SetupNet()
    nn.init(net, random.key(0), torch.from_numpy(VECTORS))
    assert {p.device.type for p in net.parameters()} == {'meta'}


class NamedLayers(nn.Module):
    """Compact submodules that are attributes too."""

    def __init__(self):
        super().__init__()
        self.first = self.compact(nn.Dense(4))
        self.last = self.compact(nn.Dense(4))

    def forward(self, x):
        return self.last(self.first(x))


def test_a_definition_holds_no_weights_after_it_has_run():
    net, x = NamedLayers(), torch.from_numpy(VECTORS)
    params = nn.init(net, random.key(0), x)
    assert list(params) == list(net._modules) == ['Dense_0', 'Dense_1']
    grad = torch.func.grad(lambda p: nn.apply(net, p, x).sum())
    torch.func.vmap(grad)(trees.map(lambda p: torch.stack([p, p]), params))
    assert {p.device.type for p in net.parameters()} == {'meta'}
    copy.deepcopy(net)
    # One tensor in the place of two parameters.
    params['Dense_1'] = {**params['Dense_1'], 'bias': params['Dense_0']['bias']}
    for _ in range(2):
        nn.apply(net, params, x)


def test_init_reports_parameters_that_inputs_never_reach():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Dense(2), nn.Dense(2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r'idle\.bias'):
        nn.init(Half(), random.key(0), torch.from_numpy(VECTORS))


def test_init_wants_a_key():
    with pytest.raises(TypeError, match='key'):
        nn.init(nn.Dense(2), 0, torch.from_numpy(VECTORS))


def test_modules_run_only_through_init_and_apply():
    with pytest.raises(RuntimeError, match=r'nn\.init or nn\.apply'):
        nn.Dropout(0.5)(torch.from_numpy(VECTORS), deterministic=False)


def test_apply_under_vmap_over_parameters():
    net, x = SetupNet(), torch.from_numpy(VECTORS)
    members = [nn.init(net, random.key(i), x) for i in range(3)]
    ours = torch.func.vmap(lambda p: nn.apply(net, p, x))(trees.stack(members))
    # Batched matrix products add up in another order.
    torch.testing.assert_close(ours, torch.stack([nn.apply(net, p, x) for p in members]))


def test_init_under_vmap_over_keys():
    net, x = EnsembleInSetup(2), torch.from_numpy(VECTORS)
    keys = random.split(random.key(0), 3)
    ours = torch.func.vmap(lambda key: nn.init(net, key, x))(keys)
    for i, key in enumerate(keys):
        assert_same_params(trees.index(ours, i), nn.init(net, key, x))


def test_sown_values():
    class Sower(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Dense(2)

        def forward(self, x):
            self.sow('input', x)
            return self.part(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Sower()

        def forward(self, x):
            return self.inner(self.inner(x))

    x = torch.from_numpy(array(3, 2))
    params = nn.init(Outer(), random.key(0), x)
    net = Outer()
    out, sown = nn.apply_with_intermediates(net, params, x)
    assert torch.equal(out, nn.apply(net, params, x))
    assert list(sown) == ['inner/input']
    assert torch.equal(sown['inner/input'][0], x)
    assert len(sown['inner/input']) == 2


def test_examples_may_lie_on_another_device():
    params = nn.init(nn.Dense(2), random.key(0, 'meta'), torch.ones(1, 3))
    assert params['bias'].device.type == 'meta'


def test_fold_in_path():
    expected = linen.Dense(1).init(jax.random.PRNGKey(3), jnp.zeros((1, 1)))['params']['kernel']
    key = nn.fold_in_path(random.key(3), (1,))
    assert torch.equal(nn.lecun_normal()(key, (1, 1)), torch.from_numpy(np.array(expected)))


# --- ModuleDict and intern ------------------------------------------------------------------------


def test_module_dict():
    x, y = torch.from_numpy(VECTORS), torch.from_numpy(array(6, 3))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dense(2), nn.Dense(2)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    net = nn.ModuleDict({'one': nn.Dense(2), 'two': Sum(), 'three': Sum()})
    params = nn.init(net, random.key(0), one=x, two=(x, y), three={'y': y, 'x': x})
    assert sorted(params) == ['modules_one', 'modules_three', 'modules_two']
    assert nn.apply(net, params, x, y, name='two').shape == (6, 2)
    with pytest.raises(ValueError, match='expected arguments for'):
        nn.init(net, random.key(0), one=x, two=(x, y))
    with pytest.raises(AttributeError, match='modules_four'):
        nn.apply(net, params, x, name='four')


def test_intern_shares_equal_definitions():
    def net(size=4, init=None):
        return nn.ModuleDict({'q': nn.Vmap(CompactMLP((size, 2)), 2), 'd': nn.Dense(1, init)})

    assert nn.intern(net()) is nn.intern(net())
    assert nn.intern(net()) is not nn.intern(net(5))
    assert nn.intern(net(init=nn.orthogonal())) is nn.intern(net(init=nn.orthogonal()))
    assert nn.intern(net(init=nn.orthogonal())) is not nn.intern(net(init=nn.orthogonal(2.0)))
    assert nn.intern(net(init=nn.normal())) is nn.intern(net(init=nn.normal()))


def test_intern_tells_types_apart():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

    assert nn.intern(Scaled(1)) is nn.intern(Scaled(1))
    assert nn.intern(Scaled(1)) is not nn.intern(Scaled(True))
    assert nn.intern(Scaled(())) is not nn.intern(Scaled({}))


def test_an_ensemble_that_runs_twice_is_initialised_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.ensemble = self.compact(nn.Vmap(CompactMLP((4, 2)), 2))

        def forward(self, x, times):
            return [self.ensemble(x) for _ in range(times)]

    once, twice = (nn.init(Twice(), random.key(0), VECTORS, n) for n in (1, 2))
    assert_same_params(once, twice)


def test_an_ensemble_that_runs_twice_draws_other_masks():
    class Theirs(linen.Module):
        @linen.compact
        def __call__(self, x):
            ensemble = linen.vmap(
                linen.Dropout,
                variable_axes={'params': 0},
                split_rngs={'params': True, 'dropout': True},
                in_axes=None,
                axis_size=2,
            )(0.5, deterministic=False)
            return ensemble(x), ensemble(x)

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.ensemble = self.compact(nn.Vmap(nn.Dropout(0.5), 2))

        def forward(self, x):
            return tuple(self.ensemble(x, deterministic=False) for _ in range(2))

    x = np.ones((3, 8), np.float32)
    expected = Theirs().apply({}, x, rngs={'dropout': jax.random.PRNGKey(0)})
    given = nn.apply(Ours(), {}, torch.from_numpy(x), rngs={'dropout': random.key(0)})
    for ours, theirs in zip(given, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not torch.equal(*given)


@pytest.mark.parametrize('rows', [1, 7, 64, 72, 256])
def test_narrow_dense_layers_give_equal_rows_equal_outputs(rows):
    dense = nn.Dense(6)
    x = random.normal(random.key(0), (1, 32)).expand(rows, 32)
    params = nn.init(dense, random.key(1), x)
    outputs = nn.apply(dense, params, x)
    expected = x @ params['kernel'] + params['bias']
    torch.testing.assert_close(outputs, expected)
    assert torch.equal(outputs, outputs[:1].expand(rows, 6))
