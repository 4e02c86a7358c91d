"""The two commands: what they do, and one clear line with a status for everything they cannot do."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
from test_training import TEXT, quicken

from jaxrnn import charlm, console, generate, load, prepare, sample, sample_bytes, train
from jaxrnn.arguments import parse
from jaxrnn.data import sources
from jaxrnn.data.corpus import make_corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.training import checkpoint, loop, signals
from jaxrnn.training.report import Report

# A model and a run so small that a training takes a second
SMALL = {
    "cell": "rnn",
    "hidden_size": 6,
    "embedding_size": 3,
    "dtype": "float32",
    "batch": 4,
    "seq-len": 8,
    "steps": 8,
    "warmup": 2,
    "log-every": 2,
    "eval-every": 4,
    "sample-every": 0,
}
FLAGS = """data workdir preset cell layers hidden embed dropout batch seq-len steps epochs learning-rate
clip-norm dtype seed bytes shuffle overwrite accelerator"""  # that people were promised
KNOWN = "6 green bottles"
LATIN = TEXT.replace("green", "caf\xe9").encode("latin-1")  # which is not UTF-8

draw = Report.draw


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and finished runs of them, none to be changed: `run`, and `latin` of bytes."""
    place = tmp_path_factory.mktemp("commands")
    (place / "text.txt").write_text(TEXT)
    (place / "latin.txt").write_bytes(LATIN)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        assert train.main(flags(place / "text.txt", place / "run")) == 0
        assert train.main(flags(place / "latin.txt", place / "latin", "--bytes")) == 0
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(place / "run", tmp_path / "run")


def flags(data: Any, workdir: Any, *more: str, **changes: Any) -> list[str]:
    """The arguments of a small training."""
    settings = SMALL | {name.replace("_", "-"): value for name, value in changes.items()}
    named = [part for n, v in settings.items() for part in (f"--{n}", str(v))]
    return ["--data", str(data), "--workdir", str(workdir), *named, *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock that a command leaves behind."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def everything(folder: Path) -> dict[str, Any]:
    """Every path below a folder: what it holds, where it leads, and when it was changed."""
    return {
        str(path.relative_to(folder)): (
            path.is_symlink() and os.readlink(path),
            path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns if not path.is_dir() else None,
        )
        for path in folder.rglob("*")
    }


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail: the one line that it says."""

    def call(main: Callable[[list[str]], int], arguments: list[str], status: int = 2) -> str:
        capsys.readouterr()
        assert main(arguments) == status
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ") and len(lines[0]) > 20
        assert "Traceback" not in out
        return lines[0].removeprefix("error: ")

    return call


# --- train: what it does ---


def test_a_training_from_start_to_end(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(Report, "draw", draw)
    run = tmp_path / "deep" / "run"
    assert train.main(flags(place / "text.txt", run, sample_every=4)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    size = len(TEXT)
    assert lines[0] == (
        f"text: {size:,} characters, {len(set(TEXT))} different; "
        f"the last {size - size * 9 // 10:,} are for validation"
    )
    count = charlm.count(load(run))
    assert lines[1].startswith(f"1 x rnn of 6, {count:,} parameters, float32; 8 steps on cpu")
    assert lines[1].endswith(f"run folder {run}")
    assert any(line.startswith("step 8/8  loss ") for line in lines)
    command = "done. Now: python -m jaxrnn.generate "
    assert lines[-1].startswith(command)
    arguments = shlex.split(lines[-1].removeprefix(command))
    assert arguments == [str(run), "--prime", "0"]
    assert generate.main([*arguments, "--length", "5"]) == 0
    names = {path.name for path in run.iterdir()} - {"lock"}
    assert names == {
        "config.json", "vocab.json", "checkpoints", "metrics.jsonl", "samples.txt", "loss.png"
    }  # fmt: skip
    assert (run / "samples.txt").read_text().count("--- step ") == 2


def test_a_pass_that_reads_a_part_of_the_text_is_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(TEXT) * 9 // 10
    rows = size // 4 * 6 // 10
    assert train.main(flags(place / "text.txt", tmp_path / "run", steps=1, seq_len=rows)) == 0
    line = f"a pass reads {4 * rows / size:.0%} of the training text, "
    assert capsys.readouterr().out.splitlines()[1].startswith(line)


def test_the_play_is_told_with_its_entropy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxrnn.data import play

    short = play.write(3000)
    monkeypatch.setattr(play, "write", lambda: short)
    assert train.main(flags("play", tmp_path, steps=2, eval_every=2)) == 0
    floor = short.nats[2700:].mean()
    out = capsys.readouterr().out
    assert f"no model can do better on them than {floor:.4f} nats per character" in out
    assert f"floor {floor:.3f}" in out


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert train.main(flags("-", tmp_path, steps=2)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["text"]["name"] == "stdin"


def test_bytes_and_a_text_without_newlines(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(range(11, 256)) * 10)
    assert train.main(flags(data, tmp_path / "run", "--bytes", steps=2, sample_every=2)) == 0
    assert load(tmp_path / "run").vocabulary.by_bytes
    data.write_text("no new line " * 100)
    assert train.main(flags(data, tmp_path / "text", steps=2, sample_every=2)) == 0
    assert generate.main([str(tmp_path / "text"), "--prime", "no", "--length", "3"]) == 0


def test_the_folder_without_workdir() -> None:
    assert train.default_workdir(train.parse([])) == Path("runs/play-small")
    named = train.parse(["--data", "some/notes.txt", "--preset", "lecture"])
    assert train.default_workdir(named) == Path("runs/notes-lecture")
    assert train.default_workdir(train.parse(["--preset", "shakespeare"])) == Path(
        "runs/shakespeare"
    )


# --- train: settings ---


@pytest.mark.parametrize("preset", train.PRESETS)
def test_presets_parse_and_flags_change_them(preset: Any) -> None:
    plain = train.parse(["--preset", preset])
    assert plain == train.PRESETS[preset] and plain.preset == preset
    for arguments in (
        ["--preset", preset, "--hidden-size", "77"],
        ["--hidden-size", "77", f"--preset={preset}"],
    ):
        changed = train.parse([*arguments, "--learning-rate", "0.5", "--data", "a", "b"])
        assert changed.training.model.hidden_size == 77 and changed.training.learning_rate == 0.5
        assert changed.data == ("a", "b")
        assert changed.training.batch == plain.training.batch
        assert changed.training.model.cell == plain.training.model.cell


def test_the_lecture_is_the_lecture() -> None:
    lecture = train.parse(["--preset", "lecture"]).training
    model = lecture.model
    assert (model.hidden_size, model.embedding_size, model.layers) == (1024, 256, 1)
    assert (lecture.batch, lecture.seq_len, lecture.shuffle) == (64, 100, True)
    assert (lecture.learning_rate, lecture.schedule, lecture.clip_norm) == (1e-3, "constant", 0)


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.main(["--help"])
    assert left.value.code == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for flag in FLAGS.split():
        assert re.search(rf"--{flag}\b(?!-)", out), flag
    for word in [*train.PRESETS, "rnn", "lstm", "gru", "float32", "bfloat16", "auto"]:
        assert word in out, word


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "large"],
        ["--cell", "transformer"],
        ["--no-such-flag"],
        ["--hidden-size", "many"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_parsed(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        train.main(arguments)
    assert left.value.code not in (0, None)
    out, err = capsys.readouterr()
    assert arguments[-1] in err + out and "Traceback" not in err + out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 0},
        {"hidden_size": 0},
        {"layers": 0},
        {"seq-len": 0},
        {"dropout": 1},
        {"learning-rate": 0},
        {"learning-rate": "nan"},
        {"epochs": "inf"},
        {"embedding_size": -1},
        {"seed": -1},
    ],
    ids=lambda changes: " ".join(f"{k} {v}" for k, v in changes.items()),
)
def test_bad_settings(
    changes: dict[str, Any], place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    [(name, value)] = changes.items()
    message = refusal(train.main, flags(place / "text.txt", tmp_path / "run", **changes))
    assert f"--{name}" in message and str(value) in message
    assert not (tmp_path / "run").exists()


def test_too_many_steps(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    message = refusal(train.main, flags(place / "text.txt", tmp_path, steps=3_000_000_000))
    assert "3000000000 steps" in message and "int32" in message
    assert contents(tmp_path) == {}


# --- train: texts that cannot be learned ---


def nothing(data: Path) -> None:
    pass


def empty(data: Path) -> None:
    data.write_text("")


def tiny(data: Path) -> None:
    data.write_text("short")


def short(data: Path) -> None:
    data.write_text("a few words " * 3)


def not_utf8(data: Path) -> None:
    data.write_bytes(TEXT.encode() + b"\xff and on")


def folder(data: Path) -> None:
    data.mkdir()
    (data / "notes.md").write_text(TEXT)


@pytest.mark.parametrize(
    "make, told",
    [
        (nothing, 'no file or folder "{data}"'),
        (empty, "{data} is empty"),
        (tiny, "only 5 characters"),
        (short, "must have at least 40 characters"),
        (not_utf8, f"{{data}} is not UTF-8: byte 0xff at offset {len(TEXT)} (line 81); "),
        (not_utf8, "--bytes"),
        (folder, 'no file in {data} matches "*.txt"'),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
def test_bad_texts(
    make: Callable[[Path], None],
    told: str,
    overwrite: bool,
    run: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
) -> None:
    """In a new folder nothing is written, and a run that is there is not lost."""
    data = tmp_path / "data"
    make(data)
    before = contents(run)
    more = ["--overwrite"] if overwrite else []
    for workdir in (tmp_path / "new", run):
        message = refusal(train.main, flags(data, workdir, *more))
        assert told.format(data=data) in message
    assert contents(tmp_path / "new") == {}
    assert contents(run) == before


@pytest.mark.parametrize("batch, seq_len", [(4, 8), (3, 10), (2, 17)])
def test_a_text_just_long_enough(
    batch: int, seq_len: int, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """What the message asks for is enough, and one character less is not."""
    data, run = tmp_path / "data", tmp_path / "run"
    arguments = flags(data, run, batch=batch, seq_len=seq_len, steps=2)
    data.write_text("abcd" * 5)
    said = re.search(r"at least (\d+) characters", refusal(train.main, arguments))
    assert said
    least = int(said[1])
    data.write_text(("ab" * least)[: least - 1])
    refusal(train.main, arguments)
    data.write_text(("ab" * least)[:least])
    assert train.main(arguments) == 0


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
def test_a_prime_that_the_text_does_not_have(
    overwrite: bool, place: Path, run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    more = ["--sample-prime", "Ω", *(["--overwrite"] if overwrite else [])]
    for workdir in (tmp_path / "new", run):
        assert "'Ω'" in refusal(train.main, flags(place / "text.txt", workdir, *more))
    assert contents(tmp_path / "new") == {}
    assert contents(run) == before


# --- train: the folder ---


@pytest.mark.parametrize("workdir", ["file", "file/below", "/proc/nothing/here"])
def test_folders_that_cannot_be_written(
    workdir: str, place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("mine")
    message = refusal(train.main, flags(place / "text.txt", tmp_path / workdir))
    assert f"cannot write to {tmp_path / workdir}: " in message and "--workdir" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_one_training_at_a_time(place: Path, run: Path, refusal: Callable[..., str]) -> None:
    before = contents(run)
    with filelock.FileLock(run / "lock"):
        message = refusal(train.main, flags(place / "text.txt", run, "--overwrite"))
        assert f"another training is running in {run}" in message
    assert contents(run) == before
    assert train.main(flags(place / "text.txt", run)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 7},
        {"cell": "gru"},
        {"layers": 2},
        {"batch": 3},
        {"seq-len": 9},
        {"seed": 1},
        {"embedding_size": 0},
    ],
    ids=lambda changes: "".join(changes),
)
def test_another_model_in_the_same_folder(
    changes: dict[str, Any], place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    message = refusal(train.main, flags(place / "text.txt", run, **changes))
    [(name, value)] = changes.items()
    told = f"--{name} is {SMALL.get(name, {'layers': 1, 'seed': 0}.get(name))} there"
    assert f"{told} and {value} here" in message and "--overwrite" in message
    assert message.count(" there and ") == 1, "what is equal is not named"
    assert contents(run) == before


def test_another_text_in_the_same_folder(
    run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    (tmp_path / "text.txt").write_text(TEXT + "one more line\n")
    message = refusal(train.main, flags(tmp_path / "text.txt", run))
    assert f"the text has changed since the run in {run} began (sha256 " in message
    assert "choose another --workdir" in message and "--overwrite" in message
    message = refusal(train.main, flags(tmp_path / "text.txt", run, hidden=7))
    assert "--hidden-size is 6 there and 7 here; its text is another" in message
    assert contents(run) == before


def test_the_same_text_from_another_place(place: Path, run: Path, tmp_path: Path) -> None:
    shutil.copy(place / "text.txt", tmp_path / "moved.txt")
    assert train.main(flags(tmp_path / "moved.txt", run)) == 0


def test_overwrite_begins_again(place: Path, run: Path) -> None:
    (run / "mine.txt").write_text("not the run's")
    assert train.main(flags(place / "text.txt", run, "--overwrite", hidden=5, steps=4)) == 0
    assert load(run).config.hidden_size == 5
    assert [int(path.name) for path in (run / "checkpoints").iterdir()] == [4]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "mine.txt").read_text() == "not the run's"


def test_more_steps_go_on(place: Path, run: Path) -> None:
    before = (run / "metrics.jsonl").read_text()
    assert train.main(flags(place / "text.txt", run, steps=12)) == 0
    after = (run / "metrics.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["step"] for line in after[len(before) :].splitlines()] == [10, 12]
    assert (run / "checkpoints" / "12").is_dir()


def test_a_finished_run_is_done(place: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert train.main(flags(place / "text.txt", run)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("done. ")
    assert contents(run) == before


def test_a_damaged_vocabulary(place: Path, run: Path, refusal: Callable[..., str]) -> None:
    (run / "vocab.json").write_text("{")
    before = contents(run)
    assert "damaged description" in refusal(train.main, flags(place / "text.txt", run))
    assert contents(run) == before
    assert train.main(flags(place / "text.txt", run, "--overwrite", steps=2)) == 0


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"training": []}', '{"model_type": "gpt2", "n_layer": 12}', "\0\0"],
)
def test_a_description_that_does_not_say_that_it_is_a_run(
    content: str, place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    """Not even --overwrite takes such a folder: its files may be of something else."""
    (run / "config.json").write_text(content)
    before = everything(run)
    for more in ([], ["--overwrite"]):
        message = refusal(train.main, flags(place / "text.txt", run, *more))
        assert str(run) in message and ("damaged" in message or "no run of jaxrnn" in message)
        assert everything(run) == before


# --- train: other ends ---


def test_a_loss_that_stays_infinite(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    def diverge(*_: Any) -> Any:
        raise loop.Diverged("the loss is not finite, whatever was tried")

    monkeypatch.setattr(loop, "fit", diverge)
    message = refusal(train.main, flags(place / "text.txt", tmp_path), status=1)
    assert message == "the loss is not finite, whatever was tried"


def test_ctrl_c_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "read", interrupted)
    try:
        assert train.main(flags("play", tmp_path)) == 130
    except KeyboardInterrupt:  # which would end the tests
        pytest.fail("Ctrl-C came through")
    assert capsys.readouterr().err == ""


def test_the_second_signal_is_final(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(signals, "os", SimpleNamespace(_exit=left.append))
    before = signal.getsignal(signal.SIGINT)

    def fit(config: Any, corpus: Any, workdir: Any, report: Any, should_stop: Any, *_: Any) -> Any:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop() and left == []
        signal.raise_signal(signal.SIGINT)
        return None, 3

    monkeypatch.setattr(loop, "fit", fit)
    assert train.main(flags(place / "text.txt", tmp_path)) == 130
    assert left == [130]
    assert signal.getsignal(signal.SIGINT) is before, "handlers are put back"


@pytest.mark.parametrize("wanted", ["gpu", "tpu"])
@pytest.mark.parametrize("main", [train.main, generate.main], ids=["train", "generate"])
def test_an_accelerator_that_is_not_here(
    main: Any, wanted: str, place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    arguments = [str(place / "run")]
    if main is train.main:
        arguments = flags(place / "text.txt", tmp_path / "run")
    message = refusal(main, [*arguments, "--accelerator", wanted])
    assert f"no {wanted} here: JAX sees cpu" in message and "pip install" in message
    assert not (tmp_path / "run").exists()


EXAMPLES = [  # a text, and the prime that is made of it
    ("Enter a king.\n\nROMEO:\nAlas.", "ROMEO:"),
    ("/* acct.c */\nint x = 1;\n", "/*"),
    (b"#include <stdio.h>\n\xa9 ROMEO\n", "#include"),
    ('  "Quoted" words\n\n come first', '"Quoted"'),
    ("one\nword\na\nline\nand\nno\nspace", "one"),
    ("-- dump of shop\nINSERT INTO", "--"),
    ("-rw-r--r-- 1 root root 42 a.txt", "-rw-r--r--"),
    ("--length of a text without end", "--length"),
    ("`ls`;'\"\\$HOME! and so on and on", "`ls`;'\"\\$HOME!"),
    ("Привет, мир! " * 3, "Привет,"),
    ("caf\xe9 \u2014 au lait ".encode() * 3, "caf\xe9"),
    (b"\0\1 \xff\xfe caf\xe9 \x1b[31m first " * 3, "first"),
    (b"\x1b[2J\0\xff" * 9, None),
    (" \n\t" * 9, None),
]
FOLDERS = [
    "run",
    "my run",
    "it's $HOME",
    "-run",
    "--prime",
    "a\nb\t\\",
    "\udce9 \u4e00",
    "\x1b[31m",
]


@pytest.mark.parametrize(("content", "prime"), EXAMPLES)
def test_the_example_begins_as_the_text_does(content: str | bytes, prime: str | None) -> None:
    corpus = make_corpus(content)
    assert train._example_prime(corpus) == prime
    if prime is not None:
        corpus.vocabulary.encode(prime)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_last_line_is_a_command_for_a_shell(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bash takes it as it is on the screen, and then `generate` has the folder and the prime."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    script, wanted = "", []
    for folder in FOLDERS:
        for content, prime in EXAMPLES:
            command = train._example(Path(folder), make_corpus(content))
            script += command.replace("python -m jaxrnn.generate", "printf '%s\\0'") + "; echo\n"
            wanted.append((Path(folder), prime))
    assert script.isprintable() or set(filter(lambda c: not c.isprintable(), script)) == {"\n"}
    shell = subprocess.run(["bash"], input=script.encode(encoding), capture_output=True)
    got = []
    for line in shell.stdout.split(b"\0\n")[:-1]:
        config = parse(
            generate.GenerateOptions, "", [os.fsdecode(word) for word in line.split(b"\0")]
        )
        got.append((config.run, config.prime))
    assert got == wanted and shell.stderr == b""


# --- generate ---


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert generate.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


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
def test_it_writes_what_sample_returns(
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


def test_many_texts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = written(capsys, place / "run", "--prime", KNOWN, "--length", 20, "--count", 2)
    one, two = sample(load(place / "run"), KNOWN, 20, count=2)
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


def test_best_or_latest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("best", "latest"):
        text = written(capsys, run, "--which", which, "--length", 20)
        assert text == sample(load(run, which), "\n", 20)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--prime", "Ω€"], "never seen: 'Ω' '€'"),
        (["--prime", ""], "prime is empty"),
        (["--prime", "caf\udce9"], "--prime is not UTF-8: byte 0xe9 at offset 3"),
        (["--prime", "-s"], "one that begins with - follows an equals sign: --prime=VALUE"),
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
            ["--prime-file", "latin"],
            "latin is not UTF-8: byte 0xe9 at offset 3 (line 1); it is perh",
        ),
        (["--prime-file", "empty"], "prime is empty"),
        (["--prime-file", "-"], "standard input is closed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_to_generate(
    arguments: list[str],
    told: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    """And what is in the output file stays there."""
    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes(b"caf\xe9")
    Path("empty").touch()
    monkeypatch.setattr(sys, "stdin", None)
    Path("out").write_text("from before")
    message = refusal(generate.main, [str(place / "run"), *arguments, "--output", "out"])
    assert told in message
    assert Path("out").read_text() == "from before"


def test_folders_that_are_no_run(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "is no folder" in refusal(generate.main, [str(tmp_path / "nowhere")])
    assert "is no run of jaxrnn" in refusal(generate.main, [str(tmp_path)])
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

    monkeypatch.setattr(generate, "run", interrupted)
    try:
        assert generate.main(["somewhere"]) == 130
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")


# --- text of any kind, in and out ---


@pytest.fixture
def ends() -> Iterator[Callable[[Any], None]]:
    """Closes files at the end of a test."""
    with contextlib.ExitStack() as stack:
        yield stack.callback


def strict_screen(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Callable[[], bytes]:
    """Standard output and error that refuse what their encoding lacks. Returns how to see the first."""
    raw, options = io.BytesIO(), {"encoding": encoding, "errors": "strict", "write_through": True}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, **options))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), **options))
    return raw.getvalue


@pytest.mark.parametrize("bar", [False, True], ids=["lines", "bar"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_of_the_screen_stops_a_command(
    encoding: str, bar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text, the file's name, the prime and the errors have characters that the screen lacks."""
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


def test_files_whose_names_are_not_utf8(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    """They are read; a run's folder must have another name, which is said before anything is done."""
    monkeypatch.chdir(tmp_path)
    Path("caf\udce9.txt").write_text(TEXT)
    no_workdir = [word for word in flags("caf\udce9.txt", "") if word not in ("--workdir", "")]
    assert train.main([*no_workdir, "--overwrite"]) == 0
    assert "run folder runs/caf_-small\n" in capsys.readouterr().out
    for workdir in "w\udce9", "w\udce9/run":
        message = refusal(train.main, flags("caf\udce9.txt", workdir))
        assert f"{tmp_path}/w\\udce9" in message and "is not UTF-8" in message
    shutil.copytree("runs/caf_-small", "w\udce9")
    assert "is not UTF-8" in refusal(generate.main, ["w\udce9"])
    monkeypatch.chdir("w\udce9")
    assert "is not UTF-8" in refusal(generate.main, ["."])


def test_what_a_model_of_bytes_writes(
    place: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The bytes that it draws, in the file and on the screen, one text or many, whole or in pieces."""
    run, out = str(place / "latin"), tmp_path / "out"
    prime = "caf\udce9 "  # as Python gives the byte 0xe9 of a command line
    raw = sample_bytes(load(run), b"caf\xe9 ", 2000)
    assert isinstance(raw, bytes) and b"\xef\xbf\xbd" not in raw and not is_utf8(raw[5:])
    arguments = [run, "--prime", prime, "--length", "2000"]
    for more in [], ["--output", "-"], ["--output", str(out)]:
        assert generate.main([*arguments, *more]) == 0
    assert capfdbinary.readouterr().out == raw * 2
    assert out.read_bytes() == raw
    one, two = sample_bytes(load(run), b"caf\xe9 ", 30, count=2)
    assert generate.main([run, "--prime", prime, "--length", "30", "--count", "2"]) == 0
    assert capfdbinary.readouterr().out == b"--- 1 ---\n%b\n--- 2 ---\n%b\n" % (one, two)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


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
    """No newline is translated or dropped, and a byte order mark at the start is no character."""
    prime, raw = tmp_path / "prime", "\ufeff" + content
    prime.write_bytes(raw.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw.encode()), "latin-1"))
    source = sources.read([str(prime)]).content
    config = generate.GenerateOptions(Path("run"), prime_file="-" if by == "stdin" else str(prime))
    assert generate._prime(config, Vocabulary.of(content)) == source == content


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


def test_output_can_be_the_next_prime(
    place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The file has the text and nothing more, so a text made in two parts is the text made in one."""
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


def test_none_is_a_prime_like_any_other(
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


# --- streams that end, signals ---


def lose_the_reader(monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]) -> None:
    """Let standard output be a pipe without a reader; no fixture, after which pytest sets it again."""
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w")
    ends(file.close)
    ends(console.abandon_output)
    monkeypatch.setattr(sys, "stdout", file)


def test_a_training_whose_output_has_no_reader_saves_and_ends(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As in `python -m jaxrnn.train | head -1`; nothing is said and nothing is lost."""
    lose_the_reader(monkeypatch, ends)
    assert train.main(flags(place / "text.txt", tmp_path)) == 128 + signal.SIGPIPE
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert train.main(flags(place / "text.txt", tmp_path, steps=2)) == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_behind_the_screen(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    """A training goes on, since its results are elsewhere; a text that cannot be written is an error."""
    full = open("/dev/full", "w")  # noqa: SIM115
    ends(full.close)
    ends(console.abandon_output)
    monkeypatch.setattr(sys, "stdout", full)
    assert train.main(flags(place / "text.txt", tmp_path)) == 0
    assert generate.main([str(place / "run")]) == 1


@pytest.mark.parametrize("name", signals.NAMES)
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_signals_while_it_trains(
    name: str, ignored: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each saves and ends, unless it came ignored."""
    number = getattr(signal, name)
    steps = Report.steps

    def interrupt(self: Report, step: int, *more: Any) -> None:
        steps(self, step, *more)
        if step == 6:
            signal.raise_signal(number)

    monkeypatch.setattr(Report, "steps", interrupt)
    before = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert train.main(flags(place / "text.txt", tmp_path)) == (0 if ignored else 128 + number)
    finally:
        signal.signal(number, before)
    assert (tmp_path / "checkpoints" / ("8" if ignored else "6")).is_dir()


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_the_command_that_resumes_does_not_overwrite(
    more: list[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "fit", lambda *_: signal.raise_signal(signal.SIGINT) or (None, 2))
    assert train.main(flags(place / "text.txt", tmp_path, *more)) == 130
    without = " without --overwrite" if more else ""
    line = f"stopped and saved at step 2; the same command{without} resumes from there"
    assert capsys.readouterr().out.splitlines()[-1] == line


# --- windows of runs that were begun before they overlapped ---


def test_shuffled_runs_keep_their_windows(place: Path, tmp_path: Path) -> None:
    """An old run, whose description has no `overlap`, goes on with the windows that it had."""

    def losses(run: Path) -> list[float]:
        return [
            json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()
        ]

    old, cut = tmp_path / "old", tmp_path / "cut"
    arguments = flags(place / "text.txt", cut, "--shuffle", steps=240, log_every=20, eval_every=80)
    config = train.parse(arguments)
    assert config.training.steps > 2 * config.training.batches(make_corpus(TEXT)).per_epoch
    old_kind = dataclasses.replace(config.training, overlap=None)
    assert train.run(dataclasses.replace(config, workdir=old, training=old_kind)) == 0
    shutil.copytree(old, cut)
    shutil.rmtree(cut / "checkpoints" / "240")
    described = json.loads((cut / "config.json").read_text())
    assert described["training"].pop("overlap") is None
    (cut / "config.json").write_text(json.dumps(described))
    assert train.main(arguments) == 0
    assert losses(cut) == losses(old)
    assert train.main([*arguments, "--overwrite"]) == 0
    assert json.loads((cut / "config.json").read_text())["training"]["overlap"] is True
    assert losses(cut)[1:] != losses(old)[1:]


# --- as processes of their own ---


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}


@pytest.mark.parametrize(("by", "status"), [("pipe", 141), ("Ctrl-C", 130)])
def test_an_endless_text_ends(by: str, status: int, place: Path) -> None:
    """As in `python -m jaxrnn.generate run --length endless | head -c 10`; what was written stays."""
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


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, place: Path, tmp_path: Path) -> None:
    """There is no traceback, and a text for a file is written there."""
    run, out = shlex.quote(str(place / "run")), tmp_path / "out"
    command = f"{sys.executable} -m jaxrnn.generate {run} --length 9 {closed}"
    script = f"{command}; echo $?; {command} --output {out}; echo $?"
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n0\n", "")
    assert out.read_text() == sample(load(place / "run"), "\n", 9)


def test_cpu_by_name(place: Path, tmp_path: Path) -> None:
    """Both commands in processes of their own, told to use the CPU."""
    steps = [
        ["jaxrnn.train", *flags("-", tmp_path / "run", steps=2)],
        ["jaxrnn.generate", str(tmp_path / "run"), "--prime", KNOWN, "--length", "10"],
    ]
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-m", *step, "--accelerator", "cpu"],
            input=TEXT,
            env={k: v for k, v in environment().items() if k != "JAX_PLATFORMS"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == sample(load(tmp_path / "run"), KNOWN, 10)


def test_errors_of_a_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaxrnn.train", *flags(tmp_path / "nothing", tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith('error: no file or folder "')


def test_input_error_is_the_only_one() -> None:
    """The commands print exactly the errors that are the user's to mend."""
    assert checkpoint.InputError is train.InputError is generate.InputError is InputError
