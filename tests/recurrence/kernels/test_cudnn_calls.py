"""The calls of cuDNN: what the handlers refuse, which algorithm runs, what runs where cuDNN cannot, the
declarations of its functions, and programs that are compiled for GPUs without one."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from benchmarks.ahead_of_time import compiler as aot
from benchmarks.ahead_of_time import gpu as gpu_static
from jaxrnn import explain, gru, lstm, rnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence import problem as recurrence
from jaxrnn.recurrence.dispatch import abstract_problem
from jaxrnn.recurrence.kernels import cplusplus, cudnn
from jaxrnn.recurrence.kernels.cudnn import algorithm, library, stack
from jaxrnn.recurrence.kernels.cudnn.algorithm import GPU, Size
from jaxrnn.recurrence.problem import Dense, Lookup, Masks
from tests.support import cudnn as host
from tests.support.cudnn.calls import NAMES, NO_MASKS, loss_of, lowered, on_host, setup_of
from tests.support.fakes import fake
from tests.support.oracle import unchecked
from tests.support.problems import BATCH, CELLS, STEPS, problem

ROOT = Path(__file__).parents[3]
COMPILER = cplusplus.find_compiler() or ["c++"]


# --- arrays that do not fit ---------------------------------------------------------------------


class Call(NamedTuple):
    """One call of a handler: shapes and dtypes of its arrays, its attributes and its aliases."""

    name: str
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    attributes: dict[str, Any]
    aliases: Any

    def run(self) -> Any:
        given = [jnp.zeros(a.shape, a.dtype) for a in self.arguments]
        made = jax.ffi.ffi_call(self.name, list(self.results), input_output_aliases=self.aliases)
        return jax.block_until_ready(jax.jit(partial(made, **self.attributes))(*given))


@pytest.fixture
def recorded(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Call]:
    """The calls that an LSTM of T = 5, B = 3, D = 3 and H = 4 makes, by the handlers' short names."""
    found: dict[str, Call] = {}
    real = jax.ffi.ffi_call

    def recording(name: str, results: Any, input_output_aliases: Any) -> Any:
        def call(*given: Any, **attributes: Any) -> Any:
            shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in given)
            key = name.removeprefix("jaxrnn_cudnn_")
            found[key] = Call(name, shapes, tuple(results), attributes, input_output_aliases)
            return real(name, results, input_output_aliases=input_output_aliases)(
                *given, **attributes
            )

        return call

    monkeypatch.setattr(jax.ffi, "ffi_call", recording)
    jax.eval_shape(
        partial(on_host.__wrapped__, CELLS["lstm"], reverse=False),
        problem(CELLS["lstm"], STEPS, BATCH).cast("float32"),
    )
    monkeypatch.setattr(jax.ffi, "ffi_call", real)
    return found


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


WRONG_ARGUMENTS = [
    ("forward", 0, array(5, 3), "xs must have 3 dimensions, none of them 0, not [5, 3]"),
    ("forward", 0, array(5, 2, 3), "h must be [1, 2, 4], not [1, 3, 4]"),
    ("forward", 0, array(5, 3, 3, dtype=jnp.int32), "xs must be float32, float64, float16 or"),
    ("forward", 0, array(5, 3, 3, dtype=jnp.bfloat16), "h must have the dtype of the others"),
    ("forward", 1, array(2, 3, 4), "h must be [1, 3, 4], not [2, 3, 4]"),
    ("forward", 2, array(0), "c must be [1, 3, 4], not [0]"),
    ("forward", 2, array(1, 3, 4, dtype=jnp.float16), "c must have the dtype of the others"),
    ("forward", 3, array(12, 12), "weights must have 1 dimensions"),
    ("forward", 3, array(143), "cuDNN's weights have 576 bytes, and these 572"),
    ("backward_data", 0, array(5, 3, 8), "ys must be [5, 3, 4], not [5, 3, 8]"),
    ("backward_data", 1, array(1, 3, 5), "c must be [1, 3, 5], not [1, 3, 4]"),
    ("backward_data", 2, array(0), "c must be [1, 3, 4], not [0]"),
    ("backward_data", 3, array(1), "cuDNN's weights have 576 bytes, and these 4"),
    ("backward_data", 4, array(4, 3, 4), "d_ys must be [5, 3, 4], not [4, 3, 4]"),
    ("backward_data", 5, array(1, 2, 4), "the last d_h must be [1, 3, 4], not [1, 2, 4]"),
    ("backward_data", 6, array(0), "the last d_c must be [1, 3, 4], not [0]"),
    ("backward_weights", 0, array(5, 3, 2), "cuDNN's weights have 512 bytes, and these 576"),
    ("backward_weights", 1, array(1, 1, 4), "h must be [1, 3, 4], not [1, 1, 4]"),
    ("backward_weights", 2, array(5, 4), "ys must be [5, 3, 4], not [5, 4]"),
    ("backward_weights", 3, array(3, 1, dtype=jnp.uint8), "cuDNN needs a reserve of "),
]
WRONG_RESULTS = [
    ("forward", 0, array(5, 3, 8), "ys must be [5, 3, 4], not [5, 3, 8]"),
    ("forward", 1, array(3, 4), "the last h must be [1, 3, 4], not [3, 4]"),
    ("forward", 2, array(0), "the last c must be [1, 3, 4], not [0]"),
    ("forward", 3, array(3, 8, dtype=jnp.uint8), "cuDNN needs a reserve of "),
    ("backward_data", 0, array(5, 3), "d_xs must have 3 dimensions, none of them 0, not [5, 3]"),
    ("backward_data", 1, array(1, 3, 1), "d_h must be [1, 3, 4], not [1, 3, 1]"),
    ("backward_data", 2, array(0), "d_c must be [1, 3, 4], not [0]"),
]
WRONG_ATTRIBUTES = [
    ("mode", np.int64(4), "there is no cell of mode 4"),
    ("mode", np.int64(3), "c must be empty here, not [1, 3, 4]"),
    ("algorithm", np.int64(2), "there is no algorithm 2"),
    ("layers", np.int64(0), "there cannot be 0 layers"),
    ("layers", np.int64(2), "h must be [2, 3, 4], not [1, 3, 4]"),
    ("both_directions", np.bool_(True), "h must be [2, 3, 4], not [1, 3, 4]"),
    ("algorithm", np.int64(1), "CUDNN_STATUS_NOT_SUPPORTED"),
]


def refusal_of(call: Call) -> str:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        call.run()
    (line,) = str(caught.value).splitlines()
    assert f"{call.name}: " in line
    return line


@pytest.mark.parametrize(("name", "index", "other", "message"), WRONG_ARGUMENTS)
def test_arguments_that_do_not_fit(
    recorded: dict[str, Call], name: str, index: int, other: Any, message: str
) -> None:
    given = recorded[name]
    changed = (*given.arguments[:index], other, *given.arguments[index + 1 :])
    assert message in refusal_of(given._replace(arguments=changed))


@pytest.mark.parametrize(("name", "index", "other", "message"), WRONG_RESULTS)
def test_results_that_do_not_fit(
    recorded: dict[str, Call], name: str, index: int, other: Any, message: str
) -> None:
    given = recorded[name]
    changed = (*given.results[:index], other, *given.results[index + 1 :])
    assert message in refusal_of(given._replace(results=changed))


@pytest.mark.parametrize(("name", "value", "message"), WRONG_ATTRIBUTES)
def test_attributes_that_do_not_fit(
    recorded: dict[str, Call], name: str, value: Any, message: str
) -> None:
    for call in recorded.values():
        # The weights' gradient has no c.
        if "c must be" not in message or call.name != "jaxrnn_cudnn_backward_weights":
            refused = refusal_of(call._replace(attributes=call.attributes | {name: value}))
            assert message in refused


def test_an_error_inside_cudnn_is_one_line_with_its_text_and_the_sizes(
    recorded: dict[str, Call],
) -> None:
    """The reserve here is zeros, which no forward pass has filled."""
    line = refusal_of(recorded["backward_data"])
    assert "cudnnRNNBackwardData_v8 failed: CUDNN_STATUS_BAD_PARAM, " in line
    assert line.endswith(
        "(lstm, float32, T = 5, B = 3, D = 3, H = 4, layers: 1, directions: 1, algorithm standard)"
    )


def test_memory_that_cudnn_writes_to_must_be_an_alias(recorded: dict[str, Call]) -> None:
    for name, message in [
        ("backward_data", "the reserve before and after must be the same memory"),
        ("backward_weights", "d_weights before and after must be the same memory"),
    ]:
        assert message in refusal_of(recorded[name]._replace(aliases=None))


# --- the algorithm ------------------------------------------------------------------------------

H100, A100, A40, L4, V100 = (
    GPU(9, 0, 132),
    GPU(8, 0, 108),
    GPU(8, 6, 84),
    GPU(8, 9, 58),
    GPU(7, 0, 80),
)
STANDARD, PERSISTENT, SMALL = algorithm.NUMBERS


@pytest.mark.parametrize(
    ("cell", "dtype", "size", "gpu", "training", "want"),
    [
        (lstm(512), "float16", (100, 64, 512), H100, True, PERSISTENT),
        (lstm(512), "float16", (100, 64, 512), A100, False, PERSISTENT),
        (lstm(512), "float32", (100, 64, 512), H100, True, STANDARD),
        (lstm(512), "bfloat16", (100, 64, 512), H100, True, STANDARD),
        (lstm(500), "float16", (100, 64, 512), H100, True, STANDARD),
        (lstm(512), "float16", (100, 64, 500), H100, True, STANDARD),
        (lstm(2048), "float16", (100, 64, 512), H100, True, STANDARD),
        (lstm(512), "float16", (100, 60, 512), H100, True, STANDARD),
        (lstm(512), "float16", (100, 136, 512), H100, True, STANDARD),
        (lstm(512), "float16", (100, 64, 512), A40, True, STANDARD),
        (lstm(512), "float16", (100, 64, 512), L4, True, STANDARD),
        (lstm(512), "float16", (40, 64, 512), V100, True, PERSISTENT),
        (lstm(512), "float16", (19, 64, 512), V100, True, STANDARD),
        (lstm(512), "float16", (40, 80, 512), V100, True, STANDARD),
        (gru(512, reset="after"), "float16", (100, 64, 512), H100, True, STANDARD),
        (rnn(512), "float16", (100, 64, 512), H100, True, PERSISTENT),
        (rnn(896), "float16", (100, 96, 512), H100, True, STANDARD),
        (lstm(128), "float32", (100, 64, 7), L4, True, SMALL),
        (lstm(129), "float32", (100, 64, 7), L4, True, STANDARD),
        (lstm(192), "bfloat16", (100, 64, 7), L4, False, SMALL),
        (rnn(256), "float32", (100, 64, 7), L4, True, SMALL),
        (rnn(384), "float32", (100, 64, 7), L4, False, SMALL),
        (lstm(128), "float64", (100, 64, 7), L4, True, STANDARD),
        (lstm(128), "float32", (100, 64, 7), GPU(0, 0, 0), True, STANDARD),
    ],
)
def test_the_algorithm_is_pytorchs(
    cell: Any, dtype: str, size: Any, gpu: GPU, training: bool, want: str
) -> None:
    setup = setup_of(cell, dtype=dtype)
    assert algorithm.choose(setup, Size(*size), gpu, training) == want
    if want == PERSISTENT:
        for other in (setup._replace(layers=2), setup._replace(both_directions=True)):
            assert algorithm.choose(other, Size(*size), gpu, training) == STANDARD


@pytest.mark.usefixtures("stand_in")
def test_forward_and_backward_pass_share_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU where inference runs by another one; the program names what was chosen."""
    device = fake("gpu", compute_capability="8.9", core_count=58)
    monkeypatch.setattr(accelerator, "device", lambda: device)
    cell = lstm(160)
    text = lowered(cell, problem(cell, STEPS, BATCH).cast("float32"))
    assert set(re.findall(r"algorithm = (\d)", text)) == {"0"}
    whole = abstract_problem(cell, (STEPS, BATCH, 3), "float32")._replace(
        state=jax.eval_shape(lambda: cell.initial_state(BATCH))
    )
    run = jax.jit(
        lambda params, inputs, state: cudnn.run(
            recurrence.Problem(cell, params, inputs, state), platform="cpu"
        )
    )
    text = run.lower(whole.params, whole.inputs, whole.state).as_text()
    assert re.findall(r"algorithm = (\d)", text) == ["3"]


def test_rows_that_a_device_may_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert algorithm.divided(12) == [12, 6, 4, 3] and algorithm.divided(7) == [7]


@pytest.mark.usefixtures("stand_in")
def test_an_algorithm_that_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(CELLS["lstm"]).cast("float32")
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", SMALL)
    # The setting is no argument of a function, so only a new trace sees it.
    run = jax.jit(partial(on_host.__wrapped__, CELLS["lstm"], reverse=False))
    assert set(re.findall(r"algorithm = (\d)", run.lower(given).as_text())) == {"3"}
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", PERSISTENT)
    with pytest.raises(
        ValueError, match=r'cannot run LSTM.*float32.*"persist-static": .*NOT_SUPPORTED'
    ):
        on_host.__wrapped__(CELLS["lstm"], given, reverse=False)
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", "fastest")
    with pytest.raises(ValueError, match=r"must be one of standard, .*small-h, not 'fastest'"):
        on_host.__wrapped__(CELLS["lstm"], given, reverse=False)


# --- what it refuses, and what runs instead -----------------------------------------------------


@pytest.fixture
def nvidia(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that is not here, with the stand-in for cuDNN."""
    client = SimpleNamespace(platform_version="PJRT C API cuda 13000")
    device = fake("gpu", client=client, compute_capability="8.9", core_count=58)
    monkeypatch.setattr(accelerator, "device", lambda: device)
    library.missing.cache_clear()
    yield
    library.missing.cache_clear()


REFUSED = [
    (gru(4), "float32", {}, "GRU resets after the product"),
    (rnn(4, activation="sigmoid"), "float32", {}, "tanh or relu, not sigmoid"),
    (lstm(4, peephole=True), "float32", {}, "no peepholes"),
    (lstm(4), "float32", {"resets": True}, r"cannot reset a row .*\(resets\)"),
]


@pytest.mark.parametrize(("cell", "dtype", "how", "message"), REFUSED)
def test_what_cudnn_lacks_runs_by_xla(
    nvidia: None, cell: Any, dtype: str, how: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        explain(cell, (100, 2, 3), dtype, "cudnn", **how)
    choice = explain(cell, (100, 2, 3), dtype, **how)
    assert choice.implementation == "xla"
    assert re.match(f"cudnn cannot run this: .*{message}.*; the usual choice on gpu", choice.why)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_choice_on_a_gpu(nvidia: None, name: str, dtype: str) -> None:
    for reverse in (False, True):
        choice = explain(CELLS[name], (100, 2, 3), dtype, reverse=reverse)
        assert choice == ("cudnn", "the usual choice on gpu, nothing near was measured")
    assert explain(CELLS[name], (1, 2, 3), dtype).implementation == "scan"


@pytest.mark.parametrize(
    ("kind", "want", "why"),
    [
        ("NVIDIA H100 80GB HBM3", "xla", "the fastest measured on gpu, at B = 64, H = 512"),
        ("NVIDIA L4", "cudnn", "the usual choice on gpu, nothing near was measured"),
    ],
)
def test_measurements_of_a_gpu_count_for_gpus_of_that_name(
    nvidia: None, monkeypatch: pytest.MonkeyPatch, kind: str, want: str, why: str
) -> None:
    device = accelerator.device()
    device.device_kind = kind
    assert explain(lstm(512), (1024, 64, 512), "bfloat16") == (want, why)


def test_inputs_that_it_cannot_take(nvidia: None) -> None:
    given = abstract_problem(lstm(4), (5, 2, 3), "float32")
    projected = given._replace(inputs=jax.ShapeDtypeStruct(given.inputs.shape, jnp.float32))
    assert "cannot take projected" in str(cudnn.unsupported_reason(projected))
    (symbol,) = export.symbolic_shape("T")
    with unchecked():
        symbolic = abstract_problem(lstm(4), (symbol, 2, 3), "float32")
        assert "numbers, not symbols" in str(cudnn.unsupported_reason(symbolic))
    long = abstract_problem(lstm(4), (2**31, 2, 3), "float32")
    assert "no size above 2147483647, and one is 2147483648" in str(cudnn.unsupported_reason(long))
    tokens = jax.ShapeDtypeStruct((5, 2), jnp.int32)
    for size, most in [(4, 256), (300, 600)]:
        given = abstract_problem(lstm(size), (5, 2, 3), "float32")
        for rows, message in [
            (most, "None"),
            (most + 1, f"up to {most} tokens .*, not {most + 1}"),
        ]:
            table = jax.ShapeDtypeStruct((rows, 4 * size), jnp.float32)
            found = cudnn.unsupported_reason(given._replace(inputs=Lookup(table, tokens)))
            assert re.search(message, str(found))


def test_run_refuses_what_cudnn_lacks() -> None:
    """Rather than ignore the resets, or multiply projected inputs again."""
    params, xs, state = problem(CELLS["lstm"]).cast("float32").inputs
    inputs, resets = Dense(xs, params.w_x, params.b), Masks(jnp.ones((5, 2), bool))
    for given, masks, message in [
        (inputs, resets, "resets"),
        (inputs.project(), NO_MASKS, "projected"),
    ]:
        whole = recurrence.Problem(CELLS["lstm"], params, given, state, masks)
        with pytest.raises(ValueError, match=f"cuDNN cannot run this: .*{message}"):
            cudnn.run(whole, platform="cpu")


def test_what_cudnn_itself_refuses_runs_by_xla(
    nvidia: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason has the numbers and cuDNN's own text."""
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", PERSISTENT)
    choice = explain(lstm(4), (100, 2, 3))
    assert choice.implementation == "xla"
    assert re.match(
        r"cudnn cannot run this: cuDNN cannot run LSTM.*float32, Size\(steps=100, batch=2, features=3\) "
        'by algorithm "persist-static": cudnnGetRNNTempSpaceSizes failed: CUDNN_STATUS_NOT_SUPPORTED',
        choice.why,
    )


def test_amd_has_no_cudnn(nvidia: None, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SimpleNamespace(platform_version="PJRT C API rocm 60000")
    monkeypatch.setattr(accelerator, "device", lambda: fake("gpu", client=client))
    choice = explain(lstm(4), (100, 2, 3))
    assert choice.implementation == "xla" and "NVIDIA's GPUs alone" in choice.why


def test_several_layers_run_at_once_where_cudnn_is_the_choice(nvidia: None) -> None:
    inputs = Lookup(jnp.ones((5, 16)), jnp.ones((100, 2), jnp.int32))
    layers = [lstm(4).init(jax.random.key(0), 4)] * 2
    choose = partial(dispatch.layers_at_once, lstm(4), layers, inputs)
    assert choose(None) is stack and choose("cudnn") is stack and choose("xla") is None
    peephole = lstm(4, peephole=True)
    layers = [peephole.init(jax.random.key(0), 4)] * 2
    for implementation in (None, "cudnn"):
        assert dispatch.layers_at_once(peephole, layers, inputs, implementation) is None


SAY = """
from tests.support import cudnn as host
from jaxrnn.recurrence.kernels.cplusplus import NotBuilt
from jaxrnn.recurrence.kernels.cudnn import library
try:
    library.with_cudnn(host.HOST.load(), {files})
except NotBuilt as reason:
    print(reason)
else:
    print(library.Numbers._fields[0], "opened")
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.process
@pytest.mark.parametrize(
    ("files", "environment", "message"),
    [
        ("['/nowhere/libcudnn.so.9']", {}, "/nowhere/libcudnn.so.9: cannot open shared object"),
        (
            "[str(host.STAND_IN.path())]",
            {"STAND_IN_CUDNN_VERSION": "8907"},
            "cuDNN 8.9 is too old; ",
        ),
        (
            "[str(host.STAND_IN.path())]",
            {"STAND_IN_CUDNN_BROKEN": "1"},
            "CUDNN_STATUS_NOT_INITIALIZED",
        ),
        ("[str(host.HOST.path())]", {}, "has no function cudnnGetVersion"),
        ("['/nowhere', str(host.STAND_IN.path())]", {}, None),
    ],
)
def test_a_cudnn_that_cannot_be_used(
    files: str, environment: dict[str, str], message: str | None
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", SAY.format(files=files)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = result.stdout
    assert said.count("\n") == 1, result.stderr
    if message is None:
        assert said == "mode opened\n"
    else:
        assert said.startswith("cuDNN cannot be used: ") and message in said
        assert said.endswith('; `pip install "jax[cuda13]"` has it\n')


@pytest.mark.process
def test_a_machine_without_cudnn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library compiles here without it; the reason is a warning's, not an error."""
    program = """
from jaxrnn.recurrence.kernels import Missing
from jaxrnn.recurrence.kernels.cudnn import library
library._files = lambda: ["libcudnn.so.of-nowhere"]
assert isinstance(library.missing(), Missing)
print(library.missing())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.stdout.startswith("cuDNN cannot be used: libcudnn.so.of-nowhere: "), result.stderr


# --- the declarations ---------------------------------------------------------------------------


def package() -> Path | None:
    """Return the folder of the package nvidia-cudnn, where it is installed."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = (Path(place) / "cudnn" for place in places)
    return next((path for path in found if (path / "include" / "cudnn_adv.h").exists()), None)


@pytest.mark.process
@pytest.mark.once
@pytest.mark.skipif(package() is None, reason="waits for the package nvidia-cudnn-cu13 (517 MB)")
class TestWithCudnnInstalled:
    """cuDNN's headers, and what its library says without a GPU."""

    @pytest.mark.usefixtures("compiler")
    def test_the_declarations_are_those_of_its_headers(self, tmp_path: Path) -> None:
        """A program that compares every function and constant compiles; a wrong one would not."""
        for name in ("cuda_runtime.h", "cuda_runtime_api.h", "library_types.h"):
            (tmp_path / name).touch()
        folders = [tmp_path, package() / "include", host.WRAPPER]
        includes = [f"-I{folder}" for folder in folders]
        source = host.HERE / "declarations.cc"
        command = [*COMPILER, "-std=c++17", "-fsyntax-only", *includes, str(source)]
        assert subprocess.run(command, capture_output=True, text=True).stderr == ""
        wrong = subprocess.run([*command, "-DWRONG"], capture_output=True, text=True)
        assert wrong.returncode and "cudnnRNNForward is another function" in wrong.stderr

    def test_it_finds_the_weights_where_they_are(self) -> None:
        """For every cell, dtype and algorithm, one to three layers, one direction and both."""
        (file,) = (package() / "lib").glob("libcudnn.so.*")
        program = "from tests.support.children import cudnn_weights; cudnn_weights.main()"
        result = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if result.returncode < 0:
            pytest.skip("waits for a cuDNN that gives offsets without a context")
        assert result.stdout == "4680\n", result.stderr


# --- compiled for an H100 -----------------------------------------------------------------------

gpu_aot = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(gpu_static.missing() is not None, reason=str(gpu_static.missing())),
]


def compiled_for_an_h100(function: Any, given: Any) -> str:
    """The text of a program that XLA compiled without a GPU."""
    device = gpu_static.h100()
    host.LIBRARY.load()
    placed = aot.placed_on(SingleDeviceSharding(device), jax.eval_shape(lambda: given))
    with jax.default_device(device):
        return jax.jit(function).lower(*placed).compile().as_text()


@pytest.mark.usefixtures("stand_in")
class TestCompiled:
    pytestmark = gpu_aot

    def test_weights_are_packed_once_for_all_calls_of_a_training_step(self) -> None:
        """In the gradient of a loop over parts of a sequence, before the loops."""
        cell = CELLS["gru-after"]
        params, xs, state = problem(cell, STEPS, BATCH).cast("float32").inputs

        def loss(params: Any, xs: Any, state: Any) -> Any:
            def part(state: Any, xs: Any) -> Any:
                inputs = Dense(xs, params.w_x, params.b)
                return cudnn.run(recurrence.Problem(cell, params, inputs, state))

            return jax.lax.scan(part, state, xs)[1].sum()

        text = compiled_for_an_h100(jax.grad(loss), (params, jnp.stack([xs, xs, xs]), state))
        before, _, entry = text.partition("ENTRY")
        assert len(re.findall(r"fusion\(.*concatenate", entry)) == 1
        loops = [part for part in before.split("\n\n") if "jaxrnn_cudnn" in part]
        assert len(loops) == 2 and not any("concatenate" in part for part in loops)

    def test_each_gpu_calls_it_for_its_own_rows(self) -> None:
        """A `jit` over four GPUs, with the batch divided over them."""
        host.LIBRARY.load()
        mesh = Mesh(np.array(gpu_static.h100s(4)), ("data",))
        given = jax.eval_shape(lambda: problem(CELLS["lstm"], STEPS, 8).cast("float32").inputs)
        over = P(), P(None, "data"), P("data")
        placed = [
            aot.placed_on(NamedSharding(mesh, spec), part)
            for spec, part in zip(over, given, strict=True)
        ]
        slope = jax.jit(jax.grad(loss_of(CELLS["lstm"], "cuda"), (0, 1, 2)))
        text = slope.lower(*placed).compile().as_text()
        assert len(re.findall(rf"\(f32\[{STEPS},2,4\].* custom-call", text)) == 1
        assert len(re.findall(rf"\(f32\[{STEPS},2,3\].* custom-call", text)) == 1
        assert not re.search("all-gather|all-to-all|collective-permute", text)

    def test_cudnn_gets_its_arrays_in_row_major_order(self) -> None:
        """All that goes in and comes out.

        XLA chose other layouts for the calls that JAX has, and cuDNN read time as rows.
        """
        given = problem(CELLS["lstm"], STEPS, BATCH).cast("float32")
        run = partial(on_host.__wrapped__, CELLS["lstm"], reverse=False, platform="cuda")
        text = compiled_for_an_h100(run, (given,))
        assert_row_major(text)


def assert_row_major(text: str) -> None:
    """All operands and results of the calls of cuDNN have the memory layout of their shapes."""
    called = re.findall(
        r"%\S+ = (.*?) custom-call\((.*?)\), custom_call_target=\"jaxrnn_cudnn", text
    )
    assert len(called) == len(host.LIBRARY.handlers)
    for results, operands in called:
        made = [
            re.search(rf"{re.escape(name)} = (.*?) ", text)
            for name in re.findall(r"%[\w.-]+", operands)
        ]
        shapes = [results, *(found[1] for found in made if found)]
        assert len(shapes) == 1 + len(made)
        for order in re.findall(r"\]\{([\d,]+)", " ".join(shapes)):
            axes = [int(axis) for axis in order.split(",")]
            assert axes == sorted(axes, reverse=True)
