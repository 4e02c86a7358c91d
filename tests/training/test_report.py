"""The files of a run can be read, truncated and drawn; a silent report prints nothing."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrnn import charlm, sample_bytes
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.training.metrics import LIMIT, Curve, read_metrics
from jaxrnn.training.pictures import DPI, draw_losses
from jaxrnn.training.report import SAMPLE_LENGTH, Report

pytestmark = pytest.mark.once

LOSSES = [3.2, 2.9, 2.7, 2.6]  # of steps 5, 10, 15 and 20
JUDGED = {10: 2.95, 20: 2.65}
PNG = b"\x89PNG\r\n\x1a\n"
SIZE = (840, 480)  # pixels of loss.png


def tell(report: Report, first: int = 5, last: int = 20) -> None:
    """Return the output of a training between two steps."""
    report.begin(first - 5, 20)
    for step in range(first, last + 1, 5):
        report.steps(step, LOSSES[step // 5 - 1], 0.5, JUDGED.get(step), 0.1)


@pytest.fixture(scope="module")
def params() -> charlm.Params:
    return charlm.init(
        charlm.ModelConfig(cell="rnn", hidden_size=4, embedding_size=0), Vocabulary.of("ab\n")
    )


def size_of(path: Path) -> tuple[int, int]:
    raw = path.read_bytes()
    assert raw.startswith(PNG)
    return struct.unpack(">II", raw[16:24])  # type: ignore[return-value]


# --- metrics.jsonl and samples.txt ---


def test_a_line_for_every_call(tmp_path: Path) -> None:
    report = Report(tmp_path, characters=40, quiet=True)
    tell(report)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [line["loss"] for line in lines] == LOSSES
    assert {line["step"]: line["val_loss"] for line in lines if "val_loss" in line} == JUDGED
    always = {"step", "loss", "grad_norm", "chars_per_second", "seconds", "training_seconds"}
    assert all(line.keys() - {"val_loss"} == always for line in lines)
    before = 0.0
    for line in lines:  # 5 steps of 40 characters, in the time since the line before
        passed = line["seconds"] - before
        assert passed > 0
        assert line["chars_per_second"] == pytest.approx(5 * 40 / passed, rel=1e-6)
        before = line["seconds"]


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.slow
def test_samples(tmp_path: Path, params: charlm.Params) -> None:
    report = Report(tmp_path, 40, prime="ab", quiet=True)
    report.sample(5, params)
    report.sample(10, params)
    first, second = (tmp_path / "samples.txt").read_text().split("--- step 10 ---\n")
    first = first.removeprefix("--- step 5 ---\n")
    assert first == second, "equal models write equal samples"
    assert first.startswith("ab") and first.endswith("\n\n")
    assert len(first) == 2 + SAMPLE_LENGTH + 2


@pytest.mark.slow
def test_a_sample_that_is_no_text(tmp_path: Path) -> None:
    """A lone surrogate can be in a vocabulary but not in a file or on a screen."""
    params = charlm.init(
        charlm.ModelConfig(cell="rnn", hidden_size=4, embedding_size=0), Vocabulary("\ud800")
    )
    Report(tmp_path, 40, prime="\ud800").sample(5, params)
    assert (tmp_path / "samples.txt").read_text().startswith("--- step 5 ---\n?")


@pytest.mark.slow
@pytest.mark.parametrize("bar", [False, True])
def test_a_sample_of_bytes(
    bar: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file has the very bytes; the screen shows those that a terminal would obey as escapes."""
    if bar:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    params = charlm.init(
        charlm.ModelConfig(cell="rnn", hidden_size=4, embedding_size=0), Vocabulary.of_bytes()
    )
    prime = b"\xe9\x1b[2J\0\n\t\r"
    report = Report(tmp_path, 40, prime=prime)
    report.show(5, report.sample(5, params))
    raw = sample_bytes(params, prime, SAMPLE_LENGTH)
    assert (tmp_path / "samples.txt").read_bytes() == b"--- step 5 ---\n" + raw + b"\n\n"
    out = capsys.readouterr().out
    assert "\ufffd\\x1b[2J\\x00\n" in out.replace(" ", "").replace("│", "")
    assert not {"\0", "\r", "\a", "\b"} & set(out) and "\x1b[2J" not in out


# --- winding back ---


@pytest.mark.slow
def test_rewind_leaves_what_an_undisturbed_run_would_have(
    tmp_path: Path, params: charlm.Params
) -> None:
    report = Report(tmp_path, 40, quiet=True)
    tell(report, last=10)
    report.sample(10, params)
    position = json.loads(json.dumps(report.position()))  # as a checkpoint keeps it
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.txt")}
    seconds = read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"]
    tell(report, first=15)
    report.sample(20, params)

    again = Report(tmp_path, 40, quiet=True)
    again.rewind(position)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    tell(again, first=15)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [5, 10, 15, 20]
    assert [m["loss"] for m in metrics] == LOSSES
    assert metrics[2]["seconds"] > seconds, "the time of the run continues"


@pytest.mark.slow
def test_rewind_to_the_very_beginning(tmp_path: Path, params: charlm.Params) -> None:
    report = Report(tmp_path, 40, quiet=True)
    report.rewind({})  # nothing there yet
    assert list(tmp_path.iterdir()) == []
    tell(report)
    report.sample(20, params)
    report.rewind({})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert (tmp_path / "samples.txt").read_bytes() == b""
    position = report.position()
    assert position["files"] == {"metrics.jsonl": 0, "samples.txt": 0}
    assert position["seconds"] == 0


def test_rewind_never_makes_a_file_longer(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 3.0}\n')
    Report(tmp_path, 40, quiet=True).rewind({"files": {"metrics.jsonl": 1000}, "seconds": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 5, "loss": 3.0}\n'


GOOD = b'{"step": 5, "loss": 3.0}\n{"step": 10, "loss": 2.5, "val_loss": 2.75}\n'


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (b'{"step": 15, "lo', 1),  # a power cut in the middle of a line
        (b'{"step": 15, "loss": 2.0}', 1),  # or just before its end
        (b"\0\0\0\0", 1),  # or of a block that was promised and not written
        (b'\xff\xfe{"step": 15, "loss": 2.0}\n', 1),
        (b'null\n[1, 2]\n17\n"step"\n{}\n\n', 6),
        (b'{"step": "x", "loss": null}\n', 1),
        (b'{"step": 15, "loss": NaN}\n{"step": 1e400, "loss": 2.0}\n', 2),
    ],
    ids=repr,
)
def test_rewind_drops_damaged_lines_and_says_so(damage: bytes, lines: int, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(GOOD[:25] + b"\0 in the middle\n" + GOOD[25:] + damage)
    assert [m["step"] for m in read_metrics(metrics)] == [5, 10]
    report = Report(tmp_path, 40, quiet=True)
    notes: list[str] = []
    report.note = notes.append  # type: ignore[method-assign]
    report.rewind({"files": {"metrics.jsonl": metrics.stat().st_size}, "seconds": 1.0, "step": 15})
    assert metrics.read_bytes() == GOOD
    [note] = notes
    assert note == f"{metrics}: {1 + lines} damaged lines dropped"
    tell(report, first=15)
    assert [m["step"] for m in read_metrics(metrics)] == [5, 10, 15, 20]


def test_rewind_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(GOOD)
    report = Report(tmp_path, 40, quiet=True)
    notes: list[str] = []
    report.note = notes.append  # type: ignore[method-assign]
    sizes = {"metrics.jsonl": len(GOOD) + 7, "samples.txt": 100}
    report.rewind({"files": sizes, "seconds": 1.0, "step": 15})
    assert len(notes) == 2
    assert "metrics.jsonl has lost 7 bytes" in notes[0] and "samples.txt has lost 100 " in notes[1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == GOOD


def test_speed_after_a_rewind(tmp_path: Path) -> None:
    """After a return to step 5 the next line counts from there."""
    report = Report(tmp_path, 40, quiet=True)
    tell(report, last=5)
    position = report.position()
    tell(report, first=10)
    report.rewind(position)
    report.begin(5, 20)
    report.steps(10, 2.9, 0.5, None, 0.1)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["chars_per_second"] > 0


# --- the screen ---


@pytest.mark.slow
def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, params: charlm.Params, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, 40, floor=1.25)
    report.note("a [note], as it is")
    tell(report)
    report.show(20, report.sample(20, params))
    report.end()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and "\x1b" not in out and "\r" not in out
    assert lines[0] == "a [note], as it is"
    assert lines[1].startswith("step 5/20  loss 3.200 nats (4.617 bits)  floor 1.250  ")
    assert lines[2].startswith("step 10/20  loss 2.900 nats (4.184 bits)  val 2.950 nats (4.256")
    assert lines[3].startswith("step 20/20  "), "step 15 has no validation loss and comes soon"
    assert lines[4] == "--- a sample at step 20 ---"
    assert all(line.endswith("chars/s") for line in lines[1:4])


def test_a_bar_on_a_terminal(
    tmp_path: Path,
    params: charlm.Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    report = Report(tmp_path, 40)
    report.note("a [note], as it is")
    tell(report)
    report.show(20, report.sample(20, params))
    report.end()
    out = capsys.readouterr().out
    assert "a [note], as it is\n" in out
    assert "20/20" in out and "loss 2.600 nats" in out and "step 20" in out


def test_quiet(tmp_path: Path, params: charlm.Params, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, 40, quiet=True)
    report.note("a note")
    tell(report)
    report.show(20, report.sample(20, params))
    report.end()
    assert capsys.readouterr() == ("", "")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "samples.txt", "loss.png"}


# --- pictures ---


def test_the_picture_is_drawn_with_each_validation_loss(tmp_path: Path) -> None:
    report = Report(tmp_path, 40, floor=2.0, quiet=True)
    tell(report, last=5)
    assert not (tmp_path / "loss.png").exists()
    tell(report, first=10, last=10)
    assert size_of(tmp_path / "loss.png") == SIZE
    early = (tmp_path / "loss.png").read_bytes()
    tell(report, first=15)
    report.end()
    assert size_of(tmp_path / "loss.png") == SIZE
    assert (tmp_path / "loss.png").read_bytes() != early


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    Report(tmp_path, 40, quiet=True).end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.first_case
@pytest.mark.parametrize(
    "losses, judged, floor",
    [
        ([2.0], None, None),
        ([2.0], 2.0, 2.0),
        ([3.3500, 3.3501], 3.6, None),  # far above a flat line
        ([3.3500, 3.3501], 3.0, None),  # far below one
        ([3.35, 3.34], 3.345, 0.5),
        ([4.0, 0.01, 0.01], 9.0, 0.0),
        ([1e30, 3.0], 1e20, 1.0),
    ],
)
def test_any_losses_can_be_drawn(
    losses: list[float], judged: float | None, floor: float | None, tmp_path: Path
) -> None:
    points = [(float(n), loss) for n, loss in enumerate(losses)]
    figure = draw_losses(points, [] if judged is None else [(1.0, judged)], floor)
    figure.savefig(tmp_path / "loss.png", dpi=DPI)
    assert size_of(tmp_path / "loss.png") == SIZE


def test_a_curve_is_bounded_and_keeps_the_means() -> None:
    """The numbers themselves while they are few; then of 2, 4, 8 ... neighbours their mean."""
    curve, added = Curve(), []
    for x in range(5 * LIMIT + 7):
        added.append((float(x), float(x * x)))
        curve.add(*added[-1])
        if x in (0, LIMIT - 2):
            assert curve.points == added
    assert len(curve.points) <= LIMIT
    means = np.array([np.mean(added[k : k + 8], axis=0) for k in range(0, len(added), 8)])
    np.testing.assert_allclose(curve.points, means, rtol=1e-12)


@pytest.mark.slow
def test_a_resumed_run_has_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    report = Report(tmp_path, 40, quiet=True)
    tell(report)
    again = Report(tmp_path, 40, quiet=True)
    again.rewind(report.position())
    report.draw()
    picture = (tmp_path / "loss.png").read_bytes()
    (tmp_path / "loss.png").unlink()
    again.draw()
    assert (tmp_path / "loss.png").read_bytes() == picture


def test_without_matplotlib_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jaxrnn.training.pictures", raising=False)
    monkeypatch.delattr("jaxrnn.training.pictures", raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    report = Report(tmp_path, 40, quiet=True)
    notes: list[str] = []
    monkeypatch.setattr(report, "note", notes.append)
    tell(report)
    report.end()
    assert notes == ['no loss.png without matplotlib: pip install "jaxrnn[plot]"']
    assert not (tmp_path / "loss.png").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


# --- TensorBoard ---


@pytest.mark.slow
def test_tensorboard_only_where_asked(tmp_path: Path) -> None:
    tell(Report(tmp_path, 40, quiet=True))
    assert not (tmp_path / "tensorboard").exists()
    report = Report(tmp_path, 40, tensorboard=True, quiet=True)
    tell(report)
    report.end()
    [events] = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    written = events.read_bytes()
    assert written.count(b"\x0a\x04loss") == 4 and written.count(b"\x0a\x08val_loss") == 2
    assert b"chars_per_second" in written and b"grad_norm" in written


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r'`tensorboard` needs: pip install "jaxrnn\[tensorb'):
        Report(tmp_path, 40, tensorboard=True, quiet=True)
