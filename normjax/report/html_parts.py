"""The pieces of HTML that pages are made of; all text is escaped here."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_CSS = """
:root { color-scheme: light; }
body { max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem; color: #1f2328; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem;
  padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
.claim { font-size: 1.08rem; } .quiet { color: #59636e; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; white-space: pre;
  border-bottom: 1px solid #eaeef2; }
th { color: #59636e; font-weight: 600; border-bottom-color: #d0d7de; vertical-align: bottom;
  white-space: pre-line; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: pre-line; }
figure { margin: 1.2rem 0; } figcaption { color: #59636e; font-size: .88rem; }
img { max-width: 100%; height: auto; }
pre { background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; color: #0550ae; margin: .5rem 0; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of HTML parts, those that are empty left out; the title is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def bullets(lines: Sequence[str]) -> str:
    """An HTML list, nothing if it is empty; every line is escaped."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def image(path: Path) -> str:
    """A PNG file embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escaped(path.stem)}" src="data:image/png;base64,{data}">'


def collapsed(title: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def estimate(value: float, interval: Sequence[float]) -> str:
    """A value, with its interval on the line below."""
    low, high = interval
    return f"{number(value)}\n[{number(low)}, {number(high)}]"


def number(value: float | None) -> str:
    """A number with five significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:#.5g}".rstrip(".")


def escaped(value: Any) -> str:
    """Text from anywhere, safe to stand in HTML."""
    return html.escape(str(value))
