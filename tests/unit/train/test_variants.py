import pytest
import torch

from purerl.core import trees
from purerl.train.config import RunError, load_agent
from purerl.train.variants import Variant, parse

IDQL = 'purerl/agents/jaxrl5/ddpm_iql.py'


@pytest.fixture(scope='module')
def agent():
    return load_agent(IDQL)


def test_without_a_flag_the_agent_is_evaluated_as_it_is(agent):
    assert parse(None, agent) == parse('', agent) == [Variant('', {})]


def test_one_variant_has_no_name(agent):
    changes = {'N': 128, 'clip_sampler': False, 'ddpm_temperature': 0.5}
    assert parse('N=128; clip_sampler=false; ddpm_temperature=0.5', agent) == [Variant('', changes)]


def test_the_grid_is_in_the_originals_order(agent):
    names = [variant.name for variant in parse('N=16,64;clip_sampler=True;M=0,2', agent)]
    assert names == ['N=16,M=0', 'N=64,M=0', 'N=16,M=2', 'N=64,M=2']


def test_applying_leaves_the_agent_as_it_is():
    @trees.dataclass
    class Agent:
        temperature: torch.Tensor
        N: int = trees.static()

    agent = Agent(temperature=torch.tensor(1.0), N=4)
    changed = Variant('', {'N': 8, 'temperature': 0.5}).apply(agent)
    assert (changed.N, agent.N, agent.temperature.item()) == (8, 4, 1.0)
    assert torch.equal(changed.temperature, torch.tensor(0.5))
    assert Variant('', {}).apply(agent).N == 4


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('N=0', 'N must be at least 1, not 0'),
        ('N=16,0', 'N must be at least 1, not 0'),
        ('T=0', 'T must be at least 1, not 0'),
        ('T=6', 'T=6 is more than the 5 steps'),
        ('M=-1', 'M must be at least 0'),
        ('N=many', 'N=many is no int'),
        ('N', 'N= is no int'),
        ('clip_sampler=maybe', 'clip_sampler=maybe is no bool'),
        ('clip_smpler=True', "did you mean 'clip_sampler'"),
        ('critic_lr=1', 'does not name a field'),
        ('critic_objective=foo', 'does not name a field'),
        ('ddpm_temperature=nan', 'ddpm_temperature must be finite, not nan'),
        ('M=1,2;M=3', 'M is given twice'),
        ('N=2,2', "'N=2,2' gives a value twice"),
    ],
)
def test_mistakes(agent, text, message):
    with pytest.raises(RunError, match=message):
        parse(text, agent)


def test_agents_without_such_fields():
    with pytest.raises(RunError, match='can be changed after training, which has none'):
        parse('temperature=1,5', load_agent('purerl/agents/jaxrl5/iql.py'))
