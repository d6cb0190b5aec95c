"""All figures in one command: its tables, its flags, and a tiny run of it from end to end."""

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import linear_margin, reproduce
from experiments.paper import figures as paper_figures
from experiments.paper import networks, runs
from experiments.paper.figures import FIGURES, FLAGFILES, OTHER_FIGURES, RUNS, SCALES
from normjax.formatting import number
from normjax.results import metrics
from normjax.results.table import on_own_labels, read_results, write_results
from normjax.training.record import is_marked_finished
from tests.helpers import commands
from tests.helpers.synthetic_results import synthetic_table

pytestmark = pytest.mark.slow

LEVELS = (0, 1e-4, 1e-3, 0.01, 0.1, 0.2, 0.5, 0.75, 1)
STDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.05, 0.075, 0.09, 0.1)
STDS += (0.115, 0.125, 0.135, 0.15, 0.175, 0.19)


parse = functools.partial(commands.parse, reproduce.Config)


def ledger_of(workdir):
    with open(workdir / "ledger.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the tables


def test_the_tables_have_every_figure_once():
    assert list(FIGURES) == [str(number) for number in range(1, 16)]
    used = {paper_figures.run_of(name) for name in reproduce.ALL_FIGURES}
    assert used == RUNS.keys() and not FIGURES.keys() & OTHER_FIGURES.keys()
    files = {path.stem for path in FLAGFILES.glob("fig*.flags")}
    assert files == {paper_figures.stem_of(name) for name in FIGURES}
    assert {RUNS[FIGURES[name].run].data for name in ("12", "13", "14", "15")} == {"cifar100"}
    assert {RUNS[FIGURES[str(n)].run].data for n in range(1, 12)} == {"cifar10"}


@pytest.mark.parametrize("name", FIGURES)
def test_at_full_scale_a_run_has_its_figures_settings(name):
    run = RUNS[FIGURES[name].run]
    paper = runs.read_flags(runs.flagfile_of(name))
    ours = {**runs.read_flags(FLAGFILES / f"{run.flagfile}.flags"), **run.flags("full")}
    assert networks.settings_that_differ(FIGURES[name], paper, ours) == []
    assert paper["norms"] in ours["norms"].split(",")
    if FIGURES[name].is_at_target:
        assert float(ours["target_losses"]) == (0.0044 if name in ("3", "9") else 0.006)


def test_flagfiles_have_the_papers_settings(invoke):
    configs = {}
    for name in FIGURES:
        path = runs.flagfile_of(name)
        invoke(f"--flagfile={path}", main=lambda config, name=name: configs.update({name: config}))
        lines = path.read_text().splitlines()
        assert lines[0].startswith(f"# Figure {name}: ")
        assert lines[1].startswith("# python -m experiments.") and path.name in lines[1]
    five = ("1", "2", "7", "8", "12", "13", "14", "15")
    by_std = ("2", "8", "13", "15")
    for name, config in configs.items():
        assert config.dataset == ("cifar10" if int(name) < 12 else "cifar100")
        assert (config.learning_rate, config.momentum) == (0.01, 0.9)
        assert config.train_size is config.test_size is None
        assert config.model == ("convnet5" if name in five else "convnet3")
        assert config.batch_norm == (name in five)
        assert config.epochs == (80 if name in five else 300)
        assert config.pretrain_epochs == (0 if name in (*by_std, "6") else 30)
        if name in five:
            assert config.target_losses == (0.006,)
        else:
            assert config.batch_size == 1024
            assert config.target_losses == ((0.0044,) if name in ("3", "9") else ())
        assert config.norms == (("1/100",) if name == "4" else ("2",))
        if name in by_std:
            assert config.init_stds == STDS
        elif name not in ("6", "11"):
            assert config.corruption_levels == LEVELS and config.corruption == "swap"
    assert configs["11"].corruption_levels == (0,)
    assert configs["6"].num_seeds == 7  # 1 - (1 - 0.9660) (n - 1) / (n - 2) = 0.9592


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("run", RUNS)
def test_commands_parse(invoke, tmp_path, run, scale):
    datasets = {"cifar10": "folder:a b", "cifar100": "cifar100"}
    dataset = runs.dataset_of(run, scale, datasets)
    command = runs.command_of(run, scale, dataset, "d", tmp_path / "x")
    python, module, *arguments = command
    assert (python, module) == ("-m", f"experiments.{RUNS[run].experiment}")
    if run == "linear":
        found = commands.parse(linear_margin.Config, *arguments)
        assert found.workdir == str(tmp_path / "x")
        return
    configs = []
    invoke(*arguments, main=configs.append)
    wanted = "digits" if scale == "smoke" else datasets[RUNS[run].data]
    assert configs[0].dataset == dataset == wanted
    assert configs[0].workdir == str(tmp_path / "x") and configs[0].data_dir == "d"
    assert not configs[0].resume
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{}")
    again = runs.command_of(run, scale, dataset, "d", tmp_path / "x")
    assert again == [*command, "--resume"]


# --- the flags


def test_defaults():
    assert parse() == reproduce.Config(
        figures=(*map(str, range(1, 16)), "linear", "monitor"),
        scale="small",
        workdir=None,
        cifar10="cifar10",
        cifar100="cifar100",
        data_dir=None,
        source=None,
    )
    assert parse().folder == Path("runs/reproduce_small")
    assert parse("--scale=full").folder == Path("runs/reproduce_full")
    assert parse("--figures=4, 4,10").figures == ("4", "4", "10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figures=4,16"], "--figures=4,16: allowed are 1, 2, 3,"),
        (["--figures=04"], "--figures=04: allowed are"),
        (["--figures="], "--figures=: allowed are"),
        (["--scale=tiny"], "full|small|smoke"),
        (["--from="], "--from=: it has no folder runs"),
        (["--workdir="], "--workdir=: a folder is needed"),
        (["--from=no/such"], "--from=no/such: it has no folder runs"),
        (["--workdir=setup.cfg"], "--workdir=setup.cfg: a folder is needed, not a file"),
        (["--epochs=3"], "Unknown command line flag 'epochs'"),
        (["all"], "unexpected argument 'all'; options are --name=value"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, arguments, message):
    monkeypatch.chdir(FLAGFILES.parent.parent)
    assert message in commands.error_of(parse, *arguments)


# --- from end to end


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Figures 5 and 11 from a linear network on few digits, the linear figure; no CIFAR-100."""
    workdir = tmp_path_factory.mktemp("reproduce")
    tiny = {
        "model": "linear",
        "train_size": "60",
        "test_size": "50",
        "corruption_levels": "0,0.5",
        "num_seeds": "2",
        "norms": "2",  # a figure less for each
        "target_losses": "1e-9",  # never reached
        "pretrain_epochs": "1",
        "epochs": "2",
        "batch_size": "20",
        "test_every": "1",
    }
    draws = {"num_draws": "12", "num_steps": "20", "train_size": "12", "dimension": "8"}
    with pytest.MonkeyPatch.context() as patch:
        for run, small in (("convnet3", tiny), ("linear", draws)):
            patch.setitem(RUNS, run, dataclasses.replace(RUNS[run], small=small))
        asked = ("--figures=5,11,12,linear,monitor", "--cifar10=digits", "--cifar100=folder:none")
        reproduce.main(parse(*asked, f"--workdir={workdir}"))
    return workdir


def test_figures_are_drawn_as_far_as_there_are_data(workdir):
    stems = ("fig05", "fig11", "linear", "monitor")
    assert {path.name for path in (workdir / "figures").iterdir()} == {
        f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")
    }
    assert {path.name for path in (workdir / "runs").iterdir()} == {"convnet3", "linear"}


def stars_of(axes):
    """The number of networks in a panel, by level."""
    return {
        line.get_label().removeprefix("_"): len(line.get_xdata())
        for line in axes.lines
        if line.get_marker() == "*"
    }


def test_figures_show_their_networks(workdir):
    run_dir = workdir / "runs" / "convnet3"
    for name, levels in (("5", {"0": 2, "0.5": 2}), ("11", {"0": 2, "RL": 2})):
        figure = reproduce.draw_figure(name, run_dir)
        assert figure.get_suptitle().startswith("digits · 4 networks · last epoch · ")
        assert [stars_of(axes) for axes in figure.axes] == [levels] * 2
    columns = ["normalized_train_loss", "normalized_test_loss"]
    table = read_results(run_dir)
    table = table[(table["selection"] == "final") & (table["labels"] == "natural")]
    table = table[table["family"] == "pretrain"]
    axes = reproduce.draw_figure("5", run_dir).axes[0]
    drawn = [np.column_stack(line.get_data()) for line in axes.lines if line.get_marker() == "*"]
    np.testing.assert_allclose(
        np.concatenate(drawn), table.sort_values(["level", "member"])[columns], rtol=1e-15
    )


def test_the_ledgers_numbers_are_the_runs(workdir):
    lines = {(line["figure"], line["quantity"]): line for line in ledger_of(workdir)}
    table = on_own_labels(read_results(workdir / "runs" / "convnet3"))
    table = table[table["selection"] == "final"]
    is_random = table["family"] == "random_labels"
    shown = {"5": ~is_random, "10": is_random | True, "11": is_random | (table["level"] == 0)}
    for name, is_shown in shown.items():
        points = table[is_shown]
        x, y = (points[f"normalized_{split}_loss"].to_numpy() for split in ("train", "test"))
        slope = np.polyfit(x - x.mean(), y, 1)[0]
        assert float(lines[name, "slope"]["ours"]) == pytest.approx(slope, rel=1e-6)
        r2 = np.corrcoef(x, y)[0, 1] ** 2
        assert float(lines[name, "R2"]["ours"]) == pytest.approx(r2, rel=1e-6)
        assert int(lines[name, "slope"]["networks"]) == len(points) == {"10": 6}.get(name, 4)
        differs = lines[name, "slope"]["settings_that_differ"]
        assert "dataset digits instead of cifar10" in differs and "epochs 2 instead of" in differs
        assert "networks have nonzero training error" in differs
        assert lines[name, "slope"]["reason"].startswith("no interval: ")
    assert lines["4", "slope"]["reason"] == "no networks of pretrain with norm 1/100"
    assert "the last epoch is used instead" in lines["3", "R2"]["settings_that_differ"]
    assert (lines["6", "RMSE"]["ours"], lines["6", "RMSE"]["reason"]) == (
        "not run",
        reproduce.NOT_ASKED,
    )
    assert lines["14", "R2"]["ours"] == "not run"
    text = (workdir / "ledger.md").read_text()
    assert "`convnet3`: experiments.random_labels, linear, 6 networks, 60 training images" in text


def test_the_monitor_leaves_random_labels_out(workdir):
    lines = metrics.read_metrics(workdir / "runs" / "convnet3")
    assert {line["member"] for line in lines} == set(range(4)) and len(lines) == 4 * 3
    text = (workdir / "ledger.md").read_text().split("## When to stop")[1].split("## Runs")[0]
    levels = metrics.stopping_by_level(metrics.stopping_epochs(lines))
    assert [(level.level, level.num_networks) for level in levels] == [(0, 2), (0.5, 2)]
    said = text.strip().splitlines()
    assert [line.split(":")[0] for line in said] == ["- Level 0", "- Level 0.5"]
    for line, level in zip(said, levels, strict=True):
        assert f"against {number(level.test_loss_at_raw, 4)}" in line


def test_drawing_again_trains_nothing(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "train", None)
    reproduce.main(parse("--figures=5,7", f"--from={workdir}", f"--workdir={tmp_path}"))
    said = capsys.readouterr().out
    assert "figures skipped: 7 (run convnet5_pretrain: no finished run in" in said
    for name in ("figures/fig05.png", "figures/fig05.pdf"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    again = {(line["figure"], line["quantity"]): line for line in ledger_of(tmp_path)}
    assert again["7", "R2"]["reason"].startswith("no finished run in")
    for line in ledger_of(workdir):
        if line["figure"] in ("3", "5", "10", "11"):
            assert line == again[line["figure"], line["quantity"]]
    assert parse(f"--from={workdir}").folder == workdir


def test_other_numbers_of_images_have_rows_at_the_target(workdir, tmp_path):
    shutil.copytree(workdir / "runs", tmp_path / "runs")
    for size, finished in ((240, True), (90, True), (500, False)):
        folder = shutil.copytree(workdir / "runs" / "convnet3", tmp_path / f"runs/convnet3_{size}")
        record = json.loads((folder / "run.json").read_text())
        record |= {"train_images": size, "finished": finished}
        (folder / "run.json").write_text(json.dumps(record))
    for name in ("convnet3_old", "convnet3_090"):
        shutil.copytree(tmp_path / "runs" / "convnet3_90", tmp_path / "runs" / name)
    reproduce.main(parse("--figures=5", f"--from={tmp_path}"))
    measured = [line for line in ledger_of(tmp_path) if line["ours"] != reproduce.ledger.NOT_RUN]
    rows = [(line["figure"], line["train_images"]) for line in measured]
    for name in ("3", "9"):
        own = [images for figure, images in rows if figure == name]
        assert list(dict.fromkeys(own)) == ["60", "90", "240"]
    assert {images for figure, images in rows if figure in ("5", "10", "11")} == {"60"}
    text = (tmp_path / "ledger.md").read_text().split("## Runs")[1]
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `convnet3")]
    assert listed == ["convnet3", "convnet3_90", "convnet3_240"]
    (tmp_path / "runs" / "convnet3_90").rename(tmp_path / "runs" / "convnet3_91")
    config = parse("--figures=5", f"--from={tmp_path}", f"--workdir={tmp_path / 'out'}")
    message = commands.error_of(reproduce.main, config)
    assert message.endswith("convnet3_91: its run has 90 training images")
    assert not (tmp_path / "out").exists()


def test_a_run_without_metrics_has_no_monitor(workdir, tmp_path, capsys):
    shutil.copytree(workdir / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "convnet3" / "metrics.jsonl").unlink()
    reproduce.main(parse("--figures=linear,monitor", f"--from={tmp_path}"))
    said = capsys.readouterr().out
    assert "figures skipped: monitor (run convnet3: the run has no metrics.jsonl)\n" in said
    text = (tmp_path / "ledger.md").read_text().split("## When to stop")[1]
    assert text.strip().startswith("Unknown: the run has no metrics.jsonl.")


def test_a_run_with_other_settings_is_an_error(workdir, capfd):
    before = (workdir / "runs" / "linear" / "results.csv").read_bytes()
    config = parse("--figures=linear", f"--workdir={workdir}")
    message = commands.error_of(reproduce.main, config)
    assert message.startswith("error: figures not drawn: linear (error: --resume: the run in ")
    assert "has a different --train_size" in message and "has a different" in capfd.readouterr().err
    assert (workdir / "runs" / "linear" / "results.csv").read_bytes() == before


def test_without_any_data(tmp_path, capsys):
    nowhere = f"--cifar100=folder:{tmp_path / 'none'}"
    config = parse("--figures=12,15", nowhere, f"--workdir={tmp_path / 'x'}")
    assert "none of these figures has data" in commands.error_of(reproduce.main, config)
    said = capsys.readouterr().out
    assert "figures skipped: 12 (run cifar100_pretrain: " in said and "figures drawn" in said
    lines = [line for line in ledger_of(tmp_path / "x") if line["figure"] == "15"]
    assert len(lines) == 3 and all("none" in line["reason"] for line in lines)
    assert {line["ours"] for line in ledger_of(tmp_path / "x")} == {"not run"}


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().scale = "full"


def test_runs_are_finished_when_they_say_so(tmp_path):
    assert not is_marked_finished(tmp_path)
    for finished in (False, True):
        (tmp_path / "run.json").write_text(json.dumps({"finished": finished}))
        assert is_marked_finished(tmp_path) == finished


def test_a_damaged_record_of_a_run_is_one_line(tmp_path, capsys):
    path = tmp_path / "runs" / "linear" / "run.json"
    path.parent.mkdir(parents=True)
    for content in ("{", '{"finished": "yes"}', "[]"):
        path.write_text(content)
        for arguments in (["--figures=linear"], ["--figures=12", f"--from={tmp_path}"]):
            config = parse(*arguments, f"--workdir={tmp_path}", f"--cifar100=folder:{tmp_path}")
            assert commands.error_of(reproduce.main, config).startswith(f"error: {path}: ")


def test_damaged_tables_are_a_reason(tmp_path):
    run_dir = tmp_path / "runs" / "convnet3"
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text('{"finished": true, "train_images": 60}')
    for flags_text, reason in (
        ("--dataset=digits\nno flag\n", "flags.txt, line 2: must have the form --name=value"),
        ("--norms=2\n", "flags.txt: --dataset is missing"),
        ("--dataset=digits\n", "results.csv: the file is empty"),
        ("--dataset=digits\n--target_losses=0.1,0.2\n", "--target_losses=0.1,0.2: one loss"),
    ):
        (run_dir / "flags.txt").write_text(flags_text)
        (run_dir / "results.csv").write_text("")
        if "target" in flags_text:
            write_results(run_dir / "results.csv", synthetic_table())
        assert reason in reproduce.draw("4", run_dir, tmp_path / "figures")
    (row, *_) = reproduce.ledger_rows("4", run_dir, reproduce.NOT_ASKED)
    assert row.ours is None and "one loss is needed" in row.reason
    assert not (tmp_path / "figures").exists()
