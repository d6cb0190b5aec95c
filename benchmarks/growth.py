"""How time and memory grow with the work: networks, images, batch size and depth.

    python -m benchmarks.growth [--only=networks,images,...] [--out=FILE]

Each row trains one epoch. Times are medians, with the sizes of an axis interleaved; memory is the
peak of a process. The exponent is the slope of a line through the logarithms. This writes
FILE.json, a table FILE.md and a figure FILE.png. Nothing else should run on the machine.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.process import peak_megabytes, run_python
from benchmarks.timing import Case, Prepared, measure

HERE = "benchmarks.growth"


class Axis(NamedTuple):
    """What grows, and the arguments of `prepare` for a size."""

    label: str
    sizes: tuple[int, ...]
    arguments: Callable[[int], tuple[int, int, int, int]]  # depth, networks, batch size, images


AXES = {
    "networks": Axis(
        "networks (3-layer net, 640 images, batch 128)",
        (1, 4, 16, 64, 256),
        lambda size: (3, size, 128, 640),
    ),
    "images": Axis(
        "images (2 networks, batch 128)",
        (1_250, 5_000, 20_000, 50_000),
        lambda size: (3, 2, 128, size),
    ),
    "batch": Axis(
        "images per batch (4 networks, 2,048 images)",
        (32, 128, 512, 2_048),
        lambda size: (3, 4, size, 2_048),
    ),
    "depth": Axis(
        "layers (4 networks of 3 x 3 convolutions, 24 filters, 512 images, batch 128)",
        (2, 4, 8, 16),
        lambda size: (-size, 4, 128, 512),
    ),
}


def prepare(depth: int, networks: int, batch_size: int, num_images: int) -> Prepared:
    """Prepare an epoch; a negative depth means a plain net of that depth, 3 the 3-layer net."""
    import flax.linen as nn

    from benchmarks.normjax_contenders import make_networks, prepare_steps
    from normjax.networks.convolution import conv2d

    class Plain(nn.Module):
        """Convolutions of 24 filters, stride 1, and a dense layer."""

        @nn.compact
        def __call__(self, images):
            """Map images [N, H, W, C] to logits [N, 10]."""
            x = images
            for number in range(-depth - 1):
                shape = (3, 3, x.shape[-1], 24)
                kernel = self.param(f"conv_{number}", nn.initializers.he_normal(), shape)
                x = nn.relu(conv2d(x, kernel, padding="SAME"))
            return nn.Dense(10, use_bias=False)(x.reshape(len(x), -1))

    model = "convnet3" if depth == 3 else Plain()
    made = make_networks(model, networks, batch_size, num_images)
    prepared, _ = prepare_steps(made, networks, math.ceil(num_images / batch_size))
    return prepared._replace(work=1)


def how_many_fit(num_images: int) -> int:
    """Return how many 3-layer nets on `num_images` images fit in a group with the free memory."""
    import jax

    from benchmarks.normjax_contenders import make_networks
    from normjax.training import memory

    ensemble = make_networks("convnet3", 1, 128, 256).ensemble
    shape = (num_images, 32, 32, 3)
    most = 100_000
    fit = memory.networks_that_fit(
        lambda count: memory.group_memory(ensemble, count, train_shape=shape),
        most,
        memory.available_memory(),
    )
    return fit * len(jax.local_devices())


def grow(name: str) -> list[dict[str, Any]]:
    """Return the rows of an axis."""
    axis = AXES[name]
    cases = [
        Case(str(size), axis.arguments(size)[1], None, f"{HERE}:prepare", axis.arguments(size))
        for size in axis.sizes
    ]
    seconds = {int(row.contender): row.value for row in measure(name, cases, "s/epoch", 1.0)}
    rows = []
    for size in axis.sizes:
        statement = f"from {HERE} import prepare; prepare{axis.arguments(size)}.call()"
        rows.append(
            {
                "axis": name,
                "size": size,
                "s_per_epoch": seconds.get(size),
                "peak_mb": peak_megabytes(statement),
            }
        )
    return rows


def exponent(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Return the slope of log(value) against log(size), by least squares."""
    sizes, values = (np.log([row[name] for row in rows]) for name in ("size", key))
    return float(np.polyfit(sizes, values, 1)[0])


def format_table(rows: Sequence[dict[str, Any]], fit: dict[int, int]) -> str:
    """Return the table of all axes in Markdown, and how many networks fit."""
    lines = []
    for name in dict.fromkeys(row["axis"] for row in rows):
        of_axis = [row for row in rows if row["axis"] == name and row["s_per_epoch"]]
        texts = {
            "": [format(row["size"], ",") for row in of_axis],
            "s per epoch": [format(row["s_per_epoch"], ".3g") for row in of_axis],
            "peak MB": [format(row["peak_mb"], ",.0f") for row in of_axis],
        }
        ends = ("exponent", *(f"{exponent(of_axis, k):.2f}" for k in ("s_per_epoch", "peak_mb")))
        header, *body = (
            f"| {' | '.join([title or AXES[name].label, *texts[title], end])} |"
            for title, end in zip(texts, ends, strict=True)
        )
        lines += [header, "|---" * (len(of_axis) + 2) + "|", *body, ""]
    for num_images, count in fit.items():
        lines.append(
            f"With {num_images:,} images, groups of more than {count:,} networks would be split."
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against each size, with lines of slope 1."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["axis"] for row in rows))
    titles = {"s_per_epoch": "s per epoch", "peak_mb": "peak memory, MB"}
    shape = {"figsize": (3.2 * len(names), 5.6), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(2, len(names), **shape)
    for column, name in enumerate(names):
        of_axis = [row for row in rows if row["axis"] == name and row["s_per_epoch"]]
        sizes = np.array([row["size"] for row in of_axis])
        for axis, (key, title) in zip(axes[:, column], titles.items(), strict=True):
            values = np.array([row[key] for row in of_axis])
            axis.plot(sizes, values, "o-", label=f"exponent {exponent(of_axis, key):.2f}")
            axis.plot(sizes, values[-1] * sizes / sizes[-1], "k:", linewidth=1, label="slope 1")
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel=title)
            axis.set_xticks(sizes, [format(size, ",") for size in sizes], minor=False)
            axis.set_xticks([], minor=True)
            axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an invalid option gives one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=",".join(AXES))
    parser.add_argument("--out", default="runs/growth", help="without suffix")
    options, stray = parser.parse_known_args(argv)
    names = options.only.split(",")
    if unknown := [*stray, *(name for name in names if name not in AXES)]:
        sys.exit(f"error: {unknown[0]!r}: allowed are --out=FILE and --only of {', '.join(AXES)}")
    options.out = os.path.expanduser(options.out)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += grow(name)
        Path(f"{options.out}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    ask = f"from {HERE} import how_many_fit; print(how_many_fit({{}}))"
    fit = {count: int(run_python("-c", ask.format(count))) for count in (5_000, 50_000)}
    table = format_table(rows, fit)
    Path(f"{options.out}.md").write_text(table, encoding="utf-8")
    draw(rows, Path(f"{options.out}.png"))
    print(table, f"{options.out}.json, .md and .png", sep="\n")


if __name__ == "__main__":
    main()
