"""metrics.jsonl: stopping epochs against answers worked out by hand, and lines that are refused."""

import dataclasses
import json

import numpy as np
import pytest

from normjax.results.metrics import (
    LevelStops,
    Stop,
    append_metrics,
    keep_metrics,
    read_metrics,
    stopping_by_level,
    stopping_epochs,
)
from normjax.training.ensemble import Member
from tests.helpers.synthetic_metrics import BETTER, EXCESS, make_lines

# The same with the normalized loss least at 1.
WORSE = [(0.9, -0.7, 2.5), *BETTER[1:]]


def test_stopping_epochs_by_hand():
    metrics = make_lines(7, 0.5, BETTER) + make_lines(2, 0.1, WORSE)
    assert stopping_epochs(metrics) == [
        Stop(2, 0.1, 4, 6, 3, 1.2, 2.5, 1.9, 2.5, 1.9 / 4, 2.5 / 4),
        Stop(7, 0.5, 4, 6, 5, 1.2, 1.5, 1.9, 1.3, 1.9 / 4, 1.3 / 4),
    ]
    assert stopping_epochs(metrics[::-1]) == stopping_epochs(metrics)


def test_epochs_without_a_test_loss_count_nowhere():
    second = [
        (0.95, -0.05, None),
        (0.9, -0.1, 1.5),
        (0.5, -0.3, None),
        (0.3, -0.2, 1.3),
        (0.1, -0.9, None),
    ]
    second += [(0.2, None, 0.1), (None, -0.8, 0.1), (0.4, -0.15, 1.3)]
    assert stopping_epochs(make_lines(0, 0.1, second)) == [
        Stop(0, 0.1, 6, 6, 6, 1.3, 1.5, 1.3, 1.3, 1.3 / 4, 1.3 / 4)
    ]
    untested = [(raw, excess, None) for raw, excess, _ in BETTER]
    assert stopping_epochs(make_lines(0, 0.1, untested)) == []


def test_the_first_phase_counts_where_its_labels_are_true():
    uncorrupted = make_lines(0, 0.0, BETTER)
    assert stopping_epochs(uncorrupted) == [Stop(0, 0.0, 1, 1, 1, *[1e-9] * 4, *[1e-9 / 4] * 2)]
    scaled = [line | {"family": "init_scale"} for line in make_lines(0, 0.1, BETTER)]
    assert stopping_epochs(scaled)[0].best_epoch == 1


def test_of_equal_losses_the_earliest_epoch_counts():
    flat = [(0.2, -0.1, 1.5), (0.1, -0.2, 1.4), (0.1, -0.2, 1.4)]
    (stop,) = stopping_epochs(make_lines(0, 0.1, flat))
    assert (stop.best_epoch, stop.raw_epoch, stop.normalized_epoch) == (4, 4, 4)


def test_levels():
    stops = [
        Stop(0, 0.0, 2, 4, 3, 1.2, 1.8, 1.9, 1.3, 0.5, 0.45),
        Stop(1, 0.0, 2, 4, 3, 1.0, 1.4, 1.5, 1.6, 0.4, 0.41),
        Stop(2, 0.5, 2, 4, 4, 1.0, 1.4, 1.5, 1.5, 0.4, 0.4),
        Stop(3, 1.0, 2, 4, 1, 1.0, 1.4, 1.5, 2.5, 0.4, 0.6),
    ]
    low, middle, high = stopping_by_level(stops)
    expected = LevelStops(0.0, 2, True, 1, 1, 1.1, 1.6, 1.7, 1.45, 0.45, 0.43)
    assert dataclasses.astuple(low) == pytest.approx(dataclasses.astuple(expected))
    assert middle == LevelStops(0.5, 1, False, 0, 0, 1.0, 1.4, 1.5, 1.5, 0.4, 0.4)
    assert high == LevelStops(1.0, 1, False, 0, 1, 1.0, 1.4, 1.5, 2.5, 0.4, 0.6)
    assert stopping_by_level([]) == []


def test_bad_lines_are_named():
    with pytest.raises(ValueError, match="no lines of metrics"):
        stopping_epochs([])
    lines = make_lines(0, 0.1, BETTER)
    del lines[3][EXCESS]
    with pytest.raises(ValueError, match=f"line 4 of the metrics has no {EXCESS}"):
        stopping_epochs(lines)


def test_a_diverged_network_counts_as_far_as_it_goes():
    second = [(0.9, -0.1, 1.5), (None, None, None), (None, None, None)]
    assert stopping_epochs(make_lines(0, 0.1, second))[0].raw_epoch == 3


def test_metrics_are_read_without_random_labels(tmp_path):
    lines = [*make_lines(0, 0.0, BETTER)]
    random = [line | {"family": "random_labels"} for line in make_lines(1, 1.0, WORSE)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*random, *lines]))
    assert read_metrics(tmp_path) == lines
    for torn in ('{"family": "pre', "7", '{"member": 0}'):
        path.write_text(json.dumps(lines[0]) + "\n" + torn + "\n")
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a line of metrics"):
            read_metrics(tmp_path)
    for change, message in (
        ({}, "epoch 1 of member 0 is repeated"),
        ({"step": 99, "seed": 5}, "member 0 was another network before"),
        ({"step": "1"}, "step is '1', not of type int"),
        ({"step": 99, "running_loss": True}, r"running_loss is True, not of type float \| None"),
        ({"step": 99, "phase": "tain"}, "phase is neither pretrain nor train"),
        ({"step": 99, "test_error": "x"}, "test_error is 'x', not of type float"),
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | change]))
        where = rf"metrics.jsonl, line {len(lines) + 1}: not a line of metrics: "
        with pytest.raises(ValueError, match=where + message):
            read_metrics(tmp_path)


def test_lines_of_members_that_train_again_go(tmp_path):
    """Whatever group they were in when it was split: no epoch may be there twice."""
    kept, again = Member(0, 0, "pretrain", 0.0, None), Member(1, 0, "pretrain", 0.5, None)
    for step in (1, 2):
        values = {"running_loss": np.ones(2), "diverged_at": np.zeros(2)}
        append_metrics(tmp_path, [kept, again], {"group": 0, "step": step}, values)
    assert [line["step"] for line in keep_metrics(tmp_path, [again], 1)] == [1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["member"], line["step"]) for line in lines] == [(0, 1), (1, 1), (0, 2)]
