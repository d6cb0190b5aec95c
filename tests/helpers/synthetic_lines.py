"""A results table of networks with given margins and norms."""

import numpy as np

from tests.helpers.synthetic_results import synthetic_table


def table_of(train, test, rho, levels):
    """Return such networks, one for each level; losses and errors as trained are made up."""
    train_excess, test_excess = -np.divide(train, rho), -np.divide(test, rho)
    return synthetic_table(levels=(0.0,), num_seeds=len(levels), norms=("2",)).assign(
        level=[float(level.split()[-1]) for level in levels],
        product_norm=rho,
        normalized_train_excess=train_excess,
        normalized_test_excess=test_excess,
        normalized_train_loss=np.log(10) + train_excess,
        normalized_test_loss=np.log(10) + test_excess,
    )
