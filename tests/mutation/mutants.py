"""One-line mutants of the package and its kernels."""

import ast
import random
import re
import shlex
from pathlib import Path
from typing import NamedTuple

__all__ = ["NOTICE", "Mutant", "draw"]

# Which tests should notice a change of which files: the first pattern that matches.
NOTICE = {
    "kernels/region*": "cuda/test_emulator_roi cuda/test_cupy_device",
    "kernels/*": "cuda/test_cuda_host cuda/test_cupy_device cuda/test_emulator",
    "cudeform/cuda/**/*": "cuda/test_cuda_host cuda/test_cupy_device cuda/test_emulator_roi",
    "cudeform/threads.py": "cpu/test_cpu_threads",
    "cudeform/cpu/agg*": "operators/test_aggregation operators/test_attention -k 'not emulator'",
    "cudeform/cpu/queries.py": (
        "operators/test_aggregation operators/test_attention -k 'not emulator and not cuda'"
    ),
    "cudeform/cpu/**/*": (
        "operators/test_operators cpu/test_cpu_roi cpu/test_cpu_blocking "
        "operators/test_deform_conv operators/test_sampling house/test_fuzz "
        "-k 'not emulator and not cuda'"
    ),
    "cudeform/torch/nn/aggregation.py": "bridges/test_torch_aggregation",
    "cudeform/torch/nn/*": "bridges/test_torch_modules bridges/test_torch_attention",
    "cudeform/torch/onnx*.py": "bridges/test_torch_modules bridges/test_torch_attention_onnx",
    "cudeform/torch/originals.py": "bridges/test_transformers bridges/test_torch_attention",
    "cudeform/torch/patching.py": "bridges/test_torch_modules bridges/test_torch_attention",
    "cudeform/torch/rebinding.py": "bridges/test_transformers bridges/test_torch_attention",
    "cudeform/torch/*": "bridges/test_torch bridges/test_torch_eager bridges/test_torch_compile",
    "cudeform/jax/*": "bridges/test_jax bridges/test_jax_devices",
    "cudeform/derivatives/*": "operators/test_derivatives bridges/test_torch",
    "cudeform/layers/*": "bridges/test_layers bridges/test_layers_attention",
    "cudeform/directions.py": "bridges/test_torch_attention bridges/test_layers_attention",
    "cudeform/converters/offsets.py": "operators/test_offset_layouts operators/test_converters",
    "cudeform/converters/points.py": "operators/test_coordinates operators/test_converters",
    "cudeform/converters/regions.py": "operators/test_coordinates operators/test_converters",
    "cudeform/ops/*": (
        "operators/test_arguments operators/test_roi_arguments operators/test_operators"
    ),
    "cudeform/plans/*": (
        "operators/test_arguments operators/test_roi_arguments operators/test_operators"
    ),
    "cudeform/boxes.py": "operators/test_roi_arguments operators/test_operators",
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
    """Mutants of random places, as many from each group of files as from any other."""
    groups = {}
    for pattern in NOTICE:
        for path in sorted(Path(root).glob(pattern)):
            name = path.relative_to(root).as_posix()
            taken = any(name in files for files in groups.values())
            if path.suffix in (".py", ".cu", ".cuh") and not taken and only in name:
                groups.setdefault(pattern, {})[name] = path.read_text()
    rng = random.Random(seed)
    found = {pattern: _shuffled(rng, files) for pattern, files in groups.items()}
    drawn = []
    while len(drawn) < count and any(found.values()):
        for pattern in [p for p in found if found[p]]:
            drawn.append((found[pattern].pop(), _arguments(NOTICE[pattern])))
    return drawn[:count]


def _arguments(tests):
    """What pytest is called with."""
    return [f"tests/{word}.py" if "/" in word else word for word in shlex.split(tests)]


def _shuffled(rng, files):
    every = [m for name, text in files.items() for m in _mutants(name, text)]
    rng.shuffle(every)
    return every


def _mutants(name, text):
    return list((_python if name.endswith(".py") else _kernel)(name, text))


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
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    shown = {id(part) for string in strings for part in ast.walk(string)}  # in messages
    for node in ast.walk(tree):
        if id(node) in shown:
            continue
        for start, end, replacement in _changes(node):
            line = lines[start[0] - 1]
            if start[0] == end[0] and not set("()") & set(line[start[1] : end[1]]):
                after = line[: start[1]] + replacement + line[end[1] :]
                yield Mutant(name, start[0], line, after)


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
