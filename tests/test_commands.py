"""The two commands: what they do, and one clear line with a status for everything they cannot do."""

import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
from test_training import TEXT, quicken

from jaxrnn import (
    charlm,
    checkpoint,
    generate,
    load,
    sample,
    sources,
    stopping,
    text,
    train,
    training,
)
from jaxrnn.errors import InputError
from jaxrnn.report import Report

# A model and a run so small that a training takes a second
SMALL = {
    "cell": "rnn",
    "hidden": 6,
    "embed": 3,
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

draw = Report.draw


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    # The annotation checker does not take the screen that pytest puts up for a TextIO.
    monkeypatch.setattr(generate, "_write", inspect.unwrap(generate._write))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a finished run of it, neither to be changed."""
    place = tmp_path_factory.mktemp("commands")
    (place / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        assert train.main(flags(place / "text.txt", place / "run")) == 0
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
    said = re.fullmatch(r'done\. Now: python -m jaxrnn\.generate (.*) --prime "(.*)"', lines[-1])
    assert said and said[1] == str(run)
    assert generate.main([said[1], "--prime", said[2], "--length", "5"]) == 0
    names = {path.name for path in run.iterdir()} - {"lock"}
    assert names == {
        "config.json", "vocab.json", "checkpoints", "metrics.jsonl", "samples.txt", "loss.png"
    }  # fmt: skip
    assert (run / "samples.txt").read_text().count("--- step ") == 2


def test_the_play_is_told_with_its_entropy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxrnn import play

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
        ["--preset", preset, "--hidden", "77"],
        ["--hidden", "77", f"--preset={preset}"],
    ):
        changed = train.parse([*arguments, "--learning-rate", "0.5", "--data", "a", "b"])
        assert changed.training.model.hidden == 77 and changed.training.learning_rate == 0.5
        assert changed.data == ("a", "b")
        assert changed.training.batch == plain.training.batch
        assert changed.training.model.cell == plain.training.model.cell


def test_the_lecture_is_the_lecture() -> None:
    lecture = train.parse(["--preset", "lecture"]).training
    model = lecture.model
    assert (model.hidden, model.embed, model.layers) == (1024, 256, 1)
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
    [["--preset", "large"], ["--cell", "transformer"], ["--no-such-flag"], ["--hidden", "many"]],
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
        {"hidden": 0},
        {"layers": 0},
        {"seq-len": 0},
        {"dropout": 1},
        {"learning-rate": 0},
        {"learning-rate": "nan"},
        {"epochs": "inf"},
        {"eval-every": 3},
        {"embed": -1},
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
        (not_utf8, f"{{data}} is not UTF-8: byte 0xff at offset {len(TEXT)}; "),
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
        assert f"another training is at work in {run}" in message
    assert contents(run) == before
    assert train.main(flags(place / "text.txt", run)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 7},
        {"cell": "gru"},
        {"layers": 2},
        {"batch": 3},
        {"seq-len": 9},
        {"seed": 1},
        {"embed": 0},
    ],
    ids=lambda changes: "".join(changes),
)
def test_another_model_in_the_same_folder(
    changes: dict[str, Any], place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    message = refusal(train.main, flags(place / "text.txt", run, **changes))
    [(name, value)] = changes.items()
    told = (
        f"{name.replace('-', '_')} is {SMALL.get(name, {'layers': 1, 'seed': 0}.get(name))} there"
    )
    assert f"{told} and {value} here" in message and "--overwrite" in message
    assert message.count(" there and ") == 1, "what is equal is not named"
    assert contents(run) == before


def test_another_text_in_the_same_folder(
    run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    before = contents(run)
    (tmp_path / "text.txt").write_text(TEXT.replace("wall", "roof"))
    assert "sha256 is " in refusal(train.main, flags(tmp_path / "text.txt", run))
    assert contents(run) == before


def test_the_same_text_from_another_place(place: Path, run: Path, tmp_path: Path) -> None:
    shutil.copy(place / "text.txt", tmp_path / "moved.txt")
    assert train.main(flags(tmp_path / "moved.txt", run)) == 0


def test_overwrite_begins_anew(place: Path, run: Path) -> None:
    (run / "mine.txt").write_text("not the run's")
    assert train.main(flags(place / "text.txt", run, "--overwrite", hidden=5, steps=4)) == 0
    assert load(run).config.hidden == 5
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


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
def test_a_damaged_description(
    name: str, place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    (run / name).write_text("{")
    before = contents(run)
    assert "damaged description" in refusal(train.main, flags(place / "text.txt", run))
    assert contents(run) == before
    assert train.main(flags(place / "text.txt", run, "--overwrite", steps=2)) == 0


# --- train: other ends ---


def test_a_loss_that_stays_infinite(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    def diverge(*_: Any) -> Any:
        raise training.Diverged("the loss is not finite, whatever was tried")

    monkeypatch.setattr(training, "fit", diverge)
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

    def fit(
        config: Any, corpus: Any, workdir: Any, report: Any, should_stop: Any, devices: Any
    ) -> Any:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop() and left == []
        signal.raise_signal(signal.SIGINT)
        return None, 3

    monkeypatch.setattr(training, "fit", fit)
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


@pytest.mark.parametrize(
    ("content", "prime"),
    [
        ("Enter a king.\n\nROMEO:\nAlas.", "ROMEO:"),
        ("/* acct.c */\nint x = 1;\n", "/*"),
        (b"#include <stdio.h>\n\xa9 ROMEO\n", "#include"),
        ('  "Quoted" words\n\n come first', "Quoted"),
        ("one\nword\na\nline\nand\nno\nspace", "one"),
    ],
)
def test_the_example_begins_as_the_text_does(content: str | bytes, prime: str) -> None:
    """A prime that the model knows and that a shell takes as it is between double quotes."""
    corpus = text.corpus(content)
    assert train._example_prime(corpus) == prime
    corpus.vocabulary.encode(prime)


# --- generate ---


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert generate.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith("\n")
    return out.removesuffix("\n")


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
    assert (tmp_path / "out").read_text() == on_screen + "\n"


def test_best_or_latest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("best", "latest"):
        text = written(capsys, run, "--which", which, "--length", 20)
        assert text == sample(load(run, which), "\n", 20)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--prime", "Ω€"], "never seen: 'Ω' '€'"),
        (["--prime", ""], "prime is empty"),
        (["--temperature", "0"], "temperature must be a number above 0"),
        (["--temperature", "nan"], "temperature must be a number above 0"),
        (["--length", "-1"], "length must be"),
        (["--top-k", "0"], "top_k must be from 1"),
        (["--top-k", "1000"], "top_k must be from 1"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--count", "0"], "count must be at least 1"),
        (["--seed", "-1"], "seed must be"),
        (["--prime", "a", "--prime-file", "b"], "--prime or --prime-file"),
        (["--prime-file", "no-such-file"], "cannot read no-such-file"),
        (["--prime-file", "/"], "cannot read /"),
        (["--prime-file", "latin"], "latin is not UTF-8"),
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
    output = tmp_path / "missing" / "out"
    message = refusal(generate.main, [str(place / "run"), "--output", str(output)], status=1)
    assert str(output) in message


def test_ctrl_c_while_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupted)
    try:
        assert generate.main(["somewhere"]) == 130
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")


# --- as processes of their own ---


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}


def test_a_pipe_that_closes_early(place: Path) -> None:
    """As in `python -m jaxrnn.generate run | head -c 10`."""
    command = [sys.executable, "-m", "jaxrnn.generate", str(place / "run"), "--length", "100000"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


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
    assert done.stdout == str(sample(load(tmp_path / "run"), KNOWN, 10)) + "\n"


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
