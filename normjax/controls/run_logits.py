"""Controls from the logits of a finished run."""

import os
from typing import Any

from tqdm import tqdm

from normjax.balance import balance_params
from normjax.batch_norm import absorb_batch_norm
from normjax.controls.explain import Explanation, choose_rows
from normjax.controls.logits import (
    LogitExplanation,
    NetworkLogits,
    explain_logits,
    measure_network,
)
from normjax.networks.classifier import Variables
from normjax.networks.models import MODEL_NAMES
from normjax.normalize import param_norms, product_norm
from normjax.norms import NamedNorm, parse_norm
from normjax.results.table import is_finite, level_names
from normjax.training.finished_run import FinishedRun, Network, load_run, logits_of, networks_at
from normjax.types import Params


def explain_run(
    run_dir: str | os.PathLike,
    line: Explanation,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    seed: int = 0,
) -> LogitExplanation:
    """Explain a line with the logits of the run's networks with true labels.

    Args:
      run_dir: the folder of the finished run.
      line: the result of `explain_line` for this run.
      dataset: the new name or folder:PATH of the data, if they moved.
      data_dir: the new folder of the data, if they moved.
      seed: seed of the permutations.

    Raises:
      FileNotFoundError: the run cannot be found.
      OtherDataError: the data are not those of the run.
      ValueError: the run, its data or `line` do not match; see `finished_run.load_run`.
    """
    run = load_run(os.fspath(run_dir), data_dir, dataset=dataset)
    if line.ln_num_classes is None or run.dataset.num_classes != line.num_classes:
        raise ValueError(
            f"{run_dir}: the data have {run.dataset.num_classes} classes, the results "
            f"{line.num_classes}"
        )
    rows = choose_rows(run.table, line.selection, line.norm)
    rows = rows[is_finite(rows) & (rows["family"] != "random_labels")].set_index("member")
    norm = parse_norm(line.norm)
    product_norms = rows["product_norm"].tolist()
    networks = [n for n in networks_at(run, line.selection) if n.member.index in rows.index]
    measures = [
        measure_network(_network_logits(run, network, norm), product_norms)
        for network in tqdm(networks, "logits", unit="network", disable=None)
    ]
    return explain_logits(
        measures,
        product_norms,
        level_names(rows),
        line.ln_num_classes,
        seed=seed,
    )


def _network_logits(run: FinishedRun, network: Network, norm: NamedNorm) -> NetworkLogits:
    """Return a network's logits on both splits and its norms before and after balancing."""
    variables = network.variables
    how = {"structure": run.classifier.structure, "tied": run.classifier.tied}
    norms = param_norms(variables, norm.norm, scale=norm.scale, **how)
    train, test = (
        logits_of(run.apply_fn, variables, split.images)
        for split in (run.dataset.train, run.dataset.test)
    )
    return NetworkLogits(
        train_logits=train,
        train_labels=network.train_labels,
        test_logits=test,
        test_labels=network.test_labels,
        product_norm=float(product_norm(variables, norm.norm, scale=norm.scale, **how)),
        last_norm=float(list(norms.values())[-1]),
        balanced_product_norm=_balanced_norm(run, variables, norm),
    )


def _balanced_norm(run: FinishedRun, variables: Variables, norm: NamedNorm) -> float | None:
    """Return the product norm of the balanced network, or None if it cannot be balanced."""
    structure = run.classifier.structure
    params: Params = variables
    how: dict[str, Any] = {"structure": structure}
    if run.classifier.has_state and run.config.model in MODEL_NAMES:
        params = absorb_batch_norm(variables, structure=structure)
        how = {"layers": [path.removeprefix("params/") for path in structure.layers]}
    try:
        balanced = balance_params(params, norm.norm, **how)
    except ValueError:  # not an entrywise norm, or no chain of layers
        return None
    return float(product_norm(balanced, norm.norm, scale=norm.scale, **how))
