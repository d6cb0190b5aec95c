"""The tables of `experiments.explain` in Markdown."""

from collections.abc import Iterator, Sequence

from normjax.controls.explain import MEASURE_NAMES, Explanation
from normjax.controls.logits import LogitExplanation
from normjax.plots.explain import DIVISOR_NAMES
from normjax.results.summary import norm_name, selection_name
from normjax.statistics.regression import LineFit


def to_markdown(line: Explanation, logits: LogitExplanation | None, no_logits_because: str) -> str:
    """All that was found: the verdict, the controls one by one, the networks."""
    where = f"{selection_name(line.selection)}, {norm_name(line.norm)}"
    parts = [
        f"# Is the line real? {line.verdict.capitalize()}",
        f"{line.num_networks} networks ({line.num_random_labels} of random labels, "
        f"{line.num_diverged} more diverged); {where}. Losses in nats. Networks of random labels "
        "enter only the rows marked *.",
        line.text,
        "## Thresholds of the verdict",
        table(
            ["Threshold", "Value", "Reason"],
            [[name, f"{value:g}", reason] for name, (value, reason) in line.thresholds.items()],
        ),
        "## Controls from results.csv",
        table(["Control", "Found", "What it says"], line_controls(line)),
        "## Controls from the logits",
        f"None: {no_logits_because}"
        if logits is None
        else table(["Control", "Found", "What it says"], logit_controls(logits)),
        "## What ranks the test error",
        *_ranking(line),
        "## Networks",
        _networks(line),
        *_reasons({**line.reasons, **(logits.reasons if logits else {})}),
    ]
    return "\n\n".join(parts) + "\n"


def line_controls(line: Explanation) -> Iterator[list[str]]:
    """(control, found, what it says) of all that results.csv gives."""
    if line.fit:
        yield ["The line *", _line(line.fit), "what the paper's figures show"]
    if line.raw_fit:
        yield ["Losses as trained", _line(line.raw_fit), "without normalizing"]
    if line.fit_without_random_labels and line.num_random_labels:
        found = _line(line.fit_without_random_labels)
        yield ["Without random labels", found, "whether these few networks make the line"]
    if fit := line.anchored_fit:
        yield [
            "Through (ln K, ln K)",
            f"slope {_interval(fit.slope, fit.slope_interval)}, R² {fit.r2:.5f}",
            "one parameter: a constant ratio of margins",
        ]
    if line.divisor_fit:
        yield [
            "Line in 1 / product norm",
            f"R² {line.divisor_fit.r2:.5f}, RMSE {line.divisor_fit.rmse:.3g}",
            "the divisor alone; no training loss enters",
        ]
    if shuffle := line.margin_shuffle:
        yield [
            "Margins shuffled, norms kept",
            f"R² {_interval(shuffle.r2_quantiles[1], shuffle.r2_quantiles[::2])} (5% to 95%); the "
            f"line leaves {shuffle.unexplained:.3g} of the raw test margins' variance, shuffles "
            f"{_interval(shuffle.unexplained_quantiles[1], shuffle.unexplained_quantiles[::2])}; "
            f"p = {shuffle.p_value:.2g}",
            "the artifact itself: unrelated margins, shared norms. Decides",
        ]
    if permutation := line.norm_permutation:
        yield [
            "Norms shuffled, margins kept",
            _permutation(permutation),
            "whether margins go with norms; blind to a constant ratio of margins",
        ]
    if prediction := line.prediction:
        skill = "none" if prediction.skill is None else f"{prediction.skill:.3f}"
        yield [
            f"Test margins of {prediction.left_out} left out",
            f"RMSE {prediction.line_rmse:.3g} with the training loss, "
            f"{prediction.divisor_rmse:.3g} with the norm only, {prediction.constant_rmse:.3g} "
            f"with neither; skill {skill}",
            "what the training loss adds to the norm. Decides",
        ]
    if ratio := line.ratio:
        yield [
            "Test margin / training margin",
            f"{ratio.low:.4f} to {ratio.high:.4f}, spread {ratio.spread:.2%} (unrelated margins: "
            f"{ratio.spread_if_unrelated:.2%}); rank correlation with the norm "
            f"{ratio.correlation_with_norm:.2f}; margins correlate {ratio.partial_correlation:.2f} "
            f"at equal norm (p = {ratio.partial_p_value:.2g})",
            "free of the divisor: the line's content",
        ]
    for name, left in line.left_out.items():
        if left:
            yield [
                f"Leave one {name} out *",
                f"RMSE {left.rmse:.3g} over {left.num_parts}, at most {left.largest:.3g} "
                f"({left.where})",
                "prediction error of the normalized test loss",
            ]
    distances = [n for n in line.networks if n.cooks_distance is not None]
    if distances:
        worst = max(distances, key=lambda network: network.cooks_distance)
        yield [
            "Cook's distance *",
            f"at most {worst.cooks_distance:.3g} ({worst.name})",
            "above 1, one network governs the line",
        ]
    if line.deming:
        yield [
            "Errors in both losses (Deming)",
            f"slope {line.deming.slope:.4f}, equal variances",
            "whether noise in x flattens the line",
        ]
    if line.bootstrap:
        yield _bootstrap(line.bootstrap)


def logit_controls(logits: LogitExplanation) -> Iterator[list[str]]:
    """(control, found, what it says) of all that the logits give."""
    if split := logits.first_order:
        shares = [
            f"{name} {share[0]:.3%} to {share[1]:.3%}"
            for name, share in (("training", split.train), ("test", split.test))
            if share
        ]
        yield [
            "First order: margin / norm over ln K - loss",
            f"{', '.join(shares)}; R² of the first-order line {split.fit.r2:.5f}",
            "how far the losses are margins in another dress",
        ]
    if logits.norm_permutation:
        yield [
            "Norms shuffled, losses exact",
            _permutation(logits.norm_permutation),
            "as above, without the first-order approximation",
        ]
    if ratio := logits.ratio:
        yield [
            "Test / training margin, exact",
            f"{ratio.low:.4f} to {ratio.high:.4f}, spread {ratio.spread:.2%} (unrelated "
            f"{ratio.spread_if_unrelated:.2%})",
            "as above, from the margins themselves",
        ]
    meanings = {
        "balanced": "the line at the least norms that rescaling of neurons allows",
        "last_layer": "whether the other layers' norms matter",
        "rms": "a divisor that sees the function only, not the weights",
        "one_norm": "no divisor of its own: the raw margins",
    }
    for name, meaning in meanings.items():
        if fit := logits.fits.get(name):
            yield [f"Divisor: {DIVISOR_NAMES[name].lower()}", _line(fit), meaning]
    for name in ("product_norm", "one_norm"):
        known = [
            (r2, t)
            for r2, t in zip(logits.temperature_r2[name], logits.temperatures, strict=True)
            if r2 is not None
        ]
        if known:
            picked = [known[0], known[len(known) // 2], known[-1]]
            yield [
                f"Temperatures over: {DIVISOR_NAMES[name].lower()}",
                ", ".join(f"R² {r2:.4f} at {t:.2g}" for r2, t in picked),
                "whether the scale of the logits makes the line",
            ]
    if logits.bootstrap:
        yield _bootstrap(logits.bootstrap)
    if deming := logits.deming:
        yield [
            "Errors in both losses (Deming)",
            f"slope {deming.slope:.4f}, variance ratio {deming.variance_ratio:.3g}",
            "with the sampling variances of both sets",
        ]
    if sampling := logits.sampling:
        yield [
            "Finite test set",
            f"RMSE of the line {sampling.rmse:.3g}; standard error of one test loss "
            f"{sampling.of_a_loss:.3g}; RMSE that it leaves, images in common, "
            f"{sampling.of_a_residual:.3g} ({sampling.num_examples:,} examples)",
            "how small an RMSE this test set could show at all",
        ]


def table(header: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def _ranking(line: Explanation) -> Iterator[str]:
    """The rank correlations, of networks with true labels."""
    if line.error_ranking is None:
        yield f"None: {line.reasons['error_ranking']}."
        return
    yield (
        "Networks with true labels; 95% bootstrap intervals. Lead: |tau| of the normalized "
        "training loss less that of the measure."
    )
    yield table(
        ["Measure", "Kendall's tau-b", "p", "Spearman's rho", "Lead"],
        [
            [
                MEASURE_NAMES[name].capitalize(),
                _interval(ranking.kendall, ranking.kendall_interval, 2),
                f"{ranking.kendall_p_value:.2g}",
                _interval(ranking.spearman, ranking.spearman_interval, 2),
                "{:.2f} to {:.2f}".format(*ranking.lead_interval),
            ]
            for name, ranking in line.error_ranking.items()
        ],
    )


def _networks(line: Explanation) -> str:
    """A row for each network; margins raw, to first order."""
    header = ["Network", "Product of norms", "Training margin", "Test margin", "Ratio", "Cook's D"]
    rows = []
    for network in line.networks:
        ratio = network.test_margin / network.train_margin if network.train_margin else None
        distance = network.cooks_distance
        rows.append(
            [
                network.name,
                f"{network.product_norm:.4g}",
                f"{network.train_margin:.4g}",
                f"{network.test_margin:.4g}",
                "–" if ratio is None else f"{ratio:.4f}",
                "–" if distance is None else f"{distance:.3g}",
            ]
        )
    return table(header, rows)


def _reasons(reasons: dict[str, str]) -> Iterator[str]:
    """What could not be computed, and why."""
    if reasons:
        yield "## Left out"
        yield "\n".join(f"- {name}: {reason}" for name, reason in reasons.items())


def _line(fit: LineFit) -> str:
    """A fit in a cell."""
    return f"R² {fit.r2:.5f}, slope {_interval(fit.slope, fit.slope_interval)}, RMSE {fit.rmse:.3g}"


def _permutation(found) -> str:
    """A permutation of the norms in a cell."""
    kind = "all" if found.is_exact else "random"
    return (
        f"R² {_interval(found.r2_quantiles[1], found.r2_quantiles[::2], 5)} (5% to 95%); "
        f"{found.fraction_at_least:.2%} of {found.num_permutations:,} orders ({kind}) reach "
        f"{found.r2:.5f}"
    )


def _bootstrap(found) -> list[str]:
    """A bootstrap as a row."""
    return [
        f"Bootstrap over {found.unit}",
        "slope {:.4f} to {:.4f}, intercept {:.4f} to {:.4f}, R² {:.5f} to {:.5f}".format(
            *found.slope_interval, *found.intercept_interval, *found.r2_interval
        ),
        "95% intervals",
    ]


def _interval(value: float, interval: Sequence[float], num_digits: int = 4) -> str:
    """A value with its interval."""
    low, high = interval
    return f"{value:.{num_digits}f} [{low:.{num_digits}f}, {high:.{num_digits}f}]"
