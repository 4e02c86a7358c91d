"""Test safetensors files: their content, round trips, and one-line errors for bad files."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxrnn
from jaxrnn import InputError, ModelConfig, Vocabulary, charlm
from jaxrnn.charlm.registry import CellName
from jaxrnn.formats.card import Card
from jaxrnn.formats.safetensors_file import read, read_config, save
from tests.support.readme import lively, program
from tests.support.runs import CORPUS, assert_same_bits, environment

pytestmark = pytest.mark.once

LETTERS = Vocabulary.of("abc \n")
TINY = ModelConfig(hidden_size=6, embedding_size=3, layers=2)


def model(vocabulary: Vocabulary = LETTERS, **changes: Any) -> charlm.Params:
    """A model with random numbers in place of every initial zero."""
    params = jaxrnn.init(dataclasses.replace(TINY, **changes), vocabulary)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [a + jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(model(), tmp_path / "model.safetensors", loss=1.5)
    return tmp_path / "model.safetensors"


# --- what is written, and what comes back ---


@pytest.mark.first_case
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(peephole=True, tie=True, embedding_size=6),
        dict(cell="gru", reset="after", embedding_size=0, dtype="bfloat16"),
        dict(cell="rnn", activation="relu", dropout=0.5, weight_dropout=0.25),
        *(dict(cell=name) for name in get_args(CellName)),
    ],
    ids=str,
)
def test_a_model_comes_back_bit_identical(changes: dict[str, Any], tmp_path: Path) -> None:
    params, path = model(**changes), tmp_path / "model.safetensors"
    save(params, path, loss=1.25, licence="CC0-1.0", text="play", sha256="0" * 64)
    found, card = read(path)
    assert_same_bits(found, params)
    assert (found.config, found.vocabulary) == (params.config, params.vocabulary)
    assert card == Card(1.25, "CC0-1.0", "play", "0" * 64)
    assert_same_bits(jaxrnn.load(path), params)
    # A safetensors reader that is not ours.
    arrays = safetensors.numpy.load_file(path)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(arrays["layers.1.w_x"], params.layers[1].w_x)
    np.testing.assert_array_equal(arrays["b_out"], params.b_out)
    assert ("embedding" in arrays) == (params.embedding is not None)
    assert ("w_out" in arrays) == (params.w_out is not None)


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary.of_bytes(),
        Vocabulary.of('\ud800\0"\\ä\U0010ffff\n'),
        Vocabulary("ba"),
        Vocabulary.of('Cl"\\ä\U0010ffff\n', r'Cl|["\\]+'),
    ],
    ids=["bytes", "odd", "unsorted", "tokens"],
)
def test_every_vocabulary_comes_back(vocabulary: Vocabulary, tmp_path: Path) -> None:
    params, path = model(vocabulary, layers=1), tmp_path / "m"
    jaxrnn.save(params, path)
    found, card = read(path)
    assert found.vocabulary == vocabulary and card == Card()
    assert_same_bits(found, params)


def test_names_and_metadata(file: Path) -> None:
    with safetensors.safe_open(file, "numpy") as opened:
        metadata, names = opened.metadata(), set(opened.keys())
    layers = {f"layers.{n}.{name}" for n in (0, 1) for name in ("w_x", "w_h", "b")}
    assert names == {"embedding", "w_out", "b_out"} | layers
    assert metadata.keys() == {"format", "jaxrnn"} and metadata["format"] == "jaxrnn"
    card = json.loads(metadata["jaxrnn"])
    assert card["version"] == 1 and card["loss"] == 1.5 and card["licence"] is None
    assert card["config"] == dataclasses.asdict(TINY)
    vocabulary = {"characters": LETTERS.characters, "by_bytes": False, "tokens": [], "pattern": ""}
    assert card["vocabulary"] == vocabulary


def test_equal_models_make_equal_files(file: Path) -> None:
    before = file.read_bytes()
    save(read(file)[0], file, loss=1.5)
    assert file.read_bytes() == before


def test_nan_and_infinity_come_back(tmp_path: Path) -> None:
    params = model().replace(b_out=jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-45]))
    save(params, tmp_path / "m")
    found = read(tmp_path / "m")[0].b_out
    assert np.asarray(found).tobytes() == np.asarray(params.b_out).tobytes()


def test_a_model_of_a_registered_cell(tmp_path: Path, unchecked: None) -> None:
    jaxrnn.register_cell("mine", lambda size: jaxrnn.lstm(size, peephole=True))
    params = model(cell="mine")
    save(params, tmp_path / "m")
    assert_same_bits(read(tmp_path / "m")[0], params)


def test_what_is_not_saved(tmp_path: Path, file: Path) -> None:
    before = file.read_bytes()
    for changes, message in (
        (dict(b_out=jnp.zeros(4)), r"params.b_out must have shape \(5,\) .*, not \(4,\)"),
        (dict(w_out=None), r"params.w_out must have shape \(6, 5\) .*, not None"),
        (dict(b_out=jnp.zeros(5, jnp.int32)), "params.b_out is int32, and must be float32"),
        (dict(b_out=np.zeros(5)), "params.b_out is float64"),
    ):
        with pytest.raises(InputError, match=message):
            save(model().replace(**changes), file)
    with pytest.raises(InputError, match="loss must be a finite number, not nan"):
        save(model(), file, loss=float("nan"))
    with pytest.raises(InputError, match=r" is a folder; give the name of a file$"):
        save(model(), file.parent)
    with pytest.raises(InputError, match=r"^\. is a folder; give"):
        save(model(), ".")
    assert file.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        save(model(), tmp_path / "missing" / "m")


def test_arguments_of_other_types(file: Path, unchecked: None) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"^params must be a jaxrnn\.Params, not dict$"):
        save({}, file)  # type: ignore[arg-type]
    for name in ("licence", "text", "sha256"):
        with pytest.raises(InputError, match=f"^{name} must be a text, not 3$"):
            save(model(), file, **{name: 3})  # type: ignore[arg-type]
    assert file.read_bytes() == before


@pytest.mark.process
def test_the_first_tensor_that_differs_is_named(file: Path) -> None:
    """The order is that of the model, independent of Python's hash seed."""
    code = """
import sys, jaxrnn
params = jaxrnn.load(sys.argv[1])
half = lambda a: a[: len(a) // 2]
embedding, w_out = half(params.embedding), half(params.w_out)
fewer = params.replace(embedding=embedding, w_out=w_out, b_out=half(params.b_out))
try:
    jaxrnn.save(fewer, sys.argv[2])
except jaxrnn.InputError as error:
    print(error)
"""
    for seed in "123":
        result = subprocess.run(
            [sys.executable, "-c", code, file, file.parent / "other"],
            env=environment() | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        message = (
            "params.embedding must have shape (5, 3) for its config and vocabulary, not (2, 3)\n"
        )
        assert (result.stdout, result.stderr) == (message, "")


# --- files of others ---


def rewritten(
    file: Path,
    tensors: Callable[[dict[str, Any]], Any] = lambda tensors: None,
    card: Callable[[dict[str, Any]], Any] = lambda card: None,
) -> Path:
    """The file after changes, written by the safetensors package."""
    found = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    values = json.loads(metadata["jaxrnn"])
    tensors(found)
    card(values)
    file.write_bytes(safetensors.numpy.save(found, metadata | {"jaxrnn": json.dumps(values)}))
    return file


def test_float16_becomes_float32(file: Path) -> None:
    small = safetensors.numpy.load_file(file)["b_out"].astype(np.float16)
    found, _ = read(rewritten(file, lambda tensors: tensors.update(b_out=small)))
    assert found.b_out.dtype == jnp.float32
    np.testing.assert_array_equal(found.b_out, small.astype(np.float32))


def test_bfloat16_becomes_float32(file: Path) -> None:
    """The numbers 1, -2, 3, 0.5 and 0, written by hand."""
    values = np.array([0x3F80, 0xC000, 0x4040, 0x3F00, 0], "<u2").tobytes()
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:begin]), content[begin:]
    assert header["b_out"]["data_offsets"] == [0, 20]  # the first by name
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["data_offsets"] = [max(at - 10, 0) for at in tensor["data_offsets"]]
    header["b_out"]["dtype"] = "BF16"
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + values + data[20:])
    np.testing.assert_array_equal(read(file)[0].b_out, [1, -2, 3, 0.5, 0])


def test_missing_settings_get_their_defaults(file: Path) -> None:
    """Files of an older version, and entries that a newer one adds."""
    before = read(file)[0]

    def change(card: dict[str, Any]) -> None:
        del card["config"]["peephole"]
        card["new"] = 1

    assert_same_bits(read(rewritten(file, card=change))[0], before)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a safetensors file: it is empty"),
        (b"To be, or not to be", "it has another file format"),
        (pickle.dumps({"a": 1}), "it begins as a pickle does, which jaxrnn never reads"),
        (b"<!DOCTYPE html>\n<html>", "it begins as a web page does"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS; fetch the file itself"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        ((10**15).to_bytes(8, "little") + b"{}", "is damaged: Error while"),
        (
            (2).to_bytes(8, "little") + b"{}",
            "not hold a model of jaxrnn: its metadata has no format",
        ),
        ((9).to_bytes(8, "little") + b'{"a":"b"}', "is damaged: "),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:30],
)
def test_files_of_other_formats(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    for reader in read, jaxrnn.load:
        assert message in refused(file, reader)


def refused(file: Path, reader: Callable[[Path], Any] = read) -> str:
    """Return the error message for a file, which must be one line that names the file."""
    with pytest.raises(InputError) as caught:
        reader(file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    return message


def test_zip_archives_and_special_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    assert "it is a zip archive, as torch.save and Keras write" in refused(tmp_path / "zip")
    assert "cannot read " in refused(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for reader in read, read_config:
        assert "is a folder, not a safetensors file" in refused(tmp_path, reader)
        assert "is not a regular file" in refused(Path("/dev/null"), reader)
        assert "is not a regular file" in refused(tmp_path / "pipe", reader)


def test_every_truncation_is_reported(file: Path) -> None:
    content = file.read_bytes()
    for size in (1, 8, 9, 100, len(content) - 4, len(content) - 1):
        file.write_bytes(content[:size])
        message = refused(file)
        assert ("is damaged: " in message) == (size > 8)
    assert f"it has {len(content) - 1:,} bytes and should have {len(content):,}" in message
    file.write_bytes(content + b"more")
    assert f"it has {len(content) + 4:,} bytes and should have {len(content):,}" in refused(file)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("w_out"), "has no tensor w_out"),
        (lambda t: t.pop("layers.1.b"), "has no tensor layers.1.b"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "has a tensor extra, which its"),
        (
            lambda t: t.update(w_out=np.zeros((5, 6), np.float32)),
            "w_out has shape [5, 6], and its configuration requires [6, 5]",
        ),
        (lambda t: t.update(w_out=np.zeros((6, 5))), "w_out is F64; convert it to F32, F16"),
        (lambda t: t.update(w_out=np.zeros((6, 5), np.int32)), "w_out is I32"),
        (
            lambda t: t.update(b_out=np.zeros(4, np.float32)),
            "a vocabulary of 5 tokens, and weights for another: b_out has shape [4]",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str, file: Path) -> None:
    assert message in refused(rewritten(file, tensors=change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(version=2), "was written by a newer jaxrnn: its card has version 2"),
        (dict(version="1"), "has a damaged card: its version is '1'"),
        (dict(version=0), "has a damaged card: its version is 0"),
        (dict(version=-5), "has a damaged card: its version is -5"),
        (dict(config=None), "has an invalid configuration: it is missing or not a JSON object"),
        (dict(config=dict(hidden_size=7.5)), "invalid configuration: hidden_size is 7.5"),
        (dict(config=dict(hidden_size=True)), "hidden_size is True"),
        (dict(config=dict(hidden_size=0)), "invalid configuration: hidden_size must be at least 1"),
        (dict(config=dict(hidden_size=10**30)), ""),
        (
            dict(config=dict(layers=10**12)),
            "has no tensor layers.2.w_x, and its card specifies 1000000000000",
        ),
        (dict(config=dict(cell="os.system")), "invalid configuration: cell must be one of rnn"),
        (dict(config=dict(cell=["lstm"])), "cell is ['lstm']"),
        (dict(config=dict(reset="never")), "reset is 'never'"),
        (dict(config=dict(depth=3)), "this version of jaxrnn has no setting 'depth'"),
        (dict(vocabulary=None), "has an invalid vocabulary: it is missing or not a JSON object"),
        (dict(vocabulary=dict(characters="aabc ")), "invalid vocabulary: characters must contain"),
        (dict(vocabulary=dict(characters="")), "invalid vocabulary: it is empty"),
        (
            dict(vocabulary=dict(letters="ab")),
            "invalid vocabulary: this version of jaxrnn has no entry 'letters'",
        ),
        (dict(vocabulary=dict(characters="abcd")), "a vocabulary of 4 tokens"),
        (dict(vocabulary=dict(by_bytes=1)), "by_bytes is 1"),
        (
            dict(vocabulary=dict(tokens=["ab", 1], pattern="ab")),
            "invalid vocabulary: tokens must be",
        ),
        (
            dict(vocabulary=dict(tokens=["ab"], pattern="(")),
            "invalid vocabulary: `pattern` '(' is not",
        ),
        (dict(loss="low"), "invalid card: loss must be a finite number"),
        (dict(licence=3), "invalid card: licence must be a text, not 3"),
    ],
    ids=str,
)
def test_cards_that_do_not_fit(
    change: dict[str, Any], message: str, file: Path, unchecked: None
) -> None:
    def update(card: dict[str, Any]) -> None:
        if isinstance(change.get("config"), dict):
            card["config"] |= change["config"]
        else:
            card |= change

    assert message in refused(rewritten(file, card=update))


@pytest.mark.parametrize("card", ["", "[]", "{", "[" * 100_000, '{"version": 1e999}'], ids=str)
def test_damaged_cards(card: str, file: Path) -> None:
    tensors = safetensors.numpy.load_file(file)
    file.write_bytes(safetensors.numpy.save(tensors, {"jaxrnn": card}))
    assert "has a damaged card: " in refused(file)
    file.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    assert "does not hold a model of jaxrnn: its metadata has format 'pt'" in refused(file)


# --- the program in the documentation ---


@pytest.mark.process
@pytest.mark.parametrize(
    "changes", [dict(), dict(tie=True, embedding_size=16), dict(embedding_size=0)], ids=str
)
def test_the_numpy_program_writes_the_same_text(changes: dict[str, Any], tmp_path: Path) -> None:
    """It runs where neither JAX nor jaxrnn nor safetensors can be imported."""
    params = lively(CORPUS.vocabulary, **changes)
    save(params, tmp_path / "m")
    code = "import sys; sys.modules.update(dict.fromkeys(['jax', 'jaxrnn', 'safetensors']))\n"
    code += program("jaxrnn/formats/README.md", "import json")
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m", "9 green"],
        env=environment() | {"PYTHONPATH": ""},
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
    text = jaxrnn.sample(params, "9 green", 60, mode="argmax")
    assert result.stdout.decode() == text
    assert len(set(text)) > 8, "the model repeats itself, whatever the program computes"
