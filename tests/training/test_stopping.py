"""--stop_at_targets: networks stop once they have their snapshots, and nothing else changes."""

import json

import pytest

from normjax.results.table import read_results
from normjax.training import phases
from normjax.training.config import SweepConfig
from tests.helpers.commands import error_of, parse

EPOCHS = 60
COMMON = (
    "--dataset=digits",
    "--train_size=64",
    "--test_size=32",
    "--batch_size=16",
    "--corruption_levels=0,1",
    "--pretrain_epochs=3",
    "--learning_rate=0.05",
    "--target_losses=0.1,0.02",
    "--norms=2",
    "--test_every=2",
    f"--epochs={EPOCHS}",
)


def read(folder):
    """Snapshots, final rows and lines of metrics."""
    table = read_results(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    is_final = table["selection"] == "final"
    return table[~is_final], table[is_final], [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, invoke):
    """The same networks, all epochs and stopped."""
    folder = tmp_path_factory.mktemp("stopping")
    invoke(*COMMON, f"--workdir={folder / 'all'}")
    invoke(*COMMON, "--stop_at_targets", f"--workdir={folder / 'stopped'}")
    return folder


@pytest.mark.slow
def test_snapshots_are_those_of_all_epochs(runs):
    """Bit for bit, and training ends early."""
    kept_all, final_all, lines_all = read(runs / "all")
    kept, final, lines = read(runs / "stopped")
    assert kept_all.equals(kept) and len(kept) == 4
    assert (final_all["epoch"] == EPOCHS).all()
    assert final["epoch"].max() < EPOCHS and final["epoch"].nunique() == 2
    assert (final["train_loss"] <= 0.02).all() and (final["train_error"] == 0).all()
    assert (final["epoch"].to_numpy() >= kept.groupby("member")["epoch"].max().to_numpy()).all()

    by_step = {(line["member"], line["step"]): line for line in lines_all}
    stopped = dict(zip(final["member"], 3 + final["epoch"], strict=True))
    assert max(line["step"] for line in lines) == max(stopped.values())
    for line in lines:
        if line["step"] <= stopped[line["member"]]:
            same = by_step[line["member"], line["step"]]
            assert line["running_loss"] == same["running_loss"]
            assert line.get("test_loss") == same.get("test_loss")
        else:
            names = [n for n in line if n.startswith(("running_", "train_", "test_"))]
            assert names and all(line[name] is None for name in (*names, "diverged_at"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["one has stopped", "both have stopped"])
def test_a_resumed_run_is_the_same(runs, tmp_path, invoke, monkeypatch, when):
    """A signal after an epoch; a group that has stopped is not trained again."""
    kept, final, lines = read(runs / "stopped")
    last = 3 + (final["epoch"].min() + 1 if when == "one has stopped" else final["epoch"].max())
    original, all_max = phases.metrics.append_metrics, phases.processes.all_max
    count = 0

    def append(*args):
        nonlocal count
        count += 1
        return original(*args)

    monkeypatch.setattr(phases.metrics, "append_metrics", append)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(
            phases.processes, "all_max", lambda value: 15 if count == last else all_max(value)
        )
        invoke(*COMMON, "--stop_at_targets", f"--workdir={tmp_path / 'run'}")
    assert stopped.value.code == 143 and count == last
    invoke(*COMMON, "--stop_at_targets", f"--workdir={tmp_path / 'run'}", "--resume")
    assert count == 3 + final["epoch"].max()
    kept_again, final_again, lines_again = read(tmp_path / "run")
    assert kept_again.equals(kept) and final_again.equals(final) and lines_again == lines


@pytest.mark.slow
def test_with_an_epoch_ahead_as_on_accelerators(runs, tmp_path, invoke, monkeypatch):
    """The next epoch takes the memory of a state whose metrics are still to be written."""
    monkeypatch.setattr(phases, "epochs_ahead", lambda: 1)
    invoke(*COMMON, "--stop_at_targets", f"--workdir={tmp_path / 'run'}")
    kept, final, lines = read(tmp_path / "run")
    expected_kept, expected_final, expected_lines = read(runs / "stopped")
    assert kept.equals(expected_kept) and final.equals(expected_final)
    assert lines[: len(expected_lines)] == expected_lines


def test_targets_are_needed():
    message = error_of(parse, SweepConfig, "--stop_at_targets", workdir="run")
    assert message == "error: --stop_at_targets=true: --target_losses is needed"
