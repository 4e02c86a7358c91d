"""Several layers in one launch of the Hopper kernel, without a GPU.

It is interpreted with a race detector and lowered for a GPU, and compared to the scan layer after layer.
Other tests check what is refused, and when it pays.
"""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.ahead_of_time import hopper as hopper_static
from benchmarks.ahead_of_time import programs as hopper_programs
from jaxrnn import charlm, gru, lstm, unroll
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.dispatch import abstract_problem
from jaxrnn.recurrence.kernels.hopper import search, stack, stack_block, tiles
from jaxrnn.recurrence.kernels.hopper.residency import ROOM
from jaxrnn.recurrence.kernels.hopper.tiles import CLUSTERS, Memory, Tiling, launched_cluster
from jaxrnn.recurrence.problem import Masks
from tests.support.hopper import (
    BATCH,
    FEATURES,
    MASKS,
    PLAIN,
    SHARED,
    STEPS,
    cell_of,
    gpu_aot,
    interpreted,
    on_gpu,
)
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import Problem, as_masks, problem

Size = hopper_programs.Size

# Every layer in two CTAs with one block of rows; all meet at one cluster's barrier.
TILING = PLAIN._replace(forward=Memory(16, 3, 4, 1), backward=Memory(16, 2, 16, 1))
NAMES = "rnn-tanh", "lstm-peephole", "gru-after"


@pytest.fixture
def use_tiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes every problem use a tiling, with units padded to 32."""

    def use(tiling: Tiling, width: int = 32) -> None:
        def fitted(cell: Any, *_: Any) -> Tiling:
            memories = {}
            for name, count in (("forward", 1), ("backward", len(cell.GATES))):
                memory = getattr(tiling, name)
                resident = 2 * count * width // memory.chunk
                memories[name] = memory._replace(resident=resident)
            return tiling._replace(**memories)

        monkeypatch.setattr(stack, "tiling_for", fitted)
        monkeypatch.setattr(stack, "width", lambda _: width)

    return use


def problems(name: str, layers: int, dtype: str, batch: int = BATCH) -> tuple[Problem, ...]:
    """Return a problem for each layer; only the first one's inputs and the last one's ys are used."""
    cell = cell_of(name)
    widths = [FEATURES] + [cell.hidden_size] * (layers - 1)
    drawn = [problem(cell, STEPS, batch, width, k) for k, width in enumerate(widths)]
    tame = [one._replace(params=jax.tree.map(lambda w: w / 2, one.params)) for one in drawn]
    return tuple(given.cast(dtype) for given in tame)


def values_and_gradients(run: Any, given: tuple[Problem, ...]) -> tuple[Any, Any]:
    """Return final states and outputs of `run`, and gradients for parameters, inputs and states."""
    d_final, d_ys = tuple(one.weights[0] for one in given), given[-1].weights[1]

    def loss(params: Any, xs: Any, states: Any) -> Any:
        final, ys = run(params, xs, states)
        products = jax.tree.map(
            lambda w, r: (w * r.astype(w.dtype)).sum(), (d_final, d_ys), (final, ys)
        )
        return sum(jax.tree.leaves(products)), (final, ys.astype(jnp.float32))

    arguments = tuple(one.params for one in given), given[0].xs, tuple(one.state for one in given)
    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments)
    return results, gradients


def at_once(name: str, masks: Masks, reverse: bool, interpret: Any = None) -> Any:
    cell = cell_of(name)

    def run(params: Any, xs: Any, states: Any) -> Any:
        gx = cell.project(params[0], xs)
        return stack.run(cell, params, gx, states, masks, reverse, interpret=interpret)

    return jax.jit(partial(values_and_gradients, run))


def one_by_one(name: str, reverse: bool, masks: dict[str, Any]) -> Any:
    def run(params: Any, xs: Any, states: Any) -> Any:
        final = []
        for layer, state in zip(params, states, strict=True):
            after, xs = unroll(
                cell_of(name), layer, xs, state, **masks, reverse=reverse, implementation="scan"
            )
            final.append(after)
        return tuple(final), xs

    return jax.jit(partial(values_and_gradients, run))


def interpret(name: str, given: Any, masks: dict[str, Any], reverse: bool = False) -> Any:
    """Interpret with a race detector, which raises an error where it finds a race."""
    how = plgpu.InterpretGPUParams(detect_races=True, inline_mgpu="ignore")
    as_given = as_masks(STEPS, **masks) if masks else Masks()
    return at_once(name, as_given, reverse, how)(given)


def lowered(name: str, given: Any, masks: dict[str, Any], reverse: bool = False) -> str:
    as_given = as_masks(STEPS, **masks) if masks else Masks()
    traced = at_once(name, as_given, reverse).trace(given)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


EVERY = [
    ("rnn-tanh", 2, "float32", True, MASKS),
    ("lstm-peephole", 2, "float32", False, MASKS),
    ("gru-after", 2, "float32", True, MASKS),
    ("rnn-tanh", 3, "float32", False, {}),
    ("lstm-peephole", 3, "bfloat16", True, MASKS),
    ("gru-after", 3, "float32", False, MASKS),
]
every = pytest.mark.parametrize(("name", "layers", "dtype", "reverse", "masks"), EVERY)


@pytest.mark.slow
@interpreted
@every
def test_layers_at_once_are_layers_one_by_one(
    name: str, layers: int, dtype: str, reverse: bool, masks: Any, use_tiling: Any
) -> None:
    use_tiling(TILING)
    given = problems(name, layers, dtype)
    got = interpret(name, given, masks, reverse)
    arrays = {k: jnp.asarray(mask) for k, mask in masks.items()}
    assert_close(got, one_by_one(name, reverse, arrays)(given), TOLERANCES[dtype])


@pytest.mark.slow
@every
def test_layers_at_once_lower(
    name: str, layers: int, dtype: str, reverse: bool, masks: Any, use_tiling: Any
) -> None:
    use_tiling(TILING)
    program = lowered(name, problems(name, layers, dtype), masks, reverse)
    assert program.count("mosaic_gpu") >= 2


# Without groups of parts that fit a cluster all meet at a counter, which the interpreter does not have.
ON_A_GPU_ALONE = {
    "counter": TILING._replace(cluster=1),
    "counter and multicast": TILING._replace(parts=4),
    "warpgroups, groups and turns": TILING._replace(cluster=1, warpgroups=2, groups=2, turns=2),
    "alone in its layer": TILING._replace(parts=1, cluster=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ON_A_GPU_ALONE)
@pytest.mark.parametrize("name", NAMES)
def test_every_tiling_lowers(name: str, kind: str, use_tiling: Any) -> None:
    tiling = ON_A_GPU_ALONE[kind]
    use_tiling(tiling, width=64 if tiling.parts == 4 else 32)
    given = problems(name, 3, "float32", tiling.rows * tiling.blocks)
    assert "mosaic_gpu" in lowered(name, given, {})


@pytest.mark.slow
@interpreted
def test_rows_over_warpgroups_and_turns(use_tiling: Any) -> None:
    """Run one part per layer, with inputs prefetched for two steps and no masks."""
    deep = TILING.forward._replace(depth=2)
    tiling = TILING._replace(parts=1, cluster=1, warpgroups=2, turns=2, forward=deep)
    use_tiling(tiling)
    given = problems("rnn-tanh", 2, "float32", tiling.rows * tiling.blocks - 1)
    got = interpret("rnn-tanh", given, {})
    assert_close(got, one_by_one("rnn-tanh", False, {})(given), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("missing", ["wait_smem_to_gmem", "barrier_wait"])
def test_the_detector_finds_what_is_missing(
    missing: str, use_tiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race detector reports a kernel that lacks one of its waits; the tests above rely on that."""
    use_tiling(TILING)
    monkeypatch.setattr(stack_block.plgpu, missing, lambda *_, **__: None)
    with pytest.raises(Exception, match=r"(?i)race|uninitialized|phase|nan"):
        jax.block_until_ready(interpret("rnn-tanh", problems("rnn-tanh", 2, "float32"), {}))


REAL = [
    Size("lstm", "bfloat16", 64, 512, 2),
    Size("gru-after", "bfloat16", 200, 320, 3),
    Size("lstm-peephole", "float32", 16, 128, 2),
    Size("rnn", "float16", 1, 100, 4),
]
# Bytes of a thread; the GRU spills 48 by the compiler of JAX 0.10.2.
SPILLS = 64


@pytest.mark.slow
@pytest.mark.parametrize("size", REAL)
def test_real_sizes_lower(size: Size) -> None:
    """Lower with the tiling that a GPU would get; too much shared memory would be an error."""
    run, given, _ = hopper_programs.at_once(size)
    text = jax.jit(run).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 2


class TestCompiled:
    pytestmark = gpu_aot

    @pytest.mark.parametrize("size", REAL[:2])
    def test_kernels_fit(self, size: Size) -> None:
        """All blocks are on the GPU at once, and at most a few bytes are spilled."""
        run, given, _ = hopper_programs.at_once(size)
        reports = hopper_static.reports(run, *given)
        ways = [report.kernel.split("_", 1)[1] for report in reports]
        assert ways == ["forward_stack", "backward_stack"]
        for report in reports:
            assert report.blocks <= ROOM[CLUSTERS.index(max(1, report.cluster))]
            assert report.static_shared + report.shared <= SHARED
            assert report.spill_stores <= SPILLS and not report.losses


# --- the tiling, and what it refuses -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layers", [2, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_tiling_can_run(name: str, layers: int) -> None:
    """All CTAs of all layers are on the GPU at once, and all weights stay."""
    for batch, hidden in ((1, 64), (64, 256), (200, 100)):
        cell = cell_of(name, hidden)
        tiling = search.search(cell, batch, jnp.dtype("bfloat16"), ROOM, layers)
        assert tiling is not None
        resident = ROOM[CLUSTERS.index(launched_cluster(tiling.parts, tiling.cluster, layers))]
        assert layers * tiling.parts * tiling.groups <= resident
        size = tiles.width(hidden)
        assert tiling.forward.resident * tiling.forward.chunk == 2 * size
        assert tiling.backward.resident * tiling.backward.chunk == 2 * len(cell.GATES) * size


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("cell", "layers", "dtype", "message"),
    [
        (lstm(64), 1, "bfloat16", "two layers or more at once, not 1"),
        (gru(64), 2, "bfloat16", "resets before its product exchanges twice .* layer by layer"),
        (lstm(64), 2, "float64", "bfloat16, float16 or float32 weights, not float64"),
        (lstm(2048), 3, "bfloat16", "3 layers of H = 2048 in bfloat16 do not fit .* 132"),
        (lstm(512), 2, "bfloat16", None),
        (gru(256, reset="after"), 4, "float32", None),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    cell: Any, layers: int, dtype: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu("9.0"))
    reason = stack.unsupported_reason(cell, layers, 2, dtype)
    if message is None:
        assert reason is None
        return
    assert reason is not None
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), cell.hidden_size, jnp.bfloat16))
    gx = jnp.zeros((1, 2, params.w_h.shape[1]))
    with pytest.raises(ValueError, match=f"cannot run this: .*{message}"):
        narrow = params._replace(w_h=jax.ShapeDtypeStruct(params.w_h.shape, jnp.dtype(dtype)))
        states = (cell.initial_state(2),) * layers
        stack.run(cell, (narrow,) * layers, gx, states, Masks(), False)


def test_it_pays_where_the_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pays for many steps of small layers, not for a single step or layers that do not fit."""
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu("9.0"))
    for steps, size, layers, pays in [
        (200, 128, 4, True),
        (1, 128, 4, False),
        (200, 2048, 3, False),
    ]:
        first = abstract_problem(lstm(size), (steps, 16, size), "bfloat16")
        assert stack.pays(first, layers) == pays


@pytest.mark.slow
def test_a_char_rnn_takes_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so unless outputs are dropped between the layers."""
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu("9.0"))
    vocabulary = Vocabulary.of("abc")
    tokens = jnp.zeros((200, 16), jnp.int32)

    def kernels(key: Any = None, implementation: Any = "hopper", **model: Any) -> list[str]:
        config = charlm.ModelConfig("lstm", 2, 128, 8, dtype="bfloat16", **model)
        params, carry = charlm.init(config, vocabulary), charlm.initial_carry(config, 16)
        run = partial(charlm.forward, dropout_key=key, implementation=implementation)
        program = str(jax.make_jaxpr(run)(params, tokens, carry))
        return re.findall(r"\w+_forward(?:_stack)?", program)

    key = jax.random.key(0)
    assert set(kernels()) == {"lstm_forward_stack"}
    assert set(kernels(key, weight_dropout=0.1)) == {"lstm_forward_stack"}
    assert set(kernels(key, dropout=0.1)) == {"lstm_forward"}
    assert not kernels(implementation="xla")


@pytest.mark.slow
@interpreted
def test_a_char_rnn_by_it_is_the_char_rnn(use_tiling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare loss, state and the gradients of all parameters."""
    use_tiling(TILING)
    how = plgpu.InterpretGPUParams(inline_mgpu="ignore")
    at_once = SimpleNamespace(run=partial(stack.run, interpret=how))
    vocabulary = Vocabulary.of("abcde")
    config = charlm.ModelConfig("lstm", 2, 20, 6, peephole=True, dtype="float32")
    params, carry = charlm.init(config, vocabulary), charlm.initial_carry(config, BATCH)
    tokens = jnp.arange((STEPS + 1) * BATCH, dtype=jnp.int32).reshape(STEPS + 1, BATCH) % 5
    carry = jax.tree.map(lambda s: s + 0.1, carry)
    results = []
    for module in (None, at_once):
        monkeypatch.setattr(dispatch, "layers_at_once", lambda *_, m=module: m)
        run = partial(charlm.loss, implementation="scan")
        results.append(jax.value_and_grad(run, has_aux=True)(params, tokens, carry))
    assert_close(results[1], results[0], TOLERANCES["float32"])
