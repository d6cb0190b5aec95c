"""Terms of eq. 4 with round numbers."""

import dataclasses

from normjax.generalization.eq4 import Eq4, Gap, LowerEstimate

SIGNS = LowerEstimate(
    two_r=0.5,
    standard_error=0.1,
    num_draws=4,
    num_examples=100,
    by_step=[0.0, 0.3, 0.45, 0.5],
    last_quarter=0.1,
    times_gap=50.0,
)
LABELS = dataclasses.replace(
    SIGNS, two_r=0.02, standard_error=None, num_draws=1, by_step=None, last_quarter=None
)


def synthetic_eq4(**terms):
    """Terms of two networks whose largest gap is 0.01, some of them replaced."""
    found = Eq4(
        run="a",
        data_name="digits",
        model="convnet3",
        selection="final",
        num_examples=100,
        ln_num_classes=2.3,
        delta=0.05,
        networks=[Gap(0, "pretrain", 0.0, 0.01), Gap(1, "random_labels", 1.0, 0.005)],
        diverged=[],
        median_gap=0.0075,
        smallest_gap=0.005,
        largest_gap=0.01,
        largest_below_chance=0.0731,
        confidence_term_expected=0.0065,
        confidence_term=0.0211,
        confidence_times_gap=2.11,
        loss_range=1971.6,
        confidence_term_of_range=34.12,
        labels=None,
        labels_over_signs=None,
        signs=SIGNS,
        upper={"A": 60.04, "B": 5.02},
        least_upper="B",
        upper_over_signs=10.04,
        right_side=0.5211,
        num_within=2,
        num_below_chance=0,
    )
    return dataclasses.replace(found, **terms)
