"""Stand-ins for compiled modules: which import finds one, which does not, and how it ends."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import warnings

import pytest
from checkout import ROOT
from command_line import run

pytest.importorskip("torch")

from cudeform.extensions.finder import DISTRIBUTIONS, stands_in  # noqa: E402
from cudeform.torch import extensions  # noqa: E402

ROWS = {row.name: row for row in extensions.available()}
MSDA = "MultiScaleDeformableAttention"


def imported(name):
    """A module, imported anew."""
    for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[loaded]
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this test has packages of its own; nothing of them is left."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) in (None, ""):
            continue
        if str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("name", ROWS)
def test_every_name_of_every_module_is_there(name, folder):
    parent = name.rpartition(".")[0]
    for depth in range(parent.count(".") + 1 if parent else 0):
        package = folder.joinpath(*parent.split(".")[: depth + 1])
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    importlib.invalidate_caches()
    with extensions.install(name):
        for module, names in ROWS[name].modules.items():
            found = importlib.import_module(module)
            assert stands_in(found)
            for held in names:
                assert callable(getattr(found, held)), held
    with pytest.raises(ImportError):
        importlib.import_module(name)
    for loaded in [m for m in sys.modules if m == name.partition(".")[0]]:
        assert not hasattr(sys.modules[loaded], name.rpartition(".")[2])
        del sys.modules[loaded]


def test_mmcv_has_the_names_it_asks_for():
    """112 in mmcv 2.2; mmcv 1.7 asks for fewer."""
    row = ROWS["mmcv._ext"]
    assert len(row.functions) + len(row.missing) == 112
    assert {"deform_conv_forward", "nms", "ms_deform_attn_backward"} <= set(row.functions)


def test_a_name_without_a_function_says_so():
    with extensions.install("own._ext=mmcv._ext"):
        sys.modules["own"] = own = type(sys)("own")
        own.__path__ = []
        try:
            function = importlib.import_module("own._ext").upfirdn2d
        finally:
            del sys.modules["own"]
    assert function.__name__ == "upfirdn2d"
    with pytest.raises(NotImplementedError, match=r"own\._ext\.upfirdn2d: .*does not compute"):
        function(1, key=2)


def test_by_default_all_but_those_that_other_software_has():
    with extensions.install() as installed:
        asked_for = {"_ext", "DCN", "detectron2._C"}
        assert set(ROWS) - set(installed.names) == asked_for
        assert {name for name, row in ROWS.items() if row.on_request} == asked_for
        for name in ("_ext", "DCN", MSDA.lower(), MSDA + "_", "DCNv5"):
            with pytest.raises(ImportError):
                importlib.import_module(name)


def test_undo_twice_and_one_in_the_other():
    before, path = list(sys.meta_path), list(sys.path)
    outer = extensions.install()
    with extensions.install(MSDA, "DCNv3"):
        inner = importlib.import_module(MSDA)
    assert MSDA not in sys.modules
    assert importlib.import_module(MSDA) is not inner
    outer.undo()
    outer.undo()
    assert sys.meta_path == before and sys.path == path and MSDA not in sys.modules
    assert inner.ms_deform_attn_forward is not None


@pytest.mark.parametrize(
    "name", ["nope", "", 3, "a-b=_ext", "=_ext", "mine=nope"], ids=["", "e", "3", "-", "=", "no"]
)
def test_names_that_have_no_stand_in(name):
    with pytest.raises(
        ValueError, match="expected names of extensions, which are mmcv._ext, .*got"
    ):
        extensions.install(name)


def test_a_module_that_is_there_is_left_alone(folder):
    (folder / f"{MSDA}.py").write_text("mine = 1\n")
    importlib.invalidate_caches()
    with extensions.install():
        found = importlib.import_module(MSDA)
        assert found.mine == 1 and found.__spec__.origin == str(folder / f"{MSDA}.py")
        assert found.__spec__.loader is found.__loader__ and not stands_in(found)
        with pytest.raises(RuntimeError, match=f"{MSDA} not to be imported before"):
            extensions.install(MSDA, replace=True)
    assert sys.modules.pop(MSDA) is found
    with extensions.install(MSDA, replace=True):
        assert stands_in(importlib.import_module(MSDA))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (f"{MSDA}.py", "NotImplementedError: no GPU of 2020"),
        (f"{MSDA}{importlib.machinery.EXTENSION_SUFFIXES[0]}", "ImportError: "),
    ],
    ids=["Python", "compiled"],
)
def test_a_module_that_cannot_be_imported_is_replaced_with_a_warning(folder, file, reason):
    (folder / file).write_text("half = 1\nraise NotImplementedError('no GPU of 2020')\n")
    importlib.invalidate_caches()
    with extensions.install():
        with pytest.warns(RuntimeWarning, match=f"stands in for {MSDA}, .*{reason}"):
            found = importlib.import_module(MSDA)
        assert stands_in(found) and not hasattr(found, "half")
        assert found.ms_deform_attn_forward.__name__ == "ms_deform_attn_forward"


@pytest.mark.parametrize("where", ["DCNv4", "DCNv4.functions"])
def test_of_a_package_the_part_that_cannot_be_imported_is_replaced(folder, where):
    """As in DCNv4, which asks its GPU for its age when its functions are imported."""
    package, fails = folder / "DCNv4", "from DCNv4 import ext\nraise RuntimeError('no GPU')\n"
    package.mkdir()
    whole = where == "DCNv4"
    (package / "__init__.py").write_text(
        "from . import functions, modules\n" + (fails if whole else "")
    )
    (package / "functions.py").write_text("DCNv4Function = 1\n" if whole else fails)
    (package / "modules.py").write_text("mine = 1\n")
    importlib.invalidate_caches()
    with extensions.install():
        with pytest.warns(RuntimeWarning, match=f"stands in for {where}, .*no GPU"):
            found = importlib.import_module("DCNv4")
        functions = importlib.import_module("DCNv4.functions")
        assert stands_in(found) is whole and stands_in(functions)
        assert functions.DCNv4Function.__module__ == "cudeform.torch.extensions.dcnv4"
        assert hasattr(importlib.import_module("DCNv4.modules"), "mine") is not whole
        ext = importlib.import_module("DCNv4.ext")
        assert stands_in(ext) and ext.dcnv4_forward.__name__ == "dcnv4_forward"
    for name in [name for name in sys.modules if name.partition(".")[0] == "DCNv4"]:
        assert not whole and not stands_in(sys.modules.pop(name))


def test_the_version_of_dcnv3_can_be_asked_for():
    pytest.raises(importlib.metadata.PackageNotFoundError, importlib.metadata.version, "DCNv3")
    with extensions.install("DCNv3"):
        assert float(importlib.metadata.version("DCNv3")) > 1.0
    assert DISTRIBUTIONS not in sys.path
    pytest.raises(importlib.metadata.PackageNotFoundError, importlib.metadata.version, "DCNv3")


@pytest.mark.parametrize("first", [True, False])
def test_pkg_resources_knows_the_version_too(first):
    pytest.importorskip("pkg_resources", reason="setuptools of 82 and later has none")
    lines = ["import pkg_resources", "from cudeform.extensions import install; install('DCNv3')"]
    ask = "import pkg_resources; print(float(pkg_resources.get_distribution('DCNv3').version))"
    code = "\n".join([*(lines if first else lines[1:]), ask])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1.1\n", done.stderr


PROGRAM = """
import sys
print(sys.argv, __name__, __file__, __spec__, sys.path[0], "torch" in sys.modules)
import beside
import MultiScaleDeformableAttention
from groundingdino import _C
print(MultiScaleDeformableAttention.__spec__.origin, _C.__name__)
if "fail" in sys.argv:
    def inner():
        raise KeyError("mine")
    inner()
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path):
    folder = tmp_path / "program"
    (folder / "groundingdino").mkdir(parents=True)
    (folder / "groundingdino" / "__init__.py").touch()
    (folder / "beside.py").touch()
    (folder / "main.py").write_text(PROGRAM)
    return folder


def test_run_is_python_with_stand_ins(tmp_path, program):
    done = run(tmp_path, "run", "program/main.py", "3", "--with", "-m", "x")
    assert done.returncode == 3, done.stderr
    first, second = done.stdout.splitlines()
    assert first == (
        "['program/main.py', '3', '--with', '-m', 'x'] __main__ program/main.py None "
        f"{program} False"
    )
    assert second == "cudeform.torch.extensions groundingdino._C"


def test_run_reports_an_error_as_python_does(tmp_path, program):
    done = run(tmp_path, "run", program / "main.py", "fail")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert re.fullmatch(r' +File ".*program/main\.py", line 11, in <module>', lines[1])
    assert lines[-1] == "KeyError: 'mine'" and "cudeform" not in done.stderr


@pytest.mark.parametrize("name", ["package", "package.part"])
def test_run_of_a_module(tmp_path, name):
    (tmp_path / "package").mkdir()
    code = "import sys; print(sys.argv[1:], __name__, __spec__.name, __package__, sys.path[0])"
    for file in ("__main__.py", "part.py"):
        (tmp_path / "package" / file).write_text(code)
    done = run(tmp_path, "run", "--with", "_ext", "-m", name, "-m", "x")
    spec = "package.part" if name == "package.part" else "package.__main__"
    assert done.stdout == f"['-m', 'x'] __main__ {spec} package {tmp_path}\n", done.stderr


def test_run_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.py").write_text("value = 4\n")
    (tmp_path / "folder" / "__main__.py").write_text(
        "import sys, other; print(sys.argv, other.value)"
    )
    assert run(tmp_path, "run", "folder", "1").stdout == "['folder', '1'] 4\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a script or -m and a module"),
        (("-m",), "expected a module after -m"),
        (("-m", "no_such_module"), "cannot find no_such_module"),
        (("no_such_file.py",), "cannot read no_such_file.py: No such file"),
        (("--with", "nope", "x.py"), "expected names of extensions, .*got 'nope'"),
    ],
)
def test_run_says_what_it_cannot(tmp_path, arguments, message):
    done = run(tmp_path, "run", *arguments)
    assert done.returncode == 2
    assert re.match(f"cudeform run: .*{message}", done.stderr)


SPAWNING = """
import torch
from torch.utils.data import DataLoader, Dataset

class Data(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        import _ext, DCNv3
        return f"{_ext.__spec__.origin} {DCNv3.dcnv3_forward.__name__}"

if __name__ == "__main__":
    loader = DataLoader(Data(), num_workers=1, multiprocessing_context="spawn")
    print([batch for batch in loader])
"""


def test_processes_that_a_program_starts_have_them_too(tmp_path):
    """By the entry point of the installed package, in workers that nothing else tells."""
    if not importlib.metadata.entry_points(group="torch.backends", name="cudeform"):
        pytest.skip("cudeform is not installed, but in a folder of sources")
    (tmp_path / "main.py").write_text(SPAWNING)
    done = run(tmp_path, "run", "--with", "_ext", "main.py")
    assert done.stdout.count("cudeform.torch.extensions dcnv3_forward") == 2, done.stderr


def test_a_process_of_nobody_has_none(tmp_path):
    (tmp_path / "main.py").write_text("import torch\nimport DCNv3\n")
    done = run(tmp_path, program=("main.py",))
    assert "ModuleNotFoundError: No module named 'DCNv3'" in done.stderr


def test_the_list_of_extensions(tmp_path):
    (tmp_path / "DCNv3.py").touch()
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("raise ImportError('not to be imported')")
    done = run(tmp_path, "extensions", path=[tmp_path])
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[2 : 2 + len(ROWS)]}
    assert set(lines) == set(ROWS)
    assert "installed, left alone" in lines["DCNv3"]
    assert re.search(r" stood in +\d+ of 112 ", lines["mmcv._ext"])
    assert "no detrex here" in lines["detrex._C"]
    assert "stood in with --with" in lines["_ext"]
    one = run(tmp_path, "extensions", "mmcv._ext", path=[tmp_path]).stdout
    assert "works:" in one and "raises NotImplementedError:" in one and "upfirdn2d" in one
    assert run(tmp_path, "extensions", "nope").returncode == 2


def test_the_page_tells_what_is_there():
    page = (ROOT / "docs" / "extensions.md").read_text()
    row = ROWS["mmcv._ext"]
    assert f" {len(row.functions)} of {len(row.functions) + len(row.missing)} " in page
    commands = set(re.findall(r"`python -m cudeform run --with (\S+)", page))
    assert commands == {name for name, row in ROWS.items() if row.on_request}
    for name in ROWS:
        assert name in page or name.rpartition(".")[2] in page, name


def test_nothing_is_warned_of_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with extensions.install():
            imported("DCNv4")
