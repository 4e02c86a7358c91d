"""Test the commands with lines: `train --lines`, and `generate` with a model of lines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrnn import evaluate, export, generate, load, prepare, sample_lines, score, train
from jaxrnn.data.corpus import make_corpus
from jaxrnn.data.lines import as_lines
from jaxrnn.formats import onnx_file
from tests.support.runs import flags, quicken

pytestmark = [pytest.mark.once, pytest.mark.slow, pytest.mark.usefixtures("without_pictures")]

NAMES = sorted({"abcdefg"[n % 7] + "hijk"[n % 4] * (n % 3 + 1) + "lmnop"[n % 5] for n in range(90)})
TEXT = "\n\n".join(NAMES)
ALPHABET = set("abcdefghijklmnop")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names, and runs of them and of their bytes, not to be changed."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "names.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        assert train.main(flags(folder / "names.txt", folder / "run", "--lines", steps=80)) == 0
        given = flags(folder / "names.txt", folder / "bytes", "--lines", "--bytes", steps=80)
        assert train.main(given) == 0
    return folder


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    """Return what `generate` writes to standard output and standard error."""
    capsys.readouterr()
    assert generate.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    return out, err


# --- evaluation ---


@pytest.mark.parametrize("name", ["run", "bytes"])
def test_a_text_is_scored_as_training_reads_it(
    name: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    clean = "\n".join(NAMES[:20]) + "\n"
    (tmp_path / "clean.txt").write_text(clean)
    (tmp_path / "names.txt").write_text(
        "\n\n" + clean.replace("\n", "\n\n\n", 9).removesuffix("\n")
    )
    want = score(load(trained / name), clean)
    for file in ("clean.txt", "names.txt"):
        capsys.readouterr()
        arguments = [str(trained / name), str(tmp_path / file), "--per-line", "json"]
        assert evaluate.main(arguments) == 0
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["text"] for line in lines] == NAMES[:20]
        assert lines[-1]["line"] == 20
        at = 0
        for line in lines:
            size = len(line["text"]) + 1
            assert line["nats"] == pytest.approx(want[at : at + size].sum(), rel=1e-5)
            at += size
        assert f": {len(clean)} characters, {len(clean)} bytes;" in err
    (tmp_path / "empty.txt").write_text("\n\n")
    message = refusal(evaluate.main, [str(trained / name), str(tmp_path / "empty.txt")])
    assert "nothing is left of the text" in message and "only empty lines" in message


# --- training ---


def test_training_says_how_many_lines_there_are(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train.main(flags(trained / "names.txt", tmp_path / "run", "--lines")) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    count = len(NAMES)
    size = sum(map(len, NAMES)) + count
    assert first == (
        f"names: {count} lines of {size} characters, {len(ALPHABET) + 1} different; "
        f"{-(-count // 10)} lines, chosen at random, are for validation; "
        f"empty lines left out: {count - 1}"
    )
    assert last.endswith(f"python -m jaxrnn.generate {tmp_path / 'run'} --count 20")


def test_a_prepared_text_gives_the_same_run(trained: Path, tmp_path: Path) -> None:
    data = ["--data", str(trained / "names.txt"), "--output", str(tmp_path / "tokens")]
    assert prepare.main(data) == 0
    assert train.main(flags(tmp_path / "tokens", tmp_path / "run", "--lines", steps=80)) == 0
    # The tokens have other numbers, since `prepare` keeps the order of first occurrence.
    assert load(tmp_path / "run").config.lines
    ours, theirs = (
        json.loads((run / "config.json").read_text())["text"]["sha256"]
        for run in (trained / "run", tmp_path / "run")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "text, more, message",
    [
        (TEXT, ["--shuffle"], "--shuffle is for windows of a running text, and --lines"),
        ("abcdef\n" * 9, [], "only 9 lines that are not empty; --lines needs at least 10"),
        ("abcdef" * 9, [], "no line break; --lines needs at least 10 lines"),
        ("abcdef\n" * 10, ["--seq-len", "100"], "too short for one batch of 4 rows"),
    ],
)
def test_what_training_refuses(
    text: str, more: list[str], message: str, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "text.txt").write_text(text)
    arguments = flags(tmp_path / "text.txt", tmp_path / "run", "--lines", *more)
    assert message in refusal(train.main, arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_as_another_kind(
    trained: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert "lines" in refusal(train.main, flags(trained / "names.txt", run, steps=90))


def test_an_ordinary_model_is_tuned_on_lines(trained: Path, tmp_path: Path) -> None:
    text = trained / "names.txt"
    assert train.main(flags(text, tmp_path / "first")) == 0
    given = flags(text, tmp_path / "second", "--init-from", str(tmp_path / "first"), "--lines")
    assert train.main(given) == 0
    assert load(tmp_path / "second").config.lines and not load(tmp_path / "first").config.lines


@pytest.mark.parametrize("cell", ["lstm", "mingru"])
def test_the_preset_fits_two_hundred_names(cell: str, tmp_path: Path) -> None:
    names = [f"{'abcdefg'[n % 7]}{n}" for n in range(200)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    given = ["--data", str(tmp_path / "names.txt"), "--workdir", str(tmp_path / "run"), "--lines"]
    more = ["--steps", "10", "--hidden-size", "8", "--cell", cell]
    assert train.main([*given, *more]) == 0


# --- drawing ---


def test_count_lines_are_written(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "run"
    out, err = written(capsys, run, "--count", 200, "--temperature", 0.7)
    drawn = sample_lines(load(run), 200, temperature=0.7)
    assert out == "".join(line + "\n" for line in drawn)
    repeated = len(drawn) - len(set(drawn))
    text = as_lines(make_corpus(TEXT))
    training = set(text.vocabulary.decode(text.tokens[: text.split]).splitlines())
    assert training < set(NAMES)
    old = sum(line in training for line in drawn)
    assert repeated > 0 and 0 < old < 200
    assert err == (
        f"note: lines: 200; new: {200 - old}; in the training text: {old}; "
        f"repeats of an earlier line: {repeated}\n"
    )


def test_one_line_is_the_default(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = written(capsys, trained / "run")
    assert out == sample_lines(load(trained / "run"), 1)[0] + "\n"
    again, err = written(capsys, trained / "run", "--output", tmp_path / "out", "--prime", "\n")
    assert again == "" and (tmp_path / "out").read_text() == out
    assert err.startswith("note: lines: 1; new: ")


def test_prime_and_length(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = written(
        capsys, trained / "run", "--count", 5, "--prime", "ab", "--length", 1, "--top-k", 5
    )
    assert all(line.startswith("ab") and len(line) <= 3 for line in out.splitlines())
    assert len(out.splitlines()) == 5
    assert "were cut at --length 1" in err.splitlines()[0]


def test_endless_lines_are_not_cut(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = written(capsys, trained / "run", "--length", "endless", "--count", 3)
    assert "cut" not in err


def test_a_model_of_bytes(trained: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    capsysbinary.readouterr()
    given = [str(trained / "bytes"), "--count", "20", "--temperature", "0.4", "--length", "50"]
    assert generate.main(given) == 0
    out, err = capsysbinary.readouterr()
    assert out.count(b"\n") == 20
    assert b"in the training text: " in err


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda text, run: text.write_text(TEXT + "\nabc"), "has changed since"),
        (lambda text, run: text.unlink(), "no file or folder"),
    ],
)
def test_why_the_text_is_not_compared(
    change: Any, why: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "names.txt"
    text.write_text(TEXT)
    run = shutil.copytree(trained / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": [str(text)]}))
    change(text, run)
    _, err = written(capsys, run, "--count", 3)
    assert err.startswith("note: lines: 3; repeats of an earlier line: ")
    assert "; not compared with the training text: " in err and why in err and "`" not in err


def test_a_file_and_standard_input_have_no_text(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "names.safetensors"
    assert export.main([str(trained / "run"), "--safetensors", str(path)]) == 0
    out, err = written(capsys, path, "--count", 3)
    assert "does not say where its text is" in err
    assert out == "".join(line + "\n" for line in sample_lines(load(trained / "run"), 3))
    run = shutil.copytree(trained / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": ["-"]}))
    assert "the text was read from standard input" in written(capsys, run)[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prime", "a\nb"], "the prime has a line break"),
        (["--prime", "xyz"], "never seen: 'x' 'y' 'z'"),
        (["--count", "0"], "--count must be from 1 to"),
        (["--length", "0"], "--length must be from 1 to"),
    ],
)
def test_what_drawing_refuses(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    output = tmp_path / "out"
    line = refusal(generate.main, [str(trained / "run"), *arguments, "--output", str(output)])
    assert message in line and not output.exists()


def test_onnx_is_refused(trained: Path) -> None:
    reason = onnx_file.unsupported_reason(load(trained / "run").config)
    assert reason is not None and "lines" in reason
