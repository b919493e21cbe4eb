"""The pages' links lead somewhere."""

import re
from pathlib import Path

import pytest

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
