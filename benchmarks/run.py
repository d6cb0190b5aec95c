"""Compare normjax with other implementations in the same run.

    python -m benchmarks.run [--only=train3,memory,...] [--out=FILE]

This prints a table of results, followed by ratios, and writes all rows to a JSON file. Nothing else
should run on the machine. Run it in the parent folder of this package.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benches import BENCHES, has_torch, summarize
from benchmarks.timing import Row

TABLE = "{:<10}{:<30}{:>8}{:>7}{:>12}  {:<16}{:>10}"


def format_row(row: Row) -> str:
    """Format a line of the table."""
    cells = ["-" if cell is None else cell for cell in row]
    cells[4] = f"{row.value:.4g}"
    if row.compile_s is not None:
        cells[6] = f"{row.compile_s:.1f}"
    return TABLE.format(*cells)


def parse_names(only: str | None) -> list[str]:
    """Return the requested benchmarks, by default all.

    Raises:
      ValueError: an unknown name.
    """
    names = list(BENCHES) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ValueError(f"--only={only}: no bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks; an invalid option gives one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", help=f"comma-separated benches: {', '.join(BENCHES)}")
    parser.add_argument("--out", default="runs/benchmarks.json", help="the JSON file")
    options, stray = parser.parse_known_args(argv)
    out = Path(os.path.expanduser(options.out))
    try:
        if stray:
            raise ValueError(f"unexpected argument {stray[0]!r}; options are --only and --out")
        names = parse_names(options.only)
        if out.is_dir():
            raise ValueError(f"--out={out} is a folder; a file is needed")
        out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

    # Several JAX processes run at a time; none may preallocate most of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not has_torch():
        print("PyTorch is not installed; skipping its contenders: pip install -e '.[bench]'")
    header = TABLE.format(*Row._fields)
    print(header, "-" * len(header), sep="\n", flush=True)
    rows = []
    for name in names:
        for row in BENCHES[name]():
            rows.append(row)
            print(format_row(row), flush=True)
        write_rows(out, rows)
    ratios = summarize(rows)
    print("", *map(format_row, ratios), sep="\n")
    write_rows(out, rows + ratios)
    print(f"\n{out}: {len(rows)} measurements, {len(ratios)} ratios")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a JSON list of objects."""
    path.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
