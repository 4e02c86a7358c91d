"""The stage "sampling" of `hopper.py`: texts drawn by one kernel, beside the loop and PyTorch's.

Who draws is looked at before it is timed. The likeliest characters that it takes must be so, or nearly,
by the logits that the CPU finds for its text; and what it draws must begin as the loop's text from the
same seed, until rounding parts them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks import measure
import numpy as np
from benchmarks import sampling_throughput as samples
from benchmarks.cell_throughput import TOLERANCES
from benchmarks.hopper.child import Say
from benchmarks.hopper.contenders import COMPILE, OURS, TURNS, Job, absent, reason
from benchmarks.hopper.report import OWN

import jaxrnn
from jaxrnn import charlm

LOOK, TEXTS = 64, 4  # characters that are looked at, of so many texts at least
# what may be missing to the likeliest logit, in units of the largest of all: some roundings
SHORT = {"bfloat16": 2**-6, "float32": 2**-8}
ALIKE = 8  # characters of LOOK that must be the loop's, on average


def sampling(job: Job, say: Say) -> dict[str, Any]:
    """short: what the logits of the likeliest characters lack. alike: characters until the first that
    differs. Then seconds per call, in turns, of who is right."""
    batch, layers, hidden = job["size"]
    config = jaxrnn.ModelConfig("lstm", layers, hidden, samples.EMBED, dtype=job["dtype"])
    params = jaxrnn.init(config, samples.VOCABULARY)
    found: dict[str, dict[str, Any]] = {}
    out: dict[str, str] = {}
    sides: dict[str, Any] = {}
    drawn: list[str] = []  # by the loop
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
                    out[name] = "the loop drew nothing to hold it against"
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
            told = str(failure) if isinstance(failure, SystemExit) else reason(failure, say)
            found.setdefault(name, {})["left_out"] = told
    say.now(OWN[0] if OWN[0] in sides else "", "in turns", TURNS)
    for name, times in measure.in_turns(sides, job["repeats"]).items():
        found[name] |= times
    return {"contenders": found, "characters": batch * job["length"], "unserved": out}


def own(params: Any, implementation: Any, batch: int, length: int, mode: Any, seed: int) -> Any:
    """Texts of jaxrnn's."""
    how = {"temperature": samples.TEMPERATURE, "mode": mode, "seed": seed, "count": batch}
    return jaxrnn.sample_many(params, samples.PRIME, length, **how, implementation=implementation)


def rival(params: Any, dtype: str) -> samples.Peer:
    """PyTorch's, which ends the program where its logits are others."""
    on_gpu = jax.default_backend() == "gpu"
    peer = samples.Peer(params, "cuda" if on_gpu else "cpu", dtype)
    samples.check(params, peer, TOLERANCES[jax.default_backend(), dtype])
    return peer


def looked_at(params: Any, draw: Any) -> tuple[dict[str, Any], list[str]]:
    """How far its likeliest characters fall short, and texts that it draws."""
    likeliest = draw(LOOK, "argmax", 0)
    seeds = range(-(-TEXTS // len(likeliest)))
    drawn = [text for seed in seeds for text in draw(LOOK, "categorical", seed)]
    return {"short": short(params, likeliest)}, drawn


def short(params: Any, texts: list[str]) -> float:
    """What the logits of the characters after the prime lack of the largest at their places, at most,
    in units of the largest of all; by the plain scan on the CPU."""
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
    """Characters after the prime until the first that differs, on average."""
    begin = len(samples.PRIME)
    pairs = [zip(a[begin:], b[begin:], strict=True) for a, b in zip(texts, others, strict=True)]
    counts = [next((n for n, (a, b) in enumerate(p) if a != b), LOOK) for p in pairs]
    return float(np.mean(counts))


def wrong(look: dict[str, Any], dtype: str) -> str | None:
    """What is wrong with the texts of somebody; None for nothing."""
    if not look["short"] <= SHORT[dtype]:
        return f"its likeliest characters fall {look['short']:.1e} short, above {SHORT[dtype]:.1e}"
    if look["alike"] < ALIKE:
        return (
            f"what it draws is the loop's for {look['alike']:.1f} characters alone, below {ALIKE}"
        )
    return None
