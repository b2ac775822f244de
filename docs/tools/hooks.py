"""What the site adds to the files of ``docs/``: pages that lie elsewhere in the repository, and the reference."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Page of the site: file of the repository. Links among these files are rewritten to the pages.
ELSEWHERE = {
    "clusters.md": "cluster/README.md",
    "kubernetes.md": "k8s/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changes.md": "CHANGELOG.md",
}


def _linked(text: str) -> str:
    for page, source in ELSEWHERE.items():
        text = text.replace(f"](../{source}", f"]({page}").replace(f"]({source}", f"]({page}")
    return text.replace("](../docs/", "](").replace("](docs/", "](")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's links to files outside ``docs/``, which hold where the repository is read, as links to the site's pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, source in ELSEWHERE.items():
        markdown = markdown.replace(f"]({up}../{source}", f"]({up}{name}")
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere, and those that are made from the code."""
    sys.path.insert(0, str(Path(__file__).parent))
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=_linked((ROOT / source).read_text())))
    for page, make in importlib.import_module("reference").PAGES.items():
        files.append(File.generated(config, page, content=make()))
    del sys.path[0]
    return files
