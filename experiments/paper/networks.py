"""The networks of each of the paper's figures, chosen from a run, and how they were explained."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from experiments.paper.figures import FIGURES, PaperFigure
from experiments.paper.runs import flagfile_of, read_flags
from normjax.controls.explain import Explanation, explain_line
from normjax.results.table import on_own_labels, read_results, selection_name

_MIN_NETWORKS = 3  # of a line


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a figure.

    Attributes:
      table: their rows of one selection and norm; diverged networks have NaN in their losses.
      found: their explanation.
      remarks: what is not as in the paper's figure.
    """

    table: pd.DataFrame
    found: Explanation
    remarks: tuple[str, ...]


def networks_of(name: str, run_dir: Path) -> Networks:
    """Return the networks of one of the paper's figures, from a finished run.

    Raises:
      OSError: a file can not be read.
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
    """Return the networks that a figure shows, evaluated on the labels they were trained on.

    Where fewer than three networks reached the target loss at zero training error, those of the
    last epoch are taken, and a remark says so.

    Args:
      figure: the figure.
      table: the results of its run.
      norm: the figure's norm, as in the results.
      target: the run's target loss, as in the results, for figures at the target.

    Raises:
      ValueError: there are no networks with finite losses.
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
            "those of the last epoch are taken"
        )
        chosen = table[table["selection"] == "final"]
    num_members = table["member"].nunique()
    if len(chosen) < num_members:
        remarks.append(
            f"{num_members - len(chosen)} of {num_members} networks left out, never at "
            f"{selection_name(selection)} and zero training error"
        )
    if chosen.empty:
        raise ValueError(f"no networks of {' or '.join(figure.families)} with norm {norm}")
    found = explain_line(chosen)
    if not found.num_networks:
        raise ValueError(f"none of the {len(chosen)} networks has finite losses")
    if found.num_diverged:
        remarks.append(f"{found.num_diverged} of {num_members} networks left out as diverged")
    if num_unfitted := len(found.not_interpolating):
        remarks.append(f"{num_unfitted} of {num_members} networks above zero training error")
    return Networks(chosen, found, tuple(remarks))


def settings_that_differ(
    figure: PaperFigure, paper: Mapping[str, str], ours: Mapping[str, str]
) -> list[str]:
    """Return the settings of a run that are not those of a figure's flagfile, each in words.

    Compared are the flags that the flagfile names, and the numbers of images. The norm, a lone
    level and, for figures of the last epoch, the target loss are chosen per figure.

    Args:
      figure: the figure.
      paper: the flagfile's values by name.
      ours: those of the run's flags.txt.
    """
    own = {"workdir", "norms"}
    if not figure.is_at_target:
        own.add("target_losses")
    if figure.only_level is not None:
        own.add("corruption_levels")
    names = [name for name in dict.fromkeys([*paper, "train_size", "test_size"]) if name not in own]
    return [
        f"{name} {ours.get(name, 'all')} instead of {paper.get(name, 'all')}"
        for name in names
        if _canonical(ours.get(name, "")) != _canonical(paper.get(name, ""))
    ]


def _canonical(text: str) -> list[float | str]:
    """Return a flag's value as it is compared: 0.50 is 0.5, True is true."""
    return [_number(item.strip()) for item in text.split(",") if item.strip()]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()
