"""Controls from logits against numpy in float64, on logits made to a plan."""

import math

import numpy as np
import pytest
import statsmodels.api as sm

from normjax.controls.logits import (
    NetworkLogits,
    explain_logits,
    measure_network,
)

K, NUM_TRAIN, NUM_TEST, NUM_NETWORKS = 5, 300, 200, 9


def softmax_loss(logits, labels):
    """Cross entropy - ln K per example, the plain way, float64."""
    z = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
    return log_sum - z[np.arange(len(labels)), labels] - math.log(K)


def make_networks(balanced=True):
    """Networks whose margins vary by themselves, test margins 0.6 of training margins."""
    rng = np.random.default_rng(0)
    train_labels, test_labels = (rng.integers(K, size=n) for n in (NUM_TRAIN, NUM_TEST))
    networks = []
    for _ in range(NUM_NETWORKS):
        margin, rho = rng.uniform(10, 20), np.exp(rng.uniform(4, 6))
        splits = []
        for labels, size in ((train_labels, margin), (test_labels, 0.6 * margin)):
            logits = rng.normal(size=(len(labels), K)) * 3 + 1.5
            logits[np.arange(len(labels)), labels] += size
            splits.append(logits.astype(np.float32))
        networks.append(
            NetworkLogits(
                *(splits[0], train_labels.astype(np.int32)),
                *(splits[1], test_labels.astype(np.int32)),
                product_norm=rho,
                last_norm=rho**0.4,
                balanced_product_norm=0.8 * rho if balanced else None,
            )
        )
    return networks


@pytest.fixture(scope="module")
def networks():
    return make_networks()


@pytest.fixture(scope="module")
def found(networks):
    return explain(networks)


def explain(networks):
    norms = [network.product_norm for network in networks]
    measures = [measure_network(network, norms) for network in networks]
    return explain_logits(measures, norms, range(len(networks)), math.log(K), num_draws=500)


def line(networks, divisor_of):
    """statsmodels' line of test on training loss, with the logits over a divisor."""
    losses = np.array(
        [
            [
                np.mean(softmax_loss(getattr(n, f"{s}_logits") / divisor_of(n), labels))
                for s, labels in (("train", n.train_labels), ("test", n.test_labels))
            ]
            for n in networks
        ]
    ) + math.log(K)
    return sm.OLS(losses[:, 1], sm.add_constant(losses[:, 0])).fit(), losses


def rms(network):
    z = network.train_logits.astype(np.float64)
    return np.sqrt(np.mean((z - z.mean(-1, keepdims=True)) ** 2))


def test_lines_under_every_divisor(networks, found):
    one_norm = np.exp(np.mean(np.log([n.product_norm for n in networks])))
    divisors = {
        "product_norm": lambda n: n.product_norm,
        "balanced": lambda n: n.balanced_product_norm,
        "last_layer": lambda n: n.last_norm,
        "rms": rms,
        "one_norm": lambda n: one_norm,
    }
    assert set(found.fits) == set(divisors)
    for name, divisor_of in divisors.items():
        expected, losses = line(networks, divisor_of)
        np.testing.assert_allclose(np.transpose(found.points[name]), losses, rtol=1e-6)
        assert found.fits[name].r2 == pytest.approx(expected.rsquared, abs=1e-5)
        assert found.fits[name].slope == pytest.approx(expected.params[1], rel=1e-4)
    for name, divisor in (("product_norm", None), ("one_norm", one_norm)):
        for index in (0, 8, 16):
            t = found.temperatures[index]
            expected, _ = line(networks, lambda n, d=divisor, t=t: t * (d or n.product_norm))
            assert found.temperature_r2[name][index] == pytest.approx(expected.rsquared, abs=1e-4)
            slope = found.temperature_slope[name][index]
            assert slope == pytest.approx(expected.params[1], rel=1e-3)
    assert found.temperatures[0] == pytest.approx(1 / one_norm)
    assert found.temperatures[-1] == pytest.approx(10)
    assert found.reasons == {}


def centered_margins(networks, split):
    out = []
    for network in networks:
        z = getattr(network, f"{split}_logits").astype(np.float64)
        labels = getattr(network, f"{split}_labels")
        out.append(np.mean(z[np.arange(len(labels)), labels] - z.mean(-1)))
    return np.array(out)


def test_first_order_and_the_ratio_of_margins(networks, found):
    rho = np.array([n.product_norm for n in networks])
    margins = {split: centered_margins(networks, split) for split in ("train", "test")}
    _, losses = line(networks, lambda n: n.product_norm)
    for split, column in (("train", 0), ("test", 1)):
        share = margins[split] / rho / (math.log(K) - losses[:, column])
        np.testing.assert_allclose(
            getattr(found.first_order, split), [share.min(), share.max()], rtol=1e-5
        )
        assert share.max() > 1.001  # there is a second order to be told apart
    expected = sm.OLS(-margins["test"] / rho, sm.add_constant(-margins["train"] / rho)).fit()
    assert found.first_order.fit.r2 == pytest.approx(expected.rsquared, rel=1e-8)
    ratio = margins["test"] / margins["train"]
    assert (found.ratio.low, found.ratio.high) == pytest.approx((ratio.min(), ratio.max()))


def test_norm_permutation_computes_the_losses_anew(networks, found):
    """The same draws, each with its losses from the logits."""
    rho = np.array([n.product_norm for n in networks])
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_NETWORKS), (500, 1)), axis=1)
    table = np.array(
        [
            [
                [np.mean(softmax_loss(z / norm, labels)) for norm in rho]
                for z, labels in (
                    (n.train_logits, n.train_labels),
                    (n.test_logits, n.test_labels),
                )
            ]
            for n in networks
        ]
    )
    rows = np.arange(NUM_NETWORKS)
    r2 = [np.corrcoef(table[rows, 0, o], table[rows, 1, o])[0, 1] ** 2 for o in orders]
    np.testing.assert_allclose(
        found.norm_permutation.r2_quantiles, np.quantile(r2, [0.05, 0.5, 0.95]), atol=2e-6
    )
    assert found.norm_permutation.num_permutations == 500


def test_sampling_error_against_fresh_test_sets(networks, found):
    """Lines fitted on resampled test examples scatter as the formula says."""
    examples = np.array(
        [softmax_loss(n.test_logits / n.product_norm, n.test_labels) for n in networks]
    )
    x = np.array(
        [np.mean(softmax_loss(n.train_logits / n.product_norm, n.train_labels)) for n in networks]
    )
    errors = np.std(examples, axis=1, ddof=1) / np.sqrt(NUM_TEST)
    assert found.sampling.of_a_loss == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-4)
    assert found.sampling.rmse == found.fits["product_norm"].rmse
    assert found.sampling.num_examples == NUM_TEST
    rng = np.random.default_rng(1)
    design = sm.add_constant(x)
    project = np.eye(NUM_NETWORKS) - design @ np.linalg.pinv(design)
    truth = examples.mean(axis=1)
    squares = []
    for _ in range(1500):
        noise = examples[:, rng.integers(NUM_TEST, size=NUM_TEST)].mean(axis=1) - truth
        squares.append(np.sum((project @ noise) ** 2) / (NUM_NETWORKS - 2))
    # Each square is about chi-squared of 7 degrees: standard error of the root about 1%.
    assert found.sampling.of_a_residual == pytest.approx(np.sqrt(np.mean(squares)), rel=0.05)
    assert found.deming.variance_ratio == pytest.approx(
        np.mean(errors**2)
        / np.mean(
            [
                np.var(softmax_loss(n.train_logits / n.product_norm, n.train_labels), ddof=1)
                / NUM_TRAIN
                for n in networks
            ]
        ),
        rel=1e-3,
    )
    slopes = [
        np.polyfit(x, examples[:, rng.integers(NUM_TEST, size=NUM_TEST)].mean(axis=1), 1)[0]
        for _ in range(500)
    ]
    # The standard error of a standard deviation from 500 draws is 3%.
    assert found.sampling.of_the_slope == pytest.approx(np.std(slopes), rel=0.12)
    assert found.fits["product_norm"].intervals.unit == "networks"


def test_what_is_missing_is_said():
    found = explain(make_networks(balanced=False)[:2])
    assert "entrywise" in found.reasons["fits.balanced"]
    assert "balanced" not in found.fits
    assert found.fits["rms"] is None and "2 points" in found.reasons["fits.rms"]
    assert found.sampling is None
