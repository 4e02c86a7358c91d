"""Test training from Python: it is the command's training, of a path or of a text itself; and what a
run shows, writes and reads."""

import dataclasses
import gc
import hashlib
import inspect
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import jaxrnn
from jaxrnn import InputError, Run, Vocabulary, fit, train
from jaxrnn.charlm import inspection, sampling
from jaxrnn.data import play
from jaxrnn.runs import keywords, run, train_text
from jaxrnn.runs.train_options import TrainOptions, from_settings, parse
from jaxrnn.training.report import Report
from tests.support.runs import LATIN, SMALL, TEXT, assert_same_bits, flags, metrics_of

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.once]

# The same small training as of the run in `place`.
SETTINGS: dict[str, Any] = {name.replace("-", "_"): value for name, value in SMALL.items()}
GOLDEN = Path(__file__).parent.parent / "golden" / "run-format-1"


def assert_same_runs(one: Path, other: Path) -> None:
    """Assert that two run directories hold the same bits, except for times and the name of the text."""
    assert metrics_of(one) == metrics_of(other)
    for which in ("best", "latest"):
        assert_same_bits(jaxrnn.load(one, which), jaxrnn.load(other, which))
    names = ({path.name for path in run.iterdir()} - {"lock", "set-aside"} for run in (one, other))
    assert next(names) == next(names)
    hashes = (
        json.loads((run / "config.json").read_text())["text"]["sha256"] for run in (one, other)
    )
    assert next(hashes) == next(hashes)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets Ctrl-C be pressed so many times during the next device call."""
    steps = Report.steps

    def begin(times: int) -> None:
        def press(self: Report, *args: Any) -> None:
            monkeypatch.setattr(Report, "steps", steps)
            steps(self, *args)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Report, "steps", press)

    return begin


# --- training ---


@pytest.mark.slow
def test_fit_equals_the_command(place: Path, tmp_path: Path) -> None:
    run = fit(place / "text.txt", workdir=tmp_path / "run", progress=False, **SETTINGS)
    assert run.complete is True and run.path == tmp_path / "run"
    assert_same_runs(run.path, place / "run")
    for name in ("config.json", "vocab.json"):
        assert (run.path / name).read_bytes() == (place / "run" / name).read_bytes()


@pytest.mark.slow
def test_the_text_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(TEXT, progress=False, **SETTINGS)
    assert_same_runs(run.path, place / "run")
    assert json.loads((run.path / "config.json").read_text())["text"]["name"] == "text"
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_text_of_bytes(place: Path) -> None:
    run = fit(LATIN, progress=False, **SETTINGS)
    assert run.params.vocabulary.by_bytes
    assert_same_runs(run.path, place / "latin")
    assert isinstance(run.sample(length=5), str)


@pytest.mark.slow
def test_a_list_of_paths_and_the_lines_that_are_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [place / "text.txt", str(place / "text.txt")]
    run = fit(paths, **SETTINGS | {"steps": 2})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"text+1: {2 * len(TEXT):,} characters, ")
    assert shown[2].endswith("; 2 steps on cpu, " + shown[2].rpartition(", ")[2])
    assert shown[-1].startswith("step 2/2  loss ")
    assert len(run.metrics["step"]) == 1


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_by_the_command(
    place: Path,
    tmp_path: Path,
    interrupted: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupted(1)
    run = fit(place / "text.txt", workdir=tmp_path / "run", **SETTINGS)
    assert run.complete is False and run.metrics["step"].tolist() == [2]
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out.endswith("stopped at step 2\n")
    assert np.isnan(run.val_loss) and len(run.sample("1", length=5)) == 6
    assert train.main(flags(place / "text.txt", tmp_path / "run")) == 0
    assert_same_runs(run.path, place / "run")


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_by_fit(
    place: Path, tmp_path: Path, interrupted: Callable[[int], None]
) -> None:
    interrupted(1)
    assert train.main(flags(place / "text.txt", tmp_path)) == 128 + signal.SIGINT
    run = fit(TEXT, workdir=tmp_path, progress=False, **SETTINGS)
    assert run.complete
    assert_same_runs(run.path, place / "run")
    with pytest.raises(InputError, match=r"`hidden_size` is 6 there and 7 here"):
        fit(TEXT, workdir=tmp_path, progress=False, **SETTINGS | {"hidden_size": 7})


@pytest.mark.slow
def test_interrupting_twice_raises(
    tmp_path: Path, interrupted: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        fit(TEXT, progress=False, **SETTINGS)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_training_in_another_thread_leaves_signals_alone() -> None:
    found: list[Run] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(
        target=lambda: found.append(fit(TEXT, progress=False, **SETTINGS | {"steps": 2}))
    )
    thread.start()
    thread.join()
    assert found[0].complete
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
def test_a_temporary_run_is_removed_with_the_last_reference() -> None:
    run = fit(TEXT, progress=False, **SETTINGS | {"steps": 2})
    path, params = run.path, run.params
    assert (path / "config.json").exists()
    del run
    gc.collect()
    assert not path.exists() and jaxrnn.sample(params, "1", 3).startswith("1")


# --- what is refused ---

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hiden_size": 3}, "unknown setting `hiden_size`; did you mean `hidden_size`?"),
    ({"x": 3}, "unknown setting `x`; the settings are accelerator, "),
    ({"hidden": 3, "hidden_size": 3}, "`hidden` and `hidden_size` are the same setting"),
    ({"steps": "3"}, "steps must be a whole number, not '3'"),
    ({"steps": 3.0}, "steps must be a whole number, not 3.0"),
    ({"learning_rate": "fast"}, "learning_rate must be a finite number, not 'fast'"),
    ({"shuffle": 1}, "shuffle must be True or False, not 1"),
    ({"cell": "lstn"}, "cell must be one of rnn, lstm, gru, "),
    ({"dtype": "float"}, "dtype must be one of auto, float32, bfloat16, not 'float'"),
    ({"preset": "big"}, "preset must be one of small, shakespeare, sprint, lecture, not 'big'"),
    ({"workdir": 3}, "workdir must be a str, not 3"),
    ({"hidden": 0}, "hidden_size must be at least 1, not 0"),
    ({"glob": "*.c"}, '`glob="*.c"` chooses files from a folder, but the text itself is given'),
    (
        {"encoding": "utf-16"},
        "`encoding=utf-16` decodes files, but the text itself is given; leave it out",
    ),
    ({"newlines": "lf", "bytes": True}, "`newlines=lf` is for characters; bytes are read as they"),
    ({"freeze": "embedding,layers.9"}, "`freeze` names layers.9, and the parameters of this model"),
    ({"freeze": 5}, "freeze must be a str or a list of them, not 5"),
    ({"freeze": [5]}, "freeze must be a str, not 5"),
    ({"seq_len": 5000}, "the text is too short for one batch"),
    ({"sample_prime": ""}, "`sample_prime` is empty"),
    ({"init_from": "nowhere"}, "nowhere is not a folder"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("settings", "expected"), REFUSED, ids=lambda part: str(part)[:30])
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    settings: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError) as error:
        fit(TEXT, progress=False, **settings)
    assert str(error.value).startswith(expected) and "--" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            "notes.txt",
            "there is no file or folder 'notes.txt': if `data` is a path, correct it; if it",
        ),
        ("some/where/over/the/rainbow", "there is no file or folder 'some/"),
        ("my notes of the lecture.md", "there is no file or folder 'my notes"),
        ("HELLO", "there is no file or folder 'HELLO'"),
        ("HELLO\n", "the text has only 6 characters"),
        (b"HELLO", "the text has only 5 bytes"),
        (Path("play"), 'no file or folder "./play"'),
        ([], "`data` names nothing to read"),
        (3, "`data` must be a text, a path or a list of paths, not int"),
        ([3], "`data` must be a list of paths, not of int"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_data_that_is_neither_a_path_nor_a_text(data: Any, expected: str) -> None:
    with pytest.raises(InputError) as error:
        fit(data, progress=False)
    assert str(error.value).startswith(expected)


def test_words_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text(TEXT)
    assert run._words_or_text("notes") == (("notes",), None)
    assert run._words_or_text(tmp_path) == ((str(tmp_path),), None)
    assert run._words_or_text("play") == (("play",), None)
    assert run._words_or_text(["play", Path("play")]) == (("play", "./play"), None)
    for text in ("HELLO" * 10, "One line, and no path.", TEXT, "a/b or\n"):
        assert run._words_or_text(text) == ((), text)
    assert run._words_or_text(b"notes") == ((), b"notes")


# --- settings ---


@pytest.mark.parametrize("preset", ["small", "lecture"])
def test_settings_are_those_of_the_command(preset: str) -> None:
    argv = f"--preset {preset} --cell gru --hidden-size 7 --dropout 0.25 --seed 3 --shuffle --data play"
    values = {
        "cell": "gru",
        "hidden_size": np.int64(7),
        "dropout": 0.25,
        "seed": 3,
        "shuffle": True,
    }
    named = {"preset": preset, "data": ["play"], **values}
    for characters in (None, 5000):
        assert from_settings(named, characters) == parse(argv.split(), characters)


def test_values_become_pythons_own_types() -> None:
    options = keywords.replaced(
        TrainOptions(), {"layers": np.int32(2), "epochs": 3, "stop_at": None, "workdir": "there"}
    )
    assert type(options.training.model.layers) is int
    assert type(options.training.epochs) is float
    assert options.workdir == Path("there")


def test_a_str_is_one_value_of_a_list() -> None:
    together, apart = (
        from_settings({"freeze": names})
        for names in ("embedding,layers.0", ["embedding", "layers.0"])
    )
    assert together == apart and apart.training.freeze == ("embedding", "layers.0")


def test_line_ends_of_the_text_itself() -> None:
    options = TrainOptions(data=(), newlines="lf")
    _, corpus = train_text.read_corpus(options, None, "a\r\nb\rc\n\r\n" * 5)
    assert corpus.vocabulary.decode(corpus.tokens) == "a\nb\nc\n\n" * 5
    _, kept = train_text.read_corpus(TrainOptions(data=()), None, "a\r\nb\r" * 5)
    assert kept.vocabulary.decode(kept.tokens) == "a\r\nb\r" * 5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("encoding", "utf-8"), ("newlines", "lf")])
def test_bytes_that_are_given_are_not_decoded(name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"`{name}={value}` is for characters; bytes are read"):
        fit(LATIN, progress=False, **{name: value})


# --- a run ---


def test_a_run_that_is_opened(place: Path) -> None:
    run = Run(place / "run")
    assert run.complete is None and os.fspath(run) == str(place / "run")
    assert run.config.model == run.params.config and run.config.steps == 8
    assert_same_bits(run.params, jaxrnn.load(place / "run"))
    assert_same_bits(run.latest, jaxrnn.load(place / "run", "latest"))
    assert repr(run).endswith(f"1 x rnn of 6, 8 steps, validation loss {run.val_loss:.4f}")


def test_an_old_run_is_opened() -> None:
    run = Run(GOLDEN)
    assert run.config.model == run.params.config and run.config.steps == 20


def test_settings_that_a_run_is_older_than_are_absent(run: Path) -> None:
    description = json.loads((run / "config.json").read_text())
    for name in ("overlap", "beta1"):
        del description["training"][name]
    (run / "config.json").write_text(json.dumps(description))
    assert (Run(run).config.overlap, Run(run).config.beta1) == (None, 0.9)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run of jaxrnn"):
        Run(tmp_path)


def test_metrics_are_the_columns_of_the_file(place: Path) -> None:
    lines = [
        json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    columns = Run(place / "run").metrics
    assert columns["step"].dtype == np.int64 and columns["step"].tolist() == [2, 4, 6, 8]
    for name in ("loss", "grad_norm", "chars_per_second", "seconds", "training_seconds"):
        assert columns[name].tolist() == [line[name] for line in lines]
    assert np.isnan(columns["val_loss"]).tolist() == ["val_loss" not in line for line in lines]
    assert Run(place / "run").val_loss == min(line.get("val_loss", np.inf) for line in lines)


def test_the_plot_shows_the_metrics(place: Path) -> None:
    run = Run(place / "run")
    figure: Any = run.plot()
    training, validation = figure.axes[0].lines
    np.testing.assert_array_equal(training.get_xdata(), run.metrics["step"])
    np.testing.assert_array_equal(training.get_ydata(), run.metrics["loss"])
    np.testing.assert_array_equal(validation.get_xdata(), [4, 8])
    picture = matplotlib.image.imread(io.BytesIO(figure._repr_png_()), format="png")
    assert picture.std() > 0


def play_run(run: Path, vocabulary: Vocabulary, **model: Any) -> Run:
    """Return a run whose description says that its text is the play."""
    described = json.loads((run / "config.json").read_text())
    described["data"] = ["play"]
    described["text"]["sha256"] = hashlib.sha256(play.write().text.encode()).hexdigest()
    described["training"]["model"] |= model
    (run / "config.json").write_text(json.dumps(described))
    (run / "vocab.json").write_text(json.dumps(dataclasses.asdict(vocabulary)))
    return Run(run)


def floor_of(run: Run) -> float | None:
    """Return the height of the horizontal line in the plot of a run."""
    figure: Any = run.plot()
    floors = [line.get_ydata()[0] for line in figure.axes[0].lines[2:]]
    return floors[0] if floors else None


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["", r"\w+"])
def test_the_floor_of_the_play_is_per_token(pattern: str, run: Path) -> None:
    text, nats = play.write()
    tokens = re.findall(r"\w+|\W" if pattern else r"(?s:.)", text)
    validation = tokens[len(tokens) * 9 // 10 :]
    start = len(text) - sum(map(len, validation))
    found = floor_of(play_run(run, Vocabulary.of(text, pattern)))
    assert found == pytest.approx(nats[start:].sum() / len(validation), rel=1e-9)


@pytest.mark.slow
def test_the_floor_is_left_out_where_it_is_not_known(run: Path) -> None:
    vocabulary = Vocabulary.of(play.write().text)
    assert floor_of(Run(run)) is None
    assert floor_of(play_run(run, vocabulary)) is not None
    assert floor_of(play_run(run, vocabulary, lines=True)) is None
    assert floor_of(play_run(run, Vocabulary.of("abc"))) is None, "the text cannot be encoded"


def test_a_saved_run_is_its_model_and_its_card(place: Path, tmp_path: Path) -> None:
    run = Run(place / "run")
    run.save(tmp_path / "model.safetensors", licence="CC0-1.0")
    assert_same_bits(jaxrnn.load(tmp_path / "model.safetensors"), run.params)
    from jaxrnn.formats import safetensors_file

    _, card = safetensors_file.read(tmp_path / "model.safetensors")
    assert (card.loss, card.licence, card.text) == (run.val_loss, "CC0-1.0", "text")


# --- functions of a model ---


@pytest.mark.slow
def test_a_model_may_be_given_by_its_path(place: Path, tmp_path: Path) -> None:
    run = Run(place / "run")
    run.save(tmp_path / "model.safetensors")
    for model in (run, run.path, str(run.path), tmp_path / "model.safetensors"):
        text = jaxrnn.sample(model, "6 ", 20)
        assert text == sampling.sample(run.params, "6 ", 20) == run.sample("6 ", 20)
        assert "".join(jaxrnn.stream(model, "6 ", 20)) == text
        assert jaxrnn.sample_many(model, "6 ", 20, count=2)[0] == text
        assert_same_bits(jaxrnn.activations(model, "6 "), inspection.activations(run.params, "6 "))
    of_bytes = jaxrnn.sample_bytes(place / "latin", "6 ", 20)
    assert of_bytes == jaxrnn.sample_bytes_many(place / "latin", "6 ", 20, count=1)[0]
    assert of_bytes == b"".join(jaxrnn.stream_bytes(place / "latin", "6 ", 20))


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder; train first"):
        jaxrnn.sample(tmp_path / "nowhere", "a")


def test_signatures_and_docstrings_are_those_of_the_functions() -> None:
    of_a_path, of_params = (inspect.signature(f) for f in (jaxrnn.sample, sampling.sample))
    assert list(of_a_path.parameters) == list(of_params.parameters)
    assert "Run" in str(of_a_path.parameters["params"].annotation)
    assert jaxrnn.sample.__doc__ == sampling.sample.__doc__
