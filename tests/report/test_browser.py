"""The page in a real browser, opened as a file: its numbers, plots and controls."""

import json

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from experiments.report import page as render
from tests import browsers, tiny
from tests.report import fixture

pytestmark = browsers.REQUIRED


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    nets = {"shortcuts": ("none", "A", "B"), "depths": (8, 14, 20)}
    fixture.study(folder / "digits", **nets, signals=True)
    note = "JPEG-coded copies of the images: errors run above those on the original pixels"
    cifar = {"depths": (20, 56), "data__name": "cifar10", "note": note}
    fixture.study(folder / "cifar", **cifar)
    # Labels of groups on the same data name settings, so the page has long words.
    fixture.study(folder / "adam", **cifar, optimizer__name="adam", batch_size=64, steps=400)
    fixture.along(
        folder / "tuned", "schedule.rate", (0.001, 0.01, 0.1),
        lambda depth, shortcut, rate: depth * 0.1 / rate**0.5, depths=(8, 20),
        best=lambda depth, shortcut: 0.1, data__pad=3,
    )  # fmt: skip
    studies = [str(folder / name) for name in ("digits", "cifar", "adam", "tuned")]
    arguments = [*studies, f"--out={folder / 'out'}"]
    assert tiny.compare(*arguments) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsers.started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, out):
    browsers.resize(browser, 1400)
    browser.get((out / "index.html").as_uri())
    drawn(browser)
    return browser


def drawn(browser):
    count = (
        "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"
    )
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(count))


def lines_in(browser, plot):
    """Returns the number of lines that the plot draws (bands have no line)."""
    return browser.execute_script(
        "const plot = document.getElementById(arguments[0]);"
        "return [...plot.querySelectorAll('.scatterlayer .trace path.js-line')]"
        ".filter(p => p.getAttribute('d') && parseFloat(p.style.strokeWidth) > 0).length",
        plot,
    )


def test_numbers_on_the_page_are_those_of_the_summary(page, out):
    summary = json.loads((out / "summary.json").read_text())
    for cell in summary["cells"]:
        table = f'table[data-group="{cell["group"]}"]'
        for metric in ("train_error", "validation_error", "test_error"):
            place = f'{table} [data-cell="{cell["name"]}"][data-metric="{metric}"]'
            mean, std = page.find_element(By.CSS_SELECTOR, place).text.split(" ± ")
            assert float(mean) == pytest.approx(cell[metric]["mean"], abs=0.006)
            assert float(std) == pytest.approx(cell[metric]["std"], abs=0.006)
    for claim in summary["claims"]:
        row = f'tr[data-claim="{claim["id"]}"][data-group="{claim["group"]}"]'
        if claim["verdict"] == "not tested":
            assert not page.find_elements(By.CSS_SELECTOR, row)
            continue
        verdict = page.find_element(By.CSS_SELECTOR, f"{row} [data-field=verdict]")
        assert verdict.text == claim["verdict"]
        shown = page.find_element(By.CSS_SELECTOR, f"{row} [data-field=difference]").text
        numbers = [float(word.strip("[],")) for word in shown.split()]
        assert numbers == pytest.approx([claim["difference"], *claim["ci95"]], abs=0.006)


def test_pointing_at_a_curve_shows_its_values(page, out):
    plot = page.find_element(By.ID, "curves-0-0")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    # The middle of the deepest plain net's validation curve, in pixels from the plot's corner.
    x, y, step, value = page.execute_script(
        """const plot = arguments[0], full = plot._fullLayout;
        const curve = plot.data.find(t => t.meta === 'plain-20/validation' && t.hovertemplate);
        const i = Math.floor(curve.x.length / 2);
        return [full.xaxis._offset + full.xaxis.l2p(curve.x[i]),
                full.yaxis._offset + full.yaxis.l2p(curve.y[i]), curve.x[i], curve.y[i]]""",
        plot,
    )
    size = plot.size
    actions = ActionChains(page)
    actions.move_to_element_with_offset(plot, x - size["width"] / 2 - 3, y - size["height"] / 2)
    actions.pause(0.2).move_by_offset(3, 0).pause(0.2).perform()
    text = WebDriverWait(page, 5).until(
        lambda b: b.execute_script(
            "return document.querySelector('#curves-0-0 .hoverlayer').textContent"
        )
    )
    assert "plain-20, validation error" in text
    assert f"iteration {step:,}" in text
    assert f"{value:.2f} ± " in text
    assert "n = 5" in text


def test_the_legend_switches_a_curve_with_its_band(page):
    before = lines_in(page, "curves-0-0"), lines_in(page, "curves-0-1")
    assert before == (6, 12)
    button = page.find_element(By.CSS_SELECTOR, 'button[data-curve="plain-20/validation"]')
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    WebDriverWait(page, 5).until(lambda b: lines_in(b, "curves-0-0") == 5)
    shown = page.execute_script(
        "return document.getElementById('curves-0-0').data"
        ".filter(t => t.visible !== false).map(t => t.meta)"
    )
    assert "plain-20/validation" not in shown
    assert lines_in(page, "curves-0-1") == 12
    button.click()
    WebDriverWait(page, 5).until(lambda b: lines_in(b, "curves-0-0") == 6)


def test_kinds_of_curves_are_switched_together(page):
    page.find_element(By.CSS_SELECTOR, '.toolbar button[data-show="validation"]').click()
    WebDriverWait(page, 5).until(lambda b: lines_in(b, "curves-0-0") == 3)
    assert lines_in(page, "curves-0-1") == 6
    assert lines_in(page, "curves-1-0") == 4  # another figure
    page.find_element(By.CSS_SELECTOR, '.toolbar button[data-show="training validation"]').click()
    WebDriverWait(page, 5).until(lambda b: lines_in(b, "curves-0-0") == 6)


def test_signals_are_drawn_and_switched_with_one_legend(page):
    plots = page.find_elements(By.CSS_SELECTOR, ".signals .plot")
    assert [plot.get_attribute("id") for plot in plots] == [f"signals-0-{i}" for i in range(7)]
    # Six of the nine networks have a branch and a shortcut.
    assert [lines_in(page, f"signals-0-{i}") for i in range(7)] == [9, 9, 9, 6, 9, 9, 9]
    ranges = "return [1, 2].map(i => document.getElementById('signals-0-' + i)._fullLayout.yaxis)"
    before, after = page.execute_script(f"{ranges}.map(axis => [axis.type, ...axis.range])")
    assert before == after
    assert before[0] == "log"
    page.find_element(By.CSS_SELECTOR, '.signals button[data-curve="resnet-8-B"]').click()
    for i in (0, 3, 6):
        WebDriverWait(page, 5).until(
            lambda b, i=i: lines_in(b, f"signals-0-{i}") == 8 - 3 * (i == 3)
        )


def test_panels_zoom_together(page):
    ranges = """return ['curves-0-0', 'curves-0-1', 'curves-1-0'].map(id => {
        const full = document.getElementById(id)._fullLayout;
        return [...full.xaxis.range, ...full.yaxis.range]; })"""
    plain, residual, other = page.execute_script(ranges)
    assert plain == residual
    plot = page.find_element(By.ID, "curves-0-0")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    actions = ActionChains(page)
    actions.move_to_element(plot).click_and_hold().move_by_offset(120, 70).release().perform()
    WebDriverWait(page, 5).until(lambda b: b.execute_script(ranges)[1] != residual)
    zoomed, followed, untouched = page.execute_script(ranges)
    assert zoomed == followed
    assert zoomed[1] - zoomed[0] < plain[1] - plain[0]
    assert zoomed[3] - zoomed[2] < plain[3] - plain[2]
    assert untouched == other


def test_a_network_is_switched_in_every_panel_along_an_axis(page):
    shown = """return ['axis-0-0-0', 'axis-0-0-1', 'axis-0-1-0'].map(id =>
        document.getElementById(id).data.filter(t => t.visible !== false).map(t => t.meta))"""
    both = ["plain-8", "plain-20"]
    plain, residual, loss = page.execute_script(shown)
    assert set(plain) == set(loss) == set(both)
    button = page.find_element(By.CSS_SELECTOR, '.along button[data-curve="plain-8"]')
    button.click()
    WebDriverWait(page, 5).until(lambda b: "plain-8" not in b.execute_script(shown)[0])
    assert set(page.execute_script(shown)[2]) == {"plain-20"}
    assert page.execute_script(shown)[1] == residual
    button.click()
    WebDriverWait(page, 5).until(lambda b: "plain-8" in b.execute_script(shown)[0])


def test_the_table_along_an_axis_aligns_numbers_to_the_right(page, out):
    (axis,) = json.loads((out / "summary.json").read_text())["axes"]
    table = page.find_element(By.CSS_SELECTOR, ".axis table.fields")
    numbers = table.find_elements(By.CSS_SELECTOR, "tbody td")
    assert {cell.value_of_css_property("text-align") for cell in numbers} == {"right"}
    best = [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "b.best")]
    want = [
        point["train_error"] for line in axis["networks"] for point in line["points"]
        if point["value"] == line["best"]
    ]  # fmt: skip
    assert best == [f"{error['mean']:.2f} ± {error['std']:.2f}" for error in want]
    trials = page.find_elements(By.CSS_SELECTOR, ".trials tbody tr:first-child td")
    alignments = [cell.value_of_css_property("text-align") for cell in trials]
    assert alignments == ["left", "right", "right", "right", "left"]


def test_many_groups_are_folded_and_drawn_when_opened(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "MOST_OPEN", 1)
    for name, size in (("one", 100), ("two", 50)):
        fixture.study(tmp_path / name, depths=(8, 14), batch_size=size)
    studies = [str(tmp_path / name) for name in ("one", "two")]
    assert tiny.compare(*studies, f"--out={tmp_path / 'out'}") == 0
    browsers.resize(browser, 1400)
    browser.get((tmp_path / "out" / "index.html").as_uri())
    first, second = browser.find_elements(By.CSS_SELECTOR, "details.group")
    assert not browser.find_elements(By.CSS_SELECTOR, ".main-svg")
    first.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(browser, 20).until(
        lambda b: len(first.find_elements(By.CSS_SELECTOR, ".curves .main-svg")) > 0
    )
    plot = first.find_element(By.CSS_SELECTOR, ".curves .plot")
    drawn_width = plot.find_element(By.CSS_SELECTOR, ".main-svg").size["width"]
    assert drawn_width == pytest.approx(plot.size["width"], abs=2)
    assert not second.find_elements(By.CSS_SELECTOR, ".main-svg")


@pytest.mark.parametrize("width", [340, 400, 1021, 1400])
def test_nothing_is_wider_than_the_window(page, width, tmp_path):
    browsers.resize(page, width)
    page.refresh()
    drawn(page)
    for details in page.find_elements(By.TAG_NAME, "details"):
        page.execute_script("arguments[0].open = true", details)
    scroll, inner = page.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= inner
    wide = page.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('svg') &&"
        "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    page.save_screenshot(str(tmp_path / f"page-{width}.png"))


def test_the_page_has_no_errors_and_makes_no_requests(page):
    browsers.assert_quiet(page, "index.html")
