"""The grammar of recorded calls: what it evaluates, and that nothing else gets through."""

import pytest
import torch

from experiments.reference.case import CaseError
from experiments.reference.expressions import evaluate, parse
from purerl.core import nn, random

KEY = random.key(3)


def value(text):
    return evaluate(parse(text), {'key': KEY})


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('normal(key,(4,3))*0.2', lambda: random.normal(KEY, (4, 3)) * 0.2),
        ('uniform(key, (5,), minval=-2, maxval=3.5)', lambda: random.uniform(KEY, (5,), -2, 3.5)),
        ('uniform(key,(5,),float32,-2,3.5)', lambda: random.uniform(KEY, (5,), -2, 3.5)),
        ('jax.random.randint(key,(7,),-5,7) int32', lambda: random.randint(KEY, (7,), -5, 7)),
        ('bits(key,(6,),uint8)', lambda: random.bits(KEY, (6,), 8)),
        ('split(key)', lambda: random.split(KEY)),
        ('fold_in(key,2**31)', lambda: random.fold_in(KEY, 2**31)),
        ('permutation(key,arange(6.).reshape(3,2),axis=1)',
         lambda: random.permutation(KEY, torch.arange(6.0).reshape(3, 2), axis=1)),
        ('bernoulli(key,array([.1,.9]))', lambda: random.bernoulli(KEY, torch.tensor([0.1, 0.9]))),
        ("variance_scaling(2,'fan_out','normal')(key,(6,4))",
         lambda: nn.variance_scaling(2, 'fan_out', 'normal')(KEY, (6, 4))),
        ('nn.initializers.normal(0.5)(key,(3,))', lambda: nn.normal(0.5)(KEY, (3,))),
        ('nn.initializers.zeros(key,(2,2))', lambda: torch.zeros(2, 2)),
        ('nn.initializers.orthogonal(sqrt 2)(key,(4,4))',
         lambda: nn.orthogonal(2**0.5)(KEY, (4, 4))),
        ('PRNGKey(np.int64(7)) (made from a numpy integer: the same)', lambda: random.key(7)),
    ],
)  # fmt: skip
def test_evaluates_as_written(text, expected):
    assert torch.equal(value(text), expected())


@pytest.mark.parametrize(
    'text',
    [
        '__import__("os").system("true")', 'key.__class__', 'open("x")', 'os.getcwd()',
        'lambda: 1', '[x for x in key]', 'key if key else key', 'unknown', 'normal', '',
        'random.random.normal(key)', 'nn.initializers.split(key)', 'key[0]', "f'{key}'",
    ],
)  # fmt: skip
def test_refuses_everything_else(text):
    with pytest.raises(CaseError):
        value(text)


@pytest.mark.parametrize(
    'text',
    ['normal(key,(2,),float16)', "gumbel(key,(2,),mode='highest')", 'bits(key,(2,),int32)'],
)
def test_refuses_draws_that_purerl_does_not_offer(text):
    with pytest.raises(CaseError):
        value(text)
