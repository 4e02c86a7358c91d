"""What a save leaves behind in memory, and how much of it tensorstore's count of its own bytes does.

    python benchmarks/save_growth.py            # 400 saves each way, some minutes; writes the JSON

Each way runs in a process of its own: as it is, and with `experimental_collect_matching_metrics`, which
orbax asks four times a save, answering with nothing. Memory is the process' own (RssAnon), objects those
that Python's collector knows; growth is counted from the first quarter on.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import measure
import tensorstore
from long_run import resident

from jaxrnn.checkpoint import Checkpoints

OUTPUT = measure.RESULTS / "save_growth.json"
WAYS = ("as it is", "without tensorstore's metrics")
SAVES = 400
STATE = {"weights": jnp.ones((400, 400)), "bias": jnp.ones(400)}


def look() -> tuple[int, int]:
    """Bytes and objects of this process."""
    gc.collect()
    return resident("self")["own"], len(gc.get_objects())


def grown(way: str, saves: int) -> dict[str, Any]:
    """Bytes and objects that a save leaves, in this process."""
    if way == WAYS[1]:
        tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for number in range(saves):
            if number == saves // 4:
                first = look()
            checkpoints.save(number, STATE, STATE, {"validation": 1.0 / (number + 1)})
            checkpoints.wait()
        last = look()
        checkpoints.close()
    counted = saves - saves // 4
    size, objects = ((after - before) / counted for before, after in zip(first, last, strict=True))
    return {"bytes": size, "objects": objects}


def main() -> None:
    parser = measure.Parser(description="what a save leaves behind")
    parser.add_argument("--saves", type=measure.whole, default=SAVES)
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
            f"{way}: {found[way]['bytes'] / 1e3:.0f} kB, {found[way]['objects']:.1f} objects a save"
        )
    if flags.saves >= SAVES:
        packages = ["orbax-checkpoint", "tensorstore"]
        record = {"benchmark": "save_growth", **measure.surroundings(packages)}
        measure.write(record | {"saves": flags.saves, "a save leaves": found}, OUTPUT)


if __name__ == "__main__":
    main()
