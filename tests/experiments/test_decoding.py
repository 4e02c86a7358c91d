"""Test the measures of `decoding` on texts whose loops and pieces are known."""

import random

import pytest

from experiments import decoding

pytestmark = pytest.mark.once

# 49 characters.
SENTENCE = "the state of the king is the state of the crown, "


def noise(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz ", k=length))


@pytest.mark.parametrize("tail", [0, 1, 30])
def test_a_loop_is_found_where_it_begins(tail: int) -> None:
    text = noise(200) + "!" + 3 * SENTENCE + SENTENCE[:tail]
    assert decoding.loop(text) == (201, len(SENTENCE))


def test_a_text_may_be_a_loop_from_its_first_character() -> None:
    assert decoding.loop(40 * "ab") == (0, 2)


@pytest.mark.parametrize(
    "text",
    [
        noise(2000),
        # Repeated only twice.
        noise(200) + 2 * SENTENCE,
        # Repeated, and then left.
        noise(200) + 3 * SENTENCE + "!",
        # Too short for a loop.
        noise(200) + 20 * "\n",
        "a",
    ],
)
def test_other_texts_end_in_no_loop(text: str) -> None:
    assert decoding.loop(text) is None


def test_a_piece_counts_as_used_from_its_second_time_on() -> None:
    used = decoding.used_before("abcdefghij" + "-" + "abcdefghij" + "-" + "abcdefghij")
    assert used.tolist() == [False] * 11 + [True] * (len(used) - 11)
    assert not decoding.used_before("abcdefghijk").any()


def test_the_measures_of_a_text() -> None:
    learnt = "To be, or not to be: that is the question."
    known = set(decoding.words(learnt)), set(decoding.pieces(learnt))
    assert decoding.measure(learnt, *known) == [0, 0, 0]
    again, strange, new = decoding.measure("xx be or nott to be or nott to zz", *known)
    # The text has 33 characters, the second " be or nott to " has 15.
    pieces = 24
    assert again == pytest.approx(6 / pieces)
    # The first and the last word do not count.
    assert strange == pytest.approx(2 / 8)
    assert new == 1


def test_no_blank_line_ends_a_table_of_samples() -> None:
    text = "A:\n\nb\n\n\n" + 100 * "c <d>\n\n"
    texts = {way: [[text, text]] for way in [*decoding.WAYS, decoding.REAL]}
    page = decoding.samples(texts, ["A:\n", "B:\n"])
    tables = [part for part in page.split("\n\n") if "<td>" in part]
    assert sum(part.count("<td>") for part in tables) == 2 * len(texts)
    assert all(part.strip().endswith("</table>") and "<d>" not in part for part in tables)
