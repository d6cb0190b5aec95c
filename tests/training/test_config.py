"""The configuration of a sweep from Python: what it takes, and what it refuses in one line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from normjax.training.config import SweepConfig, to_flagfile, validate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "3"}, "--epochs=3: must be of type int, not str"),
        ({"epochs": True}, "--epochs=true: must be of type int, not bool"),
        ({"epochs": np.float32(3)}, "--epochs=3.0: must be of type int, not float"),
        ({"learning_rate": None}, "--learning_rate=None: must be of type float, not NoneType"),
        ({"learning_rate": 10**17}, f"--learning_rate={10**17}: must be of type float, not int"),
        ({"norms": "2"}, "--norms=2: must be of type tuple[str, ...], not str"),
        ({"norms": (True,)}, "--norms=True: must be of type tuple[str, ...], not tuple of bool"),
        ({"norms": (2, "fro")}, "--norms=2,fro: no norm may be repeated; fro is 2"),
        ({"train_size": 1.0}, "--train_size=1.0: must be of type int | None, not float"),
        ({"weight_decay": -0.1}, "--weight_decay=-0.1: must be at least 0 and finite"),
        ({"weight_decay": np.inf}, "--weight_decay=inf: must be at least 0 and finite"),
        ({"weight_decay": np.nan}, "--weight_decay=nan: must be at least 0 and finite"),
        ({"augment": 1}, "--augment=1: must be of type bool, not int"),
        ({"workdir": ""}, "--workdir=: a folder is needed, not a file or an empty name"),
        (
            {"model": "resnet"},
            "--model=resnet: allowed are convnet3, convnet5, linear and package.module:function",
        ),
        ({"corruption": "shuffle"}, "--corruption=shuffle: allowed are swap, redraw"),
        ({"dataset": "a\nb"}, r"--dataset='a\nb': must be one line of Unicode text"),
    ],
)
def test_python_gets_the_same_line(values, message):
    with pytest.raises(ValueError) as error:
        validate(SweepConfig(**{"workdir": "x"} | values))
    assert str(error.value) == message


def test_lists_and_paths_are_taken():
    config = SweepConfig(Path("a/b"), norms=["2", "inf"], corruption_levels=[0, 1])
    assert (config.workdir, config.norms, config.corruption_levels) == ("a/b", ("2", "inf"), (0, 1))
    validate(config)


def test_numpy_values_are_taken():
    config = SweepConfig(
        "x",
        epochs=np.int64(3),
        learning_rate=np.float32(0.25),
        corruption_levels=np.array([0, 0.5]),
        batch_norm=np.False_,
        norms=np.array([2, 1.5, np.inf]),
    )
    validate(config)
    assert config == SweepConfig(
        "x", epochs=3, learning_rate=0.25, corruption_levels=(0.0, 0.5), norms=(2, "1.5", "inf")
    )
    assert "--norms=2,1.5,inf\n" in to_flagfile(config)


def test_a_number_too_large_for_a_float_is_refused():
    for number, text in ((10**400, f"{10**400}"), (10**5000, "an integer of 16610 bits")):
        with pytest.raises(ValueError, match=f"^--learning_rate={text}: must be of type float"):
            validate(SweepConfig("x", learning_rate=number))


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SweepConfig("x").epochs = 3
