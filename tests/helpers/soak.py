"""A run that is killed again and again ends as one that was not: bit for bit.

    python -m tests.helpers.soak --kills=20

A small sweep is killed (SIGKILL) at random moments and resumed each time. The moments are spread
over the whole run: epochs, checkpoints (before their folder, between it and its renaming), the
tables of groups, the run's own tables and page, and the start of the program. At last the tables,
the metrics and the trained networks are compared with those of a run that nobody killed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from normjax.results.table import read_results
from normjax.training.saved import load_member

ROOT = Path(__file__).parents[2]
EPOCHS = (10, 40)  # of the two phases
RUN = [
    "--dataset=digits",
    "--train_size=90",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=0,1",
    "--num_seeds=2",
    "--members_per_group=2",
    f"--pretrain_epochs={EPOCHS[0]}",
    f"--epochs={EPOCHS[1]}",
    "--batch_size=32",
    "--learning_rate=0.2",
    "--target_losses=0.1",
    "--norms=2",
    "--test_every=2",
    "--checkpoint_every=3",
]

# The experiment, which kills itself: from a step of a group on, `delay_s` after it has touched a
# file of the run with `pattern` in its name for the `count`-th time. Without figures if told so.
DRIVER = """
import os, signal, sys, threading
workdir, group, step, pattern, count, delay_s, has_figures = sys.argv[1:8]
del sys.argv[1:8]
target, count, touched = (int(group), int(step)), int(count), 0
armed = target == (0, 0)
from experiments import flags, random_pretrain
from normjax.results import metrics
from normjax.training.config import SweepConfig
from normjax.plots import paper as plotting

append = metrics.append_metrics

def append_and_arm(run_dir, members, common, values):
    global armed
    append(run_dir, members, common, values)
    armed |= (common["group"], common["step"]) >= target

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def hear(event, args):
    global touched
    if not armed or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    names = [os.fsdecode(x) for x in args if isinstance(x, (str, bytes, os.PathLike))]
    if any(workdir in name and pattern in name for name in names):
        touched += 1
        if touched == count:
            kill() if delay_s == "0" else threading.Timer(float(delay_s), kill).start()

metrics.append_metrics = append_and_arm
if has_figures == "0":
    plotting.draw_figures = lambda *_: []
if pattern != "nothing":
    sys.addaudithook(hear)
flags.run(random_pretrain.main, SweepConfig, workdir="runs/random_pretrain")
"""


class Moment(NamedTuple):
    """When a run is killed."""

    group: int = 0  # from this step of this group on; 0, 0: from the start
    step: int = 0
    pattern: str = "nothing"  # in the name of the file that it then touches
    count: int = 1  # at the count-th touch
    delay_s: float = 0.0
    at_start: float | None = None  # instead: after so much of the time that a bare start takes


def choose_moments(kills: int, rng: random.Random) -> list[Moment]:
    """Moments in the order in which a run comes to them; at least 6."""
    tables = [
        [
            Moment(pattern="members/.000_final.npz.", count=rng.randint(1, 2)),
            Moment(pattern="groups/.000.csv.", count=rng.randint(1, 6)),
        ],
        [
            Moment(pattern="members/.003_loss=0.1.npz.", count=rng.randint(1, 2)),
            Moment(pattern="groups/.001.csv.", count=5, delay_s=0.002),
            Moment(pattern="/pieces/.results.csv.", count=rng.randint(1, 2)),
            Moment(pattern="/pieces/.summary.json.", count=rng.randint(1, 2)),
            Moment(pattern="/pieces/.report.html.", count=rng.randint(1, 2)),
        ],
    ]
    chosen = set(rng.sample([moment for group in tables for moment in group], min(7, kills // 3)))
    starts = [Moment(at_start=rng.uniform(0.05, 1.2)) for _ in range(kills // 6)]
    count = kills - len(chosen) - len(starts)
    moments = []
    for group, own in enumerate(tables):
        part = count // 2 if group == 0 else count - count // 2
        for i in range(part):
            step = 1 + int((i + rng.random()) / part * (sum(EPOCHS) - 8))
            pattern = rng.choice(["metrics.jsonl", "orbax-checkpoint-tmp", f"progress/00{group}"])
            delay_s = rng.choice([0, rng.uniform(0, 0.02)])
            moments.append(Moment(group, step, pattern, rng.randint(1, 6), delay_s))
        moments += [moment for moment in own if moment in chosen]
    for moment in starts:
        moments.insert(rng.randrange(len(moments)), moment)
    return moments


def run(
    workdir: Path,
    moment: Moment,
    has_figures: bool,
    environment: dict[str, str],
    start_s: float = 0.0,
) -> bool:
    """Goes on with a run, a bare start of which takes `start_s`; whether it was killed."""
    when = [moment.group, moment.step, moment.pattern, moment.count, moment.delay_s]
    driver = [workdir, *when, int(has_figures)]
    command = [sys.executable, "-c", DRIVER, *map(str, driver), *RUN, f"--workdir={workdir}"]
    process = subprocess.Popen(
        [*command, "--resume"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=moment.at_start and moment.at_start * start_s)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"{moment}: exit code {process.returncode}: {said[-2000:]}")
    return process.returncode == -signal.SIGKILL


def check_tables(pieces: Path, whole: Path) -> None:
    """Every table that there is already is whole, and that of the run that nobody killed."""
    for path in pieces.rglob("*.csv"):
        assert path.read_bytes() == (whole / path.relative_to(pieces)).read_bytes(), path
    for path in pieces.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def compare(pieces: Path, whole: Path) -> tuple[int, int]:
    """Compares two runs bit by bit: the numbers of rows and of networks."""
    check_tables(pieces, whole)
    for name in ("results.csv", "summary.json", "metrics.jsonl"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes(), name
    table = read_results(pieces)
    networks = sorted(set(zip(table["member"], table["selection"], strict=True)))
    for network in networks:
        ours, theirs = (load_member(folder, *network)[1] for folder in (pieces, whole))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    files, others = ({p.relative_to(d) for d in [x] for p in d.rglob("*")} for x in (pieces, whole))
    left_over = [path for path in files - others if "tmp" in path.name]
    assert not left_over, left_over
    return len(table), len(networks)


def soak(folder: Path, moments: Sequence[Moment], has_figures: bool = True) -> str:
    """Kills a run at these moments and compares it: a line about it.

    Raises:
      AssertionError: something was lost, is different, or the run was not killed.
    """
    environment = {  # compiled once: it is not what is tested
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    started = time.monotonic()
    whole, pieces = folder / "whole", folder / "pieces"
    assert not run(whole, Moment(), has_figures, environment)
    start_s = 0.0
    if any(moment.at_start for moment in moments):
        start_s = -time.monotonic()
        assert not run(whole, Moment(), has_figures, environment)  # finished: it only starts
        start_s += time.monotonic()
    for moment in moments:
        is_killed = run(pieces, moment, has_figures, environment, start_s)
        print(f"{'killed' if is_killed else 'not killed'}: {moment}", file=sys.stderr, flush=True)
        assert is_killed, f"the run ended before {moment}"
        check_tables(pieces, whole)
    assert not run(pieces, Moment(), has_figures, environment)
    rows, networks = compare(pieces, whole)
    return (
        f"{len(moments)} kills survived; {rows} rows and {networks} networks compared, all equal "
        f"bit for bit; {time.monotonic() - started:.0f} s"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="at least 6")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = choose_moments(arguments.kills, random.Random(arguments.seed))
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(soak(Path(folder), moments))
        except AssertionError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
