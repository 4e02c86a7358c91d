"""The training command: what it does, and one clear line and a status for everything it cannot do."""

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest

from jaxrnn import ModelConfig, charlm, generate, load, presets, sample, stopping, train
from jaxrnn.arguments import parse
from jaxrnn.commands import generator
from jaxrnn.data import sources
from jaxrnn.data.corpus import make_corpus
from jaxrnn.errors import InputError
from jaxrnn.runs.train_options import default_workdir
from jaxrnn.training import checkpoint, loop, saved_states
from jaxrnn.training.report import Report
from tests.support.runs import (
    KNOWN,
    SMALL,
    TEXT,
    contents,
    environment,
    everything,
    flags,
    lose_the_reader,
    replace_output,
)

# The flags that users know.
FLAGS = """data workdir preset cell layers hidden-size embedding-size dropout batch seq-len steps epochs
learning-rate clip-norm dtype seed bytes shuffle overwrite accelerator"""
draw = Report.draw


pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.once]


# --- train: what it does ---


@pytest.mark.slow
def test_a_dtype_that_auto_chooses_is_named_as_the_fastest(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on keeps its dtype, whatever is the fastest now."""
    given = partial(flags, place / "text.txt", tmp_path / "run", dtype="auto")
    said = []
    for steps in (2, 3):
        assert train.main(given(steps=steps)) == 0
        said.append(
            next(line for line in capsys.readouterr().out.splitlines() if " parameters, " in line)
        )
    chosen = ModelConfig(cell="rnn", hidden_size=6, dtype="auto").resolved().dtype
    assert f"parameters, {chosen}, the fastest here; " in said[0]
    assert f"parameters, {chosen}; " in said[1]


@pytest.mark.slow
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
    learned = size * 9 // 10
    assert lines[1].startswith(
        f"preset small for {learned:,} characters: {8 * 4 * 8 / learned:.3g} passes, dropout 0, "
    )
    count = charlm.count(load(run))
    assert lines[2].startswith(f"1 x rnn of 6, {count:,} parameters, float32; 8 steps on cpu")
    assert lines[2].endswith(f"run directory {run}")
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


@pytest.mark.slow
def test_a_pass_that_reads_a_part_of_the_text_is_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(TEXT) * 9 // 10
    rows = size // 4 * 6 // 10
    assert train.main(flags(place / "text.txt", tmp_path / "run", steps=1, seq_len=rows)) == 0
    line = f"each epoch reads {4 * rows / size:.0%} of the training text, "
    assert capsys.readouterr().out.splitlines()[2].startswith(line)


@pytest.mark.slow
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


@pytest.mark.slow
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert train.main(flags("-", tmp_path, steps=2)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["text"]["name"] == "stdin"


@pytest.mark.slow
def test_bytes_and_a_text_without_newlines(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(range(11, 256)) * 10)
    assert train.main(flags(data, tmp_path / "run", "--bytes", steps=2, sample_every=2)) == 0
    assert load(tmp_path / "run").vocabulary.by_bytes
    data.write_text("no new line " * 100)
    assert train.main(flags(data, tmp_path / "text", steps=2, sample_every=2)) == 0
    assert generate.main([str(tmp_path / "text"), "--prime", "no", "--length", "3"]) == 0


def test_the_folder_without_workdir() -> None:
    assert default_workdir(train.parse([])) == Path("runs/play-small")
    named = train.parse(["--data", "some/notes.txt", "--preset", "lecture"])
    assert default_workdir(named) == Path("runs/notes-lecture")
    assert default_workdir(train.parse(["--preset", "shakespeare"])) == Path("runs/shakespeare")


# --- train: settings ---


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_parse_and_flags_change_them(preset: Any) -> None:
    plain = train.parse(["--preset", preset])
    assert plain.training == presets.PRESETS[preset].training
    assert plain.data == presets.PRESETS[preset].data and plain.preset == preset
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
    for word in [*presets.PRESETS, "rnn", "lstm", "gru", "float32", "bfloat16", "auto"]:
        assert word in out, word


def test_help_breaks_lines_only_where_they_are_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "on two CPU cores), sprint (nanoGPT's loss on Tiny Shakespeare" in out


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
    assert f"--{name.replace('_', '-')}" in message and str(value) in message
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
    data.write_bytes(TEXT.encode() + "é".encode() + b"\xff and on")


def folder(data: Path) -> None:
    data.mkdir()
    (data / "notes.md").write_text(TEXT)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "make, expected",
    [
        (nothing, 'no file or folder "{data}"'),
        (empty, "{data} is empty"),
        (tiny, "only 5 characters"),
        (short, "must have at least 40 characters"),
        (not_utf8, f"{{data}} is not UTF-8: byte 0xff at offset {len(TEXT) + 2} (line 81); "),
        (not_utf8, "--bytes"),
        (folder, 'no file in {data} matches "*.txt"'),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
def test_bad_texts(
    make: Callable[[Path], None],
    expected: str,
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
        assert expected.format(data=data) in message
    assert contents(tmp_path / "new") == {}
    assert contents(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("batch, seq_len", [(4, 8), (3, 10), (2, 17)])
def test_a_text_just_long_enough(
    batch: int, seq_len: int, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The number of characters in the message is enough, and one less is not."""
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
        {"tokens": "b+"},
    ],
    ids=lambda changes: "".join(changes),
)
def test_another_model_in_the_same_folder(
    changes: dict[str, Any], place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    message = refusal(train.main, flags(place / "text.txt", run, **changes))
    [(name, value)] = changes.items()
    flag = "--" + name.replace("_", "-")
    shown = f"{flag} is {SMALL.get(name, {'layers': 1, 'seed': 0}.get(name))} there"
    assert f"{shown} and {value} here" in message and "--overwrite" in message
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
    message = refusal(train.main, flags(tmp_path / "text.txt", run, hidden_size=7))
    assert "--hidden-size is 6 there and 7 here; its text is another" in message
    assert contents(run) == before


def test_the_same_text_from_another_place(place: Path, run: Path, tmp_path: Path) -> None:
    shutil.copy(place / "text.txt", tmp_path / "moved.txt")
    assert train.main(flags(tmp_path / "moved.txt", run)) == 0


@pytest.mark.slow
def test_overwrite_begins_again(place: Path, run: Path) -> None:
    (run / "mine.txt").write_text("not the run's")
    assert train.main(flags(place / "text.txt", run, "--overwrite", hidden_size=5, steps=4)) == 0
    assert load(run).config.hidden_size == 5
    assert [int(path.name) for path in (run / "checkpoints").iterdir()] == [4]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "mine.txt").read_text() == "not the run's"


@pytest.mark.slow
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


@pytest.mark.slow
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
        raise saved_states.Diverged("the loss is not finite, whatever was tried")

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
    monkeypatch.setattr(stopping, "os", SimpleNamespace(_exit=left.append))
    before = signal.getsignal(signal.SIGINT)

    def fit(config: Any, corpus: Any, workdir: Any, report: Any, should_stop: Any, *_: Any) -> Any:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop() and left == []
        signal.raise_signal(signal.SIGINT)
        return loop.Result(None, 3, False)

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
    assert f"no {wanted} found: JAX sees cpu" in message and "pip install" in message
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


@pytest.mark.process
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


# --- streams that end, signals ---


def test_a_training_whose_output_has_no_reader_saves_and_ends(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`python -m jaxrnn.train | head -1` saves and ends without a message."""
    lose_the_reader(monkeypatch, ends)
    assert train.main(flags(place / "text.txt", tmp_path)) == 128 + signal.SIGPIPE
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert train.main(flags(place / "text.txt", tmp_path, steps=2)) == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_behind_the_screen(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    """A training continues, its results are in files; a text that cannot be written is an error."""
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    replace_output(full, monkeypatch, ends)
    assert train.main(flags(place / "text.txt", tmp_path)) == 0
    assert generate.main([str(place / "run")]) == 1


@pytest.mark.first_case
@pytest.mark.parametrize("name", stopping.NAMES)
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
    stopped: Any = loop.Result(None, 2, False)  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "fit", lambda *_: signal.raise_signal(signal.SIGINT) or stopped)
    assert train.main(flags(place / "text.txt", tmp_path, *more)) == 130
    without = " without --overwrite" if more else ""
    line = f"stopped and saved at step 2; the same command{without} resumes from there"
    assert capsys.readouterr().out.splitlines()[-1] == line


# --- windows of runs that were begun before they overlapped ---


@pytest.mark.slow
def test_shuffled_runs_keep_their_windows(place: Path, tmp_path: Path) -> None:
    """An old run, whose description has no `overlap`, keeps the windows that it had."""

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


@pytest.mark.process
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, place: Path, tmp_path: Path) -> None:
    """There is no traceback, and a text for a file is written there."""
    run, out = shlex.quote(str(place / "run")), tmp_path / "out"
    command = f"{sys.executable} -m jaxrnn.generate {run} --length 9 {closed}"
    script = f"{command}; echo $?; {command} --output {out}; echo $?"
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n0\n", "")
    assert out.read_text() == sample(load(place / "run"), "\n", 9)


@pytest.mark.process
def test_cpu_by_name(place: Path, tmp_path: Path) -> None:
    """Run both commands in processes of their own, with `--accelerator cpu`."""
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


@pytest.mark.process
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
    assert checkpoint.InputError is generator.InputError is InputError
