"""Time the cells of two checkouts of jaxrnn, in turns, on the machine at hand.

    python -m benchmarks.compare_checkouts OTHER             # OTHER is a folder with a checkout
    python -m benchmarks.compare_checkouts OTHER --quick     # one size, and less precise

Each checkout runs in a process of its own. The two compute the gradient of every cell for the same
weights and inputs; the first results are compared, and then the processes take turns of a fraction of
a second, in random order. A cell's ratio is the median over the turns of this checkout's time to
OTHER's: above 1, this checkout is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZES = {"16,20,32,64": (16, 20, 32, 64), "32,100,64,256": (32, 100, 64, 256)}
IMPLEMENTATIONS = ("native", "xla", "scan")
TURNS = 25

# It uses what both checkouts have.
WORKER = """
import json, sys, time
import jax, jax.numpy as jnp
import numpy as np
import jaxrnn

CELLS = {
    "rnn": jaxrnn.rnn,
    "lstm": jaxrnn.lstm,
    "lstm-peephole": lambda size: jaxrnn.lstm(size, peephole=True),
    "gru-before": jaxrnn.gru,
    "gru-after": lambda size: jaxrnn.gru(size, reset="after"),
}
steps = {}
for line in sys.stdin:
    name, implementation, (batch, length, width, size), seconds = key = json.loads(line)
    key = json.dumps(key[:3])
    if key not in steps:
        cell = CELLS[name](size)
        params = cell.init(jax.random.key(0), width)
        xs = jax.random.normal(jax.random.key(1), (length, batch, width))
        def loss(params, xs, cell=cell, implementation=implementation):
            state, ys = jaxrnn.unroll(cell, params, xs, implementation=implementation)
            return (ys ** 2).sum() + sum((s ** 2).sum() for s in jax.tree.leaves(state))
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
        value = gradient(params, xs)
        total = [float(np.abs(a).sum()) for a in jax.tree.leaves(value)]
        steps[key] = lambda g=gradient, p=params, x=xs: jax.block_until_ready(g(p, x))
        print(json.dumps(total), flush=True)
        continue
    run, count, begun = steps[key], 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        run()
        count += 1
    print(json.dumps(taken / count), flush=True)
"""


class Worker:
    """A process that times the cells of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *what: Any) -> Any:
        """Send a job and wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def commit(checkout: Path) -> str:
    """Return the short name of a checkout's commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Compare two checkouts and print a table."""
    parser = argparse.ArgumentParser(description="Time the cells of two checkouts in turns.")
    parser.add_argument("other", type=Path, help="folder with the other checkout")
    parser.add_argument("--quick", action="store_true", help="one size, and fewer turns")
    flags = parser.parse_args()
    workers = [Worker(ROOT), Worker(flags.other.resolve())]
    sizes = dict(list(SIZES.items())[:1]) if flags.quick else SIZES
    turns = 7 if flags.quick else TURNS
    print(f"time of {commit(ROOT)} / time of {commit(flags.other)}, gradients in float32")
    print(
        f"{'cell':14} {'implementation':14} {'B,T,I,H':14} {'ratio':>6} {'quartiles':>13} {'ms':>8}"
    )
    for cell in ("rnn", "lstm", "lstm-peephole", "gru-before", "gru-after"):
        for implementation in IMPLEMENTATIONS:
            for label, size in sizes.items():
                job = (cell, implementation, size)
                totals = [worker.ask(*job, 0) for worker in workers]
                for ours, theirs in zip(*totals, strict=True):
                    assert abs(ours - theirs) <= 1e-3 * abs(theirs), (job, ours, theirs)
                ratios, times = [], []
                for _ in range(turns):
                    order = random.sample([0, 1], 2)
                    taken = {n: workers[n].ask(*job, 0.1) for n in order}
                    ratios.append(taken[0] / taken[1])
                    times.append(taken[0])
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{cell:14} {implementation:14} {label:14} {middle:6.3f} "
                    f"{f'{low:.2f}-{high:.2f}':>13} {1e3 * statistics.median(times):8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
