"""Test `inside_the_network`: features of C code, correlations, and its page in a browser."""

import html
import json
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

import jaxrnn
from experiments import inside_the_network as inside

pytestmark = pytest.mark.once

FOUND = {"column": inside.Found(1, 3, 0.5, 0.25), "in quotes": inside.Found(2, 8, -0.5, -0.75)}


@pytest.fixture(scope="module")
def params() -> jaxrnn.Params:
    config = jaxrnn.ModelConfig(layers=2, hidden_size=8, embedding_size=4)
    return jaxrnn.init(config, jaxrnn.Vocabulary.of_bytes(), 3)


@pytest.fixture(scope="module")
def states(params: jaxrnn.Params) -> np.ndarray:
    """The states [T, layers, H] of all units while they read the code."""
    return inside.units(params, inside.CODE)


def test_quotes_comments_and_parentheses_are_distinguished() -> None:
    text = r"""f("a(\"b", '(', g(x)); /* " ( */ y = "/*"; // '"""
    rows = {
        "in quotes": "  iiiiiii  iii                       iiii",
        "in a comment": "                       iiiiiiiii           iiii",
        "in parentheses": " iiiiiiiiiiiiiiiiiii",
    }
    found = inside.features(text)
    for name, marks in rows.items():
        assert "".join(" i"[int(value)] for value in found[name]) == marks.ljust(len(text))


def test_the_depth_of_braces_counts_those_of_code() -> None:
    found = inside.features("}a{b{'{'/*}*/}c}d")
    assert found["depth of {}"].tolist() == [0, 0, 1, 1] + 9 * [2] + [1, 1, 0, 0]


def test_columns_and_indentation_count_a_tab_to_the_next_multiple_of_eight() -> None:
    found = inside.features("ab\n\t x\ty\n\n z")
    assert found["column"].tolist() == [0, 1, 2, 0, 8, 9, 10, 16, 17, 0, 0, 1]
    assert found["indentation"].tolist() == [0, 0, 0, 8, 9, 9, 9, 9, 9, 0, 1, 1]


@pytest.mark.slow
def test_units_are_chosen_on_one_half_and_judged_on_the_other(
    params: jaxrnn.Params, states: np.ndarray
) -> None:
    text, half = inside.CODE, len(inside.CODE) // 2
    values = states.reshape(len(text), -1)
    features = inside.features(text)
    for name, unit in inside.find(params, text).items():
        index = (unit.layer - 1) * 8 + unit.unit - 1
        first, second = (
            [np.corrcoef(values[part, n], features[name][part])[0, 1] for n in range(16)]
            for part in (slice(None, half), slice(half, None))
        )
        assert index == np.argmax(np.abs(first))
        np.testing.assert_allclose([unit.r_found, unit.r], [first[index], second[index]], atol=1e-4)


def test_constant_values_correlate_with_nothing() -> None:
    values = np.stack([np.ones(9), np.arange(9)], 1)[:, None]
    assert inside.correlation(values, np.zeros(9)).tolist() == [[0, 0]]
    assert inside.correlation(values, -np.arange(9)) == pytest.approx(np.array([[0, -1]]))


# --- the page ---

browser = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# The colours of paper, minus and plus.
PALETTE = {
    "light": ("#ffffff", "#56b4e9", "#e69f00"),
    "dark": ("#161616", "#0072b2", "#a34700"),
}
LISTEN = """<script>
const errors = [];
console.error = console.warn = (...all) => errors.push(all.join(" "));
for (const kind of ["error", "securitypolicyviolation"])
  addEventListener(kind, (event) => errors.push(kind + " " + (event.message ?? event.blockedURI)), true);
</script>"""
USE = """<script>
const by = (id) => document.getElementById(id);
const change = (id, value, ...events) => {
  by(id).value = value;
  events.forEach((event) => by(id).dispatchEvent(new Event(event, {bubbles: true})));
};
const spans = [...by("text").children];
const press = (key) => by("text").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const look = () => ({
  layer: by("layer").value, unit: by("unit").value, value: by("value").textContent,
  pressed: [...by("found").children].map((button) => button.getAttribute("aria-pressed")),
  colours: spans.map((span) => getComputedStyle(span).backgroundColor),
});
const seen = {first: look()};
by("found").children[1].click(); seen.button = look();
change("layer", "0", "change"); seen.layer = look();
change("unit", "5", "input", "change"); seen.unit = look();
change("unit", "999", "input", "change"); seen.beyond = look();
spans[100].dispatchEvent(new MouseEvent("mouseover", {bubbles: true})); seen.hover = look();
for (const key of ["Home", "ArrowRight", "ArrowDown", "End", "ArrowLeft"]) {
  press(key); seen[key] = look();
}
seen.errors = errors;
seen.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
seen.text = spans.map((span) => span.textContent).join("");
seen.named = ["layer", "unit"].map((id) => by(id).labels.length);
seen.ink = getComputedStyle(by("text")).color;
const result = document.createElement("output");
result.id = "result";
result.textContent = JSON.stringify(seen);
document.body.append(result);
</script>"""


@pytest.fixture(scope="module", params=PALETTE)
def seen(
    request: pytest.FixtureRequest, states: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Return what a browser showed and the colours it should show, in light and in dark."""
    folder = tmp_path_factory.mktemp("page")
    r = {name: np.array([[0.5], [0.25]]) for name in FOUND}
    page = inside.page(states, FOUND, r)
    page = page.replace("<head>", "<head>" + LISTEN, 1).replace("</body>", USE + "</body>", 1)
    (folder / "page.html").write_text(page)
    scheme = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(request.param)}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", scheme, "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [*command, profile, (folder / "page.html").as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    result = re.search('<output id="result">(.*?)</output>', done.stdout, re.DOTALL)
    assert result, done.stdout[-1000:] + done.stderr[-1000:]
    return json.loads(html.unescape(result[1])), PALETTE[request.param]


def rgb(colour: str) -> Any:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def luminance(colour: Any) -> float:
    """Return the relative luminance as WCAG defines it."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.browser
@pytest.mark.skipif(not browser, reason="no Chromium: apt-get install chromium")
class TestInABrowser:
    def test_nothing_fails_and_nothing_is_fetched(self, seen: Any) -> None:
        assert seen[0]["errors"] == [] and seen[0]["fetched"] == []

    def test_the_text_is_complete_and_the_controls_are_named(self, seen: Any) -> None:
        assert seen[0]["text"].replace("↵", "") == inside.CODE
        assert seen[0]["named"] == [1, 1]

    @pytest.mark.parametrize(
        "when, layer, unit, pressed",
        [
            ("first", 1, 3, 0),
            ("button", 2, 8, 1),
            ("layer", 1, 8, None),
            ("unit", 1, 5, None),
            ("beyond", 1, 8, None),
        ],
    )
    def test_the_colours_show_the_selected_unit(
        self,
        when: str,
        layer: int,
        unit: int,
        pressed: int | None,
        seen: Any,
        states: np.ndarray,
    ) -> None:
        shown, (paper, minus, plus) = seen[0][when], map(rgb, seen[1])
        assert (int(shown["layer"]) + 1, int(shown["unit"])) == (layer, unit)
        assert shown["pressed"] == [str(index == pressed).lower() for index in range(2)]
        values = states[:, layer - 1, unit - 1, None]
        want = paper + np.abs(values) * (np.where(values < 0, minus, plus) - paper)
        got = [[float(n) for n in re.findall(r"[\d.]+", c)[-3:]] for c in shown["colours"]]
        # Colours are rounded to whole percents, values to 127 steps.
        np.testing.assert_allclose(got, want, atol=0.01)

    @pytest.mark.parametrize(
        "when, place",
        [
            ("first", 0),
            ("hover", 100),
            ("Home", 0),
            ("ArrowRight", 1),
            # After "/*\n *": the second character of the second line.
            ("ArrowDown", 4),
            ("End", len(inside.CODE) - 1),
            ("ArrowLeft", len(inside.CODE) - 2),
        ],
    )
    def test_the_value_that_is_shown(
        self, when: str, place: int, seen: Any, states: np.ndarray
    ) -> None:
        unit = 3 if when == "first" else 8
        line, character = inside.CODE.count("\n", 0, place) + 1, inside.CODE[place]
        name = {"\n": "end of line", "\t": "a tab", " ": "a space"}.get(character, character)
        label, number = seen[0][when]["value"].rsplit(": ", 1)
        assert label == f"Line {line}, {name}"
        assert float(number.replace("−", "-")) == pytest.approx(
            states[place, 0, unit - 1], abs=0.0091
        )

    def test_the_text_is_readable_on_every_colour(self, seen: Any) -> None:
        ink = luminance(np.array([int(n) for n in re.findall(r"\d+", seen[0]["ink"])[:3]]) / 255)
        for colour in map(rgb, seen[1]):
            low, high = sorted([ink, luminance(colour)])
            assert (high + 0.05) / (low + 0.05) >= 4.5
