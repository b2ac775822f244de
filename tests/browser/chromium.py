"""Debian's Chromium without a window: the elements of a page, its width on a phone, its printed pages, a picture of it."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_PATIENCE = 120  # seconds
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run")

#: Loads a page in a frame of a phone's width, and writes down how wide the page is there.
_FRAME = """<!doctype html><body style="margin:0"><iframe src="PAGE" width="WIDTH" height="900" style="border:0"></iframe><pre id="told"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName).slice(0, 5);
  document.getElementById("told").textContent = JSON.stringify({title: page.title, page: root.scrollWidth, screen: root.clientWidth, wide});
};</script>"""


def elements(url: str, seconds: int = 20) -> str:
    """Return a page's elements as HTML, ``seconds`` of the page's own time after it began to load."""
    return _run(f"--virtual-time-budget={1000 * seconds}", "--dump-dom", url)


def text(url: str, seconds: int = 20) -> str:
    """Return what a reader of a page sees, with blanks joined."""
    found = re.sub(r"<(script|style)\b.*?</\1>", " ", elements(url, seconds), flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", found)).split())


def at_width(folder: Path, page: str, width: int) -> dict[str, Any]:
    """Return the title and the widths (``page``, ``screen``) of a page in ``folder`` on a screen of ``width`` pixels."""
    (folder / "frame.html").write_text(_FRAME.replace("PAGE", page).replace("WIDTH", str(width)))
    with served(folder) as address:
        found = re.search(r'<pre id="told">(.*?)</pre>', elements(f"{address}/frame.html", 5), re.S)
    assert found is not None
    return dict(json.loads(unescape(found[1])))


def printed_pages(url: str) -> int:
    """Return the number of pages on which a page is printed."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "page.pdf"
        _run("--no-pdf-header-footer", f"--print-to-pdf={target}", url)
        return len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))


def picture(url: str, target: Path, width: int, height: int, *flags: str) -> None:
    """Write a PNG of a page."""
    _run(f"--window-size={width},{height}", "--virtual-time-budget=20000", *flags, f"--screenshot={target}", url)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; gives the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def _run(*arguments: str) -> str:
    assert PROGRAM is not None
    with TemporaryDirectory() as profile:
        done = subprocess.run(
            [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    return done.stdout
