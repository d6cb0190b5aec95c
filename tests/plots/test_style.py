"""The style is the file's and matplotlib's defaults', whatever the user's settings are."""

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure

from normjax.plots.style import STYLE, join_title, new_figure, save_figure, write_reason

USERS = {"figure.dpi": 33, "font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9}
USERS |= {"savefig.dpi": 20, "axes.grid.axis": "x", "font.family": "serif", "text.usetex": True}


def draw():
    with matplotlib.style.context(STYLE):
        figure, (axes,) = new_figure("A title", (4, 3), 1, 1)
        axes.plot([0, 1], [1, 2], label="line")
        axes.legend()
    return figure


def test_figures_do_not_depend_on_the_users_settings(tmp_path):
    plain = [path.read_bytes() for path in save_figure(draw(), tmp_path / "plain")]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context(USERS):
        users = [path.read_bytes() for path in save_figure(draw(), tmp_path / "users")]
        assert matplotlib.rcParams["font.size"] == 30  # they stay the user's
    assert plain == users
    assert dict(matplotlib.rcParams) == before


def test_what_the_style_says():
    figure = draw()
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title" and figure._suptitle.get_fontsize() == 10
    assert not axes.spines["top"].get_visible() and axes.spines["left"].get_visible()
    assert axes.lines[0].get_linewidth() == matplotlib.rcParamsDefault["lines.linewidth"]
    assert axes.title.get_fontsize() == 10
    assert figure.get_layout_engine().get()["w_pad"] == 0.08


def test_join_title_leaves_out_what_is_empty():
    assert join_title(["", "12 networks", "", "last epoch"]) == "12 networks · last epoch"


def test_a_panel_without_data_says_why():
    axes = Figure().subplots()
    write_reason(axes, "2 points; at least 3 are needed")
    (text,) = axes.texts
    assert text.get_text() == "2 points; at least 3 are needed"
    np.testing.assert_allclose(text.get_position(), (0.5, 0.5))
    assert list(axes.get_xticks()) == list(axes.get_yticks()) == []


def test_no_file_is_left_where_a_figure_can_not_be_written(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match=r"taken\.png"):
        save_figure(draw(), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
