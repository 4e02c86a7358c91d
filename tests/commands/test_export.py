"""Test the export command: its files, its output and its one-line errors."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from jax import export as jax_export

from jaxrnn import InputError, charlm, export, generate, load, sample, sample_bytes, save
from jaxrnn.commands import exporter
from jaxrnn.formats import safetensors_file
from jaxrnn.formats.safetensors_file import read
from jaxrnn.training import run_description
from tests.support.readme import lively
from tests.support.runs import (
    CORPUS,
    KNOWN,
    assert_same_bits,
    contents,
    environment,
    lose_the_reader,
)

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A safetensors file with every field of a card, alone in its folder."""
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.safetensors"
    save(
        lively(CORPUS.vocabulary), path, loss=1.5, licence="CC0-1.0", text="songs", sha256="0" * 64
    )
    return path


def exported(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[str]:
    capsys.readouterr()
    assert export.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


# --- the files ---


def test_a_run_as_two_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, program = tmp_path / "m.safetensors", tmp_path / "m.stablehlo"
    before = contents(place / "run")
    lines = exported(capsys, place / "run", "--safetensors", tensors, "--stablehlo", program)
    assert contents(place / "run") == before
    params = load(place / "run")
    count = charlm.count(params)
    assert len(lines) == 2
    assert lines[0].startswith(f"{tensors}: {count} parameters in float32 and their card, ")
    assert f"{tensors.stat().st_size / 1000:.1f} kB; read by jaxrnn.load" in lines[0]
    assert lines[1].startswith(f"{program}: the sampling function with its parameters in float32, ")
    assert "flatbuffers" in lines[1]
    found, card = read(tensors)
    assert_same_bits(found, params)
    described, _ = run_description.read(place / "run")
    assert (card.text, card.sha256) == ("text", described["text"]["sha256"])
    assert card.licence is None
    sampler = jax_export.deserialize(bytearray(program.read_bytes()))
    text = np.array([*map(ord, KNOWN), *[0] * 30], np.int32)
    options = np.uint32(5), np.float32(1), np.float32(1), np.int32(0)
    drawn = sampler.call(text, np.int32(len(KNOWN)), *options)
    assert "".join(map(chr, np.asarray(drawn))) == sample(params, KNOWN, 30, seed=5)


@pytest.mark.slow
def test_the_card_has_the_loss_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    """The best and the latest are different ones."""
    losses = {}
    for which in ("best", "latest"):
        assert (
            export.main([str(run), "--safetensors", str(tmp_path / which), "--which", which]) == 0
        )
        found, card = read(tmp_path / which)
        assert_same_bits(found, load(run, which))
        losses[which] = card.loss
    metrics = (run / "metrics.jsonl").read_text()
    for loss in losses.values():
        assert f'"val_loss": {loss}' in metrics or str(loss)[:8] in metrics


def test_a_file_as_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything in the card is kept; the licence can be changed."""
    exported(capsys, file, "--safetensors", tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == file.read_bytes()
    exported(capsys, file, "--safetensors", tmp_path / "other", "--licence", "Apache-2.0")
    before, after = read(file)[1], read(tmp_path / "other")[1]
    assert (before.licence, after.licence) == ("CC0-1.0", "Apache-2.0")
    assert (after.loss, after.text, after.sha256) == (1.5, "songs", "0" * 64)


def test_an_exported_file_writes_the_text_of_its_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("run", "latin"):
        file = str(tmp_path / f"{run}.safetensors")
        exported(capsys, place / run, "--safetensors", file)
        assert generate.main([file, "--length", "20", "--output", str(tmp_path / "out")]) == 0
        if run == "run":
            assert (tmp_path / "out").read_text() == sample(load(place / run), "\n", 20)
        else:
            assert (tmp_path / "out").read_bytes() == sample_bytes(load(place / run), "\n", 20)


def test_an_output_is_replaced_as_a_whole(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("from before")
    assert export.main([str(file), "--safetensors", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out"}


# --- what is refused ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "request at least one output file: --safetensors PATH, --stablehlo PATH, --onnx PATH"),
        (
            ["--safetensors", "a", "--stablehlo", "./a"],
            "--safetensors and --stablehlo have the same",
        ),
        (["--safetensors", "models"], "--safetensors models is a folder; give the name of a file"),
        (["--stablehlo", "no/a"], "the folder of --stablehlo no/a does not exist"),
        (
            ["--onnx", "models/model.safetensors/a"],
            "the folder of --onnx models/model.safetensors/a",
        ),
        (["--safetensors", "/dev/full"], "--safetensors /dev/full is not a regular file"),
        (["--safetensors", "a" * 300], "cannot write to aaaa"),
        (["--safetensors", "models/model.safetensors"], "is the file of the model; choose another"),
        (["--stablehlo", "link"], "--stablehlo link is the file of the model; choose another"),
        (["--stablehlo", "a", "--licence", "MIT"], "--licence needs --safetensors PATH"),
        (["--stablehlo", "a", "--title", "Songs"], "--title needs --html PATH"),
        (["--stablehlo", "a", "--html-weights", "int8"], "--html-weights needs --html PATH"),
        (["--safetensors", "circle"], "cannot write to circle: Too many levels of symbolic links"),
        (["--safetensors", "circle", "--stablehlo", "circle"], "have the same path circle"),
        (["--safetensors", "-x"], "--safetensors needs a value"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_to_export(
    arguments: list[str],
    message: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    """Nothing is read or written."""
    monkeypatch.chdir(file.parent.parent)
    Path("link").symlink_to(file)
    Path("circle").symlink_to("circle")
    before = contents(Path())

    def read_too_early(*arguments: Any) -> None:
        pytest.fail("the model was read")

    monkeypatch.setattr(exporter, "load_with_card", read_too_early)
    assert message in refusal(export.main, ["models/model.safetensors", *arguments])
    assert contents(Path()) == before


def test_files_of_the_run_are_kept(run: Path, refusal: Callable[..., str]) -> None:
    before = contents(run)
    for name in ("config.json", "metrics.jsonl", "checkpoints/8/params", "checkpoints/new"):
        message = refusal(export.main, [str(run), "--safetensors", str(run / name)])
        assert "is a file of the run in" in message or "is a folder" in message
    assert contents(run) == before
    assert export.main([str(run), "--safetensors", str(run / "model.safetensors")]) == 0


def test_generate_does_not_overwrite_its_model(file: Path, refusal: Callable[..., str]) -> None:
    before = file.read_bytes()
    message = refusal(generate.main, [str(file), "--output", str(file)])
    assert message == f"--output {file} is the file of the model; choose another"
    assert file.read_bytes() == before


def test_a_file_has_no_latest_checkpoint(
    file: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    for command, flag in ((export.main, "--safetensors"), (generate.main, "--output")):
        message = refusal(command, [str(file), flag, str(out), "--which", "latest"])
        assert message == f"{file} is a file, which holds one model: leave --which out"
        assert not out.exists()
        assert command([str(file), flag, str(out), "--which", "best"]) == 0
        out.unlink()


def test_other_checkpoints_than_best_and_latest(file: Path, run: Path, unchecked: None) -> None:
    for model in file, run:
        with pytest.raises(InputError, match=r"^which must be one of best, latest, not 'foo'$"):
            load(model, which="foo")  # type: ignore[arg-type]


def test_generate_to_a_loop_of_links(
    file: Path, run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for model in file, run:
        message = refusal(generate.main, [str(model), "--output", str(circle)])
        assert message.startswith(f"cannot write to {circle}: Too many levels of symbolic links")
    assert "is not a folder" in refusal(
        generate.main, [str(circle), "--output", str(tmp_path / "out")]
    )


def test_models_that_cannot_be_read(tmp_path: Path, refusal: Callable[..., str]) -> None:
    out = ["--safetensors", str(tmp_path / "out")]
    (tmp_path / "circle").symlink_to("circle")
    assert "is not a folder; train first" in refusal(export.main, [str(tmp_path / "circle"), *out])
    assert "is not a folder; train first" in refusal(export.main, [str(tmp_path / "no"), *out])
    assert "is not a run of jaxrnn" in refusal(export.main, [str(tmp_path), *out])
    (tmp_path / "text").write_text("To be")
    for command in export.main, generate.main:
        more = out if command == export.main else []
        message = refusal(command, [str(tmp_path / "text"), *more])
        assert "is not a safetensors file: it has another file format" in message
    assert not (tmp_path / "out").exists()


def test_without_a_package_nothing_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    out, program = str(tmp_path / "out"), str(tmp_path / "program")
    message = refusal(export.main, [str(file), "--safetensors", out, "--stablehlo", program])
    assert message == 'writing StableHLO needs: pip install "jaxrnn[stablehlo]"'
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = refusal(export.main, [str(file), "--safetensors", out, "--onnx", program])
    assert message == 'ONNX needs another package: pip install "jaxrnn[onnx]"'
    assert not Path(out).exists()


# --- failures ---


@pytest.mark.process
def test_a_full_disk(file: Path, tmp_path: Path) -> None:
    """A limit on file sizes simulates a full disk. The file keeps its old content."""
    out = tmp_path / "out"
    out.write_text("from before")

    code = """
import resource, signal, sys
from jaxrnn import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# Under this limit, older versions of Python truncate the bytecode that they write, with no error.
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(export.main(sys.argv[1:]))
"""
    environ = {k: v for k, v in environment().items() if k != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", code, file, "--safetensors", out],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == f"error: could not write to {out}: File too large\n"
    assert out.read_text() == "from before"
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out"}


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_partial_file(name: str, file: Path, tmp_path: Path) -> None:
    """The signal arrives after the content was written and before the file was renamed."""
    code = f"""
import os, signal, sys
from jaxrnn import export

def interrupted(descriptor):
    assert os.path.exists(sys.argv[1])
    signal.raise_signal(signal.{name})

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.fsync = interrupted
sys.exit(export.main(sys.argv[2:]))
"""
    arguments = [tmp_path / ".out.partial", file, "--safetensors", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True
    )
    assert result.returncode == 128 + getattr(signal, name)
    assert (result.stdout, result.stderr) == (b"", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


def test_a_reader_that_has_gone(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The files are still written."""
    lose_the_reader(monkeypatch, ends)
    out = tmp_path / "out"
    assert export.main([str(file), "--safetensors", str(out)]) == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")
    assert out.read_bytes() == file.read_bytes()


@pytest.mark.process
def test_the_command_as_a_process(file: Path, tmp_path: Path) -> None:
    """Names that are not UTF-8, and a model whose text has characters that no screen shows."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    out = folder / "m.safetensors"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxrnn.export",
            file,
            "--safetensors",
            out,
            "--licence",
            "\udcff é",
        ],
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert result.returncode == 0 and result.stderr == b""
    assert result.stdout.startswith(b"$'") and b"caf\\xe9" in result.stdout
    assert read(out)[1].licence == "\udcff é"
    assert safetensors.numpy.load_file(out)["w_out"].shape == (16, len(CORPUS.vocabulary))


def test_the_readme_lists_every_format() -> None:
    text = (Path(safetensors_file.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name in exporter.FORMATS:
        assert f"`--{name}`" in text
