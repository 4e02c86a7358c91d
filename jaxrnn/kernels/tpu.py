"""A cell over time on a TPU, as Pallas kernels: the recurrent weights stay on the chip.

One kernel runs the recurrence forward, one backward. Each walks over blocks of time in order, for
every block of rows of the batch:

    w_h [H, G]                 whole, fetched from HBM once a call, kept in VMEM
    gx [T, B, G]               streamed, a block of a few steps and some rows at a time
    h, c [B, H]                in VMEM from the first step to the last (as the final state's block)
    gates, previous h and c    streamed out, only where a backward pass will want them

The gates overwrite gx. They stay in float32; the hidden state that entered each step is kept in the
weights' dtype, in which every product takes it, the cell in float32. The backward kernel walks time
the other way and runs only the recurrent chain

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

with W_h^T in VMEM; dW_h is one large product of what the two kernels streamed out
(`jaxrnn.kernels.xla.weight_gradients`). What a step computes is in `jaxrnn.kernels.tpu_cells`.

Rows of B and steps of T that do not fill the last block are cut off by Pallas; H is padded here to
whole tiles of 128 with zeros, which stay without effect on every real unit, and cropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.cells import GRU, LSTM
from jaxrnn.kernels import tpu_cells, xla
from jaxrnn.kernels.inputs import Lookup, Masks
from jaxrnn.kernels.layouts import Rows
from jaxrnn.kernels.tpu_tiles import LANES, MIB, Tiles, cost, obstacle, round_up, tiles_for, vmem
from jaxrnn.shapes import Array, Float


def run(
    cell: Any,
    params: Any,
    gx: Float[Array, "T B G"] | Lookup,
    state: Any,
    masks: Masks,
    reverse: bool,
    *,
    interpret: Any = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H] in float32, differentiable by hand.

    Args:
      cell, params, gx, state, masks, reverse: as for `jaxrnn.kernels.xla.run`; params in float32 or
        bfloat16.
      interpret: run as plain JAX on any device, for tests: True, or a `pltpu.InterpretParams`.

    Raises:
      ValueError: where `obstacle` names one.
    """
    steps, batch, _ = gx.shape
    if not steps:
        return state, jnp.zeros((0, batch, cell.hidden), gx.dtype)
    reason = obstacle(cell, batch, params.w_h.dtype)
    if reason:
        raise ValueError(f"the TPU kernels cannot run this: {reason}")
    wide_cell = dataclasses.replace(cell, hidden=round_up(cell.hidden, LANES))
    size, gates = cell.hidden, len(cell.GATES)
    pad = partial(_pad, size=size, to=wide_cell.hidden)
    weights = _vectors(params._replace(w_x=None, b=None), pad)
    weights = weights._replace(w_h=pad(pad(params.w_h, gates).T, 1).T)
    gx = gx._replace(table=pad(gx.table, gates)) if isinstance(gx, Lookup) else pad(gx, gates)
    state = jax.tree.map(lambda s: pad(s, 1), state)
    arguments = _vary((weights, gx, state, masks))
    final, ys = _run(wide_cell, reverse, interpret, *arguments)
    return jax.tree.map(lambda s: s[:, :size], final), ys[..., :size]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
) -> tuple[Any, Array]:
    out = _forward_call(cell, reverse, interpret, weights, gx, state, masks, keep=False)
    return _state(state, out), out["ys"]


def _forward(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    out = _forward_call(cell, reverse, interpret, weights, gx, state, masks, keep=True)
    kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
    lookup = gx if isinstance(gx, Lookup) else None
    return (_state(state, out), out["ys"]), (weights, lookup, kept, masks)


def _backward(
    cell: Any, reverse: bool, interpret: Any, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any, Masks]:
    weights, lookup, kept, masks = saved
    d_final, d_ys = cotangents
    out = _backward_call(cell, reverse, interpret, weights, kept, d_final, d_ys, masks)
    d_weights = _weight_gradients(cell, weights, d_final, kept, out["d_gx"])
    d_state = d_final._replace(**{name: out[f"d_{name}"] for name in d_final._fields})
    if lookup is not None:
        d_table = Rows.sum_equal(lookup, out["d_gx"])
        return d_weights, Lookup(d_table, None), d_state, Masks(None, None)  # type: ignore[arg-type]
    return d_weights, out["d_gx"].astype(d_ys.dtype), d_state, Masks(None, None)


_run.defvjp(_forward, _backward)


def _weight_gradients(cell: Any, weights: Any, state: Any, kept: Any, d_gx: Array) -> Any:
    """From what the kernels streamed out, by the rules of `jaxrnn.kernels.xla`."""
    gates = tuple(jnp.split(kept["gates"], len(cell.GATES), axis=-1))
    previous = state._replace(hidden=kept["previous_hidden"].astype(jnp.float32))
    states = previous
    if isinstance(cell, LSTM):
        i, f, g, _ = gates
        previous = previous._replace(cell=kept["previous_cell"])
        states = previous._replace(cell=f * kept["previous_cell"] + i * g)
    if "q" in kept:
        gates = (*gates, kept["q"])
    return xla.weight_gradients(cell, weights, previous, states, gates, d_gx)


# --- the two calls ------------------------------------------------------------------------------


def _forward_call(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
    keep: bool,
) -> dict[str, Array]:
    gx = gx.project() if isinstance(gx, Lookup) else gx
    steps, batch, _ = gx.shape
    size = cell.hidden
    wide, narrow = partial(_Like, dtype=jnp.float32), partial(_Like, dtype=weights.w_h.dtype)
    outputs = {"ys": wide((steps, batch, size))}
    outputs |= {name: wide((batch, size)) for name in state._fields}
    scratch: dict[str, _Like] = {}
    entering = {"previous_hidden": narrow((steps, batch, size))}
    if keep:
        outputs |= {"gates": wide(gx.shape)} | entering
        if isinstance(cell, LSTM):
            outputs["previous_cell"] = wide((steps, batch, size))
        if isinstance(cell, GRU) and cell.reset == "after":
            outputs["q"] = wide((steps, batch, size))
    else:
        scratch |= entering
    if isinstance(cell, GRU) and cell.reset == "before":
        scratch |= {"z": wide((batch, size)), "rh": narrow((batch, size))}
    return _call(
        cell,
        "forward",
        reverse,
        interpret,
        streamed={"gx": gx, "marks": _marks(masks)},
        initial=state._asdict(),
        resident=_floats(weights),
        outputs=outputs,
        scratch=scratch,
        aliases={"gx": "gates"} if keep else {},
    )


def _backward_call(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    kept: dict[str, Array],
    d_final: Any,
    d_ys: Array,
    masks: Masks,
) -> dict[str, Array]:
    _, batch, size = d_ys.shape
    wide, narrow = partial(_Like, dtype=jnp.float32), partial(_Like, dtype=weights.w_h.dtype)
    used = {k: x for k, x in kept.items() if isinstance(cell, GRU) or k != "previous_hidden"}
    scratch: dict[str, _Like] = {}
    if isinstance(cell, GRU) and cell.reset == "after":
        scratch["d_q"] = narrow((batch, size))
    resident = _floats(weights)
    resident["w_t"] = resident.pop("w_h").T
    initial = {f"d_{name}": d for name, d in d_final._asdict().items()}
    return _call(
        cell,
        "backward",
        not reverse,
        interpret,
        streamed=used | {"d_ys": d_ys, "marks": _marks(masks)},
        initial=initial,
        resident=resident,
        outputs={"d_gx": narrow(kept["gates"].shape)}
        | {name: wide((batch, size)) for name in initial},
        scratch=scratch,
    )


class _Like(NamedTuple):
    """An array to come: [T, B, N] is streamed by blocks, [B, N] stays in place."""

    shape: tuple[int, ...]
    dtype: Any


def _call(
    cell: Any,
    direction: str,
    reverse: bool,
    interpret: Any,
    *,
    streamed: Mapping[str, Array | None],
    initial: dict[str, Array],
    resident: dict[str, Array],
    outputs: dict[str, _Like],
    scratch: dict[str, _Like],
    aliases: dict[str, str] | None = None,
) -> dict[str, Array]:
    """One kernel over blocks of rows and, in order, of time. Names are those in `tpu_cells`."""
    streamed = {name: x for name, x in streamed.items() if x is not None}
    first = {f"initial_{name}": x for name, x in initial.items()}
    inputs: dict[str, Any] = {**streamed, **first, **resident}
    steps, batch = outputs["d_gx" if direction == "backward" else "ys"].shape[:2]
    w = resident["w_t" if direction == "backward" else "w_h"]
    tiles = tiles_for(cell, steps, batch, w.dtype)
    assert tiles is not None  # `run` has asked
    blocks = pl.cdiv(steps, tiles.steps)

    def block(x: Any, whole: bool = False) -> pl.BlockSpec:
        if whole:
            return pl.BlockSpec(x.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))
        if len(x.shape) == 2:
            return pl.BlockSpec((tiles.rows, x.shape[1]), lambda b, t: (b, 0))
        return pl.BlockSpec(
            (tiles.steps, tiles.rows, x.shape[2]),
            lambda b, t: (blocks - 1 - t if reverse else t, b, 0),
        )

    def shape_in_block(x: _Like) -> tuple[int, ...]:
        return (tiles.rows, x.shape[-1])

    varying = jax.typeof(w).manual_axis_type
    results = pl.pallas_call(
        partial(
            _kernel,
            cell=cell,
            phases=getattr(tpu_cells.phases(cell), direction),
            names=(*inputs, *outputs, *scratch),
            by_step=(*streamed, *(k for k, x in outputs.items() if len(x.shape) == 3)),
            initial=tuple(initial),
            total=steps,
            tiles=tiles,
            reverse=reverse,
        ),
        grid=(pl.cdiv(batch, tiles.rows), blocks),
        in_specs=[block(x, name in resident) for name, x in inputs.items()],
        out_specs=[block(x) for x in outputs.values()],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying)
            for x in outputs.values()
        ],
        scratch_shapes=[pltpu.VMEM(shape_in_block(x), x.dtype) for x in scratch.values()],
        input_output_aliases={
            list(inputs).index(i): list(outputs).index(o) for i, o in (aliases or {}).items()
        },
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem() * MIB
        ),
        cost_estimate=cost(cell, steps, batch, [*inputs.values(), *outputs.values()]),
        interpret=interpret,
        name=f"{type(cell).__name__.lower()}_{direction}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _kernel(
    *refs: Any,
    cell: Any,
    phases: tuple[tpu_cells.Phase, ...],
    names: tuple[str, ...],
    by_step: tuple[str, ...],
    initial: tuple[str, ...],
    total: int,
    tiles: Tiles,
    reverse: bool,
) -> None:
    """One block of rows over one block of time: every phase of every step, tile by tile."""
    named = dict(zip(names, refs, strict=True))
    now, blocks = pl.program_id(1), pl.num_programs(1)

    @pl.when(now == 0)
    def _() -> None:
        for name in initial:
            named[name][...] = named[f"initial_{name}"][...]

    block = blocks - 1 - now if reverse else now
    here_steps = (
        tiles.steps
        if total % tiles.steps == 0
        else jnp.minimum(tiles.steps, total - block * tiles.steps)
    )

    def step(s: Array, _: None) -> None:
        t = here_steps - 1 - s if reverse else s
        r = SimpleNamespace(**{k: None for k in _OPTIONAL} | named)
        for name in by_step:
            setattr(r, name, named[name].at[t])
        if "marks" in by_step:
            r.fresh, r.active = r.marks[:, 0:1], r.marks[:, 1:2]

        for phase in phases:

            def tile(j: Array, _: None, phase: tpu_cells.Phase = phase) -> None:
                def here(k: int) -> Any:
                    start = k * cell.hidden + j * tiles.width
                    return pl.ds(pl.multiple_of(start, LANES), tiles.width)

                phase(cell, r, here)

            lax.fori_loop(0, cell.hidden // tiles.width, tile, None)

    lax.fori_loop(0, here_steps, step, None)


_OPTIONAL = ("gates", "previous_cell", "q", "fresh", "active")


# --- arrays in and out --------------------------------------------------------------------------


def _pad(x: Array, gates: int, *, size: int, to: int) -> Array:
    """Each of the gates side by side in the last axis filled up with zeros from `size` units to `to`."""
    if size == to:
        return x
    x = x.reshape(*x.shape[:-1], gates, size)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, to - size)])
    return x.reshape(*x.shape[:-2], gates * to)


def _vectors(weights: Any, pad: Any) -> Any:
    """The cell's weights beside w_h, padded."""
    others = {k: w for k, w in weights._asdict().items() if k != "w_h" and w is not None}
    return weights._replace(**{k: pad(w, 1) for k, w in others.items()})


def _floats(weights: Any) -> dict[str, Array]:
    """w_h as it is; vectors as float32 [., H], ready to meet the gates."""
    rest = {k: w for k, w in weights._asdict().items() if w is not None and k != "w_h"}
    rest = {k: jnp.atleast_2d(w.astype(jnp.float32)) for k, w in rest.items()}
    return {"w_h": weights.w_h} | rest


def _marks(masks: Masks) -> Array | None:
    """[T, B, 2] float32: whether a row starts afresh, whether it moves; None where all are alike."""
    if masks.reset is None and masks.active is None:
        return None
    known: Any = masks.reset if masks.reset is not None else masks.active
    reset = jnp.zeros_like(known) if masks.reset is None else masks.reset
    active = jnp.ones_like(known) if masks.active is None else masks.active
    return jnp.stack([reset, active], axis=-1).astype(jnp.float32)


def _state(like: Any, out: dict[str, Array]) -> Any:
    return like._replace(**{name: out[name] for name in like._fields})


def _vary(tree: Any) -> Any:
    """Inside `shard_map`, every array varies over the axes that any of them varies over.

    A kernel's arrays must; the gradient of one that was alike everywhere is then summed by itself.
    """
    axes = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)]
    union = frozenset().union(*axes)

    def cast(x: Array) -> Array:
        missing = tuple(union - jax.typeof(x).manual_axis_type.varying)
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
