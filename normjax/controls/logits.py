"""Controls of the line that need every example's logits: what divisor and noise do to it.

A network's logits are measured once, at many divisors (`measure_network`); all lines follow from
that (`explain_logits`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from normjax.losses import excess_cross_entropy
from normjax.statistics import regression
from normjax.statistics.influence import DemingFit, MarginRatio, deming_line, margin_ratio
from normjax.statistics.regression import LineFit, fit_line
from normjax.statistics.resampling import (
    LineBootstrap,
    NormPermutation,
    bootstrap_line,
    permute_losses,
)

NUM_TEMPERATURES = 17
SPLITS = ("train", "test")
DIVISORS = ("product_norm", "balanced", "last_layer", "rms", "one_norm")
NOT_BALANCED = "networks are balanced for entrywise norms only"


class NetworkLogits(NamedTuple):
    """One network's logits, and the divisors that they are to be measured at.

    Attributes:
      train_logits, test_logits: float32 [N, K], of the network as trained.
      train_labels, test_labels: int32 [N], those that it was trained for.
      product_norm: rho.
      last_norm: the norm of its last layer.
      balanced_product_norm: rho after `balance_params`; None where there is none.
    """

    train_logits: np.ndarray
    train_labels: np.ndarray
    test_logits: np.ndarray
    test_labels: np.ndarray
    product_norm: float
    last_norm: float
    balanced_product_norm: float | None


class NetworkMeasures(NamedTuple):
    """What is kept of a network's logits, in nats.

    Attributes:
      train_margin, test_margin: mean over the examples of f_y - mean_k f_k, not normalized.
      train, test: {divisor's name: float64 [1 or more]}, mean loss - ln K of the logits over it.
      test_examples: float32 [N], the same for each test example at the network's own rho.
      train_variance: sampling variance of the mean at rho, over the training examples.
    """

    train_margin: float
    test_margin: float
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    test_examples: np.ndarray
    train_variance: float


class Sampling(NamedTuple):
    """The error that the finite test set alone gives, in nats.

    Attributes:
      rmse: of the line.
      of_a_loss: standard error of one normalized test loss: root mean over the networks of the
        variance over test examples / N.
      of_a_residual: what such errors leave as the line's RMSE. All networks meet the same test
        images, so most of the error is common to all and moves the line, not its residuals. With C
        the covariance of the losses and M the matrix that makes residuals, sqrt(tr(M C) / (n - 2)).
      num_examples: N.
    """

    rmse: float
    of_a_loss: float
    of_a_residual: float
    num_examples: int


class FirstOrder(NamedTuple):
    """How much of ln K - loss is mean centered margin / rho; the rest is of second order.

    Attributes:
      train, test: smallest and largest share over the networks; 1 is all. None if a loss is ln K.
      fit: the line of the first-order losses, ln K - margin / rho.
    """

    train: tuple[float, float] | None
    test: tuple[float, float] | None
    fit: LineFit


class LogitExplanation(NamedTuple):
    """Controls from logits. None stands where `reasons` says why.

    Attributes:
      first_order: the split of the excess into mean centered margin and second order.
      norm_permutation: R2 with the norms shuffled, the losses computed anew from every network's
        own logits at every other network's norm, nothing approximated.
      ratio: of the exact raw margins.
      fits: {divisor: line of test on training loss}: "product_norm" (the paper's), "balanced"
        (product norm of the balanced weights), "last_layer" (norm of the last layer only), "rms"
        (the logits' own root mean square on the training set), "one_norm" (the geometric mean rho
        for all networks: no divisor of its own for any).
      points: {divisor: (training losses [n], test losses [n])}, of the same.
      temperatures: [T] further divisors; over "one_norm", the first leaves the logits as trained.
      temperature_r2, temperature_slope: {"product_norm" or "one_norm": [T]} of the lines at each.
      bootstrap: intervals over networks and test examples.
      deming: with errors in both losses, in the proportion of their sampling variances.
      sampling: the error of the finite test set.
      reasons: {name: why it is None}.
    """

    first_order: FirstOrder | None
    norm_permutation: NormPermutation | None
    ratio: MarginRatio | None
    fits: dict[str, LineFit | None]
    points: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    temperatures: tuple[float, ...]
    temperature_r2: dict[str, tuple[float, ...]]
    temperature_slope: dict[str, tuple[float, ...]]
    bootstrap: LineBootstrap | None
    deming: DemingFit | None
    sampling: Sampling | None
    reasons: dict[str, str]


def geometric_mean(product_norms: Sequence[float]) -> float:
    """The norm that stands for all where networks have none of their own."""
    return math.exp(np.mean(np.log(product_norms)))


def temperatures_of(product_norms: Sequence[float]) -> np.ndarray:
    """Divisors of normalized logits [T], from the scale of the networks as trained to 10."""
    return np.geomspace(min(0.1, 1 / geometric_mean(product_norms)), 10, NUM_TEMPERATURES)


def measure_network(network: NetworkLogits, product_norms: Sequence[float]) -> NetworkMeasures:
    """Means of a network's losses over all the divisors that `explain_logits` needs.

    Args:
      network: its logits.
      product_norms: n product norms, of all networks.

    Raises:
      ValueError: see `excess_cross_entropy`.
    """
    own, one_norm = network.product_norm, geometric_mean(product_norms)
    temperatures = temperatures_of(product_norms)
    divisors = {
        "norms": np.asarray(product_norms, np.float64),
        "product_norm": np.array([own]),
        "last_layer": np.array([network.last_norm]),
        "rms": np.array([math.sqrt(np.mean(_centered(network.train_logits) ** 2))]),
        "one_norm": np.array([one_norm]),
        "product_norm temperatures": own * temperatures,
        "one_norm temperatures": one_norm * temperatures,
    }
    if network.balanced_product_norm is not None:
        divisors["balanced"] = np.array([network.balanced_product_norm])
    splits = (
        (network.train_logits, network.train_labels),
        (network.test_logits, network.test_labels),
    )
    train, test = (
        {name: _mean_excess(*split, values) for name, values in divisors.items()}
        for split in splits
    )
    examples = [np.asarray(excess_cross_entropy(z / np.float32(own), y)) for z, y in splits]
    return NetworkMeasures(
        *(_mean_margin(*split) for split in splits),
        train,
        test,
        examples[1],
        float(np.var(examples[0], ddof=1, dtype=np.float64) / len(examples[0])),
    )


def explain_logits(
    networks: Sequence[NetworkMeasures],
    product_norms: Sequence[float],
    levels: Sequence[Hashable],
    num_classes: int,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> LogitExplanation:
    """All controls from the logits of n networks, of true labels for a `controls.Explanation`.

    Args:
      networks: n networks' measures, made with the same product norms.
      product_norms: n product norms.
      levels: n labels; networks of one label are not independent.
      num_classes: K.
      num_draws: permutations of the norms.
      seed: seed of permutations and bootstrap.
    """
    ln_num_classes = math.log(num_classes)
    temperatures = temperatures_of(product_norms).tolist()
    rho = np.asarray(product_norms, np.float64)
    margins = np.array([[n.train_margin, n.test_margin] for n in networks]).T
    reasons: dict[str, str] = {}

    attempt = partial(regression.attempt, reasons)

    def excess_at(name: str) -> np.ndarray:
        """[2, n, divisors]: of training and test set."""
        return np.array([[getattr(n, split)[name] for n in networks] for split in SPLITS])

    def line(excess: np.ndarray) -> LineFit:
        return fit_line(*(ln_num_classes + excess))

    own = excess_at("product_norm")[..., 0]
    examples = np.stack([network.test_examples for network in networks])
    names = [name for name in DIVISORS if all(name in n.train for n in networks)]
    reasons.update({f"fits.{name}": NOT_BALANCED for name in DIVISORS if name not in names})
    sweeps = {
        name: [
            attempt(f"temperature {temperature:g} of {name}", lambda e=excess: line(e))
            for temperature, excess in zip(
                temperatures, np.moveaxis(excess_at(f"{name} temperatures"), -1, 0), strict=True
            )
        ]
        for name in ("product_norm", "one_norm")
    }
    return LogitExplanation(
        first_order=attempt("first_order", lambda: _first_order(margins / rho, own, line)),
        norm_permutation=attempt(
            "norm_permutation",
            lambda: permute_losses(*excess_at("norms"), num_draws=num_draws, seed=seed),
        ),
        ratio=attempt("ratio", lambda: margin_ratio(*margins, rho)),
        fits={
            name: attempt(f"fits.{name}", lambda name=name: line(excess_at(name)[..., 0]))
            for name in names
        },
        points={
            name: tuple(map(tuple, (ln_num_classes + excess_at(name)[..., 0]).tolist()))
            for name in names
        },
        temperatures=tuple(temperatures),
        temperature_r2={
            name: tuple(fit.r2 if fit else None for fit in fits) for name, fits in sweeps.items()
        },
        temperature_slope={
            name: tuple(fit.slope if fit else None for fit in fits) for name, fits in sweeps.items()
        },
        bootstrap=attempt(
            "bootstrap",
            lambda: bootstrap_line(own[0], examples, levels, ln_num_classes, seed=seed),
        ),
        deming=attempt("deming", lambda: _deming(networks, examples, ln_num_classes + own)),
        sampling=attempt("sampling", lambda: _sampling(own, examples, line(own))),
        reasons=reasons,
    )


def _first_order(
    first: np.ndarray, excess: np.ndarray, line: Callable[[np.ndarray], LineFit]
) -> FirstOrder:
    """The split, of margins / rho [2, n] and the excess [2, n]."""
    shares = [
        None if (e == 0).any() else (float((m / -e).min()), float((m / -e).max()))
        for m, e in zip(first, excess, strict=True)
    ]
    return FirstOrder(*shares, line(-first))


def _deming(
    networks: Sequence[NetworkMeasures], examples: np.ndarray, losses: np.ndarray
) -> DemingFit:
    """The line with errors in both, in the proportion of the finite sets' sampling variances."""
    train = np.mean([network.train_variance for network in networks])
    test = np.mean(_sampling_variances(examples))
    if not train > 0:
        raise ValueError("the training losses have no sampling variance")
    return deming_line(*losses, float(test / train))


def _sampling(excess: np.ndarray, examples: np.ndarray, fit: LineFit) -> Sampling:
    """What the finite test set gives, from each example's excess [n, N]."""
    num_networks, num_examples = examples.shape
    deviations = examples - examples.mean(axis=1, keepdims=True, dtype=np.float64)
    columns = np.stack([np.ones(num_networks), excess[0] / np.abs(excess[0]).max()], axis=1)
    basis, _ = np.linalg.qr(columns)
    left = deviations - basis @ (basis.T @ deviations)
    variance = np.sum(left**2) / (num_examples - 1) / num_examples
    return Sampling(
        fit.rmse,
        math.sqrt(np.mean(_sampling_variances(examples))),
        math.sqrt(variance / (num_networks - 2)),
        num_examples,
    )


def _sampling_variances(examples: np.ndarray) -> np.ndarray:
    """Variances [n] of the means over examples [n, N]."""
    return np.var(examples, axis=1, ddof=1, dtype=np.float64) / examples.shape[1]


def _centered(logits: np.ndarray) -> np.ndarray:
    """f_k - mean_k f_k, float64."""
    return logits - logits.mean(axis=-1, keepdims=True, dtype=np.float64)


def _mean_margin(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over examples of f_y - mean_k f_k."""
    return float(np.mean(_centered(logits)[np.arange(len(labels)), labels]))


def _mean_excess(logits: np.ndarray, labels: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """Mean loss - ln K of the logits over each divisor, float64."""
    per_example = [excess_cross_entropy(logits / np.float32(d), labels) for d in divisors]
    return np.array([np.mean(np.asarray(values), dtype=np.float64) for values in per_example])
