"""An endless verse play whose entropy is known exactly: the default training text.

The play is drawn from the grammar below, and every random choice can be read back from the text:
no alternative of a choice begins with the opening of another one, so the characters so far determine
the position in the grammar. Therefore the probability of each next character is known exactly, and
with it the loss that no model of the play can beat on average.

    play = write(1_000_000)     # play.text, and play.nats: the exact information of each character
    entropy_rate()              # nats per character of the endless play, in closed form
"""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Play(NamedTuple):
    """A play and the information of each of its characters, as `write` returns it.

    Attributes:
      text: exactly `length` ASCII characters.
      nats: float64 [length]; nats[i] is -ln P(text[i] | text[:i]) under the grammar, exact except for
        the rounding of one logarithm, and zero if the text so far allows only one character.
    """

    text: str
    nats: np.ndarray


def write(length: int = 1_000_000, seed: int = 0) -> Play:
    """Return the first `length` characters of the endless play numbered `seed`.

    The endless play depends on `seed` only, so a longer play begins with the shorter one, on any
    machine. The choices come from `random.Random.random`, whose sequence Python guarantees for all
    versions; NumPy does not guarantee that for its distributions.

    Raises:
      ValueError: for a length below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1 character, got {length}")
    # A string, because the integers 1 and -1 give the same sequence.
    draw = random.Random(str(seed)).random
    grammar = {f"{{{name}}}": _compile(lines) for name, lines in GRAMMAR.items()}
    text: list[str] = []
    nats: list[float] = []
    # What is still to be written, the next part last.
    ahead: list[str] = []
    while len(nats) < length:
        part = ahead.pop() if ahead else "{unit}"
        if part in grammar:
            choice = grammar[part]
            part, losses, rest = choice[int(draw() * len(choice))]
            ahead += rest
        else:
            losses = [0.0] * len(part)
        text.append(part)
        nats += losses
    return Play("".join(text)[:length], np.array(nats[:length]))


def entropy_rate() -> float:
    """Return the entropy of the endless play in nats per character, computed without sampling.

    It is the limit of the mean of `Play.nats`. The play is a sequence of independent units (a speech,
    a direction, a heading), so its rate is the expected nats of a unit divided by its expected
    number of characters. Both expectations solve one linear system: the expectation of a name is
    that of its own choice plus those of the names in its alternatives.
    """
    names = list(GRAMMAR)
    nats, chars = np.zeros((2, len(names)))
    # The expected number of {column} in one {row}.
    uses = np.zeros((len(names), len(names)))
    for row, lines in enumerate(GRAMMAR.values()):
        nats[row] = sum(sum(losses) for _, losses, _ in _compile(lines)) / len(lines)
        for line in lines:
            for part in _SLOT.split(line):
                if _SLOT.fullmatch(part):
                    uses[row, names.index(part[1:-1])] += 1 / len(lines)
                else:
                    chars[row] += len(part) / len(lines)
    totals = np.linalg.solve(np.eye(len(names)) - uses, np.stack([nats, chars], axis=1))
    unit_nats, unit_chars = totals[names.index("unit")]
    return float(unit_nats / unit_chars)


# The grammar. A name in braces is a choice among the alternatives of that name. Each class of words
# is named after one of them, so that the templates can be read as a play. Choices are uniform: an
# alternative listed n times is n times as likely.

# Words by stress (x weak, / strong) and class. Verbs are in the plural; a template adds the s.
WORDS = {
    "x": {
        "my": "my, thy, the, our, his, her, this, your, that, each, some, one",
    },
    "/": {
        "night": "night, heart, moon, crown, sword, grave, king, queen, ghost, dream, star, hand,"
        " tear, storm, song, fool, dove, thorn, flame, vow, lamb, bell, hat, dog, bed, cup, sea,"
        " boat, lip, shoe, wig, pie",
        "death": "death, time, hope, pride, grief, faith, fate, truth, love, youth, guilt, wrath,"
        " shame, war, peace, luck, gold, wine, dust, rain, spring, thirst, salt, cheese",
        "sweet": "sweet, cold, pale, dark, sad, proud, false, true, poor, kind, fair, stern, mild,"
        " vain, dear, soft, blind, brave, dull, deep, rare, wild, fat, mad",
        "love": "love, fear, haunt, mock, wound, guard, mourn, warm, wake, hate, drown, crown, rob,"
        " break, keep, serve, steal, feed, hide, trust, seek, tempt, greet, eat",
        "sleep": "sleep, weep, die, wake, sing, pray, burn, wait, drown, kneel, laugh, bleed,"
        " faint, starve, sigh, dream, fall, grieve, hope, fade, smile, rest, yield, sink",
    },
    "/x": {
        "sorrow": "sorrow, mother, brother, father, river, winter, sister, raven, tailor, city,"
        " body, lover, baker, lily, donkey, baby, pony, army, devil, angel, lady, honey, tiger,"
        " widow, summer, cousin, garden, candle, pillow, letter, husband, shadow",
        "weary": "weary, bitter, tender, hollow, silver, golden, silent, humble, frozen, simple,"
        " drowsy, wicked, lonely, noble, holy, pretty, mighty, greasy, lazy, rosy, merry, tiny,"
        " naked, civil, royal, sober, bony, windy, happy, hungry, broken, gentle",
    },
    "x/": {
        "forgive": "forgive, betray, adore, forget, forsake, reward, pursue, recall, bewail,"
        " admire, outlive, behold, implore, invite, obey, enjoy, annoy, avoid, defend, deceive,"
        " adorn, repay, repel, await, evade, exalt",
        "beneath": "beneath, upon, beside, within, above, behind, beyond, against, around, before",
        "tonight": "tonight, again, at last, in vain, too late, too soon, at dawn, alone,"
        " once more, with joy, in haste, unseen, for love, in dreams, by stealth, till dawn",
    },
}

# Iambic pentameter: every line has five feet, each a weak and a strong syllable.
VERSE = [
    "The {weary} {night} {forgive}s {my} {weary} {night}.",
    "My {sorrow} {love}s {my} {night}, and {love}s {my} {night};",
    "Thy {night} {forgive}s {my} {sorrow} and {my} {night}.",
    "O {weary} {night}, {forgive} {my} {weary} {night}!",
    "We {sleep} {beneath} {my} {weary} {night} {tonight}.",
    "A thousand {night}s {forgive} {my} {weary} {night}.",
    "Who {love}s {my} {sorrow} when {my} {sorrow} {sleep}s?",
    "What {sorrow} {sleep}s {beneath} {my} {weary} {night}?",
    "Where is {my} {sorrow}? Where {my} {weary} {night}?",
    "Why should {my} {night} {forgive} {my} {weary} {night}?",
    "When {death} {forgive}s {my} {weary} {night}, then {sleep}.",
    "Let {death} {forgive} {my} {weary} {sorrow}'s {night};",
    "Go, tell {my} {weary} {night}: {my} {sorrow} {sleep}s.",
    "Come, {weary} {death}, and {love} {my} {weary} {night};",
    "Alas, {my} {sorrow} {sleep}s {beneath} {my} {night}.",
    "Farewell, {my} {night}: {my} {weary} {sorrow} {sleep}s.",
    "Then {sleep}, my {weary} {sorrow}, {sleep} {tonight}.",
    "There {sleep}s {my} {sorrow}, {sweet} {beneath} {my} {night};",
    "Is {death} so {sweet}, that {night}s {forgive} {my} {night}?",
    "Was ever {night} so {sweet}, {my} {night} so {sweet}?",
    "How {sweet} {my} {sorrow} {sleep}s! How {sweet} {my} {night}!",
    "So {sweet} a {night} should {love} {my} {weary} {night}.",
    "Be {sweet}, my {sorrow}; {love} {my} {weary} {night}.",
    "No {night} is {sweet} that {love}s {my} {weary} {night}.",
    "Not all the {night}s {beneath} {my} {weary} {night}\n"
    "Can {love} {my} {weary} {night}, or {sleep} {tonight}.",
    "Nor {death} nor {weary} {death} {forgive}s {my} {night}.",
    "With {night}s and {weary} {night}s I {love} {my} {night},",
    "By {death} and {death}, I {love} {my} {weary} {night}!",
    "For {death}, my {sorrow}, I {forgive} {my} {night}.",
    "To {love} {my} {night} is but to {love} {my} {night}.",
    "They say {my} {sorrow} {love}s {my} {weary} {night};",
    "He that {forgive}s {my} {sorrow} {love}s {my} {night}.",
    "Yet still I {love} {my} {weary} {sorrow}'s {night}.",
    "I was {my} {weary} {sorrow}'s {night}, and {sweet},",
    "I would not {love} {my} {sorrow} for {my} {night}.",
    "As {weary} {night}s {forgive} {my} {weary} {night},\n"
    "So doth {my} {sorrow} {love} {my} {weary} {night}.",
    "If I {forgive} {my} {sorrow} and {my} {night},\n"
    "Then who shall {love} {my} {weary} {night} {tonight}?",
]

PROSE = {
    "ROMEO": "ROMEO, JULIET, KING, QUEEN, NURSE, FRIAR, FOOL, GHOST, CAPTAIN, WIDOW, TAILOR,"
    " PORTER",
    "A garden": "A garden, A street, A churchyard, A kitchen, A battlement, A cellar, A forest,"
    " A ship at anchor",
    "by moonlight": "by moonlight, in the rain, at supper time, before the battle, after the feast,"
    " long past midnight, on the eve of war, a little later",
    "trumpet": "trumpet, drum, lute, sneeze, wedding, nightingale, door, multitude",
}

# A line that stops in mid-sentence never ends a speech; after any other line it may end.
_LINES = [line + ("\n{more}" if line[-1] in ".!?" else "\n{line}") for line in VERSE]
_CLASSES = {name: words for classes in [*WORDS.values(), PROSE] for name, words in classes.items()}

GRAMMAR: dict[str, list[str]] = {
    **{name: words.split(", ") for name, words in _CLASSES.items()},
    "line": _LINES,
    "more": _LINES + ["\n"] * 20,
    "Exit": ["Exit {ROMEO}", "Enter {ROMEO}, {weary}", "They {sleep}", "A {trumpet} is heard"],
    "unit": [f"{name}:\n{{line}}" for name in PROSE["ROMEO"].split(", ")] * 2
    + ["[{Exit}.]\n\n"] * 2
    + ["SCENE. {A garden}, {by moonlight}.\n\n"],
}

_SLOT = re.compile(r"(\{.+?\})")


def _compile(lines: list[str]) -> list[tuple[str, list[float], list[str]]]:
    """Return each alternative as its opening, the nats of the opening's characters, and the rest.

    The opening is the part before the first name; the rest is reversed. No opening is a prefix of
    another, so the choice is known after the opening. The probability of a character is the share
    of the alternatives with that character, among those that agree with the text before it.
    """
    parts = [_SLOT.split(line) for line in lines]
    compiled = []
    for opening, *rest in parts:
        alike = [
            sum(other.startswith(opening[:end]) for other, *_ in parts)
            for end in range(len(opening) + 1)
        ]
        losses = [math.log(before / after) for before, after in pairwise(alike)]
        compiled.append((opening, losses, rest[::-1]))
    return compiled
