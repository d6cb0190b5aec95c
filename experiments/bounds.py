"""Eq. 4 on the networks of a finished run: what of the bound is tight, and what is not.

    python -m experiments.bounds --from=DIR

For the run's networks with every layer normalized to Frobenius norm 1: the gaps between test and
training loss, beside the confidence term, R_N estimated from below by random signs and by networks
trained on random labels, and R_N from above by four published bounds (derived in docs/bounds.md).
 Only networks without later biases: the class of others has no finite R_N.

    WORKDIR/bounds.json   everything measured
    WORKDIR/bounds.md     the same in words and as a table
    WORKDIR/figures/bounds.png and .pdf

The time goes into the climbs: num_signs * (num_steps + 1) gradients over --num_examples images,
side by side on the devices.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import flags as shared_flags
from normjax.data import dataset_label, standardize_images
from normjax.files import one_line, replacing, write_json
from normjax.generalization import bounds, rademacher
from normjax.layers import find_layers
from normjax.networks.models import make_model
from normjax.plots import bounds as bound_plots
from normjax.plots import paper as plotting
from normjax.plots.bounds import format_nats
from normjax.results.rows import ResultRow, select
from normjax.training.config import check_seed, check_workdir
from normjax.training.finished_run import FinishedRun, load_run
from normjax.training.processes import prepare_cpu

TIGHT = 3.0
"""A term that is at most so many times the largest gap is called tight."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is computed; fields are the flags of the same name."""

    source: str  # --from
    workdir: str
    data_dir: str | None
    selection: str
    delta: float
    num_signs: int
    num_steps: int
    num_examples: int
    seed: int


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this command's flags."""
    own = {"flag_values": values}
    flags.DEFINE_string("from", None, "Folder of a finished run.", **own)
    flags.DEFINE_string("workdir", None, "Folder to write to; --from's if not given.", **own)
    flags.DEFINE_string("data_dir", None, "Where the run's data are now, if moved.", **own)
    flags.DEFINE_string("selection", "final", "final, or loss=TARGET.", **own)
    flags.DEFINE_float("delta", 0.05, "Probability that the bound fails.", **own)
    flags.DEFINE_integer("num_signs", 8, "Draws of random signs.", **own)
    flags.DEFINE_integer("num_steps", 12, "Steps of the climb to each draw's supremum.", **own)
    flags.DEFINE_integer(
        "num_examples", 5000, "Training images of the climbs; all, if there are fewer.", **own
    )
    flags.DEFINE_integer("seed", 0, "Seed of the signs.", **own)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Config:
    """The command line as a configuration; a mistake is one line on stderr and exit code 1."""

    def make_config() -> Config:
        given = {f.name: values[f.name].value for f in dataclasses.fields(Config)[1:]}
        source = values["from"].value
        if not source:
            raise ValueError("--from is needed: the folder of a finished run")
        config = Config(source=source, **{**given, "workdir": given["workdir"] or source})
        validate(config)
        return config

    return shared_flags.parse(argv, make_config, values)


def validate(config: Config) -> None:
    """Checks the values.

    Raises:
      ValueError: one line that names the flag, its value and what is allowed.
    """
    if not 0 < config.delta < 1:
        raise ValueError(f"--delta={config.delta}: must lie between 0 and 1")
    for name in ("num_signs", "num_steps", "num_examples"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name}={getattr(config, name)}: must be at least 1")
    check_seed(config.seed)
    check_workdir(config.workdir)


def main(config: Config) -> None:
    """Measures, and writes the table, the text and the figure."""
    prepare_cpu()
    try:
        run = load_run(config.source, config.data_dir)
        rows = frobenius_rows(run, config.selection)
        networks = class_of(run)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    summary = measure(config, run, rows, networks)
    workdir = Path(config.workdir)
    write_json(workdir / "bounds.json", summary)
    with replacing(workdir / "bounds.md") as path:
        path.write_text(to_markdown(summary), encoding="utf-8")
    plotting.save_figure(bound_plots.plot_bounds(summary), workdir / "figures" / "bounds")
    print(summary["text"])
    print(f"{workdir / 'bounds.md'}; figure: {workdir / 'figures'}")


def frobenius_rows(run: FinishedRun, selection: str) -> list[ResultRow]:
    """The rows at a selection under the Frobenius norm, those of diverged networks left out.

    Raises:
      ValueError: there are none.
    """
    known = list(dict.fromkeys(row.norm for row in run.rows))
    norm = next((name for name in known if name in ("2", "fro")), "2")
    rows = select(run.rows, selection=selection, norm=norm)
    finite = [row for row in rows if math.isfinite(gap_of(row))]
    if not finite:
        raise ValueError(f"{run.run_dir}: all networks at selection {selection!r} diverged")
    return finite


def gap_of(row: ResultRow) -> float:
    """Eq. 4's left side, with the test set in the place of the expectation, in nats."""
    return abs(row.normalized_test_excess - row.normalized_train_excess)


def class_of(run: FinishedRun) -> bounds.NetworkClass:
    """The class of the run's networks once they are normalized.

    Raises:
      ValueError: later layers have biases.
    """
    model = make_model(run.config.model, run.dataset.num_classes)
    image = jax.ShapeDtypeStruct((1, *run.dataset.image_shape), jnp.float32)

    def shapes(image):
        variables = model.init(jax.random.key(0), image)
        _, state = model.apply(variables, image, capture_intermediates=True)
        return variables["params"], state["intermediates"]

    params, outputs = jax.eval_shape(shapes, image)
    positions = [
        math.prod(outputs[layer.path]["__call__"][0].shape[1:-1]) for layer in find_layers(params)
    ]
    return bounds.network_class(params, positions, math.prod(run.dataset.image_shape))


def measure(
    config: Config, run: FinishedRun, rows: Sequence[ResultRow], networks: bounds.NetworkClass
) -> dict[str, Any]:
    """The contents of bounds.json; every term of eq. 4 in nats."""
    images = np.asarray(standardize_images(run.dataset.train.images))
    num_examples = len(images)
    first = networks.layers[0]
    window = (math.isqrt(first.window),) * 2 if first.window > 1 else ()
    found = bounds.loss_bounds(networks, bounds.input_norms(images, window))
    confidence = bounds.confidence_term(num_examples, config.delta)
    loss_range = bounds.loss_range(networks)
    present = {row.member for row in rows}
    left_out = {row.member for row in run.rows if row.selection == config.selection} - present
    summary = {
        "run": str(run.run_dir),
        "data_name": dataset_label(run.config.dataset),
        "model": run.config.model,
        "selection": config.selection,
        "num_examples": num_examples,
        "ln_num_classes": math.log(run.dataset.num_classes),
        "delta": config.delta,
        "networks": [
            {"member": r.member, "family": r.family, "level": r.level, "gap": gap_of(r)}
            for r in rows
        ],
        "diverged": sorted(left_out),
        "confidence_term": confidence,
        "loss_range": loss_range,
        "confidence_term_of_range": loss_range * confidence,
        "labels": from_labels(rows, num_examples),
        "signs": from_signs(config, run, images),
        "upper": {name: 2 * value for name, value in found.items()},
    }
    return {**summary, "text": describe(summary)}


def from_labels(rows: Sequence[ResultRow], num_examples: int) -> dict[str, Any] | None:
    """2 R_N from below by the run's networks of random labels; None if it has none."""
    excess = [row.normalized_train_excess for row in rows if row.family == "random_labels"]
    if not excess:
        return None
    found = rademacher.rademacher_by_labels(excess, num_examples)
    error = None if math.isnan(found.standard_error) else 2 * found.standard_error
    return {"two_r": 2 * found.mean, "standard_error": error, "num_networks": len(excess)}


def from_signs(config: Config, run: FinishedRun, images: np.ndarray) -> dict[str, Any]:
    """2 R_N from below by climbs; from fewer than all images it is scaled by the root of N."""
    num = min(config.num_examples, len(images))
    print(f"{config.num_signs} climbs of {config.num_steps} steps over {num:,} images")
    model = make_model(run.config.model, run.dataset.num_classes)
    found = rademacher.estimate_rademacher(
        run.apply_fn,
        lambda key: model.init(key, images[:1])["params"],
        images[:num],
        run.dataset.train.labels[:num],
        rademacher.excess_loss,
        jax.random.key(config.seed),
        num_signs=config.num_signs,
        num_steps=config.num_steps,
    )
    scale = 2 * math.sqrt(num / len(images))
    error = None if math.isnan(found.standard_error) else scale * found.standard_error
    return {
        "two_r": scale * found.mean,
        "standard_error": error,
        "num_signs": config.num_signs,
        "num_examples": num,
        "by_step": (scale * found.by_step).tolist(),
    }


def describe(summary: Mapping[str, Any]) -> str:
    """What is tight and what is not, in plain words."""
    gaps = [network["gap"] for network in summary["networks"]]
    largest = max(gaps)

    def times_gap(value: float) -> str:
        return f"{format_nats(value / largest)} times the largest gap"

    def verdict(value: float, if_close: str) -> str:
        if value <= TIGHT * largest:
            return if_close
        is_vacuous = value > summary["ln_num_classes"]
        return "vacuous, more than ln K, the loss of chance" if is_vacuous else "not tight"

    signs, labels, upper = summary["signs"], summary["labels"], summary["upper"]
    least = min(upper, key=upper.get)
    confidence = summary["confidence_term"]
    num_within = sum(gap <= signs["two_r"] + confidence for gap in gaps)
    num_steps = len(signs["by_step"]) - 1
    gain = 1 - signs["by_step"][3 * num_steps // 4] / signs["by_step"][-1]
    parts = [
        f"{len(gaps)} networks, every layer normalized to Frobenius norm 1: test and training loss "
        f"differ by {np.median(gaps):.3g} nats in the median, {min(gaps):.3g} to {largest:.3g}.",
        f"The confidence term (delta = {summary['delta']:g}, N = {summary['num_examples']:,}) is "
        f"{confidence:.3g} nats, {times_gap(confidence)}: {verdict(confidence, 'tight')}. It is "
        "for losses in an interval of length 1, as the paper prints it; the class's losses are "
        f"only known to lie in one of {format_nats(summary['loss_range'])} nats, which makes it "
        f"{format_nats(summary['confidence_term_of_range'])}.",
        f"2 R_N is at least {with_error(signs)} nats by {signs['num_signs']} draws of random signs "
        f"({times_gap(signs['two_r'])}: {verdict(signs['two_r'], 'tight, if that is all')}). This "
        "is a lower estimate, since a climb may end below the supremum (the last quarter of its "
        f"steps added {100 * gain:.2g}%): the truth can only be less tight.",
    ]
    if signs["num_examples"] < summary["num_examples"]:
        parts.append(
            f"It was found on {signs['num_examples']:,} of the images and scaled by 1 / sqrt(N)."
        )
    if labels is None:
        parts.append("The run has no networks trained on random labels.")
    else:
        parts.append(
            f"The {labels['num_networks']} networks trained on random labels come "
            f"{with_error(labels)} nats below ln K, another lower estimate of 2 R_N: "
            f"{times_gap(labels['two_r'])}. What training reaches on random labels is "
            f"{labels['two_r'] / signs['two_r']:.2g} of what the class can do with random signs."
        )
    unknown = format_nats(upper[least] / signs["two_r"])
    parts.append(
        f"From above, the least of the published bounds is {format_nats(upper[least])} nats "
        f"({least}; the others up to {format_nats(max(upper.values()))}), {unknown} times the "
        "lower estimate: so much is left unknown of R_N."
    )
    parts.append(
        f"Eq. 4 as printed, with the lower estimate in it, holds for {num_within} of the "
        f"{len(gaps)} networks. Its right side is one number for all of them: it says nothing of "
        "which of them generalizes better."
    )
    return " ".join(parts)


def with_error(found: Mapping[str, Any]) -> str:
    """A lower estimate with its standard error, if it has one."""
    error = found["standard_error"]
    return format_nats(found["two_r"]) + ("" if error is None else f" ± {error:.2g}")


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The text, and the terms as a table."""
    gaps = [network["gap"] for network in summary["networks"]]
    rows = [
        ("Gap, median", format_nats(float(np.median(gaps))), "measured"),
        ("Gap, largest", format_nats(max(gaps)), "measured"),
        ("Confidence term, losses in [0, 1]", format_nats(summary["confidence_term"]), "exact"),
        (
            f"Confidence term, losses in [0, {format_nats(summary['loss_range'])}]",
            format_nats(summary["confidence_term_of_range"]),
            "exact",
        ),
    ]
    if summary["labels"] is not None:
        rows.append(("2 R_N, random labels", with_error(summary["labels"]), "at least"))
    rows.append(("2 R_N, random signs", with_error(summary["signs"]), "at least"))
    rows += [
        (f"2 R_N, {name}", format_nats(value), "at most")
        for name, value in summary["upper"].items()
    ]
    table = "".join(f"| {name} | {value} | {kind} |\n" for name, value, kind in rows)
    diverged = summary["diverged"]
    note = f"\nLeft out, diverged: networks {', '.join(map(str, diverged))}.\n" if diverged else ""
    return (
        f"# Eq. 4 on {summary['data_name']}, {summary['model']}, {summary['selection']}\n\n"
        f"{summary['text']}\n\n| term | nats | |\n| --- | ---: | --- |\n{table}{note}"
    )


if __name__ == "__main__":
    define_flags()
    shared_flags.run_command(main, parse)
