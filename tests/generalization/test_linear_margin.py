"""The linear network: the SVM against SLSQP, descent against closed forms."""

import numpy as np
import pytest
from scipy import optimize, special

from normjax.generalization import linear_margin, linear_sweep


def examples(kind, n, d, seed=0):
    return linear_sweep.DISTRIBUTIONS[kind].draw(np.random.default_rng(seed), n, d)


# --- the hard margin


@pytest.mark.parametrize(
    ("kind", "n", "d"), [("classes", 15, 10), ("classes", 10, 25), ("teacher", 25, 4)]
)
def test_hard_margin_against_slsqp(kind, n, d):
    x, y = examples(kind, n, d)
    solution = linear_margin.hard_margin(x, y)
    signed = x * y[:, None]
    reference = optimize.minimize(
        lambda w: w @ w / 2,
        np.linalg.lstsq(signed, np.full(n, 2.0))[0],
        jac=lambda w: w,
        constraints={"type": "ineq", "fun": lambda w: signed @ w - 1, "jac": lambda w: signed},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert reference.success
    np.testing.assert_allclose(
        solution.weights, reference.x, rtol=0, atol=1e-4 * abs(reference.x).max()
    )
    # The conditions of Karush, Kuhn and Tucker.
    margins = signed @ solution.weights
    assert margins.min() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(solution.dual @ signed, solution.weights, rtol=1e-9, atol=1e-12)
    assert (solution.dual >= 0).all() and 0 < np.count_nonzero(solution.dual) <= min(n, d)
    np.testing.assert_allclose(margins[solution.dual > 0], 1, rtol=1e-4)
    assert 0 <= solution.duality_gap < 1e-4


def test_hard_margin_has_no_intercept():
    # All of one class: with an intercept, w = 0 would do. w = (1, 1/2) is the closed form.
    solution = linear_margin.hard_margin([[1, 0], [0, 2], [3, 3]], [1, 1, 1])
    np.testing.assert_allclose(solution.weights, [1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(solution.dual, [1, 0.25, 0], rtol=1e-6)
    # Points at 2 and 4 of classes -1 and 1 are separable on the line, but not through the origin.
    with pytest.raises(
        linear_margin.NotSeparableError, match="separates these 2 examples was found"
    ):
        linear_margin.hard_margin([[2.0], [4.0]], [-1, 1])


def test_support_vectors_only_decide():
    x, y = examples("classes", 15, 10)
    full = linear_margin.hard_margin(x, y)
    kept = full.dual > 0
    assert kept.sum() < 15
    alone = linear_margin.hard_margin(x[kept], y[kept])
    np.testing.assert_allclose(alone.weights, full.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 2.0]], [1, 1], r"x of shape \(1, 2\) and y of \(2,\)"),
        ([1.0, 2.0], [1, 1], r"x of shape \(2,\)"),
        (np.zeros((0, 2)), [], r"x of shape \(0, 2\)"),
        ([[1.0, np.nan]], [1], "x has values that are not finite"),
        ([[1.0, 2.0]], [0], "labels y must be -1 or 1"),
    ],
)
def test_data_that_do_not_fit(x, y, message):
    with pytest.raises(ValueError, match=message):
        linear_margin.hard_margin(x, y)
    with pytest.raises(ValueError, match=message):
        linear_margin.descend(x, y, [1])


# --- gradient descent


def test_first_step_in_closed_form():
    x, y = examples("classes", 9, 4)
    (weights,) = linear_margin.descend(x, y, [1], relative_step=0.5)
    smoothness = np.linalg.eigvalsh(x.T @ x).max() / (4 * 9)
    np.testing.assert_allclose(weights, 0.5 / smoothness * (x.T @ y / 9) / 2, rtol=1e-12)


def test_descent_follows_the_gradient_flow():
    """Examples (a, 0) and (0, b): exp(a u) + a u = 1 + a^2 t / n, solved by Lambert's W."""
    a, b, relative_step = 1.0, 1.5, 1e-3
    steps = np.array([1000, 10_000, 40_000])
    weights = linear_margin.descend(np.diag([a, b]), [1, 1], steps, relative_step)
    times = steps * relative_step / (b**2 / 8)

    def flow(c):
        right = 1 + c**2 * times / 2
        return (right - special.lambertw(np.exp(right)).real) / c

    np.testing.assert_allclose(weights, np.stack([flow(a), flow(b)], axis=-1), rtol=1e-3)


def test_descent_against_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the other implementation here")
    x, y = examples("classes", 12, 5)
    ours = linear_margin.descend(x, y, [3, 40], relative_step=1.5)
    rate = 1.5 * 4 * 12 / np.linalg.norm(x, 2) ** 2
    signed = torch.tensor(x * y[:, None])
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=rate)
    kept = []
    for step in range(1, 41):
        optimizer.zero_grad()
        torch.nn.functional.softplus(-(signed @ weights)).mean().backward()
        optimizer.step()
        if step in (3, 40):
            kept.append(weights.detach().numpy().copy())
    np.testing.assert_allclose(ours, kept, rtol=1e-10)


def test_loss_falls_for_every_allowed_step():
    x, y = examples("teacher", 20, 3)
    for relative_step in (0.1, 1.0, 1.99):
        weights = linear_margin.descend(x, y, range(1, 60), relative_step)
        losses = np.logaddexp(0, -y * (weights @ x.T)).mean(axis=1)
        assert (np.diff(losses) < 0).all() and losses[0] < np.log(2)


def test_direction_goes_to_the_hard_margin_as_one_over_log_time():
    """Theorem 3 of Soudry et al.: w(t) = w_svm log t + O(1), where w_svm has unit margin."""
    x, y = examples("classes", 6, 12)
    solution = linear_margin.hard_margin(x, y)
    steps = np.array([100, 1000, 10_000, 100_000])
    weights = linear_margin.descend(x, y, steps)
    angles = linear_margin.angles_deg(weights, solution.weights)
    assert (np.diff(angles) < 0).all() and angles[-1] < 6 < 13 < angles[0]
    assert np.ptp((angles * np.log(steps))[1:]) < 0.02 * angles[1] * np.log(steps[1])
    growth = (weights[-1] - weights[-2]) / np.log(10)
    np.testing.assert_allclose(growth, solution.weights, atol=0.01 * abs(solution.weights).max())
    norms = linear_margin.norm_at_unit_margin(weights, x, y)
    least = np.linalg.norm(solution.weights)
    assert (np.diff(norms) < 0).all() and least < norms[-1] < 1.06 * least


def test_data_sets_side_by_side_do_not_meet():
    sets = [examples("classes", 6, 4, seed) for seed in range(3)]
    together = linear_margin.descend(*map(np.array, zip(*sets, strict=True)), [2, 30])
    for i, (x, y) in enumerate(sets):
        alone = linear_margin.descend(x, y, [2, 30])
        np.testing.assert_allclose(together[:, i], alone, rtol=1e-12)


@pytest.mark.parametrize("relative_step", [0, 2, -1, np.nan])
def test_step_sizes_that_may_diverge(relative_step):
    with pytest.raises(ValueError, match="it must lie between 0 and 2"):
        linear_margin.descend([[1.0, 0.0]], [1], [1], relative_step)


def test_steps_that_make_no_sense():
    for steps, message in (([], "no steps"), ([3, 3], "step 3 after step 3"), ([0], "step 0")):
        with pytest.raises(ValueError, match=message):
            linear_margin.descend([[1.0, 0.0]], [1], steps)
    with pytest.raises(ValueError, match="all examples of a data set are zero"):
        linear_margin.descend([[0.0, 0.0]], [1], [1])


def test_log_spaced_steps():
    steps = linear_margin.log_spaced_steps(1000, per_decade=3)
    assert steps.tolist() == [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    assert linear_margin.log_spaced_steps(1).tolist() == [1]
    assert linear_margin.log_spaced_steps(300_000)[-1] == 300_000
    with pytest.raises(ValueError, match="0 steps"):
        linear_margin.log_spaced_steps(0)


# --- what is measured


def test_angles():
    u = np.array([[1.0, 0], [1.0, 0], [3.0, 0], [1.0, 0]])
    v = np.array([[1.0, 1], [-2.0, 0], [5.0, 5e-9], [0, -1e-100]])
    expected = [45, 180, np.rad2deg(1e-9), 90]
    np.testing.assert_allclose(linear_margin.angles_deg(u, v), expected, rtol=1e-12)


def test_norm_at_unit_margin():
    x, y = [[2.0, 0], [0, 4.0]], [1, -1]
    weights = np.array([[3.0, -4.0], [30.0, -40.0], [1.0, 1.0], [1.0, 0.0]])
    norms = [linear_margin.norm_at_unit_margin(w, x, y) for w in weights]
    np.testing.assert_allclose(norms, [5 / 6, 5 / 6, np.nan, np.nan], rtol=1e-14)
