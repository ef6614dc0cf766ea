"""A real browser without a window, for the tests of pages."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = """--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=3000 --dump-dom"""


def opened(path, profile, fragment=""):
    """Open a page, and return what its scripts left as JSON in the element with the id `seen`."""
    if BROWSER is None:  # a program, not a package: it cannot come with the extra `test`
        pytest.skip("no Chromium on this machine")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [BROWSER, *FLAGS.split(), *root, f"--user-data-dir={profile}", f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"{path.name}: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))
