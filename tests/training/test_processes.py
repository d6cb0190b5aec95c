"""Devices and processes: a run is the same on any number of them, and goes on on any other."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from normjax.data.cifar import LAYOUTS
from normjax.results.metrics import read_lines
from normjax.results.table import read_results
from normjax.training import processes
from normjax.training.saved import load_member
from tests.helpers.cifar_archives import BINARY, draw_examples, write_files
from tests.helpers.events import expected, scalars
from tests.helpers.tables import assert_close

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Five networks: padded on every layout that is tried. A target, tests in between.
RUN = [
    "--dataset=digits",
    "--train_size=90",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=0,0.25,0.5,0.75,1",
    "--pretrain_epochs=3",
    "--epochs=5",
    "--batch_size=32",
    "--learning_rate=0.15",
    "--target_losses=0.3",
    "--norms=2",
    "--test_every=2",
    "--checkpoint_every=100",
]

# A sweep without figures, which at a step does as it is told: a signal's number, or 0: raise.
DRIVER = """
import os, sys
step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
import normjax
from experiments import flags
from normjax.training import ensemble
from normjax.plots import paper as plotting
from normjax.report import run_page as report
from normjax.training import phases
from normjax.training.config import SweepConfig

plotting.draw_figures = lambda *_: []
report.write_report = lambda run_dir: (run_dir / "report.html").write_text("")
epoch_of = phases.epoch_of

def act(sweep, now):
    if now + 1 == step and not number:
        raise RuntimeError("a bug")
    if now + 1 == step and not sweep.signal():
        os.kill(os.getpid(), number)
    return epoch_of(sweep, now)

def main(config):
    run = normjax.run_sweep(config)
    print("loaded", len(run.table), len(run.members), len(run.dataset.test.labels))

phases.epoch_of = act
flags.run(main, SweepConfig, workdir="runs/random_pretrain")
"""
NOTHING = (0, 1)
LIMIT_S = 100


class Ended:
    """A process that has ended."""

    def __init__(self, process):
        self.stdout, self.stderr = process.communicate(timeout=LIMIT_S)
        self.code = process.returncode
        self.args = process.args


@contextlib.contextmanager
def launch(commands, num_devices):
    """These processes, each with so many CPU devices; none outlives the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": re.sub(r"(device_count)=\d+", rf"\1={num_devices}", os.environ["XLA_FLAGS"]),
    }
    options = {"env": environment, "text": True, "stdout": -1, "stderr": -1, "cwd": ROOT}
    launched = [subprocess.Popen(command, **options) for command in commands]
    try:
        yield launched
    finally:
        for process in launched:
            process.kill()
            process.communicate()


def run(arguments, num_devices, num_processes=1, acts=(NOTHING, NOTHING), own=((), ())):
    """Runs an experiment to its end, with each process's own arguments last: how each ended."""
    commands = []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for i, act, last in zip(range(num_processes), acts, own, strict=False):
        place = [f"--distributed=localhost:{port},{num_processes},{i}"] if num_processes > 1 else []
        given = [*RUN, *arguments, *place, *last]
        commands.append([sys.executable, "-c", DRIVER, *map(str, act), *given])
    with launch(commands, num_devices) as launched:
        return [Ended(process) for process in launched]


def assert_all_well(ended):
    assert [process.code for process in ended] == [0] * len(ended), ended[-1].stderr


def assert_same_run(ours, theirs):
    """Two runs' tables, metrics and networks, member by member."""
    assert_close(read_results(ours), read_results(theirs), rtol=1e-5, atol=1e-6)
    mine, others = metrics_of(ours), metrics_of(theirs)
    assert mine.keys() == others.keys() and len(mine) == 5 * 8
    for key, values in mine.items():
        np.testing.assert_allclose(values, others[key], rtol=1e-5, atol=1e-6)
    for member in range(5):
        mine, other = (load_member(d, member)[1]["params"] for d in (ours, theirs))
        np.testing.assert_allclose(
            mine["Dense_0"]["kernel"], other["Dense_0"]["kernel"], rtol=1e-5, atol=1e-6
        )


def metrics_of(run_dir):
    """{(member, step): its values}; every line once."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("running_loss", "running_error", "train_loss", "test_loss", "test_error")
    found = {
        (line["member"], line["step"]): [np.nan if line.get(n) is None else line[n] for n in names]
        for line in lines
    }
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on one device."""
    run_dir = tmp_path_factory.mktemp("one") / "device"
    assert_all_well(run([f"--workdir={run_dir}"], 1))
    table = read_results(run_dir)
    final = table[table["selection"] == "final"]
    assert sorted(final["member"]) == [0, 1, 2, 3, 4] and final["train_loss"].nunique() == 5
    assert 1 <= len(table) - 5 < 5  # some reach the target
    return run_dir


def test_two_processes_of_four_devices_are_one_device(whole, tmp_path):
    """In groups of three and two: each is padded, and the second process has copies alone."""
    arguments = [f"--workdir={tmp_path / 'run'}", "--members_per_group=3", "--tensorboard"]
    ended = run(arguments, 4, 2)
    assert_all_well(ended)
    assert scalars(tmp_path / "run") == expected(read_lines(tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["groups"] == [[0, 1, 2], [3, 4]] and len(record["devices"]) == 8
    assert f"{len(read_results(whole))} rows" in ended[0].stdout and "rows" not in ended[1].stdout
    assert "epoch" in ended[0].stderr and "epoch" not in ended[1].stderr
    assert "distributed" not in (tmp_path / "run" / "flags.txt").read_text()


def test_a_stopped_run_goes_on_on_another_layout(whole, tmp_path):
    """8 devices, SIGINT while pretraining; 2 processes, SIGTERM to one of them; 1 device."""
    arguments = [f"--workdir={tmp_path / 'run'}"]
    (stopped,) = run(arguments, 8, acts=[(2, signal.SIGINT)])
    assert stopped.code == 130
    assert checkpoints_of(tmp_path / "run") == [2]
    assert "SIGINT: stopping after this epoch" in stopped.stderr
    said, command = stopped.stderr.rsplit("; continue with: ", 1)
    assert said.endswith(f"{tmp_path / 'run'}: stopped by SIGINT")
    assert shlex.split(command) == [*stopped.args, "--resume"]

    ended = run([*arguments, "--resume"], 4, 2, acts=[NOTHING, (6, signal.SIGTERM)])
    assert [process.code for process in ended] == [143, 143]
    assert checkpoints_of(tmp_path / "run") == [3, 6]  # 3: the end of the first phase
    assert "continue with" in ended[0].stderr and "continue with" not in ended[1].stderr

    (resumed,) = run([*arguments, "--resume"], 1)
    assert_all_well([resumed])
    assert "epoch 7 of 8" in resumed.stderr and "epoch 6 of 8" not in resumed.stderr
    assert_same_run(tmp_path / "run", whole)


def checkpoints_of(run_dir):
    """The epochs whose checkpoints the first group has."""
    folder = run_dir / "checkpoints" / "progress" / "000"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_only_process_0_needs_the_folder_and_the_data(tmp_path):
    """From the start through SIGTERM to the end; the second process can make neither folder."""
    layout = LAYOUTS["cifar10"][BINARY]
    files = write_files("cifar10", layout, draw_examples("cifar10", (20, 20, 20, 20, 20, 40)))
    (tmp_path / "data" / layout.folder).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "data" / layout.folder / name).write_bytes(content)

    def places(run_dir):
        return [f"--workdir={run_dir}", f"--data_dir={tmp_path / 'data'}"]

    flags = ["--dataset=cifar10", "--learning_rate=0.001"]
    assert_all_well(run([*flags, *places(tmp_path / "whole")], 2))
    own = [places(tmp_path / "run"), ["--workdir=/proc/none/run", "--data_dir=/proc/none/data"]]
    ended = run(flags, 2, 2, acts=[NOTHING, (6, signal.SIGTERM)], own=own)
    assert [process.code for process in ended] == [143, 143], ended[-1].stderr
    assert checkpoints_of(tmp_path / "run") == [3, 6]
    ended = run([*flags, "--resume"], 2, 2, own=own)
    assert_all_well(ended)
    assert "epoch 7 of 8" in ended[0].stderr and "epoch 6 of 8" not in ended[0].stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    loaded = f"loaded {len(read_results(tmp_path / 'whole'))} 5 40\n"
    assert all(process.stdout.endswith(loaded) for process in ended)


@pytest.mark.parametrize(
    ("own", "messages"),
    [
        ((["--dataset=folder:no/such"], []), ["no/such", "no/such"]),
        (([], ["--epochs=6"]), [processes.ELSEWHERE, "process 0 has a different --epochs"]),
    ],
)
def test_processes_that_cannot_start_end_together(tmp_path, own, messages):
    """Process 0 lacks its data, and all say so; or the other one has another setting."""
    ended = run([f"--workdir={tmp_path / 'run'}"], 1, 2, own=own)
    for process, message in zip(ended, messages, strict=True):
        assert process.code == 1
        line = process.stderr.splitlines()[-1]
        assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()


def test_a_process_does_not_wait_for_one_that_failed(tmp_path):
    started = time.monotonic()
    ended = run([f"--workdir={tmp_path / 'run'}"], 1, 2, acts=[NOTHING, (4, 0)])
    assert "RuntimeError: a bug" in ended[1].stderr and ended[1].code == 1
    assert ended[0].code not in (0, None)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run" / "results.csv").exists()


def test_outside_a_cluster_auto_is_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "0", "1", "--distributed=auto", "--workdir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
    assert done.stderr.splitlines()[-1].startswith(
        "error: --distributed=auto: JAX finds no cluster"
    )


def test_a_coordinator_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0)
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 does not answer at localhost:{port}"):
            processes.connect(f"localhost:{port},2,1")


def test_what_the_flag_says():
    assert processes.parse("none") is processes.parse("auto") is None
    assert processes.parse("a.b:80,4,3") == processes.Address("a.b:80", 4, 3)
    assert processes.parse("[::1]:80,1,0") == processes.Address("[::1]:80", 1, 0)
