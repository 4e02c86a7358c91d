"""Test texts in other encodings than UTF-8 and of compressed texts: Python's own codecs and modules
make the files, and say what they hold."""

import bz2
import codecs
import contextlib
import functools
import gzip
import hashlib
import importlib
import io
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrnn import prepare, train
from jaxrnn.data import compression, encoding_guess, files, preparation, sources, token_files
from jaxrnn.data.corpus import make_corpus
from jaxrnn.data.encodings import Reading
from jaxrnn.errors import InputError
from tests.support.runs import TEXT, contents, flags

pytestmark = pytest.mark.once

zstandard = pytest.importorskip("zstandard")

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
GERMAN = "Die größte Übung „am Abend“ kostet 5 €.\nÄpfel und Öl\n" * 3
RUSSIAN = "Все счастливые семьи похожи друг на друга\n" * 3
ENGLISH = "a few words of plain text\n" * 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(raw: bytes, reading: Reading | None = None, size: int = -1, as_bytes: bool = False) -> Any:
    """Return the text of a file that holds these bytes, read `size` bytes at a time."""
    Path("text.txt").write_bytes(raw)
    chunks = list(files.stream(sources.find(["text.txt"]), as_bytes, reading, size=size))
    joined = b"".join(chunk.raw for chunk in chunks)
    if as_bytes:
        return joined
    text = "".join(chunk.text for chunk in chunks)
    assert joined == text.encode()
    assert all(chunk.raw == chunk.text.encode() and chunk.raw for chunk in chunks)
    assert chunks[-1].place == (0, len(joined), text.endswith("\n"))
    return text


def refusal_of(raw: bytes, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(raw, **how)
    message = str(caught.value)
    assert "\n" not in message and "text.txt" in message
    return message


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines()]


# --- the encoding is guessed ---

ENCODED = [
    (ENGLISH, "utf-8", None),
    (ENGLISH, "utf-8-sig", None),
    (GERMAN, "utf-8", None),
    (RUSSIAN, "utf-8-sig", None),
    (ENGLISH, "utf-16", "UTF-16 (little-endian)"),
    (RUSSIAN, "utf-16", "UTF-16 (little-endian)"),
    ("\ufeff한글", "utf-16-be", "UTF-16 (big-endian)"),
    ("\ufeff한글", "utf-32-be", "UTF-32 (big-endian)"),
    (GERMAN, "utf-32", "UTF-32 (little-endian)"),
    (ENGLISH, "utf-16-le", "UTF-16 (little-endian)"),
    (ENGLISH, "utf-16-be", "UTF-16 (big-endian)"),
    (ENGLISH, "utf-32-le", "UTF-32 (little-endian)"),
    (ENGLISH, "utf-32-be", "UTF-32 (big-endian)"),
    (RUSSIAN, "utf-16-le", "UTF-16 (little-endian)"),
    (RUSSIAN, "utf-16-be", "UTF-16 (big-endian)"),
    (GERMAN, "windows-1252", "Windows-1252"),
    ("caf\xe9", "windows-1252", "Windows-1252"),
    (GERMAN.replace("€", "\x81").replace("„", "").replace("“", ""), "latin-1", "Latin-1"),
]


@pytest.mark.parametrize("size", [1, 7, -1])
@pytest.mark.parametrize("text, encoding, shown", ENCODED)
def test_encodings_are_guessed_and_noted(
    text: str,
    encoding: str,
    shown: str | None,
    size: int,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = text.encode(encoding)
    assert read(raw, size=size) == text.removeprefix("\ufeff")
    note = f"text.txt is {shown} and is read as such; set the encoding if that is wrong"
    assert notes(capsys) == ([] if shown is None else [note])
    assert read(raw, as_bytes=True, size=size) == raw
    assert notes(capsys) == []
    assert files.read("text.txt") == text.removeprefix("\ufeff")
    assert notes(capsys) == ([] if shown is None else [f"text.txt is {shown} and is read as such"])
    assert files.read("text.txt", as_bytes=True) == raw


@pytest.mark.parametrize("text, encoding, shown", ENCODED)
def test_encodings_are_guessed_in_standard_input(
    text: str, encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for raw in (text.encode(encoding), gzip.compress(text.encode(encoding))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert sources.read(["-"]).content == text.removeprefix("\ufeff")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert files.read("-") == text.removeprefix("\ufeff")


def test_the_notes_count_the_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts").mkdir()
    for number, encoding in enumerate(["utf-16", "cp1252", "utf-8", "cp1252", "utf-16", "cp1252"]):
        Path(f"texts/{number}.txt").write_bytes(GERMAN.encode(encoding))
    assert sources.read(["texts"]).content == GERMAN * 6
    hint = "; set the encoding if that is wrong"
    assert notes(capsys) == [
        f"texts/0.txt is UTF-16 (little-endian) and is read as such{hint}",
        f"texts/1.txt is Windows-1252 and is read as such{hint}",
        "1 more file is UTF-16 (little-endian) and read as such",
        "2 more files are Windows-1252 and read as such",
    ]


@pytest.mark.parametrize("size", [1, 3, 64, -1])
@pytest.mark.parametrize("before", [0, 15, 16, 17, 31, 32, 33, 160])
@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_ascii_of_any_length_decides_nothing(
    encoding: str, before: int, size: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first other character may come after any number of blocks, or be cut by the end of one."""
    monkeypatch.setattr(encoding_guess, "BLOCK", 16)
    text = "x" * before + "\xe9 and on"
    assert read(text.encode(encoding), size=size) == text
    assert read(("x" * before + "\xe9").encode(encoding) + b"xxx", size=size) == (
        "x" * before + "\xe9xxx"
    )


@pytest.mark.parametrize("size", [1, 7, -1])
def test_a_guess_that_turns_out_wrong_is_an_error(
    size: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_guess, "BLOCK", 64)
    start = "caf\xe9\n" + "x" * 70
    assert refusal_of(start.encode("cp1252") + b"\n\x81", size=size) == (
        "text.txt is not Windows-1252, although it begins so: byte 0x81 at offset 76 (line 3): "
        "character maps to <undefined>; choose another `encoding`"
    )
    assert refusal_of(start.encode() + b"\n\xe9.", size=size).startswith(
        "text.txt is not UTF-8: byte 0xe9 at offset 77 (line 3); it is UTF-8 except for some bytes"
    )
    wide = ENGLISH.encode("utf-16-be")
    assert refusal_of(wide + b"\xd8\0\0\n", size=size) == (
        f"text.txt is not UTF-16 (big-endian), although it begins so: byte 0xd8 at offset {len(wide)} "
        "(line 4): illegal UTF-16 surrogate; choose another `encoding`"
    )
    message = refusal_of(wide[:-1], size=size)
    assert f"byte 0x00 at offset {len(wide) - 2} (line 3): truncated data" in message


def test_mostly_utf8_is_not_taken_for_windows_1252(here: Path) -> None:
    good = "한국어 and é\n".encode()
    for raw in (b"\xe9 " + good, good + b"\xe9", good.replace(b" ", b"\xe9", 1)):
        message = refusal_of(raw)
        assert "it is UTF-8 except for some bytes" in message and "byte 0xe9" in message


def test_nul_is_a_character_like_any_other(here: Path) -> None:
    for text in ("a\0b", "\0" * 40, "one\0two\0three\0four\0" * 9, "\0한\0" * 50):
        assert read(text.encode()) == text
        assert read(text.encode(), Reading("utf-8")) == text
    assert "has NUL bytes and is not text" in refusal_of(b"\0\xff" * 3)


def test_a_tar_archive_is_refused(here: Path) -> None:
    import tarfile

    Path("notes.txt").write_text("abc")
    for suffix in "", "gz":
        with tarfile.open("notes.tar", f"w:{suffix}") as archive:
            archive.add("notes.txt")
        assert "it is a tar archive; extract it with tar" in refusal_of(
            Path("notes.tar").read_bytes()
        )


# --- the encoding is given ---


@pytest.mark.parametrize(
    "encoding",
    [
        "utf-8",
        "utf-8-sig",
        "UTF-16",
        "utf-16-le",
        "utf_16_be",
        "utf-32",
        "utf-7",
        "latin-1",
        "koi8-r",
        "windows-1251",
        "gb18030",
        "big5",
        "euc-kr",
        "shift_jis",
        "iso2022_jp",
        "hz",
    ],
)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_a_given_encoding_in_chunks(encoding: str, data: Any, tmp_path: Path) -> None:
    alphabet = [c for c in "abc\n\r\té¤яж日本語中文한국\U0001f600+-~" if _has(encoding, c)]
    text = data.draw(st.text(st.sampled_from(alphabet), min_size=1, max_size=40))
    raw = text.encode(encoding)
    size = data.draw(st.sampled_from([1, 2, 3, 5, 8, -1]))
    with contextlib.chdir(tmp_path):
        assert read(raw, Reading(encoding), size) == raw.decode(encoding)


def _has(encoding: str, character: str) -> bool:
    try:
        return character.encode(encoding).decode(encoding) == character
    except UnicodeError:
        return False


@given(raw=st.binary(min_size=1, max_size=30), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_result_for_any_bytes_does_not_depend_on_chunks(
    raw: bytes, data: Any, tmp_path: Path
) -> None:
    """The text, or the error with byte, offset and line, equals that of Python for the whole file."""
    encoding = data.draw(st.sampled_from(["utf-8", "utf-16-le", "utf-32-be", "cp1252", "gb18030"]))
    size = data.draw(st.integers(1, 7))
    with contextlib.chdir(tmp_path):
        try:
            want = raw.decode(encoding)
        except UnicodeDecodeError as error:
            for size_ in (size, -1):
                message = refusal_of(raw, reading=Reading(encoding), size=size_)
                line = raw[: error.start].decode(encoding).count("\n") + 1
                assert message == (
                    f"text.txt is not {encoding}: byte 0x{raw[error.start]:02x} at offset "
                    f"{error.start} (line {line}): {error.reason}; choose another `encoding`"
                )
        else:
            want = want.removeprefix("\ufeff")
            if want:
                assert read(raw, Reading(encoding), size) == want
            else:
                assert refusal_of(raw, reading=Reading(encoding), size=size).endswith(
                    "empty; give another text"
                )


def test_a_given_encoding_wins_over_the_guess(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read("Привет".encode("cp1251"), Reading("cp1251")) == "Привет"
    assert read("é".encode(), Reading("latin-1")) == "Ã©"
    assert read(codecs.BOM_UTF16_LE, Reading("latin-1")) == "ÿþ"
    assert read("\ufeffa\ufeff".encode("gb18030"), Reading("gb18030")) == "a\ufeff"
    assert read("\ufeffa".encode("utf-8-sig"), Reading("utf-8-sig")) == "\ufeffa"
    assert notes(capsys) == []
    assert "surrogates not allowed" in refusal_of(b"\\ud800", reading=Reading("unicode_escape"))


@pytest.mark.parametrize(
    "name", ["hex", "base64", "rot13", "zlib", "bz2", "klingon", "", "undefined", "idna", "\udce9"]
)
def test_other_encodings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not an encoding of text that Python knows; write one"):
        Reading(name)


def test_other_newlines_are_refused(unchecked: None) -> None:
    with pytest.raises(InputError, match='`newlines` must be "keep" or "lf", not '):
        Reading(newlines="crlf")


@pytest.mark.parametrize("reading", [Reading("utf-8"), Reading(newlines="lf")])
def test_bytes_are_not_decoded(reading: Reading, here: Path) -> None:
    Path("text.txt").write_text(TEXT)
    with pytest.raises(InputError, match="is for characters; bytes are read as they are"):
        sources.read(["text.txt"], as_bytes=True, reading=reading)
    with pytest.raises(InputError, match="is for characters"):
        sources.read(["play"], as_bytes=True, reading=reading)


# --- line ends ---


@given(
    text=st.text(st.sampled_from("\r\nab\x85\u2028é"), min_size=1),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32-be"]),
    size=st.integers(1, 9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_newlines_are_kept_or_made_lf(text: str, encoding: str, size: int, tmp_path: Path) -> None:
    raw = text.encode(encoding)
    with contextlib.chdir(tmp_path):
        assert read(raw, Reading(encoding), size) == text
        lf = read(raw, Reading(encoding, "lf"), size)
    assert lf == text.replace("\r\n", "\n").replace("\r", "\n")


def test_crlf_is_noted_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_bytes(b"one\r\n" * 9)
    Path("b.txt").write_bytes(b"one\rtwo")
    assert sources.read(["a.txt", "a.txt"]).content == "one\r\n" * 18
    assert notes(capsys) == [
        "a.txt has line ends of Windows (CRLF), which are kept; set newlines to lf to read them as LF"
    ]
    assert sources.read(["a.txt", "b.txt"], reading=Reading(newlines="lf")).content == (
        "one\n" * 9 + "one\ntwo"
    )
    sources.read(["b.txt"])
    sources.read(["a.txt"], as_bytes=True)
    assert files.read("a.txt") == "one\r\n" * 9
    assert notes(capsys) == []


# --- compressed files ---


@pytest.mark.parametrize("form", COMPRESS)
@pytest.mark.parametrize("size", [1, 100, -1])
def test_compressed_texts(form: str, size: int, here: Path) -> None:
    """A file may have several members, and its content may be in any encoding."""
    compress = COMPRESS[form]
    raw = RUSSIAN.encode()
    for content in (compress(raw), compress(raw[:31]) + compress(raw[31:32]) + compress(raw[32:])):
        assert read(content, size=size) == RUSSIAN
        assert read(content, size=size, as_bytes=True) == raw
        assert files.read("text.txt") == RUSSIAN
        assert files.read("text.txt", as_bytes=True) == raw
    assert read(compress(RUSSIAN.encode("utf-16")), size=size) == RUSSIAN
    assert read(compress(GERMAN.encode("cp1252")), size=size) == GERMAN
    assert read(compress(RUSSIAN.encode("koi8-r")), Reading("koi8-r"), size) == RUSSIAN


@pytest.mark.parametrize("form", COMPRESS)
def test_files_without_a_character(form: str, here: Path) -> None:
    compress = COMPRESS[form]
    for raw in (compress(b""), compress(codecs.BOM_UTF8), compress(codecs.BOM_UTF16)):
        assert refusal_of(raw) == "text.txt is empty; give another text"
        Path("other.txt").write_text("other")
        assert sources.read(["other.txt", "text.txt"]).content == "other"
    assert refusal_of(codecs.BOM_UTF16_BE) == "text.txt is empty; give another text"


@pytest.mark.parametrize("form", COMPRESS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_damaged_compressed_files(form: str, as_bytes: bool, here: Path) -> None:
    raw = random.Random(0).randbytes(3000).hex().encode()
    good = COMPRESS[form](raw)
    for cut in (len(good) - 1, len(good) - 10, len(good) // 2, 16):
        message = refusal_of(good[:cut], as_bytes=as_bytes)
        assert message.startswith("text.txt is compressed by ")
        assert "truncated: its end is missing; replace it by a good copy" in message
    middle = len(good) // 2
    damaged = good[:middle] + bytes(255 - byte for byte in good[middle : middle + 9])
    message = refusal_of(damaged + good[middle + 9 :], as_bytes=as_bytes)
    assert " and damaged: " in message
    with pytest.raises(InputError, match="damaged"):
        files.read("text.txt", as_bytes)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python reads zstd itself")
def test_zstd_without_the_package(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert refusal_of(COMPRESS["zst"](TEXT.encode())) == (
        'text.txt is compressed by zstd; reading it needs: pip install "jaxrnn[zstd]"'
    )


def test_a_text_that_only_begins_like_a_compressed_file(here: Path) -> None:
    for text in ("BZh", "BZh9 is a text", "PK!", "(µ/ý"):
        assert read(text.encode()) == text


def test_the_command_for_bad_bytes_decompresses(here: Path) -> None:
    message = refusal_of(gzip.compress("한국 é".encode() + b"\xe9"))
    assert "zcat text.txt | iconv -c -f utf-8 -t utf-8 > NEW.txt" in message


@pytest.mark.first_case
@pytest.mark.parametrize("form", [None, *COMPRESS])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_one_endless_line_takes_constant_memory(
    form: str | None, encoding: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read 4 MB without a newline, which compress to almost nothing, in chunks of 64 kB."""
    monkeypatch.setattr(files, "CHUNK", 1 << 16)
    monkeypatch.setattr(encoding_guess, "BLOCK", 1 << 16)
    monkeypatch.setattr(compression, "ZSTD_INPUT", 16)
    raw = ("é" + "a" * 4_000_000).encode(encoding)
    # With the smallest dictionary, which is all in memory.
    compress = COMPRESS | {"xz": functools.partial(lzma.compress, preset=0)}
    Path("text.txt").write_bytes(raw if form is None else compress[form](raw))
    del raw
    count = 0
    tracemalloc.start()
    for chunk in files.stream(sources.find(["text.txt"])):
        count += len(chunk.text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000_001
    assert peak < 2e6


# --- commands ---


def prepared(output: str) -> tuple[np.ndarray, token_files.Meta]:
    return np.asarray(token_files.load_corpus(output).tokens), token_files.read_meta(output)


def test_the_same_text_has_the_same_tokens(here: Path) -> None:
    """Tokens, vocabulary and checksum do not depend on the encoding or the compression."""
    text = (GERMAN + TEXT).replace("\n", "\r\n")
    want = make_corpus(text)
    assert want.sha256 == hashlib.sha256(text.encode()).hexdigest()
    forms = {
        "plain": text.encode(),
        "mark": text.encode("utf-8-sig"),
        "wide": text.encode("utf-16"),
        "windows": text.encode("cp1252"),
    }
    forms |= {name: compress(text.encode("utf-16-le")) for name, compress in COMPRESS.items()}
    for name, raw in forms.items():
        Path(name).write_bytes(raw)
        source = sources.read([name])
        assert make_corpus(source.content).sha256 == want.sha256
        assert prepare.main(["--data", name, "--output", f"out/{name}"]) == 0
        tokens, meta = prepared(f"out/{name}")
        np.testing.assert_array_equal(tokens, want.tokens)
        assert (meta.vocabulary, meta.sha256) == (want.vocabulary, want.sha256)
    again = ["--data", "gz", "--output", "out/lf", "--newlines", "lf"]
    assert prepare.main(again) == 0
    lf = text.replace("\r\n", "\n")
    np.testing.assert_array_equal(prepared("out/lf")[0], make_corpus(lf).tokens)


def test_how_a_folder_was_read_is_recorded(
    here: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_bytes((TEXT + "é").encode())
    how = ["--data", "text.txt", "--output", "out"]
    assert prepare.main([*how, "--encoding", "latin-1"]) == 0
    before = contents(here / "out")
    assert prepared("out")[1].sha256 == hashlib.sha256((TEXT + "Ã©").encode()).hexdigest()
    assert refusal(prepare.main, how) == (
        "out was prepared with --encoding latin-1; keep it, or choose another --output, or "
        "--overwrite it"
    )
    assert "with --newlines keep; keep it" in refusal(
        prepare.main, [*how, "--encoding", "latin-1", "--newlines", "lf"]
    )
    assert prepare.main([*how, "--encoding", "latin-1"]) == 0
    assert contents(here / "out") == before
    assert refusal(train.main, flags("out", "run", "--encoding", "latin-1")) == (
        "--encoding was decided when out was prepared; leave it out"
    )
    assert "--newlines was decided" in refusal(train.main, flags("out", "run", "--newlines", "lf"))


def test_folders_of_older_versions(here: Path) -> None:
    """Older folders do not record an encoding; their texts were UTF-8."""
    Path("text.txt").write_text(TEXT)
    how = ["--data", "text.txt", "--output", "out"]
    assert prepare.main(how) == 0
    meta = token_files.read_json(Path("out/meta.json"))
    del meta["reading"]
    token_files.write_json(Path("out/meta.json"), meta)
    assert prepare.main(how) == 0
    assert prepare.main([*how, "--newlines", "lf"]) == 2


@pytest.mark.first_case
@pytest.mark.parametrize("main", [prepare.main, train.main])
def test_bad_input_on_the_command_line(main: Any, here: Path, refusal: Callable[..., str]) -> None:
    raw = TEXT.encode()
    for name, content in {
        "good.txt": raw,
        "cut.gz": gzip.compress(raw)[:-9],
        "cut.xz": lzma.compress(raw)[:-9],
        "cut.zst": COMPRESS["zst"](raw)[:-9],
        "empty.gz": gzip.compress(b""),
        "mark.txt": codecs.BOM_UTF16,
        "cyrillic.txt": RUSSIAN.encode("koi8-r"),
        "bad.txt": "é".encode() + raw + b"\xff",
    }.items():
        Path(name).write_bytes(content)
    for arguments, expected in (
        (["good.txt", "--encoding", "hex"], "--encoding hex is not an encoding of text"),
        (["good.txt", "--encoding", "nothing"], "--encoding nothing is not an encoding of text"),
        (["good.txt", "--bytes", "--encoding", "utf-8"], "--encoding utf-8 is for characters"),
        (["good.txt", "--bytes", "--newlines", "lf"], "--newlines lf is for characters"),
        (
            ["bad.txt", "--encoding", "ascii"],
            "bad.txt is not ascii: byte 0xc3 at offset 0 (line 1)",
        ),
        (["bad.txt"], "bad.txt is not UTF-8: byte 0xff"),
        (["good.txt", "--encoding", "utf-32"], "choose another --encoding"),
        (["cut.gz"], "cut.gz is compressed by gzip and truncated"),
        (["cut.xz", "--bytes"], "cut.xz is compressed by xz and truncated"),
        (["cut.zst"], "cut.zst is compressed by zstd and truncated"),
        (["empty.gz"], "empty.gz is empty; give another text"),
        (["mark.txt"], "mark.txt is empty"),
        (["cyrillic.txt"], "cyrillic.txt is not UTF-8: byte"),
    ):
        place = "--workdir" if main is train.main else "--output"
        assert expected in refusal(main, ["--data", *arguments, place, "out"])
        assert contents(here / "out") == {}


@pytest.mark.first_case
@pytest.mark.parametrize("form", ["gz", "zst", None])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_resuming_from_every_saved_state(
    form: str | None, encoding: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupting after each save, with a different chunk size each time, gives the same tokens."""
    texts = "one\r\ntwo é\r", "\r\n\r\nthree", "vier “fünf”\r\n" * 3
    Path("texts").mkdir()
    for number, text in enumerate(texts):
        raw = text.encode(encoding)
        Path(f"texts/{number}.txt").write_bytes(raw if form is None else COMPRESS[form](raw))
    lf = "one\ntwo é\n\n\nthree\n" + "vier “fünf”\n" * 3
    want = make_corpus(lf)
    monkeypatch.setattr(preparation, "SAVE_EVERY", 0.0)
    save = preparation.Preparation._save
    cuts, size = 0, 3

    class Cut(Exception): ...

    def cut(self: Any) -> None:
        save(self)
        raise Cut

    Path("out").mkdir()
    while True:
        monkeypatch.setattr(files, "CHUNK", size)
        monkeypatch.setattr(preparation.Preparation, "_save", cut)
        work = preparation.Preparation(
            sources.find(["texts"]), False, "texts", Path("out"), reading=Reading(newlines="lf")
        )
        with contextlib.suppress(Cut):
            work.run()
            break
        cuts, size = cuts + 1, size % 13 + 2
    tokens, meta = prepared("out")
    np.testing.assert_array_equal(tokens, want.tokens)
    assert meta.sha256 == want.sha256
    assert cuts > 8


KILLED = """
import sys
from jaxrnn import prepare
from jaxrnn.data import files, preparation
preparation.SAVE_EVERY, files.CHUNK = 0.002, 2000
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.process
def test_a_compressed_preparation_resumes_after_kills(here: Path) -> None:
    text = (TEXT * 30 + "한국 é\n") * 8 + "Ω"
    Path("big.txt.gz").write_bytes(gzip.compress(text.encode("utf-16"), 1))
    how = ["--data", "big.txt.gz", "--output", "out"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    far = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, *how]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=env, **quiet)  # type: ignore[call-overload]
        least = far + len(text) // 5
        while process.poll() is None and far < least:
            with contextlib.suppress(InputError):
                far = token_files.read_json(Path("out/progress.json"))["state"]["count"]
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < far < len(text)
    assert prepare.main(how) == 0
    want = make_corpus(text)
    tokens, meta = prepared("out")
    np.testing.assert_array_equal(tokens, want.tokens)
    assert meta.sha256 == want.sha256


@pytest.mark.slow
def test_a_run_resumes_from_the_same_text_in_another_form(
    here: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT + "caf\xe9\r\n"
    Path("text.txt").write_bytes(text.encode())
    Path("text.txt.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    Path("latin.txt").write_bytes(text.encode("cp1252"))
    assert train.main(flags("text.txt", "run", steps=2)) == 0
    assert train.main(flags("text.txt.gz", "run", steps=4)) == 0
    assert train.main(flags("latin.txt", "run", "--encoding", "latin-1", steps=6)) == 0
    message = refusal(train.main, flags("text.txt", "run", "--newlines", "lf", steps=8))
    assert re.search("text|sha256", message)


def test_the_module_for_zstd_of_python() -> None:
    """Python 3.14 reads zstd without another package."""
    if sys.version_info < (3, 14):
        pytest.skip("new in Python 3.14")
    zstd = importlib.import_module("compression.zstd")
    known = compression.recognise(zstd.compress(b"abc"))
    assert known is not None
    opened = compression.decompressed(io.BytesIO(zstd.compress(b"abc")), known, "text")
    assert opened.read() == b"abc"
