"""An embedding is a one-hot vector times a matrix, computed as a lookup; related symbols come close.

    x_emb = x_onehot W_emb,   W_emb [V, E]     (row v of W_emb, where v is the symbol)

The product and the lookup are compared in values, gradients, time (of value and gradient) and
temporary memory, from a char-RNN's 65 x 64 over the lecture's 10,000 x 250 to 50,000 x 250. Then a
char-RNN learns the source of Linux, and the nearest neighbour (by cosine) of each character is
determined: is it of the same kind (vowel, consonant, capital, digit, punctuation) more often than
before training?

    python -m experiments embedding      4 min on one CPU core
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure
from experiments import Holds, Outcome, Verdict, _drawing, _text
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

ROW = 9
# The third size is the lecture's.
SIZES = [(65, 64), (1_000, 100), (10_000, 250), (50_000, 250)]
LECTURE = 2
# Symbols that are looked up at once.
SYMBOLS = 1_024
# Occurrences that a character must have to be considered.
OFTEN = 1_000
# The colour of each kind of character.
KINDS = {
    "vowel": _drawing.RED,
    "consonant": _drawing.BLUE,
    "capital": _drawing.GREEN,
    "digit": _drawing.ORANGE,
    "punctuation": _drawing.PINK,
}
WAYS = {
    "lookup": lambda table, symbols: table[symbols],
    "one-hot product": lambda table, symbols: jax.nn.one_hot(symbols, len(table)) @ table,
}


def compare(size: tuple[int, int], seeds: list[int], repeats: int) -> dict[str, Any]:
    """Compare lookup and product at one size: errors, seconds and temporary memory."""
    compiled: dict[str, Any] = {}
    errors = []
    for seed in seeds:
        keys = jax.random.split(jax.random.key(seed), 3)
        table = jax.random.normal(keys[0], size)
        symbols = jax.random.randint(keys[1], (SYMBOLS,), 0, size[0])
        cotangent = jax.random.normal(keys[2], (SYMBOLS, size[1]))
        for name, way in WAYS.items():

            def both(table: Any, symbols: Any, cotangent: Any, way: Any = way) -> Any:
                values, back = jax.vjp(lambda table: way(table, symbols), table)
                return values, back(cotangent)[0]

            if name not in compiled:
                compiled[name] = jax.jit(both).lower(table, symbols, cotangent).compile()
        want, got = (compiled[name](table, symbols, cotangent) for name in WAYS)
        errors.append([measure.error(g, w) for g, w in zip(got, want, strict=True)])
    runs = {
        name: lambda f=f: jax.block_until_ready(f(table, symbols, cotangent))
        for name, f in compiled.items()
    }
    times = measure.in_turns(runs, repeats)
    memory = {name: f.memory_analysis().temp_size_in_bytes for name, f in compiled.items()}
    return {
        "size": size,
        "errors": errors,
        "seconds": {name: each["seconds"] for name, each in times.items()},
        "scratch_bytes": memory,
    }


def settings(seed: int, quick: bool) -> TrainingConfig:
    """Return the settings of the char-RNN, whose embedding is narrow so that it must use all of it."""
    model, steps = charlm.ModelConfig(hidden_size=128, embedding_size=16), 10 if quick else 1000
    how = {"learning_rate": 5e-3, "eval_every": steps, "sample_every": 0, "seed": seed}
    return TrainingConfig(model, batch=64, seq_len=64, steps=steps, **how)


def kind(character: str) -> str:
    """Return the kind of a character, a key of KINDS."""
    if not character.isalnum():
        return "punctuation"
    if character.isdigit():
        return "digit"
    return "capital" if character.isupper() else "vowel" if character in "aeiou" else "consonant"


def neighbours(embedding: Any) -> Any:
    """Return the nearest other character of each character, by cosine."""
    rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    return (rows @ rows.T - 2 * np.eye(len(rows))).argmax(1)


def components(embedding: Any) -> tuple[Any, float]:
    """Return the first two principal components [V, 2] of the directions, and their variance share."""
    rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    u, widths, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return u[:, :2] * widths[:2], float((widths[:2] ** 2).sum() / (widths**2).sum())


def run(quick: bool) -> Outcome:
    seeds, repeats = ([0], 2) if quick else ([0, 1, 2, 3, 4], 7)
    sizes = [compare(size, seeds, repeats) for size in SIZES[: 2 if quick else None]]
    source = _text.find("linux", quick)
    corpus, _ = source.read()
    frequency = np.bincount(corpus.tokens, minlength=len(corpus.vocabulary))
    seen = np.flatnonzero(frequency >= OFTEN)
    # Only characters that can be shown: no spaces, and no parts of a longer code.
    seen = seen[(seen > ord(" ")) & (seen < 127)]
    characters = "".join(map(chr, seen))
    kinds = np.array([kind(c) for c in characters])
    losses = []
    embeddings = []
    for seed in seeds:
        run = _text.learn(source, settings(seed, quick))
        first = charlm.init(run.params.config, corpus.vocabulary, seed)
        losses.append(round(float(run.val_losses[-1]), 4))
        embeddings.append([np.asarray(p.embedding)[seen] for p in (first, run.params)])
    before, after = np.transpose([[share(kinds, e) for e in pair] for pair in embeddings])
    chance = float(np.mean([(kinds == k).sum() - 1 for k in kinds]) / (len(kinds) - 1))
    places, variance = components(embeddings[0][1])
    numbers: dict[str, Any] = {
        "symbols": SYMBOLS,
        "sizes": sizes,
        "same_kind": {"before": before.tolist(), "after": after.tolist(), "random": chance},
        "steps": settings(0, quick).steps,
        "validation_loss": losses,
        "characters": characters,
        "nearest": ["".join(characters[n] for n in neighbours(pair[1])) for pair in embeddings],
        "components_of_first_seed": places.round(4).tolist(),
        "variance_share": round(variance, 4),
    }
    return Outcome(numbers, seeds)


def share(kinds: Any, embedding: Any) -> float:
    """Return the share of characters whose nearest neighbour is of their own kind."""
    return float((kinds == kinds[neighbours(embedding)]).mean())


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    ms, scratch = ([f"{way}, {unit}" for way in WAYS] for unit in ("ms", "temporary MB"))
    rows = [["V x E", *ms, "ratio", *scratch, "error of values", "error of gradient"]]
    for each in numbers["sizes"]:
        took = [1e3 * statistics.median(s) for s in each["seconds"].values()]
        scratch = [f"{bytes / 1e6:.2f}" for bytes in each["scratch_bytes"].values()]
        worst = [f"{error:.1e}" for error in np.max(each["errors"], axis=0)]
        size = "{:,} x {}".format(*each["size"])
        times = [f"{ms:.3f}" for ms in took]
        rows.append([size, *times, f"{took[1] / took[0]:.1f}", *scratch, *worst])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    sizes, kinds = numbers["sizes"], numbers["same_kind"]
    equal = max(np.max(each["errors"]) for each in sizes) < 1e-5
    shown = sizes[min(LECTURE, len(sizes) - 1)]
    lookup, product = (statistics.median(shown["seconds"][way]) for way in WAYS)
    size = "{:,} x {}".format(*shown["size"])
    related = min(kinds["after"]) > max(kinds["random"], statistics.median(kinds["before"]))
    same, chance = statistics.median(kinds["after"]), kinds["random"]
    return Verdict(
        Holds.YES if equal and related else Holds.PARTLY if equal or related else Holds.NO,
        f"product and lookup {'agree' if equal else 'differ'}, and at {size} the lookup is "
        f"{product / lookup:.0f} times as fast. After training, the nearest neighbour of "
        f"{same:.0%} of the characters is of their own kind (by chance: {chance:.0%}).",
        f"행렬 곱과 룩업의 결과는 {'같고' if equal else '다르고'}, {size}에서 룩업이 "
        f"{product / lookup:.0f}배 빠릅니다. 학습 후 글자의 {same:.0%}는 가장 가까운 글자가 같은 "
        f"종류이며, 우연이라면 {chance:.0%}입니다.",
    )


def apart(places: Any, gap: float) -> Any:
    """Return places [V, 2], moved a little where two are closer than the gap."""
    places = np.array(places)
    for _ in range(100):
        away = places[:, None] - places[None]
        distance = np.linalg.norm(away, axis=-1, keepdims=True) + np.eye(len(places))[..., None]
        places += (np.maximum(gap / distance - 1, 0) / 2 * away).sum(1)
    return places


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (times, shares, axes) = _drawing.figure(3, height=3.6, height_ratios=[3.2, 1.9, 5.7])
    sizes = numbers["sizes"]
    entries = [size["size"][0] * size["size"][1] for size in sizes]
    ends = []
    for way, colour, marker in zip(WAYS, (_drawing.BLUE, _drawing.ORANGE), "os", strict=True):
        runs = 1e3 * np.transpose([size["seconds"][way] for size in sizes])
        middle = _drawing.band(times, entries, runs, colour, marker=marker, markersize=5)
        ends.append((middle[-1], way, colour))
    times.set(xscale="log", yscale="log")
    times.set_xticks(entries, ["{:,}\n× {}".format(*size["size"]) for size in sizes])
    times.minorticks_off()
    _drawing.label_ends(times, ends)
    title = f"Value and gradient of {numbers['symbols']:,} symbols"
    _drawing.name_axes(times, title, "size of the matrix, V × E", "milliseconds")
    kinds = numbers["same_kind"]
    for row, when in enumerate(("after", "before")):
        style = {"color": _drawing.BLUE, "alpha": 0.7, "markersize": 8}
        shares.plot(kinds[when], [row] * len(kinds[when]), "o", **style)
    shares.axvline(kinds["random"], color=_drawing.INK, linestyle="--", linewidth=1)
    shares.annotate("chance", (kinds["random"], 1.45), (4, 0), textcoords="offset points")
    shares.set(xlim=(0, 1), ylim=(-0.5, 1.9))
    shares.set_yticks([0, 1], ["after training", "before training"])
    title = f"Nearest neighbour of the same kind ({len(seeds)} seeds)"
    _drawing.name_axes(shares, title, "share of characters", "")
    places = np.array(numbers["components_of_first_seed"])
    width = np.ptp(places, axis=0).max()
    for character, (x, y) in zip(numbers["characters"], apart(places, 0.045 * width), strict=True):
        how = {"ha": "center", "va": "center", "weight": "bold", "parse_math": False}
        axes.text(x, y, character, color=KINDS[kind(character)], **how)
    low, high = places.min(0) - 0.04 * width, places.max(0) + 0.04 * width
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for line, (name, colour) in enumerate(KINDS.items()):
        place = (1.03, 0.95 - 0.07 * line)
        axes.annotate(name, place, xycoords="axes fraction", color=colour, fontsize=11)
    title = f"Embedding learnt from C source, seed {seeds[0]}"
    x = f"first component (both: {numbers['variance_share']:.0%} of the variance)"
    _drawing.name_axes(axes, title, x, "second component")
    return figure
