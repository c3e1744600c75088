"""A served page and a browser, for all tests of the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gprune.tinyvlm import load
from tests.app.pages import TIMEOUT, free_port


@pytest.fixture(scope="session")
def address():
    """The address of a page that the command serves."""
    port = free_port()
    command = [sys.executable, "-m", "gprune", "app", "--port", str(port)]
    limits = ["--max-megabytes", "1", "--max-megapixels", "2"]
    server = subprocess.Popen([*command, *limits])
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(url).close()
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def browser():
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert executable, "no Chromium: apt-get install --no-install-recommends chromium"
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as driver:
        # Chromium refuses its own sandbox to root, which containers run as.
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, request):
    """Opens pages; no request may go to another machine."""
    elsewhere: list[str] = []
    contexts = []

    def open_page(query: str = "", width: int = 1280, at: str = "", scheme: str = "light") -> Page:
        """Opens ``query`` of the page at the address ``at``, by default the command's."""
        at = at or request.getfixturevalue("address")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)

        def record_foreign(sent):
            parts = urlsplit(sent.url)
            if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(at).netloc:
                elsewhere.append(sent.url)

        context.on("request", record_foreign)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(at + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == []


@pytest.fixture(scope="session")
def tiny():
    return load()
