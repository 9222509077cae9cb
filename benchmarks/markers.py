"""Tables in documents: the text between `<!-- NAME -->` and `<!-- /NAME -->`, which a program writes anew."""

from __future__ import annotations

import re
from pathlib import Path

from neobert.errors import PipelineError
from neobert.io import write_text


def between(path: Path, name: str) -> str:
    """The text between the markers `name`, without the line ends at the markers.

    Raises:
        PipelineError: the document does not have both markers, in order, once.
    """
    return _match(path, name)["text"].strip("\n")


def write_between(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers `name` by `text`.

    Raises:
        PipelineError: as `between`; the document is then as it was.
    """
    found = _match(path, name)
    whole = found.string
    write_text(path, f"{whole[: found.start('text')]}\n{text}\n{whole[found.end('text') :]}")


def _match(path: Path, name: str) -> re.Match[str]:
    pattern = rf"<!-- {re.escape(name)} -->(?P<text>.*?)<!-- /{re.escape(name)} -->"
    found = list(re.finditer(pattern, path.read_text(), re.DOTALL))
    if len(found) != 1:
        raise PipelineError(f"{path}: needs the markers <!-- {name} --> and <!-- /{name} --> once, around its table")
    return found[0]
