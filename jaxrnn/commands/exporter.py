"""Write the files of `python -m jaxrnn.export`, after all checks."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from rich import filesize

from jaxrnn import charlm, console
from jaxrnn.commands.export_options import ExportOptions
from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from jaxrnn.formats import onnx_file, page, safetensors_file, stablehlo
from jaxrnn.formats.card import Card
from jaxrnn.interop import onnx_graph
from jaxrnn.training import run_directory
from jaxrnn.training.run_description import load_with_card

Format = Literal["safetensors", "stablehlo", "onnx", "html"]
# In the order in which the files are written.
FORMATS: tuple[Format, ...] = ("safetensors", "stablehlo", "onnx", "html")


def run(options: ExportOptions) -> None:
    """Read the model and write the files.

    Everything that can be refused is refused before the first file is written.

    Raises:
      InputError: for options or a model that cannot be used.
      OSError: if a file cannot be written; it then keeps its old content.
    """
    # Nothing large is computed, and a training may be using the memory of an accelerator.
    accelerator.use("cpu")
    outputs = _outputs(options)
    _check_options(options, outputs)
    for name, path in outputs.items():
        run_directory.check_output_file(path, options.run, name)
        _check_package(name)
    params, card = load_with_card(options.run, options.which, console.note)
    for name in outputs:
        _check_model(name, params)
    for name, path in outputs.items():
        try:
            what = _write(name, path, params, card, options)
        except OSError as error:
            raise OSError(f"could not write to {path}: {error.strerror or error}") from error
        size = filesize.decimal(path.stat().st_size)
        print(f"{console.quoted(path)}: {what}, {size}; {_READERS[name]}", flush=True)


# --- checks ---


def _outputs(options: ExportOptions) -> dict[Format, Path]:
    """Return the output path of each requested format."""
    return {name: path for name in FORMATS if (path := getattr(options, name)) is not None}


def _check_options(options: ExportOptions, outputs: dict[Format, Path]) -> None:
    """Raise InputError if no format is requested, two share a path, or a setting has no effect."""
    if not outputs:
        flags = ", ".join(f"--{name} PATH" for name in FORMATS)
        raise InputError(f"request at least one output file: {flags}")
    places: dict[str, Format] = {}
    for name, path in outputs.items():
        other = places.setdefault(os.path.realpath(path), name)
        if other != name:
            raise InputError(f"--{other} and --{name} have the same path {path}; choose another")
    for flag, needs in (("licence", "safetensors"), ("title", "html"), ("html_weights", "html")):
        given = getattr(options, flag) != getattr(ExportOptions, flag)
        if given and needs not in outputs:
            raise InputError(f"`{flag}` needs --{needs} PATH; add that, or leave it out")


def _check_package(name: Format) -> None:
    """Raise InputError if the package that writes a format is not installed."""
    if name == "stablehlo":
        stablehlo.require_flatbuffers()
    if name == "onnx":
        onnx_graph.package()


def _check_model(name: Format, params: charlm.Params) -> None:
    """Raise InputError if a format cannot express a model."""
    reason = None
    if name == "onnx":
        reason = onnx_file.unsupported_reason(params.config)
    elif name == "html":
        reason = page.unsupported_reason(params.config, params.vocabulary)
    if reason:
        raise InputError(f"--{name} does not support this model: {reason}")


# --- writing ---

# Programs that read each format.
_READERS: dict[Format, str] = {
    "safetensors": "read by jaxrnn.load, python -m jaxrnn.generate and any safetensors reader",
    "stablehlo": "runs on cpu, cuda and tpu with the packages jax and flatbuffers",
    "onnx": "runs in ONNX Runtime and other runtimes",
    "html": "open it in a browser",
}


def _write(
    name: Format, path: Path, params: charlm.Params, card: Card, options: ExportOptions
) -> str:
    """Write one file and return a description of its content."""
    if name == "safetensors":
        licence = card.licence if options.licence is None else options.licence
        card = dataclasses.replace(card, licence=licence)
        safetensors_file.save(params, path, **dataclasses.asdict(card))
        return f"{charlm.count(params):,} parameters in float32 and their card"
    if name == "stablehlo":
        stablehlo.write(params, path)
        return f"the sampling function with its parameters in {params.config.dtype}"
    if name == "onnx":
        onnx_file.write(params, path)
        return "the model in float32"
    return _write_page(path, params, card, options)


def _write_page(path: Path, params: charlm.Params, card: Card, options: ExportOptions) -> str:
    """Write the page, and return a description with the loss of quality."""
    title = options.title
    if title is None:
        title = f"A network that has read “{card.text}”" if card.text else "A network that writes"
    weights = options.html_weights
    written = page.write(params, path, weights=weights, title=title)
    if weights == "float32":
        return "a page with exact weights"
    return (
        f"a page with weights in {weights}; rounding adds {written.divergence:.2g} nats per character, "
        f"and {written.same:.2%} of the most likely characters stay the same"
    )
