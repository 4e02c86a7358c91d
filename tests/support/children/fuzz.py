"""Calls every FFI handler of the C++ recurrence with arrays of wrong sizes, under an address sanitizer.

A program of its own, since the sanitizer must be loaded before anything else: `tests/recurrence/kernels/test_native.py` starts
it with LD_PRELOAD. Valid calls are recorded from real problems; then each is made again with one array
of another shape or dtype, or with another attribute. It must be refused, unless it is valid too. Prints
how many calls of each handler were refused. A read or write outside of an array ends the process.
"""  # noqa: E501

import json
import random
import sys
from collections import Counter, defaultdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import gru, lstm, rnn
from jaxrnn.recurrence.api import unroll, unroll_projected
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.problem import Lookup

EACH = 2  # changes that are tried of each array and attribute, of some hundred possible ones
FREE = (  # what may have several values beside the same other arguments
    "jaxrnn_forward cell",
    "jaxrnn_backward cell",
    "jaxrnn_forward arguments 0",  # rows of the table
    "jaxrnn_pack arguments 0",  # K of weights, whose packed form is padded
    "jaxrnn_pack cell",
    "jaxrnn_pack form",
    "jaxrnn_pack gates",
    "jaxrnn_back results 0",  # D, which is padded in the packed weights
    "jaxrnn_outer arguments 1",  # columns of d
    "jaxrnn_outer first",
    "jaxrnn_sum_equal results 0",  # rows of the table
)
PROBLEMS = [  # cell, steps, rows, dtype
    (rnn(3), 5, 2, "float32"),
    (lstm(17), 35, 1, "bfloat16"),
    (lstm(5, peephole=True), 3, 11, "float32"),
    (gru(18), 4, 9, "bfloat16"),
    (gru(1, reset="after"), 1, 1, "bfloat16"),
    (gru(70, reset="after"), 5, 2, "float32"),
]


class Spec(NamedTuple):
    """One call: shapes and dtypes of its arrays, and its attributes."""

    name: str
    results: tuple[jax.ShapeDtypeStruct, ...]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    attributes: tuple[tuple[str, Any], ...]

    def run(self) -> None:
        def call(*arguments: Any) -> Any:
            return ffi_call(self.name, list(self.results))(*arguments, **dict(self.attributes))

        jax.block_until_ready(jax.jit(call)(*map(filled, self.arguments)))


ffi_call = jax.ffi.ffi_call
rng = np.random.default_rng(0)


def filled(array: jax.ShapeDtypeStruct) -> jax.Array:
    """Small numbers, among them tokens that are out of range."""
    return jnp.asarray(rng.integers(-3, 15, array.shape), array.dtype)


def record_calls() -> list[Spec]:
    """The calls that real problems make; they are traced, not run."""
    recorded: dict[Spec, None] = {}

    def recording(name: str, results: Any, **how: Any) -> Any:
        def call(*arguments: Any, **attributes: Any) -> Any:
            shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments)
            recorded[Spec(name, tuple(results), shapes, tuple(attributes.items()))] = None
            return ffi_call(name, results, **how)(*arguments, **attributes)

        return call

    jax.ffi.ffi_call = recording
    for cell, steps, batch, dtype in PROBLEMS:
        params = cell.init(jax.random.key(0), 6, dtype)
        tokens = jnp.zeros((steps, batch), jnp.int32)
        masks = {"resets": tokens > 0, "lengths": jnp.zeros(batch, jnp.int32)}

        def loss(params: Any, xs: Any, cell: Any, tokens: Any, masks: Any) -> Any:
            gx = cell.project(params, xs)
            lookup = Lookup(gx[0], tokens)
            final, ys = unroll(cell, params, xs, implementation="native")
            run = partial(unroll_projected, cell, params, state=final, implementation="native")
            _, looked = run(lookup, **masks, batch_first_memory=True)
            _, projected = run(gx, reverse=True)
            return sum((a**2).sum() for a in (ys, looked, projected))

        slope = partial(jax.grad(loss, (0, 1)), cell=cell, tokens=tokens, masks=masks)
        xs = jnp.zeros((steps, batch, 6), dtype)
        jax.eval_shape(slope, params, xs)
        several = jax.tree.map(lambda p: jnp.stack([p] * 3), params)
        jax.eval_shape(jax.vmap(slope, (0, None)), several, xs)
    jax.ffi.ffi_call = ffi_call
    return list(recorded)


def other_shapes(array: jax.ShapeDtypeStruct) -> list[jax.ShapeDtypeStruct]:
    """Shapes that a caller's mistake may give this array, and other dtypes."""
    shapes = {
        (),
        (0,),
        (1,),
        (*array.shape, 1),
        (1, *array.shape),
        array.shape[1:],
        array.shape[::-1],
    }
    for axis, size in enumerate(array.shape):
        for other in (0, size - 1, size + 1, 2 * size, 1000):
            shapes.add((*array.shape[:axis], max(other, 0), *array.shape[axis + 1 :]))
    found = [jax.ShapeDtypeStruct(s, array.dtype) for s in sorted(shapes - {array.shape})]
    return [*found, *(jax.ShapeDtypeStruct(array.shape, d) for d in (jnp.bfloat16, jnp.int8))]


def altered(spec: Spec) -> list[tuple[str, Spec]]:
    """The call with one thing changed, and what that was."""
    found = []
    for field in ("arguments", "results"):
        arrays = getattr(spec, field)
        for n, array in enumerate(arrays):
            for other in other_shapes(array):
                changed = (*arrays[:n], other, *arrays[n + 1 :])
                found.append((f"{field} {n}", spec._replace(**{field: changed})))
    values: dict[str, Any] = {"cell": range(-1, 7), "first": (-1, 1, 10**9, 2**62)}
    values |= {"form": (-1, 0, 1, 2, 3), "gates": (-1, 0, 1, 3, 4)}
    for name, value in spec.attributes:
        for other in values.get(name, ()):
            if other != value:
                changed = {**dict(spec.attributes), name: np.int64(other)}
                found.append((name, spec._replace(attributes=tuple(changed.items()))))
    return found


def main() -> None:
    # without optimisation it compiles in 10 s instead of 20, and the problems here are small
    LIBRARY.flags = (*(f for f in LIBRARY.flags if f != "-O3"), "-O0", "-fsanitize=address")
    if reason := LIBRARY.unavailable_reason:
        sys.exit(reason)
    specs = record_calls()
    assert {spec.name for spec in specs} == set(LIBRARY.handlers)
    for spec in specs:
        spec.run()
    choices = defaultdict(list)
    for spec in specs:
        for what, other in altered(spec):
            choices[f"{spec.name} {what}"].append(other)
    refused = Counter[str]()
    for what, others in choices.items():
        for other in random.Random(0).sample(others, EACH):
            try:
                other.run()
            except jax.errors.JaxRuntimeError:
                refused[other.name] += 1
            else:
                assert what in FREE or leaves_out(what, other), f"{what} was not refused: {other}"
    print(json.dumps(refused))


def leaves_out(what: str, spec: Spec) -> bool:
    """Whether the array that was changed has no entries: it counts as one that is not there."""
    field, _, index = what.partition(" ")[2].partition(" ")
    return getattr(spec, field)[int(index)].size == 0


if __name__ == "__main__":
    main()
