"""README and docs/: every public name has its reference, snippets run, links exist."""

import re
from pathlib import Path

import pytest

import normjax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name_once():
    pages = "".join(path.read_text() for path in DOCS.glob("reference/*.md"))
    names = re.findall(r"^::: normjax\.(\w+)$", pages, re.MULTILINE)
    assert sorted([*names, "__version__"]) == normjax.__all__


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README", "docs/faq", "docs/index", "docs/theory"])
def test_the_snippets_of_a_page_run(page):
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / f"{page}.md").read_text(), re.M | re.S)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})


def test_links_of_the_readme_exist():
    """The site's own build checks the links of docs/."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10 and all((ROOT / link).exists() for link in links)
