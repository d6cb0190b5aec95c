"""The sizes command on runs of digits, on tables like the paper's, and its mistakes."""

import functools
import json
import shutil

import pandas as pd
import pytest

from experiments import sizes
from normjax.results.table import read_results, write_results
from tests.helpers import commands

RUN = (
    "--dataset=digits",
    "--test_size=45",
    "--model=linear",
    "--corruption_levels=0,0.5,0.75,1",
    "--pretrain_epochs=1",
    "--batch_size=20",
    "--norms=2",
)

parse = functools.partial(commands.parse, sizes.Config)


@pytest.fixture(scope="module")
def folder(invoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for size, epochs in ((40, 3), (80, 2)):
        out = f"--workdir={folder / str(size)}"
        invoke(*RUN, f"--train_size={size}", f"--epochs={epochs}", out)
    return folder


def run(folder, *names, out="out", options=()):
    source = ",".join(str(folder / name) for name in names)
    sizes.main(parse(f"--from={source}", f"--workdir={folder / out}", *options))
    return folder / out


def test_runs_are_compared(folder, capsys):
    out = run(folder, "80", "40")
    rows = pd.read_csv(out / "sizes.csv")
    assert rows["train_images"].drop_duplicates().tolist() == [40, 80]
    assert set(rows["quantity"]) == {*sizes.PER_NETWORK, "slope"}
    networks = pd.read_csv(out / "networks.csv")
    assert len(networks) == 8 and set(networks["level"]) == {0, 0.5, 0.75, 1}
    text = (out / "sizes.md").read_text()
    assert text.startswith("# The number of training images: digits · linear · last epoch\n")
    assert "\n| Quantity | 40 images | 80 images |\n| --- | ---: | ---: |\n| Slope" in text
    assert "\n- epochs: 3 (40 images), 2 (80 images)\n" in text and "- train_size" not in text
    assert "\n| Networks with true labels | 4 in 4 levels | 4 in 4 levels |\n" in text
    assert "paper prints" not in text and "\n\n\n" not in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {4}
    assert text in capsys.readouterr().out
    assert (out / "figures" / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_what_one_run_lacks_is_a_dash(folder, tmp_path, capsys):
    shutil.copytree(folder / "80", tmp_path / "random")
    table = read_results(folder / "80")
    last = table[table["level"] == 1].assign(member=4, family="random_labels")
    table = pd.concat([table, last, last.assign(labels="random")], ignore_index=True)
    write_results(tmp_path / "random" / "results.csv", table)
    source = f"--from={tmp_path / 'random'},{folder / '40'}"
    sizes.main(parse(source, f"--workdir={tmp_path / 'out'}"))
    lines = capsys.readouterr().out.splitlines()
    (slope,) = [line for line in lines if line.startswith("| Slope of the line, with random")]
    assert slope.startswith("| Slope of the line, with random labels | – | ")
    assert {line.count("|") for line in lines if line.startswith("|")} == {4}


def test_the_papers_slopes_are_beside_its_own_network():
    is_papers = {"image_shape": [32, 32, 3], "num_classes": 10}
    config = sizes.SweepConfig("x", model="convnet3")
    first = sizes.SizedRun("x", config, is_papers, pd.DataFrame())
    assert sizes.printed_slopes(first, "2", {"pretrain"}) == {
        "paper, figure 5": 0.836,
        "paper, figure 10, random labels too": 0.8789,
        "paper, figure 11, random labels too": 0.9642,
    }
    assert sizes.printed_slopes(first, "1/100", {"pretrain"}) == {"paper, figure 4": 0.8358}
    assert sizes.printed_slopes(first, "2", {"default_init"}) == {"paper, figure 6": 0.8117}
    for other in ({"image_shape": [8, 8, 1]}, {"num_classes": 100}):
        run = sizes.SizedRun("x", config, is_papers | other, pd.DataFrame())
        assert sizes.printed_slopes(run, "2", {"pretrain"}) == {}


def test_runs_that_do_not_belong_together(folder, tmp_path, monkeypatch):
    assert "no run may be repeated" in commands.error_of(parse, f"--from={folder},{folder}")
    message = commands.error_of(run, folder, "40")
    assert message == "error: runs with two or more numbers of training images are needed"
    for name, change, expected in (
        ("same", {}, f"{folder / '40'} and {tmp_path / 'same'} both have 40 training images"),
        ("test", {"train_images": 60, "test_images": 44}, "differ in test_images"),
        ("unfinished", {"finished": False}, "this run is not finished"),
    ):
        values = json.loads((folder / "40" / "run.json").read_text()) | change
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(values))
        table = (folder / "40" / "results.csv").read_bytes()
        (tmp_path / name / "results.csv").write_bytes(table)
        source = f"--from={folder / '40'},{tmp_path / name}"
        config = parse(source, f"--workdir={tmp_path / 'out'}")
        assert expected in commands.error_of(sizes.main, config)
    other = json.loads((folder / "80" / "run.json").read_text())
    other["config"]["model"] = "convnet3"
    (tmp_path / "test" / "run.json").write_text(json.dumps(other))
    config = parse(f"--from={folder / '40'},{tmp_path / 'test'}")
    assert commands.error_of(sizes.main, config).endswith("differ in model")
    assert not (tmp_path / "out").exists()
    message = commands.error_of(parse, "--from=a,b", f"--workdir={folder / '40'}")
    assert message.endswith("it holds a run; give another folder")
