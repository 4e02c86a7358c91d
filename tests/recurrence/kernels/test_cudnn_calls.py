"""The calls of cuDNN: checks of their arguments, the choice of the algorithm, and fallbacks.

Further tests compare the declarations with cuDNN's headers, and compile programs for GPUs without a GPU.
"""

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
from tests.support.cudnn.calls import NAMES, NO_MASKS, loss_of, lowered, make_config, on_host
from tests.support.fakes import fake
from tests.support.oracle import unchecked
from tests.support.problems import BATCH, CELLS, STEPS, problem

ROOT = Path(__file__).parents[3]
COMPILER = cplusplus.find_compiler() or ["c++"]


# --- checks of the handlers ---------------------------------------------------------------------


class Call(NamedTuple):
    """A call of a handler: the shapes and dtypes of its arrays, its attributes and its aliases."""

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
    """Return the calls of an LSTM with T = 5, B = 3, D = 3 and H = 4, by the handlers' short names."""
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


# (handler, arguments or results, index of the changed array, its new shape and dtype, message)
WRONG_ARRAYS = [
    (
        "forward",
        "arguments",
        0,
        array(5, 3),
        "xs must have 3 dimensions, none of them 0, not [5, 3]",
    ),
    ("forward", "arguments", 0, array(5, 2, 3), "h must be [1, 2, 4], not [1, 3, 4]"),
    (
        "forward",
        "arguments",
        0,
        array(5, 3, 3, dtype=jnp.int32),
        "xs must be float32, float64, float16 or",
    ),
    (
        "forward",
        "arguments",
        0,
        array(5, 3, 3, dtype=jnp.bfloat16),
        "h must have the dtype of the others",
    ),
    ("forward", "arguments", 1, array(2, 3, 4), "h must be [1, 3, 4], not [2, 3, 4]"),
    ("forward", "arguments", 2, array(0), "c must be [1, 3, 4], not [0]"),
    (
        "forward",
        "arguments",
        2,
        array(1, 3, 4, dtype=jnp.float16),
        "c must have the dtype of the others",
    ),
    ("forward", "arguments", 3, array(12, 12), "weights must have 1 dimensions"),
    ("forward", "arguments", 3, array(143), "the weights must have 576 bytes, not 572"),
    ("backward_data", "arguments", 0, array(5, 3, 8), "ys must be [5, 3, 4], not [5, 3, 8]"),
    ("backward_data", "arguments", 1, array(1, 3, 5), "c must be [1, 3, 5], not [1, 3, 4]"),
    ("backward_data", "arguments", 2, array(0), "c must be [1, 3, 4], not [0]"),
    ("backward_data", "arguments", 3, array(1), "the weights must have 576 bytes, not 4"),
    ("backward_data", "arguments", 4, array(4, 3, 4), "d_ys must be [5, 3, 4], not [4, 3, 4]"),
    (
        "backward_data",
        "arguments",
        5,
        array(1, 2, 4),
        "the last d_h must be [1, 3, 4], not [1, 2, 4]",
    ),
    ("backward_data", "arguments", 6, array(0), "the last d_c must be [1, 3, 4], not [0]"),
    (
        "backward_weights",
        "arguments",
        0,
        array(5, 3, 2),
        "the weights must have 512 bytes, not 576",
    ),
    ("backward_weights", "arguments", 1, array(1, 1, 4), "h must be [1, 3, 4], not [1, 1, 4]"),
    ("backward_weights", "arguments", 2, array(5, 4), "ys must be [5, 3, 4], not [5, 4]"),
    (
        "backward_weights",
        "arguments",
        3,
        array(3, 1, dtype=jnp.uint8),
        "the reserve must have at least ",
    ),
    ("forward", "results", 0, array(5, 3, 8), "ys must be [5, 3, 4], not [5, 3, 8]"),
    ("forward", "results", 1, array(3, 4), "the last h must be [1, 3, 4], not [3, 4]"),
    ("forward", "results", 2, array(0), "the last c must be [1, 3, 4], not [0]"),
    ("forward", "results", 3, array(3, 8, dtype=jnp.uint8), "the reserve must have at least "),
    (
        "backward_data",
        "results",
        0,
        array(5, 3),
        "d_xs must have 3 dimensions, none of them 0, not [5, 3]",
    ),
    ("backward_data", "results", 1, array(1, 3, 1), "d_h must be [1, 3, 4], not [1, 3, 1]"),
    ("backward_data", "results", 2, array(0), "d_c must be [1, 3, 4], not [0]"),
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


def error_of(call: Call) -> str:
    """Run a call and return its error, which must be one line that names the handler."""
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        call.run()
    (line,) = str(caught.value).splitlines()
    assert f"{call.name}: " in line
    return line


@pytest.mark.parametrize(("name", "arrays", "index", "other", "message"), WRONG_ARRAYS)
def test_wrong_arrays(
    recorded: dict[str, Call], name: str, arrays: str, index: int, other: Any, message: str
) -> None:
    given = getattr(recorded[name], arrays)
    changed = (*given[:index], other, *given[index + 1 :])
    assert message in error_of(recorded[name]._replace(**{arrays: changed}))


@pytest.mark.parametrize(("name", "value", "message"), WRONG_ATTRIBUTES)
def test_wrong_attributes(recorded: dict[str, Call], name: str, value: Any, message: str) -> None:
    for call in recorded.values():
        # `backward_weights` has no c.
        if "c must be" not in message or call.name != "jaxrnn_cudnn_backward_weights":
            assert message in error_of(call._replace(attributes=call.attributes | {name: value}))


def test_an_error_of_cudnn_is_one_line_with_its_text_and_the_sizes(
    recorded: dict[str, Call],
) -> None:
    """The stand-in returns an error, because no forward pass has written to this reserve."""
    line = error_of(recorded["backward_data"])
    assert "cudnnRNNBackwardData_v8 failed: CUDNN_STATUS_BAD_PARAM, " in line
    assert line.endswith(
        "(lstm, float32, T = 5, B = 3, D = 3, H = 4, layers: 1, directions: 1, algorithm standard)"
    )


def test_arguments_that_cudnn_writes_to_must_be_aliases(recorded: dict[str, Call]) -> None:
    for name, message in [
        ("backward_data", "the reserve must be an alias of its result"),
        ("backward_weights", "the zeros must be an alias of d_weights"),
    ]:
        assert message in error_of(recorded[name]._replace(aliases=None))


# --- the algorithm ------------------------------------------------------------------------------

H100, A100, A40, L4, V100 = (
    GPU(9, 0, 132),
    GPU(8, 0, 108),
    GPU(8, 6, 84),
    GPU(8, 9, 58),
    GPU(7, 0, 80),
)
STANDARD, PERSISTENT, SMALL = algorithm.ALGORITHMS


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
def test_the_algorithm_is_that_of_pytorch(
    cell: Any, dtype: str, size: Any, gpu: GPU, training: bool, want: str
) -> None:
    config = make_config(cell, dtype=dtype)
    assert algorithm.choose(config, Size(*size), gpu, training) == want
    if want == PERSISTENT:
        for other in (config._replace(layers=2), config._replace(both_directions=True)):
            assert algorithm.choose(other, Size(*size), gpu, training) == STANDARD


@pytest.mark.usefixtures("stand_in")
def test_forward_and_backward_pass_share_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this GPU, inference alone would use another algorithm than training."""
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


def test_possible_shard_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert algorithm.possible_shard_rows(12) == [12, 6, 4, 3]
    assert algorithm.possible_shard_rows(7) == [7]


@pytest.mark.usefixtures("stand_in")
def test_a_forced_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(CELLS["lstm"]).cast("float32")
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", SMALL)
    # The variable is read when a program is traced, so this must be a new trace.
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


# --- unsupported problems, and what runs instead ------------------------------------------------


@pytest.fixture
def nvidia(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that the current device is an NVIDIA GPU, and use the stand-in in place of cuDNN."""
    client = SimpleNamespace(platform_version="PJRT C API cuda 13000")
    device = fake("gpu", client=client, compute_capability="8.9", core_count=58)
    monkeypatch.setattr(accelerator, "device", lambda: device)
    library.unavailable_reason.cache_clear()
    yield
    library.unavailable_reason.cache_clear()


UNSUPPORTED = [
    (gru(4), "float32", {}, "GRU resets after the product"),
    (rnn(4, activation="sigmoid"), "float32", {}, "supports tanh and relu, not sigmoid"),
    (lstm(4, peephole=True), "float32", {}, "no peepholes"),
    (lstm(4), "float32", {"resets": True}, r"cannot reset a row .*\(resets\)"),
]


@pytest.mark.parametrize(("cell", "dtype", "how", "message"), UNSUPPORTED)
def test_xla_runs_what_cudnn_does_not_support(
    nvidia: None, cell: Any, dtype: str, how: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        explain(cell, (100, 2, 3), dtype, "cudnn", **how)
    choice = explain(cell, (100, 2, 3), dtype, **how)
    assert choice.implementation == "xla"
    assert re.match(f"cudnn cannot run this: .*{message}.*; the usual choice on gpu", choice.why)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_cudnn_is_the_default_on_a_gpu(nvidia: None, name: str, dtype: str) -> None:
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
def test_measurements_apply_only_to_gpus_of_the_same_name(
    nvidia: None, monkeypatch: pytest.MonkeyPatch, kind: str, want: str, why: str
) -> None:
    device = accelerator.device()
    device.device_kind = kind
    assert explain(lstm(512), (1024, 64, 512), "bfloat16") == (want, why)


def test_unsupported_inputs(nvidia: None) -> None:
    given = abstract_problem(lstm(4), (5, 2, 3), "float32")
    projected = given._replace(inputs=jax.ShapeDtypeStruct(given.inputs.shape, jnp.float32))
    assert "does not accept projected inputs" in str(cudnn.unsupported_reason(projected))
    (symbol,) = export.symbolic_shape("T")
    with unchecked():
        symbolic = abstract_problem(lstm(4), (symbol, 2, 3), "float32")
        assert "does not support the symbolic sizes" in str(cudnn.unsupported_reason(symbolic))
    for cell, shape in [(lstm(4), (2**31, 2, 3)), (lstm(2**15), (5, 2**16, 3))]:
        large = abstract_problem(cell, shape, "float32")
        reason = str(cudnn.unsupported_reason(large))
        assert "sizes and strides up to 2147483647, not 2147483648" in reason
    tokens = jax.ShapeDtypeStruct((5, 2), jnp.int32)
    for size, most in [(4, 256), (300, 600)]:
        given = abstract_problem(lstm(size), (5, 2, 3), "float32")
        for rows, message in [
            (most, "None"),
            (most + 1, f"up to {most} tokens, not {most + 1}"),
        ]:
            table = jax.ShapeDtypeStruct((rows, 4 * size), jnp.float32)
            found = cudnn.unsupported_reason(given._replace(inputs=Lookup(table, tokens)))
            assert re.search(message, str(found))


def test_run_raises_for_what_cudnn_does_not_support() -> None:
    """It must not ignore resets, or multiply projected inputs by the weights again."""
    params, xs, state = problem(CELLS["lstm"]).cast("float32").inputs
    inputs, resets = Dense(xs, params.w_x, params.b), Masks(jnp.ones((5, 2), bool))
    for given, masks, message in [
        (inputs, resets, "resets"),
        (inputs.project(), NO_MASKS, "projected"),
    ]:
        whole = recurrence.Problem(CELLS["lstm"], params, given, state, masks)
        with pytest.raises(ValueError, match=f"cuDNN cannot run this: .*{message}"):
            cudnn.run(whole, platform="cpu")


def test_xla_runs_what_cudnn_rejects(nvidia: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason contains the sizes and cuDNN's own text."""
    monkeypatch.setenv("JAXRNN_CUDNN_ALGORITHM", PERSISTENT)
    choice = explain(lstm(4), (100, 2, 3))
    assert choice.implementation == "xla"
    assert re.match(
        r"cudnn cannot run this: cuDNN cannot run LSTM.*float32, Size\(steps=100, batch=2, features=3\) "
        'with algorithm "persist-static": cudnnGetRNNTempSpaceSizes failed: CUDNN_STATUS_NOT_SUPPORTED',
        choice.why,
    )


def test_cudnn_does_not_run_on_amd(nvidia: None, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SimpleNamespace(platform_version="PJRT C API rocm 60000")
    monkeypatch.setattr(accelerator, "device", lambda: fake("gpu", client=client))
    choice = explain(lstm(4), (100, 2, 3))
    assert choice.implementation == "xla" and "supports only NVIDIA GPUs" in choice.why


def test_several_layers_run_in_one_call_if_cudnn_is_chosen(nvidia: None) -> None:
    inputs = Lookup(jnp.ones((5, 16)), jnp.ones((100, 2), jnp.int32))
    layers = [lstm(4).init(jax.random.key(0), 4)] * 2
    choose = partial(dispatch.layers_at_once, lstm(4), layers, inputs)
    assert choose(None) is stack and choose("cudnn") is stack and choose("xla") is None
    peephole = lstm(4, peephole=True)
    layers = [peephole.init(jax.random.key(0), 4)] * 2
    for implementation in (None, "cudnn"):
        assert dispatch.layers_at_once(peephole, layers, inputs, implementation) is None


LOAD = """
from tests.support import cudnn as host
from jaxrnn.recurrence.kernels.cplusplus import NotBuilt
from jaxrnn.recurrence.kernels.cudnn import library
try:
    library.load_cudnn(host.HOST.load(), {files})
except NotBuilt as reason:
    print(reason)
else:
    print("loaded")
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
def test_errors_of_loading_cudnn(
    files: str, environment: dict[str, str], message: str | None
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", LOAD.format(files=files)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = result.stdout
    assert said.count("\n") == 1, result.stderr
    if message is None:
        assert said == "loaded\n"
    else:
        assert said.startswith("cuDNN cannot be used: ") and message in said
        assert said.endswith('; `pip install "jax[cuda13]"` installs it\n')


@pytest.mark.process
@pytest.mark.usefixtures("compiler")
def test_a_machine_without_cudnn() -> None:
    """The reason is of the class `Missing`, so that `unroll` warns and uses another implementation."""
    program = """
from jaxrnn.recurrence.kernels import Missing
from jaxrnn.recurrence.kernels.cudnn import library
library._candidate_files = lambda: ["libcudnn.so.of-nowhere"]
assert isinstance(library.unavailable_reason(), Missing)
print(library.unavailable_reason())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.stdout.startswith("cuDNN cannot be used: libcudnn.so.of-nowhere: "), result.stderr


# --- cuDNN's headers and library ----------------------------------------------------------------


def package() -> Path | None:
    """Return the folder of the package nvidia-cudnn, or None if it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = (Path(folder) / "cudnn" for folder in folders)
    return next((path for path in found if (path / "include" / "cudnn_adv.h").exists()), None)


@pytest.mark.process
@pytest.mark.once
@pytest.mark.skipif(package() is None, reason="waits for the package nvidia-cudnn-cu13 (517 MB)")
class TestWithCudnnInstalled:
    """Compare with cuDNN's headers, and with what its library computes without a GPU."""

    @pytest.mark.usefixtures("compiler")
    def test_declarations_agree_with_the_headers(self, tmp_path: Path) -> None:
        """The program compares every function and constant at compile time."""
        for name in ("cuda_runtime.h", "cuda_runtime_api.h", "library_types.h"):
            (tmp_path / name).touch()
        folders = [tmp_path, package() / "include", host.CPLUSPLUS]
        includes = [f"-I{folder}" for folder in folders]
        source = host.HERE / "declarations.cc"
        command = [*COMPILER, "-std=c++17", "-fsyntax-only", *includes, str(source)]
        assert subprocess.run(command, capture_output=True, text=True).stderr == ""
        wrong = subprocess.run([*command, "-DWRONG"], capture_output=True, text=True)
        assert wrong.returncode and "cudnnRNNForward is another function" in wrong.stderr

    def test_offsets_of_the_weights(self) -> None:
        """Compare all offsets for every cell, dtype and algorithm, and for up to three layers."""
        (file,) = (package() / "lib").glob("libcudnn.so.*")
        program = "from tests.support.children import cudnn_weights; cudnn_weights.main()"
        result = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if result.returncode < 0:
            pytest.skip("waits for a version of cuDNN that gives offsets without a real context")
        assert result.stdout == "4680\n", result.stderr


# --- compiled for an H100 -----------------------------------------------------------------------

gpu_aot = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(gpu_static.missing() is not None, reason=str(gpu_static.missing())),
]


def compiled_for_an_h100(function: Any, given: Any) -> str:
    """Return the text of a program that XLA compiled without a GPU."""
    device = gpu_static.h100()
    host.LIBRARY.load()
    placed = aot.placed_on(SingleDeviceSharding(device), jax.eval_shape(lambda: given))
    with jax.default_device(device):
        return jax.jit(function).lower(*placed).compile().as_text()


@pytest.mark.usefixtures("stand_in")
class TestCompiled:
    pytestmark = gpu_aot

    def test_weights_are_packed_once_for_all_calls_of_a_training_step(self) -> None:
        """The calls are in a loop over parts of a sequence. The weights are packed before the loop."""
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

    def test_each_gpu_computes_its_own_rows(self) -> None:
        """The program is for four GPUs, and the batch is sharded over them."""
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
        """Check all operands and results.

        XLA chose other layouts for calls without fixed layouts, and cuDNN then mixed up time and rows.
        """
        given = problem(CELLS["lstm"], STEPS, BATCH).cast("float32")
        run = partial(on_host.__wrapped__, CELLS["lstm"], reverse=False, platform="cuda")
        text = compiled_for_an_h100(run, (given,))
        assert_row_major(text)


def assert_row_major(text: str) -> None:
    """Check that all operands and results of the calls of cuDNN are in row-major order."""
    called = re.findall(
        r"%\S+ = (.*?) custom-call\((.*?)\), custom_call_target=\"jaxrnn_cudnn", text
    )
    assert len(called) == len(host.LIBRARY.handlers)
    for results, operands in called:
        defined = [
            re.search(rf"{re.escape(name)} = (.*?) ", text)
            for name in re.findall(r"%[\w.-]+", operands)
        ]
        shapes = [results, *(found[1] for found in defined if found)]
        assert len(shapes) == 1 + len(defined)
        for order in re.findall(r"\]\{([\d,]+)", " ".join(shapes)):
            axes = [int(axis) for axis in order.split(",")]
            assert axes == sorted(axes, reverse=True)
