"""A process that trains on some of its devices when told to: what `scaling.py` measures.

    python benchmarks/scaling_worker.py --cores 0,1 --devices 2 --hidden-size 512 --rows 64

Once ready it prints the names of its devices; for each line that comes in, a number of devices, it
takes one step on so many of them, `rows` rows on each, and prints the seconds. On a CPU the cores that
it may use are set first, so that XLA makes one thread for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", default="")
    parser.add_argument("--devices", required=True)  # numbers of them that will be asked for
    parser.add_argument("--hidden-size", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    flags = parser.parse_args()
    counts = [int(n) for n in flags.devices.split(",")]
    if flags.cores:
        os.sched_setaffinity(0, map(int, flags.cores.split(",")))
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(counts)}"
    runs = {count: trainer(count, flags.hidden_size, flags.rows) for count in counts}
    for run in runs.values():  # compiles; then once warm
        run(), run()
    import jax

    print(json.dumps([device.device_kind for device in jax.devices()]), flush=True)
    for line in sys.stdin:
        from benchmarks import measure

        print(measure.timed(runs[int(line)])[0], flush=True)


def trainer(count: int, hidden: int, rows: int) -> Any:
    """One step on the first `count` devices, as `training.fit` takes it; returns when it is done."""
    import jax
    import numpy as np
    from scaling import VOCABULARY, configured

    from jaxrnn.devices import mesh
    from jaxrnn.training import stepping
    from jaxrnn.training.feed import device_corpus

    devices = mesh.make(devices=jax.devices()[:count])
    config = configured(hidden, rows * count, dtype="auto")
    optimizer = stepping.make_optimizer(config, 2**31 - 1)
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
    """Such a process, from outside.

    kinds: the names of its devices.

    Raises:
      RuntimeError: where it ends before it is ready.
    """

    def __init__(self, counts: Sequence[int], hidden: int, rows: int, cores: Sequence[int] = ()):
        command = [sys.executable, str(Path(__file__)), "--hidden-size", str(hidden)]
        command += ["--rows", str(rows), "--devices", ",".join(map(str, counts))]
        if cores:
            command += ["--cores", ",".join(map(str, cores))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = self._line()
        if not said:
            raise RuntimeError("a process that was to train ended; what it said is above")
        self.kinds: list[str] = json.loads(said)

    def begin(self, count: int) -> None:
        """One step on so many devices."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def end(self) -> float:
        """Waits for it. Seconds. Raises RuntimeError where the process is gone."""
        said = self._line()
        if not said:
            raise RuntimeError("a process that trained ended; what it said is above")
        return float(said)

    def stop(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


if __name__ == "__main__":
    main()
