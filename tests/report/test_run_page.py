"""The report: complete, self-contained, and safe whatever the files hold."""

import base64
import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from normjax.controls.summary import explain_all, write_summary
from normjax.data import dataset_label
from normjax.formatting import fixed, number
from normjax.plots.paper import plot_normalized_and_raw, save_figure
from normjax.report.charts import library
from normjax.report.render import render
from normjax.report.run_page import FIGURES, write_report
from normjax.results.table import select, write_results
from tests.helpers.pages import Page
from tests.helpers.synthetic_metrics import make_lines
from tests.helpers.synthetic_results import synthetic_table

NEEDED = ("num_draws", "norm", "num_test", "num_environments", "error_rise", "sharpness_images")
NEEDED += ("num_compared", "num_worse", "num_orders", "sample_images")
LISTS = {"num_noises": 1, "unit": "", "no_interval": "", "factors": [], "ranked": []}
LISTS |= {"not_ranked": [], "left_out": [], "not_fitted": [], "not_published": [], "ties": []}
LISTS |= {"no_comparison": "", "sources": {}}
FIGURE_NAMES = [
    f"{kind}__{selection}{norm}"
    for kind in FIGURES
    for selection in ("final", "loss_0.0044")
    for norm in (("",) if kind == "losses_against_level" else ("__2", "__1_100"))
]
HOSTILE = '"><script>alert(1)</script>&'


@pytest.fixture
def make_run(tmp_path):
    def make(
        table, run=None, flags="--dataset=digits\n", figures=("normalized_and_raw__final__2",)
    ):
        write_results(tmp_path / "results.csv", table)
        write_summary(tmp_path / "summary.json", explain_all(table))
        (tmp_path / "run.json").write_text(json.dumps(run or {"jax": "0.10.2"}))
        (tmp_path / "flags.txt").write_text(flags)
        (tmp_path / "figures").mkdir(exist_ok=True)
        for index, name in enumerate(figures):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "figures" / f"{name}.png")
        return tmp_path

    return make


def test_numbers_and_settings_are_on_the_page(make_run):
    table = synthetic_table(levels=np.linspace(0, 1, 6), num_seeds=2)
    run_dir = make_run(table, run={"jax": "0.10.2", "wall_seconds": 12.5, "devices": ["cpu:0"]})
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text())
    first, second = explain_all(table)
    for found in (first, second):
        for name, digits in (("slope", 4), ("intercept", 4), ("rmse", 3)):
            low, high = getattr(found.fit.intervals, name)
            value = f"{number(getattr(found.fit, name), digits)}\n"
            assert f"{value}[{number(low, digits)} to {number(high, digits)}]" in page.text
        for name in ("r2", "adjusted_r2"):
            low, high = getattr(found.fit.intervals, name)
            assert f"{fixed(getattr(found.fit, name), 5)}\n[{fixed(low, 5)} to" in page.text
        assert fixed(found.norm_permutation.r2_quantiles[1], 5) in page.text
        for number_of in (found.divisor.skill, found.content.correlation):
            assert fixed(number_of) in page.text
        ranking = found.error_ranking["product_norm"]
        low, high = ranking.kendall_interval
        assert f"{fixed(ranking.kendall)} [{fixed(low)} to {fixed(high)}]" in page.text
        assert f"p = {number(ranking.p_value, 2)}" in page.text
    assert f"R² is {fixed(first.raw_fit.r2, 5)}" in page.text
    assert page.text.count("as trained") >= 1 and page.text.count("12.5") == 1
    # Verdicts, lines (those as trained once), controls, rankings, networks for each norm; each
    # with a header.
    assert page.tags.count("tr") == (1 + 2) + (1 + 3) + (1 + 2) + (1 + 2) + 2 * (1 + 12)
    for text in ("--dataset=digits", "cpu:0", "Is the line real?", "leave_out.family"):
        assert text in page.text


def test_one_file_that_opens_offline_with_each_figure_once(make_run):
    names = ("normalized_fit__final__1_100", "normalized_and_raw__final__2")
    names += ("losses_against_level__final", "four_panels__other__2")
    run_dir = make_run(synthetic_table(), figures=names)
    text = write_report(run_dir).read_text()
    page = Page(text)
    prefix = "data:image/png;base64,"
    sources = [source for source in page.sources if not source.startswith("#")]
    assert all(source.startswith(prefix) for source in sources)
    embedded = [base64.b64decode(source.removeprefix(prefix)) for source in sources]
    # The headline comes first; a selection that the run does not have is not shown.
    order = (names[1], names[2], names[0])
    assert embedded == [(run_dir / "figures" / f"{name}.png").read_bytes() for name in order]
    assert page.alts[0] in FIGURES.values() and not any(name in page.text for name in names)
    assert library() in text
    assert not re.search(r"https?://|@import|url\(", text.replace(library(), ""))
    # The browser refuses whatever the library might load.
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    scripts = "script-src 'unsafe-inline' 'unsafe-eval'"
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {scripts}"


@pytest.mark.parametrize("num_networks", [56, pytest.param(300, marks=pytest.mark.slow)])
def test_a_large_run_stays_below_3_megabytes(make_run, num_networks):
    norms, selections = ("2", "1/100"), ("final", "loss=0.0044")
    small = synthetic_table((0.0, 1.0), 4, norms, selections)
    levels = np.linspace(0, 1, num_networks // 4).tolist()
    large = synthetic_table(levels, 4, norms, selections)
    run_dir = make_run(small, figures=FIGURE_NAMES)
    found = [dataclasses.replace(f, num_networks=num_networks) for f in explain_all(small)]
    write_results(run_dir / "results.csv", large)
    write_summary(run_dir / "summary.json", found)
    noise = np.random.default_rng(0).bytes(240_000)
    for name in FIGURE_NAMES:
        (run_dir / "figures" / f"{name}.png").write_bytes(noise)
    second = [(x / 120, -x / 1e3, x / 60) for x in range(118, 0, -1)]
    lines = [line for m in range(num_networks) for line in make_lines(m, levels[m // 4], second)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(run_dir)
    assert 2_500_000 < path.stat().st_size < 3_000_000
    page = Page(path.read_text())
    num_omitted = len(FIGURE_NAMES) - page.tags.count("img")
    assert f"PNG and PDF; {num_omitted} that would make this page too large are" in page.text
    step = -(-120 * num_networks // 10_000)
    assert (f"Training loss: one epoch in {step} is drawn" in page.text) == (step > 1)


def test_settings_and_command_are_on_top(make_run):
    config = {"workdir": "runs/my run", "epochs": 7}
    run = {"experiment": "init_scale", "dataset": "folder:x/my data", "config": config, "given": []}
    text = Page(write_report(make_run(synthetic_table(), run=run)).read_text()).text
    top = text[: text.index("The line")]
    assert "random_pretrain, my data" in top and "Epochs7" in top
    assert (
        "python -m experiments.init_scale '--flagfile=runs/my run/flags.txt' --workdir=NEW" in top
    )
    run["given"] = ["model", "dataset"]
    text = Page(write_report(make_run(synthetic_table(), run=run)).read_text()).text
    assert "made from Python with its own model and dataset" in text and "--workdir=NEW" not in text
    with pytest.raises(ValueError, match=r"run\.json: config is 3, not of type dict"):
        write_report(make_run(synthetic_table(), run={"config": 3}))


def test_all_text_from_files_is_escaped(make_run):
    table = synthetic_table(norms=("2",)).assign(
        experiment=HOSTILE, family=HOSTILE, selection=HOSTILE, train_error=0.1
    )
    table.loc[0, "test_loss"] = float("nan")
    table = pd.concat([table, table.assign(norm="function")])
    run_dir = make_run(
        table, run={HOSTILE: {HOSTILE: [HOSTILE]}}, flags=HOSTILE, figures=("<script>x&",)
    )
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert page.tags.count("script") == text.count("<script") == text.count("</script") == 3
    assert page.text.count(HOSTILE) > 10
    rows = json.loads(page.scripts[0])["sources"][0]["rows"]
    assert HOSTILE in rows[0]


def test_a_data_set_folder_of_any_name(make_run, tmp_path):
    # With the path's separator, so that its last part, which figures show, is hostile too.
    name = f"folder:{tmp_path}/<img src=x onerror=alert(1)><script>alert(1)</script>&\" ' $x$"
    table = synthetic_table()
    run = {"experiment": HOSTILE, "dataset": name, "config": {"dataset": name}}
    run_dir = make_run(table, run=run, flags=f"--dataset={name}\n", figures=())
    chosen = select(table, norm="2")
    figure = plot_normalized_and_raw(chosen, explain_all(chosen)[0], dataset_label(name))
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
    allowed = "lang charset name content http-equiv class alt src href id type hidden style value"
    allowed += " role tabindex aria-hidden aria-label aria-pressed"
    allowed += " data-selection data-norm data-level"
    assert page.attributes == set(allowed.split())
    assert not {"iframe", "svg", "object", "link", "base", "form"} & set(page.tags)
    assert page.tags.count("img") == len(page.alts) == 1
    assert text.count("<script") == 3 and 'onload="' not in text and "<img src=x" not in text


def test_half_a_character_has_a_place_on_the_page(make_run):
    run_dir = make_run(synthetic_table(), run={"config": {"dataset": "folder:/\udcff"}})
    assert "folder:/&#56575;" in write_report(run_dir).read_text(encoding="utf-8")


def test_too_few_networks_and_missing_parts_still_make_a_page(make_run):
    table = synthetic_table()
    run_dir = make_run(table[table["member"] < 2], figures=())
    (run_dir / "run.json").unlink()
    (run_dir / "flags.txt").unlink()
    page = Page(write_report(run_dir).read_text())
    assert "No line could be fitted" in page.text
    assert "2 points; at least 3 are needed" in page.text
    assert "no figures" in page.text


def test_members_that_are_left_out_are_named(make_run):
    table = synthetic_table()
    table.loc[table["member"] == 4, "test_loss"] = float("nan")
    page = Page(write_report(make_run(table)).read_text())
    assert "Left out: member 4 (pretrain, level 0.1, seed 1), diverged" in page.text


def test_networks_that_all_diverged_still_make_a_page(make_run):
    table = synthetic_table().assign(test_loss=float("nan"))
    page = Page(write_report(make_run(table, figures=())).read_text())
    assert "No line could be fitted to the 0 networks" in page.text
    assert page.text.count("Left out: ") == 2 * 12  # for each norm
    assert json.loads(page.scripts[0])["sources"] == []


def test_random_labels_have_lines_of_their_own(make_run):
    table = synthetic_table(norms=("2",))
    odd = table.iloc[:2].assign(family="random_labels", labels="random", member=[30, 31])
    page = Page(write_report(make_run(pd.concat([table, odd]))).read_text())
    assert "2 of the networks have random labels" in page.text
    assert page.text.count("true labels") >= 2
    # The same as without these networks, and one more line for each of the two.
    assert page.tags.count("tr") == (1 + 1) + (1 + 4) + (1 + 1) + (1 + 1) + (1 + 14)


def test_without_a_line_the_networks_are_still_counted(make_run):
    table = synthetic_table(norms=("2",))
    odd = table.iloc[2:4].assign(family="random_labels", labels="random", member=[30, 31])
    page = Page(write_report(make_run(pd.concat([table[:2], odd]))).read_text())
    assert "normalized4" in page.text and "normalized,\ntrue labels2–" in page.text


def test_two_experiments_with_the_same_members_share_a_page(make_run):
    table = synthetic_table()
    page = Page(
        write_report(make_run(pd.concat([table, table.assign(experiment="x")]))).read_text()
    )
    assert "The normalized test loss of 24 networks" in page.text


def test_same_files_same_page_and_nothing_left_behind(make_run):
    run_dir = make_run(synthetic_table())
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    names = {"results.csv", "summary.json", "run.json", "flags.txt", "figures", "report.html"}
    assert {path.name for path in run_dir.iterdir()} == names


def test_broken_files_are_named(make_run):
    run_dir = make_run(synthetic_table())
    (run_dir / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: not JSON"):
        write_report(run_dir)
    for table in (synthetic_table(num_seeds=2), synthetic_table(norms=("2",))):
        write_summary(run_dir / "summary.json", explain_all(table))
        with pytest.raises(ValueError, match=r"summary\.json: results\.csv has other networks"):
            write_report(run_dir)
    for foreign in ("[]", '{"experiment": "linear_margin"}', "[{}]", f"[{json.dumps(HOSTILE)}]"):
        (run_dir / "summary.json").write_text(foreign)
        with pytest.raises(ValueError, match=r"summary\.json: ") as info:
            write_report(run_dir)
        assert "\n" not in str(info.value)
    for name, content, message in (
        ("run.json", "[" * 100_000, r"run\.json: not JSON \(too deeply nested"),
        ("run.json", "[1]", r"run\.json: a JSON object is needed, not list"),
        ("flags.txt", "\xff", r"flags\.txt: not a UTF-8 text file"),
        ("metrics.jsonl", "{}\n", r"metrics\.jsonl, line 1: "),
        ("results.csv", "", r"results\.csv: the file is empty"),
    ):
        run_dir = make_run(synthetic_table())
        (run_dir / name).write_text(content, encoding="latin1")
        with pytest.raises(ValueError, match=message):
            write_report(run_dir)
        (run_dir / name).unlink()
    write_results(run_dir / "results.csv", synthetic_table().iloc[:0])
    with pytest.raises(ValueError, match=r"results\.csv: it has no networks"):
        write_report(run_dir)
    run_dir = make_run(synthetic_table())
    (run_dir / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        write_report(run_dir)


def test_when_to_stop_is_said_where_test_losses_were_measured(make_run):
    run_dir = make_run(synthetic_table())
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
    assert "Level 0.5: stopping on the normalized training loss would have been better" in page
    assert "Mean test loss: 1.234 against 1.543, lower in 1 and higher in 0 of 1 networks" in page
    assert "When to stop" not in page_of([line | {"test_loss": None} for line in lines])


def test_every_verdict_is_on_the_page(make_run):
    table = synthetic_table(selections=("final", "loss=0.0044"))
    text = Page(write_report(make_run(table)).read_text()).text
    explanations = explain_all(table)
    for found in explanations:
        assert found.because in text and (found.missing or "–") in text
    assert f"Verdict: {explanations[0].verdict}: {explanations[0].because}." in text
    assert text.index("Verdict: ") < text.index("Verdicts")
    few = Page(write_report(make_run(table[table["member"] < 3])).read_text()).text
    assert "Verdict: undecided: whether margins go together at equal level is unknown" in few


def test_quotes_stay_as_they_are_in_markdown():
    page = render("leaderboard.md", **dict.fromkeys(NEEDED, 1), **LISTS, title="`a'b\"` <x> & a|b")
    assert page.startswith("# Leaderboard: `a'b\"` &lt;x&gt; &amp; a\\|b\n")
