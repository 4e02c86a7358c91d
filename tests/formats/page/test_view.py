"""Test what a page shows in Chromium about the text that it has written, and how it looks."""

import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from benchmarks.page import chromium
from jaxrnn import charlm
from tests.support.pages import MODELS, VOCABULARY, model, text_of, tokens, write

pytestmark = [
    pytest.mark.once,
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium"),
]


# --- what the page shows ---


def test_surprisal_and_likely_characters_are_those_of_the_model(
    show: Callable[..., chromium.Browser],
) -> None:
    params = model(**MODELS["gru-before"])
    drawn = tokens(show(params), temperature=2, topK=20)
    read = VOCABULARY.encode(text_of(drawn))
    carry = charlm.initial_carry(params.config, 1)
    logits = charlm.forward(params, jnp.asarray(read, jnp.int32)[:, None], carry)[1][:, 0]
    p = np.asarray(jax.nn.softmax(logits))
    assert (
        "bits" not in drawn[0] and [token["given"] for token in drawn] == [True] * 7 + [False] * 300
    )
    for before, token in zip(p[:-1], drawn[1:], strict=True):
        assert token["bits"] == pytest.approx(-np.log2(before[token["token"]]), abs=1e-4)
        assert token["rank"] == 1 + (before > before[token["token"]]).sum()
        np.testing.assert_allclose(token["chances"], np.sort(before)[:-11:-1], atol=1e-5)
        np.testing.assert_allclose(before[token["likely"]], token["chances"], atol=1e-5)


@pytest.mark.parametrize("name", ["lstm-peephole-2-tied", "gru-after-2", "rnn-relu-2"])
def test_units_are_the_activations_of_the_model(
    name: str, show: Callable[..., chromium.Browser]
) -> None:
    params = model(**MODELS[name])
    browser = show(params)
    write(browser)
    text = browser.value("run.text")
    recorded = "cell" if params.config.cell == "lstm" else "hidden"
    values = jaxrnn.activations(params, text, [recorded])[1][recorded]
    # The unit of the second layer that changes most.
    unit = int(values.std(0).argmax())
    values = values[:, unit] if params.config.cell == "gru" else np.tanh(values[:, unit])
    browser.value(f"byId('layer').value = 1; byId('unit').value = {unit + 1}")
    browser.click("[name=view][value=unit]")
    shown = np.array(browser.value("view.characters.map((c) => c.tokens[0].units[view.unit])"))
    np.testing.assert_allclose(shown / 127, values, atol=0.51 / 127)
    levels = browser.value("view.characters.map((c) => Number(c.element.dataset.level))")
    np.testing.assert_array_equal(levels, np.floor(8 * shown / 127 + 0.5))
    assert browser.value("byId('text').className") == "unit" and len(set(levels)) > 3
    browser.click("[name=view][value=surprisal]")
    assert browser.value("byId('text').className") == "surprisal"


def test_the_box_has_the_number_of_the_shown_unit(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser)
    browser.click("[name=view][value=unit]")
    box = "const box = byId('unit'); box.value = '{}'; box.dispatchEvent(new Event('{}'));"
    for typed, event, held in (
        (99, "input", 30), (30, "input", 30), (0, "input", 1), (2.7, "input", 3), (-4, "input", 1),
        (7, "change", 7), ("", "change", 1),
    ):  # fmt: skip
        got = browser.value(f"(() => {{ {box.format(typed, 'input')} return view.unit; }})()")
        assert got == held - 1
        if event == "change":
            browser.value(f"(() => {{ {box.format(typed, event)} }})()")
        assert browser.value("byId('unit').value") == str(held)


def test_characters_are_coloured_by_their_surprisal(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser)
    drawn = tokens(browser)
    shown = browser.value(
        "view.characters.map(({element: e}) => [e.textContent, e.className, e.dataset.level ?? null])"
    )
    assert "".join(text for text, _, _ in shown) == text_of(drawn)
    for token, (_, kind, level) in zip(drawn, shown, strict=True):
        assert ("given" in kind) == token["given"]
        assert level == (None if token["given"] else str(min(int(token["bits"]), 8)))
    assert len({level for _, _, level in shown}) >= 6
    speed = browser.value("byId('speed').textContent")
    assert re.fullmatch(r"[\d,]+ characters per second\.", speed)
    assert browser.value("byId('status').textContent") == "300 characters written."


def detail(browser: chromium.Browser) -> Any:
    """Return the heading of the detail, its rows, and the rows that are marked as drawn."""
    return browser.value(
        """[byId("likely").querySelector("h2").textContent,
            [...byId("likely").querySelectorAll("li")].map((row) => row.firstChild.textContent),
            [...byId("likely").querySelectorAll("li.drawn")].map((row) => row.firstChild.textContent)]"""
    )


def test_a_click_shows_what_was_likely(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser)
    drawn = tokens(browser)
    # One of the likeliest characters, and one that is not among them.
    likely = next(i for i, token in enumerate(drawn) if i > 7 and token["rank"] == 2)
    other = next(i for i, token in enumerate(drawn) if i > 7 and token["rank"] > 10)
    for index in (likely, other):
        browser.value(f"view.characters[{index}].element.id = 'target'")
        browser.click("#target")
        browser.value("byId('target').removeAttribute('id')")
        assert browser.value(f"view.chosen === view.characters[{index}]")
        title, rows, marked = detail(browser)
        name = browser.value(f"nameOf({drawn[index]['token']})")
        assert name in title and title.endswith(" was drawn") and marked == [name]
        names = browser.value(f"{drawn[index]['likely']}.map(nameOf)")
        assert rows == names + ([name] if index == other else [])


def test_the_detail_says_what_its_probabilities_are(
    show: Callable[..., chromium.Browser],
) -> None:
    browser = show(model(**MODELS["lstm"]))
    browser.value("byId('temperature').value = 0.05; byId('top-k').value = 1")
    write(browser)
    browser.value("view.clicked({target: view.characters[20].element})")
    says = browser.value("byId('likely').innerText")
    assert "as the model sees it: at temperature 1, without top-k and top-p" in says
    assert browser.value("view.characters[20].tokens[0].chances[0]") < 1


def test_screen_readers_can_read_the_text(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser, "ROMEO", 30)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in nodes}
    # In an application they leave the arrow keys to the page and read no lines.
    assert "application" not in roles
    label = browser.value("byId('text').ariaLabel")
    (text,) = [node for node in nodes if node.get("name", {}).get("value") == label]
    assert text["role"]["value"] == "group"
    by_id = {node["nodeId"]: node for node in nodes}

    def words(node: Any) -> str:
        if node["role"]["value"] == "StaticText":
            return str(node["name"]["value"])
        return "".join(words(by_id[child]) for child in node["childIds"] if child in by_id)

    spoken = words(text).replace("↵", "")
    assert spoken.replace("\n", "") == browser.value("run.text").replace("\n", "")


def test_escape_closes_the_detail(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]), width=360)
    write(browser)
    for focused in ("text", "close"):
        browser.click("#text .given")
        browser.value(f"byId('{focused}').focus()")
        assert browser.value("byId('detail').checkVisibility()")
        browser.press("Escape")
        assert not browser.value("byId('detail').checkVisibility()")
        assert browser.value("[document.activeElement.id, view.chosen]") == ["text", None]
    # In a control the key belongs to the control.
    browser.click("#text .given")
    browser.value("byId('prime').focus()")
    browser.press("Escape")
    assert browser.value("document.activeElement.id") == "prime"


def test_the_keyboard_moves_through_the_text(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser, "a\nROMEO\nbc\n", 1)
    browser.value("byId('text').focus()")
    places = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown",
                "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft", "End"):  # fmt: skip
        browser.press(key)
        places.append(browser.value("view.characters.indexOf(view.cursor)"))
    # Line 2 begins at 2, line 3 at 8; in column 2 they have M and a line end.
    assert places == [0, 1, 2, 3, 4, 10, 4, 1, 0, 0, 11]
    assert re.fullmatch(
        r".+: \d+\.\d\d bits of surprisal", browser.value("byId('here').textContent")
    )
    browser.press("Home")
    assert browser.value("byId('here').textContent") == "a: given"
    browser.press("ArrowRight")
    browser.press("Enter")
    assert detail(browser)[0] == "line end was given"
    browser.value("byId('close').click()")
    assert browser.value("document.activeElement.id") == "text"


# --- how the page looks ---


def luminance(colour: str) -> float:
    """Return the relative luminance as WCAG defines it of rgb(...) with bytes, or color(srgb ...)."""
    parts = np.array([float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", colour)[:3]])
    parts = parts / 255 if colour.startswith("rgb") else parts
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


# The colour of each level on a canvas, which turns any colour into bytes.
COLOURS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const bytes = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
  };
  const style = (element) => getComputedStyle(element);
  const ground = (element) => style(element).backgroundColor;
  const patches = [...byId("scale-colours").children].map((patch) => bytes(ground(patch)));
  const paper = (element) => {
    for (let above = element; above; above = above.parentElement)
      if (ground(above) !== "rgba(0, 0, 0, 0)") return bytes(ground(above));
  };
  const kinds = "p, small, label, legend, button, h1, h2, output, summary";
  const words = [...document.querySelectorAll(kinds)]
    .filter((element) => element.offsetParent && !element.closest("#text"));
  return {patches, ink: bytes(style(byId("text")).color),
          words: words.map((word) => [word.id || word.textContent.trim().slice(0, 20),
                                      bytes(style(word).color), paper(word)])};
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(
    scheme: Literal["light", "dark"], show: Callable[..., chromium.Browser]
) -> None:
    browser = show(model(**MODELS["lstm"]), scheme=scheme)
    write(browser)
    browser.click("#text .given")
    seen = browser.value(COLOURS)
    # Level 0 is the paper, level 8 the end of the scale.
    assert len(set(seen["patches"])) == 9
    bright = [luminance(colour) for colour in seen["patches"]]
    assert bright == sorted(bright, reverse=scheme == "light")
    browser.click("[name=view][value=unit]")
    units = browser.value(COLOURS)["patches"]
    assert len(set(units)) == 17 and units[8] == seen["patches"][0]
    for colour in seen["patches"] + units:
        assert contrast(seen["ink"], colour) >= 4.5, colour
    assert len(seen["words"]) > 20
    for name, ink, paper in seen["words"]:
        assert contrast(ink, paper) >= 4.5, name


def test_a_phone_needs_no_horizontal_scrolling(show: Callable[..., chromium.Browser]) -> None:
    params = model(**MODELS["lstm"])
    browser = show(params, width=360)
    browser.value("byId('temperature').value = 0.05; byId('mode').value = 'argmax'")
    write(browser, "a" * 400, 50)
    browser.click("[name=view][value=unit]")
    browser.click("summary")
    browser.click("#text .given")
    assert browser.value("document.documentElement.scrollWidth") == 360
    assert browser.value("byId('text').scrollWidth <= byId('text').clientWidth")
    small = browser.value(
        """[...document.querySelectorAll("button, select, summary, textarea, input, .inline")]
          .filter((e) => e.offsetParent && !["checkbox", "radio"].includes(e.type))
          .filter((e) => e.getBoundingClientRect().height < 43.5).map((e) => e.id || e.textContent)"""
    )
    assert small == []


def test_every_control_has_a_name(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    unnamed = browser.value(
        """[...document.querySelectorAll("input, select, textarea, button")].filter((e) =>
          !(e.labels.length ? e.labels[0].textContent : e.textContent).trim()).map((e) => e.id)"""
    )
    assert unnamed == []
