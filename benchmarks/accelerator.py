"""Which way of training many networks is the fastest on this GPU or TPU, and how fast is PyTorch?

    python -m benchmarks.accelerator [--models=...] [--members=...] [--batches=...]
        [--strategies=...] [--minutes=8] [--out=FILE]

Every strategy of `--conv` trains the networks, and so does PyTorch on one device: one network after
another, as CUDA graphs, and compiled. This prints each result, and writes all to FILE.json and, as
a table, to FILE.md. Cases that do not fit into the time are named. It also runs on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.benches import PYTORCH_GPU_WAYS, PYTORCH_WAYS, has_gpu, has_torch
from benchmarks.bounds import LAYERS, bound_ms
from normjax.training.strategies import STRATEGIES

SHARE = {"normjax": 0.7, "PyTorch": 0.3}  # of the time
COLUMNS = (
    "network",
    "members",
    "batch",
    "contender",
    "precision",
    "ms per network-step",
    "of the bound",
    "peak GB",
    "compile s",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an invalid option gives one line on stderr and exit code 1."""
    options = parse(argv)
    settings = [
        {"model": model, "members": members, "batch": batch}
        for batch in options.batches
        for members in options.members
        for model in options.models
    ]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    ways = {**PYTORCH_WAYS, **(PYTORCH_GPU_WAYS if has_gpu() else {})} if has_torch() else {}
    ways.pop("PyTorch vmap", None)  # slower than one network after another; see `benchmarks.run`
    rows: list[dict[str, Any]] = []
    for framework, names in (("normjax", options.strategies), ("PyTorch", list(ways.values()))):
        if not names:
            print("PyTorch is not installed; skipping it: pip install -e '.[bench]'")
            continue
        task = {"framework": framework, "settings": settings, "names": names}
        task["seconds"] = 60 * options.minutes * SHARE[framework]
        for row in measured(task):
            rows.append(row)
            print(format_row(row), flush=True)
            write(options.out, rows)
    print(*summarize(rows), f"{options.out}.json and .md", sep="\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; an invalid one ends the process with one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", default=",".join(LAYERS))
    parser.add_argument("--members", default="32")
    parser.add_argument("--batches", default="128,1024")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--minutes", default="8", help="no case starts later")
    parser.add_argument("--out", default="runs/accelerator", help="without suffix")
    options, stray = parser.parse_known_args(argv)
    try:
        if stray:
            raise ValueError(f"unexpected argument {stray[0]!r}")
        for name, allowed in (("models", LAYERS), ("strategies", STRATEGIES)):
            values = getattr(options, name).split(",")
            if unknown := [value for value in values if value not in allowed]:
                raise ValueError(f"--{name}: no {unknown[0]!r}; allowed: {', '.join(allowed)}")
            setattr(options, name, values)
        for name in ("members", "batches", "minutes"):
            values = getattr(options, name).split(",")
            if not all(value.isdecimal() and int(value) for value in values):
                raise ValueError(f"--{name}={','.join(values)}: positive integers are needed")
            setattr(options, name, [int(value) for value in values])
        options.minutes = max(options.minutes)
        options.out = os.path.expanduser(options.out)
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return options


def measured(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one framework, from a process of its own, which frees the device."""
    command = [sys.executable, "-m", "benchmarks.accelerator_cases", json.dumps(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        sys.exit(f"error: {task['framework']}: exit code {process.returncode}")


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row, in the order of `COLUMNS`."""
    bound = bound_ms(row["model"], row["batch"], row["precision"], row["device"])
    ms = row["ms"]

    def number(value: float | None, text: str) -> str:
        return "-" if value is None else format(value, text)

    return [
        *(str(row[name]) for name in ("model", "members", "batch", "contender", "precision")),
        number(ms, ".4g") if ms is not None else row["why_not"],
        number(bound / ms if bound and ms else None, ".0%"),
        number(row["peak_gb"], ".3g"),
        number(row["compile_s"], ".1f"),
    ]


def format_row(row: dict[str, Any]) -> str:
    """Format a line of the table in Markdown."""
    return f"| {' | '.join(cells(row))} |"


def summarize(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each setting: the fastest strategy, and PyTorch's times over its time."""
    lines = []
    for setting in settings_of(rows):
        here = [row for row in rows if row["ms"] and setting_of(row) == setting]
        ours = [
            row for row in here if row["framework"] == "normjax" and row["precision"] != "highest"
        ]
        if not ours:
            continue
        best = min(ours, key=lambda row: row["ms"])
        ratios = [
            f"{row['contender']} {row['ms'] / best['ms']:.1f}"
            for row in here
            if row["framework"] == "PyTorch"
        ]
        model, members, batch = setting
        times = f"; PyTorch takes, as a multiple: {', '.join(ratios)}" if ratios else ""
        fastest = f"{best['contender']} is the fastest of {len(ours)} measured"
        lines.append(f"{model}, {members} networks, batch {batch}: {fastest}{times}")
    return lines


def setting_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return a row's model, members and batch."""
    return row["model"], row["members"], row["batch"]


def settings_of(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the settings of all rows, each once."""
    return list(dict.fromkeys(map(setting_of, rows)))


def write(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows as JSON and, ordered by setting, as a Markdown table."""
    Path(f"{out}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    devices = "; ".join(dict.fromkeys(f"{row['device']}, {row['version']}" for row in rows))
    header = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    settings = settings_of(rows)
    ordered = sorted(rows, key=lambda row: settings.index(setting_of(row)))
    lines = [*header, *map(format_row, ordered), "", *(f"- {s}" for s in summarize(rows))]
    text = f"{devices}; {time.strftime('%Y-%m-%d', time.gmtime())}.\n\n" + "\n".join(lines) + "\n"
    Path(f"{out}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
