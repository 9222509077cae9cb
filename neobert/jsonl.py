"""Rows of a JSONL file, every one checked; whatever does not fit is an error with its file and line.

Cost: one parse of the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neobert.errors import PipelineError

Columns = dict[str, type | tuple[type, ...]]


def read_jsonl(path: Path, columns: Columns, optional: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Rows of a JSONL file, each checked to hold ``columns`` of the given types; blank lines are skipped.

    ``optional``: further text columns, with the value they take where a row has none or null.

    Raises:
        PipelineError: the file is missing or empty, or a line does not fit (file:line, what, rule).
    """
    if not path.is_file():
        raise PipelineError(f"{path}: does not exist; the task needs it, with the columns {', '.join(columns)}")
    rows = []
    with open(path, encoding="utf-8", errors="strict") as handle:
        for number, line in enumerate(_decoded(handle, path), start=1):
            if line.strip():
                rows.append(_row(line, f"{path}:{number}", columns, optional or {}))
    if not rows:
        raise PipelineError(f"{path}: is empty; a task needs at least one row")
    return rows


def _decoded(handle: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from handle
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path}: is not valid UTF-8 ({error.reason} at byte {error.start}); re-encode it"
        ) from error


def parse_line(line: str | bytes) -> Any:
    """The JSON value of a line.

    Raises:
        ValueError: it is not UTF-8 or not JSON, or an escape is half of a surrogate pair, which is no character.
    """
    text = line if isinstance(line, str) else line.decode("utf-8-sig")
    value = json.loads(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _row(line: str, where: str, columns: Columns, optional: dict[str, str]) -> dict[str, Any]:
    try:
        row = parse_line(line)
    except ValueError as error:
        raise PipelineError(f"{where}: is not JSON ({error}); one object a line is needed") from error
    if not isinstance(row, dict):
        raise PipelineError(f"{where}: is a {type(row).__name__}; one JSON object a line is needed")
    row = {**row, **{name: default for name, default in optional.items() if row.get(name) is None}}
    for name, kinds in {**columns, **dict.fromkeys(optional, str)}.items():
        if name not in row:
            raise PipelineError(f"{where}: has no {name!r}; its columns are {', '.join(row)}")
        if not isinstance(row[name], kinds) or isinstance(row[name], bool):
            raise PipelineError(f"{where}: {name} is {row[name]!r}, a {type(row[name]).__name__}; that cannot be read")
    return {name: row[name] for name in (*columns, *optional)}
