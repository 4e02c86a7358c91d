"""The sampling kernel without a GPU.

It is interpreted on the CPU with a race detector and compared to the loop of `jaxrnn.charlm.decoding`,
from the same states and keys. It is lowered for a GPU in every tiling that is interpreted, and in those
that only a GPU can run (counters in L2). Other tests check the tiling, and what is refused. Only a GPU
can show whether it runs right and fast there.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.ahead_of_time import hopper as hopper_static
from benchmarks.ahead_of_time import programs as hopper_programs
from jaxrnn import (
    InputError,
    ModelConfig,
    Params,
    Vocabulary,
    charlm,
    init,
    sample,
    sample_many,
    stream,
)
from jaxrnn.charlm import decoding, sampling
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels.hopper import sampling as hopper_sampling
from jaxrnn.recurrence.kernels.hopper import sampling_cta, search, tiles
from jaxrnn.recurrence.kernels.hopper.sampling_arrays import SamplingTiling
from tests.support.fakes import fake
from tests.support.hopper import SHARED, gpu_aot, interpreted
from tests.support.oracle import TOLERANCES, assert_close, unchecked

Size = hopper_programs.Size
VOCABULARY = Vocabulary.of("abcdefghijklmnopqrstuvwxyz,.;:!?-'\n 12345")  # 41, in two pieces
SIZE = len(VOCABULARY)
# Rows, of the 16 that are moved.
BATCH = 9
# Characters to draw, and the length of the tokens.
LENGTH, DRAWN = 3, 4
# Units, without and with their padding, shared by two parts.
HIDDEN, WIDTH = 20, 32
TILING = SamplingTiling(parts=2, cluster=2, rows=16, units=16, columns=32, chunk=16, slots=2)
# 16 units, in rows of 16 bytes.
NARROW = TILING._replace(units=8, slots=1)

CASES = {
    "lstm": ("categorical", TILING, {"cell": "lstm", "peephole": True}),
    "lstm-bfloat16": (
        "categorical",
        NARROW,
        {"cell": "lstm", "hidden_size": 10, "dtype": "bfloat16"},
    ),
    "lstm-layers": ("after-space", TILING._replace(chunk=8), {"cell": "lstm", "layers": 2}),
    "gru-before": ("after-space", TILING._replace(chunk=8, slots=3), {"cell": "gru", "layers": 2}),
    "gru-before-bfloat16": (
        "argmax",
        TILING,
        {"cell": "gru", "dtype": "bfloat16", "embedding_size": 0},
    ),
    "gru-after": ("categorical", TILING._replace(columns=64), {"cell": "gru", "reset": "after"}),
    "rnn": ("argmax", TILING, {"cell": "rnn", "layers": 3}),
    "rnn-alone": (
        "categorical",
        TILING._replace(parts=1, cluster=1, units=32, columns=64),
        {"cell": "rnn", "activation": "relu", "dtype": "bfloat16", "layers": 2},
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def use_tiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes every char-RNN use a tiling."""

    def use(tiling: SamplingTiling) -> None:
        monkeypatch.setattr(hopper_sampling, "tiling_for", lambda *_: tiling)

    return use


def problem(**config: Any) -> tuple[Any, ...]:
    """Return a configuration, its weights, the state amid some texts, and options."""
    rng = np.random.default_rng(7)
    more = lambda a: jnp.asarray(a + 0.3 * rng.standard_normal(a.shape), a.dtype)  # noqa: E731
    params = init(ModelConfig(**{"hidden_size": HIDDEN, "embedding_size": 6} | config), VOCABULARY)
    params = jax.tree.map(more, params)
    state = decoding.initial_state(params.config, SIZE, BATCH, jnp.uint32(3))
    state = state._replace(
        carry=jax.tree.map(more, state.carry),
        logits=more(state.logits),
        last=jnp.arange(BATCH, dtype=jnp.int32) * 4 % SIZE,
        position=jnp.int32(5),
    )
    whitespace = np.arange(SIZE) % 2 == 0  # many, so that both kinds of draws are seen
    options = decoding.TracedOptions(
        jnp.float32(0.8), jnp.int32(SIZE), jnp.float32(1), jnp.asarray(whitespace)
    )
    return params.config, charlm.step_params(params), state, options


def launch(mode: Any, config: Any, prepared: Any, state: Any, options: Any, how: Any) -> Any:
    weights = hopper_sampling.arrange(config.make_cell(), prepared, BATCH)
    length = jnp.int32(LENGTH)
    return decoding.draw_by_kernel.__wrapped__(
        config, weights, state, length, options, mode=mode, size=DRAWN, interpret=how
    )


def interpret(mode: Any, config: Any, *given: Any) -> Any:
    """Interpret with a race detector, which raises an error where it finds a race."""
    how = plgpu.InterpretGPUParams(detect_races=True, inline_mgpu="ignore")
    return jax.jit(partial(launch, mode, config, how=how))(*given)


def lowered(mode: Any, config: Any, *given: Any) -> str:
    """Return the program for a GPU."""
    traced = jax.jit(partial(launch, mode, config, how=False)).trace(*given)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def loop(mode: Any, config: Any, prepared: Any, state: Any, options: Any) -> Any:
    """Run the loop that `jaxrnn.sample` runs on every device."""
    none, length = np.zeros(1, np.int32), np.int32(LENGTH)
    how = {"mode": mode, "truncate": False, "size": DRAWN}
    return decoding.advance(config, prepared, state, none, np.int32(0), length, options, **how)


def assert_same(got: Any, want: Any, dtype: str) -> None:
    (state, drawn), (wanted, tokens) = got, want
    np.testing.assert_array_equal(drawn[:LENGTH], tokens[:LENGTH])
    assert len(set(np.asarray(tokens[:LENGTH]).ravel().tolist())) > 5  # or it would say little
    np.testing.assert_array_equal(state.last, wanted.last)
    assert state.position == wanted.position
    assert_close((state.carry, state.logits), (wanted.carry, wanted.logits), TOLERANCES[dtype])


# --- values and races ---------------------------------------------------------------------------


@pytest.mark.slow
@interpreted
@every_case
def test_kernel_is_the_loop(name: str, use_tiling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the same characters, state and logits."""
    mode, tiling, config = CASES[name]
    use_tiling(tiling)
    given = problem(**config)
    assert_same(interpret(mode, *given), loop(mode, *given), given[0].dtype)


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(
    ("missing", "name"), [("barrier_wait", "rnn"), ("wait_smem_to_gmem", "rnn-alone")]
)
def test_the_detector_finds_what_is_missing(
    missing: str, name: str, use_tiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race detector reports a kernel that lacks one of its waits; the tests above rely on that."""
    mode, tiling, config = CASES[name]
    use_tiling(tiling)
    monkeypatch.setattr(sampling_cta.plgpu, missing, lambda *_, **__: None)
    with pytest.raises(Exception, match=r"(?i)race|uninitialized|phase|nan"):
        jax.block_until_ready(interpret(mode, *problem(**config)))


# --- lowering -----------------------------------------------------------------------------------


@pytest.mark.slow
@every_case
def test_kernel_lowers(name: str, use_tiling: Any) -> None:
    """The interpreter accepts shapes that no GPU accepts."""
    mode, tiling, config = CASES[name]
    use_tiling(tiling)
    assert "mosaic_gpu" in lowered(mode, *problem(**config))


# Tiled over 132 multiprocessors.
SIZES = [
    Size("lstm", "bfloat16", 1, 512),
    Size("lstm", "bfloat16", 64, 512, 2),
    Size("lstm", "bfloat16", 8, 1024),
    Size("lstm", "float32", 3, 100, 3),
    Size("gru-before", "bfloat16", 64, 256, 2),
    Size("gru-after", "bfloat16", 9, 256),
    Size("rnn", "bfloat16", 64, 64),
]


@pytest.mark.first_case
@pytest.mark.parametrize("size", SIZES)
def test_usual_sizes_lower(size: Size) -> None:
    """Tiled for an H100, with counters in L2 where no cluster holds all parts."""
    run, given, tiling = hopper_programs.sampler(size)
    assert tiling.parts * tiling.units == tiles.width(size.hidden)
    assert tiling.parts <= search.multiprocessors() and tiling.rows - 8 < size.batch <= tiling.rows
    text = jax.jit(run).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


SPILLS = 512  # bytes of a thread; the GRU spills 440 by the compiler of JAX 0.10.2


class TestCompiled:
    pytestmark = gpu_aot

    @pytest.mark.parametrize("size", SIZES[1:5:3])
    def test_kernel_fits(self, size: Size) -> None:
        """All blocks are on the GPU at once, and registers nearly suffice."""
        run, given, _ = hopper_programs.sampler(size)
        (report,) = hopper_static.reports(run, *given)
        assert report.kernel.endswith("_sampling")
        assert report.blocks <= search.multiprocessors()
        assert report.static_shared + report.shared <= SHARED
        assert report.spill_stores <= SPILLS and not report.losses


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "hidden", "vocabulary", "batch", "dtype", "words"),
    [
        (1, 64, SIZE, 65, "float32", "at most 64 texts at once, not 65"),
        (1, 64, SIZE, 1, "float64", "float32 weights, not float64"),
        (2, 2048, SIZE, 1, "bfloat16", "2 layers of H = 2048 with V = 41 in bfloat16 do not fit"),
        (1, 64, 5000, 1, "bfloat16", "H = 64 with V = 5000"),
    ],
)
def test_unsupported_problems_have_a_reason(
    layers: int, hidden: int, vocabulary: int, batch: int, dtype: str, words: str
) -> None:
    cell = ModelConfig(hidden_size=hidden).make_cell()
    reason = hopper_sampling.unsupported_reason(cell, layers, vocabulary, batch, dtype)
    assert reason is not None and words in reason


@pytest.mark.slow
def test_arrange_raises_the_reason() -> None:
    cell, prepared = ModelConfig(hidden_size=HIDDEN).make_cell(), problem()[1]
    with pytest.raises(ValueError, match="cannot run this: it writes at most 64 texts"):
        hopper_sampling.arrange(cell, prepared, 65)


@pytest.fixture(scope="module")
def params() -> Params:
    config, rng = ModelConfig(hidden_size=6, embedding_size=4), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(config, VOCABULARY))
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), shapes)


def test_elsewhere_it_is_refused(params: Params) -> None:
    with pytest.raises(InputError, match="runs on a Hopper GPU and this is a CPU"):
        sample(params, "a", 3, implementation="hopper")
    with pytest.raises(InputError, match="runs on a Hopper GPU and this is a CPU"):
        stream(params, "a", 3, implementation="hopper")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"top_k": 3}, "without `top_k` and `top_p`"),
        ({"top_p": 0.5}, "without `top_k` and `top_p`"),
        ({"count": 65}, "at most 64 texts at once, not 65"),
    ],
)
def test_what_it_cannot_draw_is_refused(
    how: dict[str, Any], words: str, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: fake("gpu", compute_capability="9.0"))
    with pytest.raises(InputError, match=words):
        sample_many(params, "a", 3, implementation="hopper", **({"count": 1} | how))


@pytest.mark.slow
def test_the_loop_by_name(params: Params) -> None:
    assert sample(params, "a", 9, implementation="xla") == sample(params, "a", 9)
    with (
        unchecked(),
        pytest.raises(InputError, match="must be one of xla, hopper or None, not 'x'"),
    ):
        sample(params, "a", 9, implementation="x")  # type: ignore[arg-type]


@pytest.mark.slow
@interpreted
def test_samples_by_the_kernel_are_those_of_the_loop(
    params: Params, use_tiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare whole samples, drawn in several launches, and a stream."""
    use_tiling(TILING._replace(rows=8, parts=1, cluster=1, chunk=16, units=16, columns=64, slots=1))
    how = plgpu.InterpretGPUParams(inline_mgpu="ignore")
    monkeypatch.setattr(sampling, "_check_kernel", lambda *_: None)
    monkeypatch.setattr(sampling, "KERNEL_CHUNK", 4)
    draw = partial(sampling.draw_by_kernel, interpret=how)
    monkeypatch.setattr(sampling, "draw_by_kernel", draw)
    by_kernel = {"implementation": "hopper", "temperature": 0.7, "seed": 3}
    by_loop = by_kernel | {"implementation": "xla"}
    got = sample_many(params, "ab", 6, **by_kernel, count=2)
    assert got == sample_many(params, "ab", 6, **by_loop, count=2)
    pieces = list(stream(params, "ab", 6, **by_kernel))
    assert "".join(pieces) == got[0]
