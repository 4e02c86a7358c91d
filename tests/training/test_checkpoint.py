"""Checkpoints are read bit-identically, or skipped for the one before; loading executes no code."""

import ast
import gc
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import charlm, train
from jaxrnn.errors import InputError
from jaxrnn.training import checkpoint, loop, optimizers, run_description, stepping
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import Report
from jaxrnn.training.run_description import load
from tests.support.runs import CONFIG, CORPUS, TEXT, assert_same_bits, change, quicken

# A read or write that fails leaves tasks of orbax behind, in the tests' own process. `leave_nothing`
# ends them here. That the commands stay silent about them is tested on a process of their own.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LSTM = change(CONFIG, cell="lstm", layers=2, steps=8)  # checkpoints at 4 and 8


@pytest.fixture(scope="module", autouse=True)
def leave_nothing() -> Iterator[None]:
    """Collect what failed reads leave behind, before a test of another file would be blamed."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with checkpoints at steps 4 and 8. Not to be changed: take a `copy`."""
    run = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        description = {"training": {"model": vars(LSTM.model)}}
        run_description.write(run, description, CORPUS.vocabulary)
        loop.fit(LSTM, CORPUS, run, Report(run, 1, quiet=True))
    return run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def state_of(config: TrainingConfig = LSTM) -> stepping.TrainState:
    """A state in which every array is different from zero."""
    state = stepping.create(config, optimizers.make_optimizer(config, 8), CORPUS.vocabulary)
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(rng.uniform(1, 100, a.shape)).astype(a.dtype)  # noqa: E731
    return jax.tree.map(draw, state)


def split(state: stepping.TrainState) -> tuple[Any, dict[str, Any]]:
    names = ("opt_state", "carry", "key", "step", "rate")
    return state.params, {name: getattr(state, name) for name in names}


SHAPES = jax.eval_shape(state_of)


@contextmanager
def opened(run: Path) -> Iterator[tuple[Checkpoints, list[str]]]:
    """The checkpoints of a run and what they warn of."""
    lines: list[str] = []
    checkpoints = Checkpoints(run, lines.append)
    yield checkpoints, lines
    checkpoints.close()


def restore(run: Path, which: Any = "latest") -> tuple[checkpoint.Restored | None, list[str]]:
    with opened(run) as (checkpoints, lines):
        return checkpoints.restore(*split(SHAPES), which=which), lines


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- there and back ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [dict(), dict(embedding_size=4, tie=True, cell="gru", clip_norm=0.0)]
)
def test_the_whole_state_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    state = state_of(change(LSTM, **changes))
    notes = {"validation": 1.5, "report": {"files": {"metrics.jsonl": 7}}, "scheduled": True}
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(7, *split(state), notes)
    with opened(tmp_path) as (checkpoints, lines):
        found = checkpoints.restore(*split(jax.eval_shape(lambda: state)))
        alone = checkpoints.restore(state.params)
    assert found is not None and alone is not None and lines == []
    assert found.step == 7 and notes.items() <= found.notes.items()
    assert_same_bits(found.tree, split(state))
    assert_same_bits(alone.tree, (state.params, None))


def test_special_numbers_come_back(tmp_path: Path) -> None:
    """Not a number, infinity, minus zero and the smallest number there is."""
    special = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 1e-45], jnp.float32)
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, {"x": special}, {"y": special}, {"validation": None})
        checkpoints.wait()
        found = checkpoints.restore({"x": special}, {"y": special})
    assert found is not None
    assert np.asarray(found.tree[0]["x"]).tobytes() == np.asarray(special).tobytes()


@pytest.mark.slow
def test_saving_copies_what_the_next_step_will_overwrite(tmp_path: Path) -> None:
    state = state_of()
    before = jax.tree.map(np.array, split(state))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda a: a + a, tree), donate_argnums=0)
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, *split(state), {"validation": None})
        overwrite(split(state))
    found, lines = restore(tmp_path)
    assert found is not None and lines == []
    assert_same_bits(found.tree, before)


@pytest.mark.first_case
@pytest.mark.parametrize("reopen", [False, True], ids=["one process", "many"])
def test_the_best_and_the_two_latest_are_kept(reopen: bool, tmp_path: Path) -> None:
    losses = {1: 5.0, 2: 1.0, 3: None, 4: 4.0, 5: 3.0, 6: 2.0, 7: None}
    kept = {3: [3, 2], 4: [4, 3, 2], 5: [5, 4, 2], 6: [6, 5, 2], 7: [7, 6, 2]}
    checkpoints = Checkpoints(tmp_path)
    for step, loss in losses.items():
        array = {"x": jnp.float32(step)}
        checkpoints.save(step, array, array, {"validation": loss})
        if reopen:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path)
        checkpoints.wait()
        assert checkpoints.steps() == kept.get(step, checkpoints.steps()), f"after {step}"
    assert checkpoints.steps("best")[:2] == [2, 6]
    checkpoints.close()
    with opened(tmp_path) as (again, _):
        for which, step in [("best", 2), ("latest", 7)]:
            found = again.restore({"x": jnp.float32(0)}, which=which)
            assert found is not None and found.step == step == float(found.tree[0]["x"])


@pytest.mark.slow
def test_load_takes_the_best_or_the_latest(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "vocab.json"):
        shutil.copy(trained / name, run)
    params, rest = split(state_of())
    worse = jax.tree.map(lambda p: p + 1, params)
    with opened(run) as (checkpoints, _):
        checkpoints.save(10, params, rest, {"validation": 1.0})
        checkpoints.save(20, worse, rest, {"validation": 2.0})
    assert_same_bits(load(run, "best"), params)
    assert_same_bits(load(str(run)), params)
    assert_same_bits(load(run, "latest"), worse)
    assert load(run).vocabulary == CORPUS.vocabulary and load(run).config == LSTM.model


def test_load_changes_nothing(copy: Path) -> None:
    """Not even a checkpoint that a training is about to write in the same moment."""
    half = copy / "checkpoints" / "12.orbax-checkpoint-tmp" / "params"
    half.mkdir(parents=True)
    (half / "array").write_bytes(b"to be")
    before = contents(copy)
    load(copy)
    assert contents(copy) == before


def test_load_of_a_run_without_checkpoints_makes_none(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="holds no good checkpoint yet"):
        load(copy)
    assert not (copy / "checkpoints").exists()


@pytest.mark.slow
def test_later_checkpoints_are_set_aside_and_saved_again(copy: Path) -> None:
    params, rest = split(state_of())
    with opened(copy) as (checkpoints, _):
        checkpoints.set_aside(4)
        assert checkpoints.steps() == [4]
        checkpoints.save(8, params, rest, {"validation": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [8, 4]
    assert list((copy / "set-aside").iterdir()) == [copy / "set-aside" / "8"]
    assert_same_bits(load(copy, "latest"), params)


# --- damage ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[2 * len(raw) // 3] ^= 0x40
    path.write_bytes(raw)


DAMAGES = [cut, empty, overwrite, flip, Path.unlink]


def assert_passed_over(lines: list[str]) -> None:
    [line] = lines
    assert line.startswith("checkpoint 8 in ") and "is damaged (" in line
    assert line.endswith("; checkpoint 4 is read instead")
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_harmless_or_passed_over(
    damage: Callable[[Path], None], copy: Path
) -> None:
    """Whatever file of the newest checkpoint is hit, a complete checkpoint is read, bit-identically."""
    whole, lines = restore(copy)
    assert whole is not None and whole.step == 8 and lines == []
    newest = copy / "checkpoints" / "8"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    raw = {path: path.read_bytes() for path in files}
    passed_over = []
    for path in files:
        damage(path)
        found, lines = restore(copy)
        path.write_bytes(raw[path])
        assert found is not None, path
        if lines:
            assert_passed_over(lines)
            assert found.step == 4
            passed_over.append(path)
        else:
            assert found.step == 8
            assert_same_bits(found.tree, whole.tree)
    kinds = {str(path.relative_to(newest)).split("/")[0] for path in passed_over}
    assert {"notes", "params", "rest"} <= kinds, "damage that matters is noticed"


def spoil(item: Path) -> None:
    """Overwrite all files of an item."""
    for path in item.rglob("*"):
        if path.is_file():
            overwrite(path)


@pytest.mark.parametrize("item", ["params", "rest"])
def test_arrays_of_another_checkpoint_are_told_by_the_digest(item: str, copy: Path) -> None:
    """Whole files, right names and shapes, but not what was saved."""
    shutil.rmtree(copy / "checkpoints" / "8" / item)
    shutil.copytree(copy / "checkpoints" / "4" / item, copy / "checkpoints" / "8" / item)
    found, lines = restore(copy)
    assert found is not None and found.step == 4
    assert_passed_over(lines)
    assert f"the {item} differ from their digest" in lines[0]


def missing_item(newest: Path) -> None:
    shutil.rmtree(newest / "rest")


def missing_notes(newest: Path) -> None:
    shutil.rmtree(newest / "notes")


def emptied(newest: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def half_written(newest: Path) -> None:
    """Leave the checkpoint as orbax does when it is killed before the last rename."""
    newest.rename(newest.with_name("8.orbax-checkpoint-tmp"))


def half_written_and_damaged(newest: Path) -> None:
    (newest / "rest").rename(newest / "rest.orbax-checkpoint-tmp")
    spoil(newest / "params")
    half_written(newest)


def garbled(newest: Path) -> None:
    spoil(newest / "params")


def other_notes(newest: Path) -> None:
    (newest / "notes" / "metadata").write_text('{"scheduled": true}')


HITS = [missing_item, missing_notes, emptied, half_written, half_written_and_damaged, garbled]


@pytest.mark.slow
@pytest.mark.parametrize("hit", [*HITS, other_notes], ids=lambda hit: hit.__name__)
def test_training_resumes_from_the_checkpoint_before(
    hit: Callable[[Path], None], copy: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    hit(copy / "checkpoints" / "8")
    report = Report(copy, 1, quiet=True)
    lines: list[str] = []
    monkeypatch.setattr(report, "note", lines.append)
    _, step, _ = loop.fit(LSTM, CORPUS, copy, report)
    assert step == 8
    if not hit.__name__.startswith("half_written"):  # which is no checkpoint yet
        assert_passed_over(lines)
    whole, again = restore(trained)[0], restore(copy)[0]
    assert whole is not None and again is not None and again.step == 8
    assert_same_bits(whole.tree, again.tree)
    metrics = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [2, 4, 6, 8]


def damage_all(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        spoil(path / "params")


def other_text(run: Path) -> None:
    """Add enough characters to change every shape."""
    known = json.loads((run / "vocab.json").read_text())
    (run / "vocab.json").write_text(json.dumps(known | {"characters": known["characters"] + "§"}))


def dangling(run: Path) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    (run / "checkpoints").symlink_to(run / "not mounted")


@pytest.mark.parametrize(
    ("spoil_run", "expected"),
    [
        (damage_all, "no checkpoint is good: checkpoint 8 in .* is damaged .*; checkpoint 4 in "),
        (dangling, "checkpoints is a link to a folder that does not exist"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_training_does_not_begin_again_where_no_checkpoint_can_be_read(
    spoil_run: Callable[[Path], None], expected: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    spoil_run(copy)
    before = contents(copy)
    for run in (
        lambda: loop.fit(LSTM, CORPUS, copy, Report(copy, 1, quiet=True)),
        lambda: load(copy),
    ):
        with pytest.raises(InputError, match=expected) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert contents(copy) == before


def test_training_does_not_begin_again_where_no_planned_checkpoint_is_good(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite sends it back to one of the plan's; those are damaged."""
    with opened(copy) as (checkpoints, _):
        params, rest = split(state_of())
        checkpoints.save(10, params, rest, {"scheduled": False, "validation": None})
    for step in ("4", "8"):
        if (copy / "checkpoints" / step).exists():
            spoil(copy / "checkpoints" / step / "params")
    with opened(copy) as (checkpoints, _), pytest.raises(InputError, match="no checkpoint is good"):
        checkpoints.restore(*split(SHAPES), accept=lambda notes: notes["scheduled"])


def test_a_checkpoint_of_another_model_is_not_called_damaged(copy: Path) -> None:
    before = contents(copy)
    other_text(copy)
    with pytest.raises(InputError) as caught:
        load(copy)
    message = str(caught.value)
    assert "is of another model: b_out is " in message and "damaged" not in message
    assert contents(copy).keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        OSError(5, "Input/output error"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"),
        ValueError("UNAVAILABLE: the file server does not answer"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("item", ["notes", "params"])
def test_a_failure_of_the_machine_is_not_called_damage(
    error: Exception, item: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Checkpoints._read

    def failing(self: Checkpoints, step: int, **items: Any) -> Any:
        if step == 8 and item in items:
            raise error
        return read(self, step, **items)

    monkeypatch.setattr(Checkpoints, "_read", failing)
    before = contents(copy)
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*/8: ") as caught:
        load(copy)
    assert str(error.args[-1]).splitlines()[0] in str(caught.value)
    assert contents(copy) == before


@pytest.mark.first_case
@pytest.mark.parametrize("which", ["best", "latest"])
def test_load_passes_over_damage(which: Any, copy: Path) -> None:
    """Step 8 is both the best and the latest of this run."""
    four = load_before(copy)
    spoil(copy / "checkpoints" / "8" / "params")
    with pytest.warns(RuntimeWarning, match="checkpoint 8 in .* checkpoint 4 is read instead"):
        assert_same_bits(load(copy, which), four)
    lines: list[str] = []
    assert_same_bits(load(copy, which, warn=lines.append), four)
    assert_passed_over(lines)


def load_before(run: Path) -> charlm.Params:
    """The model of step 4, read while step 8 is elsewhere."""
    newest = run / "checkpoints" / "8"
    elsewhere = newest.rename(run / "elsewhere")
    params = load(run)
    elsewhere.rename(newest)
    return params


def test_load_with_every_checkpoint_damaged(copy: Path) -> None:
    for step in ("4", "8"):
        spoil(copy / "checkpoints" / step / "params")
    with pytest.raises(InputError) as caught:
        load(copy)
    message = str(caught.value)
    assert message.startswith("no checkpoint is good: ") and "\n" not in message
    assert "checkpoint 4" in message and "checkpoint 8" in message


def test_files_of_others_among_the_checkpoints(copy: Path) -> None:
    (copy / "checkpoints" / "notes.txt").write_text("mine")
    (copy / "checkpoints" / "backup").mkdir()
    (copy / "checkpoints" / "999").write_text("a file, not a folder")
    found, _ = restore(copy)
    assert found is not None and found.step == 8
    load(copy)
    assert (copy / "checkpoints" / "notes.txt").read_text() == "mine"


# --- the description ---


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b"{}", b'{"no such": 1}', b"\xff\xfe\0"],
    ids=lambda content: str(content)[:12],
)
def test_a_damaged_description_is_told(name: str, content: bytes | None, copy: Path) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(copy)
    message = str(caught.value)
    assert str(copy) in message and "\n" not in message
    assert name in message
    damaged = "damaged description" in message or "describes something else" in message
    assert damaged == (content is not None)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="is not a safetensors file: it is empty"):
        load(file)
    with pytest.raises(InputError, match=r"is not a run of jaxrnn: it has no config\.json"):
        load(tmp_path)


def test_description_is_read_back(tmp_path: Path) -> None:
    vocabulary = jaxrnn.Vocabulary.of('\ud800\0"\\ä\U0010ffff')
    config = {"training": {"model": {"cell": "rnn"}}, "data": ["ä"]}
    run_description.write(tmp_path, config, vocabulary)
    assert run_description.read(tmp_path) == (config, vocabulary)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "vocab.json"}


# --- nothing that is loaded can run code ---


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_no_module_can_unpickle() -> None:
    modules = list(Path(jaxrnn.__file__).parent.rglob("*.py"))
    assert len(modules) > 10
    runs_code = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    for path in modules:
        assert not imports(path) & runs_code, path
        assert "allow_pickle" not in path.read_text(), path


def test_a_run_is_loaded_without_pickle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickling")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    found, lines = restore(copy)
    assert found is not None and lines == []
    load(copy)
    for name, raw in contents(copy).items():
        assert not name.endswith((".pkl", ".pickle")), name
        assert not raw.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), name


# --- a write that fails ---


def assert_one_line(error: BaseException, run: Path) -> None:
    message = str(error)
    assert "\n" not in message and len(message) < 1000
    assert f"could not save to {run / 'checkpoints'}: " in message
    assert message.endswith("; the earlier checkpoints are intact")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: to the writer, this looks like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    # Under this limit, older versions of Python truncate the bytecode that they write, with no error.
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        sys.dont_write_bytecode = before[1]


ENDINGS: dict[str, Callable[[Checkpoints], None]] = {  # what first hears of it
    "wait": Checkpoints.wait,
    "close": Checkpoints.close,
    "set_aside": lambda checkpoints: checkpoints.set_aside(1),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failing_write_is_one_line_and_loses_nothing(ending: str, tmp_path: Path) -> None:
    state = state_of(change(LSTM, hidden_size=40))
    run = tmp_path
    checkpoints = Checkpoints(run)
    checkpoints.save(1, *split(state), {"validation": 2.0})
    checkpoints.wait()
    before = contents(run / "checkpoints" / "1")
    later = jax.tree.map(lambda a: a + a, state)
    with small_files(1000), pytest.raises(OSError) as caught:
        checkpoints.save(2, *split(later), {"validation": 1.0})
        ENDINGS[ending](checkpoints)
    assert_one_line(caught.value, run)
    assert contents(run / "checkpoints" / "1") == before
    if ending != "close":
        checkpoints.close()
    with opened(run) as (again, lines):
        found = again.restore(*split(jax.eval_shape(lambda: state)))
    assert found is not None and found.step == 1 and lines == []
    assert_same_bits(found.tree, split(state))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    done = shutil.which("mount") and subprocess.run(mount, capture_output=True)
    if not done or done.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.process
def test_a_full_disk_ends_the_command_in_one_line(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after step 4; with room again the same command resumes."""
    quicken(monkeypatch)
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(small_disk)
    (tmp_path / "text").write_text(TEXT)
    flags = f"--data {tmp_path}/text --workdir {run} --cell rnn --hidden-size 4 --embedding-size 3 --batch 4 "  # noqa: E501
    flags += "--seq-len 8 --dtype float32 --warmup 2 --schedule constant --log-every 2 "
    flags += "--eval-every 4 --sample-every 0 --steps"
    assert train.main([*flags.split(), "4"]) == 0
    four = load(run)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    command = [sys.executable, "-m", "jaxrnn.train", *flags.split(), "12"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: could not save to {run}")
    assert line.endswith("intact")
    assert_same_bits(load(run), four)
    filler.unlink()
    assert train.main([*flags.split(), "12"]) == 0
    assert (run / "checkpoints" / "12").is_dir()


def test_checkpoints_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises((OSError, InputError), match="checkpoints"):
        loop.fit(LSTM, CORPUS, tmp_path, Report(tmp_path, 1, quiet=True))
