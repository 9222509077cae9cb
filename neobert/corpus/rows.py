"""What makes a row of a user's data a document, and what happens to one that is not."""

import logging
from collections import Counter

from neobert.errors import PipelineError

log = logging.getLogger(__name__)


class Rows:
    """Check rows one by one; ``on_bad_rows: fail`` raises at the first bad one, ``skip`` counts them by reason.

    Args:
        column: name of the text column, for messages.
        on_bad_rows: ``fail`` or ``skip``.
        max_bytes: longest document, in UTF-8 bytes.
    """

    def __init__(self, column: str, on_bad_rows: str, max_bytes: int) -> None:
        self.column, self.on_bad_rows, self.max_bytes = column, on_bad_rows, max_bytes
        self.skipped: Counter[str] = Counter()

    def bad(self, where: str, reason: str, detail: str) -> None:
        """Refuse the row at ``where`` (``file:line``).

        Raises:
            PipelineError: ``corpus.on_bad_rows`` is ``fail``.
        """
        if self.on_bad_rows == "fail":
            raise PipelineError(f"{where}: {detail}; mend it, or set corpus.on_bad_rows to skip")
        if not self.skipped[reason]:
            log.warning("%s: %s; skipped (and later rows like it, which are only counted)", where, detail)
        self.skipped[reason] += 1

    def text(self, value: object, where: str) -> str | None:
        """``value`` as a document's text, or ``None`` when it was skipped.

        Raises:
            PipelineError: as ``bad``.
        """
        if value is None:
            self.bad(where, "no text", f"{self.column!r} is null or missing")
        elif not isinstance(value, str):
            self.bad(where, "not a string", f"{self.column!r} is {type(value).__name__}, not a string")
        elif not value.strip():
            self.bad(where, "empty", "the document is empty")
        elif len(value) * 4 > self.max_bytes and self._too_long(value):
            self.too_long(where)
        elif not value.isascii() and _lone_surrogate(value):
            self.bad(where, "not Unicode", "the text holds a lone surrogate, which UTF-8 cannot hold")
        else:
            return value
        return None

    def too_long(self, where: str) -> None:
        """Refuse a document that is longer than ``corpus.max_document_bytes``."""
        self.bad(where, "too long", f"the document has more than corpus.max_document_bytes ({self.max_bytes}) bytes")

    def _too_long(self, value: str) -> bool:
        return len(value.encode("utf-8", "surrogatepass")) > self.max_bytes


def _lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
