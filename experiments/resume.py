"""A run that is killed and resumed is bit-identical to one that was not interrupted.

    state = (params, Adam's moments, h^0 of the next batch, random key, step)
    state_n+1 = f(state_n, n)

A char-RNN with dropout learns the play by `python -m jaxrnn.train`, once without interruption, and
once killed by SIGKILL at random moments and restarted by the same command. Compared are every line of
metrics.jsonl and the digests of the last checkpoint, both of the parameters and of the rest of the
state. To show what the rest is for, the second half of the run is repeated with a part of the state
left out.

    python -m experiments resume      14 min on one CPU core that did other work, too
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
from matplotlib.figure import Figure

from experiments import Holds, Outcome, Verdict, _drawing
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
    clock = ("seconds", "per_second")
    return [{k: v for k, v in line.items() if not k.endswith(clock)} for line in kept]


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
    seeds, steps, count = ([0], 60, 1) if quick else ([0, 1, 2, 3, 4], 600, 3)
    written = play.write()
    corpus = make_corpus(written.text, written.nats)
    whole: list[Any] = []
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
            pairs = zip(whole[-1], lines(disturbed), strict=True)
            equal += sum(a == b for a, b in pairs)
            checkpoints += bool(digests(disturbed)) and digests(undisturbed) == digests(disturbed)
        second_halves.append(second_half(config, corpus))
    numbers = {
        "steps": steps,
        "killed": [[[there[-1]["step"], saved] for there, saved in each] for each in killed],
        "undisturbed": whole,
        "equal_lines": equal,
        "equal_checkpoints": checkpoints,
        "second_half_without": {n: [e[n].tolist() for e in second_halves] for n in LEFT_OUT},
    }
    return Outcome(numbers, seeds)


def lines_of(numbers: dict[str, Any]) -> int:
    """Return the number of lines of losses of all runs."""
    return sum(map(len, numbers["undisturbed"]))


def excess(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return by how much the loss is higher without a part of the state [seeds, steps / 2]."""
    losses = {name: np.array(each) for name, each in numbers["second_half_without"].items()}
    return {name: each - losses["nothing"] for name, each in losses.items() if name != "nothing"}


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rows = [["seed", "killed at step", "resumed from", "bit-identical lines", "last checkpoints"]]
    for seed, kills in zip(seeds, numbers["killed"], strict=True):
        rows.append([str(seed), *(", ".join(map(str, each)) for each in zip(*kills, strict=True))])
        rows[-1] += ["", ""]
    lines = f"{numbers['equal_lines']} of {lines_of(numbers)}"
    rows.append(["all", "", "", lines, f"{numbers['equal_checkpoints']} of {len(seeds)}"])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    equal, every = numbers["equal_lines"], lines_of(numbers)
    checkpoints = numbers["equal_checkpoints"]
    lost = excess(numbers)["the recurrent state"].max()
    return Verdict(
        Holds.YES if equal == every and checkpoints == len(seeds) else Holds.NO,
        f"{equal} of {every} lines of losses are bit-identical, although each run was killed "
        f"{len(numbers['killed'][0])} times. Resumed without the recurrent state, the loss would be "
        f"up to {lost:.2f} nats higher.",
        f"실행마다 {len(numbers['killed'][0])}번 강제 종료했지만 손실 {every}줄 중 {equal}줄이 비트 "
        f"단위까지 같습니다. 순환 상태 없이 재개하면 손실이 최대 {lost:.2f} nats 높아집니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (curve, without) = _drawing.figure(2, height=3.4)
    written = numbers["undisturbed"][0]
    steps, losses = ([line[name] for line in written] for name in ("step", "loss"))
    curve.plot(steps, losses, color=_drawing.BLUE)
    note = "loss of the uninterrupted run"
    curve.annotate(note, (0.98, 0.35), xycoords="axes fraction", ha="right", color=_drawing.BLUE)
    for row, (killed, saved) in enumerate(numbers["killed"][0]):
        height = max(losses) * (1 - 0.09 * row)
        curve.plot([saved, killed], [height, height], color=_drawing.INK, linewidth=1)
        curve.plot(killed, height, "x", color=_drawing.RED, markersize=9, markeredgewidth=2.5)
        curve.plot(saved, height, "o", color=_drawing.GREEN, markersize=6)
        note = f"killed at {killed}"
        curve.annotate(note, (killed, height), (10, 0), textcoords="offset points", va="center")
    title = f"Killed (×), resumed at the checkpoint (o), seed {seeds[0]}"
    _drawing.name_axes(curve, title, "training steps", "loss, nats per character")
    ends = []
    for (name, each), colour in zip(
        excess(numbers).items(), (_drawing.ORANGE, _drawing.PINK), strict=True
    ):
        after = 1 + np.arange(each.shape[1])
        middle = _drawing.band(without, after, each, colour)
        ends.append((middle[-1], f"{name.removeprefix('the ')}\nlost", colour))
    without.set(xscale="log", xlim=(1, after[-1]))
    without.axhline(0, color=_drawing.INK, linestyle="--", linewidth=1)
    _drawing.label_ends(without, ends, gap=0.2)
    title = f"Resumed without a part of the state ({len(seeds)} seeds)"
    _drawing.name_axes(without, title, "training steps since then", "excess loss, nats")
    return figure
