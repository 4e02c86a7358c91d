"""Fixtures that open pages in Chromium, started once per test file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

import jaxrnn
from benchmarks.page import chromium
from jaxrnn.formats import page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def show(browser: chromium.Browser, tmp_path: Path) -> Iterator[Callable[..., chromium.Browser]]:
    """Open the page of a model, and check afterwards for errors and network requests."""
    file = tmp_path / "page.html"

    def show(
        params: jaxrnn.Params,
        kind: page.Weights = "float32",
        width: int = 1200,
        scheme: Literal["light", "dark"] = "light",
    ) -> chromium.Browser:
        page.write(params, file, weights=kind)
        browser.look(width, 800, scheme)
        browser.open(file)
        return browser

    yield show
    assert browser.problems == []
    assert browser.requests == [file.resolve().as_uri()]
