"""The soak test of `python -m tests.helpers.soak` at a small size."""

import random

import pytest

from tests.helpers.soak import Moment, choose_moments, soak

pytestmark = pytest.mark.slow


def test_a_run_survives_kills_while_it_writes(tmp_path):
    """In a checkpoint, with a group's table written but not in its place, and in the summary."""
    moments = [
        Moment(0, 15, "orbax-checkpoint-tmp", count=3, delay_s=0.002),
        Moment(pattern="groups/.000.csv.", count=2),
        Moment(pattern="/pieces/.summary.json.", count=2),
    ]
    said = soak(tmp_path, moments, has_figures=False)
    assert said.startswith("3 kills survived; 8 rows and 8 networks compared, all equal")


def test_moments_are_spread_over_the_run():
    for seed in range(5):
        moments = choose_moments(20, random.Random(seed))
        assert len(moments) == 20 and moments == choose_moments(20, random.Random(seed))
        steps = [(m.group, m.step) for m in moments if m.step]
        assert steps == sorted(steps) and {group for group, _ in steps} == {0, 1}
        assert sum(moment.at_start is not None for moment in moments) == 3
        assert sum(".csv." in moment.pattern for moment in moments) >= 1
        assert sum("progress" in m.pattern or "orbax" in m.pattern for m in moments) >= 3
