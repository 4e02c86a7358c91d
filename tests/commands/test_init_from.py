"""Test training that starts from a trained model: initial parameters, resuming and bad input."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import Vocabulary, charlm, load, prepare, save, train
from jaxrnn.training import run_description
from tests.support.readme import lively
from tests.support.runs import (
    CORPUS,
    LATIN,
    TEXT,
    assert_same_bits,
    contents,
    environment,
    everything,
    kill_before_the_first_step,
    metrics_of,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.xdist_group("init_from"),
]

# A text with fewer characters than the model knows, so that its own tokens are others.
NEW = TEXT[200:2200].replace("7", "8").replace("bottles", "hills")
# A training of 8 steps. The model's settings are those of the model to start from.
SETTINGS = {
    "batch": 4,
    "seq-len": 8,
    "steps": 8,
    "learning-rate": 5e-3,
    "schedule": "constant",
    "warmup": 2,
    "log-every": 2,
    "eval-every": 4,
    "sample-every": 0,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder with a text and models: run, file, damaged, pipe, tied, bytes and words."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "old.txt").write_text(TEXT)
    (folder / "new.txt").write_text(NEW)
    model = "--cell gru --hidden-size 6 --embedding-size 3 --layers 2 --dtype float32 --dropout 0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxrnn.training.report.Report.draw", lambda self: None)
        more = [*model.split(), "--weight-dropout", "0"]
        assert train.main(arguments(folder / "old.txt", folder / "run", None, *more)) == 0
    save(load(folder / "run"), folder / "file")
    os.mkfifo(folder / "pipe")
    (folder / "damaged").write_bytes((folder / "file").read_bytes()[:-3])
    save(lively(CORPUS.vocabulary, tie=True, embedding_size=16), folder / "tied")
    save(lively(Vocabulary.of_bytes(), layers=1, dropout=0.25), folder / "bytes")
    save(lively(Vocabulary.of(TEXT, r"\w+"), layers=1, dropout=0.25), folder / "words")
    return folder


def arguments(text: Any, workdir: Any, start: Any, *more: str, **changes: Any) -> list[str]:
    """The arguments of a training."""
    settings = SETTINGS | {name.replace("_", "-"): value for name, value in changes.items()}
    named = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    init = [] if start is None else ["--init-from", str(start)]
    return ["--data", str(text), "--workdir", str(workdir), *init, *named, *more]


def described(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


# --- the parameters that it starts from ---


@pytest.mark.first_case
@pytest.mark.parametrize("kind", ["file", "run"])
def test_the_first_loss_is_that_of_the_model(
    kind: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of the first batch, from a calculation without the training code."""
    run = tmp_path / "run"
    made = arguments(models / "new.txt", run, models / kind, steps=1, log_every=1)
    assert train.main(made) == 0
    out = capsys.readouterr().out
    assert f"the initial parameters are those of {models / kind}\n" in out
    params = load(models / "run")
    size = len(NEW) * 9 // 10
    # Row b begins in the b-th quarter of the training part, shifted as seed 0 says.
    stream = size // 4
    shift = np.random.default_rng((0, 0)).integers(stream - 1 - (stream - 1) // 8 * 8 + 1)
    rows = [NEW[b * stream + shift : b * stream + shift + 9] for b in range(4)]
    tokens = jnp.asarray(np.stack([params.vocabulary.encode(row) for row in rows], 1), jnp.int32)
    carry = charlm.initial_carry(params.config, 4)
    loss, _ = charlm.loss(params, tokens, carry, implementation="scan")
    (line,) = [line for line in metrics_of(run) if "loss" in line]
    np.testing.assert_allclose(line["loss"], float(loss), rtol=1e-5)
    assert load(run).vocabulary == params.vocabulary
    own = Vocabulary.of(NEW)
    assert own != params.vocabulary
    assert len(own) < len(params.vocabulary)


def test_the_settings_of_the_model_are_kept_and_the_others_are_the_presets(
    models: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    made = ["--data", str(models / "new.txt"), "--workdir", str(run), "--steps", "1"]
    made += ["--init-from", str(models / "bytes"), "--sample-every", "0"]
    assert train.main([*made, "--weight-dropout", "0.5", "--dtype", "auto"]) == 0
    training = described(run)["training"]
    assert training["model"]["hidden_size"] == 16
    assert training["model"]["dropout"] == 0.25
    assert training["model"]["weight_dropout"] == 0.5
    assert (training["weight_decay"], training["schedule"]) == (0.1, "linear")  # of `small`
    assert training["output_bias"] == "zero"
    assert described(run)["bytes"] is True


@pytest.mark.slow
def test_a_tied_model_needs_no_flags(models: Path, tmp_path: Path) -> None:
    """The presets' own sizes would not allow tied weights."""
    run = tmp_path / "run"
    made = arguments(models / "new.txt", run, models / "tied", "--tie", learning_rate=1e-25)
    for average in ("none", "ema"):
        assert train.main([*made, "--average", average, "--overwrite"]) == 0
        found, given = load(run), load(models / "tied")
        assert found.w_out is None
        for name in ("embedding", "b_out"):
            np.testing.assert_allclose(getattr(found, name), getattr(given, name), atol=1e-20)


@pytest.mark.slow
def test_a_model_of_bytes(models: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(LATIN)
    for more in [], ["--bytes"]:
        made = arguments(tmp_path / "latin", tmp_path / "run", models / "bytes", *more)
        assert train.main(made) == 0
    assert load(tmp_path / "run").vocabulary.by_bytes


# --- resumed ---


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical_and_needs_no_file(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    file.write_bytes((models / "file").read_bytes())
    more = ["--dropout", "0.3", "--average", "ema"]
    assert train.main(arguments(models / "new.txt", whole, file, *more)) == 0
    assert train.main(arguments(models / "new.txt", parts, file, *more, steps=4)) == 0
    file.unlink()
    assert train.main(arguments(models / "new.txt", parts, file, *more)) == 0
    for which in ("best", "latest"):
        assert_same_bits(load(parts, which), load(whole, which))  # type: ignore[arg-type]
    assert metrics_of(parts) == metrics_of(whole)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The same command gives the same run. With another model it changes nothing."""
    file = tmp_path / "file"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    file.write_bytes((models / "file").read_bytes())
    made = [arguments(models / "new.txt", run, file) for run in (whole, killed)]
    assert train.main(made[0]) == 0
    kill_before_the_first_step(made[1])
    assert (killed / "config.json").exists()
    assert not list((killed / "checkpoints").iterdir())

    before = contents(killed)
    save(load(models / "file").replace(b_out=-load(models / "file").b_out), file)
    message = refusal(train.main, made[1])
    assert f"the model in {file} is not the one that the run began from; bring that one" in message
    file.unlink()
    assert f"{file} is not a folder; train first" in refusal(train.main, made[1])
    assert contents(killed) == before

    file.write_bytes((models / "file").read_bytes())
    assert train.main(made[1]) == 0
    assert_same_bits(load(killed, "latest"), load(whole, "latest"))
    assert metrics_of(killed) == metrics_of(whole)


def test_a_run_stays_what_it_began_as(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    ours = tmp_path / "run"
    made = arguments(models / "new.txt", ours, models / "file", steps=4)
    assert train.main(made) == 0
    before, old = everything(ours), everything(models / "run")
    without = arguments(models / "new.txt", ours, None, steps=4)
    message = refusal(train.main, without)
    assert message == (
        f"the run in {ours} began from the model in {models / 'file'}: give --init-from again to "
        "resume it, choose another --workdir, or --overwrite it"
    )
    message = refusal(
        train.main, arguments(models / "old.txt", models / "run", models / "file", steps=4)
    )
    assert "was not started from another model: leave --init-from out to resume it" in message
    assert (everything(ours), everything(models / "run")) == (before, old)
    assert train.main([*made, "--overwrite"]) == 0


def test_a_run_is_resumed_with_no_other_model(
    models: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json keeps the path and the digest of the model that the run began from."""
    run, other = tmp_path / "run", tmp_path / "other"
    file, nowhere = models / "file", tmp_path / "nowhere"
    save(load(file).replace(b_out=-load(file).b_out), other)
    assert train.main(arguments(models / "new.txt", run, file, steps=4)) == 0
    before, origin = everything(run), described(run)["origin"]

    def refused(start: Path) -> str:
        return refusal(train.main, arguments(models / "new.txt", run, start, steps=6))

    resume = (
        f"the run in {run} began from the model in {file}: give that as --init-from to resume it, "
        "choose another --workdir, or --overwrite it"
    )
    assert refused(other) == f"the model in {other} is a different one; {resume}"
    assert refused(nowhere) == f"there is no model in {nowhere}; {resume}"
    assert "damaged is damaged: it has" in refused(models / "damaged")
    assert "pipe is not a regular file" in refused(models / "pipe")
    assert everything(run) == before
    # The same parameters elsewhere are the same model.
    capsys.readouterr()
    assert train.main(arguments(models / "new.txt", run, models / "run", steps=6)) == 0
    assert "initial parameters" not in capsys.readouterr().out
    assert described(run)["init_from"] == str(models / "run")
    assert described(run)["origin"] == origin


def test_what_is_at_the_recorded_path_when_a_run_is_resumed(
    models: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another model is rejected; an unreadable one is ignored, because there is a checkpoint."""
    run, file = tmp_path / "run", tmp_path / "file"
    file.write_bytes((models / "file").read_bytes())
    assert train.main(arguments(models / "new.txt", run, file, steps=2, eval_every=2)) == 0
    assert f"the initial parameters are those of {file}\n" in capsys.readouterr().out
    recorded = {name: described(run)[name] for name in ("init_from", "origin")}
    save(load(file).replace(b_out=-load(file).b_out), file)
    before = everything(run)
    message = refusal(train.main, arguments(models / "new.txt", run, file, steps=4))
    assert message == (
        f"the model in {file} is not the one that the run in {run} began from: bring that one back or "
        "move this one away to resume the run, choose another --workdir, or --overwrite it"
    )
    assert everything(run) == before
    file.write_bytes((models / "damaged").read_bytes())
    for steps in (4, 6):
        assert train.main(arguments(models / "new.txt", run, file, steps=steps)) == 0
        assert "initial parameters" not in capsys.readouterr().out
        assert {name: described(run)[name] for name in recorded} == recorded
        file.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_the_model_does_not_prevent_resuming(
    models: Path, tmp_path: Path
) -> None:
    """Reading the second best checkpoint instead does not count as another model."""
    run, old = tmp_path / "run", tmp_path / "old"
    shutil.copytree(models / "run", old)
    assert train.main(arguments(models / "new.txt", run, old, steps=4)) == 0
    best = min(metrics_of(old), key=lambda line: line.get("val_loss") or math.inf)["step"]
    assert len(list((old / "checkpoints").iterdir())) > 1
    for file in (old / "checkpoints" / str(best) / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert train.main(arguments(models / "new.txt", run, old, steps=6)) == 0
    assert [line["step"] for line in metrics_of(run) if "loss" in line] == [2, 4, 6]


@pytest.mark.slow
def test_a_model_of_tokens_splits_the_text_with_its_own_pattern(
    models: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train.main(arguments(models / "old.txt", run, models / "words", steps=1)) == 0
    assert load(run).vocabulary == Vocabulary.of(TEXT, r"\w+")
    # The flag may repeat what the model has, also where the run is resumed.
    more = arguments(models / "old.txt", run, models / "words", "--tokens", r"\w+", steps=2)
    assert train.main(more) == 0


# --- refused ---


@pytest.mark.parametrize(
    "start, more, message",
    [
        ("file", ["--hidden-size", "8"], "--hidden-size is 6 in the model of"),
        (
            "run",
            ["--cell", "lstm", "--layers", "1"],
            "; --layers is 2 in the model of",
        ),
        ("tied", ["--embedding-size", "8"], "needs --embedding-size equal to --hidden-size"),
        ("file", ["--bytes"], "the tokens of the model to start from are characters"),
        (
            "file",
            ["--tokens", "b+"],
            "--tokens b+: the tokens of the model to start from are characters",
        ),
        (
            "bytes",
            ["--tokens", "b+"],
            "the tokens of the model to start from are bytes; leave it out",
        ),
        ("words", ["--tokens", "b+"], r"the tokens of the model to start from are those of '\w+'"),
        (
            "words",
            ["--bytes"],
            "the tokens of the model to start from are matches of a regular expr",
        ),
        ("words", [], "tokens that the model has never seen: '1864' '586' "),
        (
            "file",
            ["--output-bias", "frequencies"],
            "--output-bias frequencies is for initial weights, and this training starts from the model",
        ),
        ("damaged", [], "damaged is damaged: it has"),
        ("pipe", [], "pipe is not a regular file; give a safetensors file"),
        ("old.txt", [], "old.txt is not a safetensors file: it has another file format"),
        ("nowhere", [], "nowhere is not a folder; train first, or give the run directory"),
        ("", [], "is not a run of jaxrnn: it has no config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input(
    start: str,
    more: list[str],
    message: str,
    models: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
) -> None:
    """Bad input is refused before anything is written."""
    run = tmp_path / "run"
    assert message in refusal(train.main, arguments(models / "new.txt", run, models / start, *more))
    assert not run.exists()


def test_every_setting_that_differs_is_named(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    more = ["--cell", "lstm", "--layers", "1", "--reset", "after"]
    made = arguments(models / "new.txt", tmp_path / "run", models / "file", *more)
    where = f"in the model of {models / 'file'}"
    assert refusal(train.main, made) == (
        f"--cell is gru {where} and lstm here; --layers is 2 {where} and 1 here; --reset is before "
        f"{where} and after here; leave it out to keep what the model has"
    )


def test_unknown_characters_are_named(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "text").write_text(NEW + "Éx?")
    made = arguments(tmp_path / "text", tmp_path / "run", models / "file")
    message = refusal(train.main, made)
    assert "characters that the model has never seen: '?' 'x' 'É'; it knows" in message
    assert not (tmp_path / "run").exists()


def test_the_run_directory_itself(models: Path, run: Path, refusal: Callable[..., str]) -> None:
    before = contents(run)
    made = arguments(models / "old.txt", run, run, "--overwrite")
    assert f"--init-from {run} is the run directory itself" in refusal(train.main, made)
    assert contents(run) == before


@pytest.mark.slow
def test_prepared_texts(
    models: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
) -> None:
    def prepared(text: Path, name: str, *more: str) -> Path:
        folder = tmp_path / name
        assert prepare.main(["--data", str(text), "--output", str(folder), *more]) == 0
        return folder

    run = tmp_path / "run"
    same = prepared(models / "old.txt", "same")
    assert train.main(arguments(same, run, models / "file", steps=1)) == 0
    other = prepared(models / "new.txt", "other")
    message = refusal(train.main, arguments(other, tmp_path / "no", models / "file"))
    of = [len(set(text)) for text in (NEW, TEXT)]
    assert (
        f"prepared with tokens for {of[0]} characters, and the model to start from has" in message
    )
    assert f"tokens for {of[1]} characters: give the text itself as --data" in message
    strings = len(Vocabulary.of(TEXT, r"\w+"))
    assert f"the model to start from has tokens for {strings} strings: give" in refusal(
        train.main, arguments(same, tmp_path / "no", models / "words")
    )
    raw = prepared(models / "new.txt", "raw", "--bytes")
    assert "prepared with tokens for bytes" in refusal(
        train.main, arguments(raw, tmp_path / "no", models / "file")
    )
    (tmp_path / "odd").write_text(NEW + "?")
    odd = prepared(tmp_path / "odd", "odd-tokens")
    assert "has never seen: '?'" in refusal(
        train.main, arguments(odd, tmp_path / "no", models / "file")
    )
    assert not (tmp_path / "no").exists()


@pytest.mark.process
def test_on_a_mesh(models: Path, tmp_path: Path) -> None:
    """The parameters are divided over two devices; the losses are those of one device."""
    assert train.main(arguments(models / "new.txt", tmp_path / "one", models / "file")) == 0
    made = arguments(models / "new.txt", tmp_path / "two", models / "file", "--mesh", "model=2")
    two = "--xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-m", "jaxrnn.train", *made],
        env=environment() | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {two}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    losses = [
        [line["loss"] for line in metrics_of(tmp_path / name) if "loss" in line]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_runs_of_older_versions_have_no_starting_model() -> None:
    for config in {}, {"origin": None}, {"origin": {}}:
        assert run_description.origin_of(config) == ""
