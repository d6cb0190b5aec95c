"""A run's page in a browser, as its reader uses it: with the mouse, the keyboard, and on paper."""

import json
import shutil
from pathlib import Path

import pytest

from normjax.controls.summary import explain_all, write_summary
from normjax.formatting import number
from normjax.report.run_page import write_report
from normjax.results.table import select, write_results
from tests.helpers.synthetic_metrics import BETTER, make_lines
from tests.helpers.synthetic_results import synthetic_table

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = own if own.exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            pytest.skip(f"no browser: neither Playwright's nor {', '.join(NAMES)}")
        # Root, as in many containers, has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The table of a run whose names would end a script, and the address of its page."""
    run_dir = tmp_path_factory.mktemp("run")
    table = synthetic_table(selections=("final", "loss=0.0044")).assign(
        experiment="</script><script>throw 1</script>", family="\"'<b>"
    )
    write_results(run_dir / "results.csv", table)
    write_summary(run_dir / "summary.json", explain_all(table))
    lines = make_lines(0, 0.0, BETTER) + make_lines(4, 0.1, BETTER)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table, write_report(run_dir).as_uri()


@pytest.fixture
def page(browser, run):
    """The page at 1280 pixels, light; after the test, nothing else was loaded or went wrong."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    said, requested = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(run[1])
    yield page
    page.close()
    assert said == [] and set(requested) == {run[1]}


def points(page, place="panel-0"):
    return page.locator(f"#{place} .mark-symbol path")


def tip(page):
    """What is beside the pointer, as {name: text}."""
    lines = page.locator("#tip div").all()
    texts = [(line.text_content(), line.locator("b").text_content()) for line in lines]
    return {text.removesuffix(value): value for text, value in texts}


def test_hover_shows_the_network(page, run):
    row = select(run[0], selection="final", norm="2").iloc[5]
    points(page).nth(5).hover()
    shown = tip(page)
    assert shown["Network"] == str(row["member"]) and shown["Seed"] == str(row["seed"])
    assert shown["Level"] == f"{row['level']:g}" and shown["Epoch"] == "100"
    assert shown["Test loss"] == f"{row['test_loss']:.3f}"
    assert shown["Normalized test loss"] == f"{row['normalized_test_loss']:.6f}"
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_hover_shows_the_nearest_epoch_of_a_curve(page):
    curve = page.locator("#curve-2 .mark-line path").last  # test loss
    curve.scroll_into_view_if_needed()
    x, y = curve.evaluate("""path => {
        const [x, y] = path.getAttribute("d").match(/[-.\\d]+/g).slice(-4, -2);
        const at = new DOMPoint(x, y).matrixTransform(path.getScreenCTM());
        return [at.x, at.y];
    }""")
    page.mouse.move(x - 3, y)
    shown = tip(page)
    assert (shown["Network"], shown["Level"], shown["Epoch"]) == ("4", "0.1", "5")
    assert float(shown["Test loss"]) == BETTER[-2][-1]


def test_selection_and_norm_are_switched_in_place(page, run):
    selection, norm = page.locator("select").all()
    table = page.locator("#networks ~ div:visible table")
    for chosen in (("loss=0.0044", "1/100"), ("final", "1/100"), ("final", "2")):
        selection.select_option(chosen[0])
        norm.select_option(chosen[1])
        (found,) = [f for f in explain_all(run[0]) if (f.selection, f.norm) == chosen]
        caption = page.locator(".chart figcaption").first
        assert f"slope {number(found.fit.slope, 4)}, intercept" in caption.inner_text()
        rows = select(run[0], selection=chosen[0], norm=chosen[1])
        assert table.count() == 1 and table.locator("tbody tr").count() == len(rows)
        cell = table.locator("tbody tr").nth(3).locator("td").nth(10)
        assert cell.inner_text() == number(rows["product_norm"].iloc[3], 4)
        points(page).nth(3).hover()
        assert (
            tip(page)["Product of norms"].replace(",", "") == f"{rows['product_norm'].iloc[3]:.6g}"
        )
        assert page.locator(".chart svg").count() == 6 + 4
        assert found.because in page.locator("body").inner_text()


def test_a_norm_without_networks_is_empty(browser, tmp_path):
    table = synthetic_table()
    table.loc[table["norm"] == "1/100", "product_norm"] = float("inf")
    write_results(tmp_path / "results.csv", table)
    write_summary(tmp_path / "summary.json", explain_all(table))
    page = browser.new_page()
    page.goto(write_report(tmp_path).as_uri())
    for norm, num_charts in (("1/100", 0), ("2", 6)):
        page.locator("select").last.select_option(norm)
        assert page.locator(".chart svg").count() == num_charts
        assert page.get_by_role("status").is_visible() == (num_charts == 0)
    page.close()


def test_a_level_stands_out(page):
    button = page.get_by_role("button", name="0.5", exact=True)
    button.click()
    faint = page.locator("#panel-0 .mark-symbol path[opacity='0.06']")
    assert button.get_attribute("aria-pressed") == "true" and faint.count() == 9
    box = faint.first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip").is_hidden()
    page.locator("select").last.select_option("1/100")
    assert faint.count() == 9
    button.click()
    assert faint.count() == 0


def test_tables_are_sorted_by_keyboard(page, run):
    table = page.locator("#networks ~ div:visible table")
    header = table.locator("th").nth(9)
    errors = [
        f"{number(100 * e)}%" for e in select(run[0], selection="final", norm="2")["test_error"]
    ]
    button = header.get_by_role("button", name="Test error")
    button.focus()
    for order, key in (("ascending", "Enter"), ("descending", "Space")):
        page.keyboard.press(key)
        assert header.get_attribute("aria-sort") == order
        shown = [row.locator("td").nth(9).inner_text() for row in table.locator("tbody tr").all()]
        expected = sorted(errors, key=lambda text: float(text[:-1]), reverse=order == "descending")
        assert shown == expected
    assert page.locator("[aria-sort]").count() == 1
    # Everything that a mouse reaches is in the order of tabs.
    assert page.locator("th").count() == page.locator("th button").count()


def test_dark_and_light(page):
    def colors():
        point = "getComputedStyle(document.querySelector('#panel-0 .mark-symbol path')).fill"
        axis = "getComputedStyle(document.querySelector('#panel-0 .role-axis-label text')).fill"
        return page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {axis}, {point}]")

    light = colors()
    assert light[:2] == ["rgb(255, 255, 255)", "rgb(51, 51, 51)"]
    page.get_by_role("button", name="Dark").click()
    dark = colors()
    assert dark[:2] == ["rgb(13, 17, 23)", "rgb(201, 209, 217)"] and dark[2] != light[2]
    page.emulate_media(media="print")
    assert colors() == light
    page.emulate_media(media="screen", color_scheme="dark")
    page.get_by_role("button", name="Light").click()
    assert colors() == light
    page.reload()
    assert colors() == dark


def test_paper_has_the_charts_and_no_controls(page):
    page.emulate_media(media="print")
    assert page.locator("select:visible, #theme:visible").count() == 0
    assert page.locator(".chart svg:visible").count() == 10
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_only_tables_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".chart svg").count() == 10
    box = page.locator("#panel-0 svg").bounding_box()
    assert 250 < box["width"] <= width - 20


def test_charts_have_texts_for_those_who_do_not_see_them(page):
    chart = page.get_by_role("img", name="Test cross-entropy (nats) against Product")
    assert chart.count() == 1
    for link in page.locator("section a").all():
        assert page.locator(link.get_attribute("href")).is_visible()


def test_without_scripts_the_tables_are_all_there(browser, run):
    page = browser.new_page(java_script_enabled=False)
    page.goto(run[1])
    assert page.locator("#networks ~ div table:visible").count() == 4
    assert page.locator("select:visible, button:visible, .chart:visible").count() == 0
    assert "The charts need scripts" in page.locator("body").inner_text()
    page.close()
