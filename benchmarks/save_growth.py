"""What a save leaves behind in memory, and how much less where it is done as the train command does.

    python benchmarks/save_growth.py            # 400 saves each way, some minutes; writes the JSON

The state is that of the preset small. Each way runs in a process of its own: as it is, without
tensorstore's `experimental_collect_matching_metrics`, which orbax asks four times a save, and after
`memory.limit_heap_growth`, which also gives back large buffers. Memory is the process' own (RssAnon),
objects those that Python's collector knows; growth is a straight line through all but the first
quarter.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from long_run import resident

from benchmarks import measure
from benchmarks.training_throughput import VOCABULARY
from jaxrnn import charlm
from jaxrnn.devices import memory
from jaxrnn.train import PRESETS
from jaxrnn.training.checkpoint import Checkpoints

OUTPUT = measure.RESULTS / "save_growth.json"
WAYS = ("as it is", "without tensorstore's metrics", "as train does")
SAVES = 400
LOOKS = 40


def look() -> tuple[int, int]:
    """Bytes and objects of this process."""
    gc.collect()
    return resident("self")["own"], len(gc.get_objects())


def grown(way: str, saves: int) -> dict[str, Any]:
    """Bytes and objects that a save leaves, in this process, and the bytes at the end."""
    if way == WAYS[1]:
        tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    if way == WAYS[2]:
        memory.limit_heap_growth()
    params = charlm.init(PRESETS["small"].training.model, VOCABULARY, 0)
    moments = jax.tree.map(jnp.ones_like, (params, params))
    looks = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for number in range(saves):
            checkpoints.save(number, params, moments, {"validation": 1.0 / (number + 1)})
            checkpoints.wait()
            if number >= saves // 4 and number % max(1, saves // LOOKS) == 0:
                looks.append((number, *look()))
        checkpoints.close()
    number, size, objects = np.array(looks, float).T
    slopes = (float(np.polyfit(number, y, 1)[0]) for y in (size, objects))
    return dict(zip(("bytes", "objects"), slopes, strict=True)) | {"bytes at the end": size[-1]}


def main() -> None:
    parser = measure.Parser(description="what a save leaves behind")
    parser.add_argument("--saves", type=measure.positive, default=SAVES)
    parser.add_argument("--way", choices=WAYS, help="in this process, printed as JSON")
    flags = parser.parse_args()
    if flags.way:
        print(json.dumps(grown(flags.way, flags.saves)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--saves", str(flags.saves)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[way] = json.loads(done.stdout)
        print(
            f"{way}: {found[way]['bytes'] / 1e3:.0f} kB, {found[way]['objects']:.1f} objects a save, "
            f"{found[way]['bytes at the end'] / 2**20:.0f} MiB at the end"
        )
    if flags.saves >= SAVES:
        packages = ["orbax-checkpoint", "tensorstore"]
        record = {"benchmark": "save_growth", **measure.surroundings(packages)}
        measure.write(record | {"saves": flags.saves, "a save leaves": found}, OUTPUT)


if __name__ == "__main__":
    main()
