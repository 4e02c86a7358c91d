"""Tests of `prepare`: its tokens are those of the text, however the command was interrupted."""

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich import filesize

from jaxrnn import prepare, progress, stopping, train
from jaxrnn.data import files, preparation, sources, token_files
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.vocabulary import Numbering, Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.runs.train_options import default_workdir
from tests.support.runs import TEXT, contents, flags, lose_the_reader, quicken

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PIECES = [
    "a",
    "b",
    "\n",
    "\r\n",
    "\ufeff",
    "é",
    "한국",
    "\U0001f469\u200d\U0001f466",
    "\U0010ffff",
    "\0",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "SAVE_EVERY", 0.0)
    return tmp_path


def command(*arguments: Any) -> int:
    return prepare.main([str(argument) for argument in arguments])


def assert_same(prepared: Path, want: Corpus) -> None:
    got = token_files.load_corpus(prepared)
    assert isinstance(got.tokens, np.memmap) and not got.tokens.flags.writeable
    assert got.tokens.dtype == want.tokens.dtype
    np.testing.assert_array_equal(got.tokens, want.tokens)
    assert got._replace(tokens=want.tokens) == want
    assert (prepared / "tokens.bin").read_bytes() == want.tokens.tobytes()
    assert {path.name for path in prepared.iterdir()} == {"tokens.bin", "meta.json", "lock"}


def corpus_of(*data: str, glob: str | None = None, as_bytes: bool = False) -> Corpus:
    source = sources.read(data, glob, as_bytes)
    return make_corpus(source.content, source.nats)


# --- the tokens ---


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), min_size=1, max_size=30),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(1, 40),
    as_bytes=st.booleans(),
    block=st.integers(1, 9),
)
def test_streamed_tokens_equal_those_of_the_whole_text(
    parts: list[list[str]], size: int, as_bytes: bool, block: int, here: Path
) -> None:
    shutil.rmtree(here / "texts", ignore_errors=True)
    shutil.rmtree(here / "out", ignore_errors=True)
    (here / "texts").mkdir()
    for n, pieces in enumerate(parts):
        raw = "".join(pieces).encode()
        (here / "texts" / f"{n}.txt").write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", size)
        patch.setattr(preparation, "BLOCK", 4 * block)
        patch.setattr(preparation, "SAVE_EVERY", 1e9)
        patch.setattr(os, "fsync", lambda file: None)
        try:
            want = corpus_of("texts", as_bytes=as_bytes)
        except InputError as error:
            with pytest.raises(InputError) as caught:
                run("texts", as_bytes=as_bytes)
            assert str(caught.value) == str(error)
            assert contents(here / "out") == {}
        else:
            meta = run("texts", as_bytes=as_bytes)
            assert meta.name == "texts"
            (here / "out" / "lock").touch()
            assert_same(here / "out", want)


def run(*data: str, as_bytes: bool = False) -> token_files.Meta:
    Path("out").mkdir(exist_ok=True)
    parts = sources.find(data)
    return preparation.Preparation(parts, as_bytes, sources.name(data), Path("out")).run()


@given(raw=st.binary(min_size=1, max_size=12), size=st.integers(1, 5), mark=st.booleans())
def test_errors_for_invalid_utf8_do_not_depend_on_chunks(
    raw: bytes, size: int, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "raw.txt"
    path.write_bytes(b"\xef\xbb\xbf" * mark + raw)
    results = []
    for chunk in (-1, size):
        try:
            chunks = list(files.stream(sources.find([str(path)]), size=chunk))
            results.append("".join(c.text for c in chunks))
            assert b"".join(c.raw for c in chunks) == results[-1].encode()
        except InputError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.first_case
@pytest.mark.parametrize("kinds", [100, 256, 257, 300, 70_000])
def test_tokens_are_widened_and_sorted(
    kinds: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more and more characters the file is widened during the reading, and sorted at the end."""
    monkeypatch.setattr(files, "CHUNK", 50_000)
    known = [chr(n) for n in range(1, kinds + 3000) if not 0xD800 <= n < 0xE000][:kinds]
    assert len(set(known)) == kinds
    random.Random(0).shuffle(known)
    Path("text.txt").write_text("".join(known) + "and again" * 9, newline="")
    assert command("--data", "text.txt", "--output", "out") == 0
    want = corpus_of("text.txt")
    assert want.tokens.dtype == (
        np.uint8 if kinds <= 256 else np.uint16 if kinds < 65536 else np.uint32
    )
    assert_same(here / "out", want)


def test_data_has_the_same_words_as_in_train(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxrnn.data import play

    short = play.write(3000)
    monkeypatch.setattr(play, "write", lambda: short)
    assert command("--data", "play") == 0
    assert_same(here / "tokens" / "play", corpus_of("play"))
    assert token_files.load_corpus("tokens/play").floor is not None
    (here / "code" / "deep").mkdir(parents=True)
    (here / "code" / "a.c").write_text("int x;" * 9)
    (here / "code" / "deep" / "b.c").write_text("int y;\n" * 9)
    assert command("--data", "code", "play", "--glob", "*.c", "--bytes") == 0
    assert_same(here / "tokens" / "code+1", corpus_of("code", "play", glob="*.c", as_bytes=True))
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert command("--data", "-", "--output", "out") == 0
    assert_same(here / "out", make_corpus(TEXT))
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-2:] == [
        f"stdin: {len(TEXT):,} characters, {len(set(TEXT))} different, in out as uint8; "
        f"sha256 of the text {hashlib.sha256(TEXT.encode()).hexdigest()}",
        "done. Now: python -m jaxrnn.train --data out",
    ]


@pytest.mark.slow
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1))
def test_numbering_in_order_of_first_occurrence(parts: list[str]) -> None:
    numbering, encoded = Numbering(), []
    for part in parts:
        encoded.append(numbering.encode(part.encode(), part))
        assert encoded[-1].dtype == numbering.vocabulary.dtype
    assert numbering.vocabulary.decode(np.concatenate(encoded)) == "".join(parts)
    assert sorted(numbering.vocabulary.characters) == list(Vocabulary.of("".join(parts)).characters)


# --- resuming ---


@pytest.mark.parametrize("as_bytes", [False, True])
def test_resuming_from_every_saved_state(
    as_bytes: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after each save in turn, in every stage, it gives the same files."""
    pieces = "one\ntwo é", "한국 \U0001f469\r\n", "".join(map(chr, range(400, 150, -1)))
    Path("texts").mkdir()
    for n, piece in enumerate(pieces):
        Path("texts", f"{n}.txt").write_bytes(piece.encode())
    want = corpus_of("texts", as_bytes=as_bytes)
    monkeypatch.setattr(preparation, "BLOCK", 64)
    save = preparation.Preparation._save
    ends, size = 0, 7

    class Cut(Exception): ...

    def cut(self: Any) -> None:
        save(self)
        raise Cut

    while True:
        monkeypatch.setattr(files, "CHUNK", size)
        monkeypatch.setattr(preparation.Preparation, "_save", cut)
        try:
            run("texts", as_bytes=as_bytes)
        except Cut:
            ends, size = ends + 1, size % 40 + 7
            assert token_files.is_prepared("out")
            with pytest.raises(InputError, match="unfinished"):
                token_files.load_corpus("out")
        else:
            break
    (here / "out" / "lock").touch()
    assert_same(here / "out", want)
    assert ends > 20


KILLED = """
import sys
from jaxrnn import prepare
from jaxrnn.data import files, preparation
preparation.SAVE_EVERY, files.CHUNK, preparation.BLOCK = 0.002, 2000, 2000
sys.exit(prepare.main(sys.argv[1:]))
"""


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONIOENCODING": "utf-8",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=env, text=True, **pipes)


def wait_for_progress(output: Path, process: Any, least: int = 0) -> int:
    """Wait until the work has come beyond `least`, or is finished; return how far it is."""
    while process.poll() is None:
        try:
            state = json.loads((output / "progress.json").read_text())["state"]
        except FileNotFoundError:
            continue
        if state["count"] + state["ordered"] > least:
            return state["count"] + state["ordered"]
        time.sleep(0.002)
    return least


@pytest.mark.process
def test_resuming_after_repeated_kills(here: Path) -> None:
    raw = (TEXT * 40 + "한국 é\n") * 20 + "Ω"
    Path("big.txt").write_text(raw)
    output, generator, far, kills = here / "out", random.Random(0), 0, 0
    for _ in range(4):
        process = start("--data", "big.txt", "--output", "out")
        far = wait_for_progress(output, process, far + generator.randrange(len(raw) // 3))
        time.sleep(generator.random() * 0.02)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills >= 3
    assert command("--data", "big.txt", "--output", "out") == 0
    assert_same(output, make_corpus(raw))


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_resuming_after_a_signal(number: int, here: Path) -> None:
    raw = TEXT * 2000
    Path("big.txt").write_text(raw)
    overwrite = ["--overwrite"] if number == signal.SIGHUP else []
    process = start("--data", "big.txt", "--output", "out", *overwrite)
    wait_for_progress(here / "out", process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and err == ""
    last = out.splitlines()[-1]
    assert last.startswith("stopped at ")
    assert last.endswith("the same command resumes from there")
    assert command("--data", "big.txt", "--output", "out", *overwrite) == 0
    assert_same(here / "out", make_corpus(raw))


@pytest.mark.process
def test_a_stopped_stream_leaves_nothing(here: Path) -> None:
    process = start("--data", "-", "--output", "out", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(TEXT * 1000)
    process.stdin.flush()
    wait_for_progress(here / "out", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and err == ""
    assert "cannot be read twice: run the command again" in out.splitlines()[-1]
    assert contents(here / "out") == {}


def test_the_second_signal_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped), stopping.catching(stopping.stop):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            assert left == [128 + signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("room", [0.0, 0.1, 0.5, 0.999, 1.05, 1.5, 1.999])
def test_full_disk(
    room: float,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    """With room for only part of the text it fails with one line, and the same command resumes."""
    size = Path("text.txt").write_text(TEXT * 3 + "\1")  # the last is to be the first
    monkeypatch.setattr(files, "CHUNK", 1000)
    monkeypatch.setattr(preparation, "BLOCK", 1000)
    write, save = token_files.write_tokens, token_files.write_json
    output = here / "out"
    limit = int(room * size) + 100  # the saved state alone is longer

    def full(size: int) -> OSError | None:
        used = sum(path.stat().st_size for path in output.iterdir())
        return None if used + size <= limit else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_some(file: Any, new: np.ndarray) -> None:
        if error := full(new.nbytes):
            file.write(new.view(np.uint8)[:7].data)
            raise error
        write(file, new)

    def save_some(path: Path, content: Any) -> None:
        if error := full(len(json.dumps(content))):
            raise error
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(token_files, "write_tokens", write_some)
        patch.setattr(token_files, "write_json", save_some)
        patch.setattr(preparation, "SAVE_EVERY", 1e9)  # so that only the error saves the state
        message = refusal(prepare.main, ["--data", "text.txt", "--output", "out"], status=1)
    progress = output / "progress.json"
    saved = 0
    if progress.exists():
        saved = json.loads(progress.read_text())["state"]["size"]
    assert message == (
        f"could not write to out: the disk is full; stopped at {filesize.decimal(saved)} of text; "
        "the same command resumes from there"
    )
    assert saved >= min(room, 1) * size - 3000
    assert command("--data", "text.txt", "--output", "out") == 0
    assert_same(output, corpus_of("text.txt"))


# --- output ---


@pytest.mark.slow
def test_different_bytes_are_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of an older version has no such count, and none is reported."""
    quicken(monkeypatch)
    Path("text.txt").write_text(TEXT)
    assert command("--data", "text.txt", "--output", "out", "--bytes") == 0
    expected = f"text: {len(TEXT):,} bytes, {len(set(TEXT))} different"
    assert f"{expected}, in out as uint8" in capsys.readouterr().out
    assert train.main(flags("out", "run", steps=2)) == 0
    assert capsys.readouterr().out.startswith(f"{expected}; the last")
    meta = json.loads(Path("out/meta.json").read_text())
    assert meta.pop("different") == len(set(TEXT))
    Path("out/meta.json").write_text(json.dumps(meta))
    assert train.main(flags("out", "run", steps=2)) == 0
    assert capsys.readouterr().out.startswith(f"text: {len(TEXT):,} bytes; the last")


@pytest.mark.parametrize("folder", ["my tokens", "-out", "a\nb", "it's $HOME", "\udce9"])
def test_the_last_line_is_a_command_for_a_shell(
    folder: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_text(TEXT)
    assert command("--data", "text.txt", f"--output={folder}") == 0
    line = capfd.readouterr().out.splitlines()[-1].removeprefix("done. Now: ")
    shell = ["bash", "-c", line.replace("python -m jaxrnn.train --data", "printf %s")]
    given = os.fsdecode(subprocess.run(shell, capture_output=True).stdout)
    assert Path(given) == Path(folder) and not given.startswith("-")


def test_a_closed_pipe_stops_the_command(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`python -m jaxrnn.prepare | head -1` stops; the same command resumes."""
    Path("text.txt").write_text(TEXT)
    monkeypatch.setattr(files, "CHUNK", 100)
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        lose_the_reader(patch, stack.callback)
        assert command("--data", "text.txt", "--output", "out") == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")
    assert json.loads(Path("out/progress.json").read_text())["state"]["size"] == 100
    assert command("--data", "text.txt", "--output", "out") == 0
    assert_same(here / "out", make_corpus(TEXT))


# --- refusals ---


def test_a_refused_overwrite_loses_nothing(here: Path, refusal: Callable[..., str]) -> None:
    Path("text.txt").write_text(TEXT)
    Path("empty.txt").touch()
    Path("short.txt").write_text("short")
    Path("bad.txt").write_bytes(TEXT.encode() + "é".encode() + b"\xe9")
    assert command("--data", "text.txt", "--output", "out") == 0
    before = contents(here / "out")
    for data in "missing.txt", "empty.txt", "short.txt", "bad.txt", "-":
        refusal(prepare.main, ["--data", data, "--output", "out", "--overwrite"])
        assert contents(here / "out") == before


@pytest.mark.process
def test_an_interrupted_overwrite_resumes(
    here: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    """The finished tokens can be used until the new text has been read."""
    monkeypatch.setattr(files, "CHUNK", 100)
    Path("text.txt").write_text(TEXT)
    Path("new.txt").write_text(TEXT * 2)
    assert command("--data", "text.txt", "--output", "out") == 0
    before = contents(here / "out")
    again = ["--data", "new.txt", "--output", "out", "--overwrite"]
    read = files.stream

    def cut(*arguments: Any) -> Any:
        for number, chunk in enumerate(read(*arguments)):
            if number == 3:
                raise OSError(errno.EIO, "the disk fails")
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(files, "stream", cut)
        refusal(prepare.main, again, status=1)
    assert contents(here / "out").items() > before.items()
    cuts: list[files.Place] = []

    def watched(parts: Any, as_bytes: bool, reading: Any, cut: files.Place) -> Any:
        cuts.append(cut)
        return read(parts, as_bytes, reading, cut)

    with monkeypatch.context() as patch:
        patch.setattr(files, "stream", watched)
        patch.setattr(preparation.Preparation, "_order", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(*again)
    assert cuts[-1].offset == 300
    assert contents(here / "out").items() > before.items()
    Path("new.txt").write_bytes(b"\xff" * len(TEXT))
    refusal(prepare.main, again)
    assert contents(here / "out") == before
    Path("new.txt").write_text(TEXT * 3)
    with monkeypatch.context() as patch:
        patch.setattr(preparation.Preparation, "_finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(*again)
    with pytest.raises(InputError, match="unfinished"):
        token_files.load_corpus("out")
    assert command(*again) == 0
    assert_same(here / "out", make_corpus(TEXT * 3))


def test_a_damaged_overwrite_starts_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.txt").write_text(TEXT)
    again = ["--data", "text.txt", "--output", "out", "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(preparation.Preparation, "_order", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(*again)
    os.truncate("out/tokens.uint8.partial", 1)
    assert command(*again) == 0
    assert_same(here / "out", make_corpus(TEXT))


def test_folders_that_hold_something_else_are_refused(
    here: Path, refusal: Callable[..., str]
) -> None:
    Path("text.txt").write_text(TEXT)
    Path("other.txt").write_text(TEXT + "more")
    Path("mine").mkdir()
    Path("mine/meta.json").write_text("{}")
    there = ["--data", "text.txt", "--output"]
    for more in ([], ["--overwrite"]):
        assert "mine holds something else (meta.json)" in refusal(
            prepare.main, [*there, "mine", *more]
        )
    assert contents(here / "mine") == {"meta.json": b"{}"}
    assert "cannot write to text.txt: " in refusal(prepare.main, [*there, "text.txt"])
    assert command(*there, "out") == 0
    before = contents(here / "out")
    assert command(*there, "out") == 0  # done already
    assert "as characters; choose" in refusal(prepare.main, [*there, "out", "--bytes"])
    message = refusal(prepare.main, ["--data", "other.txt", "--output", "out"])
    assert (
        message == "out was prepared from other files; choose another --output, or --overwrite it"
    )
    os.utime("text.txt", (0, 0))
    assert "text.txt has changed since out was prepared" in refusal(prepare.main, [*there, "out"])
    with filelock.FileLock("out/lock"):
        assert "another preparation is running in out" in refusal(
            prepare.main, [*there, "out", "--overwrite"]
        )
    assert contents(here / "out") == before
    assert command("--data", "other.txt", "--output", "out", "--overwrite") == 0
    assert_same(here / "out", corpus_of("other.txt"))


def test_a_text_changed_during_preparation_is_refused(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    monkeypatch.setattr(files, "CHUNK", 100)
    Path("text.txt").write_text(TEXT)
    times = os.stat("text.txt").st_mtime_ns

    def interrupted() -> list[str]:
        with monkeypatch.context() as patch:
            save_if_due = preparation.Preparation._save_if_due

            def stop(self: Any) -> None:
                save_if_due(self)
                raise OSError(errno.EIO, "Input/output error")

            patch.setattr(preparation.Preparation, "_save_if_due", stop)
            arguments = ["--data", "text.txt", "--output", "out"]
            assert "stopped at 100 bytes" in refusal(prepare.main, arguments, status=1)
        return arguments

    arguments = interrupted()
    Path("text.txt").write_text(TEXT + "!")
    assert "text.txt has changed since" in refusal(prepare.main, arguments)
    Path("text.txt").write_text("#" + TEXT[1:])  # of the same length, its time put back
    os.utime("text.txt", ns=(times, times))
    assert "starts over" in refusal(prepare.main, arguments)
    assert command(*arguments) == 0
    assert_same(here / "out", corpus_of("text.txt"))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"short", "only 5 characters; give at least 20"),
        (b"", "text.txt is empty"),
        (b"\xef\xbb\xbf", "text.txt is empty"),
        (
            TEXT.encode() + "é".encode() + b"\xff",
            f"text.txt is not UTF-8: byte 0xff at offset {len(TEXT) + 2} (line 81); it is UTF-8",
        ),
        (None, 'no file or folder "text.txt"'),
    ],
)
def test_invalid_texts_are_refused(
    raw: bytes | None,
    expected: str,
    here: Path,
    refusal: Callable[..., str],
) -> None:
    """Nothing is left in the folder, so that another attempt starts over."""
    if raw is not None:
        Path("text.txt").write_bytes(raw)
    Path("good.txt").write_text(TEXT)
    assert expected in refusal(prepare.main, ["--data", "text.txt", "--output", "out"])
    assert contents(here / "out") == {}
    if raw is None or raw.endswith(b"\xff"):
        assert expected in refusal(
            prepare.main, ["--data", "good.txt", "text.txt", "--output", "out"]
        )
    assert command("--data", "good.txt", "--output", "out") == 0


# --- training on it ---


@pytest.fixture
def prepared(here: Path) -> Path:
    Path("text.txt").write_text(TEXT)
    assert command("--data", "text.txt", "--output", "out") == 0
    return here / "out"


@pytest.mark.slow
def test_a_run_resumes_with_the_other_form_of_its_text(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quicken(monkeypatch)
    assert default_workdir(train.parse(["--data", "out"])) == Path("runs/out-small")
    assert train.main(flags("out", "run", steps=4)) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"text: {len(TEXT):,} characters")
    assert train.main(flags("text.txt", "run", steps=8)) == 0
    assert train.main(flags("out", "run", steps=12)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("as_bytes", [False, True])
def test_mapped_tokens_are_not_copied(
    as_bytes: bool, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    kind = ["--bytes"] if as_bytes else []
    assert command("--data", "text.txt", "--output", "out", "--overwrite", *kind) == 0
    assert train.main(flags("text.txt", "plain", *kind)) == 0
    assert train.main(flags("out", "mapped", memory_map="always")) == 0
    assert not Path("mapped/tokens.npy").exists()
    lines = [Path(run, "metrics.jsonl").read_text().splitlines() for run in ("plain", "mapped")]
    losses = [[(m["loss"], m.get("val_loss")) for m in map(json.loads, each)] for each in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert train.main(flags("out", "plain", steps=12)) == 0  # a run of the plain text resumes


def test_train_refuses_options_decided_by_prepare(
    prepared: Path, refusal: Callable[..., str]
) -> None:
    before = contents(prepared)
    assert "out is a prepared text and cannot be combined with others" in refusal(
        train.main, ["--data", "out", "text.txt", "--workdir", "run"]
    )
    for flag in ["--bytes"], ["--glob", "*.c"]:
        expected = f"{flag[0]} was decided when out was prepared; leave it out"
        assert refusal(train.main, ["--data", "out", *flag, "--workdir", "run"]) == expected
    assert contents(prepared) == before


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("meta.json", None, "the preparation in {} is unfinished; run the same"),
        ("meta.json", "{", "meta.json is damaged (JSONDecodeError"),
        ("meta.json", "[]", "meta.json is damaged (ValueError"),
        ("meta.json", '{"format": 1}', "meta.json is damaged (KeyError"),
        ("meta.json", ('"format": 1', '"format": 2'), "in format 2, and this version reads 1"),
        ("meta.json", ("uint8", "uint16"), "meta.json is damaged (ValueError"),
        ("meta.json", ('"count": ', '"count": 1'), "tokens.bin is damaged: "),
        ("tokens.bin", "short", "tokens.bin is damaged: 5 bytes where there should be "),
    ],
)
def test_damaged_folders_are_refused(
    name: str,
    change: Any,
    expected: str,
    prepared: Path,
    refusal: Callable[..., str],
) -> None:
    path = prepared / name
    if change is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(*change) if isinstance(change, tuple) else change)
    before = contents(prepared)
    message = refusal(train.main, ["--data", "out", "--workdir", "run"])
    assert expected.format("out") in message
    assert contents(prepared) == before
    if name == "meta.json" and not isinstance(
        change, tuple
    ):  # nothing says whose tokens.bin this is
        command_line = ["--data", "text.txt", "--output", "out", "--overwrite"]
        assert "out holds something else (" in refusal(prepare.main, command_line)
        assert contents(prepared) == before
        return
    assert command("--data", "text.txt", "--output", "out", "--overwrite") == 0
    assert_same(prepared, corpus_of("text.txt"))


def test_files_of_other_programs_are_left_alone(here: Path, refusal: Callable[..., str]) -> None:
    """Files with the names that a preparation uses, but which no preparation wrote."""
    Path("text.txt").write_text(TEXT)
    foreign: list[dict[str, str]] = [
        {"tokens.bin": "llama"},
        {"tokens.bin": "llama", "meta.json": '{"vocab_size": 5}'},
        {"tokens.uint8.partial": "a", "tokens.bin": "b"},
        {"tokens.bin": "a", "progress.json": '{"percent": 5}'},
        {"lock": "of the garden, brass, 40 mm"},
    ]
    for number, names in enumerate(foreign):
        folder = here / str(number)
        folder.mkdir()
        for name, content in names.items():
            (folder / name).write_text(content)
        for more in ([], ["--overwrite"]):
            command_line = ["--data", "text.txt", "--output", str(number), *more]
            assert f"{number} holds something else (" in refusal(prepare.main, command_line)
            assert {path.name: path.read_text() for path in folder.iterdir()} == names


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_a_text_that_includes_the_output_is_refused(
    overwrite: list[str], prepared: Path, refusal: Callable[..., str]
) -> None:
    before = contents(prepared)
    for data in (["out/tokens.bin"], ["out/meta.json"], ["out", "--glob", "*.json"]):
        command_line = ["--data", *data, "--bytes", "--output", "out", *overwrite]
        assert "which the preparation itself writes" in refusal(prepare.main, command_line)
    assert contents(prepared) == before
