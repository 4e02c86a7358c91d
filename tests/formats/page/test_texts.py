"""Test the texts that a page writes in Chromium, and the controls that begin and end them."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from benchmarks.page import chromium
from jaxrnn.formats import page
from jaxrnn.formats.page import weights
from tests.support.pages import (
    LENGTH,
    MODELS,
    PRIME,
    model,
    text_of,
    tokens,
    wait,
    write,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium"),
]

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


# --- the same text as `jaxrnn.sample` ---


def test_random_numbers_are_those_of_jax(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["rnn"]))
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
    params = model(**MODELS[name])
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
    params = model(**MODELS["lstm-peephole-2-tied"])
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
    params = model(jaxrnn.Vocabulary.of_bytes(), cell="gru", hidden_size=24, embedding_size=8)
    browser = show(params)
    prime = "\ufeffé€𝄞"
    text = text_of(tokens(browser, prime))
    assert text == jaxrnn.sample(params, prime, LENGTH) and "\ufffd" in text
    write(browser, prime)
    assert browser.value("run.text") == text
    assert browser.value("view.characters.map(({text}) => text).join('')") == text
    assert browser.value("view.characters.slice(0, 4).map((c) => c.tokens.length)") == [3, 2, 3, 4]
    browser.value("view.clicked({target: view.characters[3].element})")
    # A character has the colour of the unit after its last byte.
    hidden = jaxrnn.activations(params, prime, ["hidden"])[0]["hidden"]
    unit = int(np.abs(hidden[11] - hidden[8]).argmax())
    browser.value(f"view.showUnit({unit})")
    levels = browser.value(
        "view.characters.slice(0, 4).map((c) => Number(c.element.dataset.level))"
    )
    np.testing.assert_allclose(levels, 8 * hidden[[2, 4, 7, 11], unit], atol=0.55)
    titles = browser.value("[...document.querySelectorAll('#likely h2')].map((h) => h.textContent)")
    assert titles == [f"0x{byte:X} was given" for byte in "𝄞".encode()]


# --- the controls ---


def test_an_endless_text_ends_when_stop_is_pressed(show: Callable[..., chromium.Browser]) -> None:
    params = model(**MODELS["lstm"])
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
    params = model(**MODELS["lstm"])
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
    params = model(**MODELS["lstm"])
    browser = show(params)
    browser.click("#endless")
    browser.click("#write")
    browser.click("#write")
    while browser.value("run.count") < 100:
        time.sleep(0.02)
    assert browser.value("byId('status').textContent") == "Writing …"
    browser.click("#endless")
    write(browser)
    assert browser.value("byId('text').textContent") == jaxrnn.sample(params, PRIME, LENGTH)


def test_unknown_characters_are_reported_and_nothing_is_written(
    show: Callable[..., chromium.Browser],
) -> None:
    browser = show(model(**MODELS["lstm"]))
    write(browser, "ROMEO: x\tX𝄞x", 9)
    says = "Characters that the model has never seen: x tab X"
    assert browser.value("byId('unknown').textContent") == says
    assert browser.value("[run.text, byId('prime').getAttribute('aria-invalid')]") == ["", "true"]
    write(browser, "", 9)
    assert "at least one character" in browser.value("byId('unknown').textContent")
    write(browser, "ROMEO", 9)
    assert browser.value("byId('unknown').textContent") == ""
    assert len(browser.value("run.text")) == 14


def test_an_invalid_option_is_shown(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    browser.value("byId('top-k').value = 0")
    browser.click("#write")
    # The browser puts the focus on the option, beside its message.
    assert browser.value("[byId('top-k').checkVisibility(), document.activeElement.id]") == [
        True, "top-k"
    ]  # fmt: skip
    assert browser.value("run.text") == ""
    browser.value("byId('top-k').value = 1")
    write(browser, PRIME, 9)
    assert len(browser.value("run.text")) == len(PRIME) + 9


@pytest.mark.parametrize("ends", ["\r", "\n"])
def test_line_ends_of_a_prime_are_those_of_the_model(
    ends: str, show: Callable[..., chromium.Browser]
) -> None:
    vocabulary = jaxrnn.Vocabulary(f"{ends}abc")
    params = model(vocabulary, cell="gru", hidden_size=24, embedding_size=8)
    browser = show(params)
    # The first text begins with the default prime.
    for typed, prime in ((None, ends), ("ab\n\nc", f"ab{ends}{ends}c")):
        if typed is not None:
            browser.value(f"byId('prime').value = {json.dumps(typed)}")
        browser.value("byId('length').value = 60")
        browser.click("#write")
        wait(browser)
        assert browser.value("byId('unknown').textContent") == ""
        assert browser.value("run.text") == jaxrnn.sample(params, prime, 60)
    browser.value("byId('stop-at').value = '\\\\n'")
    browser.click("#write")
    wait(browser)
    drawn = browser.value("run.text").removeprefix(prime)
    assert drawn.endswith(ends) and drawn.count(ends) == 1


@pytest.mark.parametrize(("delay", "count"), [(1500, 1), (40, 5)])
def test_the_speed_does_not_count_a_long_wait_for_a_frame(
    delay: int, count: int, show: Callable[..., chromium.Browser]
) -> None:
    browser = show(model(**MODELS["rnn"]))
    # As in a background tab, some frames come late.
    number, wall, pauses, speed = browser.value(
        f"""(async () => {{
          const frame = window.requestAnimationFrame, pauses = [];
          window.requestAnimationFrame = (callback) => {{
            const start = performance.now();
            const wait = pauses.length < {count} ? {delay} : 0;
            setTimeout(() => frame(() => {{
              pauses.push(performance.now() - start);
              callback();
            }}), wait);
          }};
          byId("length").value = 15000;
          const start = performance.now();
          await write();
          const wall = performance.now() - start;
          window.requestAnimationFrame = frame;
          return [run.count, wall, pauses, byId("speed").textContent];
        }})()"""
    )
    shown = 1000 * number / float(speed.split()[0].replace(",", ""))
    assert number == 15000 and len(pauses) >= count
    # At most 100 ms of a pause count. The rest of the difference is the beginning of the text.
    counted = wall - sum(max(pause - 100, 0) for pause in pauses)
    assert counted - 100 < shown < counted + 1


def test_copying_leaves_the_status(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["lstm"]))
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.call("Browser.grantPermissions", permissions=permissions)
    browser.value(f"byId('prime').value = {PRIME!r}")
    browser.click("#endless")
    browser.click("#write")
    while browser.value("run.count") < 100:
        time.sleep(0.02)
    browser.click("#copy")
    while not (says := browser.value("byId('copied').textContent")):
        time.sleep(0.02)
    assert browser.value("byId('status').textContent") == "Writing …"
    copied = browser.value("navigator.clipboard.readText()")
    assert says == f"{len(copied):,} characters copied." and len(copied) >= 100
    browser.click("#stop")
    wait(browser)
    assert browser.value("run.text").startswith(copied)
    browser.click("#endless")
    write(browser)
    assert browser.value("byId('copied').textContent") == ""


def test_the_note_about_dropped_characters_is_true(show: Callable[..., chromium.Browser]) -> None:
    browser = show(model(**MODELS["rnn"]))
    browser.click("#endless")
    browser.click("#write")
    until = time.monotonic() + 60
    while browser.value("byId('dropped').hidden"):
        assert time.monotonic() < until
        time.sleep(0.1)
    stopped, dropped, says = browser.value(
        "[run.stopped, view.dropped, byId('dropped').textContent]"
    )
    assert not stopped and says.startswith(f"The first {dropped:,} characters are no longer shown")
    browser.click("#stop")
    wait(browser)
    browser.click("#endless")
    write(browser)
    assert browser.value("[byId('dropped').hidden, view.characters.length]") == [
        True, len(PRIME) + LENGTH
    ]  # fmt: skip


def test_the_beginning_of_a_very_long_text_is_dropped(
    show: Callable[..., chromium.Browser],
) -> None:
    browser = show(model(**MODELS["rnn"]))
    browser.value("byId('length').value = 20500")
    browser.click("#write")
    wait(browser)
    whole, shown = browser.value("[run.text, byId('text').textContent]")
    assert len(whole) == 20501 and shown == whole[501:]
    assert browser.value("byId('dropped').textContent").startswith("The first 501 characters")
    assert browser.value("byId('text').querySelectorAll('.line:empty').length") == 0
