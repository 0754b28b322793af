"""Files in an S3-compatible bucket, one object or all below a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ft_pipeline.acquire.download import CutShort, RemoteFile
from ft_pipeline.errors import NotFoundError, StorageError
from ft_pipeline.store.files import Bucket

PIECE_BYTES = 8 << 20


def bucket_files(uri: str, endpoint: str | None) -> list[RemoteFile]:
    """The object at an `s3://` URI, or every object below it, in order of name.

    Raises NotFoundError when nothing is there, StorageError when the bucket does not answer or refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    root = uri.rstrip("/")
    filesystem = Bucket(root, endpoint).filesystem
    try:
        filesystem.invalidate_cache()
        found = filesystem.find(root, withdirs=False, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        found = {}
    except (BotoCoreError, ClientError, OSError) as error:
        raise StorageError(
            f"{uri} cannot be listed: {error}",
            cure="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, FT_S3_ENDPOINT and that the bucket exists",
        ) from None
    if not found:
        raise NotFoundError(f"nothing at {uri}", cure="check the bucket and the prefix: `aws s3 ls` shows them")
    prefix = root.removeprefix("s3://") + "/"
    return [_file(filesystem, path, facts, prefix=prefix) for path, facts in sorted(found.items()) if facts["size"]]


def _file(filesystem: Any, path: str, facts: dict[str, Any], *, prefix: str) -> RemoteFile:
    name = path.removeprefix(prefix) if path.startswith(prefix) else path.rsplit("/", 1)[-1]
    size, version = int(facts["size"]), facts.get("ETag")

    def read(offset: int) -> Iterator[tuple[int, bytes]]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for position in range(offset, size, PIECE_BYTES):
                yield position, filesystem.cat_file(path, start=position, end=min(position + PIECE_BYTES, size))
            if filesystem.info(path, refresh=True).get("ETag") != version:
                raise CutShort("the object was replaced while it was read")
        except (BotoCoreError, ClientError, OSError) as error:
            raise CutShort(f"the bucket stopped answering ({error})") from None

    return RemoteFile(name=name, uri=f"s3://{path}", size=size, version=version, read=read)
