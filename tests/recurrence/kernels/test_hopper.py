"""The Hopper kernels without a GPU.

They are interpreted on the CPU with a race detector, with values and gradients compared to the scan and
the numpy oracle. They are lowered for a GPU in every tiling that is interpreted, and in those that only
a GPU can run (counters in L2, multicast). Other tests check the search for a tiling, and what is
refused. `test_hopper_compile.py` shows that NVIDIA's assembler takes the kernels. Whether a GPU runs
them right and fast is measured by `benchmarks/hopper`.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import explain, gru, lstm, rnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.kernels import hopper
from jaxrnn.recurrence.kernels.hopper import block, cost_model, layer, search, tiles
from jaxrnn.recurrence.kernels.hopper.tiles import (
    DIRECTIONS,
    MULTIPROCESSORS,
    Alone,
    Memory,
    Tiling,
)
from jaxrnn.recurrence.problem import Masks
from jaxrnn.recurrence.problem import Problem as Recurrence
from tests.support.conformance import Conformance
from tests.support.hopper import (
    BATCH,
    FEATURES,
    MASKS,
    PLAIN,
    STEPS,
    cell_of,
    check_vmap,
    interpret,
    interpreted,
    lowered,
    on_gpu,
    random_masks,
    scan,
)
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import (
    CELLS,
    Problem,
    as_masks,
    expected,
    library,
    problem,
    with_orthogonal,
)

NAMES = tuple(CELLS)
TILINGS = {
    "warpgroups": PLAIN._replace(warpgroups=2),
    "groups": PLAIN._replace(groups=2),
    "turns": PLAIN._replace(turns=2, forward=Memory(16, 3, 2), backward=Memory(16, 3, 2)),
}
PAIRS = [
    ("warpgroups", "gru-before"),
    ("groups", "rnn-tanh"),
    ("turns", "gru-after"),
]


@pytest.fixture
def use_tiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes every problem use a tiling, with units padded to 32."""

    def use(tiling: Tiling, width: int = 32) -> None:
        monkeypatch.setattr(layer, "tiling_for", lambda *_: tiling)
        monkeypatch.setattr(layer, "width", lambda _: width)

    return use


# --- values, gradients and races ----------------------------------------------------------------

EVERY = [
    pytest.param(name, dtype, reverse, id=f"{name}-{dtype}-{'reverse' if reverse else 'forward'}")
    for k, name in enumerate(NAMES)
    for dtype, reverse in (("float32", k % 2 == 0), ("bfloat16", k % 2 == 1))
]


@pytest.mark.first_case
@interpreted
@pytest.mark.parametrize(("name", "dtype", "reverse"), EVERY)
def test_kernel_is_scan(name: str, dtype: str, reverse: bool, use_tiling: Any) -> None:
    """Test with resets and lengths, and with units in one of the parts that are padding."""
    use_tiling(PLAIN)
    cell = cell_of(name)
    given = problem(cell, STEPS, BATCH, FEATURES).cast(dtype)
    got = interpret(cell, given, as_masks(STEPS, **MASKS), reverse)
    assert_close(got, scan(cell, given, reverse, **MASKS), TOLERANCES[dtype])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
def test_kernel_is_numpy(name: str, use_tiling: Any) -> None:
    """Compare with the values and finite differences of the equations, without masks."""
    use_tiling(PLAIN._replace(forward=Memory(8, 2, 1), backward=Memory(8, 2, 1)), width=16)
    cell = cell_of(name, 10)
    given = problem(cell, STEPS, 2, FEATURES).cast("float32")
    got = interpret(cell, given, Masks())
    assert_close(got, expected(cell, given.exact()), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_every_tiling_is_scan(kind: str, name: str, use_tiling: Any) -> None:
    """Divide rows over warpgroups, groups and turns, and prefetch inputs for two steps."""
    use_tiling(TILINGS[kind])
    tiling = TILINGS[kind]
    cell, rows = cell_of(name), tiling.rows * tiling.blocks - 1
    masks = random_masks(STEPS, rows)
    given = problem(cell, STEPS, rows, FEATURES).cast("float32")
    got = interpret(cell, given, as_masks(STEPS, **masks))
    assert_close(got, scan(cell, given, **masks), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
@pytest.mark.parametrize("slots", [2, 3, 8])
def test_a_packed_ring_is_scan(name: str, slots: int, use_tiling: Any) -> None:
    """Place slots as far apart as a block has rows, up to one slot for every chunk."""
    forward, backward = Memory(16, min(slots, 2), 1), Memory(16, slots, 1)
    use_tiling(PLAIN._replace(rows=16, packed=True, forward=forward, backward=backward))
    cell = cell_of(name)
    masks = random_masks(STEPS, 13)
    given = problem(cell, STEPS, 13, FEATURES).cast("float32")
    got = interpret(cell, given, as_masks(STEPS, **masks), detect_races=False)
    assert_close(got, scan(cell, given, **masks), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
def test_float16(use_tiling: Any) -> None:
    use_tiling(PLAIN)
    given = problem(cell_of("lstm"), STEPS, BATCH, FEATURES).cast("float16")
    got = interpret(cell_of("lstm"), given, Masks())
    assert_close(got, scan(cell_of("lstm"), given), TOLERANCES["float16"])


@pytest.mark.slow
@interpreted
def test_vmap_is_a_loop(use_tiling: Any) -> None:
    """Launches follow each other: their CTAs together would not fit the GPU, and would wait forever."""
    use_tiling(PLAIN)
    check_vmap(cell_of("rnn-tanh"), 2)


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("missing", ["wait_smem_to_gmem", "barrier_wait"])
def test_the_detector_finds_what_is_missing(
    missing: str, use_tiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race detector reports a kernel that lacks one of its waits; the tests above rely on that."""
    use_tiling(PLAIN)
    monkeypatch.setattr(block.plgpu, missing, lambda *_, **__: None)
    cell = cell_of("rnn-tanh")
    given = problem(cell, 2, 2, FEATURES).cast("float32")
    with pytest.raises(Exception, match=r"(?i)race|uninitialized|phase|nan"):
        jax.block_until_ready(interpret(cell, given, Masks()))


# --- the same, lowered for a GPU ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "reverse"), EVERY)
def test_kernel_lowers(name: str, dtype: str, reverse: bool, use_tiling: Any) -> None:
    use_tiling(PLAIN)
    given = problem(cell_of(name), STEPS, BATCH, FEATURES).cast(dtype)
    program = lowered(cell_of(name), given, as_masks(STEPS, **MASKS), reverse)
    assert program.count("mosaic_gpu") >= 2


PARTS = {"one part": PLAIN._replace(parts=1), "four parts": PLAIN._replace(parts=4)}


@pytest.mark.first_case
@pytest.mark.parametrize("kind", TILINGS | PARTS)
def test_every_tiling_lowers(kind: str, use_tiling: Any) -> None:
    tiling = (TILINGS | PARTS)[kind]
    use_tiling(tiling, width=64 if kind in PARTS else 32)
    cell, rows = cell_of("gru-before", 32), tiling.rows * tiling.blocks
    given = problem(cell, STEPS, rows, FEATURES).cast("float32")
    assert "mosaic_gpu" in lowered(cell, given, Masks())


REAL = [
    ("lstm", "bfloat16", 64, 512),
    ("lstm-peephole", "float32", 16, 256),
    ("gru-after", "bfloat16", 200, 320),
    ("gru-before", "float16", 1, 100),
    ("gru-before", "float32", 64, 512),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "batch", "hidden"), REAL)
def test_real_sizes_lower(name: str, dtype: str, batch: int, hidden: int) -> None:
    """Lower with the tiling that a GPU would get; too much shared memory would be an error."""
    cell = cell_of(name, hidden)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES, jnp.dtype(dtype)))
    gx = jax.ShapeDtypeStruct((STEPS, batch, shapes.w_h.shape[1]), jnp.float32)
    state = jax.eval_shape(lambda: cell.initial_state(batch))

    def loss(params: Any, gx: Any, state: Any) -> Any:
        return hopper.run(Recurrence(cell, params, gx, state))[1].sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(shapes, gx, state)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("check", [True, False])
def test_sharded_rows_lower(check: bool) -> None:
    """Divide the rows over a mesh, with the weights on every device and their gradients summed."""
    cell = cell_of("lstm-peephole", 64)
    given = problem(cell, STEPS, 8, FEATURES).cast("bfloat16")
    gx = cell.project(given.params, given.xs)

    def loss(params: Any, gx: Any, state: Any) -> Any:
        final, ys = jax.shard_map(
            lambda *arrays: hopper.run(Recurrence(cell, *arrays)),
            mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
            in_specs=(P(), P(None, "data"), P("data")),
            out_specs=(P("data"), P(None, "data")),
            check_vma=check,
        )(params, gx, state)
        return ys.sum() + final.cell.sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(given.params, gx, given.state)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


# --- on a card ----------------------------------------------------------------------------------

hopper_here = getattr(jax.devices()[0], "compute_capability", "").startswith("9.")


@pytest.mark.skipif(not hopper_here, reason="waits for an H100 or H200")
@pytest.mark.parametrize("batch", [1, 64, 200])
@pytest.mark.parametrize("hidden", [128, 512, 1024])
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-peephole", "gru-before", "gru-after"])
def test_a_card_computes_the_same(name: str, hidden: int, batch: int) -> None:
    """Compare `unroll` with the scan, in the tilings that the search finds."""
    cell, steps = cell_of(name, hidden), 20
    masks = jax.tree.map(jnp.asarray, random_masks(steps, batch, resets=0.1))
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("bfloat16")
    got = library(cell, given, **masks, implementation="hopper")
    assert_close(got, library(cell, given, **masks, implementation="scan"), TOLERANCES["bfloat16"])


# --- the tiling ---------------------------------------------------------------------------------

SIZES = [(batch, hidden) for batch in (1, 70, 1000) for hidden in (1, 100, 512, 1024)]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru-before", "gru-after"])
def test_a_tiling_can_run(name: str, dtype: str) -> None:
    """All CTAs are on the GPU at once, every row and unit has a CTA, and no block is empty."""
    for batch, hidden in SIZES:
        cell, narrow = cell_of(name, hidden), jnp.dtype(dtype)
        tiling = search.search(cell, batch, narrow, MULTIPROCESSORS)
        assert tiling is not None and tiling.parts * tiling.groups <= MULTIPROCESSORS
        size, units = tiles.width(hidden), tiles.width(hidden) // tiling.parts
        assert size >= hidden and units * tiling.parts == size
        assert units * narrow.itemsize % 32 == 0
        assert tiling.rows % 8 == 0 and tiling.rows <= 64
        assert tiling.rows * tiling.blocks >= batch > tiling.rows * (tiling.blocks - 1)
        for memory, inner in ((tiling.forward, size), (tiling.backward, len(cell.GATES) * size)):
            assert size % memory.chunk == 0
            assert min(2, inner // memory.chunk) <= memory.slots <= inner // memory.chunk
            assert tiling.warpgroups * memory.slots <= tiles.BARRIERS
        for direction in DIRECTIONS:
            memory = tiling.memory(direction)
            taken = tiles.shared_bytes(cell, direction, tiling, memory, narrow)
            assert taken <= tiles.SHARED


@pytest.mark.slow
def test_more_rows_take_no_less_time() -> None:
    """The prediction of the cost model, for the tiling that the search picks."""
    cell, dtype = lstm(512), jnp.dtype("bfloat16")
    times = []
    for batch in (1, 16, 64, 128, 256, 512):
        tiling = search.search(cell, batch, dtype, MULTIPROCESSORS)
        assert tiling is not None
        times.append(sum(cost_model.microseconds(cell, tiling, dtype).values()))
    assert times == sorted(times)


def test_a_smaller_gpu_gets_a_smaller_tiling() -> None:
    tiling = search.search(lstm(1024), 64, jnp.dtype("bfloat16"), 78)
    assert tiling is not None and tiling.parts * tiling.groups <= 78


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_table_is_what_the_search_finds() -> None:
    """Check some of the rows that were not measured."""
    rows = search.table()
    assert rows
    for row in rows[::11]:
        cell = cell_of({"rnn": "rnn-tanh"}.get(row["cell"], row["cell"]), row["hidden"])
        assert row["multiprocessors"] == MULTIPROCESSORS
        if not row["measured"]:
            sizes = row["batch"], jnp.dtype(row["dtype"]), MULTIPROCESSORS
            tiling = search.search(cell, *sizes)
            assert search.read(row["tiles"]) == tiling


def as_json(tiling: Tiling) -> str:
    ways = {way: tiling.memory(way)._asdict() for way in DIRECTIONS}
    return json.dumps(tiling._asdict() | ways)


GOOD = Tiling(32, 16, 1, 4, 1, Memory(64, 8, 2), Memory(64, 12, 2))  # B, H = 64, 512


def test_the_environment_forces_a_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", as_json(GOOD))
    assert search.tiling_for(lstm(512), 64, "bfloat16") == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 33}, "33 parts do not divide 512 units"),
        ({"groups": 5}, "160 CTAs would wait for each other forever: 132 are on the GPU at once"),
        ({"rows": 8}, "4 blocks of 8 rows do not hold 64 rows"),
        ({"backward": Memory(64, 32, 8)}, "backward takes .* bytes of shared memory of 230400"),
    ],
)
def test_a_forced_tiling_that_cannot_run_is_refused(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", as_json(GOOD._replace(**change)))
    with pytest.raises(ValueError, match=f"JAXRNN_HOPPER_TILES: {message}"):
        search.tiling_for(lstm(512), 64, "bfloat16")


@pytest.mark.parametrize("text", ["{", "{}", "3", '{"parts": 2}'])
def test_a_forced_tiling_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", text)
    with pytest.raises(ValueError, match="JAXRNN_HOPPER_TILES is no tiling"):
        search.tiling_for(lstm(512), 64, "bfloat16")


@interpreted
def test_the_environment_forces_the_kernel_for_small_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = Alone(rows=16, blocks=4, forward=2, backward=2)
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", json.dumps(alone._asdict()))
    assert search.tiling_for(lstm(64), 64, "bfloat16") == alone
    with pytest.raises(ValueError, match="rows must be at most 0 here, not 16"):
        search.tiling_for(lstm(512), 64, "bfloat16")
    with pytest.raises(ValueError, match=r"forward takes .* bytes of shared memory of 230400"):
        search.tiling_for(lstm(512), 64, "float32")
    with pytest.raises(ValueError, match="4 blocks of 16 rows do not hold 65 rows"):
        search.tiling_for(lstm(64), 65, "bfloat16")
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", json.dumps(alone._replace(rows=40)._asdict()))
    with pytest.raises(ValueError, match="rows must be at most 32 here, not 40"):
        search.tiling_for(lstm(64), 64, "bfloat16")
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", json.dumps(alone._replace(backward=1)._asdict()))
    with pytest.raises(ValueError, match="backward must be at least 2, not 1"):
        search.tiling_for(lstm(64), 64, "bfloat16")


# --- what cannot run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "dtype", "capability", "message"),
    [
        (lstm(64), "float64", "9.0", "bfloat16, float16 or float32 weights, not float64"),
        (lstm(64), "bfloat16", "8.0", r"Hopper \(compute capability 9.0\).* an H100 has 8.0"),
        (lstm(64), "bfloat16", "10.0", "an H100 has 10.0"),
        (lstm(9000), "bfloat16", "9.0", "H = 9000 in bfloat16 does not fit: .* 132 multiproc"),
        (gru(2048), "float32", "9.0", "H = 2048 in float32 does not fit"),
        (gru(1024), "float32", "9.0", None),
        (rnn(1), "float16", "9.0", None),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    cell: Cell, dtype: str, capability: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu(capability))
    if message is None:
        assert explain(cell, (5, 2, 3), dtype, "hopper").implementation == "hopper"
        return
    with pytest.raises(ValueError, match=f"'hopper' cannot run this: .*{message}"):
        explain(cell, (5, 2, 3), dtype, "hopper")


def test_the_default_is_not_hopper_where_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu("9.0"))
    # cuDNN does not have this cell.
    assert explain(lstm(512, peephole=True), (5, 2, 3), "bfloat16").implementation == "xla"


@interpreted
class TestHopper(Conformance):
    implementation = "hopper"
    exact = "float32"
    narrow = ("bfloat16",)

    @pytest.fixture(autouse=True)
    def tiling(self, use_tiling: Any) -> None:
        """Divide every problem over two CTAs."""
        use_tiling(PLAIN)

    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        """See `Conformance`. The race detector is left to the tests above."""
        return interpret(cell, given, as_masks(len(given.xs), **masks), reverse, detect_races=False)
