"""Test StableHLO files: they draw the text of `jaxrnn.sample`, and return -1 for bad arguments."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

import jaxrnn
from jaxrnn import InputError, Vocabulary, charlm
from jaxrnn.formats import stablehlo
from tests.support.readme import lively, program
from tests.support.runs import CORPUS, environment

PRIME = "9 green"


def loaded(params: charlm.Params, folder: Path) -> export.Exported:
    """The program, written to a file and read again."""
    # A path may be a text, as in `jaxrnn.save`.
    stablehlo.write(params, str(folder / "m"))
    return export.deserialize(bytearray((folder / "m").read_bytes()))


@pytest.fixture(scope="module")
def params() -> charlm.Params:
    return lively(CORPUS.vocabulary)


@pytest.fixture(scope="module")
def sampler(params: charlm.Params, tmp_path_factory: pytest.TempPathFactory) -> export.Exported:
    return loaded(params, tmp_path_factory.mktemp("stablehlo"))


def call(
    sampler: export.Exported,
    prime: np.ndarray,
    length: int,
    given: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> np.ndarray:
    """The text [P + length] after a prime [P]; its other places start as invalid characters."""
    text = np.full(len(prime) + length, -7, np.int32)
    text[: len(prime)] = prime
    scalars = np.uint32(seed), np.float32(temperature), np.float32(top_p), np.int32(top_k)
    return np.asarray(
        sampler.call(text, np.int32(len(prime) if given is None else given), *scalars)
    )


def points(text: str) -> np.ndarray:
    return np.array([ord(character) for character in text], np.int32)


def written(sampler: export.Exported, prime: str, length: int, **options: Any) -> str:
    return "".join(map(chr, call(sampler, points(prime), length, **options)))


# --- the same text ---


@pytest.mark.first_case
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(seed=2**32 - 1, temperature=0.5),
        dict(seed=3, top_p=0.7),
        dict(seed=4, top_k=3),
        dict(seed=5, top_k=4, top_p=0.8, temperature=1.5),
        dict(seed=6, top_k=10**6, temperature=1e-35),
        dict(temperature=1e35),
    ],
    ids=str,
)
def test_a_seed_draws_the_text_of_sample(
    options: dict[str, Any], params: charlm.Params, sampler: export.Exported
) -> None:
    text = jaxrnn.sample(params, PRIME, 100, **options)
    assert written(sampler, PRIME, 100, **options) == text
    assert len(set(text)) > 8


@pytest.mark.slow
def test_the_state_of_a_model_of_lines_is_reset(tmp_path: Path) -> None:
    params = lively(CORPUS.vocabulary, lines=True)
    text = jaxrnn.sample(params, "9\n", 200, temperature=1.5)
    assert text.count("\n") > 2
    assert written(loaded(params, tmp_path), "9\n", 200, temperature=1.5) == text


def test_temperature_0_takes_the_most_likely(
    params: charlm.Params, sampler: export.Exported
) -> None:
    text = jaxrnn.sample(params, PRIME, 60, mode="argmax")
    for seed in range(3):
        assert written(sampler, PRIME, 60, seed=seed, temperature=0.0) == text
    assert written(sampler, PRIME, 60, seed=9, top_k=1) == text


def test_texts_of_every_length(params: charlm.Params, sampler: export.Exported) -> None:
    for prime, length in (("9", 0), ("9", 1), (PRIME, 0), (PRIME * 5, 17)):
        assert written(sampler, prime, length) == jaxrnn.sample(params, prime, length)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(cell="gru", reset="after", layers=1),
        dict(cell="lstm", peephole=True, tie=True, embedding_size=16),
        dict(cell="rnn", embedding_size=0),
        dict(cell="mogrifier_lstm"),
        dict(cell="minlstm"),
        dict(dtype="bfloat16"),
    ],
    ids=str,
)
def test_every_model(changes: dict[str, Any], tmp_path: Path) -> None:
    params = lively(CORPUS.vocabulary, **changes)
    sampler = loaded(params, tmp_path)
    assert written(sampler, PRIME, 40, temperature=0.0) == jaxrnn.sample(
        params, PRIME, 40, mode="argmax"
    )
    assert written(sampler, PRIME, 40, seed=1) == jaxrnn.sample(params, PRIME, 40, seed=1)


@pytest.mark.slow
def test_a_model_of_bytes(tmp_path: Path) -> None:
    params = lively(Vocabulary.of_bytes())
    sampler = loaded(params, tmp_path)
    prime = bytes([0, 255, 65])
    found = call(sampler, np.frombuffer(prime, np.uint8), 40, seed=2)
    assert found.astype(np.uint8).tobytes() == jaxrnn.sample_bytes(params, prime, 40, seed=2)
    assert (call(sampler, np.array([65, 256], np.int32), 3) == -1).all()


@pytest.mark.slow
def test_a_model_of_tokens(tmp_path: Path) -> None:
    """The StableHLO file takes and returns token numbers, not text."""
    params = lively(Vocabulary.of("CCl Br\n[Na+] c1ccccc1 N", r"\[.*?\]|Br|Cl"))
    prime = params.vocabulary.encode("[Na+]Cl").astype(np.int32)
    found = call(loaded(params, tmp_path), prime, 40, seed=2)
    assert params.vocabulary.decode(found) == jaxrnn.sample(params, "[Na+]Cl", 40, seed=2)


@pytest.mark.slow
def test_characters_in_any_order_and_of_any_plane(tmp_path: Path) -> None:
    params = lively(Vocabulary("z\U0010ffffa\n\ud800é"))
    sampler = loaded(params, tmp_path)
    assert written(sampler, "a\U0010ffff\ud800", 40) == jaxrnn.sample(
        params, "a\U0010ffff\ud800", 40
    )


# --- what cannot be sampled ---


@pytest.mark.parametrize(
    "options",
    [
        dict(given=0),
        dict(given=-1),
        dict(given=12),
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(top_p=float("nan")),
        dict(top_k=-1),
    ],
    ids=str,
)
def test_options_out_of_range_give_minus_1(
    options: dict[str, Any], sampler: export.Exported
) -> None:
    assert call(sampler, points(PRIME), 4, **options).tolist() == [-1] * 11


@pytest.mark.parametrize("prime", ["X", "9 grXen", "9 green\U0010ffff", "\0"])
def test_an_unknown_character_gives_minus_1(prime: str, sampler: export.Exported) -> None:
    assert call(sampler, points(prime), 3).tolist() == [-1] * (len(prime) + 3)
    # Those after the prime are of no account.
    known = call(sampler, points("9" + prime), 3, given=1)
    assert (known >= 0).all()


# --- the program itself ---


def test_it_calls_nothing_of_this_machine(params: charlm.Params) -> None:
    made = stablehlo.exported(params)
    assert made.platforms == ("cpu", "cuda", "tpu")
    calls = set(re.findall(r"custom_call @(\w+)", made.mlir_module()))
    assert calls <= {"shape_assertion"}


@pytest.mark.slow
def test_each_parameter_is_in_the_file_once(tmp_path: Path) -> None:
    params = lively(CORPUS.vocabulary, hidden_size=256)
    stablehlo.write(params, tmp_path / "m")
    # The table of projected characters is larger than the embedding that it replaces.
    table = 4 * 256 * len(params.vocabulary)
    held = 4 * (charlm.count(params) + table)
    assert held * 0.95 < (tmp_path / "m").stat().st_size < held * 1.05 + 40_000


@pytest.mark.parametrize("x64", [False, True])
def test_it_does_not_depend_on_modes(x64: bool, params: charlm.Params) -> None:
    with jax.enable_x64(x64), jax.default_prng_impl("rbg"):
        made = stablehlo.exported(params)
        text = written(made, PRIME, 30, seed=8)
    assert text == jaxrnn.sample(params, PRIME, 30, seed=8)


def test_without_flatbuffers(
    params: charlm.Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match=r'needs: pip install "jaxrnn\[stablehlo\]"'):
        stablehlo.write(params, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_the_program_of_the_readme_needs_jax_alone(params: charlm.Params, tmp_path: Path) -> None:
    stablehlo.write(params, tmp_path / "m")
    code = "import sys; sys.modules.update(dict.fromkeys(['jaxrnn', 'flax', 'optax', 'orbax']))\n"
    code += program("jaxrnn/formats/README.md", "export.deserialize")

    def run(prime: str, temperature: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", code, tmp_path / "m", prime, "60", "1", temperature],
            env=environment() | {"PYTHONPATH": ""},
            capture_output=True,
        )

    for temperature, how in (("0", dict(mode="argmax")), ("0.8", dict(temperature=0.8, seed=1))):
        result = run(PRIME, temperature)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout.decode() == jaxrnn.sample(params, PRIME, 60, **how)
    assert b"that the model does not know" in run("X", "0").stderr
