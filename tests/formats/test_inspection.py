"""Test the page that shows the values of units: what it holds, and in Chromium."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.page import chromium
from jaxrnn import InputError
from jaxrnn.formats import inspection
from jaxrnn.formats.inspection import Content

pytestmark = pytest.mark.once

TEXT = "if (<a>) {\n\treturn é\U0001f600;\n}\n"
UNITS = [("cell", 1, 2), ("cell", 1, 7), ("hidden", 2, 1), ("cell", 2, 3), ("cell", 1, 1)]
VALUES = np.random.default_rng(0).uniform(-1, 1, (len(TEXT), len(UNITS))).astype(np.float32)
# The first unit shows every step, from -1 to 1; the third is not bounded.
VALUES[:, 0] = np.linspace(-1, 1, len(TEXT))
VALUES[:, 2] *= 8
FOUND = {
    "in <quotes>": [(("cell", 1, 7), 0.5, -0.25), (("hidden", 2, 1), 0.25, 0.125)],
    "column": [(("cell", 2, 3), -0.75, -0.875)],
}
CONTENT = Content(TEXT, UNITS, VALUES, FOUND)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def decoded(data: dict[str, Any]) -> dict[tuple[str, int, int], np.ndarray]:
    """Return the values [T] of each unit of a page."""
    found = {}
    for group in data["groups"]:
        steps = np.frombuffer(base64.b64decode(group["values"]), np.int8)
        for unit, row in zip(group["units"], steps.reshape(len(group["units"]), -1), strict=True):
            found[group["record"], group["layer"], unit] = group["scale"] * row / 127
    return found


def test_the_page_holds_the_text_and_the_values() -> None:
    data = data_of(inspection.page(CONTENT, "A title"))
    assert data["text"] == TEXT
    found = decoded(data)
    assert found.keys() == set(UNITS)
    for unit, values in zip(UNITS, VALUES.T, strict=True):
        scale = max(1, np.abs(values).max())
        np.testing.assert_allclose(found[unit], values, atol=0.5001 * scale / 127)
    assert [group["units"] for group in data["groups"]] == [[1, 2, 7], [1], [3]]
    assert data["labels"] == {"cell": "cell (tanh)", "hidden": "hidden state"}
    assert [feature["name"] for feature in data["features"]] == list(FOUND)
    assert data["features"][1]["units"] == [
        {"record": "cell", "layer": 2, "unit": 3, "r_chosen": -0.75, "r": -0.875}
    ]
    assert data["first"] == {"record": "cell", "layer": 1, "unit": 7}


def test_the_first_unit() -> None:
    chosen = data_of(inspection.page(CONTENT._replace(first=("hidden", 2, 1)), ""))
    assert chosen["first"] == {"record": "hidden", "layer": 2, "unit": 1}
    nothing = data_of(inspection.page(CONTENT._replace(found={}), ""))
    assert nothing["first"] == {"record": "cell", "layer": 1, "unit": 2}


def test_the_page_loads_nothing_and_says_what_it_shows() -> None:
    page = inspection.page(CONTENT, "A <title>", "A {{note}} & more.")
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)
    assert "<title>A &lt;title&gt;</title>" in page and "A {{note}} &amp; more." in page
    assert page.count("{{") == 1
    assert "<quotes>" not in page and "prefers-color-scheme: dark" in page


def test_what_html_cannot_hold() -> None:
    content = CONTENT._replace(text="\0\udcff" + TEXT[2:])
    assert data_of(inspection.page(content, "\udcff"))["text"] == "\ufffd\ufffd" + TEXT[2:]


def test_the_size_of_a_page(tmp_path: Path) -> None:
    length = 20_000
    units = [("cell", 1, n) for n in range(inspection.most_units(length))]
    assert len(units) > 700
    values = np.ones((length, len(units)), np.float32)
    size = inspection.write(
        tmp_path / "page.html", Content("x" * length, units, values, FOUND), "T"
    )
    assert size == (tmp_path / "page.html").stat().st_size
    assert 19_000_000 < size < inspection.LARGEST
    inspection.check_length(inspection.LONGEST)
    with pytest.raises(InputError, match="too long for a page: it has 200,001 characters"):
        inspection.check_length(inspection.LONGEST + 1)


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


HERE = "document.getElementById('here').textContent"
SHOWN = "['record', 'layer', 'unit'].map((id) => document.getElementById(id).value).join(' ')"
PRESSED = """[...document.querySelectorAll('#features button')]
  .map((button) => button.getAttribute('aria-pressed')).join(' ')"""
CLASSES = "[...document.querySelectorAll('#text i')].map((e) => e.className.split(' ')[0])"
CHROMIUM = pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium")


def choose(browser: chromium.Browser, name: str, value: object) -> None:
    """Choose an entry of a list as a person does."""
    browser.value(
        f"(() => {{ const list = document.getElementById({name!r}); list.value = {value!r};"
        "list.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def colours(values: np.ndarray, most: float = 1.0) -> list[str]:
    steps = np.rint(127 * values)
    levels = np.floor(20 * np.abs(steps) / (127 * most) + 0.5).clip(max=20).astype(int)
    return [f"{'m' if s < 0 else 'p'}{n}" if n else "" for s, n in zip(steps, levels, strict=True)]


@pytest.mark.browser
@CHROMIUM
def test_in_chromium(browser: chromium.Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    values = VALUES.copy()
    values[:, 3] *= 0.25
    inspection.write(path, CONTENT._replace(values=values), "A <title>", "A note.")
    browser.look(900, 700)
    browser.open(path)
    read = "[...document.querySelectorAll('#text > div')].map((e) => e.textContent).join('')"
    assert browser.value(read) == TEXT
    # The best unit of the first feature comes first.
    assert browser.value(SHOWN) == "cell 1 7"
    assert browser.value(PRESSED) == "true false false"
    labels = "[...document.querySelectorAll('#features button')].map((e) => e.textContent)"
    assert browser.value(labels) == [
        "cell (tanh) 1:7, r = −0.25",
        "hidden state 2:1, r = 0.13",
        "cell (tanh) 2:3, r = −0.88",
    ]
    # Lists: the nearest unit of those in the page is taken.
    choose(browser, "unit", "2")
    assert browser.value(SHOWN) == "cell 1 2" and browser.value(PRESSED) == "false false false"
    assert browser.value(CLASSES) == colours(values[:, 0])
    choose(browser, "layer", "2")
    assert browser.value(SHOWN) == "cell 2 3"
    choose(browser, "record", "hidden")
    assert browser.value(SHOWN) == "hidden 2 1"
    # Buttons, and colours that stretch to the range of the unit.
    browser.click("#features dd:last-child button")
    assert browser.value(SHOWN) == "cell 2 3" and browser.value(PRESSED) == "false false true"
    assert browser.value(CLASSES) == colours(values[:, 3])
    browser.click("#stretch")
    largest = float(np.rint(127 * np.abs(values[:, 3])).max() / 127)
    assert browser.value(CLASSES) == colours(values[:, 3], largest)
    assert browser.value("document.getElementById('high').textContent") == f"+{largest:.2f}"
    # The keyboard.
    choose(browser, "layer", "1")
    choose(browser, "unit", "2")
    browser.value("document.getElementById('text').focus()")

    def spoken(place: int, line: int, name: str) -> str:
        value = np.rint(127 * values[place, 0]) / 127
        return f"Line {line}, {name}: {value:.2f}".replace("-", "−")

    assert browser.value(HERE) == spoken(0, 1, "“i”")
    browser.press("End")
    assert browser.value(HERE) == spoken(10, 1, "line break")
    browser.press("ArrowDown")
    assert browser.value(HERE) == spoken(21, 2, "“;”")
    browser.press("ArrowLeft")
    assert browser.value(HERE) == spoken(20, 2, "“\U0001f600”")
    browser.press("Home")
    assert browser.value(HERE) == spoken(11, 2, "tab")
    browser.press("ArrowUp")
    assert browser.value(HERE) == spoken(0, 1, "“i”")
    browser.press("ArrowLeft")
    assert browser.value(HERE) == spoken(0, 1, "“i”")
    for _ in range(5):
        browser.press("ArrowDown")
    assert browser.value(HERE) == spoken(23, 3, "“}”")
    # The pointer, and another unit at the same place.
    browser.click("#text i:nth-child(4)")
    assert browser.value(HERE) == spoken(3, 1, "“(”")
    choose(browser, "unit", "1")
    assert browser.value(HERE) != spoken(3, 1, "“(”")
    assert browser.value("[...document.querySelectorAll('select')].every((e) => e.labels.length)")
    assert browser.problems == []
    assert browser.requests == [path.resolve().as_uri()]


@pytest.mark.browser
@CHROMIUM
def test_a_long_text_is_in_blocks_of_lines(browser: chromium.Browser, tmp_path: Path) -> None:
    text = "seven ch\n" * 1000
    content = Content(text, UNITS[:1], np.zeros((len(text), 1), np.float32), {})
    inspection.write(tmp_path / "page.html", content, "A title")
    browser.look(360, 640)
    browser.open(tmp_path / "page.html")
    blocks = "[...document.querySelectorAll('#text > div')].map((e) => e.textContent.length)"
    assert browser.value(blocks) == [4104, 4104, 792]
    # Nothing is wider than a phone.
    assert browser.value("document.documentElement.scrollWidth") == 360


@pytest.mark.browser
@CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_can_be_read_on_every_colour(
    scheme: str, browser: chromium.Browser, tmp_path: Path
) -> None:
    """A contrast of 4.5 between the text and each background (WCAG 2.1, 1.4.3)."""
    inspection.write(tmp_path / "page.html", CONTENT, "A title")
    browser.look(900, 700, "dark" if scheme == "dark" else "light")
    browser.open(tmp_path / "page.html")
    contrasts = browser.value(
        """["p", "m"].flatMap((sign) => [1, 5, 10, 15, 20].map((n) => sign + n)).map((name) => {
          const element = document.querySelector("#text i");
          element.className = name;
          const brush = document.createElement("canvas").getContext("2d");
          const luminance = (colour) => {
            brush.fillStyle = colour;
            brush.fillRect(0, 0, 1, 1);
            const part = (v) => v / 255 <= 0.04045
              ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const style = getComputedStyle(element);
          const [behind, ink] = [style.backgroundColor, style.color].map(luminance);
          return (Math.max(behind, ink) + 0.05) / (Math.min(behind, ink) + 0.05);
        })"""
    )
    assert min(contrasts) >= 4.5
    assert len(contrasts) == 10
