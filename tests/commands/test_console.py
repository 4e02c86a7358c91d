"""Streams of any kind take any text, arguments of any kind reach a shell and come from one."""

import dataclasses
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro
from rich.console import Console

from jaxrnn import (
    arguments,
    console,
    evaluate,
    export,
    generate,
    inspect,
    prepare,
    progress,
    stopping,
    train,
)
from jaxrnn.errors import InputError, whole_number
from jaxrnn.training import signals

pytestmark = pytest.mark.once

ODD = (
    "caf\xe9 \u2014 \ud55c \udce9 \u2026"  # accents, a dash, a script, a byte of a file name, dots
)


# --- streams ---


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_any_text_on_any_stream(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "stdout", "stderr":
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, errors="strict"))
    console.open_streams()
    print(ODD, flush=True)
    print(ODD, file=sys.stderr, flush=True)
    console.error(ODD)
    console.note(ODD)
    for stream in sys.stdout, sys.stderr:
        assert isinstance(stream, io.TextIOWrapper)
        shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert shown.startswith("caf") and "\udce9" not in shown


CLOSED = """
import os, sys
from jaxrnn import console
console.open_streams()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(1, b"x"); os.write(2, b"x"); print("x"); print("x", file=sys.stderr); console.error("x")
sys.exit(opened)
"""


@pytest.mark.process
def test_closed_streams_are_opened(tmp_path: Path) -> None:
    """So that no file that is opened later becomes standard output, and gets what is printed."""
    file = tmp_path / "file"
    command = f"{sys.executable} -c {shlex.quote(CLOSED)} {file} <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode > 2, "the file's descriptor is not a standard stream's"
    assert file.read_bytes() == b""


class Pipe:
    """Standard output that is a pipe without a reader."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        self.file = os.fdopen(writer, "w")
        patch.setattr(sys, "stdout", self.file)

    def close(self) -> None:
        console.abandon_output()
        self.file.close()


def test_output_outlives_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    with console.lasting_output():
        assert not console.pipe_closed()
        print("one line")
        assert console.pipe_closed()
        print("another", flush=True)
    assert sys.stdout is pipe.file and not console.pipe_closed()
    with pytest.raises(BrokenPipeError):  # so this test can fail
        print("a line", flush=True)
    pipe.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_output_outlives_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with console.lasting_output():
            print("a line", flush=True)
            assert not console.pipe_closed()


def test_lines_come_out_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print("before")
        with console.lasting_output():
            print("\u2026")
            assert (tmp_path / "out").read_bytes() == "before\n\u2026\n".encode()
            print("within", end="")
        print("after")
    assert (tmp_path / "out").read_bytes() == "before\n\u2026\nwithinafter\n".encode()


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("cannot read a\nb\x1b[31m\udce9")
    assert capsys.readouterr().err == "error: cannot read a\\nb\\x1b[31m\\udce9\n"


# --- signals ---


@pytest.mark.parametrize("name", stopping.NAMES)
def test_a_signal_that_came_ignored_stays_ignored(name: str) -> None:
    """SIGHUP is ignored under nohup, and SIGINT in background jobs of a script."""
    number, heard = getattr(signal, name), []
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stopping.catching(heard.append):
            signal.raise_signal(number)
        assert heard == [] and signal.getsignal(number) is signal.SIG_IGN
        for other in {*stopping.NAMES} - {name}:
            with stopping.catching(heard.append):
                signal.raise_signal(getattr(signal, other))
            assert heard.pop() == 128 + getattr(signal, other)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", stopping.NAMES)
def test_signals_ask_to_stop(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with signals.Stop() as stop:
        assert not stop.asked()
        signal.raise_signal(getattr(signal, name))
        assert stop.asked() and stop.status == 128 + getattr(signal, name)
    assert "stopping after this device call" in capsys.readouterr().out
    with pytest.raises(stopping.Stopped) as stopped, stopping.catching(stopping.stop):
        signal.raise_signal(getattr(signal, name))
    assert stopped.value.args == (128 + getattr(signal, name),)


def test_a_second_signal_is_handled_differently(capsys: pytest.CaptureFixture[str]) -> None:
    stop = signals.Stop(leave=("SIGTERM",), again=stopping.interrupt, quiet=True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop:
        assert signal.getsignal(signal.SIGTERM) is before
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().out == ""


def test_other_threads_leave_signals_alone() -> None:
    before = [signal.getsignal(getattr(signal, name)) for name in stopping.NAMES]
    found = []

    def work() -> None:
        with signals.Stop() as stop:
            found.append(stop.asked())
            found.extend(signal.getsignal(getattr(signal, name)) for name in stopping.NAMES)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, *before]


# --- a notebook ---


def test_a_notebook_gets_one_bar_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython import display

    shown: list[Any] = []
    replaced: list[Any] = []

    def replace(output: Any, raw: bool) -> None:
        assert raw
        replaced.append(output)

    def show(output: Any, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        shown.append(output)
        return SimpleNamespace(update=replace)

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(progress, "NOTEBOOK_EVERY", 3600.0)
    bar = progress.NotebookBar(progress.STEPS, Console(force_jupyter=True))
    bar.begin("compiling", 0, 1000)
    for step in range(1000):
        bar.reach(step, f"loss {step}")
    assert len(shown) == 1 and replaced == []
    monkeypatch.setattr(progress, "NOTEBOOK_EVERY", 0.0)
    bar.reach(1000, "loss 0.5")
    bar.end()
    bar.end()
    assert len(shown) == 1 and len(replaced) == 2
    for formats in shown + replaced:
        assert set(formats) == {"text/html", "text/plain"}
        # Viewers of plain text show escape codes as they are.
        assert "\x1b" not in formats["text/plain"]
    for text in replaced[-1].values():
        assert "1000/1000" in text and "loss 0.5" in text


# --- signals in a print ---


class Interrupting(io.RawIOBase):
    """A file whose first write is interrupted by a signal."""

    def __init__(self, file: int, number: int) -> None:
        self._file, self._number = file, number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    def write(self, data: Any) -> int:
        if number := self._number:
            self._number = 0
            signal.raise_signal(number)
        return os.write(self._file, data)


def test_a_signal_in_the_middle_of_a_print_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = io.TextIOWrapper(io.BufferedWriter(Interrupting(writer, signal.SIGTERM)), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    with signals.Stop() as stop:
        print("step 2", flush=True)
        assert stop.asked()
    os.close(writer)
    with open(reader) as written:
        text = written.read()
    assert "stopping after this device call" in text and "step 2\n" in text


# --- arguments ---


COMMANDS: list[tuple[Any, list[str], tuple[Any, ...]]] = [
    (generate.GenerateOptions, ["run"], ()),
    (prepare.PrepareOptions, ["--data", "a"], ()),
    (export.ExportOptions, ["run"], ()),
    (evaluate.EvaluateOptions, ["run", "text"], ()),
    (inspect.InspectOptions, ["run", "text"], ()),
    (train.TrainOptions, [], (tyro.conf.OmitArgPrefixes,)),
]
WORDS = ["None", "none", "a b", "\udce9", "", "=", "-"]


def values(config: Any) -> dict[str, Any]:
    """The fields of a dataclass and of those in it, by flag."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = "--" + field.name.replace("_", "-")
        found.update(values(value) if dataclasses.is_dataclass(value) else {name: value})
    return found


@pytest.mark.parametrize(("kind", "needed", "markers"), COMMANDS)
def test_every_word_is_a_text(kind: Any, needed: list[str], markers: Any) -> None:
    """None too, where another parser takes it for no value."""
    flags = arguments._text_flags(kind) - {"--run", "--text", "--data", "--coordinator", "--freeze"}
    wanted = {
        "--encoding",
        "--find",
        "--glob",
        "--output",
        "--prime",
        "--prime-file",
        "--record",
        "--sample-prime",
        "--stop",
        "--mesh",
        "--workdir",
        "--init-from",
        "--safetensors",
        "--stablehlo",
        "--onnx",
        "--html",
        "--licence",
        "--surprisal",
        "--title",
        "--tokens",
        "--unit",
    }
    assert wanted & values(arguments.parse(kind, "", needed, markers=markers)).keys() == flags
    for word in WORDS:
        for argv in (
            [x for flag in flags for x in (flag, word)],
            [f"{flag}={word}" for flag in flags],
        ):
            got = values(arguments.parse(kind, "", [*needed, *argv], markers=markers))
            for flag in flags:
                one = got[flag][0] if isinstance(got[flag], tuple) else got[flag]
                assert one == (Path(word) if isinstance(one, Path) else word)


@pytest.mark.parametrize("flag", ["--prime", "--prime-file", "--prime_file", "--output"])
@pytest.mark.parametrize("value", ["-s", "--", "-- dump", "--length", "-rw-r--r--"])
def test_a_value_like_a_flag_is_explained(flag: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{flag} needs a value; .* {flag}=VALUE"):
        arguments.parse(generate.GenerateOptions, "", ["run", flag, value])
    got = arguments.parse(generate.GenerateOptions, "", ["run", f"{flag}={value}"])
    assert value in (got.prime, got.prime_file, got.output)


def test_numbers_can_be_none() -> None:
    """Which undoes what a preset says."""
    options = arguments.parse(generate.GenerateOptions, "", ["run", "--top-k", "None"])
    assert options.sampling.top_k is None
    assert train.parse(["--preset", "sprint"]).training.stop_at == 1.4697
    assert train.parse(["--preset", "sprint", "--stop-at", "None"]).training.stop_at is None


def test_primes_of_the_command_line() -> None:
    assert arguments.prime("--prime", "caf\udce9", by_bytes=True) == b"caf\xe9"
    assert arguments.prime("--prime", "caf\xe9", by_bytes=True) == os.fsencode("caf\xe9")
    assert arguments.prime("--prime", "caf\xe9", by_bytes=False) == "caf\xe9"
    # a locale that does not know UTF-8 leaves its bytes undecoded
    assert arguments.prime("--prime", "caf\udcc3\udca9", by_bytes=False) == "caf\xe9"
    with pytest.raises(InputError, match="--prime is not UTF-8: byte 0xe9 at offset 3"):
        arguments.prime("--prime", "caf\udce9", by_bytes=False)


# --- whole numbers ---


@pytest.mark.parametrize("value", [2.0, 2.5, True, None, "2", b"2", [2], 2j])
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^count must be a whole number, not "):
        whole_number("count", value)


def test_whole_numbers() -> None:
    import jax.numpy as jnp
    import numpy as np

    for value in 3, np.int8(3), np.uint64(3), np.array(3), jnp.int32(3):
        number = whole_number("count", value, 3)
        assert number == 3 and type(number) is int
    with pytest.raises(ValueError, match=r"^count must be at least 4, not 3"):
        whole_number("count", np.int64(3), 4)
    for value in np.bool_(True), np.float32(3), np.array([3, 4]), jnp.float32(3):
        with pytest.raises(ValueError, match=r"^count must be a whole number, not "):
            whole_number("count", value)
