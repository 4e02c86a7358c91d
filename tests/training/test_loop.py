"""The training loop: intervals, reports that fail, recovery from a loss that is not finite."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import charlm
from jaxrnn.data.corpus import make_corpus
from jaxrnn.training import evaluation, loop, saved_states, stepping
from jaxrnn.training.config import MOST_STEPS
from jaxrnn.training.feed import device_corpus
from jaxrnn.training.metrics import read_metrics
from jaxrnn.training.report import Report
from tests.support.runs import (
    CONFIG,
    CORPUS,
    Notes,
    assert_same_bits,
    change,
    fit,
    latest,
    run_of,
)

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.mark.slow
def test_a_whole_fit_compiles_once(tmp_path: Path) -> None:
    config = change(CONFIG, steps=11, log_every=4, seed=9)  # the last call is cut short
    run = run_of(tmp_path)
    for last in (8, 11):  # from the start, and resumed
        stepping.run_steps.clear_cache()
        evaluation._evaluate.clear_cache()
        asked = iter([False, last == 8])
        _, step, _ = fit(config, run, should_stop=lambda: next(asked, False))  # noqa: B023
        assert step == last
        assert stepping.run_steps._cache_size() == 1
        assert evaluation._evaluate._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(log_every=5, sample_every=3), dict(log_every=100)])
def test_any_intervals_go_together_and_change_no_bit(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Lines end where one is due, an evaluation or a sample; a run may be resumed with others."""
    whole, _, metrics = fit(CONFIG, run_of(tmp_path, "whole"))
    judged = {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m}
    config = change(CONFIG, **changes)
    again, _, others = fit(config, run_of(tmp_path, "other"))
    assert_same_bits(whole, again)
    assert {m["step"]: m["val_loss"] for m in others if "val_loss" in m} == judged
    due = {n for n in range(1, 13) if any(n % every == 0 for every in config.intervals)}
    assert [m["step"] for m in others] == sorted(due)
    run, asked = run_of(tmp_path, "both"), iter(range(1, 100))
    _, step, _ = fit(CONFIG, run, should_stop=lambda: next(asked) == 3)
    assert step == 6
    both, _, _ = fit(config, run)
    assert_same_bits(whole, both)


def test_a_call_of_the_device_is_bounded() -> None:
    """Or a signal to stop would wait for it, and its windows would fill the memory."""
    config = change(CONFIG, log_every=10**9, eval_every=10**9)
    assert min(config.intervals) == MOST_STEPS


@pytest.mark.slow
def test_fewer_steps_than_the_run_has(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    fit(CONFIG, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report = Notes(run)
    _, step, _ = loop.fit(change(CONFIG, steps=6), CORPUS, run, report)
    assert step == 12
    [line] = report.lines
    assert (
        "the run has 12 steps already, more than the 6 asked for" in line and "more steps" in line
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- the end by a validation loss ---


@pytest.mark.slow
def test_a_run_ends_at_the_validation_loss_it_was_to_reach(tmp_path: Path) -> None:
    config = change(CONFIG, learning_rate=0.03, eval_every=2, log_every=1, sample_every=5)
    _, _, metrics = fit(config, run_of(tmp_path, "whole"))
    losses = {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m}
    target = losses[6]
    first = next(step for step, loss in losses.items() if loss <= target)
    config = change(config, stop_at=target)
    run = run_of(tmp_path)
    result = loop.fit(config, CORPUS, run, Report(run, 1, quiet=True))
    assert (result.step, result.complete) == (first, True)
    assert f"--- step {first} ---" in (run / "samples.txt").read_text()
    # The same command again: it has ended.
    report = Notes(run)
    again = loop.fit(config, CORPUS, run, report)
    assert (again.step, again.complete) == (first, True)
    assert report.lines == [
        f"the run has reached a validation loss of {losses[first]:.4f} already; it has ended"
    ]
    # Without the loss, or with a lower one, it continues.
    result = loop.fit(change(config, stop_at=None), CORPUS, run, Report(run, 1, quiet=True))
    assert (result.step, result.complete) == (12, True)


@pytest.mark.slow
def test_a_stopped_run_is_not_complete(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    result = loop.fit(CONFIG, CORPUS, run, Report(run, 1, quiet=True), lambda: True)
    assert (result.step, result.complete) == (2, False)


@pytest.mark.slow
def test_the_average_is_evaluated_sampled_and_loaded(tmp_path: Path) -> None:
    config = change(CONFIG, average="tail", average_tail=0.9, learning_rate=0.1, warmup=0)
    params, _, metrics = fit(config, run_of(tmp_path, "averaged"))
    newest, _, _ = fit(change(config, average="none"), run_of(tmp_path, "newest"))
    assert not np.allclose(params.w_out, newest.w_out, rtol=0.01)
    source = device_corpus(CORPUS.tokens)
    judged = evaluation.evaluate(params, source, CORPUS, config.batch, config.seq_len)
    assert metrics[-1]["val_loss"] == judged
    assert_same_bits(latest(tmp_path / "averaged", params), params)


# --- what cannot be shown ---


class Failing(Notes):
    """A report whose screen fails at a step, in one of the ways it can."""

    def __init__(self, run: Path, way: str, at: int) -> None:
        super().__init__(run)
        self.way, self.at = way, at

    def _fail(self, way: str, step: int) -> None:
        if (way, step) == (self.way, self.at):
            raise BrokenPipeError(f"no {way} at step {step}")

    def steps(self, step: int, *rest: Any) -> None:
        super().steps(step, *rest)
        self._fail("steps", step)

    def sample(self, step: int, params: charlm.Params) -> Any:
        self._fail("sample", step)
        return super().sample(step, params)

    def show(self, step: int, sample: Any) -> None:
        self._fail("show", step)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["steps", "sample", "show"])
@pytest.mark.parametrize("at", [6, 8], ids=["between evaluations", "at an evaluation"])
def test_what_cannot_be_shown_loses_no_step(way: str, at: int, tmp_path: Path) -> None:
    config = change(CONFIG, sample_every=2)
    whole, _, metrics = fit(config, run_of(tmp_path, "whole"))
    run = run_of(tmp_path)
    with pytest.raises(BrokenPipeError, match=f"no {way} at step {at}"):
        loop.fit(config, CORPUS, run, Failing(run, way, at))
    assert (run / "checkpoints" / str(at)).is_dir()
    again, _, others = fit(config, run)
    assert_same_bits(whole, again)
    assert others == metrics


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # draw again
    run = run_of(tmp_path)
    (run / "loss.png").mkdir()
    report = Notes(run)
    _, step, _ = loop.fit(CONFIG, CORPUS, run, report)
    assert step == 12
    [line] = report.lines
    assert line.startswith("no loss.png: ")


# --- a loss that is not finite ---


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make a step go wrong as long as the learning rate is not small enough."""
    whole = stepping.train_step

    def patch(step: int, above: float, part: str = "loss") -> None:
        def broken(optimizer: Any, state: Any, *rest: Any, **how: Any) -> Any:
            after, metrics = whole(optimizer, state, *rest, **how)
            bad = (state.step == step) & (state.rate > above)
            poison = jnp.where(bad, jnp.float32(jnp.nan), jnp.float32(1))
            if part == "params":
                params = jax.tree.map(lambda p: p * poison, after.params)
                return after.replace(params=params), metrics
            return after, metrics._replace(**{part: getattr(metrics, part) * poison})

        monkeypatch.setattr(stepping, "train_step", broken)
        stepping.run_steps.clear_cache()

    yield patch
    stepping.run_steps.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize(
    "step, recoveries, back_to, part",
    [(1, 1, 0, "loss"), (6, 1, 4, "grad_norm"), (7, 2, 4, "params"), (11, 3, 8, "loss")],
)
def test_a_loss_that_is_not_finite_is_mended_at_half_the_rate(
    step: int, recoveries: int, back_to: int, part: str, tmp_path: Path, break_at: Any
) -> None:
    break_at(step, 0.5**recoveries, part)
    run = run_of(tmp_path)
    report = Notes(run)
    params, last, _ = loop.fit(CONFIG, CORPUS, run, report)
    assert last == 12
    assert len(report.lines) == recoveries
    for n, line in enumerate(report.lines, 1):
        assert f"back to step {back_to} with {0.5**n:g} of the learning rate" in line
    metrics = read_metrics(run / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [2, 4, 6, 8, 10, 12]
    assert all(math.isfinite(v) for m in metrics for v in m.values())
    assert all(m["chars_per_second"] > 0 for m in metrics)
    assert_same_bits(params, latest(run, params))
    assert stepping.run_steps._cache_size() == 1, "going back compiles nothing"


@pytest.mark.slow
def test_the_rate_stays_halved_when_resumed(tmp_path: Path, break_at: Any) -> None:
    break_at(5, 0.5)
    whole, stopped = Notes(run_of(tmp_path, "whole")), Notes(run_of(tmp_path, "stopped"))
    params, *_ = loop.fit(CONFIG, CORPUS, tmp_path / "whole", whole)
    asked = iter([False, False, False, True])
    _, step, _ = loop.fit(CONFIG, CORPUS, tmp_path / "stopped", stopped, lambda: next(asked, True))
    assert 4 < step < 12
    again, *_ = loop.fit(CONFIG, CORPUS, tmp_path / "stopped", stopped)
    assert len(whole.lines) == len(stopped.lines) == 1
    assert_same_bits(params, again)


@pytest.mark.slow
def test_it_goes_back_to_a_checkpoint_of_the_plan(tmp_path: Path, break_at: Any) -> None:
    """Not to the one where the run happened to be stopped, so that stopping changes nothing."""
    break_at(7, 0.5)
    config = change(CONFIG, log_every=1)
    whole, stopped = Notes(run_of(tmp_path, "whole")), Notes(run_of(tmp_path, "stopped"))
    params, *_ = loop.fit(config, CORPUS, tmp_path / "whole", whole)
    asked = iter(range(1, 100))
    _, step, _ = loop.fit(config, CORPUS, tmp_path / "stopped", stopped, lambda: next(asked) == 6)
    assert step == 6
    again, *_ = loop.fit(config, CORPUS, tmp_path / "stopped", stopped)
    assert whole.lines == stopped.lines and "back to step 4 " in whole.lines[0]
    assert_same_bits(params, again)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["loss", "params"])
def test_it_gives_up_and_leaves_the_good_checkpoint(
    part: str, tmp_path: Path, break_at: Any
) -> None:
    run = run_of(tmp_path)
    good, _, _ = fit(change(CONFIG, steps=8, schedule="constant"), run)
    good = jax.tree.map(np.array, good)
    config = change(CONFIG, schedule="constant")
    break_at(11, 0.0, part)
    report = Notes(run)
    with pytest.raises(saved_states.Diverged) as caught:
        loop.fit(config, CORPUS, run, report)
    assert "\n" not in str(caught.value) and "`learning_rate`" in str(caught.value)
    assert len(report.lines) == saved_states.RECOVERIES
    assert_same_bits(good, latest(run, good))


@pytest.mark.slow
def test_a_learning_rate_that_cannot_work(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    report = Notes(run)
    config = change(CONFIG, learning_rate=1e38, warmup=0, clip_norm=0.0, seed=1)
    with pytest.raises(saved_states.Diverged):
        loop.fit(config, CORPUS, run, report)
    assert len(report.lines) == saved_states.RECOVERIES


# --- and it learns ---


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_periodic_text_is_learned(cell: Any, tmp_path: Path) -> None:
    corpus = make_corpus("abcdefgabcfed." * 150)
    config = change(
        CONFIG, cell=cell, hidden_size=12, embedding_size=0, learning_rate=0.03, steps=120, log_every=20,
        eval_every=60, seq_len=14,
    )  # fmt: skip
    _, _, metrics = fit(config, run_of(tmp_path), corpus)
    assert metrics[0]["loss"] > 0.5, "it is not known from the start"
    assert metrics[-1]["loss"] < 0.05 and metrics[-1]["val_loss"] < 0.05
