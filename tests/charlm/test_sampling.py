"""Sampling: the loop against the forward pass and a plain loop in Python, the draws against their
distribution, the truncated sets against numpy, streams against samples, and no recompilation."""

import codecs
import itertools
import logging
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import (
    InputError,
    ModelConfig,
    Params,
    SamplingOptions,
    Vocabulary,
    charlm,
    init,
    sample,
    sample_bytes,
    sample_bytes_many,
    sample_many,
    stream,
    stream_bytes,
)
from jaxrnn.charlm import decoding, sampling
from jaxrnn.charlm.decoder import STREAM_CHUNK, Decoder
from tests.support.oracle import TOLERANCES as ORACLE
from tests.support.oracle import assert_close, unchecked
from tests.support.problems import USUAL

VOCABULARY = Vocabulary.of("abcdefg \n")
SIZE = len(VOCABULARY)
MODES = ("categorical", "argmax", "after-space")
PRIME = "fed a cab"
# Tolerance of the loop's logits, relative to the largest logit of the forward pass.
LOGITS = ORACLE["float32"]

# Of 9 characters, so with 8 degrees of freedom; exceeded by chance once in 10,000 tests.
CHI_SQUARE = 31.8

modes = pytest.mark.parametrize("mode", MODES)
forward = jax.jit(charlm.forward)


def model(vocabulary: Vocabulary = VOCABULARY, **config: Any) -> Params:
    """Random parameters, whose seed and scale give argmax texts of many different characters."""
    rng = np.random.default_rng(38)
    sizes = ModelConfig(**{"cell": "gru", "hidden_size": 6, "embedding_size": 4} | config)
    params = jax.eval_shape(lambda: init(sizes, vocabulary))
    return jax.tree.map(lambda a: jnp.float32(1.5 * rng.standard_normal(a.shape)), params)


MODEL = model(layers=2)


def logits_of(params: Params, text: str) -> np.ndarray:
    """Logits [T, V] of the plain forward pass for the character after each character of a text."""
    tokens = jnp.asarray(params.vocabulary.encode(text), jnp.int32)[:, None]
    _, logits = forward(params, tokens, charlm.initial_carry(params.config, 1))
    return np.asarray(logits[:, 0])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(np.float64(logits) - logits.max())
    return weights / weights.sum()


def assert_drawn_from(tokens: np.ndarray, chances: np.ndarray) -> None:
    """Pearson's chi-square test."""
    observed = np.bincount(tokens, minlength=len(chances))
    expected = len(tokens) * chances
    assert expected.min() > 5  # or the test has no meaning
    assert ((observed - expected) ** 2 / expected).sum() < CHI_SQUARE


def nexts(params: Params, prime: str, count: int, **how: Any) -> np.ndarray:
    """Tokens [count] that `count` texts add to the prime."""
    texts = sample_many(params, prime, 1, count=count, **how)
    return params.vocabulary.encode("".join(text[-1] for text in texts))


# --- the loop -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "mode"),
    [(MODEL, "categorical"), (model(cell="lstm", embedding_size=0), "after-space")],
)
def test_the_loop_is_the_forward_pass(params: Params, mode: Any) -> None:
    """The logits from which each character is drawn, and the state, are those of `forward`."""
    decoder = Decoder(params, PRIME, SamplingOptions(mode=mode))
    text, seen = PRIME, []
    for _ in range(8):
        text += VOCABULARY.decode(decoder.draw(1)[:, 0])
        seen.append(decoder.state.logits[0])
    assert_close(jnp.stack(seen), logits_of(params, text)[len(PRIME) :], LOGITS)
    tokens = jnp.asarray(VOCABULARY.encode(text), jnp.int32)[:, None]
    carry, _ = forward(params, tokens, charlm.initial_carry(params.config, 1))
    assert_close(decoder.state.carry, carry, LOGITS)
    assert int(decoder.state.position) == len(text)


def test_argmax_is_a_plain_loop() -> None:
    step = jax.jit(charlm.step, static_argnums=0)
    weights = charlm.step_params(MODEL)
    carry, text = charlm.initial_carry(MODEL.config, 1), PRIME
    for place in range(len(PRIME) + 30):
        token = jnp.asarray(VOCABULARY.encode(text[place]), jnp.int32)
        carry, logits = step(MODEL.config, weights, carry, token)
        if place + 1 >= len(PRIME):
            text += VOCABULARY.characters[int(logits.argmax())]
    text = text[:-1]  # chosen, but past the 30
    assert sample(MODEL, PRIME, 30, mode="argmax") == text
    assert len(set(text[len(PRIME) :])) > 2


@pytest.mark.slow
@modes
def test_texts_begin_with_the_prime(mode: Any) -> None:
    """They have the length asked for, and text 0 does not depend on the number of texts."""
    prime = PRIME + " "
    texts = sample_many(MODEL, prime, 30, mode=mode, count=3)
    assert [len(text) for text in texts] == [len(prime) + 30] * 3
    assert all(text.startswith(prime) for text in texts)
    assert len(set(texts)) == (1 if mode == "argmax" else 3)
    assert sample(MODEL, prime, 30, mode=mode) == texts[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 16, 17, 700])
def test_primes_of_any_length_are_read_to_their_end(size: int) -> None:
    """An argmax text that is cut anywhere continues in the same way."""
    text = sample(MODEL, "a", 710, mode="argmax")
    assert sample(MODEL, text[:size], 10, mode="argmax") == text[: size + 10]


def test_length_zero_returns_the_prime() -> None:
    assert sample(MODEL, PRIME, 0) == PRIME
    assert sample_many(MODEL, PRIME, 0, count=2) == [PRIME, PRIME]
    assert list(stream(MODEL, PRIME, 0)) == [PRIME]


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("length", "how"),
    [
        (1, {}),
        (16, {"temperature": 2.0}),
        (17, {"mode": "after-space"}),
        (17, {"mode": "argmax"}),
        (20, {"top_k": 3, "seed": 3}),
        (20, {"top_p": 0.5, "seed": 4}),
    ],
)
def test_streams_are_samples(length: int, how: dict[str, Any]) -> None:
    pieces = list(stream(MODEL, PRIME, length, **how))
    assert pieces[0] == PRIME
    assert len(pieces) == 1 + math.ceil(length / STREAM_CHUNK)
    assert "".join(pieces) == sample(MODEL, PRIME, length, **how)


@pytest.mark.slow
def test_streams_without_a_length_do_not_end() -> None:
    pieces = list(itertools.islice(stream(MODEL, PRIME), 5))
    assert "".join(pieces) == sample(MODEL, PRIME, 4 * STREAM_CHUNK)


def parrot(cycle: bytes) -> Params:
    """A model of bytes that repeats `cycle`: unit i recognises byte i and predicts the next one."""
    here, ahead = np.frombuffer(cycle, np.uint8), np.frombuffer(cycle[1:] + cycle[:1], np.uint8)
    params = init(
        ModelConfig("rnn", hidden_size=len(cycle), embedding_size=0), Vocabulary.of_bytes()
    )
    units = np.arange(len(cycle))
    w_x = jnp.zeros_like(params.layers[0].w_x).at[here, units].set(9)
    layer = params.layers[0]._replace(w_x=w_x, w_h=0 * params.layers[0].w_h)
    w_out = jnp.zeros((len(cycle), 256)).at[units, ahead].set(9)
    return params.replace(layers=(layer,), w_out=w_out)


@pytest.mark.slow
@pytest.mark.parametrize("length", [144, 145, 147, 150])
def test_characters_cut_between_pieces_are_whole(length: int) -> None:
    """Nine bytes are repeated in pieces of 16, so every character is cut at each of its bytes.

    A character that the end of the text cuts is left out.
    """
    cycle = "é€😀".encode()
    params = parrot(cycle)
    text = "😀" + (cycle * 17)[:length].decode(errors="ignore")
    assert sample(params, "😀", length, mode="argmax") == text
    assert "".join(stream(params, "😀", length, mode="argmax")) == text


@pytest.mark.slow
def test_streams_of_random_bytes_are_samples() -> None:
    """Most of the bytes are not UTF-8: both functions replace every kind of error in the same way."""
    params = model(Vocabulary.of_bytes())
    text = sample(params, "é", 300, temperature=3.0)
    assert "".join(stream(params, "é", 300, temperature=3.0)) == text
    assert "\ufffd" in text


# --- the draws ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [2.0, 4.0, 8.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    tokens = nexts(MODEL, PRIME, 2000, temperature=temperature)
    assert_drawn_from(tokens, softmax(logits_of(MODEL, PRIME)[-1] / temperature))


@pytest.mark.slow
def test_frequencies_over_seeds_are_the_softmax() -> None:
    texts = [sample(MODEL, PRIME, 1, temperature=4.0, seed=seed) for seed in range(400)]
    tokens = VOCABULARY.encode("".join(text[-1] for text in texts))
    assert_drawn_from(tokens, softmax(logits_of(MODEL, PRIME)[-1] / 4))


@pytest.mark.slow
def test_draws_along_a_text_are_independent() -> None:
    """A model without memory: the character after the most likely one has the same distribution."""
    params = MODEL.replace(w_out=0 * MODEL.w_out, b_out=MODEL.b_out / 2)
    chances = softmax(np.asarray(params.b_out))
    drawn = VOCABULARY.encode(sample(params, "a", 4000)[1:])
    assert_drawn_from(drawn, chances)
    likeliest = chances.argmax()
    after = drawn[1:][drawn[:-1] == likeliest]
    assert_drawn_from(after, chances)


@pytest.mark.slow
def test_temperature_reaches_from_argmax_to_uniform() -> None:
    assert set(nexts(MODEL, PRIME, 2000, temperature=1e-3)) == {
        logits_of(MODEL, PRIME)[-1].argmax()
    }
    assert_drawn_from(nexts(MODEL, PRIME, 2000, temperature=1e4), np.full(SIZE, 1 / SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("smallest", [{"temperature": 1e-40}, {"top_p": 1e-46}])
def test_smallest_positive_numbers_are_argmax(smallest: dict[str, float]) -> None:
    """Numbers that float32 cannot distinguish from zero."""
    assert set(nexts(MODEL, PRIME, 2000, **smallest)) == {logits_of(MODEL, PRIME)[-1].argmax()}


@pytest.mark.slow
def test_after_space_draws_after_white_space_only() -> None:
    """Inside of words the most likely character follows, after a space or a line break any."""
    white = VOCABULARY.whitespace()
    spaced = MODEL.replace(b_out=MODEL.b_out + 2 * jnp.asarray(white, jnp.float32))
    texts = sample_many(spaced, PRIME, 20, mode="after-space", count=30)
    drawn = likeliest = 0
    for text in texts:
        best = logits_of(spaced, text).argmax(axis=-1)
        for place in range(len(PRIME), len(text)):
            same = VOCABULARY.characters[best[place - 1]] == text[place]
            if text[place - 1].isspace():
                drawn += not same
            else:
                assert same
                likeliest += 1
    assert drawn > 10 and likeliest > 10


@pytest.mark.slow
def test_texts_of_tokens() -> None:
    """The length counts tokens, and after-space draws after tokens that are white space."""
    vocabulary = Vocabulary.of("Cl Br  [Na+]\t \nC1 c", r"\[.*?\]|Br|Cl|\s+")
    params, prime = model(vocabulary), "C[Na+]  Cl"
    text = sample(params, prime, 40)
    assert text.startswith(prime) and "".join(stream(params, prime, 40)) == text
    assert len(sampling.Decoder(params, prime, SamplingOptions()).texts(40)[0]) == 4 + 40
    with pytest.raises(InputError, match=r"tokens are strings, not bytes"):
        sample_bytes(params, prime)
    decoder = sampling.Decoder(params, prime, SamplingOptions(mode="after-space"), 30)
    for tokens in decoder.texts(20):
        _, logits = forward(
            params, jnp.asarray(tokens[:, None]), charlm.initial_carry(params.config, 1)
        )
        best = np.asarray(logits[:, 0]).argmax(axis=-1)
        for place in range(4, len(tokens)):
            before = vocabulary.tokens[tokens[place - 1]]
            assert before.isspace() or tokens[place] == best[place - 1]


@pytest.mark.parametrize(
    ("vocabulary", "prime"),
    [
        (VOCABULARY, "\n"),
        (Vocabulary("ba"), "b"),
        (Vocabulary.of_bytes(), "\n"),
        (Vocabulary.of("Cl\nC", "Cl"), "\n"),
        (Vocabulary.of("ClCBr", "Br|Cl"), "Br"),
    ],
)
def test_the_default_prime(vocabulary: Vocabulary, prime: str) -> None:
    assert sampling.default_prime(vocabulary) == prime


@pytest.mark.slow
@pytest.mark.parametrize("space", [" ", "\n"])
def test_after_space_draws_from_the_softmax(space: str) -> None:
    prime = PRIME + space
    tokens = nexts(MODEL, prime, 2000, mode="after-space", temperature=2.0)
    assert_drawn_from(tokens, softmax(logits_of(MODEL, prime)[-1] / 2))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["categorical", "after-space"])
def test_the_seed_decides_the_text(mode: Any) -> None:
    once, again = (
        [
            tuple(
                sample_many(MODEL, PRIME + " ", 5, count=20, temperature=4.0, mode=mode, seed=seed)
            )
            for seed in (0, 1, 2**31, 2**32 - 1)
        ]
        for _ in range(2)
    )
    assert len(set(once)) == len(once)
    assert once == again


# --- top-k and top-p ----------------------------------------------------------------------------


def kept(logits: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """The k most likely; of those the fewest whose probabilities, scaled to a sum of 1, reach p."""
    order = np.argsort(-logits)[:top_k]
    reached = np.cumsum(softmax(logits[order]))
    return set(order[: 1 + np.searchsorted(reached, top_p)].tolist())


def truncated(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    return np.asarray(decoding.truncated(jnp.asarray(logits), jnp.int32(top_k), jnp.float32(top_p)))


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("top_k", [1, 2, 5, 20])
def test_truncated_sets_are_numpys(top_k: int, top_p: float) -> None:
    logits = np.float32(2 * np.random.default_rng(top_k).standard_normal((50, 20)))
    for before, after in zip(logits, truncated(logits, top_k, top_p), strict=True):
        inside = np.isfinite(after)
        assert set(np.flatnonzero(inside).tolist()) == kept(before, top_k, top_p)
        np.testing.assert_array_equal(after[inside], before[inside])


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "inside"), [(1, [1, 3]), (2, [1, 3]), (3, [1, 2, 3, 4])])
def test_equally_likely_characters_stay_together(top_k: int, inside: list[int]) -> None:
    got = truncated(np.float32([[1, 3, 2, 3, 2, 0]]), top_k, 1.0)
    assert np.flatnonzero(np.isfinite(got[0])).tolist() == inside


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "top_k", "top_p"),
    [
        ({"top_k": 3}, 3, 1.0),
        ({"top_p": 0.8}, SIZE, 0.8),
        ({"top_k": 4, "top_p": 0.7}, 4, 0.7),
        ({"top_k": SIZE}, SIZE, 1.0),
    ],
)
def test_truncated_draws_are_the_softmax_of_what_is_kept(
    how: dict[str, Any], top_k: int, top_p: float
) -> None:
    """The temperature is applied first."""
    logits = logits_of(MODEL, PRIME)[-1] / 2
    inside = sorted(kept(logits, top_k, top_p))
    tokens = nexts(MODEL, PRIME, 2000, temperature=2.0, **how)
    assert set(tokens.tolist()) == set(inside)
    chances = softmax(logits[inside])
    observed = np.bincount(tokens, minlength=SIZE)[inside] / len(tokens)
    assert (np.abs(observed - chances) < 5 * np.sqrt(chances / len(tokens))).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}])
def test_top_one_is_argmax(how: dict[str, Any]) -> None:
    texts = sample_many(MODEL, PRIME, 40, count=3, temperature=2.0, **how)
    assert texts == [sample(MODEL, PRIME, 40, mode="argmax")] * 3


# --- what is compiled ---------------------------------------------------------------------------


@pytest.mark.slow
def test_changed_options_do_not_recompile(caplog: pytest.LogCaptureFixture) -> None:
    """Nor do other lengths of prime and text up to the same power of 2."""
    params = model(hidden_size=7)  # used by no other test

    def compiled(**how: Any) -> list[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            sample(params, how.pop("prime", PRIME), how.pop("length", 20), **how)
        return [m for m in caplog.messages if m.startswith("Compiling") and "advance" in m]

    assert len(compiled()) == 1
    for change in [
        {"temperature": 0.5},
        {"seed": 1},
        {"seed": 2**32 - 1},
        {"prime": "a"},
        {"prime": "a" * 16},
        {"length": 17},
        {"length": 32},
    ]:
        assert compiled(**change) == [], change
    assert len(compiled(top_k=3)) == 1
    for change in [{"top_k": 5}, {"top_p": 0.5}, {"top_p": 0.9, "top_k": 2, "temperature": 2.0}]:
        assert compiled(**change) == [], change
    assert len(compiled(prime="a" * 17)) == len(compiled(length=33)) == 1


@pytest.mark.slow
def test_streams_compile_one_program(caplog: pytest.LogCaptureFixture) -> None:
    params = model(hidden_size=8)  # used by no other test
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        "".join(stream(params, PRIME, 70))
    assert len([m for m in caplog.messages if m.startswith("Compiling") and "advance" in m]) == 1


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [sample, stream])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prime": ""}, "prime is empty"),
        ({"prime": "a Q bad é"}, "never seen: 'Q' 'é';"),
        (
            {"temperature": 0.0},
            'temperature must be .* not 0.0; mode="argmax" always takes the most lik',
        ),
        ({"temperature": -1.0}, "temperature must be .* not -1"),
        ({"temperature": math.nan}, "temperature must be .* not nan"),
        ({"temperature": math.inf}, "temperature must be .* not inf"),
        ({"length": -1}, "length must be from 0 .* not -1"),
        ({"length": 2**30}, "length must be from 0 .* not 1073741824"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be .* not 0"),
        ({"top_p": 1.01}, "top_p must be .* not 1.01"),
        ({"top_p": math.nan}, "top_p must be .* not nan"),
        ({"seed": -1}, "seed must be .* not -1"),
        ({"seed": 2**32}, "seed must be .* not 4294967296"),
        ({"length": 2.5}, "length must be a whole number, not 2.5"),
        ({"length": True}, "length must be a whole number, not True"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"top_k": "3"}, "top_k must be a whole number, not '3'"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": np.float32(1)}, r"seed must be a whole number, not np.float32\(1.0\)"),
        ({"temperature": True}, "temperature must be a number, not True"),
        ({"temperature": "1"}, "temperature must be a number, not '1'"),
        ({"top_p": [0.5]}, r"top_p must be a number, not \[0.5\]"),
        ({"prime": ["a"]}, "the prime must be a str or bytes, not list"),
        ({"mode": "beam"}, "mode must be one of categorical, argmax, after-space, not 'beam'"),
    ],
)
def test_values_out_of_range_are_reported(write: Any, wrong: dict[str, Any], message: str) -> None:
    """The call raises the error; a stream does not wait until its first piece is asked for."""
    with unchecked(), pytest.raises(InputError, match=message):
        write(MODEL, **{"prime": PRIME, "length": 1} | wrong)


@pytest.mark.skipif(USUAL != "native", reason="waits for a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_on_a_cpu_are_those_of_the_compiled_recurrence(dtype: Any) -> None:
    """The weights are packed once for a text, and the text does not depend on how many are drawn."""
    params = init(ModelConfig("gru", layers=2, hidden_size=40, dtype=dtype), VOCABULARY, seed=1)
    decoder = Decoder(params, PRIME, SamplingOptions(), 2)
    arguments = decoder._config, decoder._weights, decoder.state, decoder.prime
    advance = partial(decoding.advance, mode="categorical", truncate=False, size=16)
    lengths = np.int32(len(PRIME)), np.int32(16)
    program = jax.jit(advance, static_argnums=0)
    lowered = program.lower(*arguments, *lengths, decoder._options)
    text = lowered.compile().as_text()
    inside, entry = text.split("ENTRY")
    assert '"jaxrnn_forward"' in inside and '"jaxrnn_pack"' not in inside
    assert '"jaxrnn_pack"' in entry
    many = sample_many(params, PRIME, 300, count=9, temperature=2.0)
    assert sample_many(params, PRIME, 300, count=1, temperature=2.0) == many[:1]
    assert sample_many(params, PRIME, 300, count=5, temperature=2.0) == many[:5]


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_is_at_least_one(count: Any) -> None:
    kind = "at least 1" if type(count) is int else "a whole number"
    with unchecked(), pytest.raises(InputError, match=f"count must be {kind}, not {count}"):
        sample_many(MODEL, PRIME, 1, count=count)


@pytest.mark.slow
def test_numbers_of_any_type() -> None:
    """Numbers of numpy and JAX give the same texts as those of Python."""
    plain = sample_many(MODEL, PRIME, 5, count=2, temperature=0.5, top_k=3, top_p=0.9, seed=7)
    for whole, real in ((np.int64, np.float32), (np.uint8, np.float64), (jnp.int32, jnp.float32)):
        how: dict[str, Any] = {"top_k": whole(3), "seed": whole(7), "top_p": real(0.9)}
        how |= {"temperature": real(0.5)}
        assert sample_many(MODEL, PRIME, whole(5), count=whole(2), **how) == plain
    pieces = stream(MODEL, PRIME, np.int64(5), **how)
    assert "".join(pieces) == plain[0]


def test_top_k_above_the_vocabulary_is_all_of_it() -> None:
    text = sample(MODEL, PRIME, 20, top_k=SIZE)
    assert sample(MODEL, PRIME, 20, top_k=SIZE + 1) == text
    assert sample(MODEL, PRIME, 20, top_k=10**20) == text


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_bytes_returns_bytes() -> None:
    """Any bytes, as here, where none is UTF-8."""
    cycle = b"\xe9\x00\xff\n"
    params = parrot(cycle)
    assert sample_bytes(params, b"\xff\n", 9, mode="argmax") == b"\xff\n" + (cycle * 3)[:9]
    texts = sample_bytes_many(params, b"\n", 5, mode="argmax", count=2)
    assert texts == [b"\n" + (cycle * 2)[:5]] * 2
    pieces = list(stream_bytes(params, b"\n", 40, mode="argmax"))
    assert pieces == [b"\n", cycle * 4, cycle * 4, cycle * 2]
    endless = itertools.islice(stream_bytes(params, b"\n", mode="argmax"), 5)
    assert b"".join(endless) == b"\n" + cycle * 16
    assert sample_bytes(params, b"\xe9", 0) == b"\xe9"


@pytest.mark.slow
def test_bytes_and_text_are_the_same_draws() -> None:
    params = model(Vocabulary.of_bytes())
    raw = sample_bytes(params, "é", 300, temperature=3.0)
    assert isinstance(raw, bytes) and len(raw) == 2 + 300
    assert sample(params, "é", 300, temperature=3.0) == codecs.utf_8_decode(raw, "replace")[0]
    assert b"".join(stream_bytes(params, "é", 300, temperature=3.0)) == raw


@pytest.mark.slow
def test_primes_of_bytes() -> None:
    """They may be bytes, or the str that Python makes of them on a command line."""
    params = model(Vocabulary.of_bytes())
    raw = sample_bytes(params, b"caf\xe9", 20)
    assert raw.startswith(b"caf\xe9")
    assert sample_bytes(params, "caf\udce9", 20) == raw
    assert sample(params, b"caf\xe9", 20) == sample(params, "caf\udce9", 20)
    assert sample(MODEL, PRIME.encode(), 20) == sample(MODEL, PRIME, 20)


@pytest.mark.parametrize("write", [sample_bytes, partial(sample_bytes_many, count=2), stream_bytes])
def test_a_model_of_characters_has_no_bytes(write: Any) -> None:
    with pytest.raises(InputError, match="characters, not bytes; use sample or stream"):
        write(MODEL, PRIME, 1)
