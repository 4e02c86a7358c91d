"""The recipes of Tiny Shakespeare: the records, and the levers that were measured for them.

A recipe is a list of flags of `python -m jaxrnn.train`. Those of the records are presets of the command.
"""

from __future__ import annotations

# --- records: on the official validation text -------------------------------------------------------

# nanoGPT's validation loss on the same split, in nats per character.
NANOGPT = 1.4697

RECORDS: dict[str, list[str]] = {
    "sprint": ["--preset", "sprint"],
    "best-15-minutes": ["--preset", "shakespeare"],
}

# --- levers: on the last tenth of the training text -------------------------------------------------

# The recipe that every lever changes: an LSTM that is trained for about a minute.
BASE: list[str] = [
    *("--preset", "shakespeare", "--cell", "lstm", "--layers", "1", "--hidden-size", "512"),
    *("--embedding-size", "64", "--dropout", "0.1", "--weight-dropout", "0", "--dtype", "float32"),
    *("--batch", "32", "--seq-len", "64", "--steps", "1500", "--learning-rate", "8e-3"),
    *("--schedule", "cosine", "--warmup", "50", "--optimizer", "adam", "--beta1", "0.9"),
    *("--beta2", "0.99", "--clip-norm", "1", "--average", "none", "--label-smoothing", "0"),
    *("--weight-decay", "0", "--no-variational", "--embedding-dropout", "0", "--stop-at", "None"),
    *("--output-bias", "zero", "--eval-every", "250", "--sample-every", "0", "--log-every", "10"),
]

LEVERS: dict[str, list[str]] = {
    "base": [],
    # the learning rate
    "half the peak rate": ["--learning-rate", "4e-3"],
    "double the peak rate": ["--learning-rate", "1.6e-2"],
    "linear schedule": ["--schedule", "linear"],
    "constant rate": ["--schedule", "constant"],
    "constant rate, tail average": ["--schedule", "constant", "--average", "tail"],
    "warm-up of 200 steps": ["--warmup", "200"],
    # the batches, with as many characters in all
    "batch 16": ["--batch", "16", "--steps", "3000", "--learning-rate", "5.7e-3"],
    "batch 64": ["--batch", "64", "--steps", "750", "--learning-rate", "1.1e-2"],
    "BPTT 32": ["--seq-len", "32", "--steps", "3000"],
    "BPTT 128": ["--seq-len", "128", "--steps", "750"],
    # the optimizer
    "Adam with 0.85, 0.98": ["--beta1", "0.85", "--beta2", "0.98"],
    "Muon": ["--optimizer", "muon"],
    # averages of the weights
    "EMA 0.99": ["--average", "ema"],
    "tail average": ["--average", "tail"],
    # weight decay, what is dropped, and the targets
    "weight decay 0.1": ["--weight-decay", "0.1"],
    "no dropout": ["--dropout", "0"],
    "dropout 0.3": ["--dropout", "0.3"],
    "dropout 0.3, variational": ["--dropout", "0.3", "--variational"],
    "dropout of the embedding 0.2": ["--embedding-dropout", "0.2"],
    "weight dropout 0.2": ["--weight-dropout", "0.2"],
    "label smoothing 0.02": ["--label-smoothing", "0.02"],
    # the products
    "bfloat16": ["--dtype", "bfloat16"],
    # the model
    "output bias of frequencies": ["--output-bias", "frequencies"],
    "one-hot input": ["--embedding-size", "0"],
    "embedding of 16": ["--embedding-size", "16"],
    "embedding of 256": ["--embedding-size", "256"],
    "tied output": ["--tie", "--embedding-size", "512"],
    "two layers": ["--layers", "2"],
    "GRU": ["--cell", "gru"],
    "GRU, reset after": ["--cell", "gru", "--reset", "after"],
    "peepholes": ["--peephole"],
    "layer norm": ["--cell", "layer_norm_lstm"],
    "Mogrifier": ["--cell", "mogrifier_lstm"],
}

# Several levers together: those that the records use, one more in each row, and Muon with them.
COMBINED: list[str] = [
    "double the peak rate + linear schedule",
    "double the peak rate + linear schedule + weight decay 0.1",
    "double the peak rate + linear schedule + weight decay 0.1 + output bias of frequencies",
    "Muon + linear schedule + weight decay 0.1 + output bias of frequencies",
]

# --- other texts ----------------------------------------------------------------------------------

# The settings of the preset small until 2026-11-28, which did not depend on the text.
FORMER_DEFAULT: list[str] = [
    *("--hidden-size", "256", "--dropout", "0", "--weight-dropout", "0", "--batch", "32"),
    *("--seq-len", "100", "--learning-rate", "5e-3", "--schedule", "cosine", "--warmup", "100"),
    *("--weight-decay", "0", "--output-bias", "zero"),
]
FORMER_EPOCHS = 6.0
