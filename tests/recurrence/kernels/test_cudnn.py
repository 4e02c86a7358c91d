"""The cuDNN kernel: values, gradients, several layers, and JAX's transformations.

A stand-in for cuDNN computes on the host (tests/support/cudnn). The last tests call cuDNN itself and
wait for a GPU.
"""

import itertools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxrnn import charlm, unroll
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.interop.torch import names, to_torch
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence import problem as recurrence
from jaxrnn.recurrence.kernels import cudnn, xla
from jaxrnn.recurrence.kernels.cudnn import algorithm, calls, library, stack, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig, allows_tf32
from jaxrnn.recurrence.problem import Dense, Lookup, Masks
from tests.support import cudnn as host
from tests.support.conformance import Conformance
from tests.support.cudnn.calls import NAMES, NO_MASKS, loss_of, lowered, make_config, on_host
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import (
    BATCH,
    CELLS,
    FEATURES,
    MASKS,
    STEPS,
    Problem,
    as_masks,
    both_ways,
    problem,
)

ROOT = Path(__file__).parents[3]

on_nvidia = pytest.mark.skipif(
    not any(device.platform == "gpu" for device in jax.devices()), reason="waits for an NVIDIA GPU"
)


class CudnnConformance(Conformance):
    """The conformance tests for the cells and masks that cuDNN supports, which has no resets."""

    implementation = "cudnn"

    @pytest.mark.first_case
    @both_ways
    @pytest.mark.parametrize("mask", ["plain", "lengths"])
    @pytest.mark.parametrize("name", NAMES)
    def test_values_and_gradients(self, name: str, mask: str, reverse: bool) -> None:
        given = problem(CELLS[name], STEPS, BATCH, FEATURES)
        self.check(CELLS[name], self.exact, given, reverse=reverse, **MASKS[mask])

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["lstm", "gru-after"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_narrow_dtypes(self, dtype: str, name: str) -> None:  # type: ignore[override]
        given = problem(CELLS[name], STEPS, BATCH, FEATURES)
        self.check(CELLS[name], dtype, given, **MASKS["lengths"])


@pytest.mark.usefixtures("stand_in")
class TestWithStandIn(CudnnConformance):
    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        active = None
        if "lengths" in masks:
            active = as_masks(given.xs.shape[0], lengths=masks["lengths"]).active
        return on_host(cell, given, Masks(None, active), reverse=reverse)


# --- the compiled program -----------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", NAMES)
def test_cudnn_computes_everything(name: str) -> None:
    """A training step calls each handler once, and contains no loop or matrix product of XLA."""
    text = lowered(CELLS[name], problem(CELLS[name]).cast("float32"))
    for handler in host.LIBRARY.handlers:
        assert text.count(f"@{handler}(") == 1
    assert "stablehlo.while" not in text and "dot_general" not in text


@pytest.mark.usefixtures("stand_in")
def test_inference_has_no_reserve_and_unused_gradients_are_not_computed() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, STEPS, BATCH).cast("float32")

    def outputs(xs: Any) -> Any:
        inputs = Dense(xs, given.params.w_x, given.params.b)
        whole = recurrence.Problem(cell, given.params, inputs, given.state)
        return cudnn.run(whole, platform="cpu")[1]

    forward = jax.jit(outputs).lower(given.xs).as_text()
    assert re.search(r"jaxrnn_cudnn_forward.*tensor<0xui8>", forward)
    slope = jax.jit(jax.grad(lambda xs: outputs(xs).sum()))
    compiled = slope.lower(given.xs).compile().as_text()
    assert "backward_data" in compiled and "backward_weights" not in compiled


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("precision", "tf32"),
    [(None, True), ("tensorfloat32", True), ("high", False), ("highest", False)],
)
def test_tf32_follows_jax(precision: Any, tf32: bool) -> None:
    with jax.default_matmul_precision(precision):
        assert allows_tf32() == tf32
        text = lowered(CELLS["lstm"], problem(CELLS["lstm"]).cast("float32"))
    assert f"tf32 = {str(tf32).lower()}" in text


@pytest.mark.usefixtures("stand_in")
@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("rows", [3, 9])
def test_token_inputs(rows: int, reverse: bool) -> None:
    """Compare outputs and the gradient of the table with XLA. Out-of-range tokens are clipped."""
    cell = CELLS["gru-after"]
    given = problem(cell, STEPS, BATCH).cast("float32")
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((rows, 3 * 4)), jnp.float32)
    tokens = jnp.asarray(rng.integers(-1, rows + 1, (STEPS, BATCH)), jnp.int32)

    def slope(tokens: Any, run: Any) -> Any:
        def loss(table: Any) -> Any:
            inputs = Lookup(table, tokens)
            whole = recurrence.Problem(cell, given.params, inputs, given.state, NO_MASKS, reverse)
            final, ys = run(whole)
            return (ys**3).sum() + (final.hidden**2).sum(), ys

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(table)

    got = slope(tokens, partial(cudnn.run, platform="cpu"))
    want = slope(jnp.clip(tokens, 0, rows - 1), xla.run)
    assert_close(got, want, 3 * TOLERANCES["float32"])


# --- the weight vector --------------------------------------------------------------------------


def random_params(cell: Any, config: CallConfig, dtype: str = "float32") -> list[Any]:
    """Return random parameters of every pseudo-layer."""
    widths = [config.input_width(index, FEATURES) for index in range(config.pseudo_layers)]
    drawn = [problem(cell, features=width, seed=n).params for n, width in enumerate(widths)]
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), drawn)


EVERY_STACK = list(itertools.product(NAMES, (1, 2, 3), (False, True)))
every_stack = pytest.mark.parametrize(("name", "layers", "both"), EVERY_STACK)


@every_stack
def test_weights_have_pytorchs_layout(name: str, layers: int, both: bool) -> None:
    """PyTorch passes its arrays to cuDNN unchanged: all matrices, then all biases."""
    cell, config = CELLS[name], make_config(CELLS[name], layers, both)
    params = random_params(cell, config)
    torch = [to_torch(cell, jax.tree.map(np.asarray, p)) for p in params]
    w_x, w_h, b, b_h = names()
    matrices = [p[key].ravel() for p in torch for key in (w_x, w_h)]
    biases = [p[key] for p in torch for key in (b, b_h)]
    packed = weights.pack(config, params)
    np.testing.assert_array_equal(packed, np.concatenate([*matrices, *biases]))
    assert_close(weights.unpack(config, packed, FEATURES), params, 0)
    longer = weights.pack(config, params, packed.size + 3)
    np.testing.assert_array_equal(longer, np.concatenate([packed, np.zeros(3)]))
    assert_close(weights.unpack(config, longer, FEATURES), params, 0)


@pytest.mark.usefixtures("stand_in")
@every_stack
def test_offsets_are_those_of_the_stand_in(name: str, layers: int, both: bool) -> None:
    assert_offsets(make_config(CELLS[name], layers, both))


def assert_offsets(config: CallConfig) -> None:
    """Check that `weights` and cuDNN agree on the size of the vector and on every offset."""
    descriptor = algorithm.descriptor_for(config, Size(3, 2, FEATURES), training=True)
    itemsize = jnp.dtype(config.dtype).itemsize
    packed = weights.pack(config, random_params(config.cell, config))
    assert library.memory_sizes(descriptor).weights == itemsize * packed.size
    products = 2 * len(config.cell.GATES)
    found = [
        library.offsets(descriptor, index, product)
        for index, product in itertools.product(range(config.pseudo_layers), range(products))
    ]
    expected = weights.offsets(config, FEATURES)
    assert found == [(itemsize * matrix, itemsize * bias) for matrix, bias in expected]


# --- several layers and both directions ---------------------------------------------------------


def random_states(cell: Any, count: int, dtype: str) -> tuple[Any, ...]:
    """Return random states of `count` pseudo-layers."""
    drawn = [problem(cell, batch=BATCH, seed=n).state for n in range(count)]
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tuple(drawn))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "both"), [case for case in EVERY_STACK if case[1:] != (1, False)]
)
def test_layers_and_directions_agree_with_xla(name: str, layers: int, both: bool) -> None:
    """Compare values, final states and all gradients in float64 with a loop of XLA per pseudo-layer."""
    cell, config = CELLS[name], make_config(CELLS[name], layers, both, "float64")
    with jax.enable_x64(True):
        given = random_params(cell, config, "float64")
        states = random_states(cell, config.pseudo_layers, "float64")
        xs = jnp.asarray(problem(cell, STEPS, BATCH).xs)

        def loss(params: Any, xs: Any, states: Any, platform: Any) -> Any:
            found = stack.run_pseudo_layers(
                cell, params, xs, states, both_directions=both, platform=platform
            )
            return sum((leaf**3).sum() for leaf in jax.tree.leaves(found)), found

        run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
        # With "cuda", a program for a CPU computes the same by XLA.
        got, want = (run(given, xs, states, platform) for platform in ("cpu", "cuda"))
    assert_close(got, want, TOLERANCES["float64"])
    assert got[0][1][1].shape == (STEPS, BATCH, 4 * config.directions)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_char_rnn_runs_all_layers_at_once(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare loss, state and the gradients of all parameters with those of scan."""
    vocabulary = Vocabulary.of("abcde")
    config = charlm.ModelConfig(cell, 3, 4, 6, reset="after", dtype="float32")  # type: ignore[arg-type]
    params, carry = charlm.init(config, vocabulary), charlm.initial_carry(config, BATCH)
    tokens = jnp.arange((STEPS + 1) * BATCH, dtype=jnp.int32).reshape(STEPS + 1, BATCH) % 5
    carry = jax.tree.map(lambda s: s + 0.1, carry)
    at_once = SimpleNamespace(run=partial(stack.run, platform="cpu"))
    results = []
    for module in (None, at_once):
        monkeypatch.setattr(dispatch, "layers_at_once", lambda *_, m=module: m)
        run = jax.jit(jax.value_and_grad(partial(charlm.loss, implementation="scan"), has_aux=True))
        results.append(run(params, tokens, carry))
        calls_of_cudnn = run.lower(params, tokens, carry).as_text().count("@jaxrnn_cudnn_forward")
        assert calls_of_cudnn == (0 if module is None else 1)
    assert_close(results[1], results[0], 3 * TOLERANCES["float32"])


def test_several_layers_with_masks_are_rejected() -> None:
    masks = Masks(None, jnp.ones((5, 2), bool))
    with pytest.raises(
        ValueError, match="several layers in one call only without resets and lengths"
    ):
        stack.run(
            CELLS["lstm"], [], Lookup(jnp.ones((2, 16)), jnp.ones((5, 2), int)), (), masks, False
        )


# --- JAX's transformations ----------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [(None, 0, None), (None, 1, 0), (0, None, None), (0, 0, 0)], ids=str
)
def test_vmap(axes: tuple[int | None, ...]) -> None:
    """Map over inputs, states and parameters. Compare gradients of the sum, and of each element."""
    cell = CELLS["gru-after"]
    given = problem(cell, STEPS, 2).cast("float32").inputs
    factors = jnp.asarray([0.5, 0.9, 1.2], jnp.float32)
    mapped = tuple(
        a
        if axis is None
        else jax.tree.map(lambda x, at=axis: jnp.stack([x * f for f in factors], at), a)
        for a, axis in zip(given, axes, strict=True)
    )

    def results(platform: Any) -> Any:
        loss = jax.vmap(loss_of(cell, platform), axes)
        total = jax.value_and_grad(lambda *given: loss(*given).sum(), (0, 1, 2))
        each = jax.vmap(jax.grad(loss_of(cell, platform), (0, 1, 2)), axes)
        return jax.jit(lambda *given: (total(*given), each(*given)))(*mapped)

    assert_close(results("cpu"), results("cuda"), 3 * TOLERANCES["float32"])


@pytest.mark.usefixtures("stand_in")
def test_vmap_over_inputs_is_one_call_with_more_rows() -> None:
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, STEPS, 2).cast("float32").inputs
    several = jnp.stack([xs, xs, xs])
    loss = jax.vmap(loss_of(cell, "cpu"), (None, 0, None))
    text = jax.jit(jax.grad(lambda p: loss(p, several, state).sum())).lower(params).as_text()
    assert re.search(rf"jaxrnn_cudnn_forward\(.*\(tensor<{STEPS}x6x3xf32>", text)
    assert "stablehlo.while" not in text


@pytest.mark.usefixtures("stand_in")
@pytest.mark.slow
def test_checkpoint_and_second_derivative() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, 3, 2).cast("float32").inputs

    def results(platform: Any) -> Any:
        loss = loss_of(cell, platform)
        first = jax.grad(jax.checkpoint(loss), (0, 1, 2))

        def slope(*given: Any) -> Any:
            return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss, (0, 1))(*given)))

        return jax.jit(lambda *given: (first(*given), jax.grad(slope, (0, 1, 2))(*given)))(*given)

    assert_close(results("cpu"), results("cuda"), 1e-5)


@pytest.mark.usefixtures("stand_in")
def test_an_exported_program_needs_no_cudnn() -> None:
    cell = CELLS["gru-after"]
    given = problem(cell, STEPS, 2).cast("float32").inputs
    slope = jax.jit(jax.value_and_grad(loss_of(cell, "cpu"), (0, 1, 2)))
    exported = export.export(slope)(*given)
    assert "jaxrnn_cudnn" not in exported.mlir_module()
    assert_close(exported.call(*given), slope(*given), 3 * TOLERANCES["float32"])


@pytest.mark.usefixtures("stand_in")
def test_only_programs_for_cuda_call_cudnn() -> None:
    """Programs for AMD GPUs, TPUs and other platforms compute the same by XLA."""
    given = problem(CELLS["lstm"], STEPS, BATCH).cast("float32")
    traced = on_host.trace(CELLS["lstm"], given, reverse=True, platform="cuda")
    for platform, count in [("cuda", 1), ("rocm", 0), ("tpu", 0)]:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        for handler in host.LIBRARY.handlers:
            assert text.count(f"@{handler}(") == count


@pytest.mark.usefixtures("stand_in")
def test_concurrent_calls_agree() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, STEPS, BATCH).cast("float32")
    want = on_host(cell, given, reverse=False)
    with ThreadPoolExecutor(6) as callers:
        for got in callers.map(lambda _: on_host(cell, given, reverse=False), range(24)):
            assert_close(got, want, 0)


SHARDED = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from tests.support import cudnn as host
from tests.support.cudnn.calls import loss_of
from tests.support.oracle import assert_close
from tests.support.problems import CELLS, problem

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "more"), axis_types=(AxisType.Auto,) * 2)
with host.use_stand_in():
    for name, rows, axes in (("lstm", 8, "data"), ("gru-after", 8, ("data", "more")), ("lstm", 6, None)):
        given = problem(CELLS[name], 5, rows).cast("float32").inputs
        loss = loss_of(CELLS[name], "cpu")
        slope = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        want = slope(*given)
        over = P(), P(None, axes), P(axes)
        put = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip(given, over)]
        program = slope.lower(*put).compile()
        assert_close(program(*put), want, 1e-5)
        text = program.as_text()
        assert not re.search("all-gather|all-to-all|collective-permute", text), axes
        parts = {None: 1, "data": 2}.get(axes, 4)
        assert f"f32[5,{rows // parts},4]" in text
        if axes is None:
            continue
        def total(params, xs, state):
            return jax.lax.psum(loss(params, xs, state), axes)
        mapped = jax.shard_map(total, mesh=mesh, in_specs=over, out_specs=P())
        assert_close(jax.jit(jax.value_and_grad(mapped, (0, 1, 2)))(*put), want, 1e-5)
print("done")
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.process
def test_each_device_computes_its_own_rows() -> None:
    """If the batch is sharded, by `jit` or by `shard_map`, each device calls cuDNN for its own rows."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "done\n", result.stderr[-3000:]


# --- on a GPU -----------------------------------------------------------------------------------


@on_nvidia
class TestOnAGPU(CudnnConformance):
    """Run cuDNN itself, through `unroll` and without TF32."""

    exact = "float32"

    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        with jax.default_matmul_precision("highest"):
            return super().run(cell, given, reverse=reverse, **masks)

    @every_stack
    def test_offsets(self, name: str, layers: int, both: bool) -> None:
        assert_offsets(make_config(CELLS[name], layers, both, platform="cuda"))

    @pytest.mark.parametrize("both", [False, True])
    def test_layers_and_directions(self, both: bool) -> None:
        cell, config = CELLS["lstm"], make_config(CELLS["lstm"], 2, both, platform="cuda")
        params = random_params(cell, config)
        states = random_states(cell, config.pseudo_layers, "float32")
        xs = jnp.asarray(problem(cell, STEPS, BATCH).xs, jnp.float32)
        packed, stacked = (
            weights.pack(config, params),
            jax.tree.map(lambda *s: jnp.stack(s), *states),
        )
        with jax.default_matmul_precision("highest"):
            found = jax.jit(partial(stack.run_pseudo_layers, cell, both_directions=both))
            got = found(params, xs, states)[1]
            want = calls.plain(config, None, packed, xs, stacked.hidden, stacked.cell).ys
        assert_close(got, want, TOLERANCES["float32"])

    def test_the_program_calls_cudnn(self) -> None:
        given = problem(CELLS["lstm"]).cast("float32")
        run = partial(unroll, CELLS["lstm"], implementation="cudnn")
        assert "jaxrnn_cudnn_forward" in jax.jit(run).lower(*given.inputs).as_text()
