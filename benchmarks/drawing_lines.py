"""Characters per second of `jaxrnn.sample_lines`, many lines drawn side by side.

    python -m benchmarks.drawing_lines            # a minute; writes results/drawing_lines.json

The model has initial weights, whose speed is that of trained ones, and an output bias with which a line
ends after LENGTH characters on average. Each call draws other lines. The first call compiles the program
and is recorded separately.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import jaxrnn
from benchmarks import measure

OUTPUT = measure.RESULTS / "drawing_lines.json"
# 65 characters, as many as Tiny Shakespeare has.
VOCABULARY = jaxrnn.Vocabulary.of("\n" + "".join(map(chr, range(32, 96))))
# Mean length of a line in characters, with its line break.
LENGTH = 35


def main() -> None:
    """Run the command."""
    flags = _flags()
    params = model(flags.hidden_size)
    calls = [timed(params, flags.count, seed) for seed in range(flags.calls + 1)]
    first, *others = calls
    rates = [call["characters"] / call["seconds"] for call in others]
    record = {"benchmark": "drawing_lines"} | measure.surroundings([])
    record |= {"hidden_size": flags.hidden_size, "lines": flags.count, "first_call": first}
    record |= {"calls": others, "characters_per_second": rates}
    measure.write(record, flags.output)
    print(
        f"{flags.count:,} lines of an LSTM of {flags.hidden_size}: {statistics.median(rates):,.0f} "
        f"characters per second ({min(rates):,.0f} to {max(rates):,.0f}); first call "
        f"{first['seconds']:.1f} s"
    )


def model(hidden_size: int) -> jaxrnn.Params:
    """Return a model of lines of LENGTH characters on average."""
    config = jaxrnn.ModelConfig(hidden_size=hidden_size, lines=True)
    params = jaxrnn.init(config, VOCABULARY)
    # The other logits are near zero, so this gives the line break a probability of 1 / LENGTH.
    bias = math.log((len(VOCABULARY) - 1) / (LENGTH - 1))
    newline = VOCABULARY.newline
    assert newline is not None
    return params.replace(  # type: ignore[attr-defined,no-any-return]
        b_out=jnp.zeros_like(params.b_out).at[newline].set(bias), w_out=params.w_out / 4
    )


def timed(params: jaxrnn.Params, count: int, seed: int) -> dict[str, Any]:
    """Return the seconds of a call, and the number of characters drawn, line breaks included."""
    began = time.perf_counter()
    lines = jaxrnn.sample_lines(params, count, seed=seed)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "characters": sum(map(len, lines)) + len(lines)}


def _flags() -> argparse.Namespace:
    parser = measure.Parser(
        prog="python -m benchmarks.drawing_lines", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--hidden-size", type=measure.positive, default=256, help="default: 256")
    parser.add_argument("--count", type=measure.positive, default=1000, help="default: 1000 lines")
    parser.add_argument(
        "--calls", type=measure.positive, default=9, help="default: 9, one more first"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT.name} in results/"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
