"""A char-RNN draws valid and new molecules; separate lines and tokens of several characters help.

A molecule is one line of SMILES (Weininger 1988). Three char-RNNs learn the same random molecules:

- text: the lines are one text, in which the state is carried on from line to line;
- lines: the state is reset at the start of each line (`--lines`), and the lines are shuffled;
- lines, tokens: the same, with tokens such as Cl, [nH] and [C@@H] (`--tokens`) in place of characters.

Each reads the file equally often and then draws 1000 molecules. A drawn molecule is valid if its
brackets, branches, bonds and ring closures are right and no atom has more bonds than it can have; it is
new if it is not among the molecules of the file. The loss of the first char-RNN is measured on other
molecules than that of the others: on the last tenth of the text, not on lines chosen at random.

    python -m experiments molecules      17 minutes on two CPU cores that did other work, too
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import jaxrnn
from experiments import Outcome, _drawing, _molecules

ROW = 19
MOLECULES = 10_000
DRAWN = 1000
HIDDEN = 256
BATCH = 64
SEQ_LEN = 64
PASSES = 8
# The settings in which the ways to read the molecules differ.
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "lines": {"lines": True},
    "lines, tokens": {"lines": True, "tokens": _molecules.LONG_TOKENS},
}


def learn(path: Path, kind: str, seed: int, steps: int | None) -> jaxrnn.Run:
    """Train a char-RNN on a file of molecules.

    Args:
      path: the file.
      kind: one of KINDS.
      seed: the random seed.
      steps: the number of training steps; None for PASSES passes.
    """
    length = {"epochs": PASSES} if steps is None else {"steps": steps}
    return jaxrnn.fit(
        path,
        hidden_size=HIDDEN,
        batch=BATCH,
        seq_len=SEQ_LEN,
        learning_rate=6e-3,
        schedule="linear",
        sample_every=0,
        seed=seed,
        progress=False,
        **length,
        **KINDS[kind],
    )


def draw_molecules(run: jaxrnn.Run, kind: str, count: int, seed: int) -> list[str]:
    """Return molecules that a char-RNN draws."""
    if KINDS[kind].get("lines"):
        return jaxrnn.sample_lines(run.params, count, seed=seed)
    # Enough characters for all of them, in several texts; the last line of each is cut.
    texts = jaxrnn.sample_many(run.params, "\n", 60 * count // 20, count=40, seed=seed)
    lines = [line for text in texts for line in text[1:].split("\n")[:-1]]
    return lines[:count]


def measured(drawn: list[str], known: set[str]) -> dict[str, Any]:
    """Return the shares of drawn molecules that are valid, different and new, and the faults."""
    faults = [_molecules.fault(molecule) for molecule in drawn]
    valid = [molecule for molecule, fault in zip(drawn, faults, strict=True) if fault is None]
    return {
        "drawn": len(drawn),
        "well_formed": sum(_molecules.fault(m, valences=False) is None for m in drawn) / len(drawn),
        "valid": len(valid) / len(drawn),
        "different": len(set(valid)) / max(1, len(valid)),
        "new": sum(molecule not in known for molecule in valid) / max(1, len(valid)),
        "faults": Counter(fault for fault in faults if fault).most_common(5),
        "lengths": [len(molecule) for molecule in drawn],
    }


def run(quick: bool) -> Outcome:
    """Train the char-RNNs and draw molecules from them."""
    seeds, count, steps = ([0], 400, 3) if quick else ([0, 1, 2], MOLECULES, None)
    molecules = _molecules.molecules(count)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    pages = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "molecules.txt")
        path.write_text("".join(f"{molecule}\n" for molecule in molecules), encoding="ascii")
        for kind in KINDS:
            for seed in seeds:
                trained = learn(path, kind, seed, steps)
                drawn = draw_molecules(trained, kind, 20 if quick else DRAWN, seed)
                per_molecule = float(trained.val_loss) * tokens_per_line(trained, molecules)
                found[kind].append(
                    measured(drawn, set(molecules)) | {"nats_per_molecule": per_molecule}
                )
            pages[f"{kind.replace(', ', '-')}.txt"] = "\n".join(drawn[:100]) + "\n"
    rows = [["read as", "nats per molecule", "well formed", "valid", "different", "new"]]
    for kind, each in found.items():
        shares = [share(each, name) for name in ("well_formed", "valid", "different", "new")]
        nats = [one["nats_per_molecule"] for one in each]
        rows.append([kind, f"{np.median(nats):.2f}", *shares])
    numbers = {"molecules": count, "found": found}
    lengths = [len(molecule) for molecule in molecules]
    return Outcome(rows, numbers, seeds, draw(found, lengths), pages)


def tokens_per_line(run: jaxrnn.Run, molecules: list[str]) -> float:
    """Return the mean number of tokens of a molecule, with the end of its line."""
    text = "".join(f"{molecule}\n" for molecule in molecules)
    return len(run.params.vocabulary.encode(text)) / len(molecules)


def share(each: list[dict[str, Any]], name: str) -> str:
    """Return the median over the seeds of a share, with the range, in percent."""
    values = [100 * one[name] for one in each]
    return f"{np.median(values):.1f}% ({min(values):.1f} to {max(values):.1f})"


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    found = numbers["found"]
    middle = functools.partial(_median, found)
    return (
        f"Drawn from one text, {middle('text', 'valid'):.1%} of the molecules are valid, from lines "
        f"{middle('lines', 'valid'):.1%}, and from lines of tokens "
        f"{middle('lines, tokens', 'valid'):.1%} (medians of {len(seeds)} seeds). Of the valid ones, "
        f"{middle('text', 'new'):.1%}, {middle('lines', 'new'):.1%} and "
        f"{middle('lines, tokens', 'new'):.1%} are new. The differences are small: a text of lines that "
        f"is read as one text draws nearly as well."
    )


def _median(found: dict[str, list[dict[str, Any]]], kind: str, name: str) -> float:
    return float(np.median([one[name] for one in found[kind]]))


def draw(found: dict[str, list[dict[str, Any]]], lengths: list[int]) -> Any:
    """Return a picture of the shares and of the lengths."""
    figure, (left, right) = _drawing.figure(2, 11, width_ratios=[1.2, 1])
    names = {"well_formed": "well formed", "valid": "valid", "new": "valid and new"}
    for number, (kind, colour) in enumerate(zip(found, _drawing.COLOURS, strict=False)):
        values = [_shares(one) for one in found[kind]]
        middle = np.median(values, axis=0)
        places = np.arange(len(names)) + 0.27 * (number - 1)
        left.bar(places, middle, 0.25, color=colour, label=kind)
        for place, *seen in zip(places, *values, strict=True):
            left.plot([place] * len(seen), seen, ".", color=_drawing.BLACK, markersize=3)
    left.set_xticks(range(len(names)), list(names.values()))
    left.set_ylim(0, 100)
    left.legend(loc="upper right", frameon=False)
    _drawing.name_axes(left, "Drawn molecules (dots: seeds)", "", "percent of the drawn molecules")
    bins = np.arange(0, 70, 4)
    right.hist(lengths, bins, density=True, color="0.85", label="training file")
    for kind, colour in zip(found, _drawing.COLOURS, strict=False):
        drawn = [length for one in found[kind] for length in one["lengths"]]
        right.hist(drawn, bins, density=True, histtype="step", color=colour, label=kind)
    right.legend(frameon=False)
    _drawing.name_axes(right, "Length of a molecule", "characters", "density")
    return figure


def _shares(one: dict[str, Any]) -> list[float]:
    """Return the percentages of the picture."""
    return [100 * one["well_formed"], 100 * one["valid"], 100 * one["valid"] * one["new"]]
