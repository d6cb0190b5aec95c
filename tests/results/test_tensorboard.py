"""--tensorboard, read by TensorBoard itself: what metrics.jsonl says, whatever happens to a run."""

import sys

import pytest

from normjax.results import metrics, tensorboard
from normjax.training import plan
from normjax.training.config import SweepConfig
from tests.helpers.commands import error_of, parse
from tests.helpers.events import expected, scalars
from tests.helpers.synthetic_metrics import BETTER, make_lines

RUN = ["--train_size=90", "--test_size=40", "--model=linear", "--corruption_levels=0,1"]
RUN += ["--members_per_group=1", "--pretrain_epochs=1", "--epochs=3", "--batch_size=32"]
RUN += ["--norms=2", "--test_every=2", "--checkpoint_every=2"]


def assert_complete(folder):
    found = scalars(folder)
    assert found == expected(metrics.read_lines(folder))
    networks = {"000_pretrain_level=0_seed=0", "001_pretrain_level=1_seed=0"}
    assert {key[0] for key in found} == networks
    assert {key[1] for key in found} >= {"running_normalized_excess", "test_loss"}
    assert {key[2] for key in found} == {1, 2, 3, 4}


@pytest.fixture(scope="module")
def run(invoke):
    """`run(folder, *flags, stop=None)`; `stop`: the group and step after which it fails."""
    make_ensemble, append = plan.make_ensemble, metrics.append_metrics
    ensembles = []

    def make_once(*args, **how):
        if not ensembles:
            ensembles.append(make_ensemble(*args, **how))
        return ensembles[0]

    def run(folder, *flags, stop=None):
        def append_and_stop(run_dir, members, common, values):
            lines = append(run_dir, members, common, values)
            if (common["group"], common["step"]) == stop:
                raise RuntimeError("stopped")
            return lines

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "make_ensemble", make_once)
            patch.setattr(metrics, "append_metrics", append_and_stop)
            invoke(*RUN, f"--workdir={folder}", *flags)

    return run


@pytest.mark.slow
def test_a_run_and_a_finished_run(run, tmp_path):
    run(tmp_path / "run")
    assert not (tmp_path / "run" / tensorboard.FOLDER).exists()
    run(tmp_path / "run", "--resume", "--tensorboard")
    assert_complete(tmp_path / "run")
    run(tmp_path / "new", "--tensorboard")
    assert scalars(tmp_path / "new") == scalars(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("first", [["--tensorboard"], []])
def test_a_resumed_run(run, tmp_path, first):
    """Group 0 is finished; of group 1, the last epoch is trained again from a checkpoint."""
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        run(folder, *first, stop=(1, 3))
    run(folder, "--resume", "--tensorboard")
    assert_complete(folder)


def test_the_first_lines_of_a_network_replace_its_file(tmp_path):
    lines, other = make_lines(3, 0.5, BETTER), make_lines(4, 1e-3, BETTER)
    with tensorboard.event_files(tmp_path, True) as write:
        write(lines[:4] + other)
        assert scalars(tmp_path) == expected(lines[:4] + other)  # what is written is there to see
    (path,) = tmp_path.glob("*/003*/*")
    path.write_bytes(path.read_bytes()[:-3])  # a killed process
    with tensorboard.event_files(tmp_path, True) as write:
        write(lines[:3])
        write(lines[3:])
    assert scalars(tmp_path) == expected(lines + other)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    """Without one, the run would go on without its events, or hang."""
    lines = make_lines(3, 0.5, BETTER)
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: full)
        with (
            pytest.raises(OSError, match=r"No space left on device: '.*level=0.5_seed=0'"),
            tensorboard.event_files(tmp_path, True) as write,
        ):
            write(lines)


def test_without_the_extra_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    folder = tmp_path / "run"
    said = error_of(parse, SweepConfig, *RUN, "--tensorboard", f"--workdir={folder}")
    assert said.startswith("error: --tensorboard=true: ") and "tensorboardX" in said
    assert said.endswith("pip install 'normjax[tensorboard]'")
    assert not folder.exists()
    parse(SweepConfig, *RUN, f"--workdir={folder}")
