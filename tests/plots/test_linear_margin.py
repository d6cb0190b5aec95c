"""The linear network's figure where numbers are absent, and its band."""

import numpy as np
import pandas as pd

from normjax.generalization import linear_sweep
from normjax.plots.linear_margin import plot_linear_margin


def test_an_absent_correlation_has_its_reason_in_the_title():
    numbers = {name: np.arange(1, 13) for name in linear_sweep.DRAW_COLUMNS}
    draws = pd.DataFrame(numbers).assign(test_error=0.25, gd_train_error=0.0)
    angles = pd.DataFrame({"draw": np.repeat(draws["draw"], 2), "step": [1, 100] * 12})
    angles = angles.assign(angle_deg=np.arange(24.0) + 1)
    summary = linear_sweep.summarize(draws, seed=0)
    summary |= {"data_name": "Some data", "train_size": 4, "dimension": 3}
    left, right = plot_linear_margin(draws, angles, summary).axes
    title = right.get_title(loc="left")
    assert title == "No rank correlation: no spread: all networks have the same value"
    # The band reaches from the 5% to the 95% quantile at each step.
    (band,) = left.collections
    first = angles.loc[angles["step"] == 1, "angle_deg"]
    heights = {y for x, y in band.get_paths()[0].vertices if x == 1}
    assert heights == set(np.quantile(first, [0.05, 0.95]))
