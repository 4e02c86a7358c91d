"""A run that is killed and resumed is bit-identical to one that was not interrupted.

    state = (params, Adam's moments, h^0 of the next batch, random key, step)
    state_n+1 = f(state_n, n)

A char-RNN with dropout learns the play by `python -m jaxrnn.train`, once without interruption, and
once killed by SIGKILL at random moments and restarted by the same command. Compared are every line of
metrics.jsonl and the digests of the last checkpoint, both of the parameters and of the rest of the
state. To show what the rest is for, the second half of the run is repeated with a part of the state
left out.

    python -m experiments resume      2 min on two CPU cores
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import Outcome, _drawing
from jaxrnn import charlm
from jaxrnn.data import play
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.training import checkpoint, optimizers, orbax_messages, run_description, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import device_corpus

ROW = 15
ROOT = Path(__file__).parent.parent
# Steps per line of metrics.jsonl.
EVERY = 10
# Parts of the state that are left out when the run is restored: they start from their initial values.
LEFT_OUT = {
    "nothing": (),
    "the recurrent state": ("carry",),
    "Adam's memory": ("opt_state",),
}


def settings(steps: int, seed: int) -> TrainingConfig:
    """Return the settings of the run: small, and with dropout so that the random key matters."""
    model = charlm.ModelConfig(hidden_size=64, embedding_size=32, dropout=0.2)
    how: dict[str, Any] = {"learning_rate": 5e-3, "schedule": "constant", "warmup": 0}
    how |= {"log_every": EVERY, "sample_every": 0}
    return TrainingConfig(
        model, batch=16, seq_len=64, steps=steps, seed=seed, eval_every=5 * EVERY, **how
    )


def command(config: TrainingConfig, workdir: Path) -> list[str]:
    """Return the command of the run."""
    flags = {
        name: getattr(config.model, name) for name in ("hidden_size", "embedding_size", "dropout")
    }
    names = ("batch", "seq_len", "steps", "seed", "learning_rate", "schedule", "warmup")
    names += ("log_every", "eval_every", "sample_every")
    flags |= {name: getattr(config, name) for name in names}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "jaxrnn.train", f"--workdir={workdir}", *words]


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Return the complete lines of metrics.jsonl, without times and speeds."""
    path = workdir / "metrics.jsonl"
    written = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [json.loads(line) for line in written if line.endswith("\n")]
    clock = ("chars_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in kept]


def finish(config: TrainingConfig, workdir: Path, kills: list[int]) -> list[Any]:
    """Run the command to its end, but kill and restart it as soon as it has reported each of `kills`.

    Returns:
      For each kill, the lines of metrics.jsonl and the step of the newest checkpoint at that moment.
    """
    left = []
    quietly = {"cwd": ROOT, "stdout": subprocess.DEVNULL}
    for kill in kills:
        process = subprocess.Popen(command(config, workdir), **quietly)
        while process.poll() is None and not any(line["step"] >= kill for line in lines(workdir)):
            time.sleep(0.005)
        process.kill()
        process.wait()
        with orbax_messages.quiet():
            saved = checkpoint.Checkpoints(workdir, read_only=True)
            left.append((lines(workdir), max(saved.steps(), default=0)))
            saved.close()
    subprocess.run(command(config, workdir), **quietly, check=True)
    return left


def digests(workdir: Path) -> dict[str, str]:
    """Return the digests of the last checkpoint: of its parameters and of the rest of the state."""
    described, vocabulary = run_description.read(workdir)
    model = charlm.ModelConfig(**described["training"]["model"])
    with orbax_messages.quiet():
        saved = checkpoint.Checkpoints(workdir, read_only=True)
        found = saved.restore(jax.eval_shape(lambda: charlm.init(model, vocabulary)))
        saved.close()
    return found.notes["digest"] if found else {}


def second_half(config: TrainingConfig, corpus: Corpus) -> dict[str, Any]:
    """Return the losses [steps / 2] of the second half, by the part that was left out at its start."""
    batches, source = config.batches(corpus), device_corpus(corpus.tokens)
    half = config.total_steps(batches) // 2
    optimizer = optimizers.make_optimizer(config, 2 * half)

    def steps(state: Any, first: int) -> Any:
        ahead = range(first, first + half)
        starts = np.stack([batches.starts(n) for n in ahead])
        fresh = jnp.array([batches.resets_state(n) for n in ahead])
        # run_steps may overwrite its arguments.
        state = jax.tree.map(jnp.copy, state)
        what = source.tokens, source.windows(starts, config.seq_len), fresh
        return stepping.run_steps(config, optimizer, source.devices, state, *what, jnp.int32(half))

    begun = stepping.begin(config, optimizer, corpus.vocabulary, source.devices)
    middle, _ = steps(begun, 0)
    losses = {}
    for name, forgotten in LEFT_OUT.items():
        state = middle.replace(**{part: getattr(begun, part) for part in forgotten})
        losses[name] = np.asarray(steps(state, half)[1].loss)
    return losses


def run(quick: bool) -> Outcome:
    seeds, steps, count = ([0], 60, 1) if quick else ([0, 1, 2], 600, 3)
    written = play.write()
    corpus = make_corpus(written.text, written.nats)
    rows = [["seed", "killed at step", "resumed from", "lines", "equal lines", "last checkpoints"]]
    whole: list[Any] = []
    again: list[Any] = []
    killed: list[Any] = []
    second_halves: list[dict[str, Any]] = []
    equal = 0
    checkpoints = 0
    for seed in seeds:
        config, chance = settings(steps, seed), random.Random(seed)
        kills = sorted(chance.sample(range(EVERY, steps - EVERY), count))
        with tempfile.TemporaryDirectory() as folder:
            undisturbed, disturbed = Path(folder, "undisturbed"), Path(folder, "disturbed")
            finish(config, undisturbed, [])
            killed.append(finish(config, disturbed, kills))
            whole.append(lines(undisturbed))
            again.append(lines(disturbed))
            pairs = [a == b for a, b in zip(whole[-1], again[-1], strict=True)]
            same = bool(digests(disturbed)) and digests(undisturbed) == digests(disturbed)
        equal, checkpoints = equal + sum(pairs), checkpoints + same
        places = zip(*((there[-1]["step"], saved) for there, saved in killed[-1]), strict=True)
        steps_of = [", ".join(map(str, each)) for each in places]
        verdict = "equal" if same else "different"
        rows.append([str(seed), *steps_of, str(len(pairs)), str(sum(pairs)), verdict])
        second_halves.append(second_half(config, corpus))
    off = {n: np.array([each[n] - each["nothing"] for each in second_halves]) for n in LEFT_OUT}
    numbers = {
        "steps": steps,
        "killed": [[[there[-1]["step"], saved] for there, saved in each] for each in killed],
        "undisturbed": whole,
        "equal_lines": equal,
        "equal_checkpoints": checkpoints,
        "second_half_without": {n: [e[n].tolist() for e in second_halves] for n in LEFT_OUT},
    }
    return Outcome(rows, numbers, seeds, draw(whole[0], again[0], killed[0], off))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    lines_written = sum(map(len, numbers["undisturbed"]))
    losses = {name: np.array(each) for name, each in numbers["second_half_without"].items()}
    whole = losses.pop("nothing")
    parts = [
        f"without {name} by up to {(each - whole).max():.3f} ({(each - whole).mean():.4f} in the mean)"
        for name, each in losses.items()
    ]
    return (
        f"In {len(seeds)} runs of {numbers['steps']} steps, killed {len(numbers['killed'][0])} "
        f"times each, {numbers['equal_lines']} of {lines_written} lines of losses and "
        f"{numbers['equal_checkpoints']} of {len(seeds)} last checkpoints are bit-identical to "
        "those of the uninterrupted run. Restored at half-time with a part left out, the loss of "
        f"the following {numbers['steps'] // 2} steps is higher: {'; '.join(parts)}, in nats per "
        "character."
    )


def draw(whole: Any, again: Any, killed: Any, off: Any) -> Any:
    figure, (left, right) = _drawing.figure(2)

    def curve(some: Any, begin: int) -> Any:
        some = [line for line in some if line["step"] > begin]
        return [line["step"] for line in some], [line["loss"] for line in some]

    left.plot(*curve(whole, 0), color=_drawing.SKY, linewidth=7, alpha=0.6)
    begun = 0
    for there, saved in killed:
        x, y = curve(there, begun)
        left.plot(x, y, color=_drawing.BLACK, linewidth=1)
        left.plot(x[-1], y[-1], "x", color=_drawing.RED, markersize=10, markeredgewidth=2)
        begun = saved
    left.plot(*curve(again, begun), color=_drawing.BLACK, linewidth=1)
    note = {"xycoords": "axes fraction", "fontsize": 9}
    left.annotate("thick: uninterrupted", (0.5, 0.9), color=_drawing.SKY, **note)
    left.annotate("thin: killed and resumed", (0.5, 0.84), color=_drawing.BLACK, **note)
    left.annotate("×  SIGKILL", (0.5, 0.78), color=_drawing.RED, **note)
    title = "Killed and resumed, compared with uninterrupted, seed 0"
    _drawing.name_axes(left, title, "step", "loss, nats per character")
    steps, ends = 1 + np.arange(off["nothing"].shape[1]), []
    for (name, each), colour in zip(off.items(), _drawing.COLOURS, strict=False):
        ends.append((_drawing.band(right, steps, each, colour)[-1], f"{name} lost", colour))
    right.set(xscale="log", xlim=(1, steps[-1]))
    _drawing.label_ends(right, ends)
    title = f"Restored at half-time without a part (median and range of {len(each)} seeds)"
    _drawing.name_axes(
        right, title, "steps since then", "loss minus that of the uninterrupted run, nats"
    )
    return figure
