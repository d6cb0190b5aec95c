"""Signals: the first one ends a run where it can go on, the second one at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from normjax.results.table import read_results
from normjax.training import groups, interrupts

ROOT = Path(__file__).parents[2]
RUN = [
    "--dataset=digits",
    "--train_size=60",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=0,1",
    "--pretrain_epochs=1",
    "--epochs=3",
    "--batch_size=32",
    "--norms=2",
]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_its_handlers_are_put_back(signum):
    before = [signal.getsignal(s) for s in interrupts.SIGNALS]
    with interrupts.delayed() as received:
        assert received() == 0
        os.kill(os.getpid(), signum)
        assert received() == signum
        # A second one would be obeyed, and is tried in a process of its own.
    assert [signal.getsignal(s) for s in interrupts.SIGNALS] == before
    with interrupts.delayed() as received:
        assert received() == 0


def test_what_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.delayed() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert received() == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_program_at_once(second):
    code = (
        "import os, signal\n"
        "from normjax.training import interrupts\n"
        "with interrupts.delayed() as received:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('noted', flush=True)\n"
        f"    os.kill(os.getpid(), {int(second)})\n"
        "    print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -second and done.stdout == "noted\n"
    assert done.stderr.strip().startswith("SIGTERM: stopping after this epoch with a checkpoint")


def test_other_threads_get_no_signals():
    found = []

    def enter():
        with interrupts.delayed() as received:
            found.append(received())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_run_stopped_while_it_is_evaluated_trains_no_more(invoke, tmp_path, monkeypatch, capsys):
    """The checkpoint of the last epoch is there, whatever --checkpoint_every says."""
    invoke(*RUN, f"--workdir={tmp_path / 'whole'}")
    evaluate = groups.evaluate_selection
    targets = ["--target_losses=0.1", f"--workdir={tmp_path / 'run'}"]

    def evaluate_and_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(groups, "evaluate_selection", evaluate_and_signal)
        invoke(*RUN, *targets)
    assert stop.value.code == 143
    assert "stopped by SIGTERM; continue with: " in capsys.readouterr().err
    invoke(*RUN, *targets, "--resume")
    assert "epoch" not in capsys.readouterr().err
    table = read_results(tmp_path / "run")
    final = table[table["selection"] == "final"].reset_index(drop=True)
    assert final.equals(read_results(tmp_path / "whole"))
