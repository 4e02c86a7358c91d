"""The text as the training steps read it, from memory and from a mapped file."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.devices import accelerator
from jaxrnn.training import loop, stepping
from jaxrnn.training.feed import device_corpus
from tests.support.runs import CONFIG, CORPUS, assert_same_bits, change, fit, run_of

pytestmark = pytest.mark.usefixtures("without_pictures")

# --- the text as the steps read it ---


class Recorder:
    """Stands in for run_steps and remembers which rows the steps are given."""

    def __init__(self) -> None:
        self.starts: list[np.ndarray] = []
        self.fresh: list[bool] = []

    def __call__(self, config: Any, optimizer: Any, devices: Any, state: Any, *rest: Any) -> Any:
        _, windows, fresh, count = rest
        self.starts += list(windows[:count])
        self.fresh += fresh[:count].tolist()
        nothing = jnp.zeros(len(fresh))
        return state.replace(step=state.step + count), stepping.Metrics(nothing, nothing)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_fit_reads_batch_after_batch(
    shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = change(CONFIG, shuffle=shuffle, steps=None, epochs=2.0, seq_len=40)
    batches = config.batches(CORPUS)
    total = config.total_steps(batches)
    assert total == 2 * batches.per_epoch > 20
    seen = Recorder()
    monkeypatch.setattr(loop, "run_steps", seen)
    fit(config, run_of(tmp_path))
    np.testing.assert_array_equal(seen.starts, [batches.starts(n) for n in range(total)])
    assert seen.fresh == [shuffle or n % batches.per_epoch == 0 for n in range(total)]
    if shuffle:
        once = np.sort(np.ravel(seen.starts[: batches.per_epoch]))
        assert (np.diff(once) >= 40).all(), "no character of an epoch is a target twice"
        assert not np.array_equal(seen.starts[0], np.sort(once)[:4]), "nor come in order"


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_mapping_changes_no_bit(shuffle: bool, tmp_path: Path) -> None:
    config = change(CONFIG, shuffle=shuffle)
    (a, _, ours), (b, _, theirs) = (
        fit(change(config, memory_map=where), run_of(tmp_path, where))
        for where in ("always", "never")
    )
    assert ours == theirs and len(ours) == 6
    assert_same_bits(a, b)
    assert (tmp_path / "always" / "tokens.npy").exists()
    assert not (tmp_path / "never" / "tokens.npy").exists()


@pytest.mark.parametrize("room, mapped", [(None, False), (1 << 30, False), (1000, True)])
def test_auto_maps_a_text_that_the_device_has_no_room_for(
    room: int | None, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "memory_limit", lambda: room)
    source = device_corpus(CORPUS.tokens, run=tmp_path)
    assert (source.tokens is None) is mapped
    assert isinstance(source.text, np.memmap) is mapped
    np.testing.assert_array_equal(source.text, CORPUS.tokens)
