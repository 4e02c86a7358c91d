"""Tests of the play: its text can be parsed, its losses are exact, its verse scans."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from jaxrnn.data import play
from jaxrnn.data.play import GRAMMAR, VERSE, WORDS, entropy_rate, write

pytestmark = pytest.mark.once

LONG = write(1_000_000)


def opening(alternative: str) -> str:
    return alternative.split("{")[0]


def ways_on(ahead: str) -> list[tuple[float, str]]:
    """Return every expansion of a sentential form: its probability, and a form with a literal start."""
    if not ahead:
        ahead = "{unit}"
    if ahead[0] != "{":
        return [(1.0, ahead)]
    name, rest = ahead[1:].split("}", 1)
    lines = GRAMMAR[name]
    return [(p / len(lines), way) for line in lines for p, way in ways_on(line + rest)]


def next_character(beliefs: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return, for each next character, the forms after it and their probabilities."""
    after: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for ahead, belief in beliefs.items():
        for p, way in ways_on(ahead):
            after[way[0]][way[1:]] += belief * p
    return after


def read(text: str) -> Iterator[tuple[str, str]]:
    """Return the choices of a play as (name, alternative) in order, except for its last words."""
    ahead, at = "", 0
    while at < len(text) - 100:  # no opening is longer
        ahead = ahead or "{unit}"
        if ahead[0] == "{":
            name, rest = ahead[1:].split("}", 1)
            fits = {line for line in GRAMMAR[name] if text.startswith(opening(line), at)}
            assert len(fits) == 1, f"{name}: {fits} all fit {text[at : at + 40]!r}"
            (line,) = fits
            yield name, line
            ahead = line + rest
        literal = opening(ahead)
        assert text.startswith(literal, at)
        at += len(literal)
        ahead = ahead[len(literal) :]


def test_no_opening_is_a_prefix_of_another() -> None:
    for name, lines in GRAMMAR.items():
        distinct = set(lines)
        for line in distinct:
            alike = [other for other in distinct if opening(other).startswith(opening(line))]
            assert opening(line) and alike == [line], f"{name}: {alike}"


def test_nats_agree_with_the_forward_algorithm() -> None:
    """That algorithm sums over all derivations, so it does not assume that there is only one."""
    beliefs, seen = {"": 1.0}, []
    for char in LONG.text[:6000]:
        after = next_character(beliefs)
        mass = sum(sum(forms.values()) for forms in after.values())
        seen.append(math.log(mass) - math.log(sum(after[char].values())))
        kept = sum(after[char].values())
        beliefs = {form: p / kept for form, p in after[char].items()}
    np.testing.assert_allclose(LONG.nats[:6000], seen, rtol=0, atol=1e-9)
    assert np.count_nonzero(seen) > 500


def test_nats_of_a_whole_play_are_the_log_weights_of_its_choices() -> None:
    text, nats = LONG.text[:100_000], LONG.nats[:100_000]
    total = sum(
        math.log(len(GRAMMAR[name]) / GRAMMAR[name].count(line)) for name, line in read(text)
    )
    assert 0 <= nats.sum() - total < 50  # the nats of the last 100 characters, left unread


def test_next_character_probabilities_sum_to_one() -> None:
    for name, lines in GRAMMAR.items():
        continuations: dict[str, dict[str, float]] = defaultdict(dict)
        for start, losses, _ in play._compile(lines):
            assert len(start) == len(losses)
            for k, loss in enumerate(losses):
                continuations[start[:k]][start[k]] = math.exp(-loss)
        for prefix, chances in continuations.items():
            assert math.isclose(sum(chances.values()), 1, abs_tol=1e-12), (name, prefix)


def test_choices_have_the_declared_frequencies() -> None:
    """Pearson's chi-square at every choice, as a z-score, is within five standard deviations."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, line in read(LONG.text[:400_000]):
        counts[name][line] += 1
    assert counts.keys() == GRAMMAR.keys()
    for name, seen in counts.items():
        weights = Counter(GRAMMAR[name])
        expected = {line: seen.total() * n / weights.total() for line, n in weights.items()}
        chi2 = sum((seen[line] - n) ** 2 / n for line, n in expected.items())
        free = len(expected) - 1
        assert abs(chi2 - free) < 5 * math.sqrt(2 * free), name


def test_mean_loss_is_the_entropy_rate() -> None:
    """They agree within four standard errors, estimated from 200 blocks of 5000 characters."""
    blocks = LONG.nats.reshape(200, 5000).mean(axis=1)
    error = blocks.std(ddof=1) / math.sqrt(200)
    assert error < 0.002
    assert abs(LONG.nats.mean() - entropy_rate()) < 4 * error
    assert 0.45 < entropy_rate() < 0.8


def test_entropy_rate_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit has 1 + (3/2)/2 bits of choices and 1 + (1/4 + 1/4 + 4/2)/2 characters."""
    monkeypatch.setattr(play, "GRAMMAR", {"unit": ["a", "b{x}"], "x": ["c", "d", "efgh", "efgh"]})
    assert math.isclose(entropy_rate(), 7 / 9 * math.log(2), rel_tol=1e-12)


def test_entropy_rate_of_a_recursive_grammar_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping with probability 1/4 gives four choices, three letters and three dots on average."""
    monkeypatch.setattr(play, "GRAMMAR", {"unit": ["a{unit}", "b{unit}", "c{unit}", "..."]})
    assert math.isclose(entropy_rate(), 4 / 6 * math.log(4), rel_tol=1e-12)


# The words that templates spell out: one syllable, of either stress, unless listed here.
LONGER = {"thousand": "/x", "ever": "/x", "Alas": "x/", "Farewell": "x/"}
STRESS = {name: stress for stress, classes in WORDS.items() for name in classes}


@pytest.mark.parametrize("line", [line for template in VERSE for line in template.split("\n")])
def test_verse_is_iambic_pentameter(line: str) -> None:
    words = re.findall(r"\{\w+\}|\w+", line.replace("'s", "").replace("}s", "}"))
    stresses = [STRESS[w[1:-1]] if w[0] == "{" else LONGER.get(w, "?") for w in words]
    assert re.fullmatch(r"([x?][/?]){5}", "".join(stresses)), stresses


def spoken(words: str) -> int:
    """Count syllables by spelling: groups of vowels without a silent e, at least one per word."""
    count = 0
    for word in re.findall(r"[a-z]+", words.lower().replace("'s", "")):
        voiced = re.sub(r"(?<=[^aeiouyl])es?$|(?<=[aeiouy]l)es?$", "", word)
        groups = re.findall(r"[aeiou]+|(?<![aeiou])y(?![aeiou])", voiced)
        count += {"lonely": 2, "farewell": 2}.get(word) or max(1, len(groups))
    return count


@pytest.mark.parametrize("stress", WORDS)
def test_words_have_the_declared_syllables(stress: str) -> None:
    for words in WORDS[stress].values():
        for word in words.split(", "):
            assert spoken(word) == len(stress), word


def test_every_line_played_has_ten_syllables() -> None:
    """Syllables are counted in the text by spelling, independently of the grammar."""
    lines = LONG.text[:200_000].split("\n")[:-1]
    verse = [line for line in lines if line and not re.match(r"[A-Z]+:$|\[|SCENE", line)]
    assert {line for line in verse if spoken(line) != 10} == set()
    assert len(verse) > 3000


def test_speeches_headings_and_directions_are_separated() -> None:
    """Blank lines are between them, and no speech ends in mid-sentence."""
    blocks = LONG.text.split("\n\n")[:-1]
    speech = re.compile(r"[A-Z]+:(\n[A-Z][A-Za-z ,:;.!?']+)*\n[A-Z][A-Za-z ,:;.!?']+[.!?]")
    other = re.compile(r"\[[A-Z][A-Za-z ,]+\.\]|SCENE\. [A-Z][a-z ]+, [a-z ]+\.")
    for block in blocks:
        assert speech.fullmatch(block) or other.fullmatch(block), block
    assert "\nROMEO:\n" in LONG.text and "\n[Exit ROMEO.]\n" in LONG.text


def test_text_is_ascii_and_articles_fit_the_next_word() -> None:
    assert LONG.text.isascii() and len(LONG.text) == 1_000_000
    assert LONG.nats.shape == (1_000_000,) and LONG.nats.dtype == np.float64
    assert LONG.nats.min() == 0
    assert not re.search(r"\b[Aa] [aeiou]", LONG.text)


def test_each_seed_gives_its_own_play() -> None:
    digest = hashlib.sha256(LONG.text.encode()).hexdigest()
    assert digest == "7da4d92c65eafabde8cfd3b4be8f6a54f3768de8cd28f0a0c221c3e34c3c3100"
    assert write(2000).text == LONG.text[:2000]
    assert len({write(200, seed).text for seed in range(-10, 10)}) == 20


@pytest.mark.parametrize("length", [1, 2, 7, 100, 4999])
def test_a_longer_play_begins_with_the_shorter(length: int) -> None:
    short, longer = write(length, seed=3), write(5000, seed=3)
    assert short.text == longer.text[:length]
    np.testing.assert_array_equal(short.nats, longer.nats[:length])


@pytest.mark.parametrize("length", [0, -5])
def test_a_play_has_at_least_one_character(length: int) -> None:
    with pytest.raises(ValueError, match=f"length must be at least 1 character, got {length}"):
        write(length)
