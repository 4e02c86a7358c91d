"""What is done against growth, each in a process of its own: it is done to a whole process."""

import subprocess
import sys

import pytest

SAVES = """
import gc, sys, tempfile
from pathlib import Path
import jax.numpy as jnp
from jaxrnn import memory
from jaxrnn.checkpoint import Checkpoints
if sys.argv[1] == "steady":
    memory.steady()
with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(Path(folder))
    for number in range(16):
        checkpoints.save(number, jnp.ones(3), jnp.ones(3), {})
        checkpoints.wait()
        if number == 7:
            gc.collect()
            before = len(gc.get_objects())
    gc.collect()
    print(len(gc.get_objects()) - before)
    checkpoints.close()
"""
BUFFERS = """
import re, sys
from pathlib import Path
import numpy as np
from jaxrnn import memory
if sys.argv[1] == "steady":
    memory.steady()
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
np.ones(2**24, np.uint8)  # freed: glibc takes what is smaller from its heap from now on
before = resident()
buffers = [np.ones(2**22, np.uint8) for _ in range(8)]
last = buffers.pop()
buffers.clear()
print(resident() - before)
"""


def told(program: str, way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, way], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(("way", "some"), [("as it is", True), ("steady", False)])
def test_a_save_leaves_no_objects(way: str, some: bool) -> None:
    """8 saves; without `steady` tensorstore keeps dozens of objects of each. If that ends, so may it."""
    assert (told(SAVES, way) > 8 * 10) is some


@pytest.mark.skipif(sys.platform != "linux", reason="waits for Linux: reads /proc")
@pytest.mark.parametrize(("way", "some"), [("as it is", True), ("steady", False)])
def test_freed_buffers_go_back(way: str, some: bool) -> None:
    """Seven of eight buffers of 4 MiB are freed below one that is not: in kB."""
    assert (told(BUFFERS, way) > 4 * 4 * 1024) is some
