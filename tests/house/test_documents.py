"""What README, CONTRIBUTING and the documentation claim, as far as a test can know it."""

import importlib.util
import json
import re

import pytest
from checkout import ROOT

import cudeform
from cudeform.bench.workload import CPU
from cudeform.registry import OPERATORS

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def examples(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.S | re.M)


def test_readme_example_runs(capsys):
    exec(compile(examples(README)[0], "README.md", "exec"), {})
    assert capsys.readouterr().out == "(2, 8, 32, 32) (2, 18, 32, 32) (2, 9, 32, 32)\n"


def test_readme_examples_differ_in_the_import_alone():
    on_cpu, on_gpu, _ = examples(README)
    assert on_cpu.startswith("import numpy as xp\n")
    assert on_gpu == on_cpu.replace("import numpy as xp", "import cupy as xp")


def test_readme_example_for_torch_runs(capsys):
    pytest.importorskip("torch")
    exec(compile(examples(README)[2], "README.md", "exec"), {})
    shapes = "torch.Size([8, 16, 3, 3]) torch.Size([2, 18, 32, 32])\n"
    assert capsys.readouterr().out == shapes


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_tables_are_up_to_date(tables):
    assert tables.filled(README) == README, "run: python docs/tables.py"


def test_all_that_bench_measures_has_a_table(tables, tmp_path, monkeypatch):
    milliseconds = {"cudeform": 1.0, "another": 2.0}
    results = [
        {
            "operator": work.operator,
            "workload": str(work),
            "pass": "forward",
            "median_ms": milliseconds,
            "ratio": milliseconds,
        }
        for work in CPU
    ]
    machine = {"processor": "a processor", "date": "today", "threads": 1}
    (tmp_path / "a.json").write_text(json.dumps({"machine": machine, "results": results}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    included = [name for name in tables.TABLES if f"_build/generated/{name}.md" in page]
    shown = "".join(tables.TABLES[name]() for name in included)
    for work in CPU:
        assert f"| {tables._pretty(str(work))} | forward | 1.0 ms | 2.00× |" in shown


def test_readme_has_the_two_commands_on_lines_of_their_own():
    """.ci/run reads the second one from there."""
    lines = README.splitlines()
    assert lines.count("pip install '.[demo]' && python -m cudeform demo") == 1
    tests = [line for line in lines if re.fullmatch(r"pip install .* && python -m pytest", line)]
    assert tests == ["pip install -c constraints.txt -e '.[test]' && python -m pytest"]


def paths(text):
    """Files and folders that a text names in backticks, but for those of a new operator."""
    named = re.findall(r"`([\w.-]+/[\w./-]*)`", text)
    return {name for name in named if not name.startswith(("docs/_build", "~"))}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{n}" for n in PAGES)])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert not [name for name in paths(text) if not (ROOT / name).exists()]
    assert not [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()]


def test_contributing_names_what_it_describes():
    assert len(paths(CONTRIBUTING)) > 10


def test_reference_has_every_public_name():
    index = (ROOT / "docs" / "api" / "index.rst").read_text()
    listed = {line.strip() for line in index.splitlines() if line.startswith("   ")}
    operators = {row.name + end for row in OPERATORS for end in ("", "_backward")}
    assert set(cudeform.__all__) == (operators | listed) & set(dir(cudeform))


def test_conventions_tell_every_converter():
    for name in cudeform.__all__:
        if name.startswith(("convert_", "unpack_", "points_from_")):
            assert f"~cudeform.{name}`" in PAGES["conventions.md"], name
