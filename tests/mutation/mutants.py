"""One-line mutants of the package and its kernels."""

import ast
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["FOLDERS", "Mutant", "draw"]

# As many are drawn from each as from any other, while there are. Those of quick tests are first.
FOLDERS = {
    "converters": ["cudeform/converters/*.py"],
    "plans": ["cudeform/plans/*.py"],
    "ops": ["cudeform/ops/*.py"],
    "kernels": ["kernels/*.cu", "kernels/*.cuh"],
    "cuda": ["cudeform/cuda/**/*.py"],
    "layers": ["cudeform/layers/*.py"],
    "derivatives": ["cudeform/derivatives/*.py"],
    "dlpack": ["cudeform/dlpack.py", "cudeform/dispatch.py"],
    "jax": ["cudeform/jax/*.py"],
    "torch": ["cudeform/torch/**/*.py"],
    "shared": [f"cudeform/{name}.py" for name in ("arrays", "boxes", "checks", "threads")],
    "cpu": ["cudeform/cpu/**/*.py"],
}

_COMPARE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_BINARY = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "//",
    ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
# In kernels: what stands between spaces is an operator, a pointer or reference is not.
_TOKENS = [
    (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" == ", " != "),
    (r" && ", " || "), (r" \|\| ", " && "), (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "),
    (r" / ", " * "), (r" % ", " / "), (r" << ", " >> "), (r" >> ", " << "), (r" \+= ", " = "),
    (r"\b0\b", "1"), (r"\b1\b", "2"), (r"\b0\.5f?\b", "0.25f"), (r"\btrue\b", "false"),
]  # fmt: skip


class Mutant(NamedTuple):
    """A file with `line` (from 1) replaced."""

    file: str
    line: int
    before: str
    after: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.before.strip()}  ->  {self.after.strip()}"

    def text(self, source):
        """The mutated source."""
        lines = source.splitlines(keepends=True)
        assert lines[self.line - 1].rstrip("\n") == self.before
        lines[self.line - 1] = self.after + "\n"
        return "".join(lines)


def draw(root, count, seed, only=""):
    """Mutants of random places, as many from each folder, one folder after the other.

    A mutant's turn in its folder depends on the seed and its own line: edits elsewhere let it be.
    """
    found = {folder: _shuffled(root, names, seed, only) for folder, names in FOLDERS.items()}
    drawn = {folder: [] for folder in FOLDERS}
    left = count
    while left and any(found.values()):
        for folder in [folder for folder in FOLDERS if found[folder]][:left]:
            drawn[folder].append(found[folder].pop())
            left -= 1
    return [mutant for mutants in drawn.values() for mutant in mutants]


def _shuffled(root, names, seed, only):
    every = []
    for path in [path for name in names for path in Path(root).glob(name)]:
        name = path.relative_to(root).as_posix()
        if only in name:
            every += (_python if path.suffix == ".py" else _kernel)(name, path.read_text())

    def turn(mutant):
        text = repr((seed, mutant.file, mutant.before, mutant.after))
        return hashlib.sha256(text.encode()).digest(), mutant.line

    return sorted(every, key=turn)


def _kernel(name, text):
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        code = line.split("//")[0]
        if code.lstrip().startswith(("#", "*", "/*", "template", "static_assert")):
            continue
        for pattern, replacement in _TOKENS:
            for match in re.finditer(pattern, code):
                after = line[: match.start()] + replacement + line[match.end() :]
                yield Mutant(name, number, line, after)


def _python(name, text):
    lines = text.splitlines()
    tree = ast.parse(text)
    ignored = {id(part) for node in ast.walk(tree) for part in _ignored(node)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        for start, end, replacement in _changes(node):
            line = lines[start[0] - 1]
            if start[0] == end[0] and not set("()") & set(line[start[1] : end[1]]):
                after = line[: start[1]] + replacement + line[end[1] :]
                yield Mutant(name, start[0], line, after)


def _ignored(node):
    """What is only shown to the user, how many results a decorator keeps, and zip's assertion."""
    if isinstance(node, (ast.JoinedStr, ast.Raise)) or _says(node):
        yield from ast.walk(node)
    elif isinstance(node, ast.keyword) and node.arg == "strict":
        yield from ast.walk(node)
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        for decorator in node.decorator_list:
            yield from ast.walk(decorator)


def _says(node):
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    return name in ("fail", "warn", "warn_explicit")


def _changes(node):
    """((line, column), (line, column), replacement) of what can be changed in a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        yield *_between(node.left, node.comparators[0]), f" {_COMPARE[type(node.ops[0])]} "
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield *_between(node.left, node.right), f" {_BINARY[type(node.op)]} "
    elif isinstance(node, ast.BoolOp):
        word = "or" if isinstance(node.op, ast.And) else "and"
        yield *_between(node.values[0], node.values[1]), f" {word} "
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield _start(node), _start(node.operand), ""
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield _start(node), _end(node), str(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield _start(node), _end(node), str(node.value + 1)
    elif isinstance(node, ast.keyword) and node.arg and isinstance(node.value, ast.Name):
        yield _start(node.value), _end(node.value), "None"


def _start(node):
    return node.lineno, node.col_offset


def _end(node):
    return node.end_lineno, node.end_col_offset


def _between(left, right):
    return _end(left), _start(right)
