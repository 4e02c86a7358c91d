"""Tests of the limit to heap growth, of available memory, and of the estimated need of a training.

The limit is set for a whole process, so it is tested in new processes.
"""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxrnn import InputError, charlm, generate, load, sample_many, train
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory
from jaxrnn.runs import train_text
from tests.support.runs import flags

pytestmark = pytest.mark.once

GB = 10**9

SAVES = """
import gc, sys, tempfile
from pathlib import Path
import jax.numpy as jnp
from jaxrnn.devices import memory
from jaxrnn.training.checkpoint import Checkpoints
if sys.argv[1] == "limited":
    memory.limit_heap_growth()
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
from jaxrnn.devices import memory
if sys.argv[1] == "limited":
    memory.limit_heap_growth()
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
np.ones(2**24, np.uint8)  # freed: glibc takes what is smaller from its heap from now on
before = resident()
buffers = [np.ones(2**22, np.uint8) for _ in range(8)]
last = buffers.pop()
buffers.clear()
print(resident() - before)
"""


def printed(program: str, way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, way], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.process
@pytest.mark.parametrize(("way", "some"), [("default", True), ("limited", False)])
def test_saving_leaks_no_objects(way: str, some: bool) -> None:
    """Without `limit_heap_growth` tensorstore keeps dozens of objects per save; 8 saves are made."""
    assert (printed(SAVES, way) > 8 * 10) is some


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="waits for Linux: reads /proc")
@pytest.mark.parametrize(("way", "some"), [("default", True), ("limited", False)])
def test_freed_buffers_are_returned_to_the_system(way: str, some: bool) -> None:
    """Seven of eight buffers of 4 MiB are freed, below one that is not; the growth is in kB."""
    assert (printed(BUFFERS, way) > 4 * 4 * 1024) is some


# --- how much there is ---

MEMINFO = "MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\nSwapFree: {} kB\n"
SOME = (
    "anon 1\ninactive_file {0}\nactive_file {0}\ntotal_inactive_file {1}\ntotal_active_file {1}\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a system, as in /proc and /sys, and return their root."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def group(version: int, path: str, limit: int | str, used: int, cached: int = 0) -> dict[str, str]:
    if version == 2:
        top = f"sys/fs/cgroup/{path}/memory"
        names, stat = [f"{top}.max", f"{top}.current", f"{top}.stat"], SOME.format(cached, 0)
    else:
        top = f"sys/fs/cgroup/memory/{path}/memory"
        names = [f"{top}.limit_in_bytes", f"{top}.usage_in_bytes", f"{top}.stat"]
        stat = SOME.format(0, cached)
    return dict(zip(names, [f"{limit}\n", f"{used}\n", stat], strict=True))


V1 = {"proc/self/cgroup": "9:cpu:/a\n4:memory:/job/step\n"}
V2 = {"proc/self/cgroup": "0::/job/step\n"}
SYSTEMS: dict[str, tuple[dict[str, str], float]] = {  # files, GB
    "no group": ({}, 5.12),
    "swap": ({"proc/meminfo": MEMINFO.format(1_000_000)}, 6.144),
    "version 2": (V2 | group(2, "job/step", 3 * GB, 1 * GB), 2),
    "a group without a limit": (V2 | group(2, "job/step", "max", 1 * GB), 5.12),
    "a limit further up": (V2 | group(2, "job/step", "max", 1) | group(2, "job", 2 * GB, GB), 1),
    "cached files give way": (V2 | group(2, "job/step", 3 * GB, 2 * GB, GB // 2), 2),
    "the container is the top": (V2 | group(2, "", 3 * GB, 1 * GB), 2),
    "more than there is": (V2 | group(2, "job/step", 90 * GB, 1 * GB), 5.12),
    "nothing left": (V2 | group(2, "job/step", 3 * GB, 4 * GB), 0),
    "version 1": (V1 | group(1, "job/step", 3 * GB, 2 * GB, GB // 2), 2),
    "version 1, no limit": (V1 | group(1, "job/step", 2**63 - 4096, GB), 5.12),
    "version 1, further up": (V1 | group(1, "job/step", 4 * GB, 0) | group(1, "", 2 * GB, GB), 1),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_available_memory_of_the_host(name: str, tmp_path: Path) -> None:
    files, want = SYSTEMS[name]
    root = tree(tmp_path, {"proc/meminfo": MEMINFO.format(0)} | files)
    assert memory.available_on_host(root) == pytest.approx(want * GB)


@contextmanager
def limited(kind: int, size: int) -> Iterator[None]:
    """Limit this process to `size` more bytes."""
    before = resource.getrlimit(kind)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmSize:\s+(\d+)", status)
    assert found
    resource.setrlimit(kind, (int(found[1]) * 1024 + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.skipif(sys.platform != "linux", reason="waits for Linux: reads /proc")
def test_resource_limits_of_the_process_count() -> None:
    with limited(resource.RLIMIT_AS, GB):
        found = memory.available_on_host()
    assert found is not None and 0.9 * GB < found < 1.1 * GB
    assert memory.available_on_host() != found


def test_available_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"bytes_limit": 80 * GB, "bytes_in_use": 5 * GB}
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(accelerator, "device", lambda: gpu)
    assert memory.available() == 75 * GB
    memory.check(75 * GB, "this", "less")
    with pytest.raises(InputError) as caught:
        memory.check(76 * GB, "this", "less")
    assert str(caught.value) == "this needs about 76.0 GB of memory, and there are 75.0 GB: less"
    monkeypatch.setattr(gpu, "memory_stats", lambda: None)
    memory.check(10**15, "this", "less")


# --- how much a training needs ---

MEASURED = """
import re, sys, tempfile
from pathlib import Path
from jaxrnn import charlm
from jaxrnn.data.corpus import make_corpus
from jaxrnn.devices import memory, mesh
from jaxrnn.training import loop
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import Report

Report.draw = lambda self: None  # matplotlib is not what is measured
memory.limit_heap_growth()
corpus = make_corpus("".join(f"{n} green bottles hanging on the wall\\n" for n in range(800)))
needs = []
memory.check = lambda need, *_: needs.append(need)

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

model = charlm.ModelConfig(hidden_size=1000, embedding_size=32, recurrent_init="glorot")
config = TrainingConfig(model, 64, 100, 4, log_every=2, eval_every=2, sample_every=0)
loop.check(config, corpus, mesh.single())
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
with tempfile.TemporaryDirectory() as run:
    loop.fit(config, corpus, Path(run), Report(Path(run), 1, quiet=True))
print(needs[0], resident("VmHWM") - before)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="waits for Linux: reads /proc")
def test_the_estimate_is_close_to_the_memory_of_a_training() -> None:
    """It is not above, so that nothing that fits is refused. Model and batch take half each."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    need, taken = map(int, done.stdout.split())
    assert 0.6 * taken < need < 1.05 * taken


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="waits for Linux: reads /proc")
def test_a_training_that_does_not_fit_is_refused(
    tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """It is refused within seconds; allocating that much memory would hang."""
    (tmp_path / "text").write_text("a long text\n" * 100)
    more = ["--recurrent-init", "glorot", "--cell", "lstm", "--hidden-size", "12000"]
    with limited(resource.RLIMIT_AS, 6 * GB):
        message = refusal(train.main, flags(tmp_path / "text", tmp_path / "run", *more))
    found = re.search(r"needs about ([\d.]+) GB of memory, and there are ([\d.]+) GB: ", message)
    assert found and float(found[1]) > 6 >= float(found[2]) > 4
    assert "--hidden-size" in message and "--batch" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = memory.bytes_per_device(load(place / "run"))
    monkeypatch.setattr(memory, "available_on_host", lambda: size)
    load(place / "run")
    monkeypatch.setattr(memory, "available_on_host", lambda: size - 1)
    with pytest.raises(
        InputError, match=r"the model of .*/run needs about [\d.]+ MB of memory, and"
    ):
        load(place / "run")


@pytest.mark.slow
def test_samples_that_do_not_fit_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    params = load(place / "run")
    monkeypatch.setattr(memory, "available_on_host", lambda: 10**9)
    for count, length in (10**15, 0), (10_000, 2**20):
        message = f"writing {count:,} texts at once needs about "
        with pytest.raises(InputError, match=message):
            sample_many(params, "1", length, count=count)
        many = ["--count", str(count), "--length", str(length)]
        assert message in refusal(generate.main, [str(place / "run"), *many])
    assert len(sample_many(params, "1", 3, count=1000)) == 1000


@pytest.mark.slow
def test_running_out_of_memory_is_reported(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(train_text, "make_corpus", short)
    message = refusal(train.main, flags(place / "text.txt", tmp_path / "run"), status=1)
    assert message.startswith("out of memory (MemoryError); ") and "--batch" in message


@pytest.mark.slow
def test_bytes_of_parameters() -> None:
    params = charlm.init(charlm.ModelConfig(hidden_size=3, embedding_size=2), Vocabulary.of("abc"))
    assert memory.bytes_per_device(params) == 4 * charlm.count(params)
