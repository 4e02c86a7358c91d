"""Test the page of a model in Chromium: its texts, what it shows about them, its controls."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from benchmarks.page import chromium
from jaxrnn import charlm
from jaxrnn.formats import page
from jaxrnn.formats.page import weights
from tests.support import pages

pytestmark = [
    pytest.mark.once,
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium"),
]

PRIME = "ROMEO: "
LENGTH = 300
MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn", "hidden_size": 21, "embedding_size": 5},
    "rnn-relu-2": {
        "cell": "rnn", "activation": "relu", "layers": 2, "hidden_size": 8, "embedding_size": 0
    },
    "rnn-sigmoid": {
        "cell": "rnn", "activation": "sigmoid", "hidden_size": 16, "embedding_size": 16, "tie": True
    },
    "lstm": {"cell": "lstm", "hidden_size": 30, "embedding_size": 7},
    "lstm-peephole-2-tied": {
        "cell": "lstm", "peephole": True, "layers": 2, "hidden_size": 12, "embedding_size": 12,
        "tie": True,
    },
    "lstm-one-hot": {"cell": "lstm", "hidden_size": 13, "embedding_size": 0},
    "gru-before": {"cell": "gru", "hidden_size": 16, "embedding_size": 9},
    "gru-after-2": {
        "cell": "gru", "reset": "after", "layers": 2, "hidden_size": 11, "embedding_size": 0
    },
}  # fmt: skip
# Options in JavaScript beside those of `jaxrnn.sample`.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "argmax": ({"mode": "argmax"}, {"mode": "argmax"}),
    "categorical": ({"seed": 2**32 - 1}, {"seed": 2**32 - 1}),
    "top-p": ({"topP": 0.8, "temperature": 0.7}, {"top_p": 0.8, "temperature": 0.7}),
    "top-k": ({"topK": 5, "topP": 0.9, "seed": 7}, {"top_k": 5, "top_p": 0.9, "seed": 7}),
    "after-space": (
        {"mode": "after-space", "temperature": 3.0}, {"mode": "after-space", "temperature": 3.0}
    ),
}  # fmt: skip
PLAIN = {"temperature": 1, "topK": None, "topP": None, "mode": "categorical", "seed": 0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def show(browser: chromium.Browser, tmp_path: Path) -> Iterator[Callable[..., chromium.Browser]]:
    """Open the page of a model. Afterwards nothing may have failed and nothing been asked for."""
    file = tmp_path / "page.html"

    def show(
        params: jaxrnn.Params,
        kind: page.Weights = "float32",
        width: int = 1200,
        scheme: Literal["light", "dark"] = "light",
    ) -> chromium.Browser:
        page.write(params, file, weights=kind)
        browser.look(width, 800, scheme)
        browser.open(file)
        return browser

    yield show
    assert browser.problems == []
    assert browser.requests == [file.resolve().as_uri()]


def tokens(
    browser: chromium.Browser, prime: str = PRIME, length: int = LENGTH, **options: Any
) -> Any:
    """Return what `written` yields."""
    given = json.dumps(PLAIN | {"prime": prime, "length": length} | options)
    listed = "chances: [...token.chances ?? []], units: [...token.units]"
    return browser.value(
        f"[...written(network, vocabulary, {given})].map((token) => ({{...token, {listed}}}))"
    )


def text_of(tokens: Any) -> str:
    return "".join(token["text"] for token in tokens)


def write(browser: chromium.Browser, prime: str = PRIME, length: int = LENGTH) -> None:
    """Write a text with the controls of the page."""
    browser.value(f"byId('prime').value = {json.dumps(prime)}; byId('length').value = {length};")
    browser.click("#write")
    wait(browser)


def wait(browser: chromium.Browser) -> None:
    """Wait until the page has stopped to write."""
    until = time.monotonic() + 60
    while not browser.value("run.stopped"):
        assert time.monotonic() < until
        time.sleep(0.02)


# --- the same text as `jaxrnn.sample` ---


def test_random_numbers_are_those_of_jax(show: Callable[..., chromium.Browser]) -> None:
    browser = show(pages.model(**MODELS["rnn"]))
    for seed in (0, 1, 2**31, 2**32 - 1):
        for data in (0, 5, 2**32 - 1):
            key = jax.random.fold_in(jax.random.key(jnp.uint32(seed)), jnp.uint32(data))
            name = f"foldIn(keyOf({seed}), {data})"
            assert browser.value(name) == jax.random.key_data(key).tolist()
            bits = browser.value(f"Array.from({{length: 99}}, (_, i) => randomBits({name}, i))")
            assert bits == jax.random.bits(key, 99).tolist()
            noise = browser.value(f"[...gumbels({name}, 999)]")
            # The logarithms of XLA are rounded otherwise.
            want = np.asarray(jax.random.gumbel(key, 999))
            np.testing.assert_allclose(noise, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_sample(name: str, show: Callable[..., chromium.Browser]) -> None:
    params = pages.model(**MODELS[name])
    browser = show(params)
    texts = set()
    for chosen, options in OPTIONS.values():
        text = text_of(tokens(browser, **chosen))
        assert text == jaxrnn.sample(params, PRIME, LENGTH, **options)
        texts.add(text)
    # The options matter, and so the comparison does.
    assert len(texts) >= len(OPTIONS) - 1


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_texts_are_those_of_the_rounded_model(
    kind: page.Weights, show: Callable[..., chromium.Browser]
) -> None:
    params = pages.model(**MODELS["lstm-peephole-2-tied"])
    rounded = weights.values(weights.rounded(params, kind))
    browser = show(params, kind)
    held = browser.value("[...decode(model.embedding)]")
    np.testing.assert_array_equal(np.float32(held), rounded.embedding.ravel())
    held = browser.value("[...decode(model.layers[1].w_h)]")
    np.testing.assert_array_equal(np.float32(held), rounded.layers[1].w_h.ravel())
    same = jax.tree.map(jnp.asarray, rounded)
    assert text_of(tokens(browser)) == jaxrnn.sample(same, PRIME, LENGTH)


def test_bytes_become_characters_when_they_are_complete(
    show: Callable[..., chromium.Browser],
) -> None:
    params = pages.model(jaxrnn.Vocabulary.of_bytes(), cell="gru", hidden_size=24, embedding_size=8)
    browser = show(params)
    prime = "\ufeffé€𝄞"
    text = text_of(tokens(browser, prime))
    assert text == jaxrnn.sample(params, prime, LENGTH) and "\ufffd" in text
    write(browser, prime)
    assert browser.value("run.text") == text
    assert browser.value("view.characters.map(({text}) => text).join('')") == text
    assert browser.value("view.characters.slice(0, 4).map((c) => c.tokens.length)") == [3, 2, 3, 4]
    browser.value("view.clicked({target: view.characters[3].element})")
    titles = browser.value("[...document.querySelectorAll('#likely h2')].map((h) => h.textContent)")
    assert titles == [f"0x{byte:X} was given" for byte in "𝄞".encode()]


# --- what the page shows ---


def test_surprisal_and_likely_characters_are_those_of_the_model(
    show: Callable[..., chromium.Browser],
) -> None:
    params = pages.model(**MODELS["gru-before"])
    drawn = tokens(show(params), temperature=2, topK=20)
    read = pages.VOCABULARY.encode(text_of(drawn))
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
    params = pages.model(**MODELS[name])
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


def test_characters_are_coloured_by_their_surprisal(show: Callable[..., chromium.Browser]) -> None:
    browser = show(pages.model(**MODELS["lstm"]))
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
    browser = show(pages.model(**MODELS["lstm"]))
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


def test_the_keyboard_moves_through_the_text(show: Callable[..., chromium.Browser]) -> None:
    browser = show(pages.model(**MODELS["lstm"]))
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


# --- the controls ---


def test_an_endless_text_ends_when_stop_is_pressed(show: Callable[..., chromium.Browser]) -> None:
    params = pages.model(**MODELS["lstm"])
    browser = show(params)
    browser.value(f"byId('prime').value = {PRIME!r}; byId('seed').value = 5")
    browser.click("#endless")
    browser.click("#write")
    while browser.value("run.count") < 700:
        time.sleep(0.02)
    assert browser.value("byId('stop').getAttribute('aria-disabled')") == "false"
    browser.click("#stop")
    wait(browser)
    time.sleep(0.1)
    text, count = browser.value("[run.text, run.count]")
    assert browser.value("byId('status').textContent") == f"{count:,} characters written."
    assert len(text) == len(PRIME) + count
    assert text[:307] == jaxrnn.sample(params, PRIME, 300, seed=5)
    time.sleep(0.1)
    assert browser.value("run.count") == count


def test_writing_ends_after_the_text_to_stop_at(show: Callable[..., chromium.Browser]) -> None:
    params = pages.model(**MODELS["lstm"])
    browser = show(params)
    # The prime itself does not stop the text.
    prime = "ROMEO:\n"
    whole = jaxrnn.sample(params, prime, LENGTH)
    for typed, stop in (("\\n", "\n"), (whole[40:43], whole[40:43])):
        browser.value(f"byId('stop-at').value = {json.dumps(typed)}")
        write(browser, prime)
        assert browser.value("run.text") == whole[: whole.index(stop, len(prime)) + len(stop)]


def test_a_new_text_takes_the_place_of_one_being_written(
    show: Callable[..., chromium.Browser],
) -> None:
    params = pages.model(**MODELS["lstm"])
    browser = show(params)
    browser.click("#endless")
    browser.click("#write")
    browser.click("#endless")
    write(browser)
    assert browser.value("byId('text').textContent") == jaxrnn.sample(params, PRIME, LENGTH)


def test_unknown_characters_are_reported_and_nothing_is_written(
    show: Callable[..., chromium.Browser],
) -> None:
    browser = show(pages.model(**MODELS["lstm"]))
    write(browser, "ROMEO: x\tX𝄞x", 9)
    says = "Characters that the model has never seen: x tab X"
    assert browser.value("byId('unknown').textContent") == says
    assert browser.value("[run.text, byId('prime').getAttribute('aria-invalid')]") == ["", "true"]
    write(browser, "", 9)
    assert "at least one character" in browser.value("byId('unknown').textContent")
    write(browser, "ROMEO", 9)
    assert browser.value("byId('unknown').textContent") == ""
    assert len(browser.value("run.text")) == 14


def test_the_beginning_of_a_very_long_text_is_dropped(
    show: Callable[..., chromium.Browser],
) -> None:
    browser = show(pages.model(**MODELS["rnn"]))
    browser.value("byId('length').value = 20500")
    browser.click("#write")
    wait(browser)
    whole, shown = browser.value("[run.text, byId('text').textContent]")
    assert len(whole) == 20501 and shown == whole[501:]
    assert browser.value("byId('dropped').textContent").startswith("The first 501 characters")
    assert browser.value("byId('text').querySelectorAll('.line:empty').length") == 0


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
    browser = show(pages.model(**MODELS["lstm"]), scheme=scheme)
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
    params = pages.model(**MODELS["lstm"])
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
    browser = show(pages.model(**MODELS["lstm"]))
    unnamed = browser.value(
        """[...document.querySelectorAll("input, select, textarea, button")].filter((e) =>
          !(e.labels.length ? e.labels[0].textContent : e.textContent).trim()).map((e) => e.id)"""
    )
    assert unnamed == []
