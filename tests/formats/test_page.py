"""Test the page of a model without opening it: its content, rounded weights, the loss of quality."""

import base64
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.errors import InputError
from jaxrnn.formats import page
from jaxrnn.formats.page import quality, weights
from tests.support import pages

LSTM = {"cell": "lstm", "hidden_size": 12, "embedding_size": 5, "peephole": True}


def content(path: Path) -> Any:
    """Return what the JavaScript of a page reads."""
    found = re.search(
        r'<script id="model" type="application/json">(.*?)</script>', path.read_text()
    )
    assert found
    return json.loads(found[1])


def numbers(array: Any) -> np.ndarray:
    """Return the numbers of an array of a page before they are scaled."""
    raw = np.frombuffer(base64.b64decode(array["data"]), np.dtype(array["type"]).newbyteorder("<"))
    return raw.reshape(array["shape"])


# --- what a page holds ---


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_page_is_one_file_that_refers_to_no_other(kind: page.Weights, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    written = page.write(pages.model(**LSTM), file, weights=kind, title="Nomen est <omen> & more")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    text = file.read_text(encoding="utf-8")
    assert written.size == file.stat().st_size
    without_weights = re.sub(r'"data":"[^"]*"|"scales":"[^"]*"', "", text)
    outside = r"\b(src|href|srcset|action)\s*=|url\(|@import|\bimport\b|//\w"
    assert not re.search(outside, without_weights)
    assert "default-src 'none'" in text and '<html lang="en">' in text and "{{" not in text
    title = html.escape("Nomen est <omen> & more")
    assert f"<title>{title}</title>" in text and f"<h1>{title}</h1>" in text
    assert text.count("<script") == text.count("</script>") == 1 + len(page.SCRIPTS)


def test_a_page_describes_its_model(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    page.write(pages.model(**LSTM | {"layers": 2}), file, weights="float32")
    # w_x, w_h, b and peepholes of both layers, the embedding, the output layer.
    size = len(pages.VOCABULARY)
    count = (5 + 12) * 48 + 48 + 36 + (12 + 12) * 48 + 48 + 36 + 5 * size + 13 * size
    says = (
        f"An LSTM with peepholes, with 2 layers of 12 units and {count:,} parameters that predicts"
    )
    assert f"<p>{says} the next of {size} characters.</p>" in file.read_text()
    assert "exactly those of the model (float32)" in file.read_text()


def test_characters_are_code_points_and_white_space_is_python_s(tmp_path: Path) -> None:
    # Half of a surrogate pair before the other half, and a space that JavaScript does not know.
    characters = "\ud834\udd1e\x1f <\u2028\U0001d11e"
    params = pages.model(jaxrnn.Vocabulary(characters), cell="rnn", hidden_size=3)
    page.write(params, tmp_path / "page.html", weights="float32")
    held = content(tmp_path / "page.html")
    assert held["characters"] == [ord(c) for c in characters]
    assert held["whitespace"] == [2, 3, 5] and not held["by_bytes"]
    params = pages.model(jaxrnn.Vocabulary.of_bytes(), cell="rnn", hidden_size=3)
    page.write(params, tmp_path / "page.html", weights="float32")
    held = content(tmp_path / "page.html")
    assert held["by_bytes"] and held["characters"] == []
    assert held["whitespace"] == [*range(9, 14), *range(28, 33)]


def test_the_dtype_of_the_products_does_not_change_the_page(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4, "embedding_size": 4}
    for dtype in ("float32", "bfloat16"):
        page.write(pages.model(dtype=dtype, **sizes), tmp_path / dtype, weights="int8")
    assert (tmp_path / "float32").read_bytes() == (tmp_path / "bfloat16").read_bytes()


class Named(os.PathLike[str]):
    """A path that is neither a str nor a Path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __fspath__(self) -> str:
        return self.name


@pytest.mark.parametrize("kind", [str, Named])
def test_a_path_is_a_str_or_path_like(kind: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    written = page.write(pages.model(**LSTM), kind(str(file)), weights="float32")
    assert file.stat().st_size == written.size


def test_a_title_may_hold_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    title = "n\udcff.txt \ud834\U0001d11e"
    page.write(pages.model(**LSTM), tmp_path / "page.html", weights="float32", title=title)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>n\ufffd.txt \ufffd\U0001d11e</title>" in text


# --- rounding ---


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_matrices_are_rounded_and_vectors_are_not(
    kind: page.Weights, tie: bool, tmp_path: Path
) -> None:
    params = pages.model(**LSTM | {"tie": tie, "embedding_size": 12, "layers": 2})
    page.write(params, tmp_path / "page.html", weights=kind)
    held = content(tmp_path / "page.html")
    matrices = [(held["embedding"], params.embedding)]
    matrices += [] if tie else [(held["w_out"], params.w_out)]
    assert (held["w_out"] is None) == tie
    vectors = [(held["b_out"], params.b_out)]
    for layer, given in zip(held["layers"], params.layers, strict=True):
        assert layer.keys() == {"w_x", "w_h", "b", "w_c"}
        matrices += [(layer["w_x"], given.w_x), (layer["w_h"], given.w_h)]
        vectors += [(layer["b"], given.b), (layer["w_c"], given.w_c)]
    for array, given in vectors:
        np.testing.assert_array_equal(numbers(array), np.asarray(given), strict=True)
    for array, given in matrices:
        if kind == "int8":
            check_eight_bits(array, np.asarray(given), by_rows=array is held["embedding"])
        else:
            np.testing.assert_array_equal(numbers(array), np.asarray(given).astype(kind))


def check_eight_bits(array: Any, given: np.ndarray, by_rows: bool) -> None:
    """Check that each number is the nearest one, and that the largest of a row or column is 127."""
    axis = 1 if by_rows else 0
    assert array["scaled"] == ("rows" if by_rows else "columns")
    scales = np.frombuffer(base64.b64decode(array["scales"]), "<f4").astype(np.float64)
    steps, scales = numbers(array).astype(np.float64), np.expand_dims(scales, axis)
    np.testing.assert_array_equal(np.abs(steps).max(axis), 127)
    # Half a step, and the rounding of the division by the scale.
    assert (np.abs(steps * scales - given) <= 0.5001 * scales).all()


def test_numbers_beyond_float16_keep_their_array_in_float32() -> None:
    params = pages.model(**LSTM)
    layer = params.layers[0]
    large = params.replace(layers=(layer._replace(w_x=layer.w_x.at[0, 0].set(7e4)),))  # type: ignore[attr-defined]
    rounded = weights.rounded(large, "float16")
    assert rounded.layers[0].w_x.stored.dtype == np.float32
    assert rounded.layers[0].w_h.stored.dtype == np.float16
    assert np.isfinite(weights.values(rounded).layers[0].w_x).all()


def test_a_column_of_zeros_stays_zero() -> None:
    params = pages.model(**LSTM)
    zero = params.replace(w_out=params.w_out.at[:, 3].set(0))  # type: ignore[attr-defined]
    values = weights.values(weights.rounded(zero, "int8")).w_out
    assert (values[:, 3] == 0).all() and np.isfinite(values).all()


# --- the loss of quality ---


def log_probabilities(params: jaxrnn.Params, tokens: np.ndarray) -> np.ndarray:
    """Run a plain RNN in float64, in numpy, and return its predictions [N, V]."""
    embedding, w_out, b_out = (
        np.asarray(a, np.float64) for a in (params.embedding, params.w_out, params.b_out)
    )
    w_x, w_h, b = (np.asarray(a, np.float64) for a in params.layers[0])
    h, logits = np.zeros(len(w_h)), []
    for token in tokens:
        h = np.tanh(embedding[token] @ w_x + b + h @ w_h)
        logits.append(h @ w_out + b_out)
    logits = np.array(logits)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.slow
def test_the_loss_is_the_divergence_on_a_text_of_the_model(tmp_path: Path) -> None:
    params = pages.model(cell="rnn", hidden_size=20, embedding_size=6)
    written = page.write(params, tmp_path / "page.html", weights="int8")
    text = jaxrnn.sample(params, "\n", quality.LENGTH)
    tokens = pages.VOCABULARY.encode(text)
    p = log_probabilities(params, tokens)
    q = log_probabilities(weights.values(weights.rounded(params, "int8")), tokens)
    assert written.divergence == pytest.approx(
        float(np.mean((np.exp(p) * (p - q)).sum(-1))), rel=0.02
    )
    assert written.same == pytest.approx(float(np.mean(p.argmax(-1) == q.argmax(-1))), abs=0.002)
    assert 0 < written.divergence < 0.01 and 0.9 < written.same < 1
    says = f"adds {written.divergence:.5f} nats per character (KL divergence)"
    assert says in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_float32_loses_nothing_and_int8_loses_more_than_float16(tmp_path: Path) -> None:
    params = pages.model(**LSTM)
    lost = {
        kind: page.write(params, tmp_path / "page.html", weights=kind)
        for kind in ("float32", "float16", "int8")
    }
    assert lost["float32"][1:] == (0, 1)
    assert 0 < lost["float16"].divergence < lost["int8"].divergence / 100
    assert lost["float32"].size > lost["float16"].size > lost["int8"].size


# --- what a page refuses ---


def test_other_cells_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    params = jaxrnn.init(jaxrnn.ModelConfig(cell="mgu", hidden_size=4), pages.VOCABULARY)
    with pytest.raises(InputError, match="rnn, lstm, gru, not 'mgu'"):
        page.write(params, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    assert "mingru" in str(page.unsupported_reason(jaxrnn.ModelConfig(cell="mingru")))


def test_tokens_of_a_pattern_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    vocabulary = jaxrnn.Vocabulary.of("CCl\n", "Cl")
    params = jaxrnn.init(jaxrnn.ModelConfig(hidden_size=4), vocabulary)
    with pytest.raises(InputError, match="not the tokens of a regular expression; give a model"):
        page.write(params, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_lecture_s_cells_are_supported(cell: Any) -> None:
    config = jaxrnn.ModelConfig(cell=cell, activation="relu", peephole=True, reset="after")
    assert page.unsupported_reason(config) is None


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_parameters_that_are_not_finite_are_refused(
    kind: page.Weights, number: float, tmp_path: Path
) -> None:
    params = pages.model(**LSTM)
    layer = params.layers[0]
    for changed in (
        {"layers": (layer._replace(w_h=layer.w_h.at[1, 2].set(number)),)},
        {"b_out": jnp.full_like(params.b_out, number)},
    ):
        diverged = params.replace(**changed)  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="infinite or not a number"):
            page.write(diverged, tmp_path / "page.html", weights=kind)
    assert not list(tmp_path.iterdir())


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float32, float16, int8, not 'int4'"):
        page.write.__wrapped__(  # type: ignore[attr-defined]
            pages.model(**LSTM), tmp_path / "page.html", weights="int4"
        )
