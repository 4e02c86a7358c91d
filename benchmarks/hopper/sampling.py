"""The stage "sampling": texts drawn by one kernel, beside jaxrnn's loop and PyTorch's.

Each contender is checked before it is timed. With mode "argmax" its characters must be the most likely
ones, up to rounding, by logits that the CPU computes for its text. With mode "categorical" its text must
begin like the loop's text with the same seed, until rounding separates them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks import measure
from benchmarks import sampling_throughput as samples
from benchmarks.contenders import OURS
from benchmarks.hopper.child import Reporter
from benchmarks.hopper.contenders import COMPILE, TURNS, Job, absent, reason
from benchmarks.hopper.report import OWN
from benchmarks.problems import TOLERANCES, VOCABULARY
from jaxrnn import charlm

# Characters that are checked in each text, and the least number of texts.
LOOK, TEXTS = 64, 4
# How far a logit may be below the largest one, in units of the largest of all: some rounding errors.
SHORT = {"bfloat16": 2**-6, "float32": 2**-8}
# Characters of LOOK that must be equal to the loop's, on average.
ALIKE = 8


def sampling(job: Job, say: Reporter) -> dict[str, Any]:
    """Check the contenders, and time those that are right.

    short: how far the logits of the characters are below the largest ones, with mode "argmax".
    alike: number of characters until the first one that differs from the loop's.
    """
    batch, layers, hidden = job["size"]
    config = jaxrnn.ModelConfig("lstm", layers, hidden, samples.EMBED, dtype=job["dtype"])
    params = jaxrnn.init(config, VOCABULARY)
    found: dict[str, dict[str, Any]] = {}
    out: dict[str, str] = {}
    sides: dict[str, Any] = {}
    # Texts that the loop drew.
    drawn: list[str] = []
    for name in job["contenders"]:
        if name in job["without"] or (name == "torch" and absent(name)):
            continue
        say.now(name, "first texts", COMPILE)
        try:
            if name in OWN:
                draw = partial(own, params, name.removeprefix(OURS), batch)
                look, texts = looked_at(params, draw)
                drawn = texts if name == OWN[1] else drawn
                if not drawn:
                    out[name] = "the loop drew no text to compare with"
                    continue
                found[name] = look | {"alike": alike(texts, drawn)}
                if why := wrong(found[name], job["dtype"]):
                    found[name]["left_out"] = why
                    continue
                sides[name] = partial(draw, job["length"], "categorical", 0)
            else:
                sides[name] = partial(rival(params, job["dtype"]).sample, batch, job["length"])
            found.setdefault(name, {})["first_call"] = measure.timed(sides[name])[0]
        except jaxrnn.InputError as why:
            out[name] = str(why)
        except (Exception, SystemExit) as failure:
            sides.pop(name, None)
            why = str(failure) if isinstance(failure, SystemExit) else reason(failure, say)
            found.setdefault(name, {})["left_out"] = why
    say.now(OWN[0] if OWN[0] in sides else "", "in turns", TURNS)
    for name, times in measure.in_turns(sides, job["repeats"]).items():
        found[name] |= times
    return {"contenders": found, "characters": batch * job["length"], "unserved": out}


def own(params: Any, implementation: Any, batch: int, length: int, mode: Any, seed: int) -> Any:
    """Return texts that jaxrnn draws."""
    how = {"temperature": samples.TEMPERATURE, "mode": mode, "seed": seed, "count": batch}
    return jaxrnn.sample_many(params, samples.PRIME, length, **how, implementation=implementation)


def rival(params: Any, dtype: str) -> samples.Peer:
    """Return PyTorch's contender; exits with an error if its logits differ."""
    on_gpu = jax.default_backend() == "gpu"
    peer = samples.Peer(params, "cuda" if on_gpu else "cpu", dtype)
    samples.check(params, peer, TOLERANCES[jax.default_backend(), dtype])
    return peer


def looked_at(params: Any, draw: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the check of the most likely characters of a contender, and texts that it draws."""
    likeliest = draw(LOOK, "argmax", 0)
    seeds = range(-(-TEXTS // len(likeliest)))
    drawn = [text for seed in seeds for text in draw(LOOK, "categorical", seed)]
    return {"short": short(params, likeliest)}, drawn


def short(params: Any, texts: list[str]) -> float:
    """Return how far the logits of the characters after the prime are below the largest, at most.

    The unit is the largest logit of all; the plain scan computes the logits on the CPU.
    """
    tokens = np.stack([params.vocabulary.encode(text) for text in texts], 1).astype(np.int32)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        carry = charlm.initial_carry(params.config, len(texts))
        there = jax.device_put((params, jnp.asarray(tokens[:-1]), carry), cpu)
        logits = np.asarray(charlm.forward(*there, implementation="scan")[1])
    first = len(samples.PRIME) - 1
    at = np.take_along_axis(logits[first:], tokens[first + 1 :, :, None], 2)[..., 0]
    return float((logits[first:].max(-1) - at).max() / np.abs(logits).max())


def alike(texts: list[str], others: list[str]) -> float:
    """Return the number of characters after the prime until the first difference, on average."""
    begin = len(samples.PRIME)
    pairs = [zip(a[begin:], b[begin:], strict=True) for a, b in zip(texts, others, strict=True)]
    counts = [next((n for n, (a, b) in enumerate(p) if a != b), LOOK) for p in pairs]
    return float(np.mean(counts))


def wrong(look: dict[str, Any], dtype: str) -> str | None:
    """Return what is wrong with the texts of a contender; None if nothing is."""
    if not look["short"] <= SHORT[dtype]:
        return f"logits of its characters are {look['short']:.1e} too low, above {SHORT[dtype]:.1e}"
    if look["alike"] < ALIKE:
        return f"its texts are the loop's only for {look['alike']:.1f} characters, below {ALIKE}"
    return None
