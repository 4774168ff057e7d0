"""From pictures to the likeliest classes, as a user does it, and the page in a real browser."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

import resnet_jax
from resnet_jax.analysis import predictions
from resnet_jax.data import sources
from tests import browsers, tiny
from tests.interop import foreign


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return foreign.write_run(tmp_path_factory.mktemp("predicted") / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits' test images as pictures, and one that is none."""
    place = tmp_path_factory.mktemp("digits")
    for number, image in enumerate(sources.read_set("digits", "").test_images):
        pixels = np.rint(image[..., 0] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    (place / "broken.jpg").write_text("no picture")
    return place


def predict(*arguments):
    return tiny.program("experiments.predict", *arguments)


def test_probabilities_are_those_of_the_evaluation(run, folder):
    done = predict(run, folder, "--json", "--top=4")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["seed"], found["step"], found["data"]) == (0, 0, "digits")
    assert "pixels from 0 to 255 become 0 to 16" in found["preparation"]
    broken = str(folder / "broken.jpg")
    reason = "it is not a picture in any known format"
    assert found["unreadable"] == [{"file": broken, "reason": reason}]
    assert f"{broken} is left out: {reason}." in done.stderr
    logs = predictions.predict(resnet_jax.load(run)).logs
    assert np.ptp(logs, axis=0).min() > 0.01  # pictures differ
    assert len(found["pictures"]) == len(logs) == 360
    for number, (picture, row) in enumerate(zip(found["pictures"], logs, strict=True)):
        assert picture["file"] == str(folder / f"{number:03}.png")
        assert picture["notes"] == []
        numbers = [guess["number"] for guess in picture["top"]]
        assert [guess["name"] for guess in picture["top"]] == list(map(str, numbers))
        given = [guess["probability"] for guess in picture["top"]]
        assert given == pytest.approx(np.sort(np.exp(row))[::-1][:4], rel=1e-4)
        assert given == pytest.approx(np.exp(row)[numbers], rel=1e-4)


def test_it_prints_a_table_per_picture(run, folder, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGBA", (40, 60), (200, 10, 10, 90)).save(photo)
    done = predict(run, folder / "007.png", photo)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{run}, seed 0, step 0, trained on digits: 2 pictures."
    assert lines[1].startswith("Pictures of 8 x 8 pixels are taken pixel for pixel; others")
    notes = "resized from 40 x 60 pixels; colours became grey; transparency ignored"
    for start, title in ((3, str(folder / "007.png")), (11, f"{photo} ({notes})")):
        assert lines[start] == title
        assert lines[start + 1].split() == ["class", "%"]
        rows = [line.split() for line in lines[start + 2 : start + 7]]
        percents = [float(percent) for _, percent in rows]
        assert percents == sorted(percents, reverse=True)
        assert len({name for name, _ in rows}) == 5
        assert all(re.fullmatch(r"\d+\.\d\d", percent) for _, percent in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{run}",), "name a run folder and pictures"),
        (("{run}", "absent.png"), "absent.png does not exist"),
        (("{run}", "{folder}/broken.jpg"), "no picture could be read; "),
        (("{run}", "{folder}", "--top=0"), "--top=0 is out of range"),
        (("{run}", "{folder}", "--grad_cam"), "--grad_cam is shown on a page; give --page="),
        (("{run}", "{folder}", "--page=absent/a.html"), "the folder absent does not exist."),
        (("{run}", "{folder}", "--page={folder}/007.png"), "007.png exists already; give another"),
        (("{run}", "{folder}", "--page={folder}"), "--page={folder} is a folder; give a file."),
        (("{run}", "{folder}", "--page=/proc/a.html"), "--page=/proc/a.html cannot be written: "),
    ],
)
def test_a_mistake_is_one_sentence(run, folder, arguments, words):
    done = predict(*(argument.format(run=run, folder=folder) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert words.format(folder=folder) in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def page(run, folder, tmp_path_factory):
    """A page of twelve pictures and a broken one, with Grad-CAM: (path, JSON)."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    names = [folder / f"{number:03}.png" for number in range(12)] + [folder / "broken.jpg"]
    done = predict(run, *names, f"--page={path}", "--json", "--grad_cam")
    assert done.returncode == 1, done.stderr
    return path, json.loads(done.stdout)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsers.started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


IMAGES = (
    "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt])"
)


@browsers.REQUIRED
def test_the_page_shows_every_picture_and_makes_no_requests(browser, page):
    path, printed = page
    browsers.resize(browser, 1300)
    browser.get(path.as_uri())
    browsers.assert_quiet(browser, path.name)
    cards = browser.find_elements(By.TAG_NAME, "article")
    assert len(cards) == len(printed["pictures"]) == 12
    for card, picture in zip(cards, printed["pictures"], strict=True):
        title = card.find_element(By.TAG_NAME, "h2")
        assert title.get_attribute("textContent") == picture["file"]
        cells = card.find_elements(By.CSS_SELECTOR, "tbody th, tbody td")
        assert [cell.get_attribute("textContent") for cell in cells] == [
            text
            for guess in picture["top"]
            for text in (guess["name"], f"{100 * guess['probability']:.2f}")
        ]
    images = browser.execute_script(IMAGES)
    assert len(images) == 24
    assert all(image[:3] == [True, 8, 8] for image in images)
    first = printed["pictures"][0]
    assert images[0][3] == f"{first['file']} as the network sees it"
    assert images[1][3] == f"Grad-CAM of {first['top'][0]['name']} over {first['file']}"
    left_out = browser.find_element(By.CSS_SELECTOR, "main > ul").text
    assert left_out.endswith("broken.jpg: it is not a picture in any known format")


PIXELS = """const image = document.images[arguments[0]], canvas = document.createElement('canvas');
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
return [...context.getImageData(0, 0, canvas.width, canvas.height).data]"""


@browsers.REQUIRED
def test_thumbnails_are_the_pictures_and_overlays_colour_them(browser, page, folder):
    browser.get(page[0].as_uri())
    for number in (0, 5):
        thumbnail, overlay = (
            np.reshape(browser.execute_script(PIXELS, 2 * number + i), (8, 8, 4))[..., :3]
            for i in (0, 1)
        )
        wanted = np.asarray(Image.open(folder / f"{number:03}.png"))
        np.testing.assert_allclose(thumbnail, np.repeat(wanted[..., None], 3, 2), atol=1)
        assert np.ptp(overlay, axis=2).max() > 30  # colours


@browsers.REQUIRED
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [340, 1300])
def test_the_page_fits_and_is_readable_in_light_and_dark(browser, page, scheme, width):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browsers.resize(browser, width)
    browser.get(page[0].as_uri())
    scroll, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= inner
    paper, ink = (
        [int(n) for n in re.findall(r"\d+", browser.execute_script(
            f"return getComputedStyle(document.body).{name}"))[:3]]
        for name in ("backgroundColor", "color")
    )  # fmt: skip
    assert (sum(paper) > sum(ink)) is (scheme == "light")
    assert abs(sum(paper) - sum(ink)) > 450
