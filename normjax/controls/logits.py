"""Controls that need the logits of every example: the effects of divisor and sampling noise.

`measure_network` reduces the logits of a network to mean losses at many divisors.
`explain_logits` computes all lines from these means.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from normjax.controls.margins import MarginRatio, margin_ratio
from normjax.controls.shuffles import NormPermutation, permute_losses
from normjax.losses import excess_cross_entropy
from normjax.statistics import regression
from normjax.statistics.regression import DemingFit, LineFit, deming_line, fit_line

NUM_TEMPERATURES = 17
SPLITS = ("train", "test")
DIVISORS = ("product_norm", "balanced", "last_layer", "rms", "one_norm")
NOT_BALANCED = "balancing is defined for entrywise norms only"


@dataclasses.dataclass(frozen=True)
class NetworkLogits:
    """The logits and the divisors of one network.

    Attributes:
      train_logits: float32 [N, K], as trained, on the training set.
      train_labels: int32 [N], the labels it was trained on.
      test_logits: like `train_logits`, on the test set.
      test_labels: int32 [N].
      product_norm: rho.
      last_norm: norm of the last layer.
      balanced_product_norm: rho after `balance_params`; None if undefined.
    """

    train_logits: np.ndarray
    train_labels: np.ndarray
    test_logits: np.ndarray
    test_labels: np.ndarray
    product_norm: float
    last_norm: float
    balanced_product_norm: float | None


@dataclasses.dataclass(frozen=True)
class NetworkMeasures:
    """The statistics of a network's logits, in nats.

    Attributes:
      train_margin: mean of f_y - mean_k f_k over the training examples, not normalized.
      test_margin: the same over the test examples.
      train: {divisor: mean excess of the training loss with the logits divided by each of its
        values, float64 [1 or more]}.
      test: the same for the test loss.
      test_examples: float32 [N], excess of each test example at the network's own rho.
      train_variance: sampling variance of the mean training excess at rho.
    """

    train_margin: float
    test_margin: float
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    test_examples: np.ndarray
    train_variance: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sampling error of a finite test set, in nats.

    Attributes:
      rmse: RMSE of the line.
      of_a_loss: standard error of one normalized test loss (root mean square over the networks).
      of_a_residual: RMSE of a line that only sampling error would cause. All networks share the
        test images, so most of the error is common and moves the line, not its residuals. It is
        sqrt(tr(M C) / (n - 2)), with C the covariance of the losses and M the residual maker.
      of_the_slope: standard error of the slope from the test examples alone.
      num_examples: number N of test examples.
    """

    rmse: float
    of_a_loss: float
    of_a_residual: float
    of_the_slope: float
    num_examples: int


@dataclasses.dataclass(frozen=True)
class FirstOrder:
    """The fraction of ln K - loss that is mean centered margin / rho; the rest is second order.

    Attributes:
      train: smallest and largest fraction on the training set; None if a loss equals ln K.
      test: the same on the test set.
      fit: the line of the first-order losses, ln K - margin / rho.
    """

    train: tuple[float, float] | None
    test: tuple[float, float] | None
    fit: LineFit


@dataclasses.dataclass(frozen=True)
class LogitExplanation:
    """Controls from the logits of n networks. `reasons` explains each field that is None.

    Attributes:
      first_order: the split of the excess into mean centered margin and second order.
      norm_permutation: R2 with the norms shuffled; exact, from each network's logits at every
        norm.
      ratio: the ratio of the exact raw margins.
      fits: {divisor: line of test on training loss}: "product_norm" (the paper's), "balanced"
        (product norm of the balanced weights), "last_layer" (norm of the last layer only), "rms"
        (root mean square of the logits on the training set), "one_norm" (the geometric mean of rho
        for all networks).
      points: {divisor: (training losses [n], test losses [n])} of these lines.
      temperatures: [T] further divisors; with "one_norm", the first leaves the logits as trained.
      temperature_r2: {"product_norm" or "one_norm": R2 of the line at each temperature, [T]}.
      temperature_slope: the same for the slope.
      deming: the line with errors in both losses, in the ratio of their sampling variances.
      sampling: the sampling error of the test set.
      reasons: {name of a field: why it is None}.
    """

    first_order: FirstOrder | None
    norm_permutation: NormPermutation | None
    ratio: MarginRatio | None
    fits: dict[str, LineFit | None]
    points: dict[str, tuple[tuple[float, ...], ...]]
    temperatures: tuple[float, ...]
    temperature_r2: dict[str, tuple[float | None, ...]]
    temperature_slope: dict[str, tuple[float | None, ...]]
    deming: DemingFit | None
    sampling: Sampling | None
    reasons: dict[str, str]


def geometric_mean(product_norms: Sequence[float]) -> float:
    """Return the geometric mean, the common norm of all networks."""
    return math.exp(np.mean(np.log(product_norms)))


def temperatures_of(product_norms: Sequence[float]) -> np.ndarray:
    """Return divisors [T] of normalized logits, from the scale of trained networks to 10."""
    return np.geomspace(min(0.1, 1 / geometric_mean(product_norms)), 10, NUM_TEMPERATURES)


def measure_network(network: NetworkLogits, product_norms: Sequence[float]) -> NetworkMeasures:
    """Return a network's mean losses at all divisors that `explain_logits` needs.

    Args:
      network: the logits of the network.
      product_norms: the product norms of all n networks.

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
    train = network.train_logits, network.train_labels
    test = network.test_logits, network.test_labels
    train_examples, test_examples = (
        _excess(logits, labels, own) for logits, labels in (train, test)
    )
    return NetworkMeasures(
        train_margin=_mean_margin(*train),
        test_margin=_mean_margin(*test),
        train={name: _mean_excess(*train, values) for name, values in divisors.items()},
        test={name: _mean_excess(*test, values) for name, values in divisors.items()},
        test_examples=test_examples,
        train_variance=float(np.var(train_examples, ddof=1, dtype=np.float64))
        / len(train_examples),
    )


def explain_logits(
    networks: Sequence[NetworkMeasures],
    product_norms: Sequence[float],
    levels: Sequence[Hashable],
    ln_num_classes: float,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
) -> LogitExplanation:
    """Explain a line with the logits of its networks with true labels.

    Args:
      networks: the measures of n networks, made with the same product norms.
      product_norms: n product norms.
      levels: n labels; networks of one label are not independent.
      ln_num_classes: ln K.
      num_draws: permutations of the norms.
      seed: seed of the permutations.
    """
    temperatures = temperatures_of(product_norms).tolist()
    rho = np.asarray(product_norms, np.float64)
    margins = np.array([[n.train_margin, n.test_margin] for n in networks]).T
    reasons: dict[str, str] = {}
    attempt = partial(regression.attempt, reasons)

    def excess_at(name: str) -> np.ndarray:
        """Return the excess on the training and test set, float64 [2, n, divisors]."""
        return np.array([[getattr(n, split)[name] for n in networks] for split in SPLITS])

    def line(excess: np.ndarray) -> LineFit:
        return fit_line(ln_num_classes + excess[0], ln_num_classes + excess[1], levels)

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
        ratio=attempt("ratio", lambda: margin_ratio(margins[0], margins[1], rho)),
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
        deming=attempt("deming", lambda: _deming(networks, examples, ln_num_classes + own)),
        sampling=attempt("sampling", lambda: _sampling(own, examples, line(own))),
        reasons=reasons,
    )


def _first_order(
    first: np.ndarray, excess: np.ndarray, line: Callable[[np.ndarray], LineFit]
) -> FirstOrder:
    """Return the split of the excess [2, n], given margins / rho [2, n]."""

    def extremes(margins: np.ndarray, losses: np.ndarray) -> tuple[float, float] | None:
        if (losses == 0).any():
            return None
        fractions = margins / -losses
        return float(fractions.min()), float(fractions.max())

    return FirstOrder(extremes(first[0], excess[0]), extremes(first[1], excess[1]), line(-first))


def _deming(
    networks: Sequence[NetworkMeasures], examples: np.ndarray, losses: np.ndarray
) -> DemingFit:
    """Fit the line with errors in both losses, in the ratio of their sampling variances."""
    train = np.mean([network.train_variance for network in networks])
    test = np.mean(_sampling_variances(examples))
    if not train > 0:
        raise ValueError("the training losses have no sampling variance")
    return deming_line(losses[0], losses[1], float(test / train))


def _sampling(excess: np.ndarray, examples: np.ndarray, fit: LineFit) -> Sampling:
    """Return the sampling error of the test set, from the excess [n, N] of each example."""
    num_networks, num_examples = examples.shape
    deviations = examples - examples.mean(axis=1, keepdims=True, dtype=np.float64)
    columns = np.stack([np.ones(num_networks), excess[0] / np.abs(excess[0]).max()], axis=1)
    basis, _ = np.linalg.qr(columns)
    left = deviations - basis @ (basis.T @ deviations)
    variance = np.sum(left**2) / (num_examples - 1) / num_examples
    dx = excess[0] - excess[0].mean()
    slopes = dx @ deviations / (dx @ dx)  # of each example
    return Sampling(
        rmse=fit.rmse,
        of_a_loss=math.sqrt(np.mean(_sampling_variances(examples))),
        of_a_residual=math.sqrt(variance / (num_networks - 2)),
        of_the_slope=float(np.std(slopes, ddof=1)) / math.sqrt(num_examples),
        num_examples=num_examples,
    )


def _sampling_variances(examples: np.ndarray) -> np.ndarray:
    """Return the variances [n] of the means over examples [n, N]."""
    return np.var(examples, axis=1, ddof=1, dtype=np.float64) / examples.shape[1]


def _centered(logits: np.ndarray) -> np.ndarray:
    """Return f_k - mean_k f_k, float64."""
    return logits - logits.mean(axis=-1, keepdims=True, dtype=np.float64)


def _mean_margin(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over examples of f_y - mean_k f_k."""
    return float(np.mean(_centered(logits)[np.arange(len(labels)), labels]))


def _mean_excess(logits: np.ndarray, labels: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """Return the mean excess of the logits divided by each divisor, float64."""
    return np.array(
        [np.mean(_excess(logits, labels, divisor), dtype=np.float64) for divisor in divisors]
    )


def _excess(logits: np.ndarray, labels: np.ndarray, divisor: float) -> np.ndarray:
    """Return the excess of each example with the logits divided by `divisor`, float32."""
    scaled = jnp.asarray(logits / np.float32(divisor))
    return np.asarray(excess_cross_entropy(scaled, jnp.asarray(labels)))
