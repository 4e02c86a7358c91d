"""Test the notebook: it runs, its claims hold, and the outputs in the file are those of its cells."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from jaxrnn.devices import storage

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "experiments" / "char_rnn.ipynb"
# Most bytes of the file, its pictures included.
LARGEST = 200_000

pytestmark = pytest.mark.once


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[str]:
    """Return the texts that a cell shows, one for each output."""
    plain = (output.get("data", {}).get("text/plain") for output in cell.outputs)
    return [
        text or output.get("text", "") for text, output in zip(plain, cell.outputs, strict=True)
    ]


def trains(cell: Any) -> bool:
    return "jaxrnn.fit(" in cell.source


def test_the_file_has_the_outputs_of_a_run_from_top_to_bottom() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    for cell in cells:
        assert bool(cell.outputs) >= ("print(" in cell.source), cell.source
    assert FILE.stat().st_size < LARGEST
    shown = "\n".join(text for cell in cells for text in texts(cell))
    assert not re.search(r"/(tmp|home|root|work|usr|opt)/|Users|\x1b", shown)
    assert "shakespeare: 1,115,394 characters" in shown


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels import this jaxrnn and run it as users do."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")


def hide_shakespeare(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away the network and the cached text, but not the cached C++, which takes long to compile."""
    for library in storage.cache_folder().glob("*.so"):
        shutil.copy(library, folder)
    monkeypatch.setenv("JAXRNN_CACHE", str(folder))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


# Each run of CI takes one of the two cases.
@pytest.mark.process
@pytest.mark.parametrize("offline", [False, True])
def test_the_notebook_runs_and_shows_one_bar_for_each_training(
    offline: bool,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The assertions in its cells raise, and nbclient with them."""
    if offline:
        hide_shakespeare(monkeypatch, tmp_path_factory.mktemp("cache"))
    notebook = nbformat.read(FILE, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=580, kernel_name="python3", resources=resources).execute()
    for cell in filter(trains, code_cells(notebook)):
        bars = [
            text for text in texts(cell) if "loss" in text and "nats" in text and "\u2501" in text
        ]
        assert len(bars) == 1, texts(cell)
        assert not any(re.search(r"^step \d+/", text, re.MULTILINE) for text in texts(cell))
    if offline:
        assert "floor" in bars[0], "the last training is not that of the play"
    # The run directories are temporary.
    assert not any(tmp_path.iterdir())
    # Outputs that do not depend on the machine must equal the stored ones.
    stored = code_cells(nbformat.read(FILE, as_version=4))
    for cell, before in zip(code_cells(notebook), stored, strict=True):
        if any(trains(earlier) for earlier in stored[: cell.execution_count]):
            break
        assert texts(cell) == texts(before)


ENDLESS = """import jaxrnn
run = jaxrnn.fit("HELLO" * 200, hidden=4, steps=10**8, warmup=0, sample_every=0, eval_every=1000)
print(run.complete, run.metrics["step"][-1] < 10**8)"""


@pytest.mark.process
def test_interrupting_the_kernel_stops_the_training_and_keeps_the_run() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute(ENDLESS)
        shown, interrupted = "", False
        while True:
            message = client.get_iopub_msg(timeout=120)
            content = message["content"]
            shown += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            if not interrupted and message["msg_type"] == "update_display_data" and "val" in shown:
                manager.interrupt_kernel()
                interrupted = True
            if interrupted and content.get("execution_state") == "idle":
                break
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "stopping after this device call" in shown
    assert shown.endswith("False True\n"), shown[-500:]
