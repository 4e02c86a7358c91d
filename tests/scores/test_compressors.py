"""Test the sizes of compressed texts against the standard library's one-call functions."""

import bz2
import gzip
import lzma

import numpy as np
import pytest

from jaxrnn.scores.compressors import CompressedSizes
from tests.support.runs import LATIN, TEXT

pytestmark = pytest.mark.once


@pytest.mark.slow
def test_compressed_sizes_do_not_depend_on_the_pieces() -> None:
    rng = np.random.default_rng(0)
    raw = TEXT.encode() * 30 + rng.integers(0, 256, 30_000, np.uint8).tobytes() + LATIN * 30
    want = {
        "gzip -9": len(gzip.compress(raw, 9, mtime=0)),
        "xz -9": len(lzma.compress(raw, preset=9)),
        "bzip2 -9": len(bz2.compress(raw, 9)),
    }
    for size in (97, 4096, 10**7):
        sizes = CompressedSizes()
        for at in range(0, len(raw), size):
            sizes.add(raw[at : at + size])
        assert sizes.finish() == want
