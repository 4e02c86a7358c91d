"""The run's folder: files of others are left alone, and a command that is refused changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxrnn import generate, load, train
from jaxrnn.devices import memory
from jaxrnn.training import run_directory
from tests.support.runs import TEXT, everything, flags, quicken

pytestmark = pytest.mark.once

# root's right to read and write everything, taken from what is run by these words
HELD_BACK = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(params=[[], ["--overwrite"]], ids=["", "overwrite"])
def overwrite(request: pytest.FixtureRequest) -> list[str]:
    return request.param


# --- what is not ours ---

FOREIGN: dict[str, dict[str, str]] = {
    "a text called samples": {"samples.txt": TEXT},
    "a log called metrics": {"metrics.jsonl": '{"loss": 1}\n'},
    "a picture": {"loss.png": "not ours"},
    "tokens": {"tokens.npy": "numbers"},
    "a model of others": {"config.json": '{"model_type": "gpt2"}', "vocab.json": '{"a": 0}'},
    "a vocabulary alone": {"vocab.json": '{"characters": "xyz", "by_bytes": false}\n'},
    "checkpoints": {"checkpoints/100/weights": "of another program"},
    "a file called checkpoints": {"checkpoints": "see the other disk"},
    "checkpoints set aside": {"set-aside/100/weights": "of another program"},
    "events": {"tensorboard/events.out.tfevents.1": "of another program"},
    "a lock": {"lock": "of the garden, brass, 40 mm"},
}


@pytest.mark.slow
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_others_is_refused(
    files: dict[str, str],
    overwrite: list[str],
    place: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
) -> None:
    there = tmp_path / "theirs"
    for name, content in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(content)
    before = everything(there)
    message = refusal(train.main, flags(place / "text.txt", there, *overwrite))
    assert f"{there} holds no run of jaxrnn" in message and "--workdir" in message
    assert next(iter(files)).split("/")[0] in message
    assert everything(there) == before


@pytest.mark.slow
def test_what_a_training_never_touches_is_no_obstacle(place: Path, tmp_path: Path) -> None:
    """Other names, an empty folder for checkpoints, links to other disks, half a first start."""
    there, disk = tmp_path / "run", tmp_path / "disk"
    there.mkdir()
    disk.mkdir()
    (there / "checkpoints").symlink_to(disk)
    (there / "notes.txt").write_text("mine")
    (there / "lock").touch()
    # a kill between the first two files leaves the first
    shutil.copy(place / "run" / "vocab.json", there)
    assert train.main(flags(place / "text.txt", there, steps=4)) == 0
    assert (disk / "4").is_dir() and (there / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_overwriting_removes_what_the_run_wrote_and_nothing_else(
    place: Path, run: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    (run / "checkpoints").rename(disk)
    (run / "checkpoints").symlink_to(disk)
    mine = ["notes.txt", "checkpoints/notes.txt", "checkpoints/best/weights", "tensorboard/notes"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    (run / "tensorboard" / "events.out.tfevents.1").write_text("the run's")
    assert train.main(flags(place / "text.txt", run, "--overwrite", hidden_size=5, steps=4)) == 0
    assert load(run).config.hidden_size == 5
    for name in mine:
        assert (run / name).read_text() == f"mine: {name}"
    assert sorted(path.name for path in disk.iterdir()) == ["4", "best", "notes.txt"]
    assert not (run / "tensorboard" / "events.out.tfevents.1").exists()


def test_a_crash_while_a_run_is_thrown_away(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is removed last, the same command takes the folder again."""
    removed = 0

    def counted(remove: Any) -> Any:
        def one(*arguments: Any, **options: Any) -> Any:
            nonlocal removed
            if removed == last:
                raise KeyboardInterrupt
            removed += 1
            return remove(*arguments, **options)

        return one

    for last in range(4):
        again, removed = shutil.copytree(run, run.with_name(f"run{last}")), 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", counted(Path.unlink))
            patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
            with pytest.raises(KeyboardInterrupt):
                run_directory.clear(again)
        run_directory.clear(again)
        assert not (again / "config.json").exists() and not (again / "checkpoints").exists()


# --- the text in the run's folder ---


@pytest.mark.parametrize("name", ["samples.txt", "vocab.json", "config.json", "metrics.jsonl"])
def test_a_run_does_not_learn_from_its_own_files(
    name: str, overwrite: list[str], run: Path, refusal: Callable[..., str]
) -> None:
    if not (run / name).exists():
        (run / name).write_text(TEXT)
    link = run.with_name("link")
    link.symlink_to(run / name)
    before = everything(run)
    for data in (run / name, link):
        message = refusal(train.main, flags(data, run, "--bytes", *overwrite))
        assert f"--data {data} includes {run / name}" in message
    assert everything(run) == before


@pytest.mark.slow
def test_samples_would_become_part_of_the_text(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """A folder of texts, and the run's folder is it or is inside of it."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "text.txt").write_text(TEXT)
    before = everything(tmp_path)
    for workdir in (texts, texts / "run"):
        message = refusal(train.main, flags(texts, workdir, sample_every=4))
        assert f"--data {texts} includes {workdir / 'samples.txt'}" in message
        assert everything(tmp_path) == before
    only = ["--glob", "text*.txt"]
    assert train.main(flags(texts, texts / "run", *only, steps=4, sample_every=4)) == 0
    assert train.main(flags(texts, texts, steps=4)) == 0  # writes no samples


@pytest.mark.slow
def test_a_text_beside_the_run_s_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for steps in (4, 8):
        assert train.main(flags(tmp_path / "text.txt", tmp_path, steps=steps)) == 0
    assert (tmp_path / "text.txt").read_text() == TEXT


# --- commands that are refused ---


def no_tensorboard(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorboardX", None)


def little_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "available_on_host", lambda: 10_000)


REFUSED: list[tuple[list[str], Callable[[pytest.MonkeyPatch], None] | None, str]] = [
    (
        ["--implementation", "tpu"],
        None,
        "'tpu' cannot run this: it runs on a TPU and this is a CPU",
    ),
    (["--implementation", "cudnn"], None, "'cudnn' cannot run this"),
    (["--tensorboard"], no_tensorboard, "--tensorboard needs: pip install"),
    ([], little_memory, "training this model needs about "),
    (["--mesh", "data=3"], None, "a mesh of data=3,model=1 needs 3"),
    (["--mesh", "rows=1"], None, "--mesh must be of the form data=8,model=2"),
    (["--sample-prime", "Ω"], None, "never seen: 'Ω'"),
    (["--sample-prime", ""], None, "--sample-prime is empty"),
    (["--steps", "3000000000"], None, "int32"),
    (["--seq-len", "5000"], None, "the text is too short"),
    (["--glob", "*.c"], None, "--glob"),
    (["--data", "no-such-file"], None, "no file or folder"),
    (["--accelerator", "gpu"], None, "no gpu found"),
    (["--accumulate", "3"], None, "--accumulate"),
]


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("more", "prepare", "expected"),
    REFUSED,
    ids=[" ".join(more) or "memory" for more, *_ in REFUSED],
)
def test_a_refused_command_changes_nothing(
    more: list[str],
    prepare: Any,
    expected: str,
    overwrite: list[str],
    place: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
) -> None:
    if prepare is not None:
        prepare(monkeypatch)
    before = everything(tmp_path)
    for workdir in (run, tmp_path / "new" / "run"):
        assert expected in refusal(
            train.main, flags(place / "text.txt", workdir, *overwrite, *more)
        )
        assert everything(tmp_path) == before


@pytest.mark.slow
def test_a_run_whose_checkpoints_were_taken_away(
    place: Path, run: Path, refusal: Callable[..., str]
) -> None:
    """Its metrics tell of many; to begin again would lose them."""
    assert train.main(flags(place / "text.txt", run, steps=12)) == 0
    elsewhere = (run / "checkpoints").rename(run.with_name("elsewhere"))
    before = everything(run)
    message = refusal(train.main, flags(place / "text.txt", run, steps=16))
    assert "records 12 steps" in message and "--overwrite" in message
    assert everything(run) == before
    elsewhere.rename(run / "checkpoints")
    assert train.main(flags(place / "text.txt", run, steps=16)) == 0


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints/8/notes", "lock"])
def test_generate_does_not_write_over_a_run(
    name: str, run: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run / "lock").touch()
    before = everything(run)
    for output in (run / name, Path(run.name) / name):
        message = refusal(generate.main, [str(run), "--output", str(output)])
        assert f"--output {output} is a file of the run" in message
    assert everything(run) == before
    assert generate.main([str(run), "--length", "3", "--output", str(run / "mine.txt")]) == 0


# --- permissions ---

CASES = {  # what may not be used, and its mode
    "read a checkpoint": ("checkpoints/8", 0),
    "read the notes": ("checkpoints/8/notes", 0),
    "read the file of the notes": ("checkpoints/8/notes/metadata", 0),
    "read the parameters": ("checkpoints/8/params", 0),
    "read an array": ("checkpoints/8/params/manifest.ocdbt", 0),
    "read the description": ("config.json", 0),
    "read the checkpoints": ("checkpoints", 0),
    "write checkpoints": ("checkpoints", 0o555),
    "delete a checkpoint": ("checkpoints/8", 0o555),
    "write metrics": ("metrics.jsonl", 0o444),
    "lock": ("lock", 0o444),
    "write to the folder": ("", 0o555),
    "read the folder": ("", 0),
}
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
from jaxrnn import generate, train
from jaxrnn.training import orbax_messages
orbax_messages.quieten()
def run(main, arguments):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        return main(arguments), error.getvalue()
cases, arguments, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
for name, (path, mode) in cases.items():
    before = (folder / path).stat().st_mode
    (folder / path).chmod(mode)
    found = [run(train.main, arguments)]
    if name.startswith("read"):
        found.append(run(generate.main, [str(folder), "--length", "3", "--which", "latest"]))
    (folder / path).chmod(before)
    print(json.dumps([name, found]))
"""


@pytest.fixture
def held_back() -> Iterator[list[str]]:
    """Return the command prefix that makes permissions hold for a program of root."""
    if os.geteuid() != 0:
        yield []
    elif shutil.which("setpriv"):
        yield HELD_BACK
    else:
        pytest.skip("permissions do not hold for root")


@pytest.mark.process
def test_what_the_system_forbids_is_reported_as_that_and_changes_nothing(
    held_back: list[str], place: Path, run: Path
) -> None:
    """Never as damage, from which a run would go back or begin again."""
    (run / "lock").touch()
    before = everything(run)
    arguments = flags(place / "text.txt", run, steps=12)
    given = [json.dumps(CASES), json.dumps(arguments), str(run)]
    done = subprocess.run(
        [*held_back, sys.executable, "-c", PROGRAM, *given],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == list(CASES)
    for name, found in lines:
        for status, error in found:
            assert status == 2 and error.count("\n") == 1, (name, error)
            assert error.startswith(("error: cannot read ", "error: cannot write to "))
            assert str(run / CASES[name][0]) in error and "Permission denied" in error
    assert everything(run) == before
