"""The report: complete, self-contained, and safe whatever the files hold."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from experiments import flags
from normjax.controls.explain import explain_line
from normjax.data import dataset_label, load_dataset
from normjax.plots.paper import plot_normalized_and_raw, save_figure
from normjax.report.run_page import write_report
from normjax.results.rows import select, write_results
from normjax.results.summary import summarize, write_summary
from normjax.training import record as records
from normjax.training.config import SweepConfig
from normjax.training.ensemble import Member
from tests.helpers.synthetic_results import CONFIG, synthetic_rows

HOSTILE = '"><script>alert(1)</script>&'


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], "", []
        self.attributes, self.alts = set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.alts += [value for name, value in attrs if name == "alt"]
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def make_run(tmp_path):
    def make(rows, run=None, flags="--dataset=digits\n", figures=("normalized_and_raw__final__2",)):
        write_results(tmp_path / "results.csv", rows)
        write_summary(tmp_path / "summary.json", summarize(rows))
        (tmp_path / "run.json").write_text(json.dumps(run or {"jax": "0.10.2"}))
        (tmp_path / "flags.txt").write_text(flags)
        (tmp_path / "figures").mkdir(exist_ok=True)
        for index, name in enumerate(figures):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "figures" / f"{name}.png")
        return tmp_path

    return make


def test_numbers_and_settings_are_on_the_page(make_run):
    rows = synthetic_rows()
    run_dir = make_run(rows, run={"jax": "0.10.2", "wall_seconds": 12.5, "devices": ["cpu:0"]})
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text())
    part = summarize(rows)["selections"]["final"]["2"]
    for name in ("normalized_fit", "raw_fit"):
        for value in ("slope", "intercept", "r2", "adjusted_r2", "rmse"):
            assert f"{part[name][value]:#.5g}".rstrip(".") in page.text
    median = part["norm_permutation"]["r2_quantiles"][1]
    assert f"R² = {median:#.5g} (median)" in page.text
    assert "of 10,000" in page.text
    assert f"{part['test_error_correlations']['product_norm']['kendall']:#.5g}" in page.text
    assert page.tags.count("tr") == 1 + 3 + 1 + 2 + 1 + 2 + 1 + 12
    for text in ("--dataset=digits", "12.5", "cpu:0", "Is the line real?"):
        assert text in page.text


def test_one_file_that_opens_offline_with_each_figure_once(make_run):
    names = ("a_figure", "normalized_and_raw__final__2", "z_figure")
    run_dir = make_run(synthetic_rows(), figures=names)
    page = Page(write_report(run_dir).read_text())
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in page.sources)
    embedded = [base64.b64decode(source.removeprefix(prefix)) for source in page.sources]
    order = ("normalized_and_raw__final__2", "a_figure", "z_figure")  # the headline comes first
    assert embedded == [(run_dir / "figures" / f"{name}.png").read_bytes() for name in order]
    assert not re.search(r"https?://|@import|url\(", write_report(run_dir).read_text())


def test_all_text_from_files_is_escaped(make_run):
    rows = [
        row._replace(experiment=HOSTILE, family=HOSTILE, selection=HOSTILE, train_error=0.1)
        for row in synthetic_rows(norms=("2",))
    ]
    rows[0] = rows[0]._replace(test_loss=float("nan"))
    rows += [row._replace(norm=HOSTILE) for row in rows]
    run_dir = make_run(
        rows, run={HOSTILE: {HOSTILE: [HOSTILE]}}, flags=HOSTILE, figures=("<script>x&",)
    )
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count(HOSTILE) > 10


def test_a_data_set_folder_of_any_name(make_run, tmp_path):
    # With the path's separator, so that its last part, which figures show, is hostile too.
    name = f"folder:{tmp_path}/<img src=x onerror=alert(1)><script>alert(1)</script>&\" ' $x$"
    rows = synthetic_rows()
    run_dir = make_run(rows, figures=())
    config = SweepConfig(**CONFIG | {"dataset": name, "workdir": str(run_dir)})
    flags.validate(config)
    members = [Member(i, 0, "pretrain", 0.0) for i in range(2)]
    for file in ("run.json", "flags.txt"):
        (run_dir / file).unlink()
    dataset = load_dataset("digits", train_size=10)._replace(name=name)
    records.start_run(run_dir, HOSTILE, config, dataset, [members])
    figure = plot_normalized_and_raw(select(rows, norm="2"), dataset_label(name))
    save_figure(figure, run_dir / "figures" / "normalized_and_raw__final__2")
    line = {"member": 0, "family": HOSTILE, "level": 0.5, "seed": 0, "phase": "train", "step": 1}
    line |= dict.fromkeys(("running_loss", "running_normalized_excess"), 0.1)
    line |= {"test_loss": 1.0, "test_error": 0.5}
    (run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run_dir / "figures" / 'x" onload="alert(1).png').write_bytes(b"")
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert f"--dataset={name}\n" in page.text
    assert page.text.count(json.dumps(name)) == 2  # run.json has it in the settings once more
    assert HOSTILE in json.loads(page.text[page.text.index('{\n  "experiment"') :])["experiment"]
    assert page.attributes <= {"lang", "charset", "name", "content", "class", "alt", "src"}
    assert not {"script", "iframe", "svg", "object", "link", "base", "form"} & set(page.tags)
    assert page.tags.count("img") == len(page.alts) == 2
    assert 'x" onload="alert(1)' in page.alts and "<script" not in text and "<img src=x" not in text


def test_half_a_character_has_a_place_on_the_page(make_run):
    run_dir = make_run(synthetic_rows(), run={"config": {"dataset": "folder:/\udcff"}})
    assert "folder:/&#56575;" in write_report(run_dir).read_text(encoding="utf-8")


def test_too_few_networks_and_missing_parts_still_make_a_page(make_run):
    rows = [row for row in synthetic_rows() if row.member < 2]
    run_dir = make_run(rows, figures=())
    (run_dir / "run.json").unlink()
    (run_dir / "flags.txt").unlink()
    page = Page(write_report(run_dir).read_text())
    assert "No line could be fitted" in page.text
    assert "2 points; at least 3 are needed" in page.text
    assert "no figures" in page.text


def test_members_that_are_left_out_are_named(make_run):
    rows = [
        row._replace(test_loss=float("nan")) if row.member == 4 else row for row in synthetic_rows()
    ]
    page = Page(write_report(make_run(rows)).read_text())
    assert "Left out: member 4 (pretrain, level 0.1, seed 1), diverged" in page.text


def test_same_files_same_page_and_nothing_left_behind(make_run):
    run_dir = make_run(synthetic_rows())
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    names = {"results.csv", "summary.json", "run.json", "flags.txt", "figures", "report.html"}
    assert {path.name for path in run_dir.iterdir()} == names


def test_broken_files_are_named(make_run):
    run_dir = make_run(synthetic_rows())
    (run_dir / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        write_report(run_dir)
    for rows in (synthetic_rows(num_seeds=2), synthetic_rows(norms=("2",))):
        write_summary(run_dir / "summary.json", summarize(rows))
        with pytest.raises(ValueError, match=r"summary\.json: .*results\.csv has other networks"):
            write_report(run_dir)
    summary = summarize(synthetic_rows())
    summary["selections"]["final"]["2"]["normalized_fit"]["n"] = HOSTILE
    write_summary(run_dir / "summary.json", summary)
    with pytest.raises(ValueError, match=r"summary\.json: not the summary of a run"):
        write_report(run_dir)
    for name, content, message in (
        ("run.json", "[" * 100_000, r"run\.json: not JSON \(too deeply nested"),
        ("run.json", "[1]", r"run\.json: a JSON object is needed, not list"),
        ("flags.txt", "\xff", r"flags\.txt: not a text file in UTF-8"),
        ("results.csv", "", r"results\.csv: the file is empty"),
    ):
        run_dir = make_run(synthetic_rows())
        (run_dir / name).write_text(content, encoding="latin1")
        with pytest.raises(ValueError, match=message):
            write_report(run_dir)
    write_results(run_dir / "results.csv", [])
    with pytest.raises(ValueError, match=r"results\.csv: there are no networks"):
        write_report(run_dir)
    run_dir = make_run(synthetic_rows())
    (run_dir / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        write_report(run_dir)


def test_when_to_stop_is_said_where_test_losses_were_measured(make_run):
    run_dir = make_run(synthetic_rows())
    common = {"member": 0, "family": "pretrain", "level": 0.5, "seed": 0, "phase": "train"}
    # The raw loss is least at epoch 2, the normalized one at epoch 1, where the test loss is too.
    values = [(1, 0.4, -0.2, 1.234), (2, 0.3, -0.1, 1.543)]
    names = ("step", "running_loss", "running_normalized_excess", "test_loss")
    lines = [common | {"test_error": 0.5} | dict(zip(names, v, strict=True)) for v in values]

    def page_of(lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_dir / "metrics.jsonl").write_text(text)
        return Page(write_report(run_dir).read_text()).text

    assert "When to stop" not in Page(write_report(run_dir).read_text()).text
    page = page_of(lines)
    assert "When to stop" in page
    assert "Level 0.5: the normalized training loss would have chosen a better epoch" in page
    assert "mean test loss 1.234 against 1.543" in page
    assert "When to stop" not in page_of([line | {"test_loss": None} for line in lines])


def test_the_verdict_stands_beside_the_headline(make_run):
    rows = synthetic_rows()
    text = Page(write_report(make_run(rows)).read_text()).text
    found = explain_line(rows)
    assert f"Verdict: {found.verdict}: {found.because}." in text
    assert text.index("Verdict: ") < text.index("Fits")
    few = Page(write_report(make_run(rows[:6])).read_text()).text
    assert "Verdict: undecided: 3 networks with true labels; 8 are needed." in few
