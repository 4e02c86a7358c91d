"""A process that runs training steps on request; `measured.py` times it.

    python -m benchmarks.scaling.worker --cores 0,1 --devices 2 --hidden-size 512 --rows 64

When ready it prints the names of its devices. Each line that it reads is a number of devices: it runs
one step on that many of them, with `rows` rows on each, and prints the seconds. On a CPU it restricts
itself to the given cores before JAX starts, so that XLA makes one thread for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def main() -> None:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", default="", help="CPU cores to use, separated by commas")
    parser.add_argument(
        "--devices", required=True, help="numbers of devices that will be requested"
    )
    parser.add_argument("--hidden-size", type=int, required=True, help="hidden size")
    parser.add_argument("--rows", type=int, required=True, help="rows on each device")
    flags = parser.parse_args()
    counts = [int(n) for n in flags.devices.split(",")]
    if flags.cores:
        os.sched_setaffinity(0, map(int, flags.cores.split(",")))
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(counts)}"
    runs = {count: trainer(count, flags.hidden_size, flags.rows) for count in counts}
    for run in runs.values():
        # The first call compiles, the second one warms up.
        run()
        run()
    import jax

    from benchmarks import measure

    print(json.dumps([device.device_kind for device in jax.devices()]), flush=True)
    for line in sys.stdin:
        print(measure.timed(runs[int(line)])[0], flush=True)


def trainer(count: int, hidden: int, rows: int) -> Any:
    """Return a function that runs one step, as `loop.fit` does, on the first `count` devices."""
    import jax
    import numpy as np

    from benchmarks.problems import VOCABULARY
    from benchmarks.scaling.training import configured
    from jaxrnn.devices import mesh
    from jaxrnn.training import optimizers, stepping
    from jaxrnn.training.feed import device_corpus

    devices = mesh.make(devices=jax.devices()[:count])
    config = configured(hidden, rows * count, dtype="auto")
    optimizer = optimizers.make_optimizer(config, 2**31 - 1)
    length = config.seq_len + 1
    text = np.random.default_rng(0).integers(len(VOCABULARY), size=length * config.batch)
    source = device_corpus(text.astype(np.uint8), "never", devices=devices)
    state = stepping.begin(config, optimizer, VOCABULARY, devices)
    starts = length * np.arange(config.batch, dtype=np.int32)[None]
    windows, fresh = source.windows(starts, config.seq_len), np.array([True])

    def run() -> float:
        nonlocal state
        state, metrics = stepping.run_steps(
            config, optimizer, devices, state, source.tokens, windows, fresh, 1
        )
        return float(metrics.loss[0])

    return run


class Worker:
    """The parent's side of the process.

    kinds: names of its devices.

    Raises:
      RuntimeError: if the process ends before it is ready.
    """

    def __init__(self, counts: Sequence[int], hidden: int, rows: int, cores: Sequence[int] = ()):
        # Imports JAX, which the process itself must not import before it has set its cores.
        from benchmarks import measure

        command = [sys.executable, "-m", "benchmarks.scaling.worker", "--hidden-size", str(hidden)]
        command += ["--rows", str(rows), "--devices", ",".join(map(str, counts))]
        if cores:
            command += ["--cores", ",".join(map(str, cores))]
        self.process = subprocess.Popen(
            command,
            env=measure.child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self._line()
        if not said:
            raise RuntimeError("a training process ended early; its output is above")
        self.kinds: list[str] = json.loads(said)

    def begin(self, count: int) -> None:
        """Start one step on this many devices."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def end(self) -> float:
        """Wait for the step and return its seconds. Raises RuntimeError if the process has ended."""
        said = self._line()
        if not said:
            raise RuntimeError("a training process ended; its output is above")
        return float(said)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


if __name__ == "__main__":
    main()
