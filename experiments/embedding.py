"""An embedding is a one-hot vector times a matrix, computed as a lookup; related symbols come close.

    x_emb = x_onehot W_emb,   W_emb [V, E]     (row v of W_emb, where v is the symbol)

The product and the lookup are compared in values, gradients, time (of value and gradient) and
temporary memory, from a char-RNN's 65 x 64 over the lecture's 10,000 x 250 to 50,000 x 250. Then a
char-RNN learns the source of Linux, and the nearest neighbour (by cosine) of each character is
determined: is it of the same kind (vowel, consonant, capital, digit, punctuation) more often than
before training?

    python -m experiments embedding      about 3 min on two CPU cores, or 39 s with trained models
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from experiments import Outcome, _drawing, _text
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

ROW = 9
SIZES = [(65, 64), (1_000, 100), (10_000, 250), (50_000, 250)]
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


def run(quick: bool) -> Outcome:
    seeds, repeats = ([0], 2) if quick else ([0, 1, 2], 7)
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
        losses.append(float(run.val_losses[-1]))
        embeddings.append([np.asarray(p.embedding)[seen] for p in (first, run.params)])
    same = [[share(kinds, embedding) for embedding in pair] for pair in embeddings]
    chance = float(np.mean([(kinds == k).sum() - 1 for k in kinds]) / (len(kinds) - 1))

    ms, scratch = ([f"{way}, {unit}" for way in WAYS] for unit in ("ms", "scratch MB"))
    rows = [["V x E", *ms, "ratio", *scratch, "error of values", "error of gradient"]]
    for each in sizes:
        took = [1e3 * statistics.median(s) for s in each["seconds"].values()]
        scratch = [f"{bytes / 1e6:.2f}" for bytes in each["scratch_bytes"].values()]
        worst = [f"{error:.1e}" for error in np.max(each["errors"], axis=0)]
        size = "{:,} x {}".format(*each["size"])
        rows.append(
            [size, *[f"{ms:.3f}" for ms in took], f"{took[1] / took[0]:.1f}", *scratch, *worst]
        )
    before, after = np.transpose(same)
    numbers: dict[str, Any] = {
        "symbols": SYMBOLS,
        "sizes": sizes,
        "same_kind": {"before": before.tolist(), "after": after.tolist(), "random": chance},
        "steps": settings(0, quick).steps,
        "validation_loss": losses,
        "nearest": [
            {c: characters[n] for c, n in zip(characters, neighbours(pair[1]), strict=True)}
            for pair in embeddings
        ],
    }
    return Outcome(rows, numbers, seeds, draw(sizes, characters, embeddings[0][1]))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    sizes = numbers["sizes"]
    kinds = numbers["same_kind"]
    values, gradients = np.max([each["errors"] for each in sizes], axis=(0, 1))
    # The third size is the lecture's.
    lecture = sizes[min(2, len(sizes) - 1)]
    lookup, product = (1e3 * statistics.median(lecture["seconds"][way]) for way in WAYS)
    return (
        f"Product and lookup differ by at most {values:.1e} of the largest value and "
        f"{gradients:.1e} of the largest gradient. At {lecture['size'][0]:,} x "
        f"{lecture['size'][1]} and {numbers['symbols']:,} symbols, the product takes "
        f"{product:.1f} ms and the lookup {lookup:.2f} ms. Characters of C source whose nearest "
        f"neighbour is of their own kind: {span(kinds['before'])} before training, "
        f"{span(kinds['after'])} after {numbers['steps']} steps (shares, range of {len(seeds)} "
        f"seeds; by chance {kinds['random']:.2f})."
    )


def share(kinds: Any, embedding: Any) -> float:
    """Return the share of characters whose nearest neighbour is of their own kind."""
    return float((kinds == kinds[neighbours(embedding)]).mean())


def span(values: Any) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def draw(sizes: Any, characters: str, embedding: Any) -> Any:
    figure, panels = _drawing.figure(3, 15, 5, width_ratios=[1, 1, 1.5])
    entries = [size["size"][0] * size["size"][1] for size in sizes]
    names = ["{:,}\n× {}".format(*size["size"]) for size in sizes]
    for axes, unit in zip(panels, ("seconds", "scratch_bytes"), strict=False):
        labels = []
        for way, colour in zip(WAYS, _drawing.COLOURS, strict=False):
            values = np.array([size[unit][way] for size in sizes], float).reshape(len(sizes), -1).T
            values = 1e3 * values if unit == "seconds" else np.maximum(values, 1) / 1e6
            end = _drawing.band(axes, entries, values, colour, marker="o", markersize=4)[-1]
            labels.append((end, way, colour))
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(entries, names, fontsize=8)
        axes.minorticks_off()
        _drawing.label_ends(axes, labels)
    title = f"Time, {SYMBOLS:,} symbols, value and gradient"
    _drawing.name_axes(panels[0], title, "V × E, entries of the matrix", "milliseconds")
    _drawing.name_axes(panels[1], "Memory besides inputs and results", "V × E", "megabytes")
    rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    u, widths, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    places = u[:, :2] * widths[:2]
    axes = panels[2]
    for character, (x, y) in zip(characters, places, strict=True):
        how = {"ha": "center", "va": "center", "weight": "bold", "parse_math": False}
        axes.text(x, y, character, color=KINDS[kind(character)], **how)
    axes.set(xlim=1.15 * np.array([places[:, 0].min(), places[:, 0].max()]))
    axes.set(ylim=1.15 * np.array([places[:, 1].min(), places[:, 1].max()]))
    for line, (name, colour) in enumerate(KINDS.items()):
        axes.annotate(
            name, (1.02, 0.97 - 0.05 * line), xycoords="axes fraction", color=colour, fontsize=9
        )
    share = (widths[:2] ** 2).sum() / (widths**2).sum()
    name = f"first principal component (the two hold {share:.0%} of the variance)"
    _drawing.name_axes(axes, "Embedding learnt from C source, seed 0", name, "second")
    return figure
