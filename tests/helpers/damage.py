"""Damage to a file, drawn by hypothesis: bytes changed or lost, lines lost or repeated, a cut."""

import functools
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

# The same examples in every run.
fuzz = functools.partial(settings, derandomize=True, deadline=None, database=None)

# What breaks a number, a word, a line or a bracket of a text.
TOKENS = [
    *(b"0 1 9 - . e , : ; [ ] { } \" ' / \\ = nan NaN inf Infinity 1e999 null true -- #".split()),
    b"\n",
    b"\r",
    b" ",
    b"\0",
    b"\xff",
]


class Edit(NamedTuple):
    """One thing that happens to a file at a place, 0 its start and 1 its end."""

    kind: str
    place: float
    data: bytes

    def apply(self, content):
        i = round(self.place * len(content))
        after = i + len(self.data)
        line, line_end = content.rfind(b"\n", 0, i) + 1, content.find(b"\n", i) + 1
        line_end = line_end or len(content)
        return {
            "replace": content[:i] + self.data + content[after:],
            "insert": content[:i] + self.data + content[i:],
            "delete": content[:i] + content[after:],
            "cut": content[:i],
            "drop line": content[:line] + content[line_end:],
            "repeat line": content[:line_end] + content[line:],
        }[self.kind]


def edits(*kinds):
    """Lists of one to three edits of these kinds."""
    data = st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=4)
    edit = st.builds(Edit, st.sampled_from(kinds), st.floats(0, 1), data)
    return st.lists(edit, min_size=1, max_size=3)


def edited(content, chosen):
    for edit in chosen:
        content = edit.apply(content)
    return content


BINARY_EDITS = edits("replace", "insert", "delete", "cut")
TEXT_EDITS = edits("replace", "insert", "delete", "cut", "drop line", "repeat line")
