"""What holds for every line of the library: draws have a source, gradients are functional."""

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2] / 'purerl'
_FILES = sorted(_ROOT.rglob('*.py'))
_DRAWS = re.compile(r'torch\.(rand\w*|normal|bernoulli|multinomial)')
_SOURCES = ('RandomState', 'Generator', 'default_rng', 'SeedSequence')
_GLOBAL = re.compile(rf'torch\.(manual_)?seed|np\.random\.(?!({"|".join(_SOURCES)})$)\w+')
_IN_PLACE = re.compile(r'.*\.(backward|requires_grad_)')
# Lends numpy's global stream, and puts it back (`wrappers.global_numpy_random`).
_LENT = {'envs/wrappers.py': {'np.random.get_state', 'np.random.set_state'}}


def _calls(file):
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize('file', _FILES, ids=lambda file: str(file.relative_to(_ROOT)))
def test_no_global_random_numbers_and_no_gradients_by_side_effect(file):
    allowed = _LENT.get(str(file.relative_to(_ROOT)), ())
    for call in _calls(file):
        name = ast.unparse(call.func)
        if _DRAWS.fullmatch(name):
            assert 'generator' in [keyword.arg for keyword in call.keywords], call.lineno
        assert name in allowed or not _GLOBAL.fullmatch(name), call.lineno
        assert not _IN_PLACE.fullmatch(name), call.lineno
