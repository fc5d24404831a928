"""Texts in a column or field: CSV, TSV, JSON, JSON lines and parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from utils.sources.opened import encoding_of, lines, one_line, opened

USUAL = ("text", "story", "content", "body")  # in this order, where a table has several columns of text
LOOK_AT = 1_000  # rows in which columns of text are looked for
BLOCK = 1 << 24  # bytes that the CSV reader takes at a time; a row must fit


class NoSuchColumn(ValueError):
    """The table has no such column of text, or several and nobody said which."""


def column_of(names: list[str], wanted: str | None, path: Path | str) -> str:
    """The column to read: the one wanted, the usual one, or the only one. `names` are the columns that hold text."""
    if wanted is not None:
        if wanted not in names:
            raise NoSuchColumn(f"{path} has no column of text {wanted!r}, it must be one of {_listed(names)}")
        return wanted
    if len(names) == 1:
        return names[0]
    if usual := [name for name in USUAL if name in names]:
        return usual[0]
    raise NoSuchColumn(
        f"{path} has {'several columns' if names else 'no column'} of text ({_listed(names)}): "
        "say which with --text-column"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20])) or "none"


def json_items(path: Path, wanted: str | None, encoding: str | None) -> tuple[str, Iterator[str]]:
    """A list of strings or of objects, alone or in a field of one object; or else an object or string in each line."""
    try:
        value = json.loads("".join(lines(path, encoding)))
    except RecursionError:
        raise ValueError(f"{path}: the JSON is nested too deep") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines by another name
            return json_lines(path, wanted, encoding)
        raise ValueError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    if isinstance(value, dict):
        found = [part for name, part in value.items() if isinstance(part, list) and wanted in (None, name)]
        value = found[0] if len(found) == 1 else [value]
    if not isinstance(value, list):
        raise ValueError(f"{path} holds a {type(value).__name__}, it must be a list of texts or of objects")
    return _from_records(enumerate(value, 1), wanted, path, "item", "JSON")


def json_lines(path: Path, wanted: str | None, encoding: str | None) -> tuple[str, Iterator[str]]:
    """An object or a string in each line."""

    def records() -> Iterator[tuple[int, object]]:
        for number, line in enumerate(lines(path, encoding), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: broken JSON ({error})") from None

    return _from_records(records(), wanted, path, "line", "JSON lines")


def _from_records(
    records: Iterator[tuple[int, object]], wanted: str | None, path: Path, place: str, kind: str
) -> tuple[str, Iterator[str]]:
    records = iter(records)
    head = list(islice(records, LOOK_AT))
    records = chain(head, records)
    if all(isinstance(record, str) for _, record in head):
        column = None
    else:
        objects = [record for _, record in head if isinstance(record, dict)]
        fields = dict.fromkeys(name for record in objects for name, value in record.items() if isinstance(value, str))
        column = column_of(list(fields), wanted, path)

    def texts() -> Iterator[str]:
        for number, record in records:
            text = record if column is None else record.get(column) if isinstance(record, dict) else record
            if text is None and isinstance(record, dict) and column in record:
                continue  # null: an empty cell
            if not isinstance(text, str):
                missing = "is no text" if column is None else f"has no string {column!r}"
                raise ValueError(f"{path}, {place} {number}: {missing}")
            yield text

    return kind if column is None else f"{kind}, field {column!r}", texts()


def csv_items(path: Path, wanted: str | None, encoding: str | None, tab: bool) -> tuple[str, Iterator[str]]:
    """A row for each item; the first row names the columns."""
    import pyarrow
    import pyarrow.csv

    options = dict(
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, encoding=encoding or encoding_of(path)),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if tab else ",", newlines_in_values=True),
    )
    try:
        with opened(path) as file, pyarrow.csv.open_csv(file, **options) as reader:
            schema = reader.schema
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table that can be read ({one_line(error)})") from None
    names = [field.name for field in schema if str(field.type) == "string"]
    column = column_of(names, wanted, path)

    def texts() -> Iterator[str]:
        convert = pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: pyarrow.string()})
        try:
            with opened(path) as file, pyarrow.csv.open_csv(file, convert_options=convert, **options) as reader:
                for batch in reader:
                    yield from (text for text in batch.column(column).to_pylist() if text is not None)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a table that can be read ({one_line(error)})") from None

    return f"{'TSV' if tab else 'CSV'}, column {column!r}", texts()


def parquet_items(path: Path, wanted: str | None) -> tuple[str, Iterator[str]]:
    """A row for each item."""
    import pyarrow
    import pyarrow.parquet

    def file() -> pyarrow.parquet.ParquetFile:
        try:
            return pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise ValueError(f"{path}: not a whole parquet file ({one_line(error)})") from None

    with file() as table:
        schema = table.schema_arrow
    column = column_of([f.name for f in schema if str(f.type) in ("string", "large_string")], wanted, path)

    def texts() -> Iterator[str]:
        try:
            with file() as table:
                n_bytes = sum(table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
                rows = max(1, min(1000, BLOCK * table.metadata.num_rows // max(1, n_bytes)))
                for batch in table.iter_batches(batch_size=rows, columns=[column]):
                    yield from (text for text in batch.column(column).to_pylist() if text is not None)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a whole parquet file ({one_line(error)})") from None

    return f"parquet, column {column!r}", texts()
