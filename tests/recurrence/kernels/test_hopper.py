"""The Hopper kernels without a GPU: interpreted on the CPU with a detector of races, values and
gradients against the scan and the numpy oracle; lowered for a GPU in every cut that is interpreted and
in those that only a GPU can run (counters in L2, multicast); how they are cut, and what they refuse.
That NVIDIA's assembler takes them is shown in `test_hopper_compile.py`; whether a GPU runs them right
and fast, `benchmarks/hopper.sh` shows where there is one."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import explain, gru, lstm, rnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.kernels import hopper
from jaxrnn.recurrence.kernels.hopper import block as hopper_block
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper import search as hopper_search
from jaxrnn.recurrence.kernels.hopper import tiles as hopper_tiles
from jaxrnn.recurrence.kernels.hopper.residency import ROOM
from jaxrnn.recurrence.kernels.hopper.search import search
from jaxrnn.recurrence.kernels.hopper.tiles import CLUSTERS, Memory, Tiles
from jaxrnn.recurrence.problem import Masks
from tests.support.hopper import BATCH, FEATURES, MASKS, PLAIN, STEPS, cell_of, interpreted, on_gpu
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
CUTS = {
    "warpgroups": PLAIN._replace(warpgroups=2),
    "groups": PLAIN._replace(groups=2),
    "turns": PLAIN._replace(turns=2, forward=Memory(16, 3, 2, 2), backward=Memory(16, 3, 8, 2)),
    "streamed": PLAIN._replace(forward=Memory(8, 2, 2, 1), backward=Memory(8, 2, 4, 2)),
}
PAIRS = [
    ("warpgroups", "gru-before"),
    ("groups", "rnn-tanh"),
    ("turns", "gru-after"),
    ("streamed", "lstm-peephole"),
    ("streamed", "gru-before"),
]


def fitted(cell: Any, tiles: Tiles, width: int = 32) -> Tiles:
    """With no more resident chunks than this cell's weights have."""
    backward = tiles.backward
    chunks = width * len(cell.GATES) // backward.chunk
    resident = min(backward.resident, chunks)
    return tiles._replace(backward=backward._replace(resident=resident))


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a cut everybody's, with units padded to 32."""

    def use(tiles: Tiles, width: int = 32) -> None:
        monkeypatch.setattr(hopper, "tiles_for", lambda cell, *_: fitted(cell, tiles, width))
        monkeypatch.setattr(hopper, "width", lambda _: width)

    return use


def values_and_gradients(
    cell: Any, given: Problem, masks: Masks, reverse: bool = False, interpret: Any = None
) -> tuple[Any, Any]:
    """`oracle.library` by the Hopper kernels."""

    def loss(params: Any, xs: Any, state: Any) -> Any:
        gx = cell.project(params, xs)
        final, ys = hopper.run(cell, params, gx, state, masks, reverse, interpret=interpret)
        results = final, ys.astype(xs.dtype)
        products = jax.tree.map(lambda w, r: (w * r.astype(w.dtype)).sum(), given.weights, results)
        return sum(jax.tree.leaves(products)), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def interpret(
    cell: Any, given: Problem, masks: Masks, reverse: bool = False, detect_races: bool = True
) -> tuple[Any, Any]:
    """With a detector of races, which raises where it finds one."""
    how = plgpu.InterpretGPUParams(detect_races=detect_races, inline_mgpu="ignore")
    run = partial(values_and_gradients, cell, reverse=reverse, interpret=how)
    return jax.jit(run)(given, masks)


def lowered(cell: Any, given: Problem, masks: Masks, reverse: bool = False) -> str:
    """The program for a GPU."""
    run = partial(values_and_gradients, cell, reverse=reverse)
    return jax.jit(run).trace(given, masks).lower(lowering_platforms=("cuda",)).as_text()


def scan(cell: Any, given: Problem, reverse: bool = False, **masks: Any) -> tuple[Any, Any]:
    masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **masks, reverse=reverse, implementation="scan")


# --- values, gradients and races ----------------------------------------------------------------

EVERY = [
    pytest.param(name, dtype, reverse, id=f"{name}-{dtype}-{'reverse' if reverse else 'forward'}")
    for k, name in enumerate(NAMES)
    for dtype, reverse in (("float32", k % 2 == 0), ("bfloat16", k % 2 == 1))
]


@interpreted
@pytest.mark.parametrize(("name", "dtype", "reverse"), EVERY)
def test_kernel_is_scan(name: str, dtype: str, reverse: bool, cut: Any) -> None:
    """With resets and lengths, and units that are padding in one of the parts."""
    cut(PLAIN)
    cell = cell_of(name)
    given = problem(cell, STEPS, BATCH, FEATURES).cast(dtype)
    got = interpret(cell, given, as_masks(STEPS, **MASKS), reverse)
    assert_close(got, scan(cell, given, reverse, **MASKS), TOLERANCES[dtype])


@interpreted
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
def test_kernel_is_numpy(name: str, cut: Any) -> None:
    """Values and finite differences of the equations, without masks."""
    cut(PLAIN._replace(forward=Memory(8, 2, 2, 1), backward=Memory(8, 2, 8, 1)), width=16)
    cell = cell_of(name, 10)
    given = problem(cell, STEPS, 2, FEATURES).cast("float32")
    got = interpret(cell, given, Masks(None, None))
    assert_close(got, expected(cell, given.exact()), TOLERANCES["float32"])


@interpreted
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_every_cut_is_scan(kind: str, name: str, cut: Any) -> None:
    """Rows over warpgroups, groups and turns; inputs two steps ahead; weights that do not stay."""
    cut(CUTS[kind])
    tiles = CUTS[kind]
    cell, rows = cell_of(name), tiles.rows * tiles.blocks - 1
    rng = np.random.default_rng(0)
    masks = {
        "resets": rng.random((STEPS, rows)) < 0.3,
        "lengths": rng.integers(0, STEPS + 1, rows, np.int32),
    }
    given = problem(cell, STEPS, rows, FEATURES).cast("float32")
    got = interpret(cell, given, as_masks(STEPS, **masks))
    assert_close(got, scan(cell, given, **masks), TOLERANCES["float32"])


@interpreted
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
@pytest.mark.parametrize("slots", [2, 3, 8])
def test_a_packed_ring_is_scan(name: str, slots: int, cut: Any) -> None:
    """Slots that are as far apart as a block has rows, up to one for every chunk."""
    forward = Memory(16, min(slots, 2), 2, 1)
    cut(PLAIN._replace(rows=16, packed=True, forward=forward, backward=Memory(16, slots, 8, 1)))
    cell = cell_of(name)
    rng = np.random.default_rng(0)
    masks = {
        "resets": rng.random((STEPS, 13)) < 0.3,
        "lengths": rng.integers(0, STEPS + 1, 13, np.int32),
    }
    given = problem(cell, STEPS, 13, FEATURES).cast("float32")
    got = interpret(cell, given, as_masks(STEPS, **masks), detect_races=False)
    assert_close(got, scan(cell, given, **masks), TOLERANCES["float32"])


@interpreted
def test_float16(cut: Any) -> None:
    cut(PLAIN)
    given = problem(cell_of("lstm"), STEPS, BATCH, FEATURES).cast("float16")
    got = interpret(cell_of("lstm"), given, Masks(None, None))
    assert_close(got, scan(cell_of("lstm"), given), TOLERANCES["float16"])


@interpreted
def test_vmap_is_a_loop(cut: Any) -> None:
    """One launch after the other: together their CTAs would not fit the GPU, and would wait for ever."""
    cut(PLAIN)
    cell, none = cell_of("rnn-tanh"), Masks(None, None)
    problems = [problem(cell, 2, 2, FEATURES, seed).cast("float32") for seed in (0, 1)]
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    got = jax.vmap(lambda given: interpret(cell, given, none))(stack(*problems))
    assert_close(got, stack(*(scan(cell, given) for given in problems)), TOLERANCES["float32"])


@interpreted
@pytest.mark.parametrize("missing", ["wait_smem_to_gmem", "barrier_wait"])
def test_the_detector_finds_what_is_missing(
    missing: str, cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that it finds nothing above would mean nothing: without one of the waits there is a race."""
    cut(PLAIN)
    monkeypatch.setattr(hopper_block.plgpu, missing, lambda *_, **__: None)
    cell = cell_of("rnn-tanh")
    given = problem(cell, 2, 2, FEATURES).cast("float32")
    with pytest.raises(Exception, match=r"(?i)race|uninitialized|phase|nan"):
        jax.block_until_ready(interpret(cell, given, Masks(None, None)))


# --- the same, lowered for a GPU ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype", "reverse"), EVERY)
def test_kernel_lowers(name: str, dtype: str, reverse: bool, cut: Any) -> None:
    cut(PLAIN)
    given = problem(cell_of(name), STEPS, BATCH, FEATURES).cast(dtype)
    program = lowered(cell_of(name), given, as_masks(STEPS, **MASKS), reverse)
    assert program.count("mosaic_gpu") >= 2


ON_A_GPU_ALONE = {  # the interpreter has no counters for a whole grid
    "counters": PLAIN._replace(parts=2, cluster=1),
    "counters and multicast": PLAIN._replace(parts=4, cluster=2),
    "alone": PLAIN._replace(parts=1, cluster=1),
}


@pytest.mark.parametrize("kind", CUTS | ON_A_GPU_ALONE)
def test_every_cut_lowers(kind: str, cut: Any) -> None:
    tiles = (CUTS | ON_A_GPU_ALONE)[kind]
    cut(tiles, width=64 if kind in ON_A_GPU_ALONE else 32)
    cell, rows = cell_of("gru-before", 32), tiles.rows * tiles.blocks
    given = problem(cell, STEPS, rows, FEATURES).cast("float32")
    assert "mosaic_gpu" in lowered(cell, given, Masks(None, None))


REAL = [
    ("lstm", "bfloat16", 64, 512),
    ("lstm-peephole", "float32", 16, 256),
    ("gru-after", "bfloat16", 200, 320),
    ("gru-before", "float16", 1, 100),
    ("gru-before", "float32", 64, 512),  # 16 peers, of which each fetches a part for all
]


@pytest.mark.parametrize(("name", "dtype", "batch", "hidden"), REAL)
def test_real_sizes_lower(name: str, dtype: str, batch: int, hidden: int) -> None:
    """In the cut that a GPU would get. More shared memory than there is would not lower."""
    cell = cell_of(name, hidden)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES, jnp.dtype(dtype)))
    gx = jax.ShapeDtypeStruct((STEPS, batch, shapes.w_h.shape[1]), jnp.float32)
    state = jax.eval_shape(lambda: cell.initial_state(batch))

    def loss(params: Any, gx: Any, state: Any) -> Any:
        return hopper.run(cell, params, gx, state, Masks(None, None), False)[1].sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(shapes, gx, state)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("check", [True, False])
def test_sharded_rows_lower(check: bool) -> None:
    """Rows of the batch over a mesh, the weights everywhere, and their gradient summed."""
    cell = cell_of("lstm-peephole", 64)
    given = problem(cell, STEPS, 8, FEATURES).cast("bfloat16")
    gx = cell.project(given.params, given.xs)

    def loss(params: Any, gx: Any, state: Any) -> Any:
        run = partial(hopper.run, cell, masks=Masks(None, None), reverse=False)
        final, ys = jax.shard_map(
            lambda *a: run(*a),
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
@pytest.mark.parametrize("hidden", [64, 512, 1024])
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-peephole", "gru-before", "gru-after"])
def test_a_card_computes_the_same(name: str, hidden: int, batch: int) -> None:
    """Through `unroll`, in the cuts that the search finds for it."""
    cell, steps = cell_of(name, hidden), 20
    rng = np.random.default_rng(0)
    masks = {
        "resets": jnp.asarray(rng.random((steps, batch)) < 0.1),
        "lengths": jnp.asarray(rng.integers(0, steps + 1, batch, np.int32)),
    }
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("bfloat16")
    got = library(cell, given, **masks, implementation="pallas")
    assert_close(got, library(cell, given, **masks, implementation="scan"), TOLERANCES["bfloat16"])


# --- the cut ------------------------------------------------------------------------------------

SIZES = [(batch, hidden) for batch in (1, 70, 1000) for hidden in (1, 100, 512, 2048)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru-before", "gru-after"])
def test_a_cut_can_run(name: str, dtype: str) -> None:
    """All CTAs are on the GPU at once, every row and unit is somebody's, and no block has none."""
    for batch, hidden in SIZES:
        cell, narrow = cell_of(name, hidden), jnp.dtype(dtype)
        tiles = search(cell, batch, narrow, ROOM)
        assert tiles is not None
        assert tiles.parts * tiles.groups <= ROOM[CLUSTERS.index(tiles.cluster)]
        assert tiles.parts % tiles.cluster == 0
        size, units = hopper_tiles.width(hidden), hopper_tiles.width(hidden) // tiles.parts
        assert size >= hidden and units * tiles.parts == size
        assert units * narrow.itemsize % 32 == 0
        assert tiles.rows % 8 == 0 and tiles.rows <= 64
        assert tiles.rows * tiles.blocks >= batch > tiles.rows * (tiles.blocks - 1)
        for memory, inner in ((tiles.forward, size), (tiles.backward, len(cell.GATES) * size)):
            assert size % memory.chunk == 0
            left = inner // memory.chunk - memory.resident
            assert left >= 0 and left % hopper_tiles.STREAM == 0
            assert min(2, inner // memory.chunk) <= memory.slots <= inner // memory.chunk
            assert tiles.warpgroups * memory.slots <= hopper_tiles.BARRIERS
        for direction in ("forward", "backward"):
            memory = getattr(tiles, direction)
            taken = hopper_tiles.shared_bytes(cell, direction, tiles, memory, narrow)
            assert taken <= hopper_tiles.SHARED


def test_more_rows_take_no_less_time() -> None:
    """By the model, of the cut that it picks."""
    cell, dtype = lstm(512), jnp.dtype("bfloat16")
    times = []
    for batch in (1, 16, 64, 128, 256, 512):
        tiles = search(cell, batch, dtype, ROOM)
        assert tiles is not None
        times.append(sum(hopper_model.microseconds(cell, tiles, dtype).values()))
    assert times == sorted(times)


def test_a_smaller_gpu_gets_a_smaller_cut() -> None:
    room = hopper_residency.smaller(78)
    assert max(room) == 78
    tiles = search(lstm(1024), 64, jnp.dtype("bfloat16"), room)
    assert tiles is not None and tiles.parts * tiles.groups <= 78


@pytest.mark.usefixtures("unchecked")
def test_the_table_is_what_the_search_finds() -> None:
    """But for rows that were measured; of the others a few are enough."""
    rows = hopper_search.table()
    assert rows
    for row in rows[::11]:
        cell = cell_of({"rnn": "rnn-tanh"}.get(row["cell"], row["cell"]), row["hidden"])
        assert row["multiprocessors"] == ROOM[0]
        if not row["measured"]:
            tiles = search(cell, row["batch"], jnp.dtype(row["dtype"]), ROOM)
            assert hopper_search.read(row["tiles"]) == tiles


def as_json(tiles: Tiles) -> str:
    ways = {way: getattr(tiles, way)._asdict() for way in ("forward", "backward")}
    return json.dumps(tiles._asdict() | ways)


GOOD = Tiles(32, 1, 16, 1, 4, 1, Memory(64, 8, 8, 2), Memory(64, 12, 32, 2))  # B, H = 64, 512


def test_the_environment_forces_a_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", as_json(GOOD))
    assert hopper_search.tiles_for(lstm(512), 64, "bfloat16") == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 33}, "33 parts in clusters of 1 do not divide 512 units"),
        ({"cluster": 3}, "32 parts in clusters of 3 do not divide"),
        ({"groups": 5}, "160 CTAs .* would wait for each other for ever: 132 are resident at once"),
        ({"cluster": 16}, "128 CTAs in clusters of 16 .* 96 are resident"),
        ({"rows": 8}, "4 blocks of 8 rows do not hold 64 rows"),
        ({"backward": Memory(64, 32, 32, 8)}, "backward takes .* bytes of shared memory of 230400"),
    ],
)
def test_a_forced_tiling_that_cannot_run_is_refused(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", as_json(GOOD._replace(**change)))
    with pytest.raises(ValueError, match=f"JAXRNN_HOPPER_TILES: {message}"):
        hopper_search.tiles_for(lstm(512), 64, "bfloat16")


@pytest.mark.parametrize("text", ["{", "{}", "3", '{"parts": 2}'])
def test_a_forced_tiling_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRNN_HOPPER_TILES", text)
    with pytest.raises(ValueError, match="JAXRNN_HOPPER_TILES is no tiling"):
        hopper_search.tiles_for(lstm(512), 64, "bfloat16")


def test_the_environment_forces_the_size_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 8):
        monkeypatch.setenv("JAXRNN_HOPPER_CLUSTER", str(size))
        tiles = hopper_search.tiles_for(lstm(512), 64, "bfloat16")
        assert tiles is not None and tiles.cluster == size
    monkeypatch.setenv("JAXRNN_HOPPER_CLUSTER", "5")
    with pytest.raises(ValueError, match=r"JAXRNN_HOPPER_CLUSTER must be one of 1, 2, .* not '5'"):
        hopper_search.tiles_for(lstm(512), 64, "bfloat16")


# --- how many CTAs are resident -----------------------------------------------------------------


def test_a_tiling_of_the_table_that_is_not_resident_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a card where fewer clusters find their place than on the one that the table is for."""
    known = GOOD._replace(parts=16, cluster=8)
    place = ROOM[0], "lstm", "bfloat16", 512, 64
    monkeypatch.setattr(hopper_search, "_known", lambda: {place: known})
    assert hopper_search.tiles_for(lstm(512), 64, "bfloat16") == known
    cramped = (132, 132, 116, 56, 48)
    monkeypatch.setattr(hopper_residency, "room", lambda: cramped)
    tiles = hopper_search.tiles_for(lstm(512), 64, "bfloat16")
    assert tiles is not None and tiles != known
    assert tiles.parts * tiles.groups <= cramped[CLUSTERS.index(tiles.cluster)]


def test_a_gpu_whose_driver_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since CTAs that are not resident would let the others wait for ever."""
    device = on_gpu("9.0")
    device.local_hardware_id = 99
    monkeypatch.setattr(accelerator, "device", lambda: device)
    reason = hopper_search.unsupported_reason(lstm(64), 2, "bfloat16")
    assert reason is not None and "how many CTAs are resident" in reason


@pytest.mark.skipif(not hopper_here, reason="waits for an H100 or H200")
def test_the_driver_of_a_card_says_how_many_are_resident() -> None:
    room = hopper_residency.asked(0)
    assert all(ours <= theirs for ours, theirs in zip(ROOM, room, strict=True))


# --- what cannot run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "dtype", "capability", "message"),
    [
        (lstm(64), "float64", "9.0", "bfloat16, float16 or float32 weights, not float64"),
        (lstm(64), "bfloat16", "8.0", r"Hopper \(compute capability 9.0\).* an H100 has 8.0"),
        (lstm(64), "bfloat16", "10.0", "an H100 has 10.0"),
        (lstm(9000), "bfloat16", "9.0", "H = 9000 in bfloat16 does not fit: .* 132 multiproc"),
        (gru(2048), "float32", "9.0", None),
        (rnn(1), "float16", "9.0", None),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    cell: Cell, dtype: str, capability: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu(capability))
    if message is None:
        assert explain(cell, (5, 2, 3), dtype, "pallas").implementation == "pallas"
        return
    with pytest.raises(ValueError, match=f"'pallas' cannot run this: .*{message}"):
        explain(cell, (5, 2, 3), dtype, "pallas")


def test_nothing_is_taken_by_itself_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: on_gpu("9.0"))
    assert explain(lstm(512), (5, 2, 3), "bfloat16").implementation == "xla"
