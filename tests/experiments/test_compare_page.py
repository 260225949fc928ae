"""The comparison's page in a real browser: Chromium, headless, the file opened from the disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.compare import main
from tests.browser import chromium, needs_chromium
from tests.experiments.test_compare import write_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three learning rates with two seeds each, one run diverged, names that are no HTML."""
    root = tmp_path_factory.mktemp("page")
    for index, lr in enumerate((1e-4, 1e-3, 1e-2)):
        for seed in (0, 1):
            last = None if (index, seed) == (2, 1) else 4.0 - index + seed / 4
            heldout = {"step": 40, "heldout/loss": 5.0 + index, "heldout/accuracy": 0.5 - index / 8}
            heldout["<!--<script>"] = 1.0  # behind it no script would end
            name = f"{index}{seed}" if (index, seed) != (0, 0) else "<b>&00"
            write_run(root / "runs" / name, [6.0, 5.0, 4.5, last], heldout, optimizer__lr=lr, seed=seed)
    main([str(root / "runs"), "--output", str(root / "out"), "--x", "tokens"])
    return root / "out"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(folder, browser):
    """The open page; whatever it complains about or asks the network for fails the test."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith("data:")] == []


def rows(page, table: str = "runs-table") -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody tr", "lines => lines.map(l => l.cells[0].innerText.trim())")


def heading(page, name: str):
    return page.locator("#runs-table thead button", has_text=re.compile(f"^{re.escape(name)}$"))


def curves(page) -> set[str]:
    return set(page.eval_on_selector_all("#chart .curve", "groups => groups.map(g => g.dataset.run)"))


def chip(page, text: str):
    return page.locator("#chips button", has_text=text)


def test_sorting_reorders_the_rows(page):
    """Fails when numbers sort as words ("10" before "9"), or when what has no value does not stay last."""
    assert rows(page) == ["20", "10", "11", "<b>&00", "01", "21"]
    heading(page, "optimizer.lr").click()
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("optimizer.lr")
    assert set(rows(page)[:2]) == {"<b>&00", "01"}
    heading(page, "optimizer.lr").click()
    assert set(rows(page)[:2]) == {"20", "21"}
    heading(page, "loss").focus()
    page.keyboard.press("Enter")
    assert rows(page) == ["20", "10", "11", "<b>&00", "01", "21"]
    page.keyboard.press("Enter")
    assert rows(page) == ["01", "<b>&00", "11", "10", "20", "21"]
    assert page.locator("th[aria-sort]").count() == 1


def test_a_switch_hides_a_curve_its_dots_and_greys_its_row(page):
    """Fails when the switch does not redraw."""
    assert len(curves(page)) == 6
    dots = page.locator(".plots .dot").count()
    button = chip(page, "lr 0.01 · seed 0")
    run = button.get_attribute("data-run")
    button.click()
    assert curves(page) == {"0", "1", "2", "3", "4", "5"} - {run}
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".plots .dot").count() == dots - 1
    assert page.locator("#runs-table tr.off").get_attribute("data-run") == run
    button.press("Space")
    assert len(curves(page)) == 6
    chip(page, "none").click()
    assert curves(page) == set()
    assert "No run that is switched on" in page.locator("#chart").inner_text()
    chip(page, "all").click()
    assert len(curves(page)) == 6


def test_metric_axis_smoothing_and_logarithm_change_the_drawing(page):
    def line() -> str:
        return page.locator("#chart .curve path.line").first.get_attribute("d")

    assert page.locator("#chart .name").all_text_contents() == ["tokens", "training loss (nats per token)"]
    before = line()
    page.locator("#smooth").fill("0.9")
    assert line() != before
    assert page.locator("#chart path.raw").count() == 6
    page.locator("#smooth").fill("0")
    assert line() == before
    page.locator("#log").check()
    assert line() != before
    page.locator("#metric").select_option("heldout/accuracy")
    page.locator("#axis").select_option("time")
    assert page.locator("#chart .name").all_text_contents() == ["time (s)", "held-out speech-token accuracy"]
    assert page.locator(".plots .name").all_text_contents() == ["optimizer.lr", "last held-out speech-token accuracy"]
    assert page.locator(".plots .dot circle").count() == 6


def test_a_diverged_run_ends_with_a_cross_and_is_marked_in_the_plot(page):
    run = chip(page, "lr 0.01 · seed 1").get_attribute("data-run")
    assert page.locator(f"#chart .curve[data-run='{run}'] .cross").count() == 1
    assert page.locator("#chart .cross").count() == 1
    assert page.locator(f".plots .dot[data-run='{run}']").text_content().endswith("NaN")


def test_smoothing_is_the_same_as_in_the_figures(page):
    """Fails when the script's average differs from that of the PNG."""
    from experiments.comparison.style import smooth

    values = [6.0, 4.0, None, 8.0, 7.5]
    found = page.evaluate("values => smoothed(values, 0.7)", values)
    expected = smooth([float("nan") if value is None else value for value in values], 0.7)
    assert found == [pytest.approx(v, rel=1e-12) if v == v else None for v in expected]


def test_values_under_the_pointer_and_by_keyboard(page):
    page.locator("#chart svg").focus()
    page.keyboard.press("ArrowRight")
    tip = page.locator("#chart .tip")
    assert "lr 1e-3 · seed 0" in tip.inner_text()
    assert "10 k tokens" in tip.inner_text()
    assert tip.locator("em").all_inner_texts() == ["6"] * 6
    box = page.locator("#chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 21, box["y"] + 100)
    assert tip.locator("em").all_inner_texts() == ["2", "3", "3.25", "4", "4.25", "NaN"]


def test_means_over_seeds(page):
    table = page.locator("#groups-table").inner_text()
    assert "3.1250 ± 0.1768" in table
    assert "2.0000 (1 of 2)" in table


@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_a_phone(browser, folder, width):
    """Fails when something is wider than the screen: only the table scrolls, in its own box."""
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#chart svg").bounding_box()["width"] > 0.7 * width
    page.close()


def test_light_and_dark(browser, folder):
    backgrounds, strokes = [], []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((folder / "index.html").as_uri())
        page.wait_for_selector("#chart svg")
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        strokes.append(page.evaluate("getComputedStyle(document.querySelector('.curve path')).stroke"))
        page.close()
    assert len(set(backgrounds)) == 2
    assert len(set(strokes)) == 2


def test_it_is_one_file(folder):
    text = (folder / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "<b>&00" not in text
