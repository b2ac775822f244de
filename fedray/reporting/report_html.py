"""Converts the Markdown that fedray writes to one self-contained HTML page without scripts and requests."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.8em 0 .5em; } h1 { font-size: 1.7rem; margin-top: 0; } h2 { border-bottom: 1px solid #d8dce2; }
table { border-collapse: collapse; margin: .8em 0; } th, td { border: 1px solid #d8dce2; padding: .3em .6em; text-align: left; vertical-align: top; }
thead:has(th:empty) { display: none; } td:first-child { white-space: nowrap; } td { overflow-wrap: anywhere; }
img { max-width: 100%; } pre { background: #f5f6f8; padding: .8em; overflow-x: auto; } code { font-size: .92em; }
"""


def page(title: str, markdown: str, source: Callable[[str], str]) -> str:
    """Return the HTML page.

    Args:
        title: title of the page.
        markdown: headings, paragraphs, lists, tables, fenced code and pictures on separate lines; ``**bold**`` and `` `code` `` in text.
        source: returns the ``src`` attribute for a picture's path.
    """
    body = "\n".join(_blocks(markdown.splitlines(), source))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _blocks(lines: Sequence[str], source: Callable[[str], str]) -> Iterator[str]:
    i = 0
    while i < len(lines):
        line = lines[i]
        heading = re.match(r"(#{1,6}) (.*)", line)
        picture = re.fullmatch(r"!\[(.*)\]\((.*)\)", line)
        if line.startswith("```"):
            end = next((k for k in range(i + 1, len(lines)) if lines[k].startswith("```")), len(lines))
            yield "<pre><code>" + html.escape("\n".join(lines[i + 1 : end])) + "</code></pre>"
            i = end
        elif heading:
            yield f"<h{len(heading[1])}>{_text(heading[2])}</h{len(heading[1])}>"
        elif picture:
            yield f'<p><img alt="{html.escape(picture[1])}" src="{html.escape(source(picture[2]))}"></p>'
        elif line.startswith(("|", "- ")):
            mark = line[0]
            end = next((k for k in range(i, len(lines)) if not lines[k].startswith(mark)), len(lines))
            yield _table(lines[i:end]) if mark == "|" else "<ul>" + "".join(f"<li>{_text(x[2:])}</li>" for x in lines[i:end]) + "</ul>"
            i = end - 1
        elif line.strip():
            yield f"<p>{_text(line)}</p>"
        i += 1


def _table(lines: Sequence[str]) -> str:
    rows = [[_text(c.strip().replace("\\|", "|")) for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
