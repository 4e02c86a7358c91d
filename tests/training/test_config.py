"""Training settings: bad ones are refused, and the length of a run follows from them."""

import math
from typing import Any

import pytest

from jaxrnn.errors import InputError
from tests.support.runs import CONFIG, CORPUS, TEXT, change

pytestmark = pytest.mark.usefixtures("without_pictures")

# --- settings ---


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch=0),
        dict(seq_len=0),
        dict(steps=0),
        dict(steps=-5),
        dict(epochs=0.0),
        dict(epochs=math.nan),
        dict(epochs=math.inf),
        dict(learning_rate=0.0),
        dict(learning_rate=-1.0),
        dict(learning_rate=math.nan),
        dict(learning_rate=math.inf),
        dict(warmup=-1),
        dict(beta2=1.0),
        dict(beta2=-0.1),
        dict(beta2=math.nan),
        dict(beta1=1.0),
        dict(muon_learning_rate=0.0),
        dict(weight_decay=-0.1),
        dict(weight_decay=math.nan),
        dict(average_decay=1.0),
        dict(average_decay=-0.5),
        dict(average_tail=0.0),
        dict(average_tail=1.5),
        dict(average_tail=math.nan),
        dict(label_smoothing=1.0),
        dict(label_smoothing=-0.1),
        dict(stop_at=0.0),
        dict(stop_at=-1.0),
        dict(stop_at=math.nan),
        dict(clip_norm=-1.0),
        dict(clip_norm=math.nan),
        dict(accumulate=0),
        dict(accumulate=3),
        dict(seed=-1),
        dict(seed=2**32),
        dict(log_every=0),
        dict(eval_every=0),
        dict(sample_every=-2),
        dict(hidden_size=0),
        dict(layers=0),
        dict(embedding_size=-1),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(dropout=math.nan),
        dict(weight_dropout=1.0),
        dict(embedding_dropout=1.0),
        dict(tie=True),
    ],
    ids=lambda changes: "".join(f"{k}={v}" for k, v in changes.items()),
)
def test_bad_settings_are_named(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(InputError) as caught:
        change(CONFIG, **changes)
    message = str(caught.value)
    assert name in message and "--" not in message and "\n" not in message
    assert name == "tie" or str(value) in message


@pytest.mark.parametrize(
    "changes",
    [
        dict(dropout=0.0),
        dict(embedding_size=0),
        dict(clip_norm=0.0),
        dict(warmup=0),
        dict(seed=2**32 - 1),
    ],
    ids=str,
)
def test_settings_at_their_limits(changes: dict[str, Any]) -> None:
    change(CONFIG, **changes)


def test_length_of_the_run() -> None:
    batches = CONFIG.batches(CORPUS)
    per_epoch = batches.per_epoch
    assert per_epoch == (len(TEXT) * 9 // 10 // 4 - 1) // 8
    assert CONFIG.total_steps(batches) == 12
    assert change(CONFIG, steps=None, epochs=2.5).total_steps(batches) == round(2.5 * per_epoch)
    assert change(CONFIG, steps=None, epochs=1e-9).total_steps(batches) == 1
    assert change(CONFIG, steps=2**31 - 1).total_steps(batches) == 2**31 - 1
    for too_long in (dict(steps=2**31), dict(steps=None, epochs=1e12)):
        with pytest.raises(InputError, match="int32"):
            change(CONFIG, **too_long).total_steps(batches)
