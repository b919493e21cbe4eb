"""Networks without weights: definitions that are applied to parameter pytrees, as in Flax.

A `Module` is a ``torch.nn.Module`` whose parameters are empty placeholders on the meta device.
`init` makes its parameters from a key and example inputs; `apply` runs it on them:

    net = MLP((256, 256, 1))
    params = nn.init(net, random.key(0), observations)
    values = nn.apply(net, params, observations)

Parameters are nested dicts with exactly Flax's names, layouts (kernels (in, out), convolutions
HWIO on NHWC images, ensembles along a leading axis) and, from the same key, Flax's initial values:
before each draw Flax folds the SHA-1 of the module's path and of a counter into the key.

Modules are written in either of Flax's styles. In ``setup`` style an attribute's name is the
parameter's name (``self.value_net = MLP(...)``). In ``compact`` style names are numbered per class:
``self.compact(Dense(64))`` registers ``Dense_0``, then ``Dense_1``.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call, vmap

from purerl.core import random, trees
from purerl.core.trees import Path

Params = dict[str, Any]
Initializer = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

# --- Modules -----------------------------------------------------------------------------------


class Module(torch.nn.Module):
    """A network definition. Subclasses build their parts in ``__init__`` and run in ``forward``."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        object.__setattr__(self, '_definition', (cls, args, kwargs))
        return self

    def __setattr__(self, name, value):
        if isinstance(value, torch.nn.Module) and any(
            value is module for module in self._modules.values()
        ):
            # `compact` has registered it. Under two names `functional_call` would swap the
            # parameters in twice, and leave them in the definition.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo):
        """Return the definition itself: it holds no weights, and copied agents stay comparable."""
        return self

    @property
    def flax_name(self) -> str:
        """The class's name in Flax, from which compact submodules are numbered."""
        return type(self).__name__

    def declare(self, *names: str) -> None:
        """Announce the parameters that ``forward`` reads through `param`."""
        for name in names:
            placeholder = torch.empty(0, device='meta')
            self.register_parameter(name, torch.nn.Parameter(placeholder, requires_grad=False))

    def compact(self, module: 'Module') -> 'Module':
        """Register a submodule under Flax's automatic name (``Dense_0``, ``Dense_1``, ...)."""
        taken = sum(name.rpartition('_')[0] == module.flax_name for name in self._modules)
        self.add_module(f'{module.flax_name}_{taken}', module)
        return module

    def param(self, name: str, initializer: Initializer, shape: Sequence[int]) -> torch.Tensor:
        """Return a declared parameter; while initialising, make it first."""
        scope = _scopes[-1] if _scopes else None
        if scope is None or scope.params is None:
            return getattr(self, name)
        path = (*scope.path_of(self), name)
        if path not in scope.params:
            scope.params[path] = initializer(self.make_rng('params'), tuple(shape))
        return scope.params[path]

    def make_rng(self, name: str) -> torch.Tensor:
        """Return the next key of a named stream (``'params'``, ``'dropout'``) for this module.

        Raises:
            ValueError: if `apply` was called without that stream.
        """
        scope = _current_scope(self)
        if name not in scope.rngs:
            raise ValueError(
                f'{"/".join(scope.path_of(self))} needs a {name!r} key: '
                f'pass rngs={{{name!r}: key}} to apply'
            )
        path = scope.path_of(self)
        count = scope.counters[path, name] = scope.counters.get((path, name), 0) + 1
        return fold_in_path(scope.rngs[name], (*path, count))

    def sow(self, name: str, value: torch.Tensor) -> None:
        """Record an intermediate value for `apply_with_intermediates`."""
        if _scopes and _scopes[-1].intermediates is not None:
            scope = _scopes[-1]
            scope.intermediates.setdefault('/'.join((*scope.path_of(self), name)), []).append(value)


class _Scope:
    """What a running `init` or `apply` knows: paths, key streams, parameters in the making."""

    def __init__(self, root, rngs, path=(), params=None, intermediates=None, counters=None):
        self.rngs = rngs
        self.params = params
        self.intermediates = intermediates
        # How many keys of a stream a module has taken.
        self.counters: dict[tuple[Path, str], int] = {} if counters is None else counters
        self._paths = {
            id(module): (*path, *(name.split('.') if name else ()))
            for name, module in root.named_modules()
        }

    def path_of(self, module) -> Path:
        return self._paths[id(module)]

    def __enter__(self):
        _scopes.append(self)
        return self

    def __exit__(self, *exc):
        _scopes.pop()


_scopes: list[_Scope] = []


def _current_scope(module) -> _Scope:
    if not _scopes:
        raise RuntimeError(f'{type(module).__name__} runs only through nn.init or nn.apply')
    return _scopes[-1]


def fold_in_path(key: torch.Tensor, path: Sequence[str | int]) -> torch.Tensor:
    """Fold a module's path and a counter into a key, as Flax does (SHA-1, first four bytes)."""
    digest = hashlib.sha1()
    for part in path:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(part.to_bytes((part.bit_length() + 7) // 8, 'big'))
    return random.fold_in(key, int.from_bytes(digest.digest()[:4], 'big'))


def init(module: Module, key: torch.Tensor, *args, **kwargs) -> Params:
    """Make a module's parameters from a key and example inputs (only their shapes matter).

    Returns:
        A nested dict of float32 tensors on the key's device, equal to
        ``module.init(key, *args)['params']`` in Flax.

    Raises:
        ValueError: if the forward pass does not reach every declared parameter.
    """
    random.check_key(key)
    args, kwargs = trees.map(lambda value: _example(value, key.device), (args, kwargs))
    with torch.no_grad(), _Scope(module, {'params': key}, params={}) as scope:
        module(*args, **kwargs)
    missing = {name for name, _ in module.named_parameters()} - {'.'.join(p) for p in scope.params}
    if missing:
        raise ValueError(f'the example inputs never reach these parameters: {sorted(missing)}')
    return _nest({path: value.contiguous() for path, value in scope.params.items()})


def _example(value, device):
    """Let example inputs be arrays, and lie anywhere; float64 arrays become float32, as in JAX."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
        value = value.float() if value.dtype == torch.float64 else value
    return value.to(device) if isinstance(value, torch.Tensor) else value


def apply(
    module: Module, params: Params, *args, rngs: Mapping[str, torch.Tensor] | None = None, **kwargs
):
    """Run a module on a parameter tree.

    Args:
        params: as `init` makes them.
        rngs: keys of the named streams that the forward pass draws from, e.g. ``{'dropout': key}``.

    Raises:
        RuntimeError: if a parameter is missing or unexpected; the message names it.
    """
    with _Scope(module, dict(rngs or {})):
        return functional_call(module, _dotted(params), args, kwargs, strict=True)


def apply_with_intermediates(module: Module, params: Params, *args, **kwargs):
    """Like `apply`, and also return what the modules sowed: ``{'path/name': [values]}``."""
    with _Scope(module, {}, intermediates={}) as scope:
        out = functional_call(module, _dotted(params), args, kwargs, strict=True)
    return out, scope.intermediates


def _dotted(params: Mapping, prefix: str = '') -> dict[str, torch.Tensor]:
    flat = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f'{prefix}{name}.'))
        else:
            flat[prefix + name] = value
    return flat


def _nest(flat: Mapping[Path, torch.Tensor]) -> Params:
    nested: Params = {}
    for path, value in flat.items():
        node = nested
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return nested


_interned: dict[Any, Module] = {}


def intern(module: Module) -> Module:
    """Return the one definition that stands for all that were constructed from equal arguments.

    Two agents made from one config then share their definitions, so that they have one tree
    structure and one compiled program. Only arguments count: what is set on a definition after
    ``__init__`` is lost.
    """
    try:
        return _interned.setdefault(_signature(module), module)
    except TypeError:  # an unhashable constructor argument: the definition stands for itself
        return module


def _signature(value):
    if isinstance(value, Module):
        cls, args, kwargs = value._definition
        return cls, _signature(args), _signature(kwargs)
    if isinstance(value, Mapping):
        return dict, tuple(sorted((key, _signature(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple, tuple(_signature(item) for item in value)
    if isinstance(value, functools.partial):
        return functools.partial, value.func, _signature(value.args), _signature(value.keywords)
    hash(value)
    return type(value), value  # 1 and True are equal


# --- Initialisers ------------------------------------------------------------------------------


def zeros(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """All zeros."""
    return torch.zeros(shape, device=key.device)


def ones(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """All ones."""
    return torch.ones(shape, device=key.device)


@functools.cache
def constant(value: float) -> Initializer:
    """Every entry equal to `value`."""
    return lambda key, shape: torch.full(
        tuple(shape), value, dtype=torch.float32, device=key.device
    )


@functools.cache
def normal(stddev: float = 1e-2) -> Initializer:
    """Independent normal entries."""
    return lambda key, shape: random.normal(key, shape) * stddev


@functools.cache
def variance_scaling(scale: float, mode: str, distribution: str) -> Initializer:
    """Entries with variance ``scale / n`` (He et al., 2015; Glorot and Bengio, 2010).

    Args:
        mode: what n is: ``fan_in``, ``fan_out``, ``fan_avg`` or ``fan_geo_avg``.
        distribution: ``uniform``, ``normal`` or ``truncated_normal`` (cut at two standard
            deviations and rescaled to keep the variance).
    """
    if mode not in _FAN_MODES:
        raise ValueError(f'variance_scaling: mode {mode!r} is none of {sorted(_FAN_MODES)}')
    if distribution not in ('uniform', 'normal', 'truncated_normal'):
        raise ValueError(f'variance_scaling: unknown distribution {distribution!r}')

    def initializer(key, shape):
        field = math.prod(shape[:-2])
        fan_in, fan_out = shape[-2] * field, shape[-1] * field
        variance = np.float32(scale / _FAN_MODES[mode](fan_in, fan_out))
        if distribution == 'uniform':
            limit = np.sqrt(np.float32(3) * variance)
            return random.uniform(key, shape, -1.0, 1.0) * float(limit)
        if distribution == 'normal':
            return random.normal(key, shape) * float(np.sqrt(variance))
        # The standard deviation of a standard normal cut at +-2.
        stddev = np.sqrt(variance) / np.float32(0.87962566103423978)
        return random.truncated_normal(key, -2, 2, shape) * float(stddev)

    return initializer


_FAN_MODES = {
    'fan_in': lambda fan_in, fan_out: fan_in,
    'fan_out': lambda fan_in, fan_out: fan_out,
    'fan_avg': lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    'fan_geo_avg': lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


def lecun_normal() -> Initializer:
    """Flax's default for kernels."""
    return variance_scaling(1.0, 'fan_in', 'truncated_normal')


def lecun_uniform() -> Initializer:
    """Uniform, variance 1 / fan_in."""
    return variance_scaling(1.0, 'fan_in', 'uniform')


def glorot_uniform() -> Initializer:
    """Uniform, variance 2 / (fan_in + fan_out); also called xavier_uniform."""
    return variance_scaling(1.0, 'fan_avg', 'uniform')


def glorot_normal() -> Initializer:
    """Truncated normal, variance 2 / (fan_in + fan_out); also called xavier_normal."""
    return variance_scaling(1.0, 'fan_avg', 'truncated_normal')


def he_uniform() -> Initializer:
    """Uniform, variance 2 / fan_in; also called kaiming_uniform."""
    return variance_scaling(2.0, 'fan_in', 'uniform')


def he_normal() -> Initializer:
    """Truncated normal, variance 2 / fan_in; also called kaiming_normal."""
    return variance_scaling(2.0, 'fan_in', 'truncated_normal')


xavier_uniform, xavier_normal = glorot_uniform, glorot_normal
kaiming_uniform, kaiming_normal = he_uniform, he_normal


@functools.cache
def orthogonal(scale: float = 1.0) -> Initializer:
    """Orthonormal columns (or rows, if there are fewer of them); Saxe et al., 2014."""

    def initializer(key, shape):
        rows, columns = math.prod(shape[:-1]), shape[-1]
        z = random.normal(key, (max(rows, columns), min(rows, columns)))
        q, r = torch.linalg.qr(z)
        q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
        q = q.mT if rows < columns else q
        return (q * float(np.float32(scale))).reshape(tuple(shape))

    return initializer


# --- Activations -------------------------------------------------------------------------------

relu = F.relu
silu = swish = F.silu
tanh = torch.tanh
elu = F.elu


def mish(x: torch.Tensor) -> torch.Tensor:
    """Mish: x tanh(softplus(x)) (Misra, 2019).

    Written with one exponential: with e = exp(x) and n = e (e + 2), tanh(log(1 + e)) = n / (n + 2),
    which is 1 - 2 / (n + 2), whose gradient keeps its digits where n is large. On a CPU it takes a
    quarter of the time of the vectorised log1p and tanh.
    """
    e = torch.exp(torch.clamp(x, max=20.0))  # from there on the quotient is 1
    n = e * (e + 2)
    inverse = 1 / (n + 2)
    return x * torch.where(x > 0, 1 - 2 * inverse, n * inverse)


_GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR
_TANH_BOUND = 7.99881172180175781  # from which on XLA's tanh is 1


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form, Flax's default (the erf form differs by up to 4.7e-4).

    Written with the sigmoid, which is the same function: 0.5 x (1 + tanh(u)) = x sigmoid(2 u) with
    u = sqrt(2 / pi) (x + 0.044715 x^3). On a CPU it takes a third of the time of the vectorised
    tanh. Where XLA's tanh is -1, below -4.868, value and gradient are exactly 0 as there: of the
    1e-7 that is left of the gradient Adam would make full steps.
    """
    u = x * (_GELU_LINEAR + _GELU_CUBIC * (x * x))
    return torch.where(u < -2 * _TANH_BOUND, 0.0, x * torch.sigmoid(u))


# --- Layers ------------------------------------------------------------------------------------


class Dense(Module):
    """Affine map of the last axis: x @ kernel + bias, kernel (in, features)."""

    def __init__(
        self,
        features: int,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        use_bias: bool = True,
    ):
        super().__init__()
        self.features = features
        self.kernel_init = kernel_init or lecun_normal()
        self.bias_init = bias_init
        self.use_bias = use_bias
        self.declare('kernel', *(['bias'] if use_bias else []))

    def forward(self, x):
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
        outputs = _narrow_product(x, kernel) if 1 < self.features < 9 else x @ kernel
        if not self.use_bias:
            return outputs
        return outputs + self.param('bias', self.bias_init, (self.features,))


def _narrow_product(x, kernel):
    """Return x @ kernel for few outputs: MKL is three times faster with both transposed.

    Only for batches that fill its vectors: elsewhere equal rows would come out with unequal
    rounding, which breaks ties between them.
    """
    if x.device.type != 'cpu' or x.ndim != 2 or len(x) < 64 or len(x) % 16:
        return x @ kernel
    return (kernel.mT.contiguous() @ x.mT).mT


def _normalize(x, dims, epsilon):
    """Return x's deviations over `dims` and their reciprocal scale, by Flax's fast formula."""
    mean = x.mean(dims, keepdim=True)
    square = (x * x).mean(dims, keepdim=True)
    variance = torch.maximum(square - mean * mean, torch.zeros_like(mean))
    return x - mean, torch.rsqrt(variance + epsilon)


class LayerNorm(Module):
    """Layer normalisation of the last axis (Ba et al., 2016), with Flax's variance formula."""

    def __init__(self, epsilon: float = 1e-6):
        super().__init__()
        self.epsilon = epsilon
        self.declare('scale', 'bias')

    def forward(self, x):
        scale = self.param('scale', ones, (x.shape[-1],))
        bias = self.param('bias', zeros, (x.shape[-1],))
        deviations, factor = _normalize(x, -1, self.epsilon)
        return deviations * (factor * scale) + bias


class GroupNorm(Module):
    """Group normalisation of NHWC images (Wu and He, 2018); also takes one image."""

    def __init__(self, num_groups: int, epsilon: float = 1e-6):
        super().__init__()
        self.num_groups = num_groups
        self.epsilon = epsilon
        self.declare('scale', 'bias')

    def forward(self, x):
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f'{channels} channels do not divide into {self.num_groups} groups')
        scale = self.param('scale', ones, (channels,))
        bias = self.param('bias', zeros, (channels,))
        groups = x.reshape(*x.shape[:-1], self.num_groups, -1)  # (..., H, W, G, C / G)
        deviations, factor = _normalize(groups, (-4, -3, -1), self.epsilon)
        factor = factor.expand(*factor.shape[:-1], groups.shape[-1])
        factor = factor.reshape(*factor.shape[:-2], channels)
        return deviations.reshape(x.shape) * (factor * scale) + bias


class Dropout(Module):
    """Zero a fraction `rate` of the entries, at a key of the ``'dropout'`` stream."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x, deterministic: bool):
        if deterministic or self.rate == 0:
            return x
        if self.rate == 1:
            return torch.zeros_like(x)
        keep = 1 - self.rate
        mask = random.bernoulli(self.make_rng('dropout'), keep, x.shape)
        return torch.where(mask, x / keep, torch.zeros_like(x))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return `value` for both axes of an image, height and width."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f'expected one number or one for each axis of an image, got {value!r}')
    return pair


def _padding(padding):
    """Return a padding in one of the forms that `_pad` takes, 'SAME' where Flax takes 'same'."""
    if isinstance(padding, str):
        if padding.upper() in ('SAME', 'VALID'):
            return padding.upper()
        raise ValueError(f"padding must be 'SAME', 'VALID' or numbers, got {padding!r}")
    return tuple(_pair(sides) for sides in _pair(padding))


def _same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding of one axis under 'SAME': the odd row goes behind."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _pad(x, window, strides, padding, value=0.0):
    """Pad an NCHW batch; `padding` is 'SAME', 'VALID' or ((top, bottom), (left, right))."""
    if padding == 'VALID':
        return x
    if padding == 'SAME':
        padding = [_same_padding(*axis) for axis in zip(x.shape[-2:], window, strides, strict=True)]
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _on_images(fn, x):
    """Run an NCHW function on NHWC images with any number of leading axes."""
    batch = x.shape[:-3]
    out = fn(x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out.reshape(*batch, *out.shape[1:])


class Conv(Module):
    """Convolution of NHWC images with an HWIO kernel; leading axes are batches.

    Args:
        features: output channels.
        kernel_size, strides: one number, which holds for both axes (in Flax a number makes a
            one-dimensional kernel), or (height, width).
        padding: 'SAME', 'VALID', a number for all sides, or for each axis a number or
            (before, behind).

    Raises:
        ValueError: for any other form.
    """

    def __init__(
        self,
        features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int | Sequence[int]] = 'SAME',
        kernel_init: Initializer | None = None,
        use_bias: bool = True,
    ):
        super().__init__()
        self.features = features
        self.kernel_size = _pair(kernel_size)
        self.strides = _pair(strides)
        self.padding = _padding(padding)
        self.kernel_init = kernel_init or lecun_normal()
        self.use_bias = use_bias
        self.declare('kernel', *(['bias'] if use_bias else []))

    def forward(self, x):
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape).permute(3, 2, 0, 1)

        def convolve(images):
            padded = _pad(images, self.kernel_size, self.strides, self.padding)
            return F.conv2d(padded, kernel, stride=self.strides)

        out = _on_images(convolve, x)
        return out + self.param('bias', zeros, (self.features,)) if self.use_bias else out


def max_pool(
    x: torch.Tensor,
    window_shape: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str | int | Sequence[int | Sequence[int]] = 'VALID',
) -> torch.Tensor:
    """Maximum over windows of NHWC images; leading axes are batches.

    Args:
        window_shape, strides, padding: as `kernel_size`, `strides` and `padding` of `Conv`.
    """

    def pool(images):
        padded = _pad(
            images, _pair(window_shape), _pair(strides), _padding(padding), value=-math.inf
        )
        return F.max_pool2d(padded, _pair(window_shape), _pair(strides))

    return _on_images(pool, x)


# --- Containers --------------------------------------------------------------------------------


class Vmap(Module):
    """An ensemble: `axis_size` copies of a module, parameters stacked along a leading axis.

    The counterpart of ``flax.linen.vmap`` with ``in_axes=None``: every member sees the same
    inputs, outputs are stacked along axis 0, and each named key stream splits over the members.
    The parameter names are those of the module itself.
    """

    def __init__(self, module: Module, axis_size: int):
        super().__init__()
        self._member = (module,)  # in a tuple: not a submodule, its parts are registered below
        self.axis_size = axis_size
        for name, child in module.named_children():
            self.add_module(name, child)
        for name, placeholder in module.named_parameters(recurse=False):
            self.register_parameter(name, placeholder)

    @property
    def flax_name(self) -> str:
        return f'Vmap{self._member[0].flax_name}'

    def forward(self, *args, **kwargs):
        scope = _current_scope(self)
        (member,) = self._member
        path = scope.path_of(self)
        rngs = {name: random.split(key, self.axis_size) for name, key in scope.rngs.items()}

        if scope.params is not None:
            paths: list[Path] = []

            def member_init(rngs):
                # Counted anew, so that a second call makes the same parameters again.
                with _Scope(member, rngs, path, params={}) as inner:
                    out = member(*args, **kwargs)
                paths[:] = inner.params
                return out, list(inner.params.values())

            out, stacked = vmap(member_init)(rngs)
            scope.params.update(zip(paths, stacked, strict=True))
            return out

        def member_apply(params, rngs):
            with _Scope(member, rngs, path, counters=scope.counters):
                return functional_call(member, params, args, kwargs, strict=True)

        return vmap(member_apply)(dict(self.named_parameters()), rngs)


class ModuleDict(Module):
    """Named modules with one parameter tree: ``modules_<name>/...``.

    Initialise with one argument (or a sequence or mapping of arguments) per module; afterwards
    call with ``name`` to run one of them. Source: InFOM's ``utils/flax_utils.py``.
    """

    def __init__(self, modules: Mapping[str, Module]):
        super().__init__()
        self.names = tuple(modules)
        for name, module in modules.items():
            self.add_module(f'modules_{name}', module)

    def forward(self, *args, name: str | None = None, **kwargs):
        if name is not None:
            return getattr(self, f'modules_{name}')(*args, **kwargs)
        if set(kwargs) != set(self.names):
            raise ValueError(f'expected arguments for {sorted(self.names)}, got {sorted(kwargs)}')
        out = {}
        for key, value in kwargs.items():
            module = getattr(self, f'modules_{key}')
            if isinstance(value, Mapping):
                out[key] = module(**value)
            elif isinstance(value, tuple | list):
                out[key] = module(*value)
            else:
                out[key] = module(value)
        return out
