"""Result rows of networks with given margins and norms."""

import numpy as np

from tests.helpers.synthetic_results import synthetic_rows


def rows_of(train, test, rho, levels):
    """Result rows of such networks; losses and errors as trained are made up."""
    template = synthetic_rows(levels=(0.0,), num_seeds=len(train), norms=("2",))
    return [
        row._replace(
            level=float(level.split()[-1]),
            product_norm=norm,
            normalized_train_excess=-a / norm,
            normalized_test_excess=-b / norm,
            normalized_train_loss=np.log(10) - a / norm,
            normalized_test_loss=np.log(10) - b / norm,
        )
        for row, a, b, norm, level in zip(template, train, test, rho, levels, strict=True)
    ]
