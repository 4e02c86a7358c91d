"""Tests of reading prepared texts: mapped pages, windows, and the memory that they take."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn.data import corpus
from jaxrnn.data.corpus import Batches
from jaxrnn.errors import InputError
from jaxrnn.training import feed

pytestmark = pytest.mark.once

# --- memory ---


def test_pages_of_a_mapped_text_are_released(tmp_path: Path) -> None:
    """Pages of a mapped text do not stay in the memory of the process after reading."""
    status = Path("/proc/self/status")
    if not status.exists() or "RssFile" not in status.read_text():
        pytest.skip("only Linux tells")

    def resident() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssFile")) << 10

    size, path = 64 << 20, tmp_path / "tokens.bin"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20) * (size >> 20))
    mapped = np.memmap(path, np.uint8, "r")
    source = feed.device_corpus(mapped, "always", tmp_path)
    assert source.text is mapped and source.tokens is None
    starts = np.linspace(0, size - 101, 5000, dtype=np.int64).reshape(5, -1)
    before = resident()
    windows = source.windows(starts, 100)
    assert resident() - before < 16 << 20
    np.testing.assert_array_equal(windows[2, 30], mapped[starts[2] + 30])
    assert windows.shape == (5, 101, starts.shape[1]) and windows.dtype == np.uint8
    np.asarray(mapped).sum()
    assert resident() - before > 32 << 20, "this test can fail"


def test_whether_a_text_is_placed_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = np.arange(100, dtype=np.uint8)
    plain.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint8, "r")
    assert (
        feed.device_corpus(mapped, "auto", tmp_path).text is mapped
    )  # a CPU's memory is the host's
    assert feed.device_corpus(mapped, "auto", tmp_path).tokens is None
    for held, where in (plain, "auto"), (mapped, "never"):
        there = feed.device_corpus(held, where, tmp_path).tokens
        assert there is not None
        np.testing.assert_array_equal(there, plain)
    monkeypatch.setattr(feed.accelerator, "memory_limit", lambda: 10_000)
    assert feed.device_corpus(mapped, "auto", tmp_path).tokens is not None
    monkeypatch.setattr(feed, "LONGEST", 99)  # int32 places would wrap around in silence
    assert feed.device_corpus(mapped, "auto", tmp_path).tokens is None
    with pytest.raises(InputError, match=r'memory_map="never" holds at most 99 tokens'):
        feed.device_corpus(mapped, "never", tmp_path)
    assert not (tmp_path / "tokens.npy").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_of_a_mapped_text(dtype: Any, tmp_path: Path) -> None:
    """Windows may reach past the end; the last token is then repeated, and not counted by `evaluate`."""
    plain = np.arange(20_000).astype(dtype)
    np.save(tmp_path / "tokens.npy", plain)
    plain.tofile(tmp_path / "tokens.bin")
    for mapped in (
        np.memmap(tmp_path / "tokens.bin", dtype, "r"),
        np.load(tmp_path / "tokens.npy", mmap_mode="r"),
    ):
        source = feed.device_corpus(mapped, "always", tmp_path)
        for starts in (
            np.array([0, 19_000, 19_999, 25_000]),
            np.array([[5, 9000], [15, 9010], [70, 3]]),
        ):
            places = np.minimum(starts[..., None] + np.arange(11), len(plain) - 1)
            want = np.moveaxis(plain[places], -1, -2)
            np.testing.assert_array_equal(source.windows(starts, 10), want)


def test_the_order_of_windows_is_unchanged_and_cached_once() -> None:
    for windows in (1, 10, 1000, 4099):
        order = corpus.random_order(windows, 3, 2)
        assert order.dtype == np.int32 and corpus.random_order(windows, 3, 2) is order
        np.testing.assert_array_equal(order, np.random.default_rng((3, 2)).permutation(windows))
    assert corpus.random_order.cache_info().currsize == 1


def test_window_starts_beyond_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    last = 2**33 // 15 - 2
    monkeypatch.setattr(
        corpus, "random_order", lambda *_: np.arange(last - 3, last + 1).astype(np.int32)
    )
    starts = Batches(2**33, 4, 15, shuffle=True).starts(0)
    assert starts.dtype == np.int64 and 0 <= starts[-1] - last * 15 < 30
