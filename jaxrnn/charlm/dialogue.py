"""A text that a person and a model write together, in turns.

    dialogue = Dialogue(params, SamplingOptions(temperature=0.8))
    dialogue.read("ROMEO:")            # a turn: what the person wrote,
    for piece in dialogue.write(200):  # then what the model adds, as it is drawn
        print(piece, end="", flush=True)
    dialogue.undo()                    # the text and the state are those from before the turn

`jaxrnn.commands.interactive` is the prompt at which a person does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoder import Decoder, Place
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.sampling import default_prime
from jaxrnn.charlm.stopping import Stop
from jaxrnn.shapes import Int


class Moment(NamedTuple):
    """The state and the text that `Dialogue.undo` restores.

    place: the place of the decoder.
    tokens: [N] int32, the text.
    """

    place: Place
    tokens: Int[np.ndarray, "N"]


class Dialogue:
    """A text that a person and a model write together.

    With the same seed and options, the text of one turn is that of `jaxrnn.sample`, and reading a text
    in parts is the same as reading it at once.
    """

    def __init__(
        self, params: charlm.Params, options: SamplingOptions, prime: str | bytes | None = None
    ) -> None:
        """Begin with `prime`; by default with an empty text, which the first turn begins.

        Raises:
          InputError: for a prime that is empty or has characters that the model has never seen.
        """
        self._vocabulary = params.vocabulary
        first = default_prime(params.vocabulary) if prime is None else prime
        self._decoder = Decoder(params, first, options)
        place, tokens = self._decoder.place, self._decoder.prime
        self._empty = Moment(place._replace(unread=place.unread[:0]), tokens[:0])
        self._moments: list[Moment] = []
        self._pieces = [tokens]
        if prime is None:
            self._return_to(self._empty)

    @property
    def options(self) -> SamplingOptions:
        """The options with which the model writes."""
        return self._decoder.options

    @property
    def text(self) -> str | bytes:
        """The text so far; of a model of bytes, its bytes."""
        return self._written(self._tokens())

    def change(self, options: SamplingOptions) -> None:
        """Let the model write with other options from now on; `undo` does not change them."""
        self._decoder.change(options)

    def read(self, text: str | bytes) -> str | bytes:
        """Begin a turn: continue the text by `text`, which may be empty, and return what was added.

        If the whole text would be empty, the default prime is added: a model cannot begin with nothing.

        Raises:
          InputError: for characters that the model has never seen; nothing has changed then.
        """
        before = Moment(self._decoder.place, self._tokens())
        added = text or ("" if len(before.tokens) else default_prime(self._vocabulary))
        tokens = self._decoder.read(added)
        self._moments.append(before)
        self._pieces = [before.tokens, tokens]
        return self._written(tokens)

    def write(self, length: SupportsIndex | None, stop: Stop = None) -> Iterator[str | bytes]:
        """Return an iterator over what the model adds, in pieces; the turn ends with the last one taken.

        Args:
          length: number of tokens, None for an endless text.
          stop: as for `jaxrnn.sample`.

        Raises:
          InputError: by the call, for a length or a stop string that is not valid.
        """
        return map(self._add, self._decoder.more(length, stop))

    def undo(self) -> bool:
        """Return to the text and the state before the last turn or reset; False if there was none."""
        if not self._moments:
            return False
        self._return_to(self._moments.pop())
        return True

    def reset(self) -> None:
        """Begin a new, empty text. `undo` returns to the former one."""
        self._moments.append(Moment(self._decoder.place, self._tokens()))
        self._return_to(self._empty)

    def _add(self, tokens: Int[np.ndarray, "N"]) -> str | bytes:
        self._pieces.append(tokens)
        return self._written(tokens)

    def _return_to(self, moment: Moment) -> None:
        self._decoder.restore(moment.place)
        self._pieces = [moment.tokens]

    def _tokens(self) -> Int[np.ndarray, "N"]:
        return np.concatenate(self._pieces)

    def _written(self, tokens: Int[np.ndarray, "N"]) -> str | bytes:
        if self._vocabulary.by_bytes:
            return self._vocabulary.to_bytes(tokens)
        return self._vocabulary.decode(tokens)
