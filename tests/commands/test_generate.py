"""The generate command: what it writes, in every encoding, and its one-line errors."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrnn import (
    generate,
    load,
    prepare,
    sample,
    sample_bytes,
    sample_bytes_many,
    sample_many,
    train,
)
from jaxrnn.commands import generator
from jaxrnn.data import sources
from jaxrnn.data.vocabulary import Vocabulary
from tests.support.runs import KNOWN, TEXT, environment, flags, lose_the_reader

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]

# --- what it writes, and what it refuses ---


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert generate.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.first_case
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(length=0),
        dict(length=1, seed=7),
        dict(mode="argmax"),
        dict(mode="after-space"),
        dict(temperature=0.5, top_k=3),
        dict(top_p=0.8, seed=2**32 - 1),
    ],
    ids=str,
)
def test_the_output_is_what_sample_returns(
    changes: dict[str, Any], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"prime": KNOWN, "length": 40} | changes
    arguments = [f"--{n.replace('_', '-')}={v}" for n, v in given.items()]
    text = written(capsys, place / "run", *arguments)
    assert text == sample(load(place / "run"), **given)
    assert text.startswith(KNOWN) and len(text) == len(KNOWN) + given["length"]
    assert written(capsys, place / "run", *arguments) == text


def test_defaults(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, place / "run")
    assert text == sample(load(place / "run"), "\n", 500)
    assert text != written(capsys, place / "run", "--seed", 1)


@pytest.mark.slow
def test_many_texts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = written(capsys, place / "run", "--prime", KNOWN, "--length", 20, "--count", 2)
    one, two = sample_many(load(place / "run"), KNOWN, 20, count=2)
    assert one != two
    assert out == f"--- 1 ---\n{one}\n--- 2 ---\n{two}\n"


def test_prime_from_a_file_and_output_to_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prime").write_text(KNOWN)
    arguments = ["--prime-file", tmp_path / "prime", "--length", 20]
    on_screen = written(capsys, place / "run", *arguments)
    assert (
        generate.main([*map(str, [place / "run", *arguments, "--output", tmp_path / "out"])]) == 0
    )
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out").read_text() == on_screen


@pytest.mark.slow
def test_best_or_latest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("best", "latest"):
        text = written(capsys, run, "--which", which, "--length", 20)
        assert text == sample(load(run, which), "\n", 20)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prime", "Ω€"], "never seen: 'Ω' '€'"),
        (["--prime", ""], "prime is empty"),
        (["--prime", "caf\udce9"], "--prime is not UTF-8: byte 0xe9 at offset 3"),
        (["--prime", "-s"], "--prime needs a value; write one that begins with - as --prime=VALUE"),
        (["--prime", "--length"], "--prime=VALUE"),
        (["--temperature", "0"], "--temperature must be a number above 0, not 0.0; --mode argmax"),
        (["--temperature", "nan"], "--temperature must be a number above 0"),
        (["--length", "-2"], "--length must be"),
        (["--length", "endless", "--count", "2"], "--length endless is for one text"),
        (["--top-k", "0"], "--top-k must be at least 1"),
        (["--top-p", "0"], "--top-p must be above 0"),
        (["--count", "0"], "--count must be at least 1"),
        (["--seed", "-1"], "--seed must be"),
        (["--prime", "a", "--prime-file", "b"], "--prime or --prime-file"),
        (["--prime-file", "no-such-file"], "cannot read no-such-file"),
        (["--prime-file", "/"], "cannot read /"),
        (
            ["--prime-file", "cyrillic"],
            "cyrillic is not UTF-8: byte 0xcd at offset 0 (line 1); it has another encoding",
        ),
        (["--prime-file", "empty"], "prime is empty"),
        (["--prime-file", "-"], "standard input is closed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_to_generate(
    arguments: list[str],
    message: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    """The content of the output file is kept."""
    monkeypatch.chdir(tmp_path)
    Path("cyrillic").write_bytes("мир".encode("koi8-r"))
    Path("empty").touch()
    monkeypatch.setattr(sys, "stdin", None)
    Path("out").write_text("from before")
    line = refusal(generate.main, [str(place / "run"), *arguments, "--output", "out"])
    assert message in line
    assert Path("out").read_text() == "from before"


def test_directories_that_are_not_runs(
    place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    assert "is not a folder" in refusal(generate.main, [str(tmp_path / "nowhere")])
    assert "is not a run of jaxrnn" in refusal(generate.main, [str(tmp_path)])
    for name in ("config.json", "vocab.json"):
        shutil.copy(place / "run" / name, tmp_path)
    assert "no good checkpoint yet" in refusal(generate.main, [str(tmp_path)])


def test_output_that_cannot_be_written(
    place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    for output in tmp_path / "missing" / "out", tmp_path:
        message = refusal(generate.main, [str(place / "run"), "--output", str(output)])
        assert f"cannot write to {output}: " in message and "--output" in message
    full = Path("/dev/full")
    if full.exists():
        message = refusal(generate.main, [str(place / "run"), "--output", str(full)], status=1)
        assert message == "could not write to /dev/full: No space left on device"


def test_ctrl_c_while_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "run", interrupted)
    try:
        assert generate.main(["somewhere"]) == 130
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")


# --- text of any kind, in and out ---


def strict_screen(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Callable[[], bytes]:
    """Give both outputs a strict encoding. Returns a function that reads standard output."""
    raw, options = io.BytesIO(), {"encoding": encoding, "errors": "strict", "write_through": True}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, **options))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), **options))
    return raw.getvalue


@pytest.mark.slow
@pytest.mark.parametrize("bar", [False, True], ids=["lines", "bar"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_of_the_screen_stops_a_command(
    encoding: str, bar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, file name, prime and errors have characters that the encoding of the screen lacks."""
    monkeypatch.chdir(tmp_path)
    if bar:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "30"}.items():
            monkeypatch.setenv(name, value)
    name = "\udce9 Ж.txt"
    Path(name).write_text(TEXT.replace("green", "caf\xe9 \u2014 Ж"), encoding="utf-8")
    screen = strict_screen(monkeypatch, encoding)
    arguments = flags(name, "run", "--sample-prime", "Ж", sample_every=4)
    assert train.main(arguments) == 0
    shown = screen().decode(encoding)
    assert "\n--- a sample at step 8 ---\n" in shown or bar
    assert "done. Now: python -m jaxrnn.generate run --prime" in shown
    assert Path("run/samples.txt").read_bytes().count("Ж".encode()) >= 2

    screen = strict_screen(monkeypatch, encoding)
    assert generate.main(["run", "--prime", "\u2014 Ж", "--length", "40"]) == 0
    text = str(sample(load("run"), "\u2014 Ж", 40))
    assert screen() == text.encode(encoding, "replace")
    assert generate.main(["run", "--prime", "\udce9 Ω"]) == 2
    assert generate.main([name]) == 2

    screen = strict_screen(monkeypatch, encoding)
    assert prepare.main(["--data", name, "--output", "\udce9 Ж"]) == 0
    assert train.main(flags("\udce9 Ж", "run")) == 0
    assert b"done. Now: python -m jaxrnn.train --data $'" in screen()


@pytest.mark.slow
def test_files_whose_names_are_not_utf8(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    """They are read. A run directory must have another name, which is reported first of all."""
    monkeypatch.chdir(tmp_path)
    Path("caf\udce9.txt").write_text(TEXT)
    no_workdir = [word for word in flags("caf\udce9.txt", "") if word not in ("--workdir", "")]
    assert train.main([*no_workdir, "--overwrite"]) == 0
    assert "run directory runs/caf_-small\n" in capsys.readouterr().out
    for workdir in "w\udce9", "w\udce9/run":
        message = refusal(train.main, flags("caf\udce9.txt", workdir))
        assert f"{tmp_path}/w\\udce9" in message and "is not UTF-8" in message
    shutil.copytree("runs/caf_-small", "w\udce9")
    assert "is not UTF-8" in refusal(generate.main, ["w\udce9"])
    monkeypatch.chdir("w\udce9")
    assert "is not UTF-8" in refusal(generate.main, ["."])


@pytest.mark.slow
def test_what_a_model_of_bytes_writes(
    place: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It writes the bytes it draws, to a file or the screen, one text or many, whole or in pieces."""
    run, out = str(place / "latin"), tmp_path / "out"
    prime = "caf\udce9 "  # as Python gives the byte 0xe9 of a command line
    raw = sample_bytes(load(run), b"caf\xe9 ", 2000)
    assert isinstance(raw, bytes) and b"\xef\xbf\xbd" not in raw and not is_utf8(raw[5:])
    arguments = [run, "--prime", prime, "--length", "2000"]
    for more in [], ["--output", "-"], ["--output", str(out)]:
        assert generate.main([*arguments, *more]) == 0
    assert capfdbinary.readouterr().out == raw * 2
    assert out.read_bytes() == raw
    one, two = sample_bytes_many(load(run), b"caf\xe9 ", 30, count=2)
    assert generate.main([run, "--prime", prime, "--length", "30", "--count", "2"]) == 0
    assert capfdbinary.readouterr().out == b"--- 1 ---\n%b\n--- 2 ---\n%b\n" % (one, two)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.slow
def test_a_binary_file_from_end_to_end(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data, run = tmp_path / "program.bin", tmp_path / "run"
    data.write_bytes(bytes([0, 255, 27, 0xE9, 10]) * 200)
    assert (
        train.main(flags(data, run, "--bytes", "--sample-prime", "\udcff\udce9", sample_every=4))
        == 0
    )
    lines = capfdbinary.readouterr().out.split(b"\n")
    assert lines[0] == b"program: 1,000 bytes, 5 different; the last 100 are for validation"
    assert lines[-2] == b"done. Now: python -m jaxrnn.generate %b" % os.fsencode(run)
    assert all(byte == 9 or byte >= 32 for line in lines for byte in line), "no control characters"
    samples = (run / "samples.txt").read_bytes()
    assert samples.startswith(b"--- step 4 ---\n\xff\xe9") and b"\xef\xbf\xbd" not in samples
    assert generate.main([str(run), "--prime-file", str(data), "--length", "9"]) == 0
    assert capfdbinary.readouterr().out == sample_bytes(load(run), data.read_bytes(), 9)


@pytest.mark.parametrize(
    "content",
    ["sang.\r\nThe", "lone\rreturn", "ends\n", "\n", "\n\n\u2028", "mark \ufeff inside"],
)
@pytest.mark.parametrize("by", ["file", "stdin"])
def test_a_prime_file_is_read_as_training_reads(
    content: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line break is translated or dropped, and a byte order mark at the start is not a character."""
    prime, raw = tmp_path / "prime", "\ufeff" + content
    prime.write_bytes(raw.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw.encode()), "latin-1"))
    source = sources.read([str(prime)]).content
    config = generate.GenerateOptions(Path("run"), prime_file="-" if by == "stdin" else str(prime))
    assert generator._prime(config, Vocabulary.of(content)) == source == content


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbfmark", b"caf\xe9\r\n", bytes(range(256))])
@pytest.mark.parametrize("by", ["file", "stdin"])
def test_a_prime_file_of_bytes(
    raw: bytes, by: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prime").write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    given = "-" if by == "stdin" else str(tmp_path / "prime")
    out = str(tmp_path / "out")
    arguments = [str(place / "latin"), "--prime-file", given, "--length", "0", "--output", out]
    assert generate.main(arguments) == 0
    assert Path(out).read_bytes() == raw


@pytest.mark.slow
def test_output_can_be_the_next_prime(
    place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The file contains only the text, so a text drawn in two parts equals the text drawn in one."""
    run, out, more = str(place / "run"), str(tmp_path / "out"), str(tmp_path / "more")
    how = ["--mode", "argmax", "--length", "20", "--output"]
    assert generate.main([run, "--prime", KNOWN, *how, out]) == 0
    assert generate.main([run, "--prime-file", out, *how, more]) == 0
    assert Path(more).read_text() == sample(load(run), KNOWN, 40, mode="argmax")
    assert "is the --prime-file" in refusal(generate.main, [run, "--prime-file", out, *how, out])
    assert Path(out).read_text() == sample(load(run), KNOWN, 20, mode="argmax")


@pytest.mark.parametrize("run", ["run", "latin"])
def test_a_terminal_gets_a_last_new_line(
    run: str, place: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    ours, theirs = os.openpty()
    ends(os.close, ours)
    terminal = os.fdopen(theirs, "w")
    ends(terminal.close)
    monkeypatch.setattr(sys, "stdout", terminal)
    for prime, shown in (KNOWN, KNOWN + "\r\n"), (KNOWN + "\n", KNOWN + "\r\n"):
        assert generate.main([str(place / run), "--prime", prime, "--length", "0"]) == 0
        written = b""
        while len(written) < len(shown):  # each write may arrive on its own
            written += os.read(ours, 100)
        assert written.decode() == shown


@pytest.mark.slow
def test_the_word_none_is_a_prime_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/None").write_text("None of the pythons\n" * 20)
    assert train.main(flags("texts/None", "None", "--sample-prime", "None", sample_every=8)) == 0
    assert Path("None/samples.txt").read_text().startswith("--- step 8 ---\nNone")
    capsys.readouterr()
    assert generate.main(["None", "--prime", "None", "--length", "3", "--output", "None.txt"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("None.txt").read_text().startswith("None")
    assert prepare.main(["--data", "texts", "--glob", "None", "--output", "none"]) == 0
    assert "texts: 400 characters, 12 different, in none as uint8" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["run", "latin"])
def test_a_text_whose_output_has_no_reader(
    run: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    lose_the_reader(monkeypatch, ends)
    assert generate.main([str(place / run), "--length", "endless"]) == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")


@pytest.mark.process
@pytest.mark.parametrize(("by", "status"), [("pipe", 141), ("Ctrl-C", 130)])
def test_an_endless_text_ends(by: str, status: int, place: Path) -> None:
    """`python -m jaxrnn.generate run --length endless | head -c 10` ends and writes its ten bytes."""
    command = [sys.executable, "-m", "jaxrnn.generate", str(place / "run"), "--length", "-1"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        start = process.stdout.read(600)
        assert start.decode() == str(sample(load(place / "run"), "\n", 600))[:600]
        if by == "pipe":
            process.stdout.close()
        else:
            process.send_signal(signal.SIGINT)
            assert b"Traceback" not in process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(60) == status
