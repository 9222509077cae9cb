"""Cut one Python module into prose (docstrings of module and classes, comments) and functions.

Algorithm: one ``ast.parse`` finds statements; every text is then cut from the source by line numbers, never printed
back by ``ast.unparse``, whose output differs from one Python to the next. Comments outside functions are the lines
that no statement covers, so no tokenizer pass is needed. Cost: about 5 MB of source a second and core.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(\[])")
_BLANK_LINES = re.compile(r"\n\s*\n")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    """An outermost function or method, dedented.

    ``lines[:doc_start]`` is the ``def`` line(s), ``lines[doc_start:doc_end]`` the docstring's own lines (empty when
    there is none), ``lines[doc_end:]`` the body.
    """

    qualname: str
    line: int
    lines: tuple[str, ...]
    doc_start: int
    doc_end: int
    docstring: str

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def code(self) -> str:
        """The function without its docstring."""
        return "\n".join(self.lines[: self.doc_start] + self.lines[self.doc_end :])

    @property
    def body(self) -> str:
        """The function without its ``def`` line and docstring."""
        return "\n".join(self.lines[self.doc_end :])


class Module(NamedTuple):
    prose: str
    functions: list[Function]


def parse_module(source: str) -> Module:
    """Cut ``source`` into prose and functions, both in the order of the file.

    Raises:
        SyntaxError, ValueError: ``ast.parse`` refuses the source.
    """
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    lines = source.split("\n")
    covered = bytearray(len(lines) + 2)  # by line number, from 1
    prose: list[tuple[int, str]] = []
    functions: list[Function] = []
    _docstring_to(prose, tree)
    _walk(tree.body, "", lines, covered, prose, functions)
    prose.extend(_comments(lines, covered))
    prose.sort(key=lambda item: item[0])
    return Module("\n\n".join(text for _, text in prose), functions)


def _walk(statements, prefix, lines, covered, prose, functions) -> None:
    for node in statements:
        if isinstance(node, _FUNCTIONS):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            _cover(covered, first, node.end_lineno)
            functions.append(_cut_function(node, prefix, lines))
        elif isinstance(node, ast.ClassDef):
            _docstring_to(prose, node)
            _walk(node.body, f"{prefix}{node.name}.", lines, covered, prose, functions)
        elif nested := list(_blocks(node)):
            for block in nested:
                _walk(block, prefix, lines, covered, prose, functions)
        else:
            _cover(covered, node.lineno, node.end_lineno)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a compound statement (if, try, with, for, while, match)."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block:
            yield block
    for clause in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield clause.body


def _cover(covered: bytearray, first: int, last: int | None) -> None:
    last = last or first
    covered[first : last + 1] = b"\1" * (last + 1 - first)


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", [])
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def _docstring_to(prose: list[tuple[int, str]], node: ast.AST) -> None:
    expression = _docstring_node(node)
    if expression is not None:
        text = clean_docstring(expression.value.value)  # type: ignore[attr-defined]
        if text:
            prose.append((expression.lineno, text))


def _cut_function(node, prefix: str, lines: list[str]) -> Function:
    start, end = node.lineno, node.end_lineno
    own = lines[start - 1 : end]
    indent = len(own[0]) - len(own[0].lstrip(" \t"))
    margin = own[0][:indent]
    # Lines of a multi-line string may stand further left than the code: they are kept as they are.
    own = [line[indent:] if line.startswith(margin) else line for line in own]
    expression = _docstring_node(node)
    doc_start = node.body[0].lineno - start
    if expression is None or doc_start == 0 or len(node.body) < 2:
        return Function(prefix + node.name, start, tuple(own), doc_start, doc_start, "")
    doc_end = expression.end_lineno - start + 1
    if node.body[1].lineno - start < doc_end:  # `"doc"; code` on one line cannot be cut by lines
        return Function(prefix + node.name, start, tuple(own), doc_start, doc_start, "")
    text = clean_docstring(expression.value.value)  # type: ignore[attr-defined]
    return Function(prefix + node.name, start, tuple(own), doc_start, doc_end, text)


def _comments(lines: list[str], covered: bytearray) -> Iterator[tuple[int, str]]:
    """Blocks of comment lines that no statement covers, without their marks."""
    block: list[str] = []
    first = 0
    for number, line in enumerate(lines, start=1):
        stripped = line.lstrip(" \t") if not covered[number] else ""
        if stripped.startswith("#"):
            first = first if block else number
            block.append(stripped.lstrip("#!: ").rstrip())
        elif block:
            yield from _comment(first, block)
            block = []
    if block:
        yield from _comment(first, block)


def _comment(first: int, block: list[str]) -> Iterator[tuple[int, str]]:
    text = "\n".join(block).strip()
    # Rulers, encodings and linter marks are not prose.
    if sum(character.isalpha() for character in text) >= 20 and " " in text:
        yield first, text


def clean_docstring(text: str) -> str:
    """Remove a docstring's common indentation, as PEP 257 says (``inspect.cleandoc`` differs between Pythons)."""
    lines = text.expandtabs(8).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines[1:] if line.strip()), default=0)
    cleaned = [lines[0].strip(), *(line[margin:].rstrip() for line in lines[1:])]
    return "\n".join(cleaned).strip("\n").strip()


def first_paragraph(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first paragraph, on one line, and the rest as it stands."""
    parts = _BLANK_LINES.split(docstring, maxsplit=1)
    return " ".join(parts[0].split()), parts[1].strip() if len(parts) > 1 else ""


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line."""
    paragraph, _ = first_paragraph(docstring)
    return _SENTENCE_END.split(paragraph, maxsplit=1)[0]


def identifier_words(name: str) -> str:
    """``Trainer.save_modelState`` -> ``save model state``: the last part of a qualified name as words."""
    name = name.rpartition(".")[2].replace("_", " ")
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower().split())
