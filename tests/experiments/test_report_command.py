"""The page that compares runs, on tables and settings like theirs, and its mistakes."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from PIL import Image

from experiments import report
from normjax.controls.summary import explain_all, write_summary
from normjax.formatting import fixed
from normjax.results.table import write_results
from normjax.training.config import SweepConfig
from tests.helpers import commands
from tests.helpers.pages import Page
from tests.helpers.synthetic_results import synthetic_table

parse = functools.partial(commands.parse, report.Config)
LEVELS = tuple(np.linspace(0, 1, 6).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs "a & b", with two norms and a figure, and "other", with one norm and other settings."""
    folder = tmp_path_factory.mktemp("runs")
    for name, norms, epochs in (("a & b", ("2", "1/100"), 5), ("other", ("2",), 7)):
        run_dir = folder / name
        run_dir.mkdir()
        table = synthetic_table(levels=LEVELS, num_seeds=2, norms=norms, seed=epochs)
        write_results(run_dir / "results.csv", table)
        write_summary(run_dir / "summary.json", explain_all(table))
        config = SweepConfig(run_dir, corruption_levels=LEVELS, epochs=epochs, norms=norms)
        run = {"experiment": "random_pretrain", "finished": True, "given": [], "members": []}
        run |= {"train_images": 1000 * epochs, "test_images": 450}
        run["config"] = dataclasses.asdict(config)
        (run_dir / "run.json").write_text(json.dumps(run))
    (folder / "a & b" / "figures").mkdir()
    figure = folder / "a & b" / "figures" / "normalized_and_raw__final__2.png"
    Image.new("RGB", (8, 8)).save(figure)
    return folder


def run(folder, *names):
    source = ",".join(str(folder / name) for name in names)
    report.main(parse(f"--from={source}", f"--workdir={folder / 'out'}"))


def test_runs_are_compared(folder, capsys):
    run(folder, "a & b", "other")
    path = folder / "out" / "comparison.html"
    assert capsys.readouterr().out == f"{path}\n"
    page = Page(path.read_text())
    for name, norms in (("a & b", ("2", "1/100")), ("other", ("2",))):
        epochs = 5 if name == "a & b" else 7
        table = synthetic_table(levels=LEVELS, num_seeds=2, norms=norms, seed=epochs)
        for found in explain_all(table):
            low, high = found.fit.intervals.r2
            assert f"{fixed(found.fit.r2, 5)}\n[{fixed(low, 5)} to {fixed(high, 5)}]" in page.text
            assert fixed(found.divisor.skill) in page.text
        # Runs, settings, two norms; the captions of the charts and of the figure.
        assert page.text.count(f"{folder / name}") == 6
        assert f"{1000 * epochs:,}" in page.text
    assert page.text.count("this run has no figures") == 1
    assert page.text.count("not in this run") == 2  # the chart, the table
    assert page.tags.count("img") == 1 and page.sources[0].startswith("data:image/png;base64,")
    sources = json.loads(page.scripts[0])["sources"]
    places = [(*source["group"], *source["views"]) for source in sources]
    first, second = ["run-0-0", "run-0-1"], ["run-1-0", "run-1-1"]
    assert places == [("final", "2", *first), ("final", "1/100", *first), ("final", "2", *second)]
    # Of the settings, those that differ; each table with its header.
    assert page.tags.count("tr") == (1 + 2) + (1 + 2) + 2 * (1 + 2)
    assert "epochs57norms2,1/1002" in "".join(page.text.split())


def test_mistakes_are_one_line(folder, tmp_path):
    assert "at least two runs" in commands.error_of(run, folder, "other")
    assert "no run may be repeated" in commands.error_of(run, folder, "other", "other")
    said = commands.error_of(run, folder, "other", "absent")
    assert said == f"error: {folder / 'absent'}: no run here (run.json is missing)"
    said = commands.error_of(parse, "--from=a,b", f"--workdir={folder / 'other'}")
    assert said.endswith("it holds a run; give another folder")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("run.json", "results.csv"):
        (damaged / name).write_bytes((folder / "other" / name).read_bytes())
    (damaged / "summary.json").write_bytes((folder / "a & b" / "summary.json").read_bytes())
    said = commands.error_of(run, folder, "other", damaged)
    assert said.endswith("summary.json: results.csv has other networks, selections or norms")
