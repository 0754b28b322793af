"""`make test-node`: installs OpenAI's client for Node into a temporary folder and runs road.mjs against a whole platform."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ft_pipeline_tests.web.whole import HYPER, SECTIONS, rows, whole

VERSION = "openai@7"
HERE = Path(__file__).parent


def main() -> int:
    """Exit code of the script."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent", VERSION], cwd=folder, check=True)
        shutil.copy(HERE / "road.mjs", folder)
        (folder / "rows.jsonl").write_bytes(rows())
        with whole(folder / "home", os.environ.__setitem__) as running:
            told = {
                "BASE_URL": running.address, "API_KEY": running.key(("submit", "infer")), "ROWS": str(folder / "rows.jsonl"),
                "APPROVER_KEYS": json.dumps([running.key(("approve",), name) for name in ("ann", "ben")]),
                "SECTIONS": json.dumps(SECTIONS), "HYPER": json.dumps(HYPER),
            }  # fmt: skip
            return subprocess.run(["node", "road.mjs"], cwd=folder, env={**os.environ, **told}, timeout=900).returncode


if __name__ == "__main__":
    sys.exit(main())
