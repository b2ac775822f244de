"""Converts the Markdown that fedray writes to one self-contained HTML page without scripts and requests."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence

#: One column on a phone, light or dark as the reader's system is, and dense on paper.
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --page: #fff; --line: #d8dce2; --box: #f5f6f8; --soft: #5b6472; --bad: #a33217; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #dfe3ea; --page: #14181f; --line: #39414d; --box: #1e242d; --soft: #9aa4b2; --bad: #ff9b7d; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.8em 0 .5em; } h1 { font-size: 1.7rem; margin-top: 0; }
h2 { font-size: 1.35rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1.15rem; } h4, h5, h6 { font-size: 1rem; }
table { border-collapse: collapse; margin: .8em 0; } th, td { border: 1px solid var(--line); padding: .3em .6em; text-align: left; vertical-align: top; }
thead:has(th:empty:first-child):not(:has(th:not(:empty))) { display: none; } td:first-child { min-width: 7em; overflow-wrap: break-word; }
pre { background: var(--box); padding: .8em; white-space: pre-wrap; } code { font-size: .92em; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; align-items: start; }
figure { margin: 0; break-inside: avoid; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .88em; color: var(--soft); } figcaption strong { color: var(--ink); }
.config { columns: 22rem; column-gap: 2rem; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .7rem; } th, td { padding: .25em .4em; } td:first-child { min-width: 5em; } }
@page { size: A4; margin: 11mm; }
@media print {
  body { font-size: 7.4pt; line-height: 1.3; max-width: none; margin: 0; padding: 0; } h1 { font-size: 14pt; }
  h2 { font-size: 10pt; } h3 { font-size: 9pt; } h4, h5, h6 { font-size: 8pt; } h2, h3, h4, h5, h6 { margin: .9em 0 .3em; break-after: avoid; }
  p, ul { margin: .35em 0; } p, li { break-inside: avoid; } ul { padding-left: 1.4em; } table { margin: .4em 0; } th, td { padding: .1em .4em; } tr { break-inside: avoid; }
  .charts { grid-template-columns: repeat(4, 1fr); gap: .6rem; } .body { columns: 2; column-gap: 7mm; } .body .charts { column-span: all; }
  pre { padding: .5em; font-size: 6.6pt; } .config { columns: 2; column-span: all; }
}
"""


def page(title: str, markdown: str, picture: Callable[[str, str], str]) -> str:
    """Return the HTML page.

    Args:
        title: title of the page.
        markdown: headings, paragraphs, lists, tables, fenced code and pictures on separate lines; ``**bold**`` and `` `code` `` in text. Code
            of the language ``yaml`` stands in columns. What follows the first heading of the second level is set in two columns on paper.
        picture: returns the HTML of a picture, given its text and its path.
    """
    body = "\n".join(_blocks(markdown.splitlines(), picture))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</div>\n</body>\n</html>\n"
    )


def _blocks(lines: Sequence[str], picture: Callable[[str, str], str]) -> Iterator[str]:
    """Yield the elements; the last ``<div>``, of what follows the head, is left open."""
    i, head = 0, True
    while i < len(lines):
        line = lines[i]
        heading = re.match(r"(#{1,6}) (.*)", line)
        if line.startswith("```"):
            end = next((k for k in range(i + 1, len(lines)) if lines[k].startswith("```")), len(lines))
            kind = ' class="config"' if line == "```yaml" else ""
            yield f"<pre{kind}><code>" + html.escape("\n".join(lines[i + 1 : end])) + "</code></pre>"
            i = end
        elif heading:
            if head and heading[1] == "##":
                head = False
                yield '<div class="body">'
            yield f"<h{len(heading[1])}>{_text(heading[2])}</h{len(heading[1])}>"
        elif _picture(line):
            end = next((k for k in range(i, len(lines)) if lines[k].strip() and not _picture(lines[k])), len(lines))
            found = [m for k in range(i, end) if (m := _picture(lines[k]))]
            yield '<div class="charts">' + "\n".join(picture(m[1], m[2]) for m in found) + "</div>"
            i = end - 1
        elif line.startswith(("|", "- ")):
            mark = line[0]
            end = next((k for k in range(i, len(lines)) if not lines[k].startswith(mark)), len(lines))
            yield _table(lines[i:end]) if mark == "|" else "<ul>" + "".join(f"<li>{_text(x[2:])}</li>" for x in lines[i:end]) + "</ul>"
            i = end - 1
        elif line.strip():
            yield f"<p>{_text(line)}</p>"
        i += 1
    if head:
        yield '<div class="body">'


def _picture(line: str) -> re.Match[str] | None:
    return re.fullmatch(r"!\[(.*)\]\((.*)\)", line)


def _table(lines: Sequence[str]) -> str:
    rows = [[_text(c.strip().replace("\\|", "|")) for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
