"""What a file is, from its first bytes: rows (JSON lines, Parquet; gzip or zstandard around them) or something that is refused by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.acquire.uploaded import BLANK, row_suffix
from ft_pipeline.curate.unpack import PIECE_BYTES, pieces
from ft_pipeline.errors import DataError
from ft_pipeline.web.refusals import Refusal

HEAD_BYTES = 64 << 10
RATIO = 250
"""Unpacked bytes for one stored byte. JSON lines pack 5 to 50 times, gzip cannot go beyond 1,032."""
FREE_BYTES = 64 << 20
"""Unpacked, whatever the ratio: what is so small harms nobody."""
MOST_BYTES = 32 << 30
"""Unpacked, at all."""
MAGIC = (
    (b"PK\x03\x04", "a zip archive"), (b"PK\x05\x06", "an empty zip archive"), (b"\x1f\x9d", "a compress (.Z) file"),
    (b"BZh", "a bzip2 file"), (b"\xfd7zXZ\x00", "an xz file"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!\x1a\x07", "a rar archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls, .doc)"), (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program (ELF)"), (b"MZ", "a Windows program"), (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"), (b"SQLite format 3\x00", "a SQLite database"), (b"\x89HDF", "an HDF5 file"), (b"ARROW1", "an Arrow IPC file"),
    (b"Obj\x01", "an Avro file"), (b"ORC", "an ORC file"), (b"\x93NUMPY", "a NumPy array"), (b"RIFF", "a sound or video file"),
    (b"\xff\xfe\x00\x00", "UTF-32 text"), (b"\x00\x00\xfe\xff", "UTF-32 text"), (b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"),
    (b"version https://git-lfs", "a git-lfs pointer"),
)  # fmt: skip
OFFICE = ((b"xl/", "an Excel workbook (.xlsx)"), (b"word/", "a Word document (.docx)"), (b"ppt/", "a presentation (.pptx)"),
          (b"data.pkl", "a PyTorch file, which is a zip with a pickle in it"))  # fmt: skip
"""Names inside a zip archive that tell what it is for."""
CURES = {
    "zip": "unpack it and upload the file inside, packed with gzip or zstandard if you like",
    "UTF-": "save it as UTF-8: `iconv -f UTF-16 -t UTF-8 rows.jsonl`",
    "Excel": "export it as JSON lines: pandas.read_excel(...).to_json('rows.jsonl', orient='records', lines=True)",
    "pickle": "write the rows as JSON lines: a pickle runs code when it is opened and is never read here",
    "comma": "pandas.read_csv(...).to_json('rows.jsonl', orient='records', lines=True)",
}
ROWS = "upload JSON lines (one object a line), plain, .gz or .zst, or Parquet"


@dataclass(kw_only=True, slots=True)
class Unpacking:
    """Counts what goes into and comes out of a packed file."""

    stored: int = 0
    unpacked: int = 0

    def read(self, num_bytes: int) -> None:
        """So many stored bytes were read."""
        self.stored += num_bytes

    def made(self, num_bytes: int) -> None:
        """So many bytes came out. Raises DataError when that is too much."""
        self.unpacked += num_bytes
        if self.unpacked > min(MOST_BYTES, FREE_BYTES + RATIO * self.stored):
            raise bomb(self.unpacked, self.stored)


def bomb(unpacked: int, stored: int) -> DataError:
    """The error of a file that unpacks to far more than rows do."""
    return DataError(
        f"{stored:,} stored bytes unpack to more than {unpacked:,}",
        why=f"No rows pack so well: more than {RATIO} to 1 beyond {FREE_BYTES >> 20} MiB, or above {MOST_BYTES >> 30} GiB, is taken for an attack.",
        cure="upload the rows plain, or in several files",
    )


def suffix_of_rows(path: Path) -> str:
    """How to read a file of rows, as the ending of a name (`.jsonl`, `.json.gz`, `.parquet` ...). The name it came with is not looked at.

    Raises Refusal for everything that is no rows, with what it seems to be.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    suffix = row_suffix(head)
    if suffix is None:
        raise _refused("an empty file (0 bytes)", "check the program that writes it")
    if suffix == ".parquet":
        _check_parquet_end(path)
    elif suffix.endswith((".gz", ".zst")):
        _check_text(_inner_head(path, suffix), f" inside {suffix.rsplit('.', 1)[1]}")
    else:
        _check_text(head, "")
    return suffix


def _check_parquet_end(path: Path) -> None:
    """A Parquet file begins and ends with PAR1; nothing else of it is opened in this process."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        if path.stat().st_size < 12 or file.read() != b"PAR1":
            raise _refused("a Parquet file that is cut off", "upload it again, whole")


def _inner_head(path: Path, suffix: str) -> bytes:
    """The first bytes inside a packed file; a small one is unpacked as far as shows that it is no bomb."""
    stored = path.stat().st_size
    head, made = b"", 0
    try:
        for piece in _unpacked(path, suffix):
            made += len(piece)
            if len(head) < HEAD_BYTES:
                head += piece[:HEAD_BYTES]
            if made > FREE_BYTES + RATIO * stored:
                raise bomb(made, stored)
            if len(head) >= HEAD_BYTES and stored > FREE_BYTES // RATIO:
                break
    except DataError as error:
        raise Refusal(error.what, code="invalid_file", param="file", why=error.why, cure=error.cure) from None
    return head


def _unpacked(path: Path, suffix: str) -> Iterator[bytes]:
    """At most 1 MiB at a time, whatever the file: many may be looked at together."""
    if suffix.endswith(".gz"):
        yield from pieces(path, f"the file{suffix}", lambda _bytes: None)
        return
    import zstandard

    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as inside,
        ):
            while piece := inside.read(PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise DataError(f"the file cannot be unpacked: {error}", cure="pack it again") from None


def _check_text(head: bytes, where: str) -> None:
    """Raises Refusal for what does not begin as JSON; the rows themselves are for the validation."""
    text = head.lstrip(BLANK)
    if not text:
        raise _refused(f"blank{where}" if head else f"an empty file{where}", "check the program that writes it")
    if text[:1] in (b"{", b"["):
        if head.count(b"\x00") * 3 > len(head):
            raise _refused(f"UTF-16 text without a mark{where}", CURES["UTF-"])
        return
    seems = seems_to_be(head)
    raise _refused(f"{seems}{where}", next((cure for word, cure in CURES.items() if word in seems), ROWS))


def seems_to_be(head: bytes) -> str:
    """In words what something that is no rows begins like."""
    for magic, name in MAGIC:
        if head.startswith(magic):
            inside = next((told for mark, told in OFFICE if mark in head), None) if name == "a zip archive" else None
            return inside or name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd":
        return "a packed file"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle"
    start = head.lstrip(BLANK)[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<"):
        return "XML"
    if b"\x00" in head or sum(byte < 9 for byte in head[:4096]) > 0:
        return "binary"
    line = head.lstrip(BLANK).split(b"\n", 1)[0]
    return "comma- or tab-separated text (CSV)" if line.count(b",") + line.count(b"\t") >= 1 else "text that is no JSON"


def _refused(seems: str, cure: str) -> Refusal:
    return Refusal(
        f"this is {seems}",
        code="invalid_file",
        param="file",
        why="Training rows are JSON objects, one a line, or a Parquet table; the content decides, not the name.",
        cure=cure,
    )
