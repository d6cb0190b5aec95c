"""The figures of `experiments.explain`, drawn from the explanations alone."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

from normjax.controls.explain import MEASURE_NAMES, Explanation, NetworkControls
from normjax.controls.logits import LogitExplanation
from normjax.plots.style import (
    LINE_COLOR,
    STYLE,
    TEST_COLOR,
    TRAIN_COLOR,
    digits,
    join_title,
    new_figure,
    set_linear_ticks,
)
from normjax.results.summary import norm_name, selection_name
from normjax.statistics.regression import fit_line

_SIZE = (13.2, 8.2)  # inches
_QUIET = "#9a9a9a"
_BOX = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}
_RANDOM_LABELS = "RL"
_LEAST_UNEXPLAINED = 1e-7  # of 1 - R², where the axis ends
DIVISOR_NAMES = {
    "product_norm": "Product of norms",
    "balanced": "Product of norms after balancing",
    "last_layer": "Norm of the last layer only",
    "rms": "Root mean square of the logits",
    "one_norm": "One norm for all networks",
}


def plot_line(found: Explanation, dataset_label: str = "") -> Figure:
    """The line beside its controls from results.csv: six panels.

    Raises:
      ValueError: no network.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = new_figure(_title(found, found.networks, dataset_label), _SIZE, 2, 3)
        for draw, axes in zip(
            (_draw_line, _draw_r2, _draw_ratio, _draw_prediction, _draw_ranking, _draw_influence),
            panels,
            strict=True,
        ):
            draw(axes, found)
        _add_legend(figure, found.networks)
    return figure


def plot_logits(found: Explanation, logits: LogitExplanation, dataset_label: str = "") -> Figure:
    """The line under other divisors and temperatures, and beside sampling error: six panels."""
    with matplotlib.rc_context(STYLE):
        networks = _of_true_labels(found)
        figure, panels = new_figure(_title(found, networks, dataset_label), _SIZE, 2, 3)
        _draw_temperatures(panels[0], logits)
        names = [name for name in DIVISOR_NAMES if name != "product_norm"]
        for axes, name in zip(panels[1:5], names, strict=True):
            _draw_divisor(axes, found, logits, name)
        _draw_sampling(panels[5], logits)
        _add_legend(figure, networks)
    return figure


def _draw_line(axes: Axes, found: Explanation) -> None:
    """Normalized test against training loss, less ln K, with the free and the anchored line."""
    x, y = _columns(found, "train_excess", "test_excess")
    _draw_stars(axes, x, y, found.networks)
    ends = np.array([x.min(), max(x.max(), 0)])
    if found.fit:
        line = fit_line(x, y)
        axes.plot(ends, line.predict(ends), color=LINE_COLOR, lw=1.3, label="Least squares")
    if found.num_random_labels and found.fit_without_random_labels:
        chosen = [not network.has_random_labels for network in found.networks]
        line = fit_line(x[chosen], y[chosen])
        label = f"Without {_RANDOM_LABELS}: R² {line.r2:.5f}"
        axes.plot(ends, line.predict(ends), "--", color=LINE_COLOR, lw=1.1, label=label)
    if found.anchored_fit:
        slope = found.anchored_fit.slope
        axes.plot(ends, slope * ends, ":", color=TRAIN_COLOR, lw=1.6, label="Through (ln K, ln K)")
    axes.plot(0, 0, "+", color=LINE_COLOR, ms=9, mew=1.5, label="(ln K, ln K): no margins")
    axes.legend(loc="upper left", fontsize=8)
    text = f": R² {found.fit.r2:.5f}, slope {digits(found.fit.slope)}" if found.fit else ""
    axes.set_title(f"The line{text}")
    _label(axes, "Normalized training cross-entropy - ln K (nats)", "Normalized test - ln K (nats)")
    set_linear_ticks(axes.xaxis, 4)
    set_linear_ticks(axes.yaxis, 5)


def _draw_r2(axes: Axes, found: Explanation) -> None:
    """1 - R2 of the line and of what the shared divisor gives."""
    rows = []
    if found.raw_fit:
        rows.append(("Losses as trained", (found.raw_fit.r2,), _QUIET))
    if found.margin_shuffle:
        rows.append(
            ("Margins shuffled,\nnorms kept", found.margin_shuffle.r2_quantiles, TEST_COLOR)
        )
    if found.divisor_fit:
        rows.append(("Line in 1 / norm,\nno training loss", (found.divisor_fit.r2,), TEST_COLOR))
    if found.norm_permutation:
        name = "Norms shuffled,\nmargins kept"
        rows.append((name, found.norm_permutation.r2_quantiles, TRAIN_COLOR))
    if fit := found.fit_without_random_labels:
        rows.append(("The line", (fit.r2,), LINE_COLOR))
        axes.axvline(_unexplained(fit.r2), color=LINE_COLOR, lw=1, ls="--", zorder=1)
    for place, (_, r2, color) in enumerate(rows):
        values = [_unexplained(value) for value in r2]
        axes.plot([values[0], values[-1]], [place, place], color=color, lw=2.5, alpha=0.6)
        axes.plot(values[len(values) // 2], place, "o", color=color, ms=7)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xscale("log")
    axes.set_title(
        "How much the divisor gives" + (", without RL" if found.num_random_labels else "")
    )
    axes.set_xlabel("1 - R², log scale; bars: 5% to 95% of shuffles")


def _draw_ratio(axes: Axes, found: Explanation) -> None:
    """Raw test over training margin against the product norm."""
    networks = [n for n in _of_true_labels(found) if n.train_margin > 0]
    rho = np.array([network.product_norm for network in networks])
    ratio = np.array([network.test_margin / network.train_margin for network in networks])
    _draw_stars(axes, rho, ratio, networks)
    if found.ratio:
        spreads = found.ratio.spread, found.ratio.spread_if_unrelated
        label = "Mean; spread {:.1%},\nof unrelated margins {:.1%}".format(*spreads)
        axes.axhline(found.ratio.mean, color=LINE_COLOR, lw=1, ls="--", label=label)
        axes.legend(loc="best", fontsize=8, **_BOX)
    axes.set_title("Ratio of margins, free of the norms")
    axes.set_xscale("log")
    if rho.size and rho.max() < 100 * rho.min():
        subs = (1, 1.5, 2, 3, 5, 7) if rho.max() < 6 * rho.min() else (1, 2, 5)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    _label(axes, "Product of norms, log scale", "Test margin / training margin")


def _draw_prediction(axes: Axes, found: Explanation) -> None:
    """Test margins of networks left out, predicted with and without their training losses."""
    prediction = found.prediction
    axes.set_title("Test margins of networks left out")
    _label(axes, "Test margin", "Predicted test margin")
    if prediction is None:
        _say(axes, found.reasons["prediction"])
        return
    actual = np.array(prediction.actual)
    ends = [actual.min(), actual.max()]
    axes.plot(ends, ends, color=LINE_COLOR, lw=1)
    for values, marker, color, name, rmse in (
        (prediction.divisor, "s", TEST_COLOR, "Norm only", prediction.divisor_rmse),
        (prediction.line, "o", TRAIN_COLOR, "Norm and training loss", prediction.line_rmse),
    ):
        label = f"{name}: RMSE {rmse:.2g}"
        axes.plot(actual, values, marker, color=color, ms=6, mfc="none", mew=1.4, label=label)
    axes.legend(loc="best", fontsize=8, **_BOX)
    if prediction.skill is not None:
        axes.set_title(f"Margins of {prediction.left_out} left out: skill {prediction.skill:.2f}")


def _draw_ranking(axes: Axes, found: Explanation) -> None:
    """Kendall's tau-b of four measures with the test error."""
    axes.set_title("What ranks the test error")
    axes.set_xlabel("Kendall's tau-b with the test error, 95% intervals")
    if found.error_ranking is None:
        _say(axes, found.reasons["error_ranking"])
        return
    for place, (name, ranking) in enumerate(reversed(found.error_ranking.items())):
        color = TRAIN_COLOR if name == "normalized_train_loss" else _QUIET
        axes.plot(ranking.kendall_interval, [place, place], color=color, lw=2.5, alpha=0.6)
        axes.plot(ranking.kendall, place, "o", color=color, ms=7)
    names = [MEASURE_NAMES[name].capitalize() for name in reversed(found.error_ranking)]
    axes.set_yticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlim(-1.05, 1.05)
    axes.axvline(0, color=LINE_COLOR, lw=1)


def _draw_influence(axes: Axes, found: Explanation) -> None:
    """Cook's distance of each network in the line."""
    networks = [n for n in found.networks if n.cooks_distance is not None]
    x = np.array([network.train_excess for network in networks])
    distances = np.array([network.cooks_distance for network in networks])
    axes.vlines(x, 0, distances, color=_QUIET, lw=1)
    _draw_stars(axes, x, distances, networks)
    axes.set_title("Influence of each network on the line")
    _label(axes, "Normalized training cross-entropy - ln K (nats)", "Cook's distance")
    set_linear_ticks(axes.xaxis, 4)
    if distances.size and distances.max() > 0.7:
        axes.axhline(1, color=LINE_COLOR, lw=1, ls="--")


def _draw_temperatures(axes: Axes, logits: LogitExplanation) -> None:
    """1 - R2 of lines whose logits are divided by a further, common temperature."""
    for name, color, label in (
        ("product_norm", TRAIN_COLOR, "Each network's own norm"),
        ("one_norm", TEST_COLOR, "One norm for all"),
    ):
        known = [
            (temperature, _unexplained(r2))
            for temperature, r2 in zip(
                logits.temperatures, logits.temperature_r2[name], strict=True
            )
            if r2 is not None
        ]
        temperatures, values = zip(*known, strict=True) if known else ((), ())
        axes.plot(temperatures, values, "o-", color=color, ms=4, label=label)
    axes.axvline(1, color=LINE_COLOR, lw=1, ls="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="best", fontsize=8, **_BOX)
    axes.set_title("Logits over norm x temperature")
    _label(axes, "Temperature, log scale; 1: normalized, far left: as trained", "1 - R², log scale")


def _draw_divisor(axes: Axes, found: Explanation, logits: LogitExplanation, name: str) -> None:
    """The line with another divisor of the logits; the balanced one over the paper's."""
    is_near_chance = name in ("balanced", "one_norm")  # less ln K, digits are left to be read
    chance, unit = (found.ln_num_classes, "- ln K (nats)") if is_near_chance else (0, "(nats)")
    axes.set_title(DIVISOR_NAMES[name])
    _label(axes, f"Training cross-entropy {unit}", f"Test cross-entropy {unit}")
    if logits.fits.get(name) is None:
        _say(axes, logits.reasons[f"fits.{name}"])
        return
    before = ["product_norm"] if name == "balanced" and logits.fits["product_norm"] else []
    for divisor in [*before, name]:
        fit = logits.fits[divisor]
        x, y = map(np.array, logits.points[divisor])
        ends = np.array([x.min(), x.max()])
        color = LINE_COLOR if divisor == name else _QUIET
        axes.plot(ends - chance, fit.predict(ends) - chance, color=color, lw=1.2, zorder=1.5)
        if divisor == name:
            _draw_stars(axes, x - chance, y - chance, _of_true_labels(found))
        else:
            label = f"Before: R² {fit.r2:.5f}"
            axes.plot(x - chance, y - chance, "o", color=color, ms=6, mfc="none", label=label)
            axes.legend(loc="upper left", fontsize=8)
    axes.set_title(f"{DIVISOR_NAMES[name]}: R² {logits.fits[name].r2:.5f}", fontsize=9.5)
    set_linear_ticks(axes.xaxis, 4)
    set_linear_ticks(axes.yaxis, 5)


def _draw_sampling(axes: Axes, logits: LogitExplanation) -> None:
    """The line's RMSE beside what the finite test set gives."""
    axes.set_title("The line's error and the test set's")
    if logits.sampling is None:
        _say(axes, logits.reasons["sampling"])
        return
    sampling = logits.sampling
    bars = (
        ("One test loss,\nstandard error", sampling.of_a_loss, _QUIET),
        ("RMSE that this leaves,\nimages in common", sampling.of_a_residual, TEST_COLOR),
        ("RMSE of the line", sampling.rmse, TRAIN_COLOR),
    )
    axes.barh(range(3), [value for _, value, _ in bars], 0.55, color=[color for *_, color in bars])
    for place, (_, value, _) in enumerate(bars):
        axes.annotate(f" {value:.2g}", (value, place), va="center")
    axes.set_yticks(range(3), [name for name, _, _ in bars])
    axes.margins(x=0.22)
    axes.set_xlabel(f"Nats; {sampling.num_examples:,} test examples")
    set_linear_ticks(axes.xaxis, 4)


def _draw_stars(
    axes: Axes, x: np.ndarray, y: np.ndarray, networks: Sequence[NetworkControls]
) -> None:
    """The networks, colored by level."""
    colors = _level_colors(networks)
    for name, color in colors.items():
        chosen = np.array([_level_name(network) == name for network in networks])
        axes.plot(x[chosen], y[chosen], "*", color=color, ms=10, mec="white", mew=0.5, zorder=3)
    axes.margins(0.09)


def _add_legend(figure: Figure, networks: Sequence[NetworkControls]) -> None:
    """One legend of the levels under all panels."""
    colors = _level_colors(networks)
    handles = [
        matplotlib.lines.Line2D([], [], marker="*", ls="", color=color, ms=10, mec="white")
        for color in colors.values()
    ]
    figure.legend(
        handles, list(colors), title="Level", loc="outside lower center", ncols=min(len(colors), 15)
    )


def _level_colors(networks: Sequence[NetworkControls]) -> dict[str, tuple]:
    """A color for each level in order of appearance, random labels last and apart."""
    names = dict.fromkeys(_level_name(network) for network in networks)
    levels = [name for name in names if name != _RANDOM_LABELS]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.87, len(levels)))
    colors = dict(zip(levels, map(tuple, shades), strict=True))
    if _RANDOM_LABELS in names:
        colors[_RANDOM_LABELS] = to_rgba(TEST_COLOR)
    return colors


def _level_name(network: NetworkControls) -> str:
    """The level as in the paper's figures."""
    return _RANDOM_LABELS if network.has_random_labels else network.level.split(" ")[-1]


def _of_true_labels(found: Explanation) -> list[NetworkControls]:
    """The networks whose margins can be compared."""
    return [network for network in found.networks if not network.has_random_labels]


def _columns(found: Explanation, *names: str) -> list[np.ndarray]:
    """Fields of all networks as vectors."""
    return [np.array([getattr(network, name) for network in found.networks]) for name in names]


def _unexplained(r2: float) -> float:
    """1 - R2, with an end for a logarithmic axis."""
    return max(1 - r2, _LEAST_UNEXPLAINED)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _say(axes: Axes, reason: str) -> None:
    """A panel that has nothing to show says why."""
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def _title(found: Explanation, networks: Sequence[NetworkControls], dataset_label: str) -> str:
    """Which networks, and the verdict on them."""
    count = f"{len(networks)} networks"
    where = [selection_name(found.selection), norm_name(found.norm)]
    return join_title([dataset_label, count, *where, f"verdict: {found.verdict}"])
