"""The pages' links lead somewhere, and agents' pages have all fields of their configs."""

import re
from pathlib import Path

import pytest

from purerl.train.config import load_agent

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([_ROOT / 'README.md', *(_ROOT / 'docs').rglob('*.md')])


def _anchors(page: Path) -> set[str]:
    """Return what GitHub makes of a page's headings."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ +(.+?) *$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_to_a_file_and_a_heading(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if link.startswith('https://'):
            continue
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        assert target.exists(), f'{link} leads to no file'
        assert not anchor or anchor in _anchors(target), f'{link} leads to no heading'


_AGENTS = [
    path
    for path in sorted((_ROOT / 'purerl/agents').rglob('*.py'))
    if 'def get_config' in path.read_text()
]
# Pages of agents that share one, or whose fields are partly another one's.
_PAGES_OF = {'ddpm_iql_simple': ['ddpm_iql'], 'td_infonce': ['td_infonce', 'crl_infonce']}


@pytest.mark.parametrize('file', _AGENTS, ids=lambda file: f'{file.parent.name}/{file.stem}')
def test_an_agents_page_has_every_field(file):
    fields = set(load_agent(str(file)).config)
    if 'basis_alg' in fields:  # the base's fields are on its own page
        fields -= set(load_agent('purerl/agents/rrd/sac.py').config)
    folder = _ROOT / 'docs' / file.parent.name
    pages = _PAGES_OF.get(file.stem, [file.stem])
    text = ''.join((folder / f'{page}.md').read_text() for page in pages)
    assert not [field for field in fields if f'`{field}`' not in text]
