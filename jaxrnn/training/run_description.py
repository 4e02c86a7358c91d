"""The description of a run, config.json and vocab.json, and the model in a run directory or a file.

config.json     all settings of the training, and the name and sha256 of its text
vocab.json      the meaning of the tokens
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrnn import charlm, errors
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import memory, modes
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError, one_of
from jaxrnn.formats import safetensors_file
from jaxrnn.formats.card import Card
from jaxrnn.settings import Rules, rules_of, setting
from jaxrnn.training import orbax_messages
from jaxrnn.training.checkpoint import Checkpoints, Which

DESCRIPTION, VOCABULARY = "config.json", "vocab.json"

# Version of config.json. Format 1, which has no "format", had other names for two settings.
FORMAT = 2
_RENAMED_IN_2 = {"hidden": "hidden_size", "embed": "embedding_size"}


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of a run, as config.json describes it.

    name: its short name, as `sources.name` gives it.
    sha256: the hash of its content.
    """

    name: str = setting("", may_change=True, per_process=True)
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model that a run began from, as config.json describes it.

    init_sha256: digest of its parameters; empty for a run with initial weights of its own.
    """

    init_sha256: str = ""


class Description(NamedTuple):
    """The description of a new run.

    values: the content of config.json, except for the format.
    rules: the rules of all settings in there, by name.
    """

    values: dict[str, Any]
    rules: dict[str, Rules]


def describe(options: Any, text: Text, origin: Origin | None = None) -> Description:
    """Return the description of a run.

    Args:
      options: the dataclass of the command's options.
      text: the text.
      origin: the model that it began from; None for initial weights of its own.
    """
    origin = Origin() if origin is None else origin
    parts = {"text": dataclasses.asdict(text), "origin": dataclasses.asdict(origin)}
    values = {**dataclasses.asdict(options), **parts}
    # The folder may be moved.
    values["workdir"] = None
    return Description(values, rules_of(options) | rules_of(text) | rules_of(origin))


def origin_of(config: dict[str, Any]) -> str:
    """Return the digest of the parameters that a run began from; empty for weights of its own."""
    origin = config.get("origin")
    return str(origin.get("init_sha256", "")) if isinstance(origin, dict) else ""


def load(
    run: str | os.PathLike[str],
    which: Which = "best",
    warn: Callable[[str], None] | None = None,
) -> charlm.Params:
    """Read the model of a run directory or of a safetensors file onto the default device.

    Args:
      run: the folder that `python -m jaxrnn.train` wrote, or the file that `jaxrnn.save` or
        `python -m jaxrnn.export --safetensors` wrote.
      which: "best" (lowest validation loss) or "latest" checkpoint of a run; a file holds one model.
      warn: called with one line for every damaged checkpoint that is skipped for the next best (or
        latest) one; None issues a RuntimeWarning.

    Returns:
      The model. Its parameters are float32, whatever modes of JAX are on here or were in training.

    Raises:
      InputError: if there is no such folder or file, if the folder is not a run, holds no good
        checkpoint or cannot be read, if the file is damaged or of another kind, if the model is larger
        than the memory of this machine, for another `which`, and for "latest" with a file.
    """
    return load_with_card(run, which, errors.warn if warn is None else warn)[0]


@modes.fixed()
def load_with_card(
    run: str | os.PathLike[str], which: Which, warn: Callable[[str], None]
) -> tuple[charlm.Params, Card]:
    """Read a model as `load` does.

    Returns:
      (params, card): the model, and what is known about it. A run does not know its licence.
    """
    path = Path(run)
    try:
        one_of(Which)("which", which)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not os.path.isdir(path) and os.path.exists(path):
        if which != "best":
            raise InputError(f"{path} is a file, which holds one model: leave `which` out")
        return safetensors_file.read(path)
    config, vocabulary = read(path)
    model = model_of(path, config)
    shapes = jax.eval_shape(lambda: charlm.init(model, vocabulary))
    memory.check(memory.bytes_per_device(shapes), f"the model of {run}", "use a machine with more")
    with orbax_messages.quiet():
        checkpoints = Checkpoints(path, warn, read_only=True)
        restored = checkpoints.restore(shapes, which=which)
        checkpoints.close()
    if restored is None:
        raise InputError(f"{run} holds no good checkpoint yet")
    return restored.tree[0], _card(config, restored.notes)


def _card(config: dict[str, Any], notes: dict[str, Any]) -> Card:
    """Return the card of a checkpoint, from the description of its run and from its notes."""
    text = config.get("text")
    name, sha256 = (
        (text.get("name"), text.get("sha256")) if isinstance(text, dict) else (None, None)
    )
    return Card(loss=notes.get("validation"), text=name or None, sha256=sha256 or None)


def write(run: Path, config: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write config.json and vocab.json, each whole or not at all; config.json makes the folder a run."""
    atomic_write(run / VOCABULARY, vocabulary_text(vocabulary))
    atomic_write(run / DESCRIPTION, json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def vocabulary_text(vocabulary: Vocabulary) -> str:
    """Return the content of vocab.json."""
    return json.dumps(dataclasses.asdict(vocabulary)) + "\n"


def read(run: Path) -> tuple[dict[str, Any], Vocabulary]:
    """Read config.json, without the format, and vocab.json of a run.

    Raises:
      InputError: if the folder is not a run, or a file is damaged or cannot be read.
    """
    if not os.path.isdir(run):
        raise InputError(
            f"{run} is not a folder; train first, or give the run directory of a training, or a "
            "safetensors file"
        )
    config = _read_json(run, DESCRIPTION)
    if not describes_run(config):
        raise InputError(
            f"{run} is not a run of jaxrnn: its {DESCRIPTION} describes something else"
        )
    config = _upgraded(run, config)
    described = _read_json(run, VOCABULARY)
    try:
        vocabulary = Vocabulary(**described)
        if not len(vocabulary):
            raise ValueError("it is empty")
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{run} has a damaged description: {VOCABULARY}: {error}") from None
    return config, vocabulary


def _upgraded(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json of any format in the current format, without its number.

    Raises InputError if the format is newer than this version of jaxrnn.
    """
    found = config.get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{run} was written by a newer jaxrnn: its {DESCRIPTION} has format {found}, and this "
            f"version reads formats 1 to {FORMAT}; update jaxrnn"
        )
    config = {name: value for name, value in config.items() if name != "format"}
    if found == 1:
        model = config["training"]["model"]
        model = {_RENAMED_IN_2.get(name, name): value for name, value in model.items()}
        config["training"] = config["training"] | {"model": model}
    return config


def describes_run(config: Any) -> bool:
    """Return whether the content of a config.json is one that `write` wrote."""
    try:
        return isinstance(config["training"]["model"], dict)
    except (KeyError, TypeError):
        return False


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run, which its config.json shows.

    Raises:
      InputError: if config.json is damaged or cannot be read.
    """
    try:
        (folder / DESCRIPTION).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot read {folder / DESCRIPTION}: {error.strerror}") from None
    return describes_run(_read_json(folder, DESCRIPTION))


def model_of(run: Path, config: dict[str, Any]) -> charlm.ModelConfig:
    """Return the model configuration in a run's config.json. Raises InputError if it is invalid."""
    try:
        model = charlm.ModelConfig(**config["training"]["model"])
        model.make_cell()
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{run} has a damaged description: {DESCRIPTION}: {error}") from None
    return model


def _read_json(run: Path, name: str) -> Any:
    try:
        return json.loads((run / name).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{run} is not a run of jaxrnn: it has no {name}") from None
    except OSError as error:
        raise InputError(f"cannot read {run / name}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(
            f"{run} has a damaged description: {name}: {error}; bring it back, or use another folder"
        ) from None
