"""What is drawn: the stars stand at the rows' values, the line is the fit, nothing is hidden."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text
from PIL import Image
from scipy import stats

from normjax.plots import paper as plotting
from normjax.plots import style as plot_style
from normjax.plots.label_placement import cluster_representatives, place_labels
from normjax.results.rows import select
from tests.helpers.synthetic_results import synthetic_rows


@pytest.fixture(scope="module")
def rows():
    return select(synthetic_rows(), selection="final", norm="2")


def near_ln_k(rows, scale, shift=0.0):
    """The same networks with normalized losses nearer to ln 10."""
    return [
        row._replace(
            normalized_train_excess=scale * row.normalized_train_excess + shift,
            normalized_test_excess=scale * row.normalized_test_excess + shift,
            normalized_train_loss=np.log(10) + scale * row.normalized_train_excess + shift,
            normalized_test_loss=np.log(10) + scale * row.normalized_test_excess + shift,
        )
        for row in rows
    ]


def with_random_labels(rows):
    """A sweep with two more networks, trained on random labels, evaluated on both kinds."""
    own = [
        row._replace(family="random_labels", labels="random", level=1.0, member=100 + row.member)
        for row in rows[:2]
    ]
    return [*rows, *own, *[row._replace(labels="natural", test_loss=99.0) for row in own]]


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
        if isinstance(text, Annotation) and text.get_color() == plot_style.LABEL_COLOR
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


def test_every_level_is_labeled_inside_the_panel_without_overlap(rows):
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


def tick_values(axis):
    """The numbers that the ticks show, with the power of ten that stands beside the axis."""
    power = axis.get_offset_text().get_text() or "1"
    texts = [tick.get_text() for tick in axis.get_ticklabels()]
    return [float(text.replace("−", "-")) * float(power.replace("−", "-")) for text in texts]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0), (1e-3, -0.5), (1e-2, 0), (1e-7, 0)])
def test_ticks_show_their_places(rows, scale, shift):
    left, _ = plotting.plot_normalized_fit(near_ln_k(rows, scale, shift)).axes
    for axis in (left.xaxis, left.yaxis):
        values, places = tick_values(axis), axis.get_majorticklocs()
        low, high = axis.get_view_interval()
        assert 3 <= np.sum((low <= places) & (places <= high)) <= 6
        np.testing.assert_allclose(values, places, rtol=1e-9, atol=1e-9 * (high - low))


@pytest.mark.parametrize(
    ("scale", "shift", "is_excess"),
    [
        (1e-7, 0, True),
        (0.0138, 0, True),
        (1e-4, -0.5, True),
        (0.0141, 0, False),
        (1e-3, -0.5, False),
    ],
)
def test_losses_without_digits_are_drawn_less_ln_k(rows, scale, shift, is_excess):
    # The excesses reach from -0.0719 to -0.0120 nats.
    faint = near_ln_k(rows, scale, shift)
    kind, less = ("excess", " - ln K") if is_excess else ("loss", "")
    x_name, y_name = f"normalized_train_{kind}", f"normalized_test_{kind}"
    raw, _, left, right = plotting.plot_four_panels(faint).axes
    assert_stars(left, expected_points(faint, x_name, y_name))
    assert_stars(right, expected_points(faint, x_name, "normalized_test_error", factor=100))
    assert (
        left.get_xlabel() == right.get_xlabel() == f"Normalized training cross-entropy{less} (nats)"
    )
    assert left.get_ylabel().replace("\n", " ") == f"Normalized test cross-entropy{less} (nats)"
    assert "ln K" not in raw.get_xlabel() + raw.get_ylabel() + right.get_ylabel()
    # The numbers are those of the losses in either form; a line has no digits to lose in scale 1.
    x, y = (
        np.array([getattr(row, f"normalized_{s}_excess") for row in rows])
        for s in ("train", "test")
    )
    line = stats.linregress(x, y)
    ln_k = np.log(10) + shift
    intercept = ln_k + scale * y.mean() - line.slope * (ln_k + scale * x.mean())
    rmse = scale * np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / (len(x) - 2))
    first, second = left.texts[0].get_text().split("\n")
    assert first.startswith(f"R² {line.rvalue**2:.5f} ")
    assert float(first.split("RMSE")[1]) == pytest.approx(rmse, rel=1e-3)
    name = "intercept of the losses" if is_excess else "intercept"
    assert second == f"slope {line.slope:.4f}    {name} {intercept:.4f}"
    assert raw.texts[0].get_text().count("of the losses") == 0


def test_product_norms_over_two_decades_have_a_log_axis(rows):
    for span, scale in ((99.0, "linear"), (101.0, "log")):
        products = 7.0 * np.geomspace(1, span, len(rows))
        spread = [row._replace(product_norm=p) for row, p in zip(rows, products, strict=True)]
        (lone,) = plotting.plot_error_against_product_norm(spread).axes
        raw, product, *_ = plotting.plot_four_panels(spread).axes
        assert lone.get_xscale() == product.get_xscale() == scale
        assert lone.get_yscale() == raw.get_xscale() == "linear"
        assert_stars(lone, expected_points(spread, "product_norm", "test_error", factor=100))
        ending = "Frobenius norms, log scale" if scale == "log" else "Frobenius norms"
        assert lone.get_xlabel().endswith(ending) and product.get_xlabel().endswith(ending)
    assert product.get_xlim()[0] < 7 and product.get_xlim()[1] > 707
    scaled = [row._replace(norm="1/100") for row in rows]
    (lone,) = plotting.plot_error_against_product_norm(scaled).axes
    assert lone.get_xlabel().endswith("layers' L1 norms / 100")


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


def test_random_labels_are_called_rl_and_shown_on_their_own_labels(rows):
    mixed = with_random_labels(rows)
    figure = plotting.plot_normalized_and_raw(mixed, "Digits")
    left, right = figure.axes
    assert figure.get_suptitle().startswith("Digits · 14 networks · ")
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["0", "0.1", "0.5", "1", "RL"]
    title = "Fraction of corrupted labels in pretraining (RL: random labels)"
    assert legend.get_title().get_text() == title
    expected = expected_points(rows, "train_loss", "test_loss")
    expected["RL"] = np.array([(row.train_loss, row.test_loss) for row in mixed[12:14]])
    assert_stars(right, expected)
    colors = {line.get_label(): to_hex(line.get_color()) for line in right.lines}
    assert colors["RL"] == plot_style.TEST_COLOR
    assert len({colors[text] for text in expected}) == 5
    assert {label.get_text() for label in level_labels(left)} == {"0", "0.1", "0.5", "1", "RL"}
    x = np.array([row.normalized_train_loss for row in mixed[:14]])
    y = np.array([row.normalized_test_loss for row in mixed[:14]])
    slope = np.polyfit(x - x.mean(), y, 1)[0]
    assert f"slope {slope:.4f}" in left.texts[0].get_text()  # the line is of all, as in figure 10
    ends = [row for row in mixed if row.level == 0 or row.family == "random_labels"]
    left, _ = plotting.plot_normalized_fit(ends).axes
    assert list(stars(left)) == ["0", "RL"] and len(fitted_lines(left)) == 1  # figure 11


def test_standard_deviations_with_random_labels_against_level(rows):
    stds = {0.0: 0.001, 0.1: 0.0025, 0.5: 0.05, 1.0: 0.19}
    scaled = [row._replace(family="init_scale", level=stds[row.level]) for row in rows]
    loss, error = plotting.plot_losses_against_level(with_random_labels(scaled)).axes
    for axes, name, factor in ((loss, "test_loss", 1), (error, "test_error", 100)):
        texts = [tick.get_text() for tick in axes.get_xticklabels()]
        assert texts == ["0.001", "0.0025", "0.05", "0.19", "RL"]
        label = "Standard deviation of the initial weights (RL: random labels)"
        assert axes.get_xlabel() == label
        mean_line, dots = axes.lines[2:]
        assert list(mean_line.get_xdata()) == [0, 1, 2, 3]  # random labels are no level
        assert list(dots.get_xdata()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
        values = factor * np.array([getattr(row, name) for row in [*scaled, *scaled[:2]]])
        np.testing.assert_allclose(dots.get_ydata(), values, rtol=1e-14)


def test_draw_figures_takes_networks_on_their_own_labels(rows, monkeypatch):
    figures = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, _: figures.append(figure) or [])
    mixed = with_random_labels(rows)
    natural_only = [
        row._replace(selection="loss=0.1") for row in mixed if row.family == "random_labels"
    ][2:]
    plotting.draw_figures([*mixed, *natural_only], "unused")
    assert len(figures) == 5  # none at a selection of natural rows alone
    for figure in figures:
        assert figure.get_suptitle().startswith("14 networks · last epoch")


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
    centers = points + np.array([offset for offset, _ in places])
    assert (centers - halves >= bounds[0]).all() and (centers + halves <= bounds[1]).all()
    for index in range(25):
        others = np.delete(np.arange(25), index)
        apart = np.abs(centers[others] - centers[index]) >= halves[others] + halves[index]
        assert apart.any(axis=1).all()
        assert (np.abs(points - centers[index]) >= halves[index]).any(axis=1).all()
