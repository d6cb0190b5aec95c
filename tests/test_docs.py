"""The pages of docs/: every public name has its reference, and the snippets run."""

import re
from pathlib import Path

import pytest

import normjax

DOCS = Path(__file__).parent.parent / "docs"


def test_the_reference_has_every_public_name_once():
    pages = "".join(path.read_text() for path in DOCS.glob("reference/*.md"))
    names = re.findall(r"^::: normjax\.(\w+)$", pages, re.MULTILINE)
    assert sorted([*names, "__version__"]) == normjax.__all__


@pytest.mark.slow
@pytest.mark.parametrize("page", ["faq", "index", "theory"])
def test_the_snippets_of_a_page_run(page):
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})
