"""Test the pieces of a text, and the information of their characters."""

import numpy as np
import pytest

from jaxrnn import InputError, Vocabulary
from jaxrnn.scores import pieces as module
from jaxrnn.scores.pieces import as_lines, per_character, pieces

pytestmark = pytest.mark.once


def test_pieces_end_with_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 6)
    chunks = ["ab\na", "b", "bb\n\na", "aaa", "aaaa", "a\nb"]
    found = [piece.text for piece in pieces(chunks, Vocabulary("\nab"))]
    assert found == ["ab\n", "abbb\n\n", "aaaaaaaa", "a\n", "b"]


def test_long_lines_are_cut_where_a_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pattern takes "aaab" as one token, but "aaa" as three."""
    monkeypatch.setattr(module, "LONGEST", 60)
    monkeypatch.setattr(module, "HELD_BACK", 20)
    rng = np.random.default_rng(0)
    for pattern in (r"\w+", "a+b|[ab]"):
        words = ["a" * rng.integers(1, 9) + "b" * rng.integers(2) for _ in range(200)]
        text = " ".join(words) + "\n" + "".join(words)[:300].replace("ba", "b a") + "\nab"
        vocabulary = Vocabulary.of(text, pattern)
        found = list(pieces([text[at : at + 7] for at in range(0, len(text), 7)], vocabulary))
        assert "".join(piece.text for piece in found) == text
        assert max(len(piece.text) for piece in found) < 70 and len(found) > 20
        tokens = np.concatenate([piece.tokens for piece in found])
        np.testing.assert_array_equal(tokens, vocabulary.encode(text))


def test_a_token_longer_than_a_piece_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of buffered characters stays bounded for any text."""
    monkeypatch.setattr(module, "LONGEST", 60)
    monkeypatch.setattr(module, "HELD_BACK", 20)
    vocabulary = Vocabulary(tokens=(" ", "a" * 63), pattern="a+")
    found = [piece.text for piece in pieces(["a" * 7] * 18, vocabulary)]
    assert found == ["a" * 63, "a" * 63]


def test_unknown_characters() -> None:
    vocabulary = Vocabulary("\nba")
    with pytest.raises(InputError, match="never seen: 'x'"):
        list(pieces(["ab\nx"], vocabulary))
    found = list(pieces(["xab\n\u20acx", "\n"], vocabulary, skip_unknown=True))
    assert [(piece.text, piece.left_out) for piece in found] == [("ab\n", 1), ("\n", 2)]
    assert found[0].tokens.tolist() == [2, 1, 0]


@pytest.mark.parametrize("text", ["\n\nab\n\n\na\nb b", "a\n\n", "x\n\na\nxx\nb", "\n\n", "x"])
@pytest.mark.parametrize("pattern", ["", "[ab]+"])
def test_lines_are_those_of_training(
    text: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters that the model does not know do not fill a line."""
    monkeypatch.setattr(module, "LONGEST", 2)
    monkeypatch.setattr(module, "HELD_BACK", 1)
    vocabulary = Vocabulary.of("ab b\na", pattern)
    known = [line for line in text.replace("x", "").split("\n") if line]
    for size in (1, 3, 99):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        found = list(as_lines(pieces(chunks, vocabulary, skip_unknown=True), vocabulary))
        assert "".join(piece.text for piece in found) == "".join(line + "\n" for line in known)
        for piece in found:
            assert vocabulary.decode(piece.tokens) == piece.text
        assert sum(piece.left_out for piece in found) == text.count("x")


def test_bytes_that_are_cut_inside_of_a_character() -> None:
    raw = "caf\xe9 \u20ac\n\U0001f600".encode() + b"\xff\xe2\x82"
    vocabulary = Vocabulary.of_bytes()
    found = list(pieces([raw[at : at + 1] for at in range(len(raw))], vocabulary))
    assert b"".join(piece.raw for piece in found) == raw
    assert [piece.text for piece in found] == ["caf\xe9 \u20ac\n", "\U0001f600\udcff\udce2\udc82"]
    np.testing.assert_array_equal(found[0].tokens, np.frombuffer(raw[:10], np.uint8))
    # The bytes of a character are added.
    nats = np.arange(1, 11, dtype=np.float32)
    assert per_character(vocabulary, found[0], nats).tolist() == [1, 2, 3, 9, 6, 24, 10]
    nats = np.arange(1, 8, dtype=np.float32)
    assert per_character(vocabulary, found[1], nats).tolist() == [10, 5, 6, 7]
