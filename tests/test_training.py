"""Training is the plain update however it is dispatched, and mends a loss that is not finite."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from jaxrnn.training import checkpoint, evaluation, loop, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import place
from jaxrnn.training.report import Report, read_metrics

# float32 against numpy in float64, through a few steps of Adam
PLAIN = dict(rtol=2e-4, atol=2e-6)
# The same float32 sums in another order
ORDER = dict(rtol=1e-5, atol=1e-7)
# The difference of float32 weights of about 1
DIFFERENCE = dict(rtol=0, atol=2e-7)
# Mean of nats, each a float32
MEAN = dict(rel=2e-6)
# The state that a part of the validation text begins with has seen 256 characters, not all
FORGOTTEN = dict(rel=1e-5)

TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n}\n" for n in range(80))
CORPUS = make_corpus(TEXT)
TINY = charlm.ModelConfig(cell="rnn", hidden_size=4, embedding_size=3)
CONFIG = TrainingConfig(
    model=TINY, batch=4, seq_len=8, steps=12, warmup=3, log_every=2, eval_every=4, sample_every=0
)


def relaxed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for use outside of a step of training: optax adds integers to floats."""

    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Train without pictures."""
    patch.setattr(Report, "draw", lambda self: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


def change(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    """The settings with some changed, the model's too."""
    names = {field.name for field in dataclasses.fields(charlm.ModelConfig)}
    model = {n: changes.pop(n) for n in list(changes) if n in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model), **changes)


def start(config: TrainingConfig, corpus: Corpus = CORPUS) -> tuple[Any, stepping.TrainState]:
    optimizer = stepping.make_optimizer(config, config.total_steps(config.batches(corpus)))
    return optimizer, stepping.create(config, optimizer, corpus.vocabulary)


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def tokens_of(config: TrainingConfig, n: int, corpus: Corpus = CORPUS) -> jax.Array:
    """Batch n, [T + 1, B]."""
    places = config.batches(corpus).starts(n) + np.arange(config.seq_len + 1)[:, None]
    return jnp.asarray(corpus.tokens[places], jnp.int32)


def run_of(tmp_path: Path, name: str = "run") -> Path:
    run = tmp_path / name
    run.mkdir()
    return run


def fit(config: TrainingConfig, run: Path, corpus: Corpus = CORPUS, **more: Any) -> Any:
    """Train in silence. Returns (params, step, lines of metrics.jsonl without the times)."""
    params, step = loop.fit(config, corpus, run, Report(run, 1, quiet=True), **more)
    metrics = read_metrics(run / "metrics.jsonl")
    timeless = [{k: v for k, v in m.items() if k not in TIMES} for m in metrics]
    return params, step, timeless


def latest(run: Path, like: charlm.Params) -> charlm.Params:
    """The model of the newest checkpoint."""
    checkpoints = checkpoint.Checkpoints(run)
    found = checkpoints.restore(like)
    checkpoints.close()
    assert found is not None
    return found.tree[0]


TIMES = ("chars_per_second", "seconds")


class Notes(Report):
    """A silent report that remembers what it was told in words."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, 1, quiet=True)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


# --- one step ---


def rate_by_hand(config: TrainingConfig, total: int, n: int) -> float:
    warmup = min(config.warmup, total - 1)
    if n < warmup:
        return config.learning_rate * n / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 + math.cos(math.pi * (n - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(schedule="constant", clip_norm=0.0, warmup=0, beta2=0.9),
        dict(cell="lstm", layers=2, clip_norm=0.05, embedding_size=0),
        dict(cell="gru", embedding_size=4, tie=True, learning_rate=0.02),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_train_step_is_the_plain_update(changes: dict[str, Any]) -> None:
    """Against jax.grad of the loss, then clipping, Adam and its rate in numpy float64."""
    config = change(CONFIG, **changes)
    optimizer, state = start(config)
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    plain = jax.jit(jax.value_and_grad(charlm.loss, has_aux=True))

    leaves, treedef = jax.tree.flatten(state.params)
    params = [np.asarray(leaf, np.float64) for leaf in leaves]
    first, second = [0 * p for p in params], [0 * p for p in params]
    carry = charlm.initial_carry(config.model, config.batch)
    for n in range(5):
        tokens = tokens_of(config, n)
        as_float32 = treedef.unflatten([jnp.asarray(p, jnp.float32) for p in params])
        (loss, carry), gradient = plain(as_float32, tokens, carry)
        gradient = [np.asarray(g, np.float64) for g in jax.tree.leaves(gradient)]
        norm = math.sqrt(sum((g**2).sum() for g in gradient))
        shrink = min(1, config.clip_norm / norm) if config.clip_norm else 1
        rate = rate_by_hand(config, 12, n)
        for i, g in enumerate(shrink * g for g in gradient):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = config.beta2 * second[i] + (1 - config.beta2) * g**2
            unbiased = first[i] / (1 - 0.9 ** (n + 1))
            spread = np.sqrt(second[i] / (1 - config.beta2 ** (n + 1)))
            params[i] = params[i] - rate * unbiased / (spread + 1e-8)

        state, metrics = step(state, tokens, jnp.bool_(n == 0))
        np.testing.assert_allclose(metrics.loss, loss, **PLAIN)
        np.testing.assert_allclose(metrics.grad_norm, norm, **PLAIN)
        for ours, by_hand in zip(jax.tree.leaves(state.params), params, strict=True):
            np.testing.assert_allclose(ours, by_hand, **PLAIN)
        for ours, theirs in zip(jax.tree.leaves(state.carry), jax.tree.leaves(carry), strict=True):
            np.testing.assert_allclose(ours, theirs, **PLAIN)
    assert int(state.step) == 5


def test_carry_goes_on_and_a_fresh_start_forgets_it() -> None:
    optimizer, state = start(CONFIG)
    tokens = tokens_of(CONFIG, 0)
    before = jax.tree.map(lambda s: s + 0.7, state.carry)
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    for fresh, carry in [(False, before), (True, state.carry)]:
        loss, after = jax.jit(charlm.loss)(state.params, tokens, carry)
        now, metrics = step(state.replace(carry=before), tokens, jnp.bool_(fresh))
        np.testing.assert_allclose(metrics.loss, loss, **ORDER)
        np.testing.assert_allclose(now.carry[0], after[0], **ORDER)
    broken = jax.tree.map(lambda s: s * np.nan, state.carry)
    _, metrics = step(state.replace(carry=broken), tokens, jnp.bool_(True))
    assert np.isfinite(metrics.loss), "zero times nan is not zero"


def test_rate_scales_the_update() -> None:
    optimizer, state = start(change(CONFIG, warmup=0))
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    tokens = tokens_of(CONFIG, 0)
    whole, quarter = (
        jax.tree.map(jnp.subtract, after.params, state.params)
        for after, _ in (
            step(state.replace(rate=jnp.float32(rate)), tokens, jnp.bool_(True))
            for rate in (1, 0.25)
        )
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(quarter), strict=True):
        np.testing.assert_allclose(0.25 * a, b, **DIFFERENCE)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_whole_batch(parts: int) -> None:
    config = change(CONFIG, cell="lstm", layers=2)
    _, state = start(config)
    descent = optax.sgd(1.0)  # so that the update is the gradient
    state = state.replace(
        opt_state=descent.init(state.params),
        carry=jax.tree.map(
            lambda s: jnp.linspace(-1, 1, s.size).reshape(s.shape).astype(s.dtype), state.carry
        ),
    )
    step = jax.jit(functools.partial(stepping.train_step, descent), static_argnums=3)
    tokens = tokens_of(config, 1)
    whole, in_parts = (step(state, tokens, jnp.bool_(False), n) for n in (1, parts))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(in_parts), strict=True):
        np.testing.assert_allclose(a, b, **ORDER)


def test_dropout_follows_from_the_step_and_differs_between_parts() -> None:
    config = change(CONFIG, dropout=0.5)
    optimizer, state = start(config)
    step = jax.jit(functools.partial(stepping.train_step, optimizer), static_argnums=3)

    def loss(n: int, rows: int, parts: int) -> float:
        tokens = jnp.tile(tokens_of(config, 0)[:, :1], (1, rows))  # equal, told apart by dropout
        carry = charlm.initial_carry(config.model, rows)
        now = state.replace(step=jnp.int32(n), carry=carry)
        return float(step(now, tokens, jnp.bool_(True), parts)[1].loss)

    assert loss(3, 1, 1) == loss(3, 1, 1)
    assert loss(3, 1, 1) != loss(4, 1, 1)
    assert loss(3, 2, 2) != pytest.approx(loss(3, 1, 1), abs=1e-6), "both parts drop the same"


# --- the optimizer ---


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 5.0])
def test_clip_norm_bounds_the_global_norm(clip_norm: float) -> None:
    gradient = {"a": jnp.asarray([2.0, -1.0]), "b": jnp.asarray([[2.0]])}  # of norm 3
    shrink = min(1.0, clip_norm / 3) if clip_norm else 1.0
    config = change(CONFIG, clip_norm=clip_norm, warmup=0)
    for optimizer, given in [
        (relaxed(stepping.make_optimizer(config, 10)), gradient),
        (relaxed(optax.adam(1.0)), jax.tree.map(lambda g: g * shrink, gradient)),
    ]:
        _, opt_state = optimizer.update(given, optimizer.init(gradient), gradient)
        seen = optax.tree.get(opt_state, "mu")
        norm = math.sqrt(sum((np.asarray(m) ** 2).sum() for m in seen.values()))
        assert norm / 0.1 == pytest.approx(3 * shrink, rel=1e-6)  # the first moment is a tenth
        np.testing.assert_allclose(seen["a"], 0.1 * shrink * gradient["a"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes, total",
    [
        (dict(schedule="cosine", warmup=4), 20),
        (dict(schedule="cosine", warmup=0), 7),
        (dict(schedule="constant", warmup=5), 12),
        (dict(schedule="constant", warmup=0), 4),
        (dict(schedule="cosine", warmup=100), 5),  # more warm-up than steps
        (dict(schedule="constant", warmup=100), 5),
        (dict(schedule="cosine", warmup=100), 1),
    ],
)
def test_learning_rate(changes: dict[str, Any], total: int) -> None:
    config = change(CONFIG, learning_rate=0.5, clip_norm=0.0, **changes)
    optimizer = relaxed(stepping.make_optimizer(config, total))
    weight = jnp.ones(1)
    state = optimizer.init(weight)
    update = jax.jit(optimizer.update)
    rates = []
    for _ in range(total + 1):  # Adam on a gradient of ones steps by the rate
        step, state = update(jnp.ones(1), state, weight)
        rates.append(-float(step[0]))
    by_hand = [rate_by_hand(config, total, n) for n in range(total + 1)]
    np.testing.assert_allclose(rates, by_hand, rtol=1e-5, atol=1e-7)
    if config.schedule == "cosine":
        assert rates[total] == pytest.approx(0, abs=1e-7)
    assert max(rates) == pytest.approx(0.5, rel=1e-5), "the peak is reached"


# --- many steps in one call of the device ---


def dispatch(config: TrainingConfig, calls: list[int]) -> tuple[stepping.TrainState, np.ndarray]:
    """Train by calls of so many steps each. Returns the state and the metrics [2, N]."""
    optimizer, state = start(config)
    source = place(CORPUS.tokens, config.memory_map)
    batches = config.batches(CORPUS)
    done, metrics = 0, []
    for count in calls:
        ahead = range(done, done + config.log_every)
        windows = source.windows(np.stack([batches.starts(n) for n in ahead]), config.seq_len)
        fresh = np.array([batches.fresh(n) for n in ahead])
        state, now = stepping.run_steps(
            config, optimizer, source.devices, state, source.tokens, windows, fresh, count
        )
        metrics.append(np.stack(now)[:, :count])
        done += count
    return state, np.concatenate(metrics, axis=1)


def test_dispatch_changes_no_bit() -> None:
    config = change(CONFIG, cell="lstm", dropout=0.3, accumulate=2, eval_every=6, log_every=6)
    whole, metrics = dispatch(config, [6])
    for log_every, calls in [(6, [1] * 6), (6, [4, 2]), (1, [1] * 6), (3, [2, 3, 1])]:
        other, others = dispatch(change(config, log_every=log_every), calls)
        assert_same_bits(whole, other)
        np.testing.assert_array_equal(metrics, others)


def test_state_is_donated() -> None:
    optimizer, state = start(CONFIG)
    source = place(CORPUS.tokens)
    windows = np.zeros((2, 4), np.int32)
    after, _ = stepping.run_steps(
        CONFIG, optimizer, source.devices, state, source.tokens, windows, np.zeros(2, bool), 2
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the memory is used again"
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert not source.tokens.is_deleted()


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
    assert min(config.intervals) == config.MOST_STEPS


def test_fewer_steps_than_the_run_has(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    fit(CONFIG, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report = Notes(run)
    _, step = loop.fit(change(CONFIG, steps=6), CORPUS, run, report)
    assert step == 12
    [line] = report.lines
    assert "the run has 12 steps already, more than the 6 asked for" in line and "--steps" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


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


def test_a_picture_that_cannot_be_drawn_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # draw again
    run = run_of(tmp_path)
    (run / "loss.png").mkdir()
    report = Notes(run)
    _, step = loop.fit(CONFIG, CORPUS, run, report)
    assert step == 12
    [line] = report.lines
    assert line.startswith("no loss.png: ")


# --- the text as the steps read it ---


class Recorder:
    """Stands in for run_steps and remembers which rows the steps are given."""

    def __init__(self) -> None:
        self.starts: list[np.ndarray] = []
        self.fresh: list[bool] = []

    def __call__(self, config: Any, optimizer: Any, devices: Any, state: Any, *rest: Any) -> Any:
        _, windows, fresh, count = rest
        self.starts += list(windows[:count])
        self.fresh += fresh[:count].tolist()
        nothing = jnp.zeros(len(fresh))
        return state.replace(step=state.step + count), stepping.Metrics(nothing, nothing)


@pytest.mark.parametrize("shuffle", [False, True])
def test_fit_reads_batch_after_batch(
    shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = change(CONFIG, shuffle=shuffle, steps=None, epochs=2.0, seq_len=40)
    batches = config.batches(CORPUS)
    total = config.total_steps(batches)
    assert total == 2 * batches.per_epoch > 20
    seen = Recorder()
    monkeypatch.setattr(loop, "run_steps", seen)
    fit(config, run_of(tmp_path))
    np.testing.assert_array_equal(seen.starts, [batches.starts(n) for n in range(total)])
    assert seen.fresh == [shuffle or n % batches.per_epoch == 0 for n in range(total)]
    if shuffle:
        once = np.sort(np.ravel(seen.starts[: batches.per_epoch]))
        assert (np.diff(once) >= 40).all(), "no character of an epoch is a target twice"
        assert not np.array_equal(seen.starts[0], np.sort(once)[:4]), "nor come in order"


@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_mapping_changes_no_bit(shuffle: bool, tmp_path: Path) -> None:
    config = change(CONFIG, shuffle=shuffle)
    (a, _, ours), (b, _, theirs) = (
        fit(change(config, memory_map=where), run_of(tmp_path, where))
        for where in ("always", "never")
    )
    assert ours == theirs and len(ours) == 6
    assert_same_bits(a, b)
    assert (tmp_path / "always" / "tokens.npy").exists()
    assert not (tmp_path / "never" / "tokens.npy").exists()


@pytest.mark.parametrize("room, mapped", [(None, False), (1 << 30, False), (1000, True)])
def test_auto_maps_a_text_that_the_device_has_no_room_for(
    room: int | None, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "memory", lambda: room)
    source = place(CORPUS.tokens, run=tmp_path)
    assert (source.tokens is None) is mapped
    assert isinstance(source.text, np.memmap) is mapped
    np.testing.assert_array_equal(source.text, CORPUS.tokens)


# --- evaluation ---


def corpus_of(length: int, seed: int = 0) -> Corpus:
    letters = np.random.default_rng(seed).choice(list("abcdefg"), length, p=[0.4] + 6 * [0.1])
    return make_corpus("".join(letters))


def evaluate(params: charlm.Params, corpus: Corpus, config: TrainingConfig) -> float:
    source = place(corpus.tokens, config.memory_map)
    return evaluation.evaluate(params, source, corpus, config.batch, config.seq_len)


def by_one_stream(params: charlm.Params, corpus: Corpus, first: int) -> float:
    """The mean loss over the validation text, read from `first` on in one go."""
    tokens = jnp.asarray(corpus.tokens[first:, None], jnp.int32)
    carry = charlm.initial_carry(params.config, 1)
    _, logits = jax.jit(charlm.forward)(params, tokens[:-1], carry)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return float(np.mean(np.asarray(nats)[corpus.split - first - 1 :], dtype=np.float64))


@pytest.mark.parametrize("length", [200, 5003, 11777, 20485])
@pytest.mark.parametrize(
    "batch, seq_len, memory_map", [(1, 64, "never"), (4, 100, "always"), (5, 37, "never")]
)
def test_every_validation_character_counts_once(
    length: int, batch: int, seq_len: int, memory_map: Any
) -> None:
    """With the same logits everywhere the loss is the mean of -log p over the characters."""
    corpus = corpus_of(length)
    params = jax.tree.map(jnp.zeros_like, charlm.init(TINY, corpus.vocabulary))
    log_p = np.log(np.arange(1, 8) / 28)
    params = params.replace(b_out=jnp.asarray(log_p, jnp.float32))
    exact = -log_p[corpus.tokens[corpus.split :]].mean()
    config = change(CONFIG, batch=batch, seq_len=seq_len, memory_map=memory_map)
    assert evaluate(params, corpus, config) == pytest.approx(exact, **MEAN)


@pytest.mark.parametrize(
    "length, first, tolerance",
    [
        (200, 0, MEAN),  # the training text is shorter than the warm-up
        (5000, 4500 - 1 - evaluation.WARM_UP, MEAN),  # one part
        (25003, 22502 - 1 - evaluation.WARM_UP, FORGOTTEN),  # four parts
        (25003, 15000, FORGOTTEN),
    ],
)
def test_evaluation_is_one_pass_of_the_validation_text(
    length: int, first: int, tolerance: dict[str, float]
) -> None:
    corpus = corpus_of(length)
    params = charlm.init(
        change(CONFIG, cell="lstm", hidden_size=6).model, corpus.vocabulary, seed=3
    )
    params = params.replace(w_out=3 * params.w_out)  # so that the state matters
    ours = evaluate(params, corpus, change(CONFIG, seq_len=50))
    assert ours == pytest.approx(by_one_stream(params, corpus, first), **tolerance)


def test_fit_reports_the_validation_loss_of_the_state_it_saves(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    params, _, metrics = fit(CONFIG, run)
    judged = [m["step"] for m in metrics if "val_loss" in m]
    assert judged == [4, 8, 12]
    assert metrics[-1]["val_loss"] == evaluate(params, CORPUS, CONFIG)


# --- settings ---


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch=0),
        dict(seq_len=0),
        dict(steps=0),
        dict(steps=-5),
        dict(epochs=0.0),
        dict(epochs=math.nan),
        dict(epochs=math.inf),
        dict(learning_rate=0.0),
        dict(learning_rate=-1.0),
        dict(learning_rate=math.nan),
        dict(learning_rate=math.inf),
        dict(warmup=-1),
        dict(beta2=1.0),
        dict(beta2=-0.1),
        dict(beta2=math.nan),
        dict(clip_norm=-1.0),
        dict(clip_norm=math.nan),
        dict(accumulate=0),
        dict(accumulate=3),
        dict(seed=-1),
        dict(seed=2**32),
        dict(log_every=0),
        dict(eval_every=0),
        dict(sample_every=-2),
        dict(hidden_size=0),
        dict(layers=0),
        dict(embedding_size=-1),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(dropout=math.nan),
        dict(weight_dropout=1.0),
        dict(tie=True),
    ],
    ids=lambda changes: "".join(f"{k}={v}" for k, v in changes.items()),
)
def test_bad_settings_are_told_by_their_flag(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(InputError) as caught:
        change(CONFIG, **changes)
    message = str(caught.value)
    assert "--" + name.replace("_", "-") in message and "\n" not in message
    assert name == "tie" or str(value) in message


@pytest.mark.parametrize(
    "changes",
    [
        dict(dropout=0.0),
        dict(embedding_size=0),
        dict(clip_norm=0.0),
        dict(warmup=0),
        dict(seed=2**32 - 1),
    ],
    ids=str,
)
def test_settings_at_their_limits(changes: dict[str, Any]) -> None:
    change(CONFIG, **changes)


def test_length_of_the_run() -> None:
    batches = CONFIG.batches(CORPUS)
    per_epoch = batches.per_epoch
    assert per_epoch == (len(TEXT) * 9 // 10 // 4 - 1) // 8
    assert CONFIG.total_steps(batches) == 12
    assert change(CONFIG, steps=None, epochs=2.5).total_steps(batches) == round(2.5 * per_epoch)
    assert change(CONFIG, steps=None, epochs=1e-9).total_steps(batches) == 1
    assert change(CONFIG, steps=2**31 - 1).total_steps(batches) == 2**31 - 1
    for too_long in (dict(steps=2**31), dict(steps=None, epochs=1e12)):
        with pytest.raises(InputError, match="int32"):
            change(CONFIG, **too_long).total_steps(batches)


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
    params, last = loop.fit(CONFIG, CORPUS, run, report)
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


def test_the_rate_stays_halved_when_resumed(tmp_path: Path, break_at: Any) -> None:
    break_at(5, 0.5)
    whole, stopped = Notes(run_of(tmp_path, "whole")), Notes(run_of(tmp_path, "stopped"))
    params, _ = loop.fit(CONFIG, CORPUS, tmp_path / "whole", whole)
    asked = iter([False, False, False, True])
    _, step = loop.fit(CONFIG, CORPUS, tmp_path / "stopped", stopped, lambda: next(asked, True))
    assert 4 < step < 12
    again, _ = loop.fit(CONFIG, CORPUS, tmp_path / "stopped", stopped)
    assert len(whole.lines) == len(stopped.lines) == 1
    assert_same_bits(params, again)


def test_it_goes_back_to_a_checkpoint_of_the_plan(tmp_path: Path, break_at: Any) -> None:
    """Not to the one where the run happened to be stopped, so that stopping changes nothing."""
    break_at(7, 0.5)
    config = change(CONFIG, log_every=1)
    whole, stopped = Notes(run_of(tmp_path, "whole")), Notes(run_of(tmp_path, "stopped"))
    params, _ = loop.fit(config, CORPUS, tmp_path / "whole", whole)
    asked = iter(range(1, 100))
    _, step = loop.fit(config, CORPUS, tmp_path / "stopped", stopped, lambda: next(asked) == 6)
    assert step == 6
    again, _ = loop.fit(config, CORPUS, tmp_path / "stopped", stopped)
    assert whole.lines == stopped.lines and "back to step 4 " in whole.lines[0]
    assert_same_bits(params, again)


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
    with pytest.raises(loop.Diverged) as caught:
        loop.fit(config, CORPUS, run, report)
    assert "\n" not in str(caught.value) and "--learning-rate" in str(caught.value)
    assert len(report.lines) == loop.RECOVERIES
    assert_same_bits(good, latest(run, good))


def test_a_learning_rate_that_cannot_work(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    report = Notes(run)
    config = change(CONFIG, learning_rate=1e38, warmup=0, clip_norm=0.0, seed=1)
    with pytest.raises(loop.Diverged):
        loop.fit(config, CORPUS, run, report)
    assert len(report.lines) == loop.RECOVERIES


# --- and it learns ---


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
