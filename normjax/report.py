"""The page that shows a run: `report.html`, one file that opens offline."""

import base64
import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from normjax.curves import METRICS_FILE, describe_stopping, read_metrics, stopping_epochs
from normjax.results import RESULTS_FILE, ResultRow, read_results, replacing
from normjax.summary import SUMMARY_FILE, figure_stem, norm_name, selection_name

REPORT_FILE = "report.html"
_MEASURE_NAMES = {
    "product_norm": "product of norms",
    "normalized_train_loss": "normalised training loss",
    "train_loss": "training loss as trained",
}
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


def write_report(run_dir: str | os.PathLike) -> Path:
    """Writes `report.html` from the files of a finished run; replaces it atomically.

    Reads results.csv and summary.json, and run.json, flags.txt and figures/*.png where they are.
    Images are embedded, nothing is loaded from elsewhere, and all text from files is escaped.

    Args:
      run_dir: the run's folder.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: there is no results.csv or summary.json.
      ValueError: one of the files cannot be read; the message names it.
    """
    run_dir = Path(run_dir)
    rows = read_results(run_dir / RESULTS_FILE)
    summary = _read_json(run_dir / SUMMARY_FILE)
    run = _read_json(run_dir / "run.json") if (run_dir / "run.json").exists() else {}
    flags_path = run_dir / "flags.txt"
    flags = flags_path.read_text(encoding="utf-8") if flags_path.exists() else ""
    figures = sorted((run_dir / "figures").glob("*.png"))
    headline = _headline(summary)
    headline_path = _choose_figure(headline, figures)
    parts = [
        f"<h1>{_text(summary['experiment'])}</h1>",
        _claim(headline, summary["num_members"]),
        _headline_figure(headline_path),
        "<h2>Fits</h2>",
        _fits_table(summary),
        "<h2>Is the line real?</h2>",
        _controls(summary),
        "<h2>What goes with the test error</h2>",
        _correlations_table(summary),
        *_stopping(run_dir),
        "<h2>Networks</h2>",
        _members(headline, rows),
        "<h2>Further figures</h2>",
        *(_collapsed(path.stem, _image(path)) for path in figures if path != headline_path),
        "<h2>Settings and versions</h2>",
        f"<pre>{_text(flags)}</pre>" if flags else "",
        f"<pre>{_text(json.dumps(run, indent=2, ensure_ascii=False))}</pre>" if run else "",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(summary['experiment'])}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
    with replacing(run_dir / REPORT_FILE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_dir / REPORT_FILE


def _headline(summary: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The selection, norm and part that the page opens with: the last epoch, the Frobenius norm."""
    entries = list(_entries(summary))
    if not entries:
        raise ValueError(f"{SUMMARY_FILE} holds no selection")
    return max(entries, key=lambda entry: (entry[0] == "final", entry[1] == "2"))


def _entries(summary: dict[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """All (selection, norm, part) of the summary."""
    for selection, norms in summary["selections"].items():
        for norm, part in norms.items():
            yield selection, norm, part


def _claim(headline: tuple[str, str, dict[str, Any]], num_members: int) -> str:
    """What was found, in one paragraph."""
    selection, norm, part = headline
    fit, raw, permutation = part["normalized_fit"], part["raw_fit"], part["norm_permutation"]
    if fit is None:
        return (
            f'<p class="claim">No line could be fitted to the {num_members} networks of this run: '
            f"{_text(part['reasons']['normalized_fit'])}.</p>"
        )
    text = (
        f"Across {fit['n']} networks ({_text(selection_name(selection))}), the training loss of "
        f"the network normalised layer by layer ({_text(norm_name(norm))}) predicts its test loss "
        f"along a straight line with R² = <strong>{_number(fit['r2'])}</strong>"
    )
    text += f"; as trained, R² is {_number(raw['r2'])}. " if raw else ". "
    if permutation:
        text += (
            "The shared divisor alone, with the norms shuffled among the networks, gives "
            f"R² = {_number(permutation['r2_quantiles'][1])} (median); "
            f"{permutation['fraction_at_least']:.2%} of the orders, the real one counted, reach "
            "the R² of the real one."
        )
    return f'<p class="claim">{text}</p>'


def _choose_figure(
    headline: tuple[str, str, dict[str, Any]], figures: Sequence[Path]
) -> Path | None:
    """The headline's figure of normalised beside raw losses; without it, the first there is."""
    stem = figure_stem("normalized_and_raw", *headline[:2])
    return next((path for path in figures if path.stem == stem), next(iter(figures), None))


def _headline_figure(path: Path | None) -> str:
    """The figure under the claim."""
    if path is None:
        return '<p class="quiet">This run has no figures.</p>'
    caption = (
        "Each star is a network, with its level beside it. Left: test against training loss of the "
        "normalised networks, with the least-squares line. Right: the same networks as trained."
    )
    if not path.stem.startswith("normalized_and_raw"):
        caption = path.stem
    return f"<figure>{_image(path)}<figcaption>{_text(caption)}</figcaption></figure>"


def _fits_table(summary: dict[str, Any]) -> str:
    """Lines of test loss on training loss, normalised and as trained."""
    rows = []
    seen = set()
    for selection, norm, part in _entries(summary):
        fits = [(f"normalised,\n{norm_name(norm)}", "normalized_fit")]
        if selection not in seen:  # the losses as trained have no norm
            fits.insert(0, ("as trained", "raw_fit"))
            seen.add(selection)
        for name, key in fits:
            fit = part[key]
            cells = [selection_name(selection), name]
            if fit is None:
                rows.append([*cells, str(part["num_members"]), *["–"] * 5])
                continue
            rows.append(
                [
                    *cells,
                    str(fit["n"]),
                    _number(fit["r2"]),
                    _number(fit["adjusted_r2"]),
                    _number(fit["rmse"]),
                    _estimate(fit["slope"], fit["slope_interval"]),
                    _estimate(fit["intercept"], fit["intercept_interval"]),
                ]
            )
    header = ["Selection", "Losses", "Networks", "R²", "Adjusted R²", "RMSE (nats)"]
    note = "<p>Least-squares lines of test loss on training loss, with 95% intervals.</p>"
    reasons = [
        f"{selection_name(selection)}, {norm_name(norm)}: no {name}: {reason}"
        for selection, norm, part in _entries(summary)
        for name, reason in part["reasons"].items()
    ]
    return note + _table([*header, "Slope", "Intercept"], rows) + _list(reasons)


def _controls(summary: dict[str, Any]) -> str:
    """The permutation control and the anchored line, with their meaning in words."""
    explanation = (
        "<p>Both axes of the normalised plot are margins divided by the same product of norms, so "
        "networks whose norms differ line up towards (ln K, ln K) whatever they learned: a high R² "
        "alone proves little. Here every network keeps its own margins while the product norms "
        "are shuffled among the networks. If the real R² lies inside what the shuffled ones give, "
        "the shared divisor is enough to explain the line; only what lies above it is about the "
        "networks. The line through (ln K, ln K), the point of vanishing margins, shows what is "
        "left of the fit without a free intercept.</p>"
    )
    rows = []
    for selection, norm, part in _entries(summary):
        permutation, anchored = part["norm_permutation"], part["anchored_fit"]
        cells = [f"{selection_name(selection)}, {norm_name(norm)}"]
        if permutation:
            low, middle, high = permutation["r2_quantiles"]
            shuffled = _estimate(middle, (low, high))
            cells += [_number(permutation["r2"]), shuffled, _rank(permutation)]
        else:
            cells += ["–"] * 3
        if anchored:
            slope = _estimate(anchored["slope"], anchored["slope_interval"])
            cells += [slope, _number(anchored["r2"])]
        else:
            cells += ["–"] * 2
        rows.append(cells)
    header = [
        "Networks at",
        "Real R²",
        "R² with norms shuffled:\nmedian [5%, 95%]",
        "Orders at least as\ngood, real one counted",
        "Slope through\n(ln K, ln K) [95%]",
        "Its R²",
    ]
    return explanation + _table(header, rows)


def _rank(permutation: dict[str, Any]) -> str:
    """How many shuffles reach the real R2."""
    count = permutation["num_permutations"]
    kind = "all" if permutation["is_exact"] else "random"
    return f"{permutation['fraction_at_least']:.2%} of {count:,}\n({kind})"


def _correlations_table(summary: dict[str, Any]) -> str:
    """Rank correlations of the test error with three measures."""
    rows = []
    for selection, norm, part in _entries(summary):
        cells = [f"{selection_name(selection)}, {norm_name(norm)}"]
        for measure in _MEASURE_NAMES:
            value = part["test_error_correlations"][measure]
            cells.append(
                f"{_number(value['spearman'])} / {_number(value['kendall'])}" if value else "–"
            )
        rows.append(cells)
    note = "<p class=\"quiet\">Spearman's ρ / Kendall's τ of the test error with each measure.</p>"
    return note + _table(["Networks at", *_MEASURE_NAMES.values()], rows)


def _stopping(run_dir: Path) -> list[str]:
    """Which epochs the losses would have stopped at; nothing in a run without test losses."""
    if not (run_dir / METRICS_FILE).exists():
        return []
    stops = stopping_epochs(read_metrics(run_dir))
    if not stops:
        return []
    note = (
        '<p class="quiet">The epoch of the least training loss, normalised and as trained, among '
        "those on true labels at which the test loss was measured; training losses are means over "
        "the epoch.</p>"
    )
    return ["<h2>When to stop</h2>", note + _list(describe_stopping(stops).splitlines())]


def _members(headline: tuple[str, str, dict[str, Any]], rows: Sequence[ResultRow]) -> str:
    """One line per network of the headline's selection and norm, and who is left out, why."""
    selection, norm, part = headline
    table = _table(
        [
            "Member",
            "Family",
            "Level",
            "Seed",
            "Epoch",
            "Train\nloss",
            "Train\nerror",
            "Test\nloss",
            "Test\nerror",
            "Product\nof norms",
            "Normalised\ntrain loss",
            "Normalised\ntest loss",
        ],
        [
            [
                str(row.member),
                row.family,
                f"{row.level:g}",
                str(row.seed),
                str(row.epoch),
                _number(row.train_loss),
                f"{row.train_error:.2%}",
                _number(row.test_loss),
                f"{row.test_error:.2%}",
                _number(row.product_norm),
                f"{row.normalized_train_loss:.6f}",
                f"{row.normalized_test_loss:.6f}",
            ]
            for row in rows
            if (row.selection, row.norm) == (selection, norm)
        ],
    )
    where = f"{selection_name(selection)}, {norm_name(norm)}; losses in nats."
    lines = [f"Left out: {entry['member']}, {entry['reason']}" for entry in part["left_out"]]
    lines += [f"Training error above zero: {name}" for name in part["not_interpolating"]]
    return f'<p class="quiet">{_text(where)}</p>' + table + _list(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _list(lines: Sequence[str]) -> str:
    """An HTML list, nothing if it is empty; every line is escaped."""
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _image(path: Path) -> str:
    """A PNG file embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{_text(path.stem)}" src="data:image/png;base64,{data}">'


def _collapsed(title: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def _estimate(value: float, interval: Sequence[float]) -> str:
    """A value, with its interval on the line below."""
    low, high = interval
    return f"{_number(value)}\n[{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    """A number with five significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:#.5g}".rstrip(".")


def _text(value: Any) -> str:
    """Text from anywhere, safe to stand in HTML."""
    return html.escape(str(value))
