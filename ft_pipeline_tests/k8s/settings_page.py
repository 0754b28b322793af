"""`python -m ft_pipeline_tests.k8s.settings_page` writes docs/settings.md from settings.py; a test compares them."""

from __future__ import annotations

import ast
import itertools
import re

from ft_pipeline.settings import PACKAGE, PROJECT

PAGE = PROJECT / "docs" / "settings.md"
HEAD = """# Settings

Every setting is an environment variable with a working default; `ft_pipeline/settings.py` is the only file that reads them, and this
table is made from it. None of them changes a weight: what does is in the recipe. On a cluster they are in ConfigMap `ft-settings`,
those that are secret in Secret `ft-secrets` ([kubernetes.md](kubernetes.md)).

| variable | what it says | default |
|---|---|---|
"""
TAIL = """
Only `k8s/dagster/dagster-*.yaml` read these: `FT_PG_HOST`, `FT_PG_USER`, `FT_PG_PASSWORD` (Dagster's PostgreSQL), `FT_LOG_BUCKET` (compute
logs), `DAGSTER_PG_PASSWORD` (in the cluster, from Secret `ft-postgresql`). Keys of the store are AWS' own: `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, or a role of the machine or pod.
"""
TEXT = re.compile(r"((?:[A-Z0-9_]{2,})(?:, or [A-Z_]+[^:.]*)?)[:.] ?(.*)", re.DOTALL)


def rows() -> list[tuple[str, str, str]]:
    """(variable, what it says, default) of each field of Settings."""
    tree = ast.parse((PACKAGE / "settings.py").read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings"]
    found = []
    for field, said in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign):
            continue
        assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant), f"{ast.unparse(field)} says nothing"
        matched = TEXT.fullmatch(" ".join(str(said.value.value).split()))
        assert matched, said.value.value
        variable, text = matched.groups()
        what, _, default = text.partition("Default: ")
        default, _, more = default.partition(". ")
        found.append((variable, f"{what.strip()} {more}".strip() or "Dagster's folder.", default.rstrip(".") or "none"))
    return found


def page() -> str:
    """The text of docs/settings.md."""
    return HEAD + "".join(f"| `{v}` | {what} | {default} |\n" for v, what, default in rows()) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
