"""Read and write char-RNNs as safetensors files, which hold the parameters and a model card.

    save(params, "model.safetensors", loss=1.37, licence="CC-BY-4.0")
    params, card = read("model.safetensors")

The README of this folder describes the file. Reading one never runs code from it: it holds JSON and
numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory, mesh, modes
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.formats.card import Card, facts_of, metadata_of, read_card

# The dtypes of tensors that are read. All become float32, which holds every float16 and bfloat16.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# The first bytes of files that are taken for models.
_OTHERS = (
    (b"PK\x03\x04", "it is a zip archive, as torch.save and Keras write"),
    (b"\x80", "it begins as a pickle does, which jaxrnn never reads"),
    (b"\x89HDF", "it is an HDF5 file"),
    (b"<", "it begins as a web page does"),
    (b"version https://git-lfs", "it is a pointer of Git LFS; fetch the file itself"),
)


# --- writing ---


@modes.fixed()
def save(
    params: charlm.Params,
    path: str | os.PathLike[str],
    *,
    loss: float | None = None,
    licence: str | None = None,
    text: str | None = None,
    sha256: str | None = None,
) -> None:
    """Write a model to a safetensors file, which `jaxrnn.load` and other programs read.

        jaxrnn.save(params, "model.safetensors", licence="CC-BY-4.0")
        params = jaxrnn.load("model.safetensors")  # bit-identical

    The file holds each parameter as float32 under its name (`embedding` [V, E], `layers.0.w_x` [E, G],
    `layers.0.w_h` [H, G], `layers.0.b` [G], ..., `w_out` [H, V], `b_out` [V], where G is the hidden
    size H times the number of gates), and the configuration and the vocabulary in its metadata. Equal
    arguments make equal files.

    Args:
      params: the model, from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      path: the file. It is replaced as a whole or not at all.
      loss: validation loss in nats per character.
      licence: licence of the model, an SPDX identifier or free text.
      text: name of the text that the model was trained on.
      sha256: SHA-256 of that text, in hexadecimal digits.

    Raises:
      InputError: for parameters that do not fit their configuration or are not floating-point numbers
        of at most 32 bits, for a loss that is not finite, for other facts that are not text, and for the
        path of a folder.
      OSError: if the file cannot be written.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the name of a file")
    if not isinstance(params, charlm.Params):
        raise InputError(f"params must be a jaxrnn.Params, not {type(params).__name__}")
    try:
        card = facts_of({"loss": loss, "licence": licence, "text": text, "sha256": sha256})
    except ValueError as error:
        raise InputError(str(error)) from None
    atomic_write(file, _content(_tensors(params), metadata_of(params, card)))


def _tensors(params: charlm.Params) -> dict[str, np.ndarray]:
    """Return the parameters by name as little-endian float32, checked against the configuration."""
    expected = named(_shapes(params.config, params.vocabulary))
    given = named(params)
    # The expected names come first, so that the first that differs is always the same one.
    for name in expected | given:
        shapes = [tuple(tree[name].shape) if name in tree else None for tree in (given, expected)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"params.{name} must have shape {shapes[1]} for its config and vocabulary, not "
                f"{shapes[0]}"
            )
        if given[name].dtype.name not in _DTYPES.values():
            raise InputError(f"params.{name} is {given[name].dtype}, and must be float32")
    return {name: np.asarray(mesh.gather_full(given[name])).astype("<f4") for name in sorted(given)}


def _content(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Return the content of the file.

    safetensors itself would write the metadata in random order, so that no two files were equal.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    # The numbers begin at a multiple of 8.
    raw += b" " * (-len(raw) % 8)
    return b"".join([len(raw).to_bytes(8, "little"), raw, *(t.tobytes() for t in tensors.values())])


# --- reading ---


@modes.fixed()
def read(path: str | os.PathLike[str]) -> tuple[charlm.Params, Card]:
    """Read a model from a file that `save` wrote onto the default device.

    Tensors in float16 and bfloat16 are converted to float32, which holds each of their values exactly.
    Other dtypes are refused.

    Returns:
      (params, card): the model, with float32 parameters, and what is known about it.

    Raises:
      InputError: if the file cannot be read, is damaged, has the wrong format or a newer version, or
        does not describe a model that fits its tensors; the message names the first fault.
    """
    file = Path(path)
    tensors, metadata = _parsed(file, _bytes(file))
    config, vocabulary, card = read_card(file, metadata)
    shapes = _checked_shapes(file, config, vocabulary, tensors)
    arrays = {
        name: np.frombuffer(tensor["data"], np.dtype(_DTYPES[tensor["dtype"]]))
        .reshape(tensor["shape"])
        .astype(np.float32)
        for name, tensor in tensors.items()
    }
    device = accelerator.device()
    leaves = [jax.device_put(arrays[name], device) for name in named(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), card


def read_config(path: str | os.PathLike[str]) -> charlm.ModelConfig:
    """Return the configuration in the card of a file, without touching a device.

    Raises:
      InputError: as `read` does for a card that does not describe a model. Tensors are not checked.
    """
    file = Path(path)
    try:
        _check_kind(file)
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            # safetensors reads no longer headers.
            header = json.loads(opened.read(min(size, 100_000_000)))
        return read_card(file, header.get("__metadata__") or {})[0]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise InputError(f"{file} is not a safetensors file") from None


def _bytes(file: Path) -> bytes:
    """Return the content of a file that fits into memory."""
    try:
        _check_kind(file)
        size = file.stat().st_size
        memory.check(size, f"the model in {file}", "use a machine with more")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _check_kind(file: Path) -> None:
    """Raise InputError for a folder, and for a pipe or a device, from which reading may never end."""
    if file.is_dir():
        raise InputError(f"{file} is a folder, not a safetensors file")
    if file.exists() and not file.is_file():
        raise InputError(f"{file} is not a regular file; give a safetensors file")


def _parsed(file: Path, content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file, each with dtype, shape and data, and the metadata.

    safetensors checks that the tensors cover the file.
    """
    try:
        import safetensors
    except ImportError:
        raise InputError("reading safetensors files needs: pip install safetensors") from None
    try:
        tensors = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        _refuse(file, content, error)
    size = int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def _refuse(file: Path, content: bytes, error: Exception) -> NoReturn:
    """Raise InputError for a file that safetensors cannot read."""
    # A header of JSON comes after its size in 8 bytes.
    if content[8:9] == b"{":
        end = _declared_end(content)
        if end is not None and end != len(content):
            raise InputError(
                f"{file} is damaged: it has {len(content):,} bytes and should have {end:,}"
            )
        raise InputError(f"{file} is damaged: {error}")
    kinds = [kind for start, kind in _OTHERS if content.startswith(start)]
    why = kinds[0] if kinds else "it has another file format" if content else "it is empty"
    raise InputError(
        f"{file} is not a safetensors file: {why}; give a run directory, or a file that jaxrnn.save or "
        "python -m jaxrnn.export wrote"
    )


def _declared_end(content: bytes) -> int | None:
    """Return the size in bytes that the header gives a file, or None if it cannot be read."""
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > len(content):
        return None
    try:
        header = json.loads(content[8:begin])
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name[:2] != "__"]
        return begin + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _checked_shapes(
    file: Path, config: charlm.ModelConfig, vocabulary: Vocabulary, tensors: dict[str, Any]
) -> charlm.Params:
    """Return the shapes that the model has by its card, after comparing the tensors with them."""
    held = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    # This comes first because a few bytes can promise any number of layers.
    absent = next((n for n in range(config.layers) if str(n) not in held), None)
    if absent is not None:
        raise InputError(
            f"{file} has no tensor layers.{absent}.w_x, and its card specifies {config.layers} layers"
        )
    if "b_out" in tensors and tensors["b_out"]["shape"] != [len(vocabulary)]:
        raise InputError(
            f"{file} has a vocabulary of {len(vocabulary)} tokens, and weights for another: b_out has "
            f"shape {tensors['b_out']['shape']}"
        )
    try:
        shapes = _shapes(config, vocabulary)
    except (InputError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file} has an invalid configuration: {error}") from None
    expected = named(shapes)
    for name in sorted(expected.keys() - tensors.keys()):
        raise InputError(f"{file} has no tensor {name}")
    for name in sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{file} has a tensor {name}, which its configuration does not have")
    for name, described in expected.items():
        tensor = tensors[name]
        if tensor["shape"] != list(described.shape):
            raise InputError(
                f"{file}: {name} has shape {tensor['shape']}, and its configuration requires "
                f"{list(described.shape)}"
            )
        if tensor["dtype"] not in _DTYPES:
            raise InputError(
                f"{file}: {name} is {tensor['dtype']}; convert it to {', '.join(_DTYPES)}"
            )
    return shapes


def _shapes(config: charlm.ModelConfig, vocabulary: Vocabulary) -> charlm.Params:
    """Return the shapes and dtypes of the parameters of a model."""
    return jax.eval_shape(lambda: charlm.init(config, vocabulary))


def named(tree: Any) -> dict[str, Any]:
    """Return the arrays of a pytree by their paths, such as "layers.0.w_x"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
