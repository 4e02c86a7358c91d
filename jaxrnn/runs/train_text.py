"""The text of a training, as its options name it, in tokens."""

from __future__ import annotations

from typing import NoReturn

from jaxrnn import console
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.encodings import Reading
from jaxrnn.data.lines import as_lines
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.runs.train_options import TrainOptions


def read_corpus(
    options: TrainOptions, vocabulary: Vocabulary | None, text: str | bytes | None = None
) -> tuple[str, Corpus]:
    """Return the short name of the text and the text: a prepared folder, or a text that is read.

    Args:
      options: the options.
      vocabulary: that of the model to start from; None for that of the text.
      text: the text itself; None reads what `options.data` names.

    Raises:
      InputError: if the text cannot be read, or contradicts the options or the vocabulary.
    """
    name, corpus = _read(options, vocabulary, text)
    return name, as_lines(corpus) if options.training.model.lines else corpus


def _read(
    options: TrainOptions, vocabulary: Vocabulary | None, text: str | bytes | None
) -> tuple[str, Corpus]:
    """Return the name and the text of `read_corpus` as a running text."""
    words = [word for word in options.data if word not in sources.NAMED]
    prepared = [word for word in words if token_files.is_prepared(word)]
    if text is not None or not prepared:
        _check_tokens(options, vocabulary)
        by_bytes = options.bytes or (vocabulary is not None and vocabulary.by_bytes)
        reading = Reading(options.encoding, options.newlines)
        if text is None:
            source = sources.read(options.data, options.glob, by_bytes, reading)
        else:
            source = sources.given(text, options.glob, by_bytes, reading)
        if vocabulary is not None and isinstance(source.content, str):
            vocabulary = _covering(vocabulary, source.content, options.extend_vocabulary)
        return source.name, make_corpus(
            source.content, source.nats, vocabulary, options.tokens or ""
        )
    if len(options.data) > 1:
        raise InputError(
            f"{prepared[0]} is a prepared text and cannot be combined with others; prepare all texts "
            "together"
        )
    if options.tokens is not None:
        raise InputError(
            f"`tokens`: {prepared[0]} is a prepared text, whose tokens are characters or bytes; give "
            "the text itself as `data`"
        )
    for name in ("glob", "bytes", "encoding", "newlines"):
        if getattr(options, name) != getattr(TrainOptions, name):
            raise InputError(f"`{name}` was decided when {prepared[0]} was prepared; leave it out")
    corpus = token_files.load_corpus(prepared[0])
    if vocabulary is not None and corpus.vocabulary != vocabulary:
        _refuse_vocabulary(prepared[0], corpus.vocabulary, vocabulary)
    return token_files.read_meta(prepared[0]).name, corpus


def _check_tokens(options: TrainOptions, vocabulary: Vocabulary | None) -> None:
    """Raise InputError for tokens that contradict each other or the model to start from.

    Args:
      options: the options.
      vocabulary: that of the model to start from; None for that of the text.
    """
    if options.tokens is not None:
        if options.bytes:
            raise InputError("give `bytes` or `tokens`, not both")
        if not options.tokens:
            raise InputError("`tokens` is empty; give a regular expression, or leave it out")
        if any("\ud800" <= character <= "\udfff" for character in options.tokens):
            raise InputError("`tokens` is not UTF-8; give a regular expression in UTF-8")
        # The text may take long to read.
        Vocabulary(pattern=options.tokens)
    if vocabulary is None:
        return
    if options.bytes and not vocabulary.by_bytes:
        kind = "matches of a regular expression" if vocabulary.pattern else "characters"
        raise InputError(f"`bytes`: the tokens of the model to start from are {kind}")
    if options.tokens not in (None, vocabulary.pattern):
        kind = f"{vocabulary.unit}s"
        if vocabulary.pattern:
            kind = f"those of {console.quoted(vocabulary.pattern)}"
        raise InputError(
            f"`tokens={options.tokens}`: the tokens of the model to start from are "
            f"{kind}; leave it out"
        )


def _covering(vocabulary: Vocabulary, text: str, extend: bool) -> Vocabulary:
    """Return the vocabulary of the model to start from, extended by the other characters of the text.

    Raises:
      InputError: if the text has other characters, unless `extend`.
    """
    wider = vocabulary.extended(text)
    if wider != vocabulary and not extend:
        _refuse_unknown(vocabulary, text, "`extend_vocabulary` gives them tokens")
    return wider


def _refuse_unknown(vocabulary: Vocabulary, text: str, advice: str) -> None:
    """Raise InputError, with advice, if the text has characters that the vocabulary does not have."""
    try:
        vocabulary.encode(text)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from None


def _refuse_vocabulary(folder: str, found: Vocabulary, vocabulary: Vocabulary) -> NoReturn:
    """Raise InputError for a prepared text whose tokens are not those of the model to start from."""
    if not found.by_bytes and not vocabulary.by_bytes and not vocabulary.pattern:
        text = f"give the text itself as `data`, not {folder}, and `extend_vocabulary`"
        _refuse_unknown(vocabulary, found.characters, f"{text} to give them tokens")
    of = [
        "bytes" if v.by_bytes else f"{len(v)} {'strings' if v.pattern else 'characters'}"
        for v in (found, vocabulary)
    ]
    raise InputError(
        f"{folder} was prepared with tokens for {of[0]}, and the model to start from has tokens for "
        f"{of[1]}: give the text itself as `data`, not prepared"
    )
