"""An operator is added by its own files and one row: no bridge has to hear of it."""

import ast
import importlib.util
import shutil
import subprocess
import sys

import pytest
from checkout import PACKAGE, ROOT

TOY = ROOT / "tests" / "toy"


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_files_and_a_row_are_enough(framework, tmp_path):
    if framework != "numpy" and importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}")
    for folder in ("plans", "ops", "cpu"):
        shutil.copytree(TOY / folder, tmp_path / folder)
    command = [sys.executable, str(TOY / "row.py"), str(tmp_path), framework]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [framework]


@pytest.mark.parametrize("bridge", ["torch", "jax"])
def test_bridges_name_no_operator(bridge):
    """But modules, which are made of operators, and what knows another library's names."""
    from cudeform.registry import OPERATORS

    package = PACKAGE / bridge
    knowing = ("originals", "patching", "onnx")
    sources = [p for p in package.glob("*.py") if p.stem.partition("_")[0] not in knowing]
    assert sources
    names = {row.name for row in OPERATORS}
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            said = (
                getattr(node, "value", None),
                getattr(node, "attr", None),
                getattr(node, "id", None),
            )
            assert names.isdisjoint(n for n in said if isinstance(n, str)), ast.dump(node)


@pytest.mark.parametrize("place", ["ops/call", "torch/route", "torch/autocast", "jax/__init__"])
def test_calls_name_no_argument(place):
    """Roles say which array is which."""
    from cudeform.registry import OPERATORS

    names = {argument.name for row in OPERATORS for argument in row.arguments}
    tree = ast.parse((PACKAGE / f"{place}.py").read_text())
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not names & said
