"""The paper's figures as two tables: their runs, and their content.

Figures that show the same networks share a run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normjax.plots import paper as plotting

FLAGFILES = Path(__file__).parents[1] / "flagfiles"
SCALES = ("full", "small", "smoke")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that one or more figures use.

    Attributes:
      experiment: the module of `experiments` to run.
      flagfile: stem of the flagfile with the paper's settings.
      data: "cifar10" or "cifar100"; "" if the experiment draws its own data.
      shared: additional flags that other figures of the run need.
      small: flags for scale "small"; all runs together take hours on 2 CPU cores.
      smoke: flags for scale "smoke", on digits; all runs together take a few minutes.
    """

    experiment: str
    flagfile: str
    data: str
    shared: Mapping[str, str]
    small: Mapping[str, str]
    smoke: Mapping[str, str]

    def flags(self, scale: str) -> dict[str, str]:
        """Return the flags in addition to the flagfile at a scale, without the data set."""
        return {**self.shared, **{"full": {}, "small": self.small, "smoke": self.smoke}[scale]}


@dataclasses.dataclass(frozen=True)
class PrintedLine:
    """The numbers that the paper prints for a line; losses in nats."""

    slope: float
    intercept: float
    r2: float
    adjusted_r2: float
    rmse: float


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
      run: key of the run in `RUNS`.
      plot: the plotting function from `normjax.plots.paper`; the flagfile sets the norm.
      is_at_target: whether the figure shows networks at the target loss, not the last epoch.
      families: the families of the networks.
      only_level: the only corruption level of the figure; None for all.
      has_line: whether a line is fitted to normalized test against normalized training loss.
      printed: the numbers of the line, if the paper prints them.
      train_losses: the smallest and largest training loss that the paper gives, as trained; equal
        if the paper gives one target for all networks.
    """

    run: str
    plot: Callable[..., Any]
    is_at_target: bool
    families: tuple[str, ...]
    only_level: float | None = None
    has_line: bool = True
    printed: PrintedLine | None = None
    train_losses: tuple[float, float] | None = None


_NET5_SMALL = {
    "train_size": "1250",
    "num_seeds": "1",
    "batch_size": "64",
    "epochs": "40",
}
_NET5_SMOKE = {
    "train_size": "300",
    "num_seeds": "2",
    "batch_size": "32",
    "learning_rate": "0.05",
    "epochs": "20",
}
_PRETRAIN5 = {
    "shared": {},
    "small": {
        **_NET5_SMALL,
        "corruption_levels": "0,0.1,0.25,0.5,0.75,1",
        "pretrain_epochs": "10",
    },
    "smoke": {**_NET5_SMOKE, "corruption_levels": "0,0.5,1", "pretrain_epochs": "5"},
}
_INIT5 = {
    "shared": {},
    "small": {**_NET5_SMALL, "init_stds": "0.01,0.025,0.05,0.1,0.15", "epochs": "60"},
    "smoke": {**_NET5_SMOKE, "init_stds": "0.025,0.05,0.1", "epochs": "50"},
}

RUNS = {
    "convnet3": Run(
        "random_labels",
        "fig10",
        "cifar10",
        shared={"target_losses": "0.0044", "norms": "2,1/100", "test_every": "5"},
        small={
            "train_size": "5000",
            "corruption_levels": "0,0.1,0.25,0.5,0.75,1",
            "num_seeds": "8",
            "pretrain_epochs": "20",
            "epochs": "100",
            "batch_size": "128",
        },
        smoke={
            "train_size": "400",
            "corruption_levels": "0,0.5,1",
            "num_seeds": "2",
            "pretrain_epochs": "30",
            "epochs": "60",
            "batch_size": "32",
            "learning_rate": "0.05",
        },
    ),
    "default_init": Run(
        "default_init",
        "fig06",
        "cifar10",
        shared={},
        small={
            "train_size": "5000",
            "num_seeds": "32",
            "epochs": "60",
            "batch_size": "128",
            "test_every": "5",
        },
        smoke={
            "train_size": "400",
            "num_seeds": "7",
            "epochs": "60",
            "batch_size": "32",
            "learning_rate": "0.05",
        },
    ),
    "convnet5_pretrain": Run("random_pretrain", "fig07", "cifar10", **_PRETRAIN5),
    "convnet5_init": Run("init_scale", "fig08", "cifar10", **_INIT5),
    "cifar100_pretrain": Run("random_pretrain", "fig14", "cifar100", **_PRETRAIN5),
    "cifar100_init": Run("init_scale", "fig15", "cifar100", **_INIT5),
    "linear": Run(
        "linear_margin",
        "linear_margin",
        "",
        shared={},
        small={},
        smoke={"num_draws": "20", "num_steps": "2000"},
    ),
}

_LEVELS, _FOUR = plotting.plot_losses_against_level, plotting.plot_four_panels
_FIT, _FIT_AND_RAW = plotting.plot_normalized_fit, plotting.plot_normalized_and_raw
_PRETRAIN, _INIT, _RANDOM = ("pretrain",), ("init_scale",), "random_labels"
_NEAR = (0.006, 0.006)
_AT = (0.0043, 0.0045)

FIGURES = {
    "1": PaperFigure(
        "convnet5_pretrain", _LEVELS, True, _PRETRAIN, has_line=False, train_losses=_NEAR
    ),
    "2": PaperFigure("convnet5_init", _LEVELS, True, _INIT, has_line=False, train_losses=_NEAR),
    "3": PaperFigure("convnet3", _FIT, True, _PRETRAIN, train_losses=_AT),
    "4": PaperFigure(
        "convnet3",
        _FIT,
        False,
        _PRETRAIN,
        printed=PrintedLine(0.8358, 0.3783, 0.9998, 0.9998, 5.6567e-5),
    ),
    "5": PaperFigure(
        "convnet3",
        _FIT_AND_RAW,
        False,
        _PRETRAIN,
        printed=PrintedLine(0.836, 0.377, 0.9998, 0.9998, 4.7651e-5),
        train_losses=(1.5e-4, 2.5e-3),
    ),
    "6": PaperFigure(
        "default_init",
        _FIT_AND_RAW,
        False,
        ("default_init",),
        printed=PrintedLine(0.8117, 0.4333, 0.9660, 0.9592, 6.3624e-5),
        train_losses=(1.29e-3, 1.38e-3),
    ),
    "7": PaperFigure("convnet5_pretrain", _FOUR, True, _PRETRAIN, train_losses=_NEAR),
    "8": PaperFigure("convnet5_init", _FOUR, True, (*_INIT, _RANDOM), train_losses=_NEAR),
    "9": PaperFigure(
        "convnet3",
        plotting.plot_error_against_product_norm,
        True,
        _PRETRAIN,
        has_line=False,
        train_losses=_AT,
    ),
    "10": PaperFigure(
        "convnet3",
        _FIT,
        False,
        (*_PRETRAIN, _RANDOM),
        printed=PrintedLine(0.8789, 0.2795, 0.9721, 0.9721, 5.8304e-4),
    ),
    "11": PaperFigure(
        "convnet3",
        _FIT,
        False,
        (*_PRETRAIN, _RANDOM),
        only_level=0.0,
        printed=PrintedLine(0.9642, 0.0844, 0.9999, 0.9999, 6.9797e-5),
    ),
    "12": PaperFigure(
        "cifar100_pretrain", _LEVELS, True, _PRETRAIN, has_line=False, train_losses=_NEAR
    ),
    "13": PaperFigure("cifar100_init", _LEVELS, True, _INIT, has_line=False, train_losses=_NEAR),
    "14": PaperFigure("cifar100_pretrain", _FOUR, True, _PRETRAIN, train_losses=_NEAR),
    "15": PaperFigure("cifar100_init", _FOUR, True, (*_INIT, _RANDOM), train_losses=_NEAR),
}

# Our own figures and their runs: section 3.1.1 and the recommendation to practitioners.
OTHER_FIGURES = {"linear": "linear", "monitor": "convnet3"}


def run_of(name: str) -> str:
    """Return the key in `RUNS` of a figure's run."""
    return FIGURES[name].run if name in FIGURES else OTHER_FIGURES[name]


def stem_of(name: str) -> str:
    """Return the stem of a figure's file and flagfile, such as fig04 or linear."""
    return f"fig{int(name):02}" if name in FIGURES else name
