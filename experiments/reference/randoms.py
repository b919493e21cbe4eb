"""Replays recordings of random numbers and of initial parameters."""

import ast
import re

import torch

from experiments.reference import expressions
from experiments.reference.case import Case, CaseError
from experiments.reference.compare import Report
from purerl.agents.infom.networks import MLP
from purerl.core import nn, random

# --- InFOM: config says how each tensor was drawn -------------------------------------------------


def replay_jax_random(case: Case, report: Report) -> None:
    """Evaluate the expression that the config gives for every ``fn/<name>``."""
    for name, text in case.config.items():
        report.stage = f'fn/{name}'
        if name.startswith('flax_init/'):
            _replay_flax_init(case, report, name, text)
        else:
            report.compare('fn', _only_output(case, name), _value_of(case, name, text))
    for name in case.children('fn/key'):
        key = case.take(f'fn/key/{name}/in/key')
        if re.fullmatch(r's\d+', name):  # the seed's key; the others were made by splitting
            report.compare('key', f'fn/key/{name}/in/key', random.key(int(name[1:])))
        random.check_key(key)


def _only_output(case, name):
    outputs = list(case.below(f'fn/{name}/out'))
    if len(outputs) != 1:
        raise CaseError(f'fn/{name} has {len(outputs)} outputs, expected one')
    return outputs[0]


def _value_of(case, name, text):
    names = _Inputs(case, name)
    for pattern, phrase in _PHRASES.items():
        match = re.fullmatch(pattern, text)
        if match:
            return phrase(names, match)
    try:
        return expressions.evaluate(_resolve(case.config, name, text), names)
    except CaseError as error:
        raise CaseError(f'fn/{name}: {error}') from error


class _Inputs(dict):
    """What expressions may refer to: the key of their own entry, and shared inputs."""

    def __init__(self, case, name):
        self._case, self._prefix = case, f'fn/{name}'

    def __contains__(self, name):
        return self._path(name) is not None

    def __getitem__(self, name):
        return self._case.take(self._path(name) or f'{self._prefix}/in/{name}')

    def _path(self, name):
        shared = [n for n in self._case.tensors if n.startswith('fn/') and n.endswith(f'/{name}')]
        own = f'{self._prefix}/in/{name}'
        if own in self._case.tensors:
            return own
        return shared[0] if len(shared) == 1 else None


def _resolve(config, name, text):
    """Parse an entry; ``same, axis=1`` and ``p=same`` refer to the entry whose name it extends."""
    if not text.startswith('same,') and '=same' not in text:
        return expressions.parse(text)
    stem, _, seed = name.rpartition('/')
    while '_' in stem:
        stem = stem.rpartition('_')[0]
        if f'{stem}/{seed}' in config:
            base = _resolve(config, f'{stem}/{seed}', config[f'{stem}/{seed}'])
            break
    else:
        raise CaseError(f'fn/{name}: there is no entry that {text!r} could refer to')
    if text.startswith('same,'):
        extra = expressions.parse(f'f({text.removeprefix("same,")})').keywords
        return ast.Call(base.func, base.args, [*base.keywords, *extra])
    values = {keyword.arg: keyword.value for keyword in base.keywords}
    call = expressions.parse(text)
    keywords = [
        ast.keyword(k.arg, values[k.arg]) if ast.unparse(k.value) == 'same' else k
        for k in call.keywords
    ]
    return ast.Call(call.func, call.args, keywords)


def _split_chain(names, match):
    key = names['key']
    for _ in range(_COUNTS[match[1]]):
        key = random.split(key)[0]
    return key


def _supply_rng(names, match):
    """The evaluation loop's stream: ``rng, key = split(rng)`` for each call."""
    rng, keys = random.key(int(match[1])), []
    for _ in range(int(match[2])):
        rng, key = random.split(rng)
        keys.append(key)
    return torch.stack(keys)


_COUNTS = {'two': 2, 'three': 3, 'four': 4, 'five': 5}
_PHRASES = {
    r'key, _ = split\(key\) (\w+) times': _split_chain,
    r'.*supply_rng\(rng=PRNGKey\((\d+)\)\): the key given to each of (\d+) calls': _supply_rng,
}


# --- Initial parameters of small modules ----------------------------------------------------------

_DENSE_LAYERS = re.compile(
    r'Flax module with nn\.compact and nn\.Dense for (\(.*?\)), kernel_init=(\w+); '
    r'init\((.*?), (ones\(.*\))\)'
)
_SETUP_NAMES = (
    'setup(): trunk=SmallMLP((4,3),lecun_normal); heads=nn.vmap(MLP (5,2), layer_norm, 2 members); '
    'nets=[Dense(3),Dense(2)]; scale=param normal(0.5) (4,); called trunk -> nets -> heads; '
    'init(key, ones((1,4)))'
)
_SCALED_INITIALIZERS = {
    'fan_avg_uniform': nn.variance_scaling(1.0, 'fan_avg', 'uniform'),
    'fan_avg_uniform_001': nn.variance_scaling(0.01, 'fan_avg', 'uniform'),
    'orthogonal_sqrt2': nn.orthogonal(2**0.5),
    'zeros': nn.zeros,
    'ones': nn.ones,
}


class _DenseLayers(nn.Module):
    def __init__(self, sizes, kernel_init):
        super().__init__()
        self.layers = [self.compact(nn.Dense(size, kernel_init)) for size in sizes]

    def forward(self, x):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x


class _SetupNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = _DenseLayers((4, 3), nn.lecun_normal())
        self.heads = nn.Vmap(MLP((5, 2), layer_norm=True), 2)
        self.nets_0, self.nets_1 = nn.Dense(3), nn.Dense(2)
        self.declare('scale')

    def forward(self, x):
        x = self.trunk(x * self.param('scale', nn.normal(0.5), (4,)))
        return self.heads(self.nets_1(self.nets_0(x)))


def _replay_flax_init(case, report, name, text):
    match = _DENSE_LAYERS.fullmatch(text)
    if match:
        sizes, kernel_init, key_text, example = match.groups()
        module = _DenseLayers(ast.literal_eval(sizes), _initializer(kernel_init))
    elif text == _SETUP_NAMES:
        module, key_text, example = _SetupNames(), f'PRNGKey({name.split("/")[-1]})', 'ones((1,4))'
    else:
        raise CaseError(f'fn/{name}: unknown module {text!r}')
    key = expressions.evaluate(expressions.parse(key_text), {})
    if f'fn/{name}/in/key' in case.tensors:
        report.compare('key', f'fn/{name}/in/key', key)
    inputs = expressions.evaluate(expressions.parse(example), {})
    report.compare_tree('init', f'fn/{name}/params', nn.init(module, key, inputs))


def _initializer(name):
    if name in _SCALED_INITIALIZERS:
        return _SCALED_INITIALIZERS[name]
    return expressions.evaluate(expressions.parse(f'{name}()'), {})


# --- jaxrl5: the outputs' names say how they were drawn -------------------------------------------


def replay_jaxrl5_rng(case: Case, report: Report) -> None:
    """Draw what the names under ``fn/<key>/out`` say: ``normal_13_3``, ``randint_0_5_13``."""
    groups = case.children('fn')
    names = {name for group in groups for name in case.children(f'fn/{group}/out')}
    for group in groups:
        key = case.take(f'fn/{group}/in/key')
        for name in sorted(names):
            report.compare('fn', f'fn/{group}/out/{name}', _named_draw(case, key, name))


def _named_draw(case, key, name):
    for pattern, draw in _DRAWS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return draw(case.config, key, *match.groups())
    raise CaseError(f'{name!r} does not name a draw')


def _sizes(text):
    return () if text == 'scalar' else tuple(int(size) for size in text.split('_'))


def _choice_p(config, key, negative):
    p = config['choice_p_negative' if negative else 'choice_p']
    if negative:  # as text: the weights, to be normalised
        weights = expressions.array(ast.literal_eval(p.partition('w=')[2]))
        p = weights / weights.sum()
    return random.choice(key, len(p), (), p=p)


def _randint(config, key, low, high, sizes):
    return random.randint(key, _sizes(sizes), int(low), int(high))


_DRAWS = {
    r'split(\d+)': lambda config, key, n: random.split(key, int(n)),
    r'fold_in_(\d+)': lambda config, key, n: random.fold_in(key, int(n)),
    r'flax_fold_(\d+)': lambda config, key, i: nn.fold_in_path(key, config['flax_fold'][int(i)]),
    r'normal_([\d_]+|scalar)': lambda config, key, s: random.normal(key, _sizes(s)),
    r'uniform_([\d_]+|scalar)': lambda config, key, s: random.uniform(key, _sizes(s)),
    r'bernoulli_([\d.]+)_([\d_]+|scalar)': (
        lambda config, key, p, s: random.bernoulli(key, float(p), _sizes(s))
    ),
    r'randint_(-?\d+)_(-?\d+)_([\d_]+|scalar)': _randint,
    r'permutation_(\d+)': lambda config, key, n: random.permutation(key, int(n)),
    r'choice_p(_negative)?': _choice_p,
}
