"""A file as lines of text, whatever its compression and encoding."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

COMPRESSED = (".gz", ".zst")
# Byte order marks; UTF-32's first, since one of them begins like UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
NO_TEXT = {
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by its ending. ValueError where the compressed file is cut off or broken."""
    ending = path.suffix.lower()
    try:
        if ending == ".gz":
            with gzip.open(path, "rb") as file:
                yield file
        elif ending == ".zst":
            import pyarrow  # here, so that importing this module stays quick

            with pyarrow.OSFile(str(path)) as packed, pyarrow.CompressedInputStream(packed, "zstd") as file:
                yield file
        else:
            with open(path, "rb") as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole compressed file ({error})") from None
    except OSError as error:
        if ending != ".zst" or isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{path} is not a whole compressed file ({error})") from None


def encoding_of(path: Path) -> str:
    """The encoding that a byte order mark tells, else UTF-8. ValueError where the file is of a kind that is no text."""
    with opened(path) as file:
        head = file.read(4)
    for sign, what in NO_TEXT.items():
        if head.startswith(sign):
            raise ValueError(f"{path} is {what}, not a text: save it as a .txt file in UTF-8")
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")


def lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    r"""The lines of a text file, each with its "\n"; "\r\n" and "\r" end lines too.

    Without an `encoding` it is the one that a byte order mark tells, else UTF-8. Raises ValueError where the bytes are
    no such text, with the line and the encoding that they look like.
    """
    encoding = encoding or encoding_of(path)
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding) as text:
            yield from text
    except LookupError:
        raise ValueError(f"encoding is {encoding!r}, which Python does not know, such as utf-8 or cp1252") from None
    except UnicodeError as error:
        raise ValueError(_not_text(path, encoding, error)) from None


def _not_text(path: Path, encoding: str, error: UnicodeError) -> str:
    """Where the text breaks, and what it may be instead."""
    with opened(path) as file:
        head = file.read(1 << 16)
        if encoding not in ("utf-8", "utf-8-sig"):
            return f"{path} is not {encoding}: {error}"
        file_lines = (head + file.read()).split(b"\n")
    number = next((n for n, line in enumerate(file_lines, 1) if not _decodes(line, "utf-8")), 1)
    nulls = [head[i::2].count(0) for i in (0, 1)]
    if max(nulls) > len(head) / 8:  # every other byte of English in UTF-16 is 0
        likely = "utf-16-be" if nulls[0] > nulls[1] else "utf-16-le"
    else:
        likely = "cp1252" if _decodes(head, "cp1252") else "latin-1"
    return (
        f"{path}, line {number}: the text is not UTF-8, and looks like {likely}:"
        f" convert it, or have it read so with --encoding {likely}"
    )


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeError:
        return False
    return True


def one_line(error: object) -> str:
    """The first line of an error, or its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
