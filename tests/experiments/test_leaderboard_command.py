"""The leaderboard of a tiny run, from the command line to its page and figure."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments import leaderboard, random_labels
from normjax.generalization import leaderboard as library
from normjax.generalization.measures import MEASURES
from normjax.plots import paper as plotting
from normjax.results.table import on_own_labels, read_results, select
from tests.helpers import commands

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


parse = functools.partial(commands.parse, leaderboard.Config)


def error_of(*arguments):
    return commands.error_of(lambda: leaderboard.main(parse(*arguments)))


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
    leaderboard.main(
        parse(
            f"--from={run_dir}",
            f"--workdir={workdir}",
            "--sharpness_images=40",
            "--sample_images=50",
        )
    )
    return workdir


@pytest.fixture
def unmeasured(monkeypatch):
    """Measures that cost nothing: the position of a network."""

    def measure(_runs, chosen, **_):
        return pd.DataFrame({"train_loss": range(len(chosen.networks))})

    monkeypatch.setattr(library, "measure_networks", measure)


def test_measures_are_those_of_the_runs_networks(run_dir, workdir):
    table = pd.read_csv(workdir / "measures.csv")
    rows = select(on_own_labels(read_results(run_dir)), norm="2").query("family == 'pretrain'")
    assert table["member"].tolist() == rows["member"].tolist() == [0, 1, 2, 3]
    assert table["corruption"].tolist() == [0, 0, 1, 1] and table["seed"].tolist() == [0, 1, 0, 1]
    for name, values in (
        ("test_error", rows["test_error"]),
        ("train_loss_nats", rows["train_loss"]),
        ("normalized_test_loss_nats", rows["normalized_test_loss"]),
        ("log_product_frobenius", np.log(rows["product_norm"])),
        ("train_loss", rows["train_loss"]),
        ("normalized_train_loss", rows["normalized_train_excess"]),
    ):
        np.testing.assert_allclose(table[name], values, rtol=1e-5, err_msg=name)
    assert {*MEASURES} < {*table}
    for name in ("pac_bayes_flatness", "pac_bayes_magnitude_flatness"):
        # sigma lies between 1e-4 and 10
        assert ((-2 * np.log(10) < table[name]) & (table[name] < -2 * np.log(1e-4))).all()
        assert len(set(table[name])) > 1


def test_the_leaderboard_ranks_what_was_measured(workdir):
    measures, board = (
        pd.read_csv(workdir / "measures.csv"),
        pd.read_csv(workdir / "leaderboard.csv"),
    )
    assert sorted(board["measure"]) == sorted(MEASURES)
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
        orders = [np.sign(a - b) * np.sign(c - d) for a, b, c, d in pairs]
        expected = np.nan if np.isnan(tau) else np.mean(orders)
        assert psi == pytest.approx(expected, abs=1e-12, nan_ok=True)
    taus = board["tau"].dropna()
    assert (np.diff(taus) <= 0).all() and len(taus) >= 20
    # Two levels make no interval.
    assert board[["tau_low", "tau_high", "mean_psi_low", "mean_psi_high"]].isna().all(axis=None)
    assert board["p_value"][board["tau"].notna()].between(0, 1, inclusive="right").all()


def test_page_and_figure(workdir):
    page = (workdir / "leaderboard.md").read_text(encoding="utf-8")
    assert page.startswith("# Leaderboard: digits · linear · 4 networks · last epoch\n")
    assert page.count("its test error is on random labels") == 2
    assert "member 4 (random_labels, level 1, seed 0)" in page
    assert "on 40 training images" in page and "200 test examples" in page
    assert "augmented images: 50 training images" in page
    (line,) = [line for line in page.splitlines() if line.startswith("Not published as a measure")]
    assert "`log_product_stable_ranks`" in line and "`train_loss`" in line
    assert "The measures of each line order the networks identically:" in page
    reason = "2 levels; an interval needs at least 6"
    assert f"No measure can be distinguished from the first: {reason}" in page
    assert "The networks differ in: corruption, seed." in page
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    board = pd.read_csv(workdir / "leaderboard.csv")
    assert [line.split("`")[1] for line in lines] == board["measure"].tolist()
    assert lines[0].split("|")[3].strip() == f"{board['tau'][0]:.2f}"
    sources = [line.split("|")[2].strip() for line in lines]
    assert sources == board["source"].tolist() and "not published" in sources
    assert "no intervals: 2 levels; an interval needs at least 4" in page
    assert "\n\n\n" not in page and page.endswith("\n")
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"leaderboard.png", "leaderboard.pdf"}


def test_several_runs_of_one_kind(run_dir, tmp_path, unmeasured):
    other = shutil.copytree(run_dir, tmp_path / "other")
    leaderboard.main(parse(f"--from={run_dir},{other}", f"--workdir={tmp_path / 'board'}"))
    table = pd.read_csv(tmp_path / "board" / "measures.csv")
    assert table["run"].tolist() == [str(run_dir)] * 4 + [str(other)] * 4
    run = json.loads((other / "run.json").read_text())
    run["config"]["tied"] = "keep"
    (other / "run.json").write_text(json.dumps(run))
    message = error_of(f"--from={run_dir},{other}", f"--workdir={tmp_path / 'board'}")
    assert "runs must have the same data and model" in message and "--tied=keep" in message


def test_bad_input_is_one_line(run_dir, tmp_path, unmeasured):
    good = f"--from={run_dir}"
    assert "--from=: at least one run is needed" in error_of()
    assert "no run may be repeated" in error_of(f"--from={run_dir},{run_dir}")
    assert "no run may be repeated" in error_of(f"--from={run_dir},{run_dir}/")
    assert "no run here" in error_of(f"--from={tmp_path}")
    assert "it holds a run; give another folder" in error_of(good, f"--workdir={run_dir}")
    (tmp_path / "file").write_text("")
    assert "a folder is needed, not a file" in error_of(good, f"--workdir={tmp_path / 'file'}")
    assert "must be at least 1" in error_of(good, "--sharpness_images=0")
    assert "--seed=-1" in error_of(good, "--seed=-1")
    message = error_of(good, "--selection=loss=9", f"--workdir={tmp_path / 'board'}")
    assert "no networks at selection 'loss=9'; there are: final" in message
    assert not (tmp_path / "board").exists()


def test_networks_that_agree_in_all_factors_are_refused_before_measuring(run_dir, monkeypatch):
    def factors_of(_, table):
        return pd.DataFrame({"seed": ["0"] * len(table)})

    monkeypatch.setattr(library, "factors_of", factors_of)
    monkeypatch.setattr(library, "measure_networks", None)
    assert "networks 0 and 1 agree in all factors" in error_of(f"--from={run_dir}")
