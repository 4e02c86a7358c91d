"""Test the page that shows a text coloured by surprisal: its structure, and in Chromium."""

import html
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.page import chromium
from jaxrnn import InputError
from jaxrnn.formats import surprisal

pytestmark = pytest.mark.once

# Bits of the characters, one above each bound of the colours and one below.
TEXT = "a<b&c>\r\n\tend é \U0001f600\n"
BITS = np.array(
    [0.1, 0.2, 0.6, 1.5, 1.6, 2.5, 3.5, 4.5, 7.0, 9.0, 30.0, 0.0, 0.3, 5.0, 6.5, 8.5, 1.0]
)
CLASSES = ["", "", "a", "b", "b", "c", "d", "e", "f", "g", "g", "", "", "e", "f", "g", "b"]


def nats(bits: np.ndarray) -> np.ndarray:
    return (bits * math.log(2)).astype(np.float32)


def write(path: Path, text: str, bits: np.ndarray, size: int = 10**9) -> str:
    """Write a page in pieces of a size, and return it."""
    with surprisal.writing(path, "A <title>") as page:
        for at in range(0, len(text), size):
            page.add(text[at : at + size], nats(bits[at : at + size]))
    return path.read_text(encoding="utf-8")


def runs(page: str) -> list[tuple[str, str, str]]:
    """Return the class, the codes and the text of each element of the page."""
    body = page.partition("<main")[2].partition("</main>")[0]
    found = re.findall(r"<i(?: class=(\w))? data-b=(\w+)>([^<]*)</i>", body)
    assert re.sub(r"<i[^>]*>[^<]*</i>|</?div>|\s", "", body.partition(">")[2]) == ""
    return [(name, codes, html.unescape(text)) for name, codes, text in found]


def test_every_character_has_its_colour_and_its_bits(tmp_path: Path) -> None:
    found = runs(write(tmp_path / "page.html", TEXT, BITS))
    assert "".join(text for _, _, text in found) == TEXT
    classes = [name for name, _, text in found for _ in text]
    assert classes == CLASSES
    codes = "".join(codes for _, codes, _ in found)
    bits = [int(codes[at : at + 2], 36) / 50 for at in range(0, len(codes), 2)]
    np.testing.assert_allclose(bits, np.minimum(BITS, 1295 / 50), atol=0.0101)


def test_neighbours_of_one_colour_share_an_element(tmp_path: Path) -> None:
    names = [name for name, _, _ in runs(write(tmp_path / "page.html", TEXT, BITS))]
    assert all(one != other for one, other in pairwise(names))
    # Except for very long runs.
    found = runs(write(tmp_path / "page.html", "x" * 600, np.ones(600)))
    assert [len(text) for _, _, text in found] == [256, 256, 88]


def test_pieces_and_blocks(tmp_path: Path) -> None:
    text = "seven ch\n" * 2000
    for bits in (np.random.default_rng(0).exponential(2.0, len(text)), np.ones(len(text))):
        whole = write(tmp_path / "page.html", text, bits)
        blocks = re.findall(r"<div>(.*?)</div>", whole, flags=re.S)
        lengths = [sum(map(len, re.findall(r">([^<]*)</i>", block))) for block in blocks]
        # The first line break after 4096 characters.
        assert lengths == [4104, 4104, 4104, 4104, 1584]
        assert whole.count("<div>") == 5
    pieces = write(tmp_path / "pieces.html", text, bits, 100)
    assert "".join(text for _, _, text in runs(pieces)) == text


def test_the_page_loads_nothing_and_says_what_it_shows(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", TEXT, BITS)
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)
    assert "<title>A &lt;title&gt;</title>" in page and "{{" not in page
    assert "prefers-color-scheme: dark" in page
    legend = page.partition('id="legend"')[2].partition("</ul>")[0]
    assert re.findall(r"</i> (.*)</li>", legend)[0] == "0 to 0.5"
    assert "8 or more" in legend and "bits" in legend
    assert f"{len(TEXT)} characters, {nats(BITS).sum() / math.log(2) / len(TEXT):.3f} bits" in page


def test_what_html_cannot_hold(tmp_path: Path) -> None:
    found = runs(write(tmp_path / "page.html", "\0\udcff", np.ones(2)))
    assert found[0][2] == "\ufffd\ufffd"


def test_a_page_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    monkeypatch.setattr(surprisal, "LONGEST", 5)
    with pytest.raises(InputError, match="too long for a page: it has 6 characters"):
        write(path, "abcdef", np.ones(6), 2)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


HERE = "document.getElementById('here').textContent"


@pytest.mark.browser
@pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium")
def test_in_chromium(browser: chromium.Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path, TEXT + "the last line\n", np.concatenate([BITS, np.full(14, 2.5)]))
    browser.look(900, 700)
    browser.open(path)
    read = "[...document.querySelectorAll('#text > div')].map(e => e.textContent).join('')"
    assert browser.value(read) == TEXT + "the last line\n"
    # The keyboard: focus chooses the first character, arrows move.
    browser.press("Tab")
    assert browser.value(HERE) == "“a”: 0.10 bits, probability 93 %"
    browser.press("ArrowRight")
    assert browser.value(HERE).startswith("“<”: 0.20 bits")
    for _ in range(6):
        browser.press("ArrowRight")
    assert browser.value(HERE).startswith("line break: 4.50 bits")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    assert browser.value(HERE).startswith("“t”: 2.50 bits")
    browser.press("ArrowUp")
    assert browser.value(HERE).startswith("tab: 7.00 bits")
    browser.press("End")
    assert browser.value(HERE).startswith("line break: 1.00 bits")
    browser.press("ArrowLeft")
    assert browser.value(HERE).startswith("“\U0001f600”: 8.50 bits")
    # The pointer: the character under it, in the middle of a run.
    x, y = browser.value(
        """(() => {
          const run = [...document.querySelectorAll("#text i")].at(-1);
          const range = document.createRange();
          range.setStart(run.firstChild, 4);
          range.setEnd(run.firstChild, 5);
          const box = range.getBoundingClientRect();
          return [box.left + box.width / 2, box.top + box.height / 2];
        })()"""
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.value(HERE).startswith("“l”: 2.50 bits")
    assert not browser.value("document.getElementById('mark').hidden")
    assert browser.problems == []
    assert browser.requests == [path.resolve().as_uri()]


@pytest.mark.browser
@pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_can_be_read_on_every_colour(
    scheme: str, browser: chromium.Browser, tmp_path: Path
) -> None:
    """A contrast of 4.5 between the text and each background (WCAG 2.1, 1.4.3)."""
    path = tmp_path / "page.html"
    write(path, TEXT, BITS)
    browser.look(900, 700, "dark" if scheme == "dark" else "light")
    browser.open(path)
    contrasts = browser.value(
        """[..."abcdefg"].map((name) => {
          const canvas = document.createElement("canvas");
          const brush = canvas.getContext("2d", {willReadFrequently: true});
          const style = (element) => getComputedStyle(element);
          const luminance = (...colours) => {
            for (const colour of colours) {
              brush.fillStyle = colour;
              brush.fillRect(0, 0, 1, 1);
            }
            const part = (v) => v / 255 <= 0.04045
              ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const card = style(document.getElementById("text")).backgroundColor;
          const sample = document.querySelector(`#legend .${name}`);
          const behind = luminance(card, style(sample).backgroundColor);
          const ink = luminance(style(document.getElementById("text")).color);
          return (Math.max(behind, ink) + 0.05) / (Math.min(behind, ink) + 0.05);
        })"""
    )
    assert min(contrasts) >= 4.5
    assert len(contrasts) == 7
