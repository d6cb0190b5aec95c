"""Choose the networks of each of the paper's figures from a run, and explain their line."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from experiments.paper.figures import FIGURES, PaperFigure
from experiments.paper.runs import flagfile_of, read_flags
from normjax.controls.explain import Explanation, explain_line
from normjax.results.table import on_own_labels, read_results, selection_name

_MIN_NETWORKS = 3  # for a line


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a figure.

    Attributes:
      table: rows of one selection and norm; losses of diverged networks are NaN.
      found: the explanation of the line.
      remarks: differences from the paper's figure.
    """

    table: pd.DataFrame
    found: Explanation
    remarks: tuple[str, ...]


def networks_of(name: str, run_dir: Path) -> Networks:
    """Return the networks of one of the paper's figures, from a finished run.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, the run has several target losses, or there are no networks.
    """
    paper, ours = read_flags(flagfile_of(name)), read_flags(run_dir / "flags.txt")
    table = read_results(run_dir)
    targets = ours.get("target_losses", "")
    try:
        target = format(float(targets), "g") if targets else ""
    except ValueError:
        path = run_dir / "flags.txt"
        raise ValueError(f"{path}: --target_losses={targets}: one loss is needed") from None
    return choose_networks(FIGURES[name], table, paper["norms"], target)


def choose_networks(figure: PaperFigure, table: pd.DataFrame, norm: str, target: str) -> Networks:
    """Return the networks of a figure, evaluated on the labels they were trained on.

    If fewer than three networks reached the target loss at zero training error, the networks of
    the last epoch are used, with a remark.

    Args:
      figure: the figure.
      table: the results of the run.
      norm: the norm of the figure, as in the results.
      target: the target loss of the run, as in the results.

    Raises:
      ValueError: no network has finite losses.
    """
    table = on_own_labels(table)
    is_shown = (table["norm"] == norm) & table["family"].isin(figure.families)
    if figure.only_level is not None:
        is_shown &= (table["level"] == figure.only_level) | (table["family"] == "random_labels")
    table = table[is_shown]
    selection = f"loss={target}" if figure.is_at_target else "final"
    remarks = []
    chosen = table[table["selection"] == selection]
    if len(chosen) < _MIN_NETWORKS and figure.is_at_target:
        remarks.append(
            f"{len(chosen)} networks at {selection_name(selection)} and zero training error: "
            "the last epoch is used instead"
        )
        chosen = table[table["selection"] == "final"]
    num_members = table["member"].nunique()
    if len(chosen) < num_members:
        remarks.append(
            f"{num_members - len(chosen)} of {num_members} networks excluded: no snapshot at "
            f"{selection_name(selection)} and zero training error"
        )
    if chosen.empty:
        raise ValueError(f"no networks of {' or '.join(figure.families)} with norm {norm}")
    found = explain_line(chosen)
    if not found.num_networks:
        raise ValueError(f"none of the {len(chosen)} networks has finite losses")
    if found.num_diverged:
        remarks.append(f"{found.num_diverged} of {num_members} networks excluded: diverged")
    if num_unfitted := len(found.not_interpolating):
        remarks.append(f"{num_unfitted} of {num_members} networks have nonzero training error")
    return Networks(chosen, found, tuple(remarks))


# What flags mean that a flagfile does not set.
_UNSET = {"train_size": "all", "test_size": "all", "stop_at_targets": "false"}


def settings_that_differ(
    figure: PaperFigure, paper: Mapping[str, str], ours: Mapping[str, str]
) -> list[str]:
    """Describe the settings of a run that differ from a figure's flagfile.

    Only flags in the flagfile, the numbers of images and the end at the targets are compared. The
    norm, a single level and, for figures of the last epoch, the target loss are chosen per figure
    and ignored.

    Args:
      figure: the figure.
      paper: {flag: value} from the flagfile.
      ours: {flag: value} from the run's flags.txt.
    """
    own = {"workdir", "norms"}
    if not figure.is_at_target:
        own.add("target_losses")
    if figure.only_level is not None:
        own.add("corruption_levels")
    names = [name for name in dict.fromkeys([*paper, *_UNSET]) if name not in own]
    values = [
        tuple(flags.get(name, _UNSET.get(name, "")) for flags in (ours, paper)) for name in names
    ]
    return [
        f"{name} {our} instead of {theirs}"
        for name, (our, theirs) in zip(names, values, strict=True)
        if _canonical(our) != _canonical(theirs)
    ]


def _canonical(text: str) -> list[float | str]:
    """Return a flag's value in canonical form: 0.50 equals 0.5, True equals true."""
    return [_number(item.strip()) for item in text.split(",") if item.strip()]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()
