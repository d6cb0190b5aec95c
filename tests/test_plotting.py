"""What is drawn: the stars stand at the rows' values, the line is the fit, nothing is hidden."""

import numpy as np
import pytest
from matplotlib.text import Annotation, Text
from PIL import Image
from scipy import stats
from synthetic_results import synthetic_rows

from normjax import plotting
from normjax.label_placement import cluster_representatives, place_labels
from normjax.results import select


@pytest.fixture(scope="module")
def rows():
    return select(synthetic_rows(), selection="final", norm="2")


def stars(axes):
    """All star markers of a panel, as {level text: [n, 2]}."""
    return {
        line.get_label(): np.column_stack(line.get_data())
        for line in axes.lines
        if line.get_marker() == "*"
    }


def fitted_lines(axes):
    return [np.column_stack(line.get_data()) for line in axes.lines if line.get_marker() != "*"]


def level_labels(axes):
    return [
        text
        for text in axes.texts
        if isinstance(text, Annotation) and text.get_color() == plotting._LABEL_COLOR
    ]


def expected_points(rows, x, y, factor=1.0):
    return {
        f"{level:g}": np.array(
            [(getattr(r, x), factor * getattr(r, y)) for r in rows if r.level == level]
        )
        for level in (0.0, 0.1, 0.5, 1.0)
    }


def assert_stars(axes, expected):
    drawn = stars(axes)
    assert list(drawn) == list(expected)
    for level, points in expected.items():
        np.testing.assert_allclose(drawn[level], points, rtol=1e-14)


def test_normalized_fit(rows):
    left, right = plotting.plot_normalized_fit(rows, "Digits").axes
    x_name, y_name = "normalized_train_loss", "normalized_test_loss"
    assert_stars(left, expected_points(rows, x_name, y_name))
    assert_stars(right, expected_points(rows, x_name, "normalized_test_error", factor=100))
    x = np.array([getattr(row, x_name) for row in rows])
    y = np.array([getattr(row, y_name) for row in rows])
    line = stats.linregress(x - x.mean(), y)
    (drawn,) = fitted_lines(left)
    np.testing.assert_allclose(drawn[:, 0], [x.min(), x.max()], rtol=1e-15)
    np.testing.assert_allclose(
        drawn[:, 1], line.intercept + line.slope * (drawn[:, 0] - x.mean()), rtol=1e-12
    )
    assert fitted_lines(right) == []
    numbers = left.texts[0].get_text()
    assert f"R² {line.rvalue**2:.5f}" in numbers
    assert f"slope {line.slope:.4f}" in numbers
    assert f"intercept {line.intercept - line.slope * x.mean():.4f}" in numbers
    assert "RMSE" in numbers and "adjusted R²" in numbers
    assert left.get_xlabel().endswith("(nats)") and right.get_ylabel() == "Test error (%)"


def test_raw_panels_and_product_norm(rows):
    figure = plotting.plot_four_panels(rows, "Digits")
    raw, product, normalized, error = figure.axes
    assert_stars(raw, expected_points(rows, "train_loss", "test_loss"))
    assert_stars(product, expected_points(rows, "product_norm", "test_loss"))
    assert len(fitted_lines(raw)) == len(fitted_lines(normalized)) == 1
    assert fitted_lines(product) == fitted_lines(error) == []
    assert "Frobenius" in product.get_xlabel()
    (lone,) = plotting.plot_error_against_product_norm(rows).axes
    assert_stars(lone, expected_points(rows, "product_norm", "test_error", factor=100))
    left, right = plotting.plot_normalized_and_raw(rows).axes
    assert_stars(left, expected_points(rows, "normalized_train_loss", "normalized_test_loss"))
    assert_stars(right, expected_points(rows, "train_loss", "test_loss"))


def test_losses_against_level(rows):
    loss, error = plotting.plot_losses_against_level(rows, "Digits").axes
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["0", "0.1", "0.5", "1"]
    for axes, kind, factor in ((loss, "loss", 1), (error, "error", 100)):
        for split, mean_line, dots in (("train", *axes.lines[:2]), ("test", *axes.lines[2:])):
            values = factor * np.array([getattr(r, f"{split}_{kind}") for r in rows])
            np.testing.assert_allclose(dots.get_ydata(), values, rtol=1e-14)
            means = values.reshape(4, 3).mean(axis=1)  # rows are ordered by level, 3 seeds each
            np.testing.assert_allclose(mean_line.get_ydata(), means, rtol=1e-12)
    assert "(nats)" in loss.get_ylabel() and "(%)" in error.get_ylabel()


def test_every_level_is_labelled_inside_the_panel_without_overlap(rows):
    figure = plotting.plot_four_panels(rows, "Digits")
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = level_labels(axes)
        assert {label.get_text() for label in labels} == {"0", "0.1", "0.5", "1"}
        boxes = [Text.get_window_extent(label) for label in labels]
        frame = axes.bbox.padded(1)
        for box in boxes:
            assert frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])
        all_stars = np.concatenate(list(stars(axes).values()))
        for label in labels:
            assert (np.abs(all_stars - label.xy).max(axis=1) < 1e-12).any()


def test_ticks_have_digits_and_no_offset(rows):
    tight = [
        row._replace(
            normalized_train_loss=np.log(10) + 1e-7 * row.normalized_train_excess,
            normalized_test_loss=np.log(10) + 1e-7 * row.normalized_test_excess,
        )
        for row in rows
    ]
    left, _ = plotting.plot_normalized_fit(tight).axes
    for axis in (left.xaxis, left.yaxis):
        assert axis.get_offset_text().get_text() == ""
        ticks = [tick.get_text() for tick in axis.get_ticklabels()]
        assert 2 <= len(ticks) <= 7 and len(set(ticks)) == len(ticks)


def test_diverged_networks_are_counted_not_drawn(rows):
    broken = [row._replace(test_loss=np.nan) if row.member == 0 else row for row in rows]
    figure = plotting.plot_normalized_and_raw(broken, "Digits $x_y$")
    title = figure.get_suptitle()
    assert "11 of 12 networks (1 diverged)" in title
    assert r"Digits \$x_y\$" in title  # no formula is read into a data set's name
    assert sum(len(points) for points in stars(figure.axes[0]).values()) == 11
    with pytest.raises(ValueError, match="no network with finite losses"):
        plotting.plot_four_panels([row._replace(test_loss=np.nan) for row in rows])
    with pytest.raises(ValueError, match="one selection and norm"):
        plotting.plot_four_panels(synthetic_rows())


def test_two_networks_have_no_line_but_a_reason(rows):
    left, _ = plotting.plot_normalized_fit(rows[:2]).axes
    assert fitted_lines(left) == []
    assert left.texts[0].get_text() == "no line: 2 points; at least 3 are needed"


def test_random_labels_are_called_rl_and_come_last(rows):
    mixed = [*rows, rows[0]._replace(family="random_labels", labels="random", level=0.05)]
    left, _ = plotting.plot_normalized_fit(mixed).axes
    assert list(stars(left)) == ["0", "0.1", "0.5", "1", "RL"]


def test_draw_figures_writes_readable_and_equal_files(tmp_path):
    rows = synthetic_rows(
        levels=(0.0, 1.0), num_seeds=2, norms=("1/100",), selections=("loss=0.1",)
    )
    diverged = rows[0]._replace(selection="final", train_loss=float("nan"))
    paths = plotting.draw_figures([*rows, diverged], tmp_path / "a", "Digits")
    stems = [
        "normalized_fit__loss_0.1__1_100",
        "normalized_and_raw__loss_0.1__1_100",
        "four_panels__loss_0.1__1_100",
        "error_against_product_norm__loss_0.1__1_100",
        "losses_against_level__loss_0.1",
    ]
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")]
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(expected)
    for path in paths:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
            continue
        with Image.open(path) as image:
            assert image.width >= 1200
            assert len(set(image.convert("L").resize((80, 60)).tobytes())) > 20  # not blank
    again = plotting.plot_normalized_fit(rows, "Digits")
    for path in plotting.save_figure(again, tmp_path / "again"):
        assert path.read_bytes() == (tmp_path / "a" / (stems[0] + path.suffix)).read_bytes()


def test_labels_once_per_cluster():
    points = np.array([[0.0, 0], [3, 0], [6, 0], [200, 0], [5, 5]])
    assert cluster_representatives(points, ["a", "a", "a", "a", "b"]) == [1, 3, 4]


def test_labels_avoid_markers_each_other_and_the_edge():
    rng = np.random.default_rng(0)
    points = rng.uniform(20, 280, (25, 2))
    points[0] = (1, 1)
    texts = [f"{index / 100:g}" for index in range(25)]
    bounds = np.array([[0.0, 0.0], [300.0, 300.0]])
    places = place_labels(points, texts, range(25), bounds, font_size=8)
    halves = 8 * np.array([[0.32 * len(text), 0.45] for text in texts])
    centres = points + np.array([offset for offset, _ in places])
    assert (centres - halves >= bounds[0]).all() and (centres + halves <= bounds[1]).all()
    for index in range(25):
        others = np.delete(np.arange(25), index)
        apart = np.abs(centres[others] - centres[index]) >= halves[others] + halves[index]
        assert apart.any(axis=1).all()
        assert (np.abs(points - centres[index]) >= halves[index]).any(axis=1).all()
