"""Write a trained char-RNN to files: `python -m jaxrnn.export RUN --safetensors play.safetensors`.

jaxrnn/formats/README.md describes the files. `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import filesize

from jaxrnn import arguments, charlm, console
from jaxrnn.arguments import shown_default
from jaxrnn.devices import accelerator, memory
from jaxrnn.errors import InputError
from jaxrnn.formats import onnx_file, page, safetensors_file, stablehlo
from jaxrnn.formats.card import Card
from jaxrnn.interop import onnx_graph
from jaxrnn.training import orbax_errors, run_directory, signals
from jaxrnn.training.checkpoint import Which
from jaxrnn.training.run_description import load_with_card

Format = Literal["safetensors", "stablehlo", "onnx", "html"]
# In the order in which the files are written.
FORMATS: tuple[Format, ...] = ("safetensors", "stablehlo", "onnx", "html")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a trained char-RNN to files for other programs, in one or several formats."""

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    safetensors: Path | None = None
    """Write the parameters and a model card to this safetensors file, which jaxrnn can load."""
    stablehlo: Path | None = None
    """Write the sampling function to this StableHLO file, which JAX can run without jaxrnn."""
    onnx: Path | None = None
    """Write the model to this ONNX file."""
    html: Path | None = None
    """Write an HTML page to this file that generates text in a browser."""
    html_weights: Literal["float32", "float16", "int8"] = "float16"
    """Number format of the weights in the page: float32 (exact), float16 (half the size) or int8 (a
    quarter of the size)."""
    licence: Annotated[str | None, shown_default("licence of the input file")] = None
    """Licence of the model, for the safetensors file: an SPDX identifier or any text."""
    title: Annotated[str | None, shown_default("from the name of the text")] = None
    """Title of the page."""
    which: Which = "best"
    """Checkpoint of a run to export: the one with the lowest validation loss (best) or the latest."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 for success, 1 for a failure, 2 for bad input, 128 + n after signal n, and 141 if
    standard output was a pipe that lost its reader.
    """
    console.open_streams()
    try:
        options = arguments.parse(ExportOptions, "python -m jaxrnn.export", argv)
        with console.lasting_output(), signals.catching(signals.stop):
            run(options)
            return console.PIPE_CLOSED if console.pipe_closed() else 0
    except InputError as error:
        console.error(arguments.in_flags(error, ExportOptions))
        return 2
    except OSError as error:
        console.error(error)
        return 1
    except signals.Stopped as stopped:
        return int(stopped.args[0])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        console.error(f"the memory ran out ({orbax_errors.first_line(error)})")
        return 1


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
        _check_model(name, params.config)
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


def _check_model(name: Format, config: charlm.ModelConfig) -> None:
    """Raise InputError if a format cannot express a model."""
    reason = None
    if name == "onnx":
        reason = onnx_file.unsupported_reason(config)
    elif name == "html":
        reason = page.unsupported_reason(config)
    if reason:
        raise InputError(f"--{name} does not support this model: {reason}")


# --- writing ---

# What the reader of each file needs.
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


if __name__ == "__main__":
    orbax_errors.quieten()
    sys.exit(main())
