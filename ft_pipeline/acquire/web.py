"""Files over HTTPS: what a server says of them (size, version), and their bytes from an offset (RFC 9110 Range, If-Range)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from ft_pipeline.acquire.download import CutShort, RemoteFile
from ft_pipeline.errors import NotFoundError, StorageError, UserError

TIMEOUT_SECONDS = 30
REFUSED = (401, 403, 407)
GONE = (404, 410)


def web_file(url: str) -> RemoteFile:
    """The file at an address. Raises UserError when the server refuses or has none, StorageError when it does not answer."""
    import httpx

    name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
    try:
        answer = httpx.head(url, headers=_headers({}), follow_redirects=True, timeout=TIMEOUT_SECONDS)
    except httpx.TransportError as error:
        raise StorageError(
            f"{url} does not answer: {error or type(error).__name__}", cure="check the address and the network"
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UserError(f"{url} is not an address: {error}") from None
    if answer.status_code in (405, 501):
        return RemoteFile(name=name, uri=url, size=None, version=None, read=reader(url, None, {}))
    if answer.status_code >= 400:
        raise refusal(url, answer.status_code)
    size = answer.headers.get("content-length")
    version = answer.headers.get("etag") or answer.headers.get("last-modified")
    return RemoteFile(
        name=name, uri=url, size=int(size) if size else None, version=version, read=reader(url, version, {})
    )


def reader(url: str, version: str | None, headers: Mapping[str, str]):
    """`read(offset)` of a RemoteFile. A server that ignores the range, or has another version by now, begins at 0."""

    def read(offset: int) -> Iterator[tuple[int, bytes]]:
        import httpx

        # a weak ETag may not stand in If-Range (RFC 9110 13.1.5): such a file begins anew
        resume = {"Range": f"bytes={offset}-"} if offset and not (version or "").startswith("W/") else {}
        if resume and version:
            resume["If-Range"] = version
        try:
            with httpx.stream(
                "GET", url, headers=_headers(headers) | resume, follow_redirects=True, timeout=TIMEOUT_SECONDS
            ) as answer:
                yield from _pieces(url, answer, offset)
        except httpx.TransportError as error:
            raise CutShort(f"the connection broke ({error or type(error).__name__})") from None

    return read


def refusal(url: str, status: int) -> UserError:
    """What a status of 400 or above means for a person."""
    if status in GONE:
        return NotFoundError(f"{url}: nothing is there (HTTP {status})", cure="check the address")
    if status in REFUSED:
        return UserError(
            f"{url}: access refused (HTTP {status})", cure="use an address that needs no login, or download the file"
        )
    return StorageError(f"{url}: HTTP {status}", cure="run the same command again later")


def _pieces(url: str, answer, offset: int) -> Iterator[tuple[int, bytes]]:
    if answer.status_code in (416, 429) or answer.status_code >= 500:
        raise CutShort(f"HTTP {answer.status_code}")
    if answer.status_code >= 400:
        raise refusal(url, answer.status_code)
    position = offset if answer.status_code == 206 else 0
    # no piece size: the client would hold back a piece that is not full, and a cut would lose it
    for piece in answer.iter_raw():
        yield position, piece
        position += len(piece)


def _headers(extra: Mapping[str, str]) -> dict[str, str]:
    # identity: a compressed answer has another length than the file, and no usable ranges
    return {"User-Agent": "ft-pipeline", "Accept-Encoding": "identity", **extra}
