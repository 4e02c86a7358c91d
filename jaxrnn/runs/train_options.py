"""The options of a training, and how they follow from a preset and from flags or Python settings."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrnn import arguments
from jaxrnn.arguments import shown_default
from jaxrnn.charlm.config import ModelConfig
from jaxrnn.data import sources
from jaxrnn.devices.process_options import Processes
from jaxrnn.errors import InputError
from jaxrnn.literals import Accelerator, Newlines, Which
from jaxrnn.presets import PRESETS, SHAKESPEARE_LENGTH, Preset
from jaxrnn.runs import keywords
from jaxrnn.settings import nested, setting
from jaxrnn.training.config import TrainingConfig

# Settings that determine the defaults of other settings, in addition to the cell.
FIRST = ("preset", "data", "workdir", "init_from", "overwrite")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a character-level RNN, LSTM or GRU on a text.

    The run directory holds everything about the run. Running the same command again resumes the run.
    """

    preset: Preset = setting("small", may_change=True)
    """Preset; any other flag overrides it: small (two minutes on two CPU cores), shakespeare (the best
    result in 15 minutes on two CPU cores), sprint (nanoGPT's loss on Tiny Shakespeare in half a minute),
    lecture (the settings of the lecture's code). small and shakespeare depend on the length of the
    text."""
    data: tuple[str, ...] = setting(("play",), may_change=True, per_process=True)
    """Training text: files, folders, "-" (standard input), "shakespeare" (Tiny Shakespeare, downloaded
    once), "play" (a play that a grammar of known entropy generates), or a single folder that python -m
    jaxrnn.prepare made."""
    glob: Annotated[str | None, shown_default("*.txt")] = setting(None, may_change=True)
    """Pattern of the files to read from folders, for example "*.c"."""
    bytes: bool = setting(False, may_change=False)
    """Read the text as bytes instead of characters."""
    encoding: str = setting("auto", may_change=True)
    """Encoding of the text, for example utf-16 or windows-1252; auto guesses it for each file."""
    newlines: Newlines = setting("keep", may_change=True)
    """Line ends: lf reads each CR and CRLF, as Windows writes them, as LF."""
    tokens: Annotated[str | None, shown_default("characters")] = setting(None, may_change=False)
    """Regular expression of tokens of several characters, in Python's syntax: "\\w+" for words, or
    "\\[[^]]+\\]|Br|Cl" for atoms of SMILES. Each line is split from the left to the right: what the
    expression matches is a token, and so is any other character."""
    workdir: Annotated[Path | None, shown_default("runs/DATA-PRESET")] = setting(
        None, may_change=True, per_process=True
    )
    """Run directory."""
    init_from: Annotated[str | None, shown_default("initial weights")] = setting(
        None, may_change=True, per_process=True
    )
    """Run directory or safetensors file of a trained model to start from, with a new optimizer. The run
    keeps its vocabulary and its architecture, and the other settings of the model unless flags change
    them. --output-bias frequencies is refused, because the output bias is the model's."""
    init_which: Which = setting("best", may_change=True)
    """Checkpoint of the run directory --init-from: best (lowest validation loss) or latest."""
    extend_vocabulary: bool = setting(False, may_change=True)
    """Add the characters of the text that the model of --init-from does not have to its vocabulary. They
    get initial weights; without this flag they are refused."""
    overwrite: bool = setting(False, may_change=True)
    """Delete the run that is in the run directory and start a new one."""
    accelerator: Accelerator = setting("auto", may_change=True)
    """Device to train on; auto takes the fastest kind that JAX finds."""
    mesh: Annotated[str | None, shown_default("all devices on data")] = setting(
        None, may_change=True
    )
    """Mesh of several devices, for example data=8,model=2: the rows of each batch are divided over data,
    the units of each layer over model."""
    processes: Processes = nested(Processes, may_change=True)
    sample_prime: Annotated[str | None, shown_default("a line break")] = setting(
        None, may_change=True
    )
    """Beginning of the samples that are written while training."""
    tensorboard: bool = setting(False, may_change=True)
    """Also write TensorBoard events into the run directory."""
    training: TrainingConfig = nested(TrainingConfig, may_change=False)


def parse(
    argv: Sequence[str], characters: int | None = None, prog: str = "python -m jaxrnn.train"
) -> TrainOptions:
    """Return the options of a command line: those of the preset, overridden by the other flags.

    Args:
      argv: the arguments.
      characters: length of the training part of the text, which some presets depend on. None stands for
        Tiny Shakespeare's.
      prog: the command, for the help text.
    """
    # A parser for what the defaults depend on comes first: the preset, the cell, and the model to start
    # from. tyro's own `overridable_config_cli` would make the preset a subcommand, which cannot stand
    # anywhere among the flags.
    given = _first_parser().parse_known_args(argv)[0]
    # The main parser reports an unknown preset.
    default = _defaults(given, characters) if given.preset in PRESETS else TrainOptions()
    markers = (tyro.conf.OmitArgPrefixes,)
    return arguments.parse(TrainOptions, prog, argv, default, markers)


def from_settings(settings: Mapping[str, Any], characters: int | None = None) -> TrainOptions:
    """Return the options that settings give by their Python names: those of the preset, with these.

    Args:
      settings: values of the fields of `TrainOptions` and of the dataclasses in it.
      characters: as for `parse`.

    Raises:
      InputError: for an unknown name, and for a value that is invalid or of the wrong type.
    """
    keywords.check_names(settings, arguments.fields_of(TrainOptions))
    named = keywords.replaced(TrainOptions(), {n: settings[n] for n in FIRST if n in settings})
    given = argparse.Namespace(
        preset=named.preset,
        cell=settings.get("cell"),
        init_from=named.init_from,
        workdir=named.workdir,
        data=named.data if "data" in settings else None,
        overwrite=named.overwrite,
    )
    return keywords.replaced(_defaults(given, characters), settings)


def _defaults(given: argparse.Namespace, characters: int | None) -> TrainOptions:
    """Return the options of a preset for what `_first_parser` returns."""
    settings = PRESETS[given.preset]
    model = _model_to_start_from(given)
    cell = given.cell or ("lstm" if model is None else model.cell)
    training = settings.for_length(characters or SHAKESPEARE_LENGTH, cell)
    if model is not None:
        # The output bias is the model's, whatever the preset would begin with.
        training = dataclasses.replace(training, model=model, output_bias="zero")
    return TrainOptions(preset=given.preset, data=settings.data, training=training)


def _first_parser() -> argparse.ArgumentParser:
    """Return a parser for the flags on which the defaults of others depend."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="small")
    first.add_argument("--cell")
    # The main parser reports flags without a value.
    first.add_argument("--init-from", "--init_from", nargs="?")
    first.add_argument("--workdir", nargs="?", type=Path)
    first.add_argument("--data", nargs="*")
    first.add_argument("--overwrite", action=argparse.BooleanOptionalAction)
    return first


def _model_to_start_from(given: argparse.Namespace) -> ModelConfig | None:
    """Return the model configuration that replaces the preset's; None without a model to start from.

    The result is also None for a model that cannot be read, which is reported later.
    """
    if given.init_from is None:
        return None
    # Imported here because it imports JAX, for which --help need not wait.
    from jaxrnn.training import starting_model

    data = tuple(given.data or PRESETS[given.preset].data)
    with contextlib.suppress(InputError):
        workdir = given.workdir or default_workdir(TrainOptions(preset=given.preset, data=data))
        return starting_model.config_of(given.init_from, workdir, bool(given.overwrite))
    return None


def default_workdir(options: TrainOptions) -> Path:
    """Return runs/DATA-PRESET, or runs/DATA if both names are equal. The path is valid UTF-8."""
    names = "-".join(dict.fromkeys([sources.name(options.data), options.preset]))
    return Path("runs", re.sub("[\udc80-\udcff]", "_", names))
