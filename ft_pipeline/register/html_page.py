"""One HTML page without scripts or other files: title, sections, tables. Everything that is not markup is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1d2329}"
    "h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #e4e6ea;padding-bottom:.2rem}"
    "table{border-collapse:collapse;font-size:.88rem;margin:.6rem 0}td,th{border:1px solid #e4e6ea;padding:.25rem .55rem;text-align:left;"
    "vertical-align:top;max-width:42rem;min-width:4.5rem}th{background:#f5f7f9;white-space:nowrap}code{font-size:.85em}.wide{overflow-x:auto}"
    ".PASS{color:#1a7f4b;font-weight:600}.FAIL,.ERROR{color:#c0362c;font-weight:600}.INCONCLUSIVE{color:#b7791f;font-weight:600}"
    "@media print{.wide{overflow:visible}svg{max-width:100%;height:auto}}"
)


def document(title: str, *parts: str) -> str:
    """The page of parts that are markup already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n'
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def wide(markup: str) -> str:
    """A picture that may be scrolled."""
    return f'<div class="wide">{markup}</div>'


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain values; a cell that is a verdict is coloured."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    said = escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    verdict = f' class="{said}"' if said in ("PASS", "FAIL", "ERROR", "INCONCLUSIVE") else ""
    return f"<td{verdict}>{said}</td>"
