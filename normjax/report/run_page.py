"""The page that shows a run: `report.html`, one file that opens offline."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from normjax.controls.explain import explain_line
from normjax.files import one_line, read_object, read_text, replacing
from normjax.plots.curves import METRICS_FILE, describe_stopping, read_metrics, stopping_epochs
from normjax.report.html_parts import (
    bullets,
    collapsed,
    escaped,
    estimate,
    image,
    number,
    page,
    table,
)
from normjax.results.rows import RESULTS_FILE, ResultRow, on_own_labels, read_results
from normjax.results.summary import SUMMARY_FILE, figure_stem, groups, norm_name, selection_name
from normjax.training.record import REPORT_FILE

_MEASURE_NAMES = {
    "product_norm": "product of norms",
    "normalized_train_loss": "normalized training loss",
    "train_loss": "training loss as trained",
}


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
    if not rows:
        raise ValueError(f"{run_dir / RESULTS_FILE}: there are no networks in it")
    summary = read_object(run_dir / SUMMARY_FILE)
    run = _pretty(run_dir / "run.json") if (run_dir / "run.json").exists() else ""
    flags = read_text(run_dir / "flags.txt") if (run_dir / "flags.txt").exists() else ""
    stopping = _stopping(run_dir)
    try:
        parts = _findings(run_dir, rows, summary, stopping)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{run_dir / SUMMARY_FILE}: not the summary of a run ({reason})") from None
    parts += [
        "<h2>Settings and versions</h2>",
        f"<pre>{escaped(flags)}</pre>" if flags else "",
        f"<pre>{escaped(run)}</pre>" if run else "",
    ]
    text = page(rows[0].experiment, parts)
    with replacing(run_dir / REPORT_FILE) as temporary:
        # Half a character, which a file's name or JSON can hold, has no place in UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return run_dir / REPORT_FILE


def _findings(
    run_dir: Path, rows: Sequence[ResultRow], summary: dict[str, Any], stopping: Sequence[str]
) -> list[str]:
    """The page without its end; a summary that isn't one raises whatever it makes fail."""
    own_rows = on_own_labels(rows)
    num_members = len({row.member for row in own_rows})
    found = {(selection, norm) for selection, norm, _ in _entries(summary)}
    if found != set(groups(own_rows)) or summary["num_members"] != num_members:
        raise ValueError(f"{RESULTS_FILE} has other networks, selections or norms")
    figures = sorted((run_dir / "figures").glob("*.png"))
    headline = _headline(summary)
    headline_path = _choose_figure(headline, figures)
    return [
        f"<h1>{escaped(rows[0].experiment)}</h1>",
        _claim(headline, num_members),
        _headline_figure(headline_path),
        _verdict(rows, headline),
        "<h2>Fits</h2>",
        _fits_table(summary),
        "<h2>Is the line real?</h2>",
        _controls(summary),
        "<h2>What goes with the test error</h2>",
        _correlations_table(summary),
        *stopping,
        "<h2>Networks</h2>",
        _members(headline, rows),
        "<h2>Further figures</h2>",
        *(collapsed(path.stem, image(path)) for path in figures if path != headline_path),
    ]


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
            f'<p class="claim">No line could be fitted to the {num_members} networks of this '
            f"run: {escaped(part['reasons']['normalized_fit'])}.</p>"
        )
    text = (
        f"Across {fit['n']:d} networks ({escaped(selection_name(selection))}), the training loss "
        f"of the network normalized layer by layer ({escaped(norm_name(norm))}) predicts its test "
        f"loss along a straight line with R² = <strong>{number(fit['r2'])}</strong>"
    )
    text += f"; as trained, R² is {number(raw['r2'])}. " if raw else ". "
    if permutation:
        text += (
            "The shared divisor alone, with the norms shuffled among the networks, gives "
            f"R² = {number(permutation['r2_quantiles'][1])} (median); "
            f"{permutation['fraction_at_least']:.2%} of the orders, the real one counted, reach "
            "the R² of the real one."
        )
    return f'<p class="claim">{text}</p>'


def _verdict(rows: Sequence[ResultRow], headline: tuple[str, str, dict[str, Any]]) -> str:
    """Whether the headline's line is more than its shared divisor, under the figure."""
    try:
        found = explain_line(rows, *headline[:2])
    except ValueError:  # no network with finite losses; the claim says so
        return ""
    return (
        '<p class="claim">Is the line more than two losses over one divisor? Verdict: '
        f"<strong>{escaped(found.verdict)}</strong>: {escaped(found.because)}.</p>"
    )


def _choose_figure(
    headline: tuple[str, str, dict[str, Any]], figures: Sequence[Path]
) -> Path | None:
    """The headline's figure of normalized beside raw losses; without it, the first there is."""
    stem = figure_stem("normalized_and_raw", *headline[:2])
    return next((path for path in figures if path.stem == stem), next(iter(figures), None))


def _headline_figure(path: Path | None) -> str:
    """The figure under the claim."""
    if path is None:
        return '<p class="quiet">This run has no figures.</p>'
    caption = (
        "Each star is a network, with its level beside it. Left: test against training loss of the "
        "normalized networks, with the least-squares line. Right: the same networks as trained."
    )
    if not path.stem.startswith("normalized_and_raw"):
        caption = path.stem
    return f"<figure>{image(path)}<figcaption>{escaped(caption)}</figcaption></figure>"


def _fits_table(summary: dict[str, Any]) -> str:
    """Lines of test loss on training loss, normalized and as trained."""
    rows = []
    seen = set()
    for selection, norm, part in _entries(summary):
        fits = [(f"normalized,\n{norm_name(norm)}", "normalized_fit")]
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
                    number(fit["r2"]),
                    number(fit["adjusted_r2"]),
                    number(fit["rmse"]),
                    estimate(fit["slope"], fit["slope_interval"]),
                    estimate(fit["intercept"], fit["intercept_interval"]),
                ]
            )
    header = ["Selection", "Losses", "Networks", "R²", "Adjusted R²", "RMSE (nats)"]
    note = "<p>Least-squares lines of test loss on training loss, with 95% intervals.</p>"
    reasons = [
        f"{selection_name(selection)}, {norm_name(norm)}: no {name}: {reason}"
        for selection, norm, part in _entries(summary)
        for name, reason in part["reasons"].items()
    ]
    return note + table([*header, "Slope", "Intercept"], rows) + bullets(reasons)


def _controls(summary: dict[str, Any]) -> str:
    """The permutation control and the anchored line, with their meaning in words."""
    explanation = (
        "<p>Both axes of the normalized plot are margins divided by the same product of norms, so "
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
            shuffled = estimate(middle, (low, high))
            cells += [number(permutation["r2"]), shuffled, _rank(permutation)]
        else:
            cells += ["–"] * 3
        if anchored:
            slope = estimate(anchored["slope"], anchored["slope_interval"])
            cells += [slope, number(anchored["r2"])]
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
    return explanation + table(header, rows)


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
                f"{number(value['spearman'])} / {number(value['kendall'])}" if value else "–"
            )
        rows.append(cells)
    note = "<p class=\"quiet\">Spearman's ρ / Kendall's τ of the test error with each measure.</p>"
    return note + table(["Networks at", *_MEASURE_NAMES.values()], rows)


def _stopping(run_dir: Path) -> list[str]:
    """Which epochs the losses would have stopped at; nothing in a run without test losses."""
    if not (run_dir / METRICS_FILE).exists():
        return []
    stops = stopping_epochs(read_metrics(run_dir))
    if not stops:
        return []
    note = (
        '<p class="quiet">The epoch of the least training loss, normalized and as trained, among '
        "those on true labels at which the test loss was measured; training losses are means over "
        "the epoch.</p>"
    )
    return ["<h2>When to stop</h2>", note + bullets(describe_stopping(stops).splitlines())]


def _members(headline: tuple[str, str, dict[str, Any]], rows: Sequence[ResultRow]) -> str:
    """One line per network of the headline's selection and norm, and who is left out, why."""
    selection, norm, part = headline
    networks = table(
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
            "Normalized\ntrain loss",
            "Normalized\ntest loss",
        ],
        [
            [
                str(row.member),
                row.family,
                f"{row.level:g}",
                str(row.seed),
                str(row.epoch),
                number(row.train_loss),
                f"{row.train_error:.2%}",
                number(row.test_loss),
                f"{row.test_error:.2%}",
                number(row.product_norm),
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
    return f'<p class="quiet">{escaped(where)}</p>' + networks + bullets(lines)


def _pretty(path: Path) -> str:
    """A JSON object as a page shows it."""
    try:
        return json.dumps(read_object(path), indent=2, ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"{path}: too deeply nested to be shown") from None
