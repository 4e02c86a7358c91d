"""Tests of the sources: each is read exactly, in order, and each error is one clear line."""

import hashlib
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jaxrnn.data import files, play, sources
from jaxrnn.errors import InputError

pytestmark = pytest.mark.once

EVERY_SCRIPT = (
    "family \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466, flag \U0001f1f0\U0001f1f7\n"
    "한국어, 조합 \u1112\u1161\u11ab\r\n"
    "العربية\u200f، مُشَكَّلَة\r"
    "combining e\u0301 and z\u0351\u036b, composed \u00e9\u2028"
    "astral \U00010348\U0001d11e\U0010ffff, null \0, inner mark \ufeff, no newline at the end"
)


def refusal(*data: str, glob: str | None = None, as_bytes: bool = False) -> str:
    """Return the message, of one line, of the InputError that reading `data` must raise."""
    with pytest.raises(InputError) as caught:
        sources.read(data, glob=glob, as_bytes=as_bytes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that paths are as short as users type them."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def short_play(monkeypatch: pytest.MonkeyPatch) -> play.Play:
    short = play.write(1000)
    monkeypatch.setattr(play, "write", lambda: short)
    return short


def put(path: str, content: str | bytes = "") -> None:
    raw = content.encode() if isinstance(content, str) else content
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(raw)


# The play


def test_default_is_the_whole_play() -> None:
    source = sources.read()
    assert source.name == "play"
    assert source.content == play.write().text and len(source.content) == 1_000_000
    assert source.nats is not None and source.nats.shape == (1_000_000,)


def test_the_play_as_bytes_keeps_its_nats(short_play: play.Play) -> None:
    source = sources.read(["play"], as_bytes=True)
    assert source.content == short_play.text.encode("ascii")
    np.testing.assert_array_equal(source.nats, short_play.nats)


def test_the_play_with_another_text_has_no_nats(here: Path, short_play: play.Play) -> None:
    put("notes.txt", "abc")
    joined = "abc\n" + short_play.text
    assert sources.read(["notes.txt", "play"]) == ("notes+1", joined, None)
    assert sources.read(["notes.txt", "play"], as_bytes=True).content == joined.encode()
    assert sources.read(["play", "play"]).nats is None


def test_a_named_source_hides_a_file_except_with_dot_slash(
    here: Path, short_play: play.Play
) -> None:
    put("play", "a file")
    assert sources.read(["play"]).content == short_play.text
    assert sources.read(["./play"]) == ("play", "a file", None)


def test_a_bare_str_is_one_word(here: Path, short_play: play.Play) -> None:
    put("notes.txt", "abc")
    assert sources.read("play").content == short_play.text
    assert sources.read("notes.txt") == ("notes", "abc", None)


def test_no_source_is_refused() -> None:
    assert re.search("`data` names nothing.*leave it out", refusal())


# Files


@pytest.mark.parametrize("as_bytes", [False, True])
def test_every_script_is_read_unchanged(here: Path, as_bytes: bool) -> None:
    put("scripts.txt", EVERY_SCRIPT)
    source = sources.read(["scripts.txt"], as_bytes=as_bytes)
    assert source == ("scripts", EVERY_SCRIPT.encode() if as_bytes else EVERY_SCRIPT, None)


def test_byte_order_mark_is_dropped_from_each_file(here: Path) -> None:
    put("a.txt", "\ufeffone\n")
    put("b.txt", "\ufefftwo \ufeff\n")
    assert sources.read(["a.txt", "b.txt"]).content == "one\ntwo \ufeff\n"
    raw = sources.read(["a.txt", "b.txt"], as_bytes=True).content
    assert raw == "\ufeffone\n\ufefftwo \ufeff\n".encode()


def test_files_are_joined_in_the_order_given(here: Path) -> None:
    put("a.txt", "ends\n")
    put("b.txt", "does not")
    put("c.txt", "windows\r\n")
    assert sources.read(["b.txt", "a.txt", "b.txt"]) == ("b+2", "does not\nends\ndoes not", None)
    assert sources.read(["c.txt", "b.txt"]).content == "windows\r\ndoes not"
    assert sources.read(["b.txt", "a.txt"], as_bytes=True).content == b"does not\nends\n"


def test_all_byte_values_are_read_as_bytes(here: Path) -> None:
    put("raw.bin", bytes(range(256)))
    assert sources.read(["raw.bin"], as_bytes=True).content == bytes(range(256))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_error_for_invalid_utf8_names_file_byte_and_offset(here: Path, mark: bytes) -> None:
    put("latin.txt", mark + "한\ncaf".encode() + b"\xe9 au lait")
    assert refusal("latin.txt") == (
        f"latin.txt is not UTF-8: byte 0xe9 at offset {len(mark) + 7} (line 2); it is UTF-8 except "
        "for some bytes, which can be left out: convert it with iconv -c -f utf-8 -t utf-8 latin.txt > "
        "NEW.txt; `as_bytes` reads it as it is"
    )


# The content of files, the format that the error names, and the command that converts it.
REFUSED = {
    "text.lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "is compressed by lz4", "lz4cat"),
    "text.docx": (b"PK\x03\x04\x14\x00\x08\x08\xff", "is a zip archive", "unzip -p"),
    "text.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF", "pdftotext"),
    "cyrillic.txt": (
        "Привет, мир!".encode("koi8-r"),
        "has another encoding",
        "iconv -f ENCODING",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_for_other_formats_names_the_converting_command(here: Path, name: str) -> None:
    """`as_bytes` is offered for text in another encoding only. Chunks get the same message."""
    raw, what, command = REFUSED[name]
    put("my " + name, raw)
    message = refusal("my " + name)
    assert message.startswith(f"my {name} is not UTF-8") and f"; it {what}" in message
    assert f"convert it with {command}" in message and f" 'my {name}'" in message
    assert ("as_bytes" in message) == (name == "cyrillic.txt")
    with pytest.raises(InputError) as caught:
        for _ in files.stream(sources.find(["my " + name]), size=3):
            pass
    assert str(caught.value) == message
    assert sources.read(["my " + name], as_bytes=True).content == raw
    with pytest.raises(InputError) as caught:  # a prime
        files.read("my " + name)
    assert what in str(caught.value) and "as_bytes" not in str(caught.value)
    assert files.read("my " + name, as_bytes=True) == raw


def test_no_conversion_is_offered_for_binary_files(here: Path) -> None:
    put("raw.bin", b"\x7fELF\x02\0\0\xff\0")
    assert refusal("raw.bin") == (
        "raw.bin is not UTF-8: byte 0xff at offset 7 (line 1); it has NUL bytes and is not text; "
        "`as_bytes` reads it as it is"
    )


@pytest.mark.parametrize("at", [0, 5, 2**20 + 7, 3 * 2**20])
def test_lines_are_counted_across_chunks(here: Path, at: int) -> None:
    """The first character is not ASCII, so that the text is UTF-8 and not Windows-1252."""
    start = "é".encode()
    put("big.txt", start + (b"x\n" * 2**21)[:at] + b"\xff" + b"x\n" * 2**20)
    where = f"byte 0xff at offset {len(start) + at} (line {at // 2 + 1})"
    assert where in refusal("big.txt")
    with pytest.raises(InputError, match=re.escape(where)):
        list(files.stream(sources.find(["big.txt"])))


@pytest.mark.parametrize("raw", [b"\xed\xa0\x80", b"\xc0\x80", b"cut \xf0\x9f\x91"])
def test_utf8_is_decoded_strictly(here: Path, raw: bytes) -> None:
    put("texts/bad.txt", raw)
    assert f"{os.path.join('texts', 'bad.txt')} is not UTF-8: byte 0x" in refusal("texts")


@pytest.mark.parametrize("word", ["shakespear", "", "notes.txt/x"])
def test_a_missing_file_is_named(here: Path, word: str) -> None:
    put("notes.txt", "abc")
    message = refusal(word)
    assert message.startswith(f'no file or folder "{word}"; name play, shakespeare')


@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_empty_files_are_left_out(
    here: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text of only empty files is refused."""
    for name in "a", "c", "e":
        put(f"{name}.txt", content)
    put("b.txt", "abc")
    put("d.txt", "de")
    assert refusal("a.txt") == "a.txt is empty; give another text"
    assert refusal("a.txt", "c.txt") == "a.txt, c.txt are empty; give another text"
    five = [f"{name}.txt" for name in "acace"]
    assert refusal(*five) == "a.txt, c.txt, e.txt are empty; give another text"
    capsys.readouterr()
    joined = sources.read([f"{name}.txt" for name in "abcde"])
    assert joined == ("a+4", "abc\nde", None)
    note = "note: a.txt (and 2 more such files) is empty and is left out\n"
    assert capsys.readouterr().err == ("" if content else note)
    sources.read(["b.txt", "c.txt"])
    assert capsys.readouterr().err == ("" if content else "note: c.txt is empty and is left out\n")


@pytest.fixture
def lock() -> Iterator[Callable[[str], None]]:
    """Make a file or folder unreadable; as root, which can still read it, become another user."""
    user, closed = os.geteuid(), []

    def close(path: str) -> None:
        os.chmod(path, 0)
        closed.append(os.path.abspath(path))
        if user == 0:
            os.seteuid(65534)

    yield close
    os.seteuid(user)
    for path in closed:
        os.chmod(path, 0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a POSIX matter")
@pytest.mark.parametrize("what", ["notes.txt", "texts", "texts/a", "texts/a/notes.txt"])
def test_unreadable_files_are_errors(here: Path, what: str, lock: Callable[[str], None]) -> None:
    for path in ["notes.txt", "texts/notes.txt", "texts/a/notes.txt"]:
        put(path, "abc")
    lock(what)
    message = refusal(what.split("/")[0])
    assert message == f"cannot read {what}: Permission denied; make it readable or leave it out"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a POSIX matter")
def test_a_pipe_is_read_when_named(here: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=put, args=("pipe", "through a pipe"))
    writer.start()
    assert sources.read(["pipe"]) == ("pipe", "through a pipe", None)
    writer.join()


# Folders


def test_folder_is_read_in_the_order_of_its_paths(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["B.txt", "a.txt", "a/b.txt", "a/b/c.txt", "a/z.txt", "aa.txt", "é.txt", "한.txt"]
    for path in reversed(paths):
        put(f"texts/{path}", path)
    put("texts/skipped.md", "not matched")
    in_order = "\n".join(paths)
    assert sources.read(["texts"]) == ("texts", in_order, None)
    walk = os.walk  # a file system that lists its files the other way round

    def backwards(*args, **kwargs):  # type: ignore[no-untyped-def]
        for place, folders, names in walk(*args, **kwargs):
            folders.sort(reverse=True)
            yield place, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    for spelling in ["texts", "texts/", "./texts", "../here/texts", str(here / "texts")]:
        assert sources.read([spelling]) == ("texts", in_order, None)
    monkeypatch.chdir("texts")
    assert sources.read(["."]) == ("texts", in_order, None)


@pytest.mark.parametrize(
    ("glob", "taken"),
    [
        (None, ["c.txt", "src/c.txt"]),
        ("*.c", ["a.c", "deep/src/b.c", "src/a.c"]),
        ("**/*.c", ["a.c", "deep/src/b.c", "src/a.c"]),
        ("src/*.c", ["deep/src/b.c", "src/a.c"]),
        ("deep/*/*.c", ["deep/src/b.c"]),
        ("[ab].?", ["a.c", "deep/src/b.c", "src/a.c"]),
        ("*", ["a.c", "c.txt", "deep/src/b.c", "src/a.c", "src/c.txt"]),
    ],
)
def test_glob(here: Path, glob: str | None, taken: list[str]) -> None:
    for path in ["a.c", "c.txt", "deep/src/b.c", "src/a.c", "src/c.txt"]:
        put(f"linux/{path}", path + "\n")
    put("other.md", "read whatever the glob\n")
    source = sources.read(["other.md", "linux"], glob=glob)
    assert source.content == "".join(p + "\n" for p in ["read whatever the glob", *taken])


def test_hidden_and_irregular_files_are_skipped(here: Path) -> None:
    put("texts/seen.txt", "seen")
    put("texts/.hidden.txt", "hidden")
    put("texts/.git/hidden.txt", "hidden")
    put("texts/folder.txt/seen.txt", "inside")
    put(".above/texts/seen.txt", "the folder asked for may itself be hidden")
    os.symlink("..", "texts/loop")
    os.symlink("seen.txt", "texts/to-a-file.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo("texts/pipe.txt")
    assert sources.read(["texts"], glob="*.txt").content == "inside\nseen\nseen"
    assert sources.read([".above"]).content == "the folder asked for may itself be hidden"


def test_broken_links_are_left_out_with_a_note(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("texts/seen.txt", "seen")
    os.symlink("nowhere.txt", "texts/broken.txt")
    os.symlink("nowhere.txt", "texts/not-asked-for.md")
    broken = os.path.join("texts", "broken.txt")
    assert sources.read(["texts"]).content == "seen"
    note = f"note: {broken} is a broken link and is left out\n"
    assert capsys.readouterr().err == note
    os.symlink("self.txt", "texts/self.txt")
    os.symlink("seen.txt/inside.txt", "texts/through-a-file.txt")
    assert sources.read(["texts"]).content == "seen"
    assert f"{broken} (and 2 more such files) is a broken link" in capsys.readouterr().err
    assert refusal(broken).startswith(f'no file or folder "{broken}"'), (
        "one that is named is missed"
    )
    os.remove("texts/seen.txt")
    assert refusal("texts").startswith('no file in texts matches "*.txt"')


def test_empty_files_in_a_folder(here: Path) -> None:
    put("texts/a.txt", "")
    put("texts/c.txt", "\ufeff")
    assert refusal("texts").startswith("texts is empty")
    put("texts/b.txt", "b\n")
    put("texts/d.txt", "d\n")
    assert sources.read(["texts"]).content == "b\nd\n"


def test_a_folder_without_a_match_is_refused(here: Path) -> None:
    put("linux/a.c", "int x;")
    assert refusal("linux") == (
        'no file in linux matches "*.txt"; choose others with `glob="PATTERN"`'
    )
    assert '"/*.c"' in refusal("linux", glob="/*.c")
    assert '"../*.c"' in refusal("linux", glob="../*.c")


@pytest.mark.parametrize("glob", ["", ".", "**", "**/", "src/**/*.c", "**.c"])
def test_invalid_glob_is_refused(here: Path, glob: str) -> None:
    put("linux/src/a.c", "int x;")
    assert refusal("linux", glob=glob).startswith(f'`glob="{glob}"` is not a file pattern')


def test_glob_without_a_folder_is_refused(here: Path) -> None:
    put("notes.txt", "abc")
    (here / "play").mkdir()  # not what the word play means
    message = refusal("notes.txt", "play", "-", glob="*.c")
    assert message == '`glob="*.c"` chooses files from a folder, but no folder is named'


# Standard input


def pipe_in(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="latin-1"))


def test_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("notes.txt", "abc")
    pipe_in(monkeypatch, EVERY_SCRIPT.encode())
    assert sources.read(["-"]) == ("stdin", EVERY_SCRIPT, None)
    pipe_in(monkeypatch, b"\xff\r\n")
    assert sources.read(["-", "notes.txt"], as_bytes=True) == ("stdin+1", b"\xff\r\nabc", None)


def test_empty_or_invalid_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "é".encode() + b"\xff")
    assert refusal("-").startswith("standard input is not UTF-8: byte 0xff at offset 2 (l")
    pipe_in(monkeypatch, b"")
    assert refusal("-").startswith("standard input is empty;")
    pipe_in(monkeypatch, b"once")
    assert refusal("-", "-").startswith("standard input is empty;")
    sys.stdin.close()
    assert refusal("-").startswith("standard input is closed; pipe a text into it")
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-").startswith("standard input is closed; pipe a text into it")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="a POSIX matter")
def test_a_terminal_as_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert refusal("-").startswith("standard input is the terminal; pipe a text into it")


# Names


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (["play"], "play"),
        (["shakespeare", "play"], "shakespeare+1"),
        (["-"], "stdin"),
        (["./play"], "play"),
        (["a/notes.tar.gz", "b", "c"], "notes+2"),
        (["notes.txt.zst"], "notes"),
        (["notes.gz"], "notes"),
        (["linux/"], "linux"),
        (["linux/drivers/.."], "linux"),
        (["/dev/stdin"], "stdin"),
        (["/"], "root"),
        (["한국어.txt"], "한국어"),
    ],
)
def test_names_are_found_without_reading(here: Path, data: list[str], name: str) -> None:
    assert sources.name(data) == name


# Tiny Shakespeare, served from this machine. Only its address and checksum are not the real ones.

VERSES = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"


class Served:
    """The file that the server serves, and the requests it has received."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "input.txt"
        self.requests: list[str] = []


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    folder = tmp_path / "served"
    folder.mkdir()
    state = Served(folder)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            state.requests.append(format % args)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", url)
        monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", hashlib.sha256(VERSES).hexdigest())
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXRNN_CACHE", str(folder))
    return folder / "tinyshakespeare.txt"


BY_HAND = (
    "; put tinyshakespeare.txt into {} by hand, "
    "or name another copy: `data=path/to/tinyshakespeare.txt`"
)


def test_shakespeare_is_downloaded_once(
    served: Served, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served.file.write_bytes(VERSES)
    assert sources.read(["shakespeare"]) == ("shakespeare", VERSES.decode(), None)
    assert capfd.readouterr() == ("", "note: downloading Tiny Shakespeare ...\n")
    assert cache.read_bytes() == VERSES
    assert sources.read(["shakespeare"], as_bytes=True).content == VERSES
    assert capfd.readouterr() == ("", "")
    assert len(served.requests) == 1


def test_shakespeare_put_there_by_hand_needs_no_network(served: Served, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(VERSES)
    assert sources.read(["shakespeare"]).content == VERSES.decode()
    assert served.requests == []


def test_default_cache_folder(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    monkeypatch.delenv("JAXRNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where the system has such a thing
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = Path(pooch.os_cache("jaxrnn"))
    assert folder.is_relative_to(tmp_path) and folder.name == "jaxrnn"
    served.file.write_bytes(VERSES)
    sources.read(["shakespeare"])
    assert (folder / "tinyshakespeare.txt").read_bytes() == VERSES


def test_shakespeare_missing_from_the_server(served: Served, cache: Path) -> None:
    assert refusal("shakespeare") == (
        "Tiny Shakespeare could not be downloaded (HTTPError)" + BY_HAND.format(cache.parent)
    )


def test_shakespeare_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")  # refused
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert refusal("shakespeare") == (
        "Tiny Shakespeare could not be downloaded (ConnectionError)" + BY_HAND.format(cache.parent)
    )


def test_shakespeare_changed_on_the_server(served: Served, cache: Path) -> None:
    served.file.write_bytes(VERSES.replace(b"\n", b"\r\n"))
    assert refusal("shakespeare") == (
        "Tiny Shakespeare could not be downloaded (wrong checksum)" + BY_HAND.format(cache.parent)
    )
    assert list(cache.parent.iterdir()) == []


def test_damaged_shakespeare_is_downloaded_again(served: Served, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(VERSES[:10])
    message = refusal("shakespeare")
    assert message == (
        f"tinyshakespeare.txt in {cache.parent} is damaged, and Tiny Shakespeare could not be "
        "downloaded (HTTPError)" + BY_HAND.format(cache.parent)
    )
    assert cache.read_bytes() == VERSES[:10]
    served.file.write_bytes(VERSES)
    assert sources.read(["shakespeare"]).content == VERSES.decode()
    assert cache.read_bytes() == VERSES


def test_a_cache_folder_that_cannot_be_made(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path / "file"), "not a folder")
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "file" / "cache"))
    assert "could not be downloaded (NotADirectoryError)" in refusal("shakespeare")


def test_imports_without_pooch(monkeypatch: pytest.MonkeyPatch, short_play: play.Play) -> None:
    import importlib.util

    monkeypatch.setitem(sys.modules, "pooch", None)  # importing it now fails
    assert sources.__file__ is not None
    spec = importlib.util.spec_from_file_location("sources_again", sources.__file__)
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.read().content == short_play.text
