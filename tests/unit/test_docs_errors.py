"""Each sentence under which the documentation explains an error is one that the program says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SENTENCES = re.findall(r"^### `(.+)`$", PAGE, re.M) + re.findall(r"^### [^`\n]+`(.+)`$", PAGE, re.M)


def _said() -> list[str]:
    """The texts in the source, with a mark for what is put in."""
    texts = []
    for file in (ROOT / "fedray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
    return texts


def test_each_sentence_is_in_the_source() -> None:
    said = _said()
    for sentence in SENTENCES:
        pieces = [re.escape(piece.strip(" ")) for piece in sentence.split("…") if piece.strip(" .,;:'()")]
        pattern = re.compile(".*?".join(pieces), re.S)
        assert any(pattern.search(text) for text in said), f"the program says {sentence!r} no more; mend docs/troubleshooting.md"


def test_the_page_has_many() -> None:
    assert len(SENTENCES) > 25
