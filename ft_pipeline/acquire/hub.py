"""The Hugging Face Hub: a branch or tag becomes a commit, a commit becomes a list of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ft_pipeline.acquire import web
from ft_pipeline.acquire.download import RemoteFile
from ft_pipeline.errors import NotFoundError, StorageError, UserError
from ft_pipeline.settings import Settings

COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEME = "hf://"
Kind = Literal["model", "dataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubName:
    """`hf://[datasets/]owner/name[@revision][/path]`."""

    repo: str
    revision: str | None
    path: str
    """A file or folder inside the repository; empty for all of it."""


def parse(uri: str) -> HubName:
    """The parts of an `hf://` URI. Raises UserError."""
    body = re.sub(r"^(datasets|models)/", "", uri.removeprefix(SCHEME))
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+|refs/[\w.-]+/[\w.-]+))?(?:/(.+))?", body)
    if match is None:
        raise UserError(f"{uri!r} names no Hub repository", cure="write hf://owner/name or hf://owner/name@revision")
    return HubName(repo=match[1], revision=match[2], path=(match[3] or "").strip("/"))


def commit_of(name: HubName, kind: Kind, *, revision: str | None, settings: Settings) -> str:
    """The 40-hex commit of a revision (default: the URI's, then `main`); one that is a commit already asks nobody.

    Raises NotFoundError (no such repository or revision), UserError (gated), StorageError (no answer).
    """
    wanted = revision or name.revision or "main"
    if COMMIT.fullmatch(wanted):
        return wanted
    with _clear_errors(name.repo, kind, wanted):
        return str(_api(settings).repo_info(name.repo, repo_type=kind, revision=wanted).sha)


def files_at(name: HubName, kind: Kind, *, commit: str, settings: Settings) -> list[RemoteFile]:
    """Every file of a commit below the name's path, in order of name, with size and (large files) sha256."""
    with _clear_errors(name.repo, kind, commit):
        found = _api(settings).repo_info(name.repo, repo_type=kind, revision=commit, files_metadata=True)
    siblings = sorted(found.siblings or [], key=lambda s: s.rfilename)
    kept = [s for s in siblings if not name.path or s.rfilename == name.path or s.rfilename.startswith(f"{name.path}/")]
    if not kept:
        raise NotFoundError(
            f"{name.repo} at {commit[:12]} has no {name.path or 'files'}",
            cure=f"it holds: {', '.join(s.rfilename for s in siblings[:12]) or 'nothing'}",
        )
    return [_file(name.repo, kind, sibling, commit=commit, settings=settings) for sibling in kept]


def _file(repo: str, kind: Kind, sibling: Any, *, commit: str, settings: Settings) -> RemoteFile:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, sibling.rfilename, repo_type=kind, revision=commit, endpoint=settings.hf_endpoint)
    headers = build_hf_headers(token=settings.hf_token, library_name="ft-pipeline")
    return RemoteFile(
        name=sibling.rfilename,
        uri=f"{SCHEME}{kind}s/{repo}@{commit}/{sibling.rfilename}",
        size=sibling.size,
        version=commit,
        # a commit never changes, so no If-Range: the storage behind the redirect has ETags of its own
        read=web.reader(url, None, {k: str(v) for k, v in headers.items()}),
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
    )


def _api(settings: Settings) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=settings.hf_endpoint, token=settings.hf_token, library_name="ft-pipeline")


@contextmanager
def _clear_errors(repo: str, kind: Kind, revision: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated", why="Its owner wants terms accepted first.", cure="accept them on the Hub, set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
            f"no {kind} {repo} on the Hub", cure="check owner and name; a private one needs HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"{repo} has no revision {revision!r}", cure="name a branch, a tag or a 40-hex commit that its page shows"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise StorageError(f"{repo}: HF_HUB_OFFLINE is set", cure="unset it, or use a local folder") from None
    except (errors.HTTPError, OSError) as error:
        raise StorageError(
            f"the Hub does not answer for {repo}@{revision}: {error or type(error).__name__}",
            why="A branch or tag has to be resolved to a commit.",
            cure="check the network and HF_ENDPOINT; a recipe with a 40-hex revision already in the store needs no network",
        ) from None
