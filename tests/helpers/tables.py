"""Comparing tables of results."""

import numpy as np
import pandas as pd

from normjax.results.table import FLOAT_COLUMNS

MEASURED = [name for name in FLOAT_COLUMNS if name != "level"]


def assert_close(ours, theirs, columns=MEASURED, **tolerance):
    """Two tables have the same networks, selections and norms, and measurements alike."""
    pd.testing.assert_frame_equal(ours.drop(columns=MEASURED), theirs.drop(columns=MEASURED))
    np.testing.assert_allclose(ours[columns], theirs[columns], **tolerance)
