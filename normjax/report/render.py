"""Render templates; the only module that uses Jinja2."""

import base64
import html
import os
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from normjax import formatting
from normjax.files import replacing
from normjax.norms import norm_name
from normjax.results.table import selection_name

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """Render a template of `templates/`.

    All values are escaped: HTML characters and, in Markdown, the bars and line breaks that would
    break a table, but not quotes. Filters: `number`, `fixed`, `percent`, `interval`
    (`normjax.formatting`), `selection_name`, `norm_name`, and `data_uri` (embeds a PNG file).

    Args:
      template: file name; the suffix (.html or .md) selects the escaping.
      **context: the values by name. A missing value is an error.
    """
    return _environment(Path(template).suffix).get_template(template).render(**context)


def write_page(path: str | os.PathLike, template: str, **context: Any) -> None:
    """Render a template and replace the file at `path` atomically."""
    text = render(template, **context)
    with replacing(path) as temporary:
        # UTF-8 cannot encode a path with undecodable bytes.
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


@cache
def _environment(suffix: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_in_one_cell if suffix == ".md" else None,
    )
    names = ("number", "fixed", "percent", "interval")
    environment.filters |= {name: getattr(formatting, name) for name in names}
    environment.filters |= {"selection_name": selection_name, "norm_name": norm_name}
    environment.filters["data_uri"] = _data_uri
    # For JSON in a script element; Jinja escapes what would end it.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _in_one_cell(value: Any) -> Any:
    """Escape text for a cell of a Markdown table; quotes would show escapes in code spans."""
    if type(value) is not str:
        return value
    text = html.escape(" ".join(value.split()), quote=False)
    return markupsafe.Markup(text.replace("|", "\\|"))


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
