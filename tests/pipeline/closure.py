"""What code a stage runs: the files that its module imports, directly or not, read from the syntax tree.

``python -m tests.pipeline.closure`` prints, for each stage, the code dependencies that dvc.yaml must list.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# It can only refuse a run, never change a result (see its docstring), so no stage depends on it.
EXEMPT = {"neobert/config/validate.py"}
# Listed file by file: a stage depends on its own sections, not on all of them; the rest are single files.
BY_FILE = {"neobert", "neobert/config", "stages"}


def module_file(module: str) -> str | None:
    """Repository path of a local module, or ``None``."""
    base = module.replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@cache
def imports(path: str) -> frozenset[str]:
    """Repository paths of the local modules that ``path`` imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("neobert", "stages") and (file := module_file(name)):
                found.add(file)
    return frozenset(found - EXEMPT)


def closure(stage: str) -> set[str]:
    """Files that ``python -m stages.<stage>`` reads as code; empty package files aside."""
    todo, seen = [f"stages/{stage}.py"], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo.extend(imports(path))
    return {p for p in seen if (ROOT / p).stat().st_size}


def code_deps(stage: str) -> list[str]:
    """The closure as dvc.yaml lists it: core directories, and single files of the flat ones."""
    return sorted({p if str(Path(p).parent) in BY_FILE else "/".join(Path(p).parts[:2]) for p in closure(stage)})


if __name__ == "__main__":
    for file in sorted((ROOT / "stages").glob("*.py")):
        print(file.stem)
        for dep in code_deps(file.stem):
            print("  -", dep)
