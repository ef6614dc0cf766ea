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
# Errors and refused requests, from the first line of a page on.
CATCH = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src file: data:;
style-src file: 'unsafe-inline'; script-src file: 'unsafe-inline'"><script>
const seen = {errors: []}, note = (what) => seen.errors.push(String(what));
addEventListener("error", (e) => note(e.message || e.target.outerHTML), true);
addEventListener("unhandledrejection", (e) => note(e.reason));
document.addEventListener("securitypolicyviolation", (e) => note(e.blockedURI));
console.error = note;
</script>"""
REPORT = """<script>addEventListener("load", () => {
  try { ACT } catch (error) { note(error.stack); }
  // Refused requests and promises are told of a little later; the clock of the browser is not ours.
  setTimeout(() => {
    seen.requests = performance.getEntriesByType("resource").map((e) => e.name);
    const out = document.createElement("pre");
    out.id = "seen";
    out.textContent = JSON.stringify(seen);
    document.body.append(out);
  }, 500);
});</script>"""


def visit(path, act="", profile=None, fragment=""):
    """Open a page, do what `act` says, and return what was seen: the errors, the requests, and what `act` noted."""
    copy = path.with_name(f"visited-{path.name}")
    text = path.read_text().replace("<head>", f"<head>{CATCH}", 1)
    copy.write_text(text.replace("</body>", REPORT.replace("ACT", act) + "</body>", 1))
    try:
        return _opened(copy, profile or path.parent / "profile", fragment)
    finally:
        copy.unlink()


def _opened(path, profile, fragment):
    """What the scripts of a page leave as JSON in the element with the id `seen`."""
    if BROWSER is None:  # a program, not a package: it cannot come with the extra `test`
        pytest.skip("no Chromium on this machine")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [BROWSER, *FLAGS.split(), *root, f"--user-data-dir={profile}", f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"{path.name}: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))
