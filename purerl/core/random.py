"""JAX's random keys, bit for bit: threefry2x32 in its partitionable form.

A key is an int64 tensor of shape (2,) that holds two uint32 words; several keys are stacked along
leading axes. Every function takes a key and returns the numbers that ``jax.random`` returns for
it (on a CPU bit for bit, on a GPU floats to within 2 ulp):

    key = random.key(0)
    key, noise_key = random.split(key)
    noise = random.normal(noise_key, (256, 6))

The generator is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):
block i of the stream is the cipher of the counter i, so element i of a draw never depends on how
many elements are drawn.

On a CPU the cipher is an opaque operator (its integer arithmetic, written inline, doubles the
time that Inductor needs); on a GPU it is inline tensor code, which fuses into one kernel.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from purerl.core import native

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MASK = 0xFFFFFFFF

_BITS_DTYPES = {8: torch.uint8, 16: torch.uint16, 32: torch.int64, 64: torch.uint64}


# --- The cipher --------------------------------------------------------------------------------


def _threefry_numpy(key: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encrypt the counters (0, counts) under uint32 keys (..., 2); returns two (..., n) arrays."""
    k0, k1 = key[..., :1], key[..., 1:]
    ks = (k0, k1, k0 ^ k1 ^ np.uint32(_PARITY))
    x0 = np.broadcast_to(k0, (*key.shape[:-1], counts.shape[-1])).copy()
    x1 = counts + k1
    high = np.empty_like(x1)
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 += x1
            np.left_shift(x1, np.uint32(r), out=high)
            np.right_shift(x1, np.uint32(32 - r), out=x1)
            x1 |= high
            x1 ^= x0
        x0 += ks[(i + 1) % 3]
        x1 += ks[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1


def _threefry_inline(key: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for int64 tensors that hold uint32 words, traceable and fusible."""
    k0, k1 = key[..., :1], key[..., 1:]
    ks = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0 = (torch.zeros_like(counts) + k0) & _MASK
    x1 = (counts + k1) & _MASK
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 = (x0 + x1) & _MASK
            x1 = ((x1 << r) & _MASK | x1 >> (32 - r)) ^ x0
        x0 = (x0 + ks[(i + 1) % 3]) & _MASK
        x1 = (x1 + ks[(i + 2) % 3] + (i + 1)) & _MASK
    return x0, x1


# The CPU operators in numpy. Where a compiler is at hand they run in C instead (see `native`), with
# the same bits.


def _words(key: torch.Tensor, n: int) -> np.ndarray:
    x0, x1 = _threefry_numpy(key.numpy().astype(np.uint32), np.arange(n, dtype=np.uint32))
    x0 ^= x1
    return x0


def _pairs_kernel(key: torch.Tensor, n: int) -> torch.Tensor:
    words = _threefry_numpy(key.numpy().astype(np.uint32), np.arange(n, dtype=np.uint32))
    return torch.from_numpy(np.stack(words, axis=-1).astype(np.int64))


def _block_kernel(key: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    counts = (counts.numpy() & _MASK).astype(np.uint32)
    words = _threefry_numpy(key.numpy().astype(np.uint32), counts)
    return torch.from_numpy(np.stack(words, axis=-1).astype(np.int64))


def _bits_kernel(key: torch.Tensor, n: int) -> torch.Tensor:
    return torch.from_numpy(_words(key, n).astype(np.int64))


def _unit_floats(words: np.ndarray) -> np.ndarray:
    """Map uint32 words to float32 in [0, 1): 23 random mantissa bits."""
    words >>= np.uint32(9)
    words |= np.uint32(0x3F800000)
    floats = words.view(np.float32)
    floats -= np.float32(1)
    return floats


def _uniform_kernel(key: torch.Tensor, n: int) -> torch.Tensor:
    return torch.from_numpy(_unit_floats(_words(key, n)))


def _normal_kernel(key: torch.Tensor, n: int) -> torch.Tensor:
    u = _unit_floats(_words(key, n))
    u = np.maximum(_fma(u, _SPAN_TO_ONE, _ABOVE_MINUS_ONE), _ABOVE_MINUS_ONE)
    return torch.from_numpy(_xla_erfinv(u) * np.float32(_SQRT2))


# --- XLA's elementary functions on a CPU ---------------------------------------------------------
# XLA approximates them itself and contracts a * b + c into fused multiply-adds. Repeated in that
# order they give the same bits, which libm's better rounded functions do not.


def _fma(a, b, c) -> np.ndarray:
    """round(a * b + c) for float32: the product of two float32 is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)


def _polynomial(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = _fma(result, x, np.float32(coefficient))
    return result


# Cephes logf.
_LOG = tuple(np.float32(c) for c in (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
))  # fmt: skip
_LOG_2_LOW, _LOG_2_HIGH = np.float32(-2.12194440e-4), np.float32(0.693359375)


def _xla_log(x: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(x)
    exponent = exponent.astype(np.float32)
    below = mantissa < np.float32(0.707106781186547524)
    exponent -= below
    m = np.where(below, (mantissa - np.float32(1)) + mantissa, mantissa - np.float32(1))
    square = m * m
    cube = square * m
    high = _fma(_fma(m, _LOG[0], _LOG[1]), m, _LOG[2])
    middle = _fma(_fma(m, _LOG[3], _LOG[4]), m, _LOG[5])
    low = _fma(_fma(m, _LOG[6], _LOG[7]), m, _LOG[8])
    tail = _fma(_fma(high, cube, middle), cube, low)
    tail = _fma(tail, cube, _LOG_2_LOW * exponent)
    result = _fma(exponent, _LOG_2_HIGH, _fma(square, np.float32(-0.5), m) + tail)
    return np.where(x > 0, result, np.where(x == 0, np.float32(-np.inf), np.float32(np.nan)))


# Cephes log1p.
_LOG1P_NUMERATOR = (
    4.5270000862445199635215e-5, 4.9854102823193375972212e-1, 6.5787325942061044846969,
    2.9911919328553073277375e1, 6.0949667980987787057556e1, 5.7112963590585538103336e1,
    2.0039553499201281259648e1,
)  # fmt: skip
_LOG1P_DENOMINATOR = (
    1.0, 1.5062909083469192043167e1, 8.3047565967967209469434e1, 2.2176239823732856465394e2,
    3.0909872225312059774938e2, 2.1642788614495947685003e2, 6.0118660497603843919306e1,
)  # fmt: skip


def _xla_log1p(x: np.ndarray) -> np.ndarray:
    result = np.empty_like(x)
    near = np.abs(x) < np.float32(math.sqrt(2) - 1)
    far = ~near
    result[far] = _xla_log(np.float32(1) + x[far])
    x = x[near]
    square = x * x
    ratio = _polynomial(x, _LOG1P_NUMERATOR) / _polynomial(x, _LOG1P_DENOMINATOR)
    result[near] = x + _fma(square, np.float32(-0.5), x * square * ratio)
    return result


# Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011).
_ERFINV_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_ERFINV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip

_SQRT2 = float(np.float32(np.sqrt(2)))
_ABOVE_MINUS_ONE = np.nextafter(np.float32(-1), np.float32(0))
_SPAN_TO_ONE = np.float32(1) - _ABOVE_MINUS_ONE


def _xla_erfinv(x: np.ndarray) -> np.ndarray:
    w = -_xla_log1p(-x * x)
    result = _polynomial(w - np.float32(2.5), _ERFINV_CENTRE)
    tail = w >= 5  # three numbers in a thousand
    result[tail] = _polynomial(np.sqrt(w[tail]) - np.float32(3), _ERFINV_TAIL)
    with np.errstate(invalid='ignore'):
        return np.where(np.abs(x) == 1, x * np.float32(np.inf), result * x)


# Eigen's rational approximation; erf is 1 in float32 from the bound on.
_ERF_NUMERATOR = (
    0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145,
    1.128379143519084,
)  # fmt: skip
_ERF_DENOMINATOR = (
    -1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667,
    0.11098505178285362, 0.49746925110067538, 1.0,
)  # fmt: skip
_ERF_BOUND = np.float32(3.832506856900711)


def _xla_erf(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -_ERF_BOUND, _ERF_BOUND)
    square = x * x
    return x * _polynomial(square, _ERF_NUMERATOR) / _polynomial(square, _ERF_DENOMINATOR)


_library = torch.library.Library('purerl', 'DEF')
_TAGS = (torch.Tag.pt2_compliant_tag,)
_KERNELS: dict[str, Callable] = {}  # in numpy, by the operators' names


def _define(name: str, schema: str, kernel, out_shape, out_dtype):
    """Register an opaque CPU operator whose first argument is a batch of keys."""
    _KERNELS[name] = kernel
    _library.define(f'{name}{schema}', tags=_TAGS)
    # Draws are constants of their keys: nothing to differentiate.
    _library.impl(name, torch.library.fallthrough_kernel, 'Autograd')

    def fake(key, arg):
        return key.new_empty(out_shape(key, arg), dtype=out_dtype)

    torch.library.register_fake(f'purerl::{name}', fake, lib=_library)
    operator = getattr(torch.ops.purerl, name)

    def batched(info, in_dims, key, arg):
        key_dim, arg_dim = (*in_dims, None)[:2]
        if key_dim is not None:
            key = key.movedim(key_dim, 0)
        if arg_dim is not None:  # the counts of `block`: one row for each key
            arg = arg.movedim(arg_dim, 0)
            if key_dim is None:
                key = key.expand(info.batch_size, *key.shape)
        return operator(key, arg), 0

    torch.library.register_vmap(f'purerl::{name}', batched, lib=_library)
    return operator


_pairs_op = _define(
    'pairs', '(Tensor key, int n) -> Tensor', _pairs_kernel,
    lambda key, n: (*key.shape[:-1], n, 2), torch.int64,
)  # fmt: skip
_block_op = _define(
    'block', '(Tensor key, Tensor counts) -> Tensor', _block_kernel,
    lambda key, counts: (*key.shape[:-1], counts.shape[-1], 2), torch.int64,
)  # fmt: skip
_bits_op = _define(
    'bits', '(Tensor key, int n) -> Tensor', _bits_kernel,
    lambda key, n: (*key.shape[:-1], n), torch.int64,
)  # fmt: skip
_uniform_op = _define(
    'uniform', '(Tensor key, int n) -> Tensor', _uniform_kernel,
    lambda key, n: (*key.shape[:-1], n), torch.float32,
)  # fmt: skip
_normal_op = _define(
    'normal', '(Tensor key, int n) -> Tensor', _normal_kernel,
    lambda key, n: (*key.shape[:-1], n), torch.float32,
)  # fmt: skip


def _define_elementwise(name: str, function):
    """Register an opaque CPU operator from a numpy function of one float32 array."""
    _library.define(f'{name}(Tensor x) -> Tensor', tags=_TAGS)

    def kernel(x):
        return torch.from_numpy(function(x.contiguous().numpy().reshape(-1))).reshape(x.shape)

    def fake(x):
        return x.new_empty(x.shape)

    _KERNELS[name] = kernel
    _library.impl(name, torch.library.fallthrough_kernel, 'Autograd')
    torch.library.register_fake(f'purerl::{name}', fake, lib=_library)
    operator = getattr(torch.ops.purerl, name)
    torch.library.register_vmap(
        f'purerl::{name}', lambda info, in_dims, x: (operator(x), in_dims[0]), lib=_library
    )
    return operator


_log_op = _define_elementwise('log', _xla_log)
_log1p_op = _define_elementwise('log1p', _xla_log1p)
_erfinv_op = _define_elementwise('erfinv', _xla_erfinv)

if not native.register(_KERNELS):
    for _name, _kernel in _KERNELS.items():
        _library.impl(_name, _kernel, 'CPU')


def _opaque(x: torch.Tensor) -> bool:
    return x.device.type == 'cpu'


def _log(x: torch.Tensor) -> torch.Tensor:
    return _log_op(x) if _opaque(x) else torch.log(x)


def _log1p(x: torch.Tensor) -> torch.Tensor:
    return _log1p_op(x) if _opaque(x) else torch.log1p(x)


def _pairs(key: torch.Tensor, n: int) -> torch.Tensor:
    if _opaque(key):
        return _pairs_op(key, n)
    counts = torch.arange(n, dtype=torch.int64, device=key.device)
    return torch.stack(_threefry_inline(key, counts), dim=-1)


def _bits32(key: torch.Tensor, n: int) -> torch.Tensor:
    if _opaque(key):
        return _bits_op(key, n)
    x0, x1 = _threefry_inline(key, torch.arange(n, dtype=torch.int64, device=key.device))
    return x0 ^ x1


def _bits64(key: torch.Tensor, n: int) -> torch.Tensor:
    high, low = _pairs(key, n).unbind(-1)
    return high << 32 | low


def _unit_uniform(key: torch.Tensor, n: int) -> torch.Tensor:
    if _opaque(key):
        return _uniform_op(key, n)
    mantissa = (_bits32(key, n) >> 9) | 0x3F800000
    return mantissa.to(torch.int32).view(torch.float32) - 1


# --- Keys --------------------------------------------------------------------------------------


def key(seed: int, device: torch.device | str = 'cpu') -> torch.Tensor:
    """Make a key from an integer seed, as ``jax.random.PRNGKey`` does with 64-bit types off.

    Args:
        seed: any integer of at most 64 bits; JAX keeps its low 32 bits.

    Returns:
        A key, int64 of shape (2,).

    Raises:
        TypeError: if the seed is not an integer.
        OverflowError: if it does not fit into 64 bits (as in JAX).
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f'a seed must be an integer, got {seed!r} of type {type(seed).__name__}')
    seed = int(seed)
    if not -(2**63) <= seed < 2**63:
        raise OverflowError(f'a seed must fit into 64 bits, got {seed}')
    return torch.tensor([0, seed & _MASK], dtype=torch.int64, device=device)


def check_key(value) -> None:
    """Raise a TypeError unless `value` is a key or a stack of keys."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.dim() < 1:
        raise TypeError(f'expected a key (an int64 tensor, see random.key), got {value!r}')
    if value.shape[-1] != 2:
        raise TypeError(f'a key has two words in its last axis, got shape {tuple(value.shape)}')


def split(key: torch.Tensor, num: int | Sequence[int] = 2) -> torch.Tensor:
    """Split a key into `num` keys, shape (num, 2) (or (*num, 2) if `num` is a shape)."""
    check_key(key)
    shape = tuple(num) if isinstance(num, Sequence) else (operator.index(num),)
    return _pairs(key, math.prod(shape)).reshape(*key.shape[:-1], *shape, 2)


def fold_in(key: torch.Tensor, data: int | torch.Tensor) -> torch.Tensor:
    """Mix an integer (its low 32 bits; a Python number or a 0-d tensor) into a key."""
    check_key(key)
    counts = torch.as_tensor(data, dtype=torch.int64, device=key.device).reshape(1) & _MASK
    if _opaque(key):
        return _block_op(key, counts).squeeze(-2)
    return torch.cat(_threefry_inline(key, counts), dim=-1)


def generator(key: torch.Tensor, device: torch.device | str = 'cpu') -> torch.Generator:
    """Make an explicit ``torch.Generator`` from a key, for host-side work that wants one."""
    check_key(key)
    high, low = key.tolist()
    return torch.Generator(device).manual_seed((high << 32 | low) & (2**63 - 1))


def split_generator(source: torch.Generator, num: int = 2) -> list[torch.Generator]:
    """Draw `num` independent generators from `source`, advancing it (as keys split)."""
    seeds = torch.randint(0, 2**63 - 1, (num,), generator=source, device=source.device)
    return [torch.Generator(source.device).manual_seed(seed) for seed in seeds.tolist()]


# --- Draws -------------------------------------------------------------------------------------


def _draw(sampler, key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    check_key(key)
    shape = tuple(shape)
    size = math.prod(shape)
    if size >= 2**32:
        raise ValueError(f'a draw is limited to 2**32 - 1 numbers, got shape {shape}')
    return sampler(key, size).reshape((*key.shape[:-1], *shape))


def bits(key: torch.Tensor, shape: Sequence[int] = (), bit_width: int = 32) -> torch.Tensor:
    """Draw uniform bits.

    Returns:
        For 8, 16 and 64 bits an unsigned tensor of that width; for 32 bits an int64 tensor of
        values below 2**32, as torch computes little with uint32.
    """
    if bit_width not in _BITS_DTYPES:
        raise ValueError(f'bit_width must be 8, 16, 32 or 64, got {bit_width}')
    if bit_width == 64:
        return _draw(_bits64, key, shape).view(torch.uint64)
    words = _draw(_bits32, key, shape)
    if bit_width == 32:
        return words
    return (words & (2**bit_width - 1)).to(_BITS_DTYPES[bit_width])


def _is_array(*values) -> bool:
    return any(isinstance(value, torch.Tensor | np.ndarray) for value in values)


# What JAX makes of numpy's default dtypes.
_NARROWER = {np.float64: torch.float32, np.int64: torch.int32}


def _on_device_of(key: torch.Tensor, value, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a number or an array as a tensor on the key's device."""
    if isinstance(value, np.ndarray):
        # Copied, as it may be read-only.
        value = torch.tensor(value, dtype=dtype or _NARROWER.get(value.dtype.type))
    return torch.as_tensor(value, dtype=dtype, device=key.device)


def _check_broadcasts(name: str, drawn: torch.Tensor, *parameters) -> None:
    """Check that the parameters of a draw, numbers or tensors, do not enlarge it."""
    for parameter in parameters:
        given = tuple(np.shape(parameter))
        too_long = len(given) > drawn.dim()
        if too_long or any(
            a not in (1, b) for a, b in zip(given[::-1], drawn.shape[::-1], strict=False)
        ):
            raise ValueError(
                f'{name}: a parameter of shape {given} does not broadcast to the drawn shape '
                f'{tuple(drawn.shape)}; give a shape that has room for it'
            )


def _axis_index(name: str, axis: int, dim: int) -> int:
    if not -dim <= axis < dim:
        raise ValueError(f'{name}: axis {axis} is out of range for {dim} axes')
    return axis % dim


def _for_each_key(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let a function of one key take stacked keys too, by mapping over their leading axes."""

    @functools.wraps(draw)
    def mapped(key, *args, **kwargs):
        check_key(key)
        if key.dim() == 1:
            return draw(key, *args, **kwargs)
        return torch.func.vmap(lambda key: mapped(key, *args, **kwargs))(key)

    return mapped


def uniform(key: torch.Tensor, shape: Sequence[int] = (), minval=0.0, maxval=1.0) -> torch.Tensor:
    """Draw float32 numbers from [minval, maxval) (23 random bits each, as in JAX).

    Args:
        minval, maxval: numbers, or arrays that broadcast to `shape`.

    Raises:
        ValueError: if they do not.
    """
    floats = _draw(_unit_uniform, key, shape)
    if not _is_array(minval, maxval):
        if minval == 0.0 and maxval == 1.0:
            return floats
        minval, maxval = np.float32(minval), np.float32(maxval)
        with np.errstate(over='ignore'):  # a range beyond float32 is infinite, as in JAX
            minval, span = float(minval), float(maxval - minval)
        return _scale(floats, span, minval).clamp(min=minval)
    minval = _on_device_of(key, minval, torch.float32)
    maxval = _on_device_of(key, maxval, torch.float32)
    _check_broadcasts('uniform', floats, minval, maxval)
    return torch.maximum(_scale(floats, (maxval - minval).double(), minval.double()), minval)


def _scale(floats: torch.Tensor, span, offset) -> torch.Tensor:
    # In float64, then rounded: XLA contracts this product and sum into one rounding.
    return (floats.double() * span + offset).float()


def _erfinv(x: torch.Tensor) -> torch.Tensor:
    """XLA's inverse error function for float32 (``torch.erfinv`` differs by up to 2e-5)."""
    if _opaque(x):
        return _erfinv_op(x)
    w = -torch.log1p(-x * x)
    centre, tail = w - 2.5, torch.sqrt(w) - 3.0
    p, q = torch.full_like(x, _ERFINV_CENTRE[0]), torch.full_like(x, _ERFINV_TAIL[0])
    for a, b in zip(_ERFINV_CENTRE[1:], _ERFINV_TAIL[1:], strict=True):
        p = p * centre + a
        q = q * tail + b
    result = torch.where(w < 5.0, p, q) * x
    return torch.where(x.abs() == 1.0, x * math.inf, result)


def normal(key: torch.Tensor, shape: Sequence[int] = ()) -> torch.Tensor:
    """Draw standard normal float32 numbers."""
    return _draw(_unit_normal, key, shape)


def _unit_normal(key: torch.Tensor, n: int) -> torch.Tensor:
    if _opaque(key):
        return _normal_op(key, n)
    return _erfinv(uniform(key, (n,), _ABOVE_MINUS_ONE, 1.0)) * _SQRT2


def truncated_normal(
    key: torch.Tensor, lower: float, upper: float, shape: Sequence[int] = ()
) -> torch.Tensor:
    """Draw standard normal numbers conditioned on the open interval (lower, upper).

    Raises:
        ValueError: if a bound is an array.
    """
    if np.ndim(lower) or np.ndim(upper):
        raise ValueError(
            'truncated_normal: the bounds are numbers; draw once for each pair of them'
        )
    lower, upper = np.float32(lower), np.float32(upper)
    # Times the reciprocal, as XLA divides by a constant.
    bounds = np.stack([lower, upper]) * (np.float32(1) / np.float32(_SQRT2))
    low, high = _xla_erf(bounds).tolist()
    samples = _erfinv(uniform(key, shape, low, high)) * _SQRT2
    return samples.clamp(
        float(np.nextafter(lower, np.float32(np.inf))),
        float(np.nextafter(upper, np.float32(-np.inf))),
    )


def _check_mode(mode: str) -> None:
    if mode not in ('low', 'high'):
        raise ValueError(f"mode must be 'low' or 'high', got {mode!r}")


def _two_uniforms(key: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the upper and lower digits of uniform numbers: their sum has twice the bits."""
    high, low = uniform(key, (2, *shape)).unbind(key.dim() - 1)
    return high, low * 2.0**-23


def bernoulli(
    key: torch.Tensor, p=0.5, shape: Sequence[int] | None = None, mode: str = 'low'
) -> torch.Tensor:
    """Draw booleans that are True with probability `p` (a number or an array).

    Args:
        shape: to which `p` broadcasts; its own by default.
        mode: 'low', or 'high' for probabilities below 1e-7 (twice the random bits).

    Raises:
        ValueError: for another mode, or if `p` does not broadcast to `shape`.
    """
    _check_mode(mode)
    p = _on_device_of(key, p) if _is_array(p) else float(np.float32(p))
    shape = np.shape(p) if shape is None else shape
    if mode == 'high':
        high, low = _two_uniforms(key, shape)
        _check_broadcasts('bernoulli', high, p)
        return low < p - high
    floats = uniform(key, shape)
    _check_broadcasts('bernoulli', floats, p)
    return floats < p


# JAX clips randint's bounds to this range, but lets maxval stand one above its largest value.
_INT32 = (-(2**31), 2**31 - 1)


def randint(
    key: torch.Tensor,
    shape: Sequence[int],
    minval: int,
    maxval: int,
    dtype: torch.dtype = torch.int32,
) -> torch.Tensor:
    """Draw integers from [minval, maxval), by JAX's remainder of 64 random bits.

    Args:
        minval, maxval: Python integers, or integer arrays that broadcast to `shape`.
        dtype: of the result; int32 as in JAX, or int64 for indexing. The numbers are the same.

    Raises:
        ValueError: if the bounds do not broadcast.
    """
    high_key, low_key = split(key).unbind(-2)
    high, low = _draw(_bits32, high_key, shape), _draw(_bits32, low_key, shape)
    if _is_array(minval, maxval):
        minval = _on_device_of(key, minval, torch.int64)
        maxval = _on_device_of(key, maxval, torch.int64)
        _check_broadcasts('randint', low, minval, maxval)
        minval, maxval = minval.clamp(*_INT32), maxval.clamp(_INT32[0], _INT32[1] + 1)
        span = torch.where(maxval <= minval, 1, maxval - minval)
        multiplier = torch.remainder(torch.full_like(span, 2**16), span)
        multiplier = ((multiplier * multiplier) & _MASK) % span
    else:
        minval = min(max(int(minval), _INT32[0]), _INT32[1])
        maxval = min(max(int(maxval), _INT32[0]), _INT32[1] + 1)
        span = max(maxval - minval, 0) or 1
        if span == 2**32:
            return _wrap_int32(low + minval).to(dtype)
        multiplier = 2**16 % span
        multiplier = (multiplier * multiplier & _MASK) % span
    offset = (((high % span) * multiplier & _MASK) + low % span & _MASK) % span
    return _wrap_int32(offset + minval).to(dtype)


def _wrap_int32(value: torch.Tensor) -> torch.Tensor:
    return ((value + 2**31) & _MASK) - 2**31


def _shuffle(key: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    rounds = int(np.ceil(3 * np.log(max(1, x.numel())) / np.log(2**32 - 1)))
    for _ in range(rounds):
        key, subkey = split(key).unbind(-2)
        order = torch.sort(bits(subkey, x.shape), dim=axis, stable=True).indices
        x = torch.gather(x, axis, order)
    return x


@_for_each_key
def permutation(
    key: torch.Tensor, x: int | torch.Tensor, axis: int = 0, independent: bool = False
) -> torch.Tensor:
    """Shuffle a tensor along an axis, or ``arange(x)`` if `x` is a number (int32).

    Args:
        independent: shuffle each slice on its own instead of moving whole slices.

    Raises:
        ValueError: if there is no such axis.
    """
    if np.ndim(x) == 0:
        x = torch.arange(operator.index(x), dtype=torch.int32, device=key.device)
    x = _on_device_of(key, x)
    axis = _axis_index('permutation', axis, x.dim())
    if independent or x.dim() == 1:
        return _shuffle(key, x, axis)
    order = torch.arange(x.shape[axis], device=key.device)
    return torch.index_select(x, axis, _shuffle(key, order, 0))


@_for_each_key
def choice(
    key: torch.Tensor,
    a: int | torch.Tensor,
    shape: Sequence[int] = (),
    replace: bool = True,
    p: torch.Tensor | None = None,
    axis: int = 0,
) -> torch.Tensor:
    """Draw elements of `a` (or of ``arange(a)``) along an axis.

    Args:
        p: probabilities, shape (number of elements,). Entries may be negative, as the implicit
            policies of IDQL need: an index is found in the cumulative sum, as JAX finds it.

    Raises:
        ValueError: if more elements are asked for than there are and `replace` is False, if `p`
            is of another length, or if there is no such axis.
    """
    shape = tuple(shape)
    size = math.prod(shape)
    from_range = np.ndim(a) == 0
    a = operator.index(a) if from_range else _on_device_of(key, a)
    axis = 0 if from_range else _axis_index('choice', axis, a.dim())
    num = a if from_range else a.shape[axis]
    if p is not None:
        p = _on_device_of(key, p, torch.float32)
        if p.shape != (num,):
            raise ValueError(f'choice: p has shape {tuple(p.shape)}, expected {(num,)}')
    if size and num <= 0:
        raise ValueError('choice: there are no elements to draw from')
    if not replace and size > num:
        raise ValueError(f'choice: cannot draw {size} of {num} elements without replacement')
    if p is None and not replace:
        return _unflatten_axis(permutation(key, a, axis).narrow(axis, 0, size), axis, shape)
    if p is None:
        indices = randint(key, shape, 0, num)
    elif replace:
        cumulative = _cumsum(p)
        indices = _first_at_least(cumulative, cumulative[-1] * (1 - uniform(key, shape)))
    else:
        # Stable, so that among impossible elements the first come first, as in JAX.
        scores = gumbel(key, (num,)) + _log(p.clamp(min=0))
        order = torch.sort(scores, descending=True, stable=True).indices
        indices = order[:size].reshape(shape)
    if from_range:
        return indices.to(torch.int32)
    return _unflatten_axis(torch.index_select(a, axis, indices.reshape(-1).long()), axis, shape)


def _cumsum(x: torch.Tensor) -> torch.Tensor:
    """``jnp.cumsum`` over the last axis, added in XLA's order on a CPU, on which the bits depend.

    Blocks of 16 are summed one by one; then each gets the sum of the blocks before it.
    """
    n = x.shape[-1]
    blocks = F.pad(x, (0, -n % 16)).unflatten(-1, (-1, 16))
    sums = torch.stack(list(itertools.accumulate(blocks.unbind(-1))), dim=-1)
    if n > 16:
        before = F.pad(_cumsum(sums[..., -1])[..., :-1], (1, 0))
        sums = sums + before.unsqueeze(-1)
    return sums.flatten(-2)[..., :n]


def _first_at_least(values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return where `queries` belong in `values`, by JAX's bisection.

    In ascending values every bisection finds the same; where negative steps or NaN disorder them,
    ``torch.searchsorted`` finds others.
    """
    low = torch.zeros(queries.shape, dtype=torch.int64, device=values.device)
    high = torch.full_like(low, len(values))
    for _ in range(int(np.ceil(np.log2(len(values) + 1)))):
        middle = low + (high - low) // 2
        value = values.index_select(0, middle.reshape(-1)).reshape(middle.shape)
        goes_left = (queries <= value) | value.isnan()
        low, high = torch.where(goes_left, low, middle), torch.where(goes_left, middle, high)
    return high


def _unflatten_axis(x: torch.Tensor, axis: int, shape: tuple[int, ...]) -> torch.Tensor:
    return x.reshape((*x.shape[:axis], *shape, *x.shape[axis + 1 :]))


def gumbel(key: torch.Tensor, shape: Sequence[int] = (), mode: str = 'low') -> torch.Tensor:
    """Draw standard Gumbel numbers.

    Args:
        mode: 'low', JAX's default, whose largest number is about 16; or 'high', about 32 (twice
            the random bits).

    Raises:
        ValueError: for another mode.
    """
    _check_mode(mode)
    tiny = float(np.finfo(np.float32).tiny)
    if mode == 'low':
        return -_log(-_log(uniform(key, shape, tiny, 1.0)))
    high, low = _two_uniforms(key, shape)
    # Near 1 the sum could be rounded up to 1.
    x = torch.where(high >= 0.5, high, high + low + tiny)
    return -_log(-_log1p(-x))


@_for_each_key
def categorical(
    key: torch.Tensor,
    logits: torch.Tensor,
    axis: int = -1,
    shape: Sequence[int] | None = None,
    replace: bool = True,
    mode: str = 'low',
) -> torch.Tensor:
    """Draw indices with probability softmax(logits), by the Gumbel-max trick (int32).

    Args:
        logits: a distribution along `axis` for each of the other axes.
        shape: of the result; its trailing axes are those of `logits` without `axis` (where they
            have one entry, and it replaces, any number).
        replace: False draws the leading axes of `shape` without replacement, by the Gumbel-top-k
            trick (Kool et al., "Stochastic beams and where to find them", ICML 2019).
        mode: see `gumbel`.

    Raises:
        ValueError: if `shape` does not fit the logits, if more is drawn without replacement than
            there is, if there is no such axis, or for another mode.
    """
    logits = _on_device_of(key, logits)
    axis = _axis_index('categorical', axis, logits.dim())
    batch_shape = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    shape = batch_shape if shape is None else tuple(shape)
    prefix, batch = shape[: len(shape) - len(batch_shape)], shape[len(shape) - len(batch_shape) :]
    fits = len(batch) == len(batch_shape) and all(
        wanted == given or (given == 1 and replace)
        for wanted, given in zip(batch, batch_shape, strict=True)
    )
    if not fits:
        raise ValueError(f'categorical: shape {shape} does not end in {batch_shape}')
    if replace:
        noise_shape = (*prefix, *batch[:axis], logits.shape[axis], *batch[axis:])
        noise = gumbel(key, noise_shape, mode)
        return torch.argmax(noise + logits, dim=axis + len(prefix)).to(torch.int32)
    num = math.prod(prefix)
    if num > logits.shape[axis]:
        raise ValueError(
            f'categorical: cannot draw {num} of {logits.shape[axis]} indices without replacement'
        )
    scores = gumbel(key, logits.shape, mode) + logits
    # Stable, so that of equal scores the first comes first, as in JAX.
    order = torch.sort(scores, dim=axis, descending=True, stable=True).indices
    return order.narrow(axis, 0, num).movedim(axis, 0).reshape(shape).to(torch.int32)


def exponential(key: torch.Tensor, shape: Sequence[int] = ()) -> torch.Tensor:
    """Draw standard exponential numbers."""
    return -_log1p(-uniform(key, shape))
