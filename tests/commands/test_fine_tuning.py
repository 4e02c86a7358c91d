"""Test fine-tuning: extended vocabularies, the checkpoint to start from, and frozen parameters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxrnn
from jaxrnn import Vocabulary, charlm, load, prepare, save, train
from tests.support.readme import lively
from tests.support.runs import (
    CORPUS,
    TEXT,
    assert_same_bits,
    contents,
    kill_before_the_first_step,
    metrics_of,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.xdist_group("fine_tuning"),
]

# A text with three characters that the model does not have, of which one is rare.
NEW = TEXT[200:2200].replace("7", "é").replace("green", "gre?n") + "x"
ADDED = "?xé"
KEPT = ["--dtype", "float32", "--dropout", "0", "--weight-dropout", "0"]


def arguments(text: Any, workdir: Any, *more: Any, **changes: Any) -> list[str]:
    """Return the arguments of a training of 8 steps."""
    settings = {"batch": 4, "seq_len": 8, "steps": 8, "learning_rate": 5e-3, "warmup": 2}
    settings |= {"schedule": "constant", "log_every": 2, "eval_every": 4, "sample_every": 0}
    settings |= changes
    named = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [*map(str, ("--data", text, "--workdir", workdir)), *named, *KEPT, *map(str, more)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder with texts and models; the best model of run is not its latest."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "old.txt").write_text(TEXT)
    (folder / "new.txt").write_text(NEW)
    model = ["--cell", "gru", "--hidden-size", "6", "--embedding-size", "3", "--layers", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxrnn.training.report.Report.draw", lambda self: None)
        made = arguments(folder / "old.txt", folder / "run", *model, steps=4)
        assert train.main(made) == 0
        worse = arguments(folder / "old.txt", folder / "run", *model, learning_rate=0.9)
        assert train.main(worse) == 0
    params = load(folder / "run")
    assert not np.array_equal(params.b_out, load(folder / "run", "latest").b_out)
    save(params, folder / "file")
    save(lively(Vocabulary.of_bytes(), layers=1), folder / "bytes")
    return folder


def described(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


# --- extended vocabularies ---


def test_the_vocabulary_is_extended(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is near zero, so the checkpoint holds the initial parameters."""
    run = tmp_path / "run"
    start = ["--init-from", models / "file", "--extend-vocabulary"]
    made = arguments(models / "new.txt", run, *start, learning_rate=1e-25, seed=2)
    assert train.main(made) == 0
    assert "new tokens in its vocabulary: 3, for '?' 'x' 'é'\n" in capsys.readouterr().out
    old, found = load(models / "file"), load(run)
    assert found.vocabulary.characters == old.vocabulary.characters + ADDED
    assert json.loads((run / "vocab.json").read_text())["characters"].endswith(ADDED)
    known = len(old.vocabulary)
    for name, axis in (("embedding", 0), ("w_out", 1), ("b_out", 0)):
        kept, new = np.split(np.asarray(getattr(found, name)), [known], axis)
        np.testing.assert_allclose(kept, getattr(old, name), rtol=0, atol=1e-20)
        if name != "b_out":
            fresh = charlm.init(old.config, found.vocabulary, 2)
            expected = np.split(np.asarray(getattr(fresh, name)), [known], axis)[1]
            np.testing.assert_allclose(new, expected, rtol=0, atol=1e-20)
    # The output bias follows from the characters of the training part.
    part = NEW[: len(NEW) * 9 // 10]
    bias = np.exp(np.asarray(found.b_out, np.float64))
    smoothed = [part.count(c) + 0.5 for c in found.vocabulary.characters]
    expected_shares = np.array(smoothed[known:]) / sum(smoothed)
    np.testing.assert_allclose(bias[known:] / bias.sum(), expected_shares, rtol=1e-5)
    # It continues texts with the new characters.
    text = jaxrnn.sample(found, "é?", 20, temperature=2.0)
    assert text.startswith("é?") and len(text) == 22


@pytest.mark.slow
def test_many_new_characters_are_not_all_shown(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT + "ABCDEFGHIJKL")
    start = ["--init-from", models / "file", "--extend-vocabulary"]
    assert train.main(arguments(tmp_path / "text", tmp_path / "run", *start, steps=1)) == 0
    shown = "'A' 'B' 'C' 'D' 'E' 'F' 'G' 'H' 'I' 'J', ...\n"
    assert f"new tokens in its vocabulary: 12, for {shown}" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_added_where_nothing_is_new(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--init-from", models / "file", "--extend-vocabulary"]
    assert train.main(arguments(models / "old.txt", tmp_path / "run", *start, steps=1)) == 0
    assert "new tokens" not in capsys.readouterr().out
    assert load(tmp_path / "run").vocabulary == load(models / "file").vocabulary


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical_and_needs_no_model(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts, file = tmp_path / "whole", tmp_path / "parts", tmp_path / "file"
    shutil.copy(models / "file", file)
    more = ["--init-from", file, "--extend-vocabulary", "--freeze", "layers.0", "--average", "ema"]
    assert train.main(arguments(models / "new.txt", whole, *more)) == 0
    assert train.main(arguments(models / "new.txt", parts, *more, steps=4)) == 0
    file.unlink()
    capsys.readouterr()
    assert train.main(arguments(models / "new.txt", parts, *more)) == 0
    assert "new tokens" not in capsys.readouterr().out
    assert_same_bits(load(parts, "latest"), load(whole, "latest"))
    assert metrics_of(parts) == metrics_of(whole)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint(models: Path, tmp_path: Path) -> None:
    """The vocabulary is stored in vocab.json; the seed and the text determine the new parameters."""
    runs = whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--init-from", models / "run", "--init-which", "latest", "--extend-vocabulary"]
    made = [arguments(models / "new.txt", run, *more) for run in runs]
    assert train.main(made[0]) == 0
    kill_before_the_first_step(made[1])
    assert not list((killed / "checkpoints").iterdir())
    assert json.loads((killed / "vocab.json").read_text())["characters"].endswith(ADDED)
    assert train.main(made[1]) == 0
    assert_same_bits(load(killed, "latest"), load(whole, "latest"))
    assert metrics_of(killed) == metrics_of(whole)


def test_unknown_characters_suggest_the_flag(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    made = arguments(models / "new.txt", tmp_path / "run", "--init-from", models / "file")
    message = refusal(train.main, made)
    assert message.startswith("characters that the model has never seen: '?' 'x' 'é'; it knows")
    assert message.endswith("; --extend-vocabulary gives them tokens")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (
            ["--init-from", "bytes", "--extend-vocabulary"],
            "leave --extend-vocabulary out: the tokens of the model to start from are bytes, which can",
        ),
        (
            ["--extend-vocabulary"],
            "--extend-vocabulary needs a model to start from: give --init-from",
        ),
        (["--init-which", "latest"], "--init-which needs a model to start from: give --init-from"),
        (
            ["--init-from", "file", "--init-which", "latest"],
            "file is a file, which holds one model: leave --init-which out",
        ),
        (["--freeze", "embedding,layer"], "--freeze names layer, and the parameters of this model"),
        (
            ["--freeze", "embedding,layers", "w_out,b_out"],
            "--freeze names all parameters; leave out those that are to be trained",
        ),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_bad_input(
    more: list[str],
    message: str,
    models: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bad input is refused before anything is written."""
    monkeypatch.chdir(models)
    assert message in refusal(train.main, arguments("old.txt", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_prepared_texts(models: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    """The tokens of a prepared text are fixed, so it must have the vocabulary of the model."""

    def prepared(text: Path, name: str, *more: str) -> Path:
        folder = tmp_path / name
        assert prepare.main(["--data", str(text), "--output", str(folder), *more]) == 0
        return folder

    new, raw = prepared(models / "new.txt", "new"), prepared(models / "new.txt", "raw", "--bytes")
    start = ["--init-from", models / "file", "--extend-vocabulary"]
    message = refusal(train.main, arguments(new, tmp_path / "no", *start))
    assert "never seen: '?' 'x' 'é'; it knows" in message
    advice = (
        f"; give the text itself as --data, not {new}, and --extend-vocabulary to give them tokens"
    )
    assert message.endswith(advice)
    message = refusal(train.main, arguments(raw, tmp_path / "no", *start))
    assert message.endswith("give the text itself as --data, not prepared")
    assert not (tmp_path / "no").exists()


# --- the checkpoint to start from ---


@pytest.mark.slow
def test_the_checkpoint_to_start_from(
    models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The digest shows whether a run is resumed with the model that it began from."""
    run, old = tmp_path / "run", tmp_path / "old"
    shutil.copytree(models / "run", old)
    latest = ["--init-from", old, "--init-which", "latest"]
    made = arguments(models / "old.txt", run, *latest, learning_rate=1e-25, steps=4)
    assert train.main(made) == 0
    assert described(run)["init_which"] == "latest"
    np.testing.assert_allclose(load(run).w_out, load(old, "latest").w_out, rtol=0, atol=1e-20)
    before = contents(run)
    made = arguments(models / "old.txt", run, "--init-from", old, learning_rate=1e-25, steps=6)
    assert refusal(train.main, made) == (
        f"the run in {run} began from the latest checkpoint of {old}: give --init-which latest to "
        f"resume it, choose another --workdir, or --overwrite it"
    )
    assert contents(run) == before
    # The model that began the run is recognised in a file, too, which holds one model.
    file = tmp_path / "file"
    save(load(old, "latest"), file)
    made = arguments(models / "old.txt", run, "--init-from", file, learning_rate=1e-25, steps=6)
    assert train.main(made) == 0
    assert described(run)["init_which"] == "best"


# --- another architecture ---


@pytest.mark.parametrize(
    "flags, shown",
    [
        (["--cell", "lstm"], "--cell is gru {where} and lstm here"),
        (["--layers", "3"], "--layers is 2 {where} and 3 here"),
        (["--hidden-size", "7"], "--hidden-size is 6 {where} and 7 here"),
        (["--embedding-size", "0"], "--embedding-size is 3 {where} and 0 here"),
        (
            ["--tie", "--embedding-size", "6"],
            "--embedding-size is 3 {where} and 6 here; --tie is False {where} and True here",
        ),
        (["--activation", "relu"], "--activation is tanh {where} and relu here"),
        (["--peephole"], "--peephole is False {where} and True here"),
        (["--forget-bias", "0"], "--forget-bias is 1.0 {where} and 0.0 here"),
        (["--reset", "after"], "--reset is before {where} and after here"),
        (["--recurrent-init", "glorot"], "--recurrent-init is orthogonal {where} and glorot here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_architecture_is_refused(
    flags: list[str], shown: str, models: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    start = ["--init-from", models / "file"]
    message = refusal(train.main, arguments(models / "old.txt", tmp_path / "run", *start, *flags))
    where = f"in the model of {models / 'file'}"
    assert message == f"{shown.format(where=where)}; leave it out to keep what the model has"
    assert not (tmp_path / "run").exists()


# --- frozen parameters ---


@pytest.mark.slow
def test_frozen_parameters_of_the_model_keep_their_bits(
    models: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    freeze = ["--init-from", models / "file", "--weight-decay", "0.5"]
    freeze += ["--freeze", "layers,", "embedding", "--extend-vocabulary"]
    assert train.main(arguments(models / "new.txt", run, *freeze)) == 0
    old, found = load(models / "file"), load(run, "latest")
    trained, count = found.w_out.size + found.b_out.size, charlm.count(found)
    out = capsys.readouterr().out
    assert f", {count:,} parameters ({trained:,} of them trained), float32" in out
    assert_same_bits(found.layers, old.layers)
    known = len(old.vocabulary)
    np.testing.assert_array_equal(found.embedding[:known], old.embedding)
    assert not np.isclose(found.w_out[:, :known], old.w_out, rtol=0, atol=1e-6).any()
    assert described(run)["training"]["freeze"] == ["embedding", "layers"]
    made = arguments(models / "new.txt", run, *freeze[:-3], "embedding", "--extend-vocabulary")
    message = refusal(train.main, made)
    assert "--freeze is ['embedding', 'layers'] there and ['embedding'] here" in message


@pytest.mark.slow
def test_initial_weights_can_be_frozen(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An echo state network: only the output layer learns."""
    run = tmp_path / "run"
    more = ["--cell", "rnn", "--hidden-size", "6", "--freeze", "embedding,layers"]
    more += ["--output-bias", "zero"]
    assert train.main(arguments(models / "old.txt", run, *more, seed=4)) == 0
    assert "of them trained" in capsys.readouterr().out
    found = load(run)
    fresh = charlm.init(found.config, CORPUS.vocabulary, 4)
    assert_same_bits((found.embedding, found.layers), (fresh.embedding, fresh.layers))
    assert not np.array_equal(found.w_out, fresh.w_out)
