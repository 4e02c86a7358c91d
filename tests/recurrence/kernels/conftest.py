"""Fixtures of the tests of kernels. They import the library when they run, for pytest to hook in."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def compiler() -> None:
    """Skip a test of cuDNN's wrapper on a machine that cannot compile it."""
    from tests.support import cudnn as host

    host.skip_without_compiler()


@pytest.fixture
def stand_in() -> Iterator[None]:
    """Call the stand-in in place of cuDNN, and see that no descriptor is left behind."""
    from tests.support import cudnn as host

    with host.in_place_of_cudnn():
        before = host.live_descriptors()
        yield
        assert host.live_descriptors() == before
