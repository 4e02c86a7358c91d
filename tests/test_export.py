"""Programs for other platforms than this one's, and for other processes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxrnn import ModelConfig, Vocabulary, init, unroll, unroll_projected
from jaxrnn.recurrence.problem import Lookup
from tests.support.oracle import unchecked
from tests.support.problems import CELLS, USUAL, problem

ROOT = Path(__file__).parent.parent
STEPS, BATCH, FEATURES = 12, 5, 3
TARGET = "jaxrnn_"  # with which the names of the CPU's custom calls begin


def gradients(cell: Any, reverse: bool = False, implementation: Any = None) -> Any:
    """Values and gradients of masked dense and token inputs, as a function of arrays."""
    tokens = jnp.arange(STEPS * BATCH).reshape(STEPS, BATCH) % FEATURES
    resets = jnp.zeros((STEPS, BATCH), bool).at[4, 1].set(True).at[5, 2].set(True)
    run = dict(resets=resets, reverse=reverse, implementation=implementation)

    def loss(params: Any, xs: Any, state: Any) -> Any:
        lengths = jnp.array([STEPS, 3, 0, 7, 11])
        dense = unroll(cell, params, xs, state, lengths=lengths, **run)
        lookup = Lookup(cell.project(params, xs[0, :FEATURES]), tokens)
        found = dense, unroll_projected(cell, params, lookup, state, **run)
        return sum(jnp.sum(x * x + x) for x in jax.tree.leaves(found))

    return jax.value_and_grad(loss, (0, 1, 2))


def arguments(cell: Any) -> Any:
    given = problem(cell, steps=STEPS, batch=BATCH, features=FEATURES).cast("float32")
    return given.inputs


@pytest.mark.process
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-peephole", "gru-before", "gru-after"])
def test_an_exported_program_needs_no_kernel_and_computes_the_same(name: str) -> None:
    """It has none of the CPU's custom calls, which `jax.export` refuses by default."""
    cell, reverse = CELLS[name], name in ("lstm-peephole", "gru-before")
    given = arguments(cell)
    exported = export.export(jax.jit(gradients(cell, reverse)))(*given)
    assert TARGET not in exported.mlir_module()
    want = jax.jit(gradients(cell, reverse, "scan"))(*given)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), exported.call(*given), want
    )


@pytest.mark.process
@pytest.mark.parametrize("platforms", [("cuda",), ("tpu",), ("cpu", "cuda")])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_program_for_another_platform_holds_no_call_of_the_cpu(
    platforms: tuple[str, ...], implementation: Any
) -> None:
    given = arguments(CELLS["lstm"])
    function = jax.jit(gradients(CELLS["lstm"], implementation=implementation))
    lowered = function.trace(*given).lower(lowering_platforms=platforms).as_text()
    exported = export.export(function, platforms=platforms)(*given).mlir_module()
    assert TARGET not in lowered and TARGET not in exported


@pytest.mark.process
def test_the_program_of_this_platform_holds_it() -> None:
    given = arguments(CELLS["lstm"])
    text = jax.jit(gradients(CELLS["lstm"])).lower(*given).as_text()
    assert (TARGET in text) == (USUAL == "native")


@pytest.mark.process
def test_sizes_may_be_symbols() -> None:
    """A program for any number of steps and rows."""
    cell = CELLS["gru-after"]
    params, xs, _ = arguments(cell)
    lengths = jnp.array([STEPS, 3, 0, 7, 11])

    def run(params: Any, xs: Any, lengths: Any) -> Any:
        return unroll(cell, params, xs, lengths=lengths)[1]

    steps, batch = export.symbolic_shape("steps, batch")
    shapes = jax.ShapeDtypeStruct((steps, batch, FEATURES), jnp.float32)
    with unchecked():  # a symbol is no int
        exported = export.export(jax.jit(run))(
            params, shapes, jax.ShapeDtypeStruct((batch,), jnp.int32)
        )
    np.testing.assert_allclose(
        exported.call(params, xs, lengths), run(params, xs, lengths), atol=1e-5
    )


PROGRAM = """
import pickle, sys
import jax, jax.numpy as jnp, numpy as np
from jax import export
from jax.experimental import serialize_executable
import jaxrnn

cell, vocabulary = jaxrnn.lstm(8, peephole=True), jaxrnn.Vocabulary.of("ab\\u00e9")
net = jaxrnn.network(cell, 3, 2)

def make():
    params = net.init(jax.random.key(0))
    char = jaxrnn.init(jaxrnn.ModelConfig(hidden_size=5, embedding_size=3), vocabulary)
    apply = jax.jit(lambda params, xs, state: net.apply(params, xs, state))
    given = params, jnp.ones((20, 2, 3)), cell.initial_state(2)
    twice = jax.jit(lambda params: jax.tree.map(lambda x: 2 * x, params))
    calls = (apply, given), (twice, [char])
    written = [bytes(export.export(f)(*x).serialize(vjp_order=1)) for f, x in calls]
    executable = serialize_executable.serialize(apply.lower(*given).compile())
    want = apply(*given)[1]
    return pickle.dumps((*written, executable, *map(np.asarray, (*jax.tree.leaves(given), want))))

def read(content):
    exported, twice, executable, *leaves, want = pickle.loads(content)
    tree = jax.tree.structure((jax.eval_shape(net.init, jax.random.key(0)), 0, cell.initial_state(2)))
    given = jax.tree.unflatten(tree, leaves)
    np.testing.assert_allclose(export.deserialize(exported).call(*given)[1], want, atol=1e-5)
    loss = lambda *given: export.deserialize(exported).call(*given)[1].sum()
    assert jax.grad(loss)(*given).cell.w_h.shape == (8, 32)
    found = serialize_executable.deserialize_and_load(*executable)(*given)[1]
    np.testing.assert_array_equal(found, want)
    char = jaxrnn.init(jaxrnn.ModelConfig(hidden_size=5, embedding_size=3), vocabulary)
    result = export.deserialize(twice).call(char)
    assert (result.config, result.vocabulary) == (char.config, char.vocabulary)

if sys.argv[1] == "make":
    sys.stdout.buffer.write(make())
else:
    read(sys.stdin.buffer.read())
"""


@pytest.mark.process
def test_what_is_serialized_runs_in_another_process() -> None:
    """Exported functions of parameters and states, and compiled programs with the CPU's kernels."""

    def run(what: str, content: bytes = b"") -> bytes:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, what],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            input=content,
            capture_output=True,
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    run("read", run("make"))


@pytest.mark.process
@pytest.mark.parametrize(
    "imports",
    ["import jax, jaxrnn", "import jaxrnn, jax; jaxrnn.Params", "import jax, jaxrnn.train"],
)
def test_an_import_of_the_library_lets_jax_read_its_parameters(imports: str) -> None:
    """The types are registered if JAX was imported first, or once a public name has been used."""
    params = init(ModelConfig(hidden_size=5, embedding_size=3), Vocabulary.of("ab"))
    exported = export.export(jax.jit(lambda params: params.embedding))(params)
    program = f"{imports}; from jax import export; import sys; "
    program += "print(export.deserialize(bytearray(sys.stdin.buffer.read())).out_avals)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        input=bytes(exported.serialize()),
        capture_output=True,
    )
    assert result.stdout.decode() == f"{exported.out_avals}\n", result.stderr.decode()
