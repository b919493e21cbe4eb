"""Evaluates the calls that recordings state in words: ``clip(normal(key,(4,3))*0.2,-0.5,0.5)``.

A small grammar over JAX's function names, with JAX's arguments: numbers, strings, tuples, lists,
arithmetic, the functions below and ``reshape``. Nothing else is reachable from an expression.
"""

import ast
import math
import operator
from collections.abc import Mapping

import torch

from experiments.reference.case import CaseError
from purerl.core import nn, random

# --- JAX's signatures ---------------------------------------------------------------------------
# Draws that purerl offers in float32 and int32 only are refused in other dtypes.

_BIT_WIDTHS = {'uint8': 8, 'uint16': 16, 'uint32': 32, 'uint64': 64}


def _require(name, dtype, expected):
    if dtype != expected:
        raise CaseError(f'{name} of dtype {dtype}: purerl draws {expected}')


def _shape(shape):
    return (shape,) if isinstance(shape, int) else shape


def _bits(key, shape=(), dtype='uint32'):
    if dtype not in _BIT_WIDTHS:
        raise CaseError(f'bits of dtype {dtype}: must be one of {", ".join(_BIT_WIDTHS)}')
    return random.bits(key, _shape(shape), _BIT_WIDTHS[dtype])


def _uniform(key, shape=(), dtype='float32', minval=0.0, maxval=1.0):
    _require('uniform', dtype, 'float32')
    return random.uniform(key, _shape(shape), minval, maxval)


def _normal(key, shape=(), dtype='float32'):
    _require('normal', dtype, 'float32')
    return random.normal(key, _shape(shape))


def _truncated_normal(key, lower, upper, shape=(), dtype='float32'):
    _require('truncated_normal', dtype, 'float32')
    return random.truncated_normal(key, lower, upper, _shape(shape))


def _randint(key, shape, minval, maxval, dtype='int32'):
    _require('randint', dtype, 'int32')
    return random.randint(key, _shape(shape), minval, maxval)


def _bernoulli(key, p=0.5, shape=None, mode='low'):
    return random.bernoulli(key, p, shape if shape is None else _shape(shape), mode)


def _exponential(key, shape=(), dtype='float32'):
    _require('exponential', dtype, 'float32')
    return random.exponential(key, _shape(shape))


def _mode(mode):
    if mode not in (None, 'low', 'high'):
        raise CaseError(f"mode={mode!r}: purerl draws Gumbel numbers in the modes 'low' and 'high'")
    return mode or 'low'


def _gumbel(key, shape=(), dtype='float32', mode=None):
    _require('gumbel', dtype, 'float32')
    return random.gumbel(key, _shape(shape), _mode(mode))


def _categorical(key, logits, axis=-1, shape=None, replace=True, mode=None):
    shape = shape if shape is None else _shape(shape)
    return random.categorical(key, logits, axis, shape, replace, _mode(mode))


def _choice(key, a, shape=(), replace=True, p=None, axis=0):
    return random.choice(key, a, _shape(shape), replace, array(p) if p else None, axis)


# --- Arrays -------------------------------------------------------------------------------------


def array(values, dtype=None):
    """An array as JAX makes it without 64-bit types."""
    tensor = torch.tensor(values)
    kinds = {torch.float64: torch.float32, torch.int64: torch.int32}
    return tensor.to(getattr(torch, dtype) if dtype else kinds.get(tensor.dtype, tensor.dtype))


def _arange(*bounds):
    whole = all(isinstance(bound, int) for bound in bounds)
    return torch.arange(*bounds, dtype=torch.int32 if whole else torch.float32)


def _clip(x, low, high):
    return torch.clamp(x, low, high)


_FUNCTIONS = {
    'PRNGKey': random.key,
    'key': random.key,
    'split': random.split,
    'fold_in': random.fold_in,
    'bits': _bits,
    'uniform': _uniform,
    'normal': _normal,
    'truncated_normal': _truncated_normal,
    'randint': _randint,
    'bernoulli': _bernoulli,
    'exponential': _exponential,
    'gumbel': _gumbel,
    'categorical': _categorical,
    'choice': _choice,
    'permutation': random.permutation,
    'clip': _clip,
    'array': array,
    'arange': _arange,
    'ones': lambda shape: torch.ones(_shape(shape)),
    'zeros': lambda shape: torch.zeros(_shape(shape)),
    'sqrt': math.sqrt,
    'int64': int,
    'int32': int,
}

_INITIALIZERS = {
    name: getattr(nn, name)
    for name in (
        'constant', 'normal', 'variance_scaling', 'lecun_normal', 'lecun_uniform',
        'glorot_uniform', 'glorot_normal', 'xavier_uniform', 'xavier_normal', 'he_uniform',
        'he_normal', 'kaiming_uniform', 'kaiming_normal', 'orthogonal',
    )
}  # fmt: skip
_PLAIN_INITIALIZERS = {'zeros': nn.zeros, 'ones': nn.ones}  # called with a key, not to make one

_DTYPES = ('uint8', 'uint16', 'uint32', 'uint64', 'int32', 'float32', 'float16', 'bfloat16')
_NAMES = {**{name: name for name in _DTYPES}, 'inf': math.inf, 'nan': math.nan, 'pi': math.pi}

_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}  # fmt: skip


def parse(text: str) -> ast.expr:
    """Parse an expression, without the remark that may follow it.

    Raises:
        CaseError: if there is no expression at the start of `text`.
    """
    text = text.replace('sqrt 2', 'sqrt(2)')
    for end in (len(text), *_gaps(text)):
        try:
            return ast.parse(text[:end].strip(), mode='eval').body
        except SyntaxError:
            continue
    raise CaseError(f'cannot parse {text!r}')


def _gaps(text):
    """Positions of the blanks outside brackets, from the last on."""
    depth, gaps = 0, []
    for i, character in enumerate(text):
        depth += (character in '([') - (character in ')]')
        if character == ' ' and depth == 0:
            gaps.append(i)
    return reversed(gaps)


def evaluate(node: ast.expr, names: Mapping):
    """Evaluate a parsed expression.

    Args:
        names: values of free names, the key among them.

    Raises:
        CaseError: for whatever is not part of the grammar; the message shows it.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names and node.id not in _NAMES:
            raise CaseError(f'{node.id!r} is not defined')
        return names[node.id] if node.id in names else _NAMES[node.id]
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(evaluate(item, names) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](evaluate(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = evaluate(node.left, names), evaluate(node.right, names)
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call):
        arguments = [evaluate(argument, names) for argument in node.args]
        keywords = {k.arg: evaluate(k.value, names) for k in node.keywords}
        return _function(node.func, names)(*arguments, **keywords)
    raise CaseError(f'{ast.unparse(node)!r} is not an expression of recordings')


def _function(node: ast.expr, names: Mapping):
    if isinstance(node, ast.Call):  # an initialiser, made and then called
        return evaluate(node, names)
    if isinstance(node, ast.Attribute) and node.attr == 'reshape':
        return lambda *shape: evaluate(node.value, names).reshape(*shape)
    *parents, name = ast.unparse(node).split('.')
    if parents[-1:] == ['initializers']:
        table = {**_INITIALIZERS, **_PLAIN_INITIALIZERS}
    elif parents in ([], ['random'], ['jax', 'random'], ['np'], ['jnp']):
        table = {**_INITIALIZERS, **_FUNCTIONS}
    else:
        table = {}
    if name not in table:
        raise CaseError(f'recordings may not call {ast.unparse(node)!r}, or purerl lacks it')
    return table[name]
