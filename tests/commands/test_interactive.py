"""Test `generate --interactive`: sessions through a pipe against `sample`, and one at a
pseudo-terminal with Ctrl-C and Ctrl-D."""

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxrnn import generate, load, sample, sample_bytes
from tests.support.runs import KNOWN, environment

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]

Session = Callable[..., tuple[bytes, list[str]]]


@pytest.fixture
def session(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Session:
    """Run a session through a pipe. Returns what it wrote to standard output and its messages."""

    def call(typed: str | bytes, *flags: Any, run: str = "run") -> tuple[bytes, list[str]]:
        raw = typed if isinstance(typed, bytes) else typed.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        capfdbinary.readouterr()
        arguments = [str(place / run), "--interactive", "--length", "20", *map(str, flags)]
        assert generate.main(arguments) == 0
        out, err = capfdbinary.readouterr()
        return out, err.decode().splitlines()

    return call


def error(lines: list[str]) -> str:
    """Return the only message, which is an error."""
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


# --- the text ---


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("typed", "prime"),
    [
        ("6 green\n", "6 green\n"),
        ("6 green\\\n", "6 green"),
        ("6 green", "6 green\n"),
        ("6 green\r\n", "6 green\n"),
        ("\n", "\n"),
        ("\\\n", "\n"),
        ("/newline\n", "\n"),
    ],
)
def test_one_line_is_a_sample(typed: str, prime: str, session: Session, place: Path) -> None:
    out, messages = session(typed, "--seed", 3, "--temperature", 0.8)
    expected = sample(load(place / "run"), prime, 20, seed=3, temperature=0.8)
    assert (out.decode(), messages) == (expected, [])


@pytest.mark.slow
def test_lines_continue_the_text(session: Session, place: Path) -> None:
    """With argmax, keys have no effect, so the text equals one call with the same beginning."""
    params = load(place / "run")
    text = KNOWN
    for typed in ("7\n", "", "on the"):
        text = sample(params, text + typed, 20, mode="argmax")
    lines = "7\n\non the\\\n"
    assert session(lines, "--prime", KNOWN, "--mode", "argmax") == (text.encode(), [])


def test_no_lines_are_the_prime(session: Session) -> None:
    assert session("", "--prime", KNOWN) == (KNOWN.encode(), [])
    assert session("") == (b"", [])
    assert session("/quit\nignored\n") == (b"", [])


@pytest.mark.slow
@pytest.mark.parametrize("raw", ["é\\\n".encode(), b"\xe9\xff\\\n"])
def test_a_model_of_bytes_reads_any_bytes(raw: bytes, session: Session, place: Path) -> None:
    out, messages = session(raw, run="latin")
    assert (out, messages) == (sample_bytes(load(place / "latin"), raw[:-2], 20), [])


def test_lines_that_stand_for_other_text(session: Session) -> None:
    """The model of bytes knows every character."""
    lines = {
        "//a": "/a\n",
        "///": "//\n",
        "/ a": "/ a\n",
        "/": "/\n",
        "a/b": "a/b\n",
        "a\\\\": "a\\\n",
        "\\\\": "\\\n",
        " ": " \n",
        "a\\": "a",
    }
    out, messages = session("\n".join(lines), "--length", 0, run="latin")
    assert (out.decode(), messages) == ("".join(lines.values()), [])


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["", "b\n"])
def test_characters_never_seen_are_named_and_nothing_is_lost(
    rest: str, session: Session, place: Path
) -> None:
    out, messages = session("6 green\\\nΩ bottles €\n" + rest.replace("b", "7"))
    assert "never seen: 'Ω' '€';" in error(messages)
    known, _ = session("6 green\\\n" + rest.replace("b", "7"))
    assert out == known


# --- commands ---


@pytest.mark.slow
def test_options_change_what_follows(session: Session, place: Path) -> None:
    commands = "/seed 3\n/temperature 0.8\n/top-k 5\n/top-p 0.9\n/mode categorical\n/length 33\n"
    out, messages = session(commands + "6 green\\\n")
    how: dict[str, Any] = {"seed": 3, "temperature": 0.8, "top_k": 5, "top_p": 0.9}
    assert out.decode() == sample(load(place / "run"), "6 green", 33, **how)
    names = [line.removeprefix("note: ").split(" is ")[0] for line in messages]
    assert names == ["seed", "temperature", "top-k", "top-p", "mode", "length"]


def test_options_are_shown_and_switched_off(session: Session) -> None:
    _, messages = session("/top-k\n/top-k none\n/top-k\n/length\n/length endless\n", "--top-k", 3)
    values = [line.rpartition(" ")[2] for line in messages]
    assert values == ["3", "none", "none", "20", "endless"]


@pytest.mark.slow
def test_undo_writes_the_turn_again(session: Session) -> None:
    """/undo does not remove text from standard output and does not change the options."""
    once, _ = session("6 green\\\n", "--seed", 4)
    other, _ = session("6 green\\\n")
    more, _ = session("6 green\\\n7\n\n", "--seed", 4)
    out, messages = session("6 green\\\n/undo\n/seed 4\n6 green\\\n/undo\n6 green\\\n7\n\n")
    assert out == other + once + more
    assert messages == ["note: the text is empty again", "note: seed is 4", messages[0]]
    out, messages = session("6 green\\\n7\n\n/undo\n/undo\n7\n\n", "--seed", 4)
    assert out == more + more.removeprefix(once)
    last = [line.removeprefix('note: the text now ends in "')[:-1] for line in messages]
    whole = more.decode()[:-20].replace("\n", "\\n")
    assert whole.endswith(last[0]) and once.decode().replace("\n", "\\n").endswith(last[1])


@pytest.mark.first_case
@pytest.mark.parametrize("run", ["run", "latin"])
def test_save_writes_the_whole_text_to_a_new_file(
    run: str, session: Session, tmp_path: Path
) -> None:
    saved, taken = tmp_path / "a text", tmp_path / "taken"
    taken.write_text("from before")
    lines = (
        f"6 gre\\\n7\n/undo\n/save {taken}\n/save {saved}\n/save {saved}\n/save {tmp_path}/no/a\n"
    )
    out, messages = session(lines, "--prime", "6 ", run=run)
    turn, _ = session("6 gre\\\n", "--prime", "6 ", run=run)
    assert saved.read_bytes() == turn and out.startswith(turn)
    assert taken.read_text() == "from before"
    assert messages[1:] == [
        f"error: {taken} exists; choose another name",
        f"note: the text is in {saved}",
        f"error: {saved} exists; choose another name",
        f"error: cannot write to {tmp_path}/no/a: No such file or directory; choose another name",
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_save_to_a_device_is_refused(session: Session) -> None:
    _, messages = session("6\n/save /dev/full\n")
    assert error(messages) == "/dev/full exists; choose another name"


def test_a_bad_command_is_one_line_and_changes_nothing(session: Session, unchecked: None) -> None:
    expected = {
        "/foo": "unknown command /foo; /help lists the commands",
        "/usr/bin": "unknown command /usr/bin; /help",
        "/temperature x": "/temperature must be a number, not 'x'",
        "/temperature 0": "/temperature must be a number above 0, not 0.0; /mode argmax always",
        "/seed 1.5": "/seed must be a whole number, not 1.5",
        "/top-k 0": "/top-k must be at least 1, not 0",
        "/top-p 2": "/top-p must be above 0 and at most 1, not 2.0",
        "/mode beam": "/mode must be one of categorical, argmax, after-space, not 'beam'",
        "/length -2": "length must be from 0 to 2^30 - 1, not -2",
        "/length x": "length must be a whole number, not 'x'",
        "/undo": "there is no turn to undo",
        "/undo 3": "/undo takes no value",
        "/save": "/save needs the name of a file",
        "/save a\0b": "cannot write to a\\x00b: embedded null byte; choose another name",
    }
    out, messages = session("\n".join([*expected, "6 green\\"]))
    for line, message in zip(messages, expected.values(), strict=True):
        assert line.startswith(f"error: {message}")
    assert out == session("6 green\\\n")[0]


def test_help_names_every_command(session: Session) -> None:
    out, messages = session("/help\n", "--seed", 8)
    assert out == b""
    named = set(re.findall(r"/[a-z][a-z-]*", "\n".join(messages)))
    assert named == {
        *("/undo", "/reset", "/newline", "/save", "/length", "/help", "/quit"),
        *("/temperature", "/mode", "/top-k", "/top-p", "/seed"),
    }
    assert "/seed 8" in "\n".join(messages)


@pytest.mark.slow
def test_a_reset_begins_a_new_text(session: Session) -> None:
    turn, _ = session("6 green\\\n")
    assert session("6 green\\\n/reset\n6 green\\\n", "--prime", "7")[0].endswith(turn)


# --- what cannot be combined ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--count", "2"], "--interactive writes one text, not --count 2"),
        (["--prime-file", "-"], "--interactive reads lines from standard input"),
        (["--output", "out"], "use /save instead of --output"),
        (["--stop", ""], "--stop is empty"),
        (["--stop", "Ω"], "--stop 'Ω': characters that the model has never seen"),
        (["--length", "-2"], "--length must be"),
        ([], "standard input is closed, and --interactive reads from it"),
    ],
    ids=str,
)
def test_options_that_interactive_refuses(
    flags: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()) if flags else None)
    assert message in refusal(generate.main, [str(place / "run"), "--interactive", *flags])


@pytest.mark.slow
def test_stop_ends_a_turn(session: Session, place: Path) -> None:
    whole = sample(load(place / "run"), KNOWN, 300)
    end = whole.index("\n", len(KNOWN)) + 1
    again = whole.index("\n", end) + 1
    flags = ["--prime", KNOWN, "--length", "endless", "--stop-at-line"]
    assert session("\n", *flags)[0].decode() == whole[:end]
    assert session("\n\n", *flags)[0].decode() == whole[:again]


# --- a terminal ---


class Terminal:
    """A session at a pseudo-terminal.

    Attributes:
      screen: what the terminal has shown so far.
    """

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = os.openpty()
        # In a new session the terminal is the controlling one, so Ctrl-C becomes a signal.
        program = f"import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, {[sys.executable, *command]})"  # noqa: E501
        env = environment() | {"TERM": "dumb", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=env
        )
        os.close(theirs)
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str, begin: int = 0) -> int:
        """Read until the screen shows a pattern after `begin`, and return where that ends."""
        while (found := re.search(pattern, self.screen[begin:])) is None:
            try:
                read = os.read(self._ours, 4096)
            except OSError:  # the session has ended
                read = b""
            assert read, self.screen
            self.screen += read.decode().replace("\r\n", "\n")
        return begin + found.end()

    def interrupt_prompt(self, pattern: str, begin: int) -> int:
        """Type Ctrl-C until the screen shows a pattern, and return where that ends.

        Python's prompt does not hear a signal that arrives just before it begins to wait for a key.
        """
        self.type("\x03")
        while not select.select([self._ours], [], [], 2)[0]:
            self.type("\x03")
        return self.wait_for(pattern, begin)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(place: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def call(*flags: str) -> Terminal:
        command = ["-m", "jaxrnn.generate", str(place / "run"), "--interactive", *flags]
        opened.append(Terminal(command))
        return opened[-1]

    yield call
    for each in opened:
        each.close()


@pytest.mark.process
def test_a_session_at_a_terminal(
    terminal: Callable[..., Terminal], place: Path, tmp_path: Path
) -> None:
    """Ctrl-C ends an endless text but not the command; everything that was shown is kept."""
    saved, again = tmp_path / "saved", tmp_path / "again"
    screen = terminal("--length", "endless", "--prime", KNOWN, "--seed", "2")
    at = screen.wait_for(f"{KNOWN}\nnote: type a line .*\n> ")
    screen.type("7\\\n")
    at = screen.wait_for(r"7\\\n", at)
    written = screen.wait_for(r"(?s).{200}", at)
    screen.type("\x03")
    end = screen.wait_for("\n> ", written)
    shown = screen.screen[at:end]
    screen.type("part")
    at = screen.wait_for("part", end)
    at = screen.interrupt_prompt("note: Ctrl-D or /quit ends; /help lists the commands\n> ", at)
    screen.type(f"/save {saved}\n/length 30\n\n/save {again}\n/undo\n")
    at = screen.wait_for(r'note: the text now ends in ".*"\n> ', at)
    screen.type("/leng\x7fgth\n\x1b[A\n")  # a deleted letter, then the line before
    at = screen.wait_for("(?s)note: length is 30\n.*note: length is 30\n> ", at)
    screen.type("\x04")
    assert screen.process.wait(60) == 0
    text = saved.read_text()
    assert text.startswith(KNOWN + "7") and len(text) > 200
    assert text[len(KNOWN) + 1 :].strip("\n") == shown.replace("^C", "").removesuffix("> ").strip(
        "\n"
    )
    assert text == sample(load(place / "run"), KNOWN + "7", len(text) - len(KNOWN) - 1, seed=2)
    continued = sample(load(place / "run"), KNOWN + "7", len(text) + 29 - len(KNOWN), seed=2)
    assert again.read_text() == continued


@pytest.mark.process
def test_ctrl_c_without_a_terminal(place: Path) -> None:
    """Ctrl-C ends the text while the model writes, and the command while it waits for a line."""
    command = [sys.executable, "-m", "jaxrnn.generate", str(place / "run"), "--interactive"]
    command += ["--length", "endless"]
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"6\\\n/length 0\n")
        process.stdin.flush()
        process.stdout.read(300)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"note: length is 0\n"
        time.sleep(1)  # until the session awaits a line
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
        process.stdout.read()
        assert process.wait(60) == 130
