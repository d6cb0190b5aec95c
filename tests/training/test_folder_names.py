"""What is saved can be read, whatever its folder is called; and it is read before it counts."""

import contextlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.results import metrics
from normjax.training import saved
from normjax.training.checkpoints import open_progress, restore_progress, save_progress
from normjax.training.ensemble import Member
from normjax.training.finished_run import load_run, networks_at
from normjax.training.saved import load_member, read_rows, rows_path, save_network, save_rows
from tests.helpers.synthetic_results import synthetic_table

NAMES = [
    "seed[1-3]",
    "back\\slash",
    "**",
    "gs:",
    "a?b*c",
    "100%2e # $HOME {x} ",
    "both ' and \"",
    "größer 模型 🙂",
]
MEMBERS = [0, 1]


def tree_of(value):
    return {"params": {"Dense_0": {"kernel": jnp.full((2, 3, 4), value)}}}


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_found_again(tmp_path, capfd, name):
    run_dir = tmp_path / name / "run"
    for epoch in (1, 2):
        with open_progress(run_dir, 0) as checkpointer:
            state, before = restore_progress(checkpointer, tree_of(0.0), MEMBERS)
            assert before == epoch - 1
            np.testing.assert_array_equal(jax.tree.leaves(state)[0], float(before))
            save_progress(checkpointer, epoch, tree_of(float(epoch)), MEMBERS)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and nothing beside it
    assert "cannot be read" not in capfd.readouterr().err


def test_a_folder_for_links_that_has_no_plain_name_itself_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tmp[0]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp[0]"))
    with open_progress(tmp_path / "plain", 0):
        pass
    with (
        pytest.raises(OSError, match=r"such a name needs a TMPDIR of plain letters, not .*tmp\[0"),
        open_progress(tmp_path / "run*", 0),
    ):
        pass
    assert not list((tmp_path / "tmp[0]").iterdir())


RUN = ["--train_size=60", "--test_size=45", "--model=linear", "--corruption_levels=0.5"]
RUN += ["--num_seeds=3", "--pretrain_epochs=1", "--epochs=3", "--batch_size=32", "--norms=2"]
RUN += ["--checkpoint_every=1"]


class Interrupted(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.slow
def test_a_run_in_an_oddly_named_folder_is_resumed_and_loaded(invoke, tmp_path, monkeypatch, capfd):
    whole, odd = tmp_path / "plain", tmp_path / "[lr]" / "0.1*2\\run #1 100%? \"ü'"
    invoke(*RUN, f"--workdir={whole}")
    append = metrics.append_metrics

    def append_and_stop(run_dir, members, common, values):
        append(run_dir, members, common, values)
        if common["step"] == 3:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(metrics, "append_metrics", append_and_stop)
        invoke(*RUN, f"--workdir={odd}")
    capfd.readouterr()
    invoke(*RUN, f"--workdir={odd}", "--resume")
    said = "".join(capfd.readouterr())
    assert "cannot be read" not in said and "starting from the beginning" not in said
    for name in ("results.csv", "metrics.jsonl"):
        assert (odd / name).read_bytes() == (whole / name).read_bytes()
    for member in range(3):
        ours, theirs = (load_member(folder, member)[1] for folder in (odd, whole))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert len(list(networks_at(load_run(odd), "final"))) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["[lr]", "plain"]


@pytest.fixture
def losing_disk(monkeypatch):
    """A disk that keeps one bit of each network's file and of each table otherwise."""
    replacing = saved.replacing

    @contextlib.contextmanager
    def replacing_and_flipping(path):
        with replacing(path) as temporary:
            yield temporary
            content = bytearray(temporary.read_bytes())
            content[len(content) // 2] ^= 1
            temporary.write_bytes(content)

    monkeypatch.setattr(saved, "replacing", replacing_and_flipping)


def test_a_network_that_cannot_be_read_back_is_an_error(tmp_path, losing_disk):
    member = Member(3, 0, "pretrain", 0.5)
    message = r"003_final.npz: what was written cannot be read back: "
    with pytest.raises(OSError, match=message):
        save_network(tmp_path, 0, member, "final", jax.tree.map(np.asarray, tree_of(1.0)))


def test_rows_that_cannot_be_read_back_finish_no_group(tmp_path, monkeypatch):
    table = synthetic_table((0.5,), 2, ("2",))
    write = saved.write_results
    monkeypatch.setattr(
        saved, "write_results", lambda path, rows: write(path, rows.assign(train_loss=0.25))
    )
    message = r"000.csv: what was written cannot be read back: its rows are not those of the group"
    with pytest.raises(OSError, match=message):
        save_rows(tmp_path, 0, table)
    assert not rows_path(tmp_path, 0).exists()
    monkeypatch.undo()
    save_rows(tmp_path, 0, table)
    assert read_rows(tmp_path, 0).equals(table)
