"""Messages print plain numbers, whichever library's numbers were passed."""

import numpy as np
import pytest

import normjax
from normjax.networks.convolution import conv2d
from normjax.training.config import validate

PARAMS = {"Dense_0": {"kernel": np.eye(2, dtype=np.float32)}}
IMAGES, KERNEL = np.ones((1, 4, 4, 1), np.float32), np.ones((2, 2, 1, 1), np.float32)
LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normjax.param_norms(PARAMS, np.float64(0.25)), "not 0.25"),
        (lambda: normjax.param_norms(PARAMS, 2, scale=np.float32(-1)), "number, not -1.0"),
        (lambda: normjax.param_norms(PARAMS, layers=np.int64(3)), "not 3"),
        (lambda: normjax.balance_params(PARAMS, norm=np.float16(0.5)), "not 0.5"),
        (lambda: conv2d(IMAGES, KERNEL, strides=(np.int64(0), 1)), "not (0, 1)"),
        (lambda: normjax.load_dataset("digits", test_size=np.uint16(9999)), "test_size=9999 is"),
        (
            lambda: normjax.corrupt_labels(
                LABELS, np.float32(1.5), method="swap", num_classes=2, rng=np.random.default_rng(0)
            ),
            "level 1.5 is",
        ),
        (
            lambda: normjax.corrupt_labels(
                LABELS, 1, method="swap", num_classes=np.int8(1), rng=np.random.default_rng(0)
            ),
            "from 0 to 1, but with num_classes=1",
        ),
        (lambda: normjax.fit_line(np.full(3, np.float32(2)), range(3)), "all 3 values are 2.0"),
        (lambda: normjax.fit_line([1, np.float64("inf"), 2], range(3)), "point 1 is inf"),
        (lambda: validate(normjax.SweepConfig("x", seed=np.int64(-7))), "--seed=-7: must"),
        (lambda: validate(normjax.SweepConfig("x", seed=[np.int8(7)])), "--seed=[7]: must"),
        (lambda: validate(normjax.SweepConfig("x", norms=(np.float32(0.5),))), "--norms=0.5: norm"),
    ],
)
def test_numbers_of_numpy_are_written_as_numbers(call, message):
    with pytest.raises(ValueError, match=r".") as raised:
        call()
    assert message in str(raised.value)
    assert not any(word in str(raised.value) for word in ("np.", "array", "int8(", "float32("))
