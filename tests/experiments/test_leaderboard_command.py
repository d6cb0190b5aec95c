"""The leaderboard of a tiny run, from the command line to its page and figure."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import stats

from experiments import leaderboard, random_labels
from normjax.generalization.measures import MEASURES
from normjax.generalization.sharpness import SHARPNESS_MEASURES
from normjax.plots import paper as plotting
from normjax.results.rows import read_results, select

ARGUMENTS = (
    "--dataset=digits",
    "--model=linear",
    "--train_size=60",
    "--test_size=200",
    "--corruption_levels=0,1",
    "--num_seeds=2",
    "--pretrain_epochs=10",
    "--epochs=20",
    "--batch_size=20",
    "--learning_rate=0.05",
    "--norms=2",
    "--members_per_group=6",
)


def parse(*arguments):
    values = flags.FlagValues()
    leaderboard.define_flags(values)
    return leaderboard.parse(["leaderboard", *map(str, arguments)], values)


def error_of(*arguments):
    with pytest.raises(SystemExit) as stop:
        leaderboard.main(parse(*arguments))
    message = stop.value.code
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def run_dir(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("leaderboard") / "run"
    with pytest.MonkeyPatch.context() as patch:  # the run's own figures take longest
        patch.setattr(plotting, "draw_figures", lambda *_: [])
        invoke(*ARGUMENTS, f"--workdir={run_dir}", main=random_labels.main)
    return run_dir


@pytest.fixture(scope="module")
def workdir(run_dir):
    workdir = run_dir.parent / "board"
    leaderboard.main(parse(f"--from={run_dir}", f"--workdir={workdir}", "--sharpness_images=40"))
    return workdir


def read_columns(path):
    """A table's columns by name, some of them texts."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {name: table[name] for name in table.dtype.names}


@pytest.fixture
def unmeasured(monkeypatch):
    """Measures that cost nothing: the position of a network."""

    def measure(_config, _runs, chosen):
        return {"position": list(range(len(chosen.rows)))}

    monkeypatch.setattr(leaderboard, "measure", measure)


def test_measures_are_those_of_the_runs_networks(run_dir, workdir):
    table = read_columns(workdir / "measures.csv")
    rows = [r for r in select(read_results(run_dir), norm="2") if r.family == "pretrain"]
    assert table["member"].tolist() == [row.member for row in rows] == [0, 1, 2, 3]
    assert table["corruption"].tolist() == [0, 0, 1, 1] and table["seed"].tolist() == [0, 1, 0, 1]
    for name, values in (
        ("test_error", [row.test_error for row in rows]),
        ("train_loss_nats", [row.train_loss for row in rows]),
        ("normalized_test_loss_nats", [row.normalized_test_loss for row in rows]),
        ("log_product_frobenius", np.log([row.product_norm for row in rows])),
        ("train_loss", [row.train_loss for row in rows]),
        ("normalized_train_loss", [row.normalized_train_excess for row in rows]),
    ):
        np.testing.assert_allclose(table[name], values, rtol=1e-5, err_msg=name)
    assert {*MEASURES, *SHARPNESS_MEASURES} < {*table}
    for name in SHARPNESS_MEASURES:  # sigma lies between 1e-4 and 10
        assert ((-2 * np.log(10) < table[name]) & (table[name] < -2 * np.log(1e-4))).all()
        assert len(set(table[name])) > 1


def test_the_leaderboard_ranks_what_was_measured(workdir):
    measures, board = (
        read_columns(workdir / "measures.csv"),
        read_columns(workdir / "leaderboard.csv"),
    )
    assert sorted(board["measure"]) == sorted([*MEASURES, *SHARPNESS_MEASURES])
    for name, tau, other, psi in zip(
        board["measure"],
        board["tau"],
        board["tau_normalized_test_loss"],
        board["psi_corruption"],
        strict=True,
    ):
        values, error = measures[name], measures["test_error"]
        assert tau == pytest.approx(
            stats.kendalltau(values, error).statistic, abs=1e-12, nan_ok=True
        )
        expected = stats.kendalltau(values, measures["normalized_test_loss_nats"]).statistic
        assert other == pytest.approx(expected, abs=1e-12, nan_ok=True)
        # Of each seed there are two networks; their order is right or wrong, or they tie.
        pairs = [(values[i], values[i + 2], error[i], error[i + 2]) for i in (0, 1)]
        orders = [1 if (a < b) == (c < d) else -1 for a, b, c, d in pairs if a != b and c != d]
        assert psi == pytest.approx(np.mean(orders) if orders else np.nan, abs=1e-12, nan_ok=True)
    taus = board["tau"][~np.isnan(board["tau"])]
    assert (np.diff(taus) <= 0).all() and len(taus) >= 20


def test_page_and_figure(workdir):
    page = (workdir / "leaderboard.md").read_text(encoding="utf-8")
    assert page.startswith("# Leaderboard: digits · linear · 4 networks · last epoch\n")
    assert page.count("its test error is on random labels") == 2
    assert "member 4 (random_labels, level 1, seed 0)" in page
    assert "on 40 training images" in page and "200 test examples" in page
    assert "The networks differ in: corruption, seed." in page
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    board = read_columns(workdir / "leaderboard.csv")
    assert [line.split("`")[1] for line in lines] == board["measure"].tolist()
    assert lines[0].split("|")[2].strip() == f"{board['tau'][0]:.2f}"
    with Image.open(workdir / "figures" / "leaderboard.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert (workdir / "figures" / "leaderboard.pdf").read_bytes().startswith(b"%PDF")


def test_several_runs_of_one_kind(run_dir, tmp_path, unmeasured):
    other = shutil.copytree(run_dir, tmp_path / "other")
    leaderboard.main(parse(f"--from={run_dir},{other}", f"--workdir={tmp_path / 'board'}"))
    table = read_columns(tmp_path / "board" / "measures.csv")
    assert table["run"].tolist() == [str(run_dir)] * 4 + [str(other)] * 4
    run = json.loads((other / "run.json").read_text())
    run["config"]["model"] = "convnet3"
    (other / "run.json").write_text(json.dumps(run))
    message = error_of(f"--from={run_dir},{other}", f"--workdir={tmp_path / 'board'}")
    assert "networks of one kind are ranked" in message and "--model=convnet3" in message


def test_a_target_loss_comes_before_the_last_epoch(run_dir):
    run = leaderboard.load_runs(parse(f"--from={run_dir}"))[0]
    assert leaderboard.first_selection(run) == "final"
    rows = [row._replace(selection=name) for name in ("final", "loss=0.1") for row in run.rows]
    assert leaderboard.first_selection(run._replace(rows=rows)) == "loss=0.1"


def test_bad_input_is_one_line(run_dir, tmp_path, unmeasured):
    good = f"--from={run_dir}"
    assert "--from=: the folder of a finished run is needed" in error_of()
    assert "every run may stand there once" in error_of(f"--from={run_dir},{run_dir}")
    assert "no run here" in error_of(f"--from={tmp_path}")
    assert "holds a run: give another folder" in error_of(good, f"--workdir={run_dir}")
    (tmp_path / "file").write_text("")
    assert "is a file" in error_of(good, f"--workdir={tmp_path / 'file'}")
    assert "must be at least 1" in error_of(good, "--sharpness_images=0")
    assert "--seed=-1" in error_of(good, "--seed=-1")
    message = error_of(good, "--selection=loss=9", f"--workdir={tmp_path / 'board'}")
    assert "no networks at selection 'loss=9'; there are: final" in message
    assert not (tmp_path / "board").exists()


def test_factors_are_what_the_networks_differ_in(run_dir):
    run = leaderboard.load_runs(parse(f"--from={run_dir}"))[0]
    chosen = leaderboard.choose_networks([run], "final")
    two_seeds = ["0", "1", "0", "1"]
    factors = leaderboard.factors_of([run], chosen)
    assert factors == {"corruption": ["0", "0", "1", "1"], "seed": two_seeds}
    scaled = [row._replace(family="init_scale", level=(1 + row.level) / 8) for row in chosen.rows]
    factors = leaderboard.factors_of([run], chosen._replace(rows=scaled))
    assert factors == {"std": ["0.125", "0.125", "0.25", "0.25"], "seed": two_seeds}
    repeated = [row._replace(family="default_init", level=0.0) for row in chosen.rows[:2]]
    factors = leaderboard.factors_of([run], leaderboard.Ranked([0, 0], repeated, [], []))
    assert factors == {"seed": ["0", "1"]}


def test_too_few_networks_are_counted(run_dir, tmp_path):
    run = leaderboard.load_runs(parse(f"--from={run_dir}"))[0]
    few = run._replace(rows=[row for row in run.rows if row.member in (0, 1, 4, 5)])
    with pytest.raises(ValueError, match="2 networks to rank at selection 'final'; at least 3"):
        leaderboard.choose_networks([few], "final")
    diverged = [row._replace(test_loss=np.nan) if row.member == 1 else row for row in run.rows]
    chosen = leaderboard.choose_networks([run._replace(rows=diverged)], "final")
    assert [row.member for row in chosen.rows] == [0, 2, 3]
    assert sum("diverged" in line for line in chosen.left_out) == 1
