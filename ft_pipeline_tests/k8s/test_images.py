"""The Dockerfiles: hadolint finds nothing, and what it does not look for: digests, the lock file, a user who is a number, no torch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ft_pipeline.settings import PROJECT

IMAGE = PROJECT / "k8s" / "image"
FILES = sorted(p for p in IMAGE.glob("Dockerfile.*") if not p.name.endswith(".dockerignore"))
HADOLINT = Path(sys.executable).parent / "hadolint"
LOCK = {
    line.partition("==")[0]: line.partition("==")[2] for line in (PROJECT / "requirements.lock").read_text().split()
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path):
    ended = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_hadolint_does_not_look_for(path):
    text = path.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    froms = [line for line in lines if line.startswith("FROM")]
    assert len(froms) == 2 and all("@${PYTHON_DIGEST}" in line for line in froms)
    assert "ARG PYTHON_DIGEST" in lines, "no default: a build without a digest stops"
    assert [line for line in lines if line.startswith("USER")] == ["USER 65532:65532"]
    assert not [line for line in lines if line.startswith(("ADD", "ENTRYPOINT", "EXPOSE"))]
    assert ":latest" not in text and "curl" not in text and "http" not in text
    assert "requirements.lock" in text and not re.search(r"index[-_]url|--extra|pypi", text)
    assert {"title", "description", "licenses", "version", "revision"} <= set(re.findall(r"opencontainers\.image\.(\w+)", text))  # fmt: skip
    copied = {w.rstrip("/") for line in lines if line.startswith("COPY") and "--from" not in line for w in line.split()[1:-1]}  # fmt: skip
    ignored = (path.parent / f"{path.name}.dockerignore").read_text().split("\n")
    assert {f"!{w}" for w in copied} <= set(ignored) and "*" in ignored
    assert all((PROJECT / word).exists() for word in copied)


def closure(names: list[str]) -> set[str]:
    """Names with all that they need, as installed here."""
    found, waiting = set(), [(Requirement(name).name.lower(), frozenset(Requirement(name).extras)) for name in names]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for said in importlib.metadata.requires(name) or ():
            needed = Requirement(said)
            wanted = [{"extra": extra} for extra in (*extras, "")]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in wanted):
                waiting.append((needed.name.lower().replace("_", "-"), frozenset(needed.extras)))
    return {name for name, _ in found}


def test_the_control_plane_has_no_torch_and_nothing_that_is_not_locked():
    wanted = [w for w in (IMAGE / "control-plane.in").read_text().splitlines() if w and not w.startswith("#")]
    everything = closure(wanted)
    assert not everything & {"torch", "accelerate", "peft", "trl", "deepspeed", "lm-eval", "vllm"}
    locked = {name.lower().partition("[")[0].replace("_", "-") for name in LOCK}
    assert everything - locked <= {"pip"}
    assert {"dagster", "dagster-k8s", "dagster-aws", "dagster-postgres", "mlflow", "kubernetes"} <= everything
