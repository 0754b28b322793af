"""`python -m ft_pipeline_tests.scenario_table`: runs the Kubernetes scenarios and writes what each made, lost and left into docs/kubernetes-jobs.md.

python -m ft_pipeline_tests.scenario_table              runs them (about three minutes on two cores)
python -m ft_pipeline_tests.scenario_table REPORT.xml   reads a JUnit report of a run that was made already
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "kubernetes-jobs.md"
FILES = [f"ft_pipeline_tests/workers/test_kubernetes_{name}.py" for name in ("scenarios", "faults", "training")]
BEGIN, END = "<!-- scenarios: written by ft_pipeline_tests.scenario_table -->\n", "<!-- end of scenarios -->\n"
COLUMNS = ("jobs", "pods", "steps_again", "left")
HEAD = "| scenario | result | Jobs made | pods made | steps made again | left behind |\n|---|---|---|---|---|---|\n"


def read_report(path: Path) -> list[tuple[str, bool, dict[str, str]]]:
    """Of each scenario that ran: its name in words, whether it passed, what it told."""
    found = []
    for case in ET.parse(path).getroot().iter("testcase"):
        if (
            not case.get("classname", "").endswith(("scenarios", "faults", "training"))
            or case.find("skipped") is not None
        ):
            continue
        told = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        passed = case.find("failure") is None and case.find("error") is None
        found.append((case.get("name", "").removeprefix("test_").replace("_", " "), passed, told))
    return found


def table(found: list[tuple[str, bool, dict[str, str]]]) -> str:
    """The rows, in the order in which the files have them."""
    rows = [
        f"| {name} | {'passed' if passed else 'FAILED'} | {' | '.join(told.get(column, '-') for column in COLUMNS)} |\n"
        for name, passed, told in found
    ]
    return HEAD + "".join(rows)


def written(page: str, rows: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + rows + END + rest.partition(END)[2]


def main(words: list[str]) -> int:
    """Writes the page; 1 when a scenario failed."""
    if words:
        found = read_report(Path(words[0]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *FILES]
            subprocess.run(command, cwd=PROJECT, check=False)
            found = read_report(report)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
    print(table(found))
    return int(not found or not all(passed for _, passed, _ in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
