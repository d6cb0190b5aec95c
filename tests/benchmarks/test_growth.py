"""How cost grows: the exponents, the table and the figure; one tiny measurement."""

import json

import pytest

from benchmarks import growth

ROWS = [
    {"axis": "networks", "size": n, "s_per_epoch": 0.5 * n, "peak_mb": 500 * n**0.25}
    for n in (1, 4, 16)
]


def test_exponents_of_exact_powers():
    assert growth.exponent(ROWS, "s_per_epoch") == pytest.approx(1)
    assert growth.exponent(ROWS, "peak_mb") == pytest.approx(0.25)


def test_table_and_figure(tmp_path):
    table = growth.format_table(ROWS, {5_000: 321})
    assert "| networks (3-layer net, 640 images, batch 128) | 1 | 4 | 16 | exponent |" in table
    assert "| s per epoch | 0.5 | 2 | 8 | 1.00 |" in table
    assert "| peak MB | 500 | 707 | 1,000 | 0.25 |" in table
    assert "With 5,000 images, groups of more than 321 networks would be split." in table
    growth.draw(ROWS, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_tiny_axis(tmp_path, monkeypatch, capsys):
    """Two depths, in processes of their own."""
    tiny = growth.Axis("layers", (1, 2), lambda size: (-size, 2, 4, 8))
    monkeypatch.setattr(growth, "AXES", {"depth": tiny})
    monkeypatch.setattr(growth, "run_python", lambda *_: "7")
    growth.main([f"--out={tmp_path / 'growth'}"])
    rows = json.loads((tmp_path / "growth.json").read_text())
    assert [row["size"] for row in rows] == [1, 2]
    assert all(row["s_per_epoch"] > 0 and row["peak_mb"] > 50 for row in rows)
    assert "groups of more than 7 networks" in capsys.readouterr().out


def test_unknown_axis():
    with pytest.raises(SystemExit, match="'width': allowed are --out=FILE and --only of networks"):
        growth.main(["--only=width"])
