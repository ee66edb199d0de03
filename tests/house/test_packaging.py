"""What goes into the wheel, and that the kernels' sources are found however it is installed."""

import configparser
import re
import subprocess
import sys
import zipfile
from fnmatch import fnmatch

import numpy as np
import pytest
from checkout import ROOT

import cudeform
from cudeform.cuda.compile import Unit, flatten

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, option):
    return SETUP[section][option].strip().splitlines()


def test_every_package_is_packed():
    tree = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cudeform").rglob("__init__.py")
    }
    assert set(lines("options", "packages")) == tree | {"cudeform.kernels"}
    assert lines("options", "packages") == sorted(lines("options", "packages"))


def test_every_kernel_is_packed():
    patterns = SETUP["options.package_data"]["cudeform.kernels"].replace(" ", "").split(",")
    kernels = [path for path in (ROOT / "kernels").iterdir() if path.is_file()]
    assert kernels
    assert all(any(fnmatch(path.name, p) for p in patterns) for path in kernels)


def test_types_are_packed():
    assert SETUP["options.package_data"]["cudeform"] == "py.typed"
    assert (ROOT / "cudeform" / "py.typed").is_file()


def test_linters_have_one_version():
    """Before a commit as in CI; a checker of types may see any NumPy that is pinned."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition(" ")[0] for line in pinned}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    stated = re.findall(r"[\w-]+==[\w.]+", hooks)
    assert {name.partition("==")[0] for name in stated} == {"ruff", "mypy", "numpy"}
    assert set(stated) <= pinned


def test_citation_is_of_this_version():
    assert f"\nversion: {cudeform.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {cudeform.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_version_is_stated_once():
    assert SETUP["metadata"]["version"] == "attr: cudeform.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", cudeform.__version__)


@pytest.mark.parametrize("extra", ["demo", "docs", "test"])
def test_constraints_pin_every_requirement(extra):
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    pinned = set(re.findall(r"^([\w.-]+)==", pinned, flags=re.M))
    required = lines("options", "install_requires") + lines("options.extras_require", extra)
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in required}
    assert names - {"cudeform"} <= pinned


def test_kernels_are_found_in_a_zip(tmp_path):
    """Nothing unpacks them: there is no file to open but the archive."""
    archive = tmp_path / "cudeform.zip"
    kernels = sorted((ROOT / "kernels").iterdir())
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((ROOT / "cudeform").rglob("*.py")):
            file.write(path, path.relative_to(ROOT))
        for path in kernels:
            file.write(path, f"cudeform/kernels/{path.name}")
    names = [path.name for path in kernels if path.suffix == ".cu"]
    code = f"""
import sys
sys.path.insert(0, {str(archive)!r})
import numpy as np
from cudeform.cuda.compile import Unit, flatten
params = np.dtype([("height", "i4")])
for name in {names}:
    print(len(flatten(Unit(name, (), params))))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    units = [Unit(name, (), np.dtype([("height", "i4")])) for name in names]
    assert shown.stdout.split() == [str(len(flatten(unit))) for unit in units]
