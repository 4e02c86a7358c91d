"""A char-RNN draws valid and new molecules; separate lines and tokens of several characters help.

A molecule is one line of SMILES (Weininger 1988). Three char-RNNs learn the same random molecules:

- text: the lines are one text, in which the state is carried on from line to line;
- lines: the state is reset at the start of each line (`--lines`), and the lines are shuffled;
- lines, tokens: the same, with tokens such as Cl, [nH] and [C@@H] (`--tokens`) in place of characters.

Each reads the file equally often and then draws 1000 molecules. A drawn molecule is valid if its
brackets, branches, bonds and ring closures are right and no atom has more bonds than it can have; it is
new if it is not among the molecules of the file. The loss of the first char-RNN is measured on other
molecules than that of the others: on the last tenth of the text, not on lines chosen at random.
The learning rate of each is the one of RATES with the smallest loss, from a seed that is not used again.

    python -m experiments molecules      19 min on one CPU core
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _molecules
from experiments._training import best_rate, grid
from jaxrnn import charlm

ROW = 19
MOLECULES = 10_000
DRAWN = 1000
HIDDEN = 256
BATCH = 64
SEQ_LEN = 64
PASSES = 8
RATES = (3e-3, 6e-3, 1.2e-2)
# The seed with which the learning rates are chosen.
TUNING_SEED = 99
# Seeds, learning rates to choose from, molecules, and training steps (those of PASSES).
SETTINGS = ([0, 1, 2, 3, 4], RATES, MOLECULES, None)
# The settings in which the ways to read the molecules differ.
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "lines": {"lines": True},
    "lines, tokens": {"lines": True, "tokens": _molecules.LONG_TOKENS},
}


def learn(path: Path, kind: str, rate: float, seed: int, steps: int | None) -> jaxrnn.Run:
    """Train a char-RNN on a file of molecules.

    Args:
      path: the file.
      kind: one of KINDS.
      rate: the learning rate.
      seed: the random seed.
      steps: the number of training steps; None for PASSES passes.
    """
    length = {"epochs": PASSES} if steps is None else {"steps": steps}
    return jaxrnn.fit(
        path,
        hidden_size=HIDDEN,
        batch=BATCH,
        seq_len=SEQ_LEN,
        learning_rate=rate,
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
    seeds, rates, count, steps = ([0], RATES[:1], 400, 3) if quick else SETTINGS
    molecules = _molecules.molecules(count)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    parameters: dict[str, int] = {}
    chosen: dict[str, float] = {}
    tuning: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    pages = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "molecules.txt")
        path.write_text("".join(f"{molecule}\n" for molecule in molecules), encoding="ascii")
        for kind in KINDS:
            chosen[kind] = rates[0]
            if len(rates) > 1:
                trials = [learn(path, kind, rate, TUNING_SEED, steps) for rate in rates]
                tuning[kind] = [float(trial.val_loss) for trial in trials]
                chosen[kind] = best_rate(rates, tuning[kind])
            seconds[kind] = 0
            for seed in seeds:
                begin = time.perf_counter()
                trained = learn(path, kind, chosen[kind], seed, steps)
                seconds[kind] += (time.perf_counter() - begin) / len(seeds)
                drawn = draw_molecules(trained, kind, 20 if quick else DRAWN, seed)
                per_molecule = float(trained.val_loss) * tokens_per_line(trained, molecules)
                found[kind].append(
                    measured(drawn, set(molecules)) | {"nats_per_molecule": per_molecule}
                )
            parameters[kind] = charlm.count(trained.params)
            pages[f"{kind.replace(', ', '-')}.txt"] = "\n".join(drawn[:100]) + "\n"
    numbers = {
        "molecules": count,
        # How many molecules of the file have 0, 1, 2, ... characters.
        "lengths": np.bincount([len(molecule) for molecule in molecules]).tolist(),
        "parameters": parameters,
        "rates": rates,
        "tuning_loss": tuning,
        "learning_rate": chosen,
        "seconds": seconds,
        "passes": PASSES,
        "found": found,
    }
    return Outcome(numbers, seeds, pages)


def tokens_per_line(run: jaxrnn.Run, molecules: list[str]) -> float:
    """Return the mean number of tokens of a molecule, with the end of its line."""
    text = "".join(f"{molecule}\n" for molecule in molecules)
    return len(run.params.vocabulary.encode(text)) / len(molecules)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rates = grid(numbers["rates"], f"{numbers['passes']} passes")
    rows = [["read as", "parameters", rates, "seconds of training", "nats per molecule"]]
    rows[0] += ["well formed", "valid", "different", "new"]
    for kind, each in numbers["found"].items():
        shares = [share(each, name) for name in ("well_formed", "valid", "different", "new")]
        nats = [one["nats_per_molecule"] for one in each]
        rows.append(
            [kind, f"{numbers['parameters'][kind]:,}", f"{numbers['learning_rate'][kind]:g}"]
        )
        rows[-1] += [f"{numbers['seconds'][kind]:.0f}", f"{np.median(nats):.2f}", *shares]
    return rows


def share(each: list[dict[str, Any]], name: str) -> str:
    """Return the median over the seeds of a share, with the range, in percent."""
    values = [100 * one[name] for one in each]
    return f"{np.median(values):.1f}% ({min(values):.1f} to {max(values):.1f})"


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    valid = {kind: [one["valid"] for one in each] for kind, each in numbers["found"].items()}
    text, lines, tokens = (float(np.median(each)) for each in valid.values())
    new = min(one["new"] for each in numbers["found"].values() for one in each)
    draws = min(text, lines, tokens) > 0.8 and new > 0.5
    helps = clearly_more(valid["text"], valid["lines"])
    helps_too = clearly_more(valid["lines"], valid["lines, tokens"])
    together = clearly_more(valid["text"], valid["lines, tokens"])
    effect, effect_ko = (
        ("each step is a clear gain", "단계마다 뚜렷이 나아집니다")
        if helps and helps_too
        else ("only both together are a clear gain", "둘을 함께 쓸 때만 뚜렷이 나아집니다")
        if together and not helps and not helps_too
        else ("not every step is a clear gain", "모든 단계가 뚜렷이 나은 것은 아닙니다")
    )
    return Verdict(
        Holds.NO if not draws else Holds.YES if helps and helps_too else Holds.PARTLY,
        f"{text:.1%} of the molecules are valid when the file is one text, {lines:.1%} with separate "
        f"lines, {tokens:.1%} with tokens as well ({len(seeds)} seeds); {effect}.",
        f"파일을 하나의 텍스트로 읽으면 생성한 분자의 {text:.1%}가 유효하고, 줄을 나누면 {lines:.1%}, "
        f"토큰까지 쓰면 {tokens:.1%}가 유효합니다(시드 {len(seeds)}개). {effect_ko}.",
    )


def clearly_more(some: list[float], others: list[float]) -> bool:
    """Return whether shares are greater in every seed and by a percentage point in the median."""
    return min(others) > max(some) and float(np.median(others) - np.median(some)) >= 0.01


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (shares, sizes) = _drawing.figure(2, height=3.3)
    names = {"well_formed": "well formed", "valid": "valid", "new": "valid and new"}
    styles = dict(zip(KINDS, ("o", "s", "^"), strict=True))
    colours = dict(zip(KINDS, (_drawing.BLUE, _drawing.ORANGE, _drawing.PINK), strict=True))
    for number, (kind, each) in enumerate(numbers["found"].items()):
        # [seeds, names]
        values = np.array([_percentages(one) for one in each])
        places = np.arange(len(names)) + 0.22 * (number - 1)
        middle = np.median(values, axis=0)
        how = {"color": colours[kind], "linestyle": "none"}
        shares.plot(places, middle, styles[kind], markersize=9, label=kind, **how)
        for value in values:
            shares.plot(places, value, styles[kind], markersize=4, **how)
        shares.vlines(places, values.min(0), values.max(0), color=colours[kind], linewidth=1)
    shares.set_xticks(range(len(names)), list(names.values()))
    shares.set_xlim(-0.5, len(names) - 0.5)
    shares.legend(loc="lower left")
    title = f"Drawn molecules ({len(seeds)} seeds; large: median)"
    _drawing.name_axes(shares, title, "", "percent of the drawn")
    bins = np.arange(0, 70, 4)
    given = np.repeat(np.arange(len(numbers["lengths"])), numbers["lengths"])
    sizes.hist(given, bins, density=True, color=_drawing.INK, alpha=0.35, label="training file")
    for (kind, each), line in zip(numbers["found"].items(), ("-", "--", ":"), strict=True):
        drawn = [length for one in each for length in one["lengths"]]
        how = {"color": colours[kind], "linestyle": line, "linewidth": 2}
        sizes.hist(drawn, bins, density=True, histtype="step", label=kind, **how)
    sizes.legend()
    _drawing.name_axes(sizes, "Length of the molecules", "characters", "density")
    return figure


def _percentages(one: dict[str, Any]) -> list[float]:
    """Return the percentages of the picture."""
    return [100 * one["well_formed"], 100 * one["valid"], 100 * one["valid"] * one["new"]]
