"""The figures of `experiments.explain`."""

from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

from normjax.controls.explain import MEASURE_NAMES, Explanation, NetworkControls
from normjax.controls.logits import LogitExplanation
from normjax.formatting import fixed, number, percent
from normjax.norms import norm_name
from normjax.plots.levels import (
    RANDOM_LABELS,
    Level,
    add_level_legend,
    draw_stars,
    level_colors,
)
from normjax.plots.panels import draw_line
from normjax.plots.style import (
    LINE_COLOR,
    QUIET_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    join_title,
    new_figure,
    set_linear_ticks,
    write_reason,
)
from normjax.results.table import selection_name

_SIZE = (13.2, 8.2)  # inches
_LEAST_UNEXPLAINED = 1e-7  # smallest 1 - R² on a logarithmic axis
DIVISOR_NAMES = {
    "product_norm": "Product of norms",
    "balanced": "Product of norms after balancing",
    "last_layer": "Norm of the last layer only",
    "rms": "Root mean square of the logits",
    "one_norm": "One norm for all networks",
}


def plot_line(found: Explanation, dataset_label: str = "") -> Figure:
    """Draw the line and its controls from results.csv, in six panels.

    Args:
      found: the explanation of the networks of one selection and norm.
      dataset_label: name of the data set, for the title.

    Raises:
      ValueError: no network converged.
    """
    if not found.num_networks:
        raise ValueError("no network with finite losses to draw")
    with matplotlib.style.context(STYLE):
        figure, panels = new_figure(_title(found, found.networks, dataset_label), _SIZE, 2, 3)
        for draw, axes in zip(
            (_draw_fits, _draw_divisor, _draw_content, _draw_ratio, _draw_ranking, _draw_influence),
            panels,
            strict=True,
        ):
            draw(axes, found)
        add_level_legend(figure, _colors(found), "Level", 15)
    return figure


def plot_logits(found: Explanation, logits: LogitExplanation, dataset_label: str = "") -> Figure:
    """Draw the line for other divisors and temperatures, and its sampling error.

    Args:
      found: the explanation of the networks.
      logits: the controls from the logits of the networks with true labels.
      dataset_label: name of the data set, for the title.
    """
    with matplotlib.style.context(STYLE):
        networks = _of_true_labels(found)
        figure, panels = new_figure(_title(found, networks, dataset_label), _SIZE, 2, 3)
        _draw_temperatures(panels[0], logits)
        names = [name for name in DIVISOR_NAMES if name != "product_norm"]
        for axes, name in zip(panels[1:5], names, strict=True):
            _draw_other(axes, found, logits, name)
        _draw_sampling(panels[5], logits)
        add_level_legend(figure, level_colors(map(_level, networks)), "Level", 15)
    return figure


def _draw_fits(axes: Axes, found: Explanation) -> None:
    """Draw normalized test excess against training excess, with free and anchored lines."""
    x, y = (_column(found.networks, f"{split}_excess") for split in ("train", "test"))
    _draw_networks(axes, x, y, found, found.networks)
    ends, ln_k = np.array([x.min(), max(x.max(), 0)]), found.ln_num_classes
    if found.fit:
        draw_line(axes, found.fit, ends, ln_k, label="Least squares")
    if found.num_random_labels and (fit := found.fit_without_random_labels):
        label = f"Without {RANDOM_LABELS}: R² {fixed(fit.r2, 5)}"
        draw_line(axes, fit, ends, ln_k, ls="--", lw=1.1, label=label)
    if found.anchored_fit:
        slope = found.anchored_fit.slope
        axes.plot(ends, slope * ends, ":", color=TRAIN_COLOR, lw=1.6, label="Through (ln K, ln K)")
    axes.plot(0, 0, "+", color=LINE_COLOR, ms=9, mew=1.5, label="(ln K, ln K): zero margins")
    axes.legend(loc="upper left", fontsize=8)
    text = "The line"
    if found.fit:
        text += f": R² {fixed(found.fit.r2, 5)}, slope {number(found.fit.slope, 4)}"
    axes.set_title(text)
    _label(axes, "Normalized training cross-entropy - ln K (nats)", "Normalized test - ln K (nats)")
    set_linear_ticks(axes.xaxis, 4)
    set_linear_ticks(axes.yaxis, 5)


def _draw_divisor(axes: Axes, found: Explanation) -> None:
    """Draw left-out test margins as the line and the best curve in the norms predict them."""
    divisor = found.divisor
    axes.set_title("Left-out test margins")
    _label(axes, "Test margin", "Predicted test margin")
    if divisor is None:
        write_reason(axes, found.reasons["divisor"])
        return
    actual = np.array(divisor.actual)
    ends = [actual.min(), actual.max()]
    axes.plot(ends, ends, color=LINE_COLOR, lw=1)
    for values, marker, color, name, rmse in (
        (divisor.best, "s", TEST_COLOR, f"Norms alone ({divisor.rival})", None),
        (divisor.line, "o", TRAIN_COLOR, "The line", divisor.rmse),
    ):
        label = f"{name}: RMSE {number(rmse or divisor.rival_rmse[divisor.rival])}"
        axes.plot(actual, values, marker, color=color, ms=6, mfc="none", mew=1.4, label=label)
    axes.legend(loc="best", fontsize=8)
    low, high = (fixed(end) for end in divisor.interval)
    skill = f"skill {fixed(divisor.skill)} ({low} to {high})"
    axes.set_title(f"Left-out {divisor.left_out}: {skill}")


def _draw_content(axes: Axes, found: Explanation) -> None:
    """Draw what level and norm leave unexplained in the margins."""
    content = found.content
    axes.set_title("At equal level and norm")
    _label(axes, "Training margin, rest", "Test margin, rest")
    if content is None:
        write_reason(axes, found.reasons["content"])
        return
    x, y = np.array(content.train), np.array(content.test)
    _draw_networks(axes, x, y, found, _of_true_labels(found))
    ends = np.array([x.min(), x.max()])
    low, high = (fixed(end) for end in content.interval)
    label = f"r {fixed(content.correlation)} (95%: {low} to {high})"
    line = ends * (x @ y) / (x @ x)
    axes.plot(ends, line, color=LINE_COLOR, lw=1.3, zorder=1.5, label=label)
    axes.margins(y=0.25)  # room for the legend
    axes.legend(loc="upper left", fontsize=8)
    axes.set_title(f"At equal level and norm: p = {number(content.p_value, 2)}")
    set_linear_ticks(axes.xaxis, 4)
    set_linear_ticks(axes.yaxis, 5)


def _draw_ratio(axes: Axes, found: Explanation) -> None:
    """Draw the ratio of raw test to training margin against the product norm."""
    networks = [n for n in _of_true_labels(found) if n.train_margin > 0]
    rho = _column(networks, "product_norm")
    ratio = _column(networks, "test_margin") / _column(networks, "train_margin")
    _draw_networks(axes, rho, ratio, found, networks)
    if found.ratio:
        label = (
            f"Mean; spread {percent(found.ratio.spread)},\n"
            f"unrelated margins: {percent(found.ratio.spread_if_unrelated)}"
        )
        axes.axhline(found.ratio.mean, color=LINE_COLOR, lw=1, ls="--", label=label)
        axes.legend(loc="best", fontsize=8)
    axes.set_title("Ratio of margins, without the norms")
    axes.set_xscale("log")
    if rho.size and rho.max() < 100 * rho.min():
        subs = (1, 1.5, 2, 3, 5, 7) if rho.max() < 6 * rho.min() else (1, 2, 5)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    _label(axes, "Product of norms, log scale", "Test margin / training margin")


def _draw_ranking(axes: Axes, found: Explanation) -> None:
    """Draw Kendall's tau-b of the measures with the test error."""
    axes.set_title("What ranks the test error")
    if found.error_ranking is None:
        write_reason(axes, found.reasons["error_ranking"])
        return
    rankings = dict(reversed(found.error_ranking.items()))
    for place, (name, ranking) in enumerate(rankings.items()):
        color = TRAIN_COLOR if name == "normalized_train_loss" else QUIET_COLOR
        _draw_interval(axes, ranking.kendall_interval, ranking.kendall, place, color)
    has_intervals = any(ranking.kendall_interval for ranking in rankings.values())
    intervals = ", 95% intervals" if has_intervals else ""
    axes.set_xlabel(f"Kendall's tau-b with the test error{intervals}")
    _name_rows(axes, [MEASURE_NAMES[n].capitalize().replace(" ", "\n", 1) for n in rankings])
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlim(-1.05, 1.05)
    axes.axvline(0, color=LINE_COLOR, lw=1)


def _draw_influence(axes: Axes, found: Explanation) -> None:
    """Draw Cook's distance of each network, and of each level, or the random labels, as a whole."""
    axes.set_title("Influence on the line")
    if found.influence is None:
        write_reason(axes, found.reasons["influence"])
        return
    groups = found.influence.group
    rows = {name: place for place, name in enumerate(groups)}
    known = [n for n in found.networks if n.cooks_distance is not None]
    places = np.array([rows[f"{n.family} {n.level:g}"] for n in known], float)
    _draw_networks(axes, _column(known, "cooks_distance"), places, found, known)
    values = np.array(list(groups.values()))
    axes.plot(values, list(rows.values()), "|", color=LINE_COLOR, ms=16, mew=2.2)
    axes.axvline(1, color=LINE_COLOR, lw=1, ls="--")
    axes.set_xscale("log")
    _name_rows(axes, [name.replace("_", " ") for name in rows])
    axes.set_xlabel("Cook's distance; stars: single, bars: together")


def _draw_temperatures(axes: Axes, logits: LogitExplanation) -> None:
    """Draw 1 - R2 of the lines when all logits are also divided by a common temperature."""
    temperatures = np.array(logits.temperatures)
    axes.set_title("Logits over norm x temperature")
    if not np.isfinite(np.array(list(logits.temperature_r2.values()), np.float64)).any():
        write_reason(axes, logits.reasons.get("fits.product_norm", "no line has an R²"))
        return
    for name, color, label in (
        ("product_norm", TRAIN_COLOR, "Each network's own norm"),
        ("one_norm", TEST_COLOR, "One norm for all"),
    ):
        r2 = np.array(logits.temperature_r2[name], np.float64)  # NaN without a line
        is_known = np.isfinite(r2)
        values = [_unexplained(value) for value in r2[is_known]]
        axes.plot(temperatures[is_known], values, "o-", color=color, ms=4, label=label)
    axes.axvline(1, color=LINE_COLOR, lw=1, ls="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="best", fontsize=8)
    _label(axes, "Temperature, log scale; 1: normalized, far left: as trained", "1 - R², log scale")


def _draw_other(axes: Axes, found: Explanation, logits: LogitExplanation, name: str) -> None:
    """Draw the line with another divisor of the logits; "balanced" includes the paper's."""
    # Losses too close to ln K are shown as excess.
    ln_k = found.ln_num_classes if name in ("balanced", "one_norm") else None
    unit = "(nats)" if ln_k is None else "- ln K (nats)"
    axes.set_title(DIVISOR_NAMES[name])
    _label(axes, f"Training cross-entropy {unit}", f"Test cross-entropy {unit}")
    shown = ("product_norm", name) if name == "balanced" else (name,)
    fits = {divisor: fit for divisor in shown if (fit := logits.fits.get(divisor)) is not None}
    if name not in fits:
        write_reason(axes, logits.reasons[f"fits.{name}"])
        return
    for divisor, fit in fits.items():
        x, y = (np.array(losses) - (ln_k or 0.0) for losses in logits.points[divisor])
        color = LINE_COLOR if divisor == name else QUIET_COLOR
        draw_line(axes, fit, np.array([x.min(), x.max()]), ln_k, color=color, lw=1.2)
        if divisor == name:
            _draw_networks(axes, x, y, found, _of_true_labels(found))
        else:
            label = f"Before: R² {fixed(fit.r2, 5)}"
            axes.plot(x, y, "o", color=color, ms=6, mfc="none", label=label)
            axes.legend(loc="upper left", fontsize=8)
    axes.set_title(f"{DIVISOR_NAMES[name]}: R² {fixed(fits[name].r2, 5)}", fontsize=9.5)
    set_linear_ticks(axes.xaxis, 4)
    set_linear_ticks(axes.yaxis, 5)


def _draw_sampling(axes: Axes, logits: LogitExplanation) -> None:
    """Draw the RMSE of the line and the sampling error of the test set."""
    axes.set_title("Error of the line and sampling error")
    if logits.sampling is None:
        write_reason(axes, logits.reasons["sampling"])
        return
    sampling = logits.sampling
    bars = (
        ("One test loss,\nstandard error", sampling.of_a_loss, QUIET_COLOR),
        ("RMSE from sampling,\nshared images", sampling.of_a_residual, TEST_COLOR),
        ("RMSE of the line", sampling.rmse, TRAIN_COLOR),
    )
    axes.barh(range(3), [value for _, value, _ in bars], 0.55, color=[color for *_, color in bars])
    for place, (_, value, _) in enumerate(bars):
        axes.annotate(f" {number(value, 2)}", (value, place), va="center")
    _name_rows(axes, [name for name, _, _ in bars])
    axes.margins(x=0.22)
    axes.set_xlabel(f"Nats; {number(sampling.num_examples)} test examples")
    set_linear_ticks(axes.xaxis, 4)


def _draw_networks(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    found: Explanation,
    networks: Sequence[NetworkControls],
) -> None:
    """Draw networks in the colors of the figure's legend."""
    draw_stars(axes, x, y, [_level(network) for network in networks], _colors(found))


def _draw_interval(
    axes: Axes, ends: Sequence[float] | None, value: float, place: int, color: str
) -> None:
    """Draw a dot in a row of the panel, with a bar for the interval, if any."""
    if ends is not None:
        axes.plot(ends, [place, place], color=color, lw=2.5, alpha=0.6)
    axes.plot(value, place, "o", color=color, ms=7)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _colors(found: Explanation) -> dict[Level, tuple]:
    return level_colors(map(_level, found.networks))


def _level(network: NetworkControls) -> Level:
    return None if network.has_random_labels else network.level


def _of_true_labels(found: Explanation) -> list[NetworkControls]:
    """Return the networks with true labels."""
    return [network for network in found.networks if not network.has_random_labels]


def _column(networks: Sequence[NetworkControls], name: str) -> np.ndarray:
    return np.array([getattr(network, name) for network in networks])


def _unexplained(r2: float) -> float:
    """Return 1 - R2, clipped for a logarithmic axis."""
    return max(1 - r2, _LEAST_UNEXPLAINED)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _title(found: Explanation, networks: Sequence[NetworkControls], dataset_label: str) -> str:
    """Return the title: the networks and the verdict."""
    count = f"{len(networks)} networks"
    where = [selection_name(found.selection), norm_name(found.norm)]
    return join_title([dataset_label, count, *where, f"verdict: {found.verdict}"])
