"""Fixtures for the tests of kernels.

They import the library when they run, because pytest must first hook its imports.
"""

from collections.abc import Iterator

import pytest


@pytest.fixture
def compiler() -> None:
    """Skip a test if this machine cannot compile the C++ of kernels/cudnn."""
    from tests.support import cudnn as host

    host.skip_without_compiler()


@pytest.fixture
def stand_in() -> Iterator[None]:
    """Use the stand-in in place of cuDNN, and check that all descriptors are destroyed."""
    from tests.support import cudnn as host

    with host.use_stand_in():
        before = host.live_descriptors()
        yield
        assert host.live_descriptors() == before
