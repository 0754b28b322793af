"""The lineage as a picture: plain SVG, one box an artifact with its digest, size, date and code version, parents below their children."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ft_pipeline.store.manifest import Manifest

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 236, 84, 24, 44, 16
DETOUR = 26
"""How far to the side a line swings for each row that it passes."""
CLEAR = 10
"""Between a line and the boxes that it passes."""
REACH = 0.4
"""Share of the way to its control points that a curve has gone when it passes the row above its end."""
COLOURS = {
    "registered_model": "#e7f0ff", "adapter": "#e8f5ec", "exported_model": "#e8f5ec", "checkpoints": "#e8f5ec", "eval_report": "#fff4e0", "recertification": "#fff4e0",
    "override": "#fde8e6", "base_model": "#f0ecfa", "raw_dataset": "#eef1f4", "curated_dataset": "#eef1f4",
}  # fmt: skip
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d2329}.k{font-weight:600}.d{font-family:ui-monospace,monospace;font-size:11px}"
    ".f{fill:#5a636e;font-size:11px}path{fill:none;stroke:#9aa4af;stroke-width:1.3}"
)


def lineage_svg(manifests: Mapping[str, Manifest], root: str) -> str:
    """The graph of artifacts by digest, `root` at the top. Equal manifests give equal text."""
    rows = _rows(manifests, root)
    side = DETOUR * len(rows) + MARGIN
    width = 2 * side + max(len(row) for row in rows) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    place = {}
    for depth, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for at, digest in enumerate(row):
            place[digest] = (left + at * (WIDTH + GAP_X), MARGIN + depth * (HEIGHT + GAP_Y))
    lines = "".join(
        _line(
            place[digest], place[parent.digest], role, between=_between(place, digest, parent.digest), middle=width / 2
        )
        for digest in place
        for role, parent in sorted(manifests[digest].parents.items())
        if parent.digest in place
    )
    boxes = "".join(_box(manifests[digest], place[digest]) for digest in place)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img"'
        f' aria-label="lineage"><style>{STYLE}</style>{lines}{boxes}</svg>'
    )


def _rows(manifests: Mapping[str, Manifest], root: str) -> list[list[str]]:
    """Digests by depth: an artifact stands below its lowest child."""
    depth, todo = {root: 0}, [root]
    while todo:
        digest = todo.pop()
        for parent in manifests[digest].parents.values():
            if parent.digest in manifests and depth.get(parent.digest, -1) < depth[digest] + 1:
                depth[parent.digest] = depth[digest] + 1
                todo.append(parent.digest)
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for digest in sorted(depth, key=lambda d: (manifests[d].kind, d)):
        rows[depth[digest]].append(digest)
    return rows


def _between(place: Mapping[str, tuple[float, float]], child: str, parent: str) -> list[float]:
    """Left edges of the boxes in the rows from the child's to the parent's, theirs included."""
    top, bottom = place[child][1], place[parent][1]
    return [x for x, y in place.values() if top <= y <= bottom]


def _line(
    child: tuple[float, float], parent: tuple[float, float], role: str, *, between: list[float], middle: float
) -> str:
    """From below the child to the top of the parent; round the side on which the parent stands when rows lie between."""
    rows = round((parent[1] - child[1]) / (HEIGHT + GAP_Y))
    if rows == 1:
        x1, y1, x2, y2 = child[0] + WIDTH / 2, child[1] + HEIGHT, parent[0] + WIDTH / 2, parent[1]
        bend = (y1 + y2) / 2
        curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {bend:.0f} {x2:.0f} {bend:.0f} {x2:.0f} {y2:.0f}"
    else:
        y1, y2 = child[1] + HEIGHT / 2, parent[1] + HEIGHT / 2
        right = parent[0] + WIDTH / 2 > middle + 1
        x1, x2 = (child[0] + WIDTH, parent[0] + WIDTH) if right else (child[0], parent[0])
        swing, near = DETOUR * rows, (min(x1, x2) if right else max(x1, x2))
        edge = max(between) + WIDTH + CLEAR if right else min(between) - CLEAR
        far = near + (edge - near) / REACH
        far = max(far, max(x1, x2) + swing) if right else min(far, min(x1, x2) - swing)
        curve = f"M{x1:.0f} {y1:.0f}C{far:.0f} {y1:.0f} {far:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{curve}"><title>{escape(role)}</title></path>'


def _box(manifest: Manifest, at: tuple[float, float]) -> str:
    x, y = at
    files, made = len(manifest.files), manifest.created_at[:16].replace("T", " ")
    facts = (
        ("k", manifest.kind),
        ("d", manifest.digest[:24]),
        ("f", f"{size(manifest.size_bytes)} in {files} files, {made}"),
        ("f", f"code {manifest.code[:12]}"),
    )
    text = "".join(
        f'<text class="{style}" x="{x + 10:.0f}" y="{y + 20 + 18 * i:.0f}">{escape(said)}</text>'
        for i, (style, said) in enumerate(facts)
    )
    colour = COLOURS.get(manifest.kind, "#ffffff")
    return (
        f'<g><title>{escape(manifest.kind)} {manifest.digest}</title><rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}"'
        f' rx="6" fill="{colour}" stroke="#c3cad2"/>{text}</g>'
    )


def size(num_bytes: int) -> str:
    """`3.4 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    amount = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.1f} {unit}"
    return f"{amount:.0f} TB"
