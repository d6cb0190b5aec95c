"""The charts: the tables' numbers, the analysis' lines, and what Vega-Lite makes of them."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import vl_convert

from normjax.controls.summary import explain_all
from normjax.report import charts, render
from normjax.report.charts import PANELS, curves, scatters
from normjax.results.table import on_own_labels, select
from tests.helpers.synthetic_metrics import BETTER, NUM_FIRST, make_lines
from tests.helpers.synthetic_results import synthetic_table

LEVELS = ["0", "0.1", "0.5", "1", "RL"]


@pytest.fixture(scope="module")
def table():
    """Two selections and norms; a network has diverged, two are of random labels (with both)."""
    table = synthetic_table(selections=("final", "loss=0.0044"))
    odd = table[table["member"] < 2]
    odd = odd.assign(family="random_labels", member=odd["member"] + 30, train_loss=1 / 3)
    table = pd.concat([table, odd.assign(labels="random"), odd], ignore_index=True)
    table.loc[table["member"] == 4, ["test_loss", "normalized_test_loss"]] = math.nan
    return table


@pytest.fixture(scope="module")
def sources(table):
    return scatters("panel-", PANELS, table, explain_all(table), LEVELS)


def compiled(source, place):
    """The Vega specification that the browser makes of a chart."""
    values = [dict(zip(source["columns"], row, strict=True)) for row in source["rows"]]
    spec = source["views"][place] | {"data": {"values": values}}
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    return vl_convert.vegalite_to_vega(spec, vl_version="6.4", config=charts._CONFIG)


def test_points_are_the_networks_of_the_table(table, sources):
    groups = [("final", "2"), ("final", "1/100"), ("loss=0.0044", "2"), ("loss=0.0044", "1/100")]
    assert [source["group"] for source in sources] == groups
    for source in sources:
        rows = on_own_labels(select(table, selection=source["group"][0], norm=source["group"][1]))
        rows = rows[rows["member"] != 4]
        shown = pd.DataFrame(source["rows"], columns=source["columns"])
        assert shown["network"].tolist() == rows["member"].tolist()
        same = [name for name in shown if name not in ("network", "level")]
        # Not rounded, and read back without loss.
        read = json.loads(json.dumps(shown[same].to_dict("list")))
        assert read == rows[same].to_dict("list")
        levels = ["RL" if m >= 30 else f"{x:g}" for m, x in rows[["member", "level"]].to_numpy()]
        assert shown["level"].tolist() == levels


def test_lines_are_those_of_the_analysis(table, sources):
    for source, found in zip(sources, explain_all(table), strict=True):
        rows = pd.DataFrame(source["rows"], columns=source["columns"])
        for place, fit, x, y in (
            ("panel-0", found.fit, "normalized_train_loss", "normalized_test_loss"),
            ("panel-1", found.raw_fit, "train_loss", "test_loss"),
        ):
            line, networks = source["views"][place]["layer"]
            ends = line["data"]["values"]
            assert [end[x] for end in ends] == [rows[x].min(), rows[x].max()]
            assert [end[y] for end in ends] == [fit.intercept + fit.slope * end[x] for end in ends]
            encoding = source["views"][place]["encoding"]
            assert (encoding["x"]["field"], encoding["y"]["field"]) == (x, y)
            assert "data" not in networks
        assert all(len(source["views"][f"panel-{i}"]["layer"]) == 1 for i in range(2, 6))


def test_losses_close_to_ln_k_are_shown_as_excess():
    table = synthetic_table(norms=("2",))
    for split in ("train", "test"):
        excess = table[f"normalized_{split}_excess"] / 1e6
        table[f"normalized_{split}_excess"] = excess
        table[f"normalized_{split}_loss"] = np.log(10) + excess
    (found,) = explain_all(table)
    (source,) = scatters("panel-", PANELS, table, [found], LEVELS)
    view = source["views"]["panel-0"]
    assert view["encoding"]["y"]["field"] == "normalized_test_excess"
    assert view["encoding"]["y"]["title"].endswith("- ln K (nats)")
    of_level = source["views"]["panel-5"]["encoding"]["x"]
    assert (of_level["field"], of_level["type"]) == ("level", "ordinal")
    assert of_level["title"] == "Fraction of corrupted labels in pretraining"
    for end in view["layer"][0]["data"]["values"]:
        x, y = end["normalized_train_excess"], end["normalized_test_excess"]
        expected = found.fit.intercept + found.fit.slope * (x + np.log(10)) - np.log(10)
        assert y == pytest.approx(expected, abs=1e-14)


def test_vega_lite_takes_every_chart(sources):
    for place in sources[0]["views"]:
        vega = compiled(sources[0], place)
        tooltips = [m["encode"]["update"].get("tooltip") for m in vega["marks"]]
        assert '"Normalized test loss": format(' in tooltips[-1]["signal"]
        for name in ("Network", "Level", "Seed", "Epoch", "Train loss", "Test error"):
            assert f'"{name}":' in tooltips[-1]["signal"]
    lines = make_lines(0, 0.5, BETTER) + make_lines(1, 1.0, BETTER)
    for source in curves("curve-", lines, LEVELS):
        (place,) = source["views"]
        assert '\\"Epoch\\":' in json.dumps(compiled(source, place)["marks"])


def test_curves_are_those_of_the_metrics():
    lines = make_lines(0, 0.5, [(0.123456, -0.1, 1.5), (0.0, -0.2, None), (None, -0.3, 1.25)])
    random = make_lines(7, 0.5, BETTER, seed=3)
    lines += [line | {"family": "random_labels"} for line in random]
    loss, excess, test, error = curves("curve-", lines, LEVELS)
    assert [source["step"] for source in (loss, excess, test, error)] == [1] * 4
    assert loss["rows"][0] == [0, "pretrain", "0.5", 0, [1, 2, 3], [1e-9, 1e-9, 0.1235]]
    assert excess["rows"][0][-1] == [-9, -9, -0.1, -0.2, -0.3]
    assert test["rows"][0][-2:] == [[1, 2, 3, 5], [1e-9, 1e-9, 1.5, 1.25]]
    assert loss["rows"][1][:4] == [7, "random_labels", "RL", 3]
    (start,) = loss["views"]["curve-0"]["layer"][0]["data"]["values"]
    assert start == {"epoch": NUM_FIRST + 0.5}
    assert len(curves("curve-", make_lines(0, 1.0, [(0.1, -0.1, None)])[2:], LEVELS)) == 2


def test_many_curves_are_thinned_from_the_last_epoch(monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 7)
    lines = make_lines(0, 0.5, BETTER) + make_lines(1, 0.5, BETTER)
    assert [source["step"] for source in curves("curve-", lines, LEVELS)] == [2] * 4
    assert [row[4] for row in curves("curve-", lines, LEVELS)[0]["rows"]] == [[2, 4, 6]] * 2


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colors_can_be_seen_in_light_and_dark():
    css = (render.TEMPLATES / "page.css").read_text()
    colors = dict(re.findall(r"--(\w+): light-dark\((.*?)\)", css))
    pairs = {name: pair.split(", ") for name, pair in colors.items()}
    level_pairs = charts.level_styles([*np.linspace(0, 1, 30), None]).values()
    for theme in (0, 1):
        paper = pairs["paper"][theme]
        texts = [pairs[name][theme] for name in ("ink", "quiet", "link", "ticks")]
        marks = [pairs[name][theme] for name in ("axis", "line")]
        assert min(contrast(color, paper) for color in texts) >= 4.5
        assert min(contrast(color, paper) for color in marks) >= 3
        assert min(contrast(pair[theme], paper) for pair in level_pairs) >= 3
