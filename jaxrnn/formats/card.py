"""The model card of a safetensors file, JSON in its metadata.

The README of this folder lists its fields.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError, finite_number

# Name of the format and of the card in the metadata, and version of the card.
NAME, VERSION = "jaxrnn", 1


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about a model besides its parameters; None where a fact is not known.

    Attributes:
      loss: validation loss, in nats per character.
      licence: licence of the model, an SPDX identifier or free text.
      text: name of the text that the model was trained on.
      sha256: SHA-256 of that text, in hexadecimal digits.
    """

    loss: float | None = None
    licence: str | None = None
    text: str | None = None
    sha256: str | None = None


def metadata_of(params: charlm.Params, card: Card) -> dict[str, str]:
    """Return the metadata of the file of a model."""
    content = {
        "version": VERSION,
        "config": dataclasses.asdict(params.config),
        "vocabulary": dataclasses.asdict(params.vocabulary),
        **dataclasses.asdict(card),
    }
    return {"format": NAME, NAME: json.dumps(content)}


def read_card(file: Path, metadata: dict[str, str]) -> tuple[charlm.ModelConfig, Vocabulary, Card]:
    """Return (config, vocabulary, facts) from the card of a file.

    Args:
      file: the file, for messages.
      metadata: its metadata.

    Raises:
      InputError: if the card is missing, damaged, invalid, or of a newer version.
    """
    if NAME not in metadata:
        by = f"format {metadata['format']!r}" if "format" in metadata else "no format"
        raise InputError(
            f"{file} does not hold a model of jaxrnn: its metadata has {by} and no card {NAME!r}"
        )
    try:
        card = json.loads(metadata[NAME])
        if not isinstance(card, dict):
            raise ValueError("it is not a JSON object")
        version = card.get("version")
        if type(version) is not int or version < 1:
            raise ValueError(f"its version is {version!r}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} has a damaged card: {error}") from None
    if version > VERSION:
        raise InputError(
            f"{file} was written by a newer jaxrnn: its card has version {version}, and this jaxrnn "
            f"reads versions up to {VERSION}; update jaxrnn"
        )
    try:
        part = "configuration"
        config = _config(card.get("config"))
        part = "vocabulary"
        vocabulary = _vocabulary(card.get("vocabulary"))
        part = "card"
        facts = facts_of(card)
    except (InputError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file} has an invalid {part}: {error}") from None
    return config, vocabulary, facts


def _config(values: Any) -> charlm.ModelConfig:
    """Return the configuration in a card. Settings that it does not have get their defaults."""
    if not isinstance(values, dict):
        raise ValueError("it is missing or not a JSON object")
    kinds = typing.get_type_hints(charlm.ModelConfig)
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"this version of jaxrnn has no setting {name!r}")
        if not _is_of(value, str if name == "cell" else kinds[name]):
            raise ValueError(f"{name} is {value!r}")
    config = charlm.ModelConfig(**values).resolved()
    config.make_cell()
    return config


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a value from JSON is of the type of a setting."""
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int)


def _vocabulary(values: Any) -> Vocabulary:
    if not isinstance(values, dict):
        raise ValueError("it is missing or not a JSON object")
    known = {field.name for field in dataclasses.fields(Vocabulary)}
    for name in values:
        if name not in known:
            raise ValueError(f"this version of jaxrnn has no entry {name!r}")
    vocabulary = Vocabulary(**values)
    if type(vocabulary.by_bytes) is not bool:
        raise ValueError(f"by_bytes is {vocabulary.by_bytes!r}")
    if not len(vocabulary):
        raise ValueError("it is empty")
    return vocabulary


def facts_of(card: dict[str, Any]) -> Card:
    """Return the known facts in a card. Raises ValueError for those of other types."""
    facts = {field.name: card.get(field.name) for field in dataclasses.fields(Card)}
    for name, value in facts.items():
        if value is None:
            continue
        if name == "loss":
            facts[name] = finite_number(name, value)
        elif not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
    return Card(**facts)
