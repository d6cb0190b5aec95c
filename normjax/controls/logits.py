"""Controls of the line that need every example's logits: what divisor and noise do to it.

A network's logits are measured once, at many divisors (`measure_network`); all lines follow from
these means (`explain_logits`).
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
from normjax.statistics.resampling import LineBootstrap, bootstrap_line

NUM_TEMPERATURES = 17
SPLITS = ("train", "test")
DIVISORS = ("product_norm", "balanced", "last_layer", "rms", "one_norm")
NOT_BALANCED = "networks are balanced for entrywise norms only"


@dataclasses.dataclass(frozen=True)
class NetworkLogits:
    """One network's logits, and its own divisors.

    Attributes:
      train_logits: float32 [N, K], of the network as trained, on the training set.
      train_labels: int32 [N], the labels it was trained on.
      test_logits: as train_logits, on the test set.
      test_labels: int32 [N].
      product_norm: rho.
      last_norm: norm of its last layer.
      balanced_product_norm: rho after `balance_params`; None if it is not defined.
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
    """What is kept of a network's logits, in nats.

    Attributes:
      train_margin: mean over the training examples of f_y - mean_k f_k, not normalized.
      test_margin: the same over the test examples.
      train: {name of a divisor: mean training loss - ln K of the logits over it, float64 [1 or
        more]}.
      test: the same of the test loss.
      test_examples: float32 [N], loss - ln K of each test example at the network's own rho.
      train_variance: sampling variance of the mean at rho, over the training examples.
    """

    train_margin: float
    test_margin: float
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    test_examples: np.ndarray
    train_variance: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The error that a finite test set gives by itself, in nats.

    Attributes:
      rmse: RMSE of the line.
      of_a_loss: standard error of one normalized test loss: root mean over the networks of the
        variance over test examples / N.
      of_a_residual: the line's RMSE that such errors give. All networks see the same test
        images, so most of the error is common to all and moves the line, not its residuals. With C
        the covariance of the losses and M the matrix that makes residuals, sqrt(tr(M C) / (n - 2)).
      num_examples: N.
    """

    rmse: float
    of_a_loss: float
    of_a_residual: float
    num_examples: int


@dataclasses.dataclass(frozen=True)
class FirstOrder:
    """How much of ln K - loss is mean centered margin / rho; the rest is of second order.

    Attributes:
      train: least and greatest fraction over the networks, training set. None if a loss is ln K.
      test: the same, test set.
      fit: the line of the first-order losses, ln K - margin / rho.
    """

    train: tuple[float, float] | None
    test: tuple[float, float] | None
    fit: LineFit


@dataclasses.dataclass(frozen=True)
class LogitExplanation:
    """Controls from the logits of n networks. A field is None where `reasons` says why.

    Attributes:
      first_order: the split of the excess into mean centered margin and second order.
      norm_permutation: R2 with the norms shuffled; the losses are computed from every network's own
        logits at every other network's norm, without an approximation.
      ratio: of the exact raw margins.
      fits: {divisor: line of test on training loss}: "product_norm" (the paper's), "balanced"
        (product norm of the balanced weights), "last_layer" (norm of the last layer only), "rms"
        (the logits' own root mean square on the training set), "one_norm" (the geometric mean rho
        for all networks: no divisor of its own for any).
      points: {divisor: (training losses [n], test losses [n])} of these lines.
      temperatures: [T] further divisors; over "one_norm", the first leaves the logits as trained.
      temperature_r2: {"product_norm" or "one_norm": R2 of the line at each temperature, [T]}.
      temperature_slope: the same of the slope.
      bootstrap: intervals over levels and test examples.
      deming: the line with errors in both losses, in the proportion of their sampling variances.
      sampling: the error of the finite test set.
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
    bootstrap: LineBootstrap | None
    deming: DemingFit | None
    sampling: Sampling | None
    reasons: dict[str, str]


def geometric_mean(product_norms: Sequence[float]) -> float:
    """Return the one norm that replaces the networks' own."""
    return math.exp(np.mean(np.log(product_norms)))


def temperatures_of(product_norms: Sequence[float]) -> np.ndarray:
    """Return divisors of normalized logits [T], from the scale of networks as trained to 10."""
    return np.geomspace(min(0.1, 1 / geometric_mean(product_norms)), 10, NUM_TEMPERATURES)


def measure_network(network: NetworkLogits, product_norms: Sequence[float]) -> NetworkMeasures:
    """Return a network's mean losses at all divisors that `explain_logits` needs.

    Args:
      network: the network's logits.
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
    """Explain a line by all controls from the logits of its networks of true labels.

    Args:
      networks: n networks' measures, made with the same product norms.
      product_norms: n product norms.
      levels: n labels; networks of one label are not independent.
      ln_num_classes: ln K.
      num_draws: permutations of the norms.
      seed: seed of permutations and bootstrap.
    """
    temperatures = temperatures_of(product_norms).tolist()
    rho = np.asarray(product_norms, np.float64)
    margins = np.array([[n.train_margin, n.test_margin] for n in networks]).T
    reasons: dict[str, str] = {}
    attempt = partial(regression.attempt, reasons)

    def excess_at(name: str) -> np.ndarray:
        """Return float64 [2, n, divisors] of training and test set."""
        return np.array([[getattr(n, split)[name] for n in networks] for split in SPLITS])

    def line(excess: np.ndarray) -> LineFit:
        return fit_line(ln_num_classes + excess[0], ln_num_classes + excess[1])

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
    """Return the split, from margins / rho [2, n] and the excess [2, n]."""

    def extremes(margins: np.ndarray, losses: np.ndarray) -> tuple[float, float] | None:
        if (losses == 0).any():
            return None
        fractions = margins / -losses
        return float(fractions.min()), float(fractions.max())

    return FirstOrder(extremes(first[0], excess[0]), extremes(first[1], excess[1]), line(-first))


def _deming(
    networks: Sequence[NetworkMeasures], examples: np.ndarray, losses: np.ndarray
) -> DemingFit:
    """Fit the line with errors in both, in the proportion of the sampling variances."""
    train = np.mean([network.train_variance for network in networks])
    test = np.mean(_sampling_variances(examples))
    if not train > 0:
        raise ValueError("the training losses have no sampling variance")
    return deming_line(losses[0], losses[1], float(test / train))


def _sampling(excess: np.ndarray, examples: np.ndarray, fit: LineFit) -> Sampling:
    """Return the finite test set's error, from each example's excess [n, N]."""
    num_networks, num_examples = examples.shape
    deviations = examples - examples.mean(axis=1, keepdims=True, dtype=np.float64)
    columns = np.stack([np.ones(num_networks), excess[0] / np.abs(excess[0]).max()], axis=1)
    basis, _ = np.linalg.qr(columns)
    left = deviations - basis @ (basis.T @ deviations)
    variance = np.sum(left**2) / (num_examples - 1) / num_examples
    return Sampling(
        rmse=fit.rmse,
        of_a_loss=math.sqrt(np.mean(_sampling_variances(examples))),
        of_a_residual=math.sqrt(variance / (num_networks - 2)),
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
    """Return the mean loss - ln K of the logits over each divisor, float64."""
    return np.array(
        [np.mean(_excess(logits, labels, divisor), dtype=np.float64) for divisor in divisors]
    )


def _excess(logits: np.ndarray, labels: np.ndarray, divisor: float) -> np.ndarray:
    """Return each example's loss - ln K of the logits over the divisor, float32."""
    scaled = jnp.asarray(logits / np.float32(divisor))
    return np.asarray(excess_cross_entropy(scaled, jnp.asarray(labels)))
