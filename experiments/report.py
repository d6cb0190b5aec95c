"""Several finished runs on one page: verdicts, lines, figures and the settings that differ.

    python -m experiments.report --from=RUN1,RUN2,... --workdir=DIR

Only run.json, results.csv, summary.json and the main figure of each run are read.

    DIR/comparison.html  the page, one file that opens offline
"""

import dataclasses
import sys
from pathlib import Path

from experiments import flags
from normjax.files import one_line
from normjax.report.comparison import write_comparison
from normjax.training.config import setting
from normjax.training.finished_run import check_output, check_runs

PAGE_FILE = "comparison.html"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the command."""

    source: tuple[str, ...] = setting(
        help="Folders of finished runs.", flag="from", check=check_runs, is_path=True
    )
    workdir: str = setting("runs/report", "Output folder.", check=check_output, is_path=True)


def main(config: Config) -> None:
    """Write the page."""
    path = Path(config.workdir) / PAGE_FILE
    try:
        write_comparison(path, config.source)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(path)


if __name__ == "__main__":
    flags.run(main, Config)
