"""Characters per second of the page that `jaxrnn.formats.page` writes, in Chromium."""
