"""Kernels on disk: whatever happens to the files, the answer is right; what a fork finds; and what
a first call compiles.
"""

import hashlib
import importlib
import json
import os
import pickle
import pkgutil
import resource
import shutil
import signal
import stat
import sys
import threading
import warnings
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest
from numba.extending import overload
from processes import python

import cudeform
from cudeform.cpu.language import compiler, disk, simd


def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where kernels are kept in a test."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(disk, "_said", set())
    return Path(compiler.kernel(twice).stats.cache_path)


def hits(function=twice):
    """Whether a kernel comes from disk, in what is a new process to the cache."""
    kernel = compiler.kernel(function)
    assert kernel(21) == {twice: 42, thrice: 63}[function]
    (hits,) = (*kernel.stats.cache_hits.values(), 0)[:1]
    return bool(hits)


@contextmanager
def one_warning(*words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    (warning,) = caught
    assert warning.category is RuntimeWarning
    for word in words:
        assert word in str(warning.message)


def kept(folder, function=twice):
    (file,) = folder.glob(f"*{function.__name__}*")
    return file


def test_a_kernel_is_compiled_once(folder):
    assert [hits(), hits(), hits(thrice), hits(thrice)] == [False, True, False, True]
    assert kept(folder).stat().st_size > 1000


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def unreadable(content):
    """In order, but for what is pickled last."""
    body = content[32:]
    stream = memoryview(body)
    first = len(pickle.dumps(pickle.loads(stream)))
    broken = body[:first] + b"no pickle"
    return hashlib.sha256(broken).digest() + broken


@pytest.mark.parametrize("damage", [truncated, flipped, unreadable, lambda content: b""])
def test_a_damaged_kernel_costs_one_compilation(folder, damage):
    hits()
    file = kept(folder)
    file.write_bytes(damage(file.read_bytes()))
    with one_warning("a compiled kernel", "cannot be read", str(folder)):
        assert not hits()
    assert hits()


def test_a_kernel_in_the_place_of_another_is_not_used(folder):
    hits()
    hits(thrice)
    shutil.copy(kept(folder, thrice), kept(folder))
    assert not hits()
    assert hits()


def test_trouble_is_told_once(folder):
    for function in (twice, thrice):
        hits(function)
        kept(folder, function).write_bytes(b"")
    with one_warning("cannot be read"):
        hits()
        hits(thrice)


def test_a_full_disk_costs_only_time(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with one_warning("no compiled kernel can be written", str(folder), "OSError"):
            assert not hits()
            assert not hits(thrice)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.iterdir())
    assert [hits(), hits()] == [False, True]


def test_a_folder_that_is_gone_costs_only_time(folder):
    kernel = compiler.kernel(twice)
    shutil.rmtree(folder)
    folder.write_text("")  # in the way
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kernel(21) == 42
    assert len(caught) == 2  # it can be neither read nor written
    assert all(str(folder) in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [(numba.config, "BOUNDSCHECK", 1), (numba.config, "OPT", 1), (simd, "BLOCK_BYTES", 7)],
)
def test_kernels_of_other_settings_stand_beside_each_other(folder, monkeypatch, owner, name, value):
    hits()
    with monkeypatch.context() as changed:
        changed.setattr(owner, name, value)
        assert not hits()
        assert hits()
    assert hits()


def test_another_compiler_makes_kernels_stale(folder, monkeypatch):
    hits()
    monkeypatch.setattr(numba, "__version__", "0.0")
    disk._sources.cache_clear()
    try:
        assert not hits()
    finally:
        disk._sources.cache_clear()


def test_kernels_are_made_of_what_the_digest_sees():
    """Their globals are of this folder, or of other packages, of which versions are looked at."""
    elsewhere = []
    for module in [m for name, m in sys.modules.items() if name.startswith("cudeform.cpu.")]:
        for name, kernel in vars(module).items():
            if not hasattr(kernel, "py_func"):
                continue
            code, names = kernel.py_func.__code__, kernel.py_func.__globals__
            used = [names[n] for n in code.co_names if n in names]
            used += [cell.cell_contents for cell in kernel.py_func.__closure__ or ()]
            elsewhere += [(name, x) for x in used if _home(x).startswith("cudeform.")]
    assert not elsewhere


def _home(value):
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return "" if not isinstance(module, str) or module.startswith("cudeform.cpu") else module


def hold_the_compiler(held, let_go):
    """Compile, and be in the middle of it until told to go on."""

    def pause(x): ...

    @overload(pause)
    def paused(x):
        held.set()
        assert let_go.wait(60)
        return lambda x: x

    compiler.kernel(lambda x: pause(x))(1)


def hold_llvm(held, let_go):
    with llvmlite.binding.ffi.lib._lock:
        held.set()
        assert let_go.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("hold", [hold_the_compiler, hold_llvm])
def test_a_child_compiles_after_a_fork_during_a_compilation(hold, folder):
    held, let_go = threading.Event(), threading.Event()
    other = threading.Thread(target=hold, args=(held, let_go))
    other.start()
    assert held.wait(60)
    threading.Timer(0.2, let_go.set).start()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # which ends a child that hangs
        try:
            os._exit(0 if compiler.kernel(twice)(21) == 42 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.join(60)
    assert [hits(thrice), hits(thrice)] == [False, True]


SAMPLE = """
import numpy, cudeform
image = numpy.arange(12.0, dtype="float32").reshape(1, 1, 3, 4)
print("sample", cudeform.bilinear_sample(image, numpy.full((1, 1, 2), 1.5, "float32")).item())
"""


def copy_package(folder):
    """A copy of the package alone, without what Numba has cached."""
    source = Path(cudeform.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(source, folder / "cudeform", ignore=ignore)


def test_kernels_compile_where_nothing_can_be_written(tmp_path):
    """No place for Numba's cache: each of its candidates is a path below a file."""
    package = copy_package(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    for source in [*(package / "cpu").rglob("*.py")]:
        source.with_name("__pycache__").write_text("")  # in the way, whoever runs the tests
    places = {name: str(blocked / "x") for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    places["NUMBA_CACHE_DIR"] = ""
    said = python(SAMPLE, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", **places)
    assert "sample 7.5\n" in said
    assert said.count("cudeform: compiled kernels can be written nowhere") == 1


def test_an_edit_of_any_source_makes_the_cached_kernels_stale(tmp_path):
    package = copy_package(tmp_path)
    cached = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert "sample 7.5\n" in python(SAMPLE, **cached)
    sampler = package / "cpu" / "sampler.py"
    text = sampler.read_text()
    one = "m = select(masked, numbers[_MASK + p], one)"
    assert one in text
    sampler.chmod(sampler.stat().st_mode | stat.S_IWUSR)
    sampler.write_text(text.replace(one, one.replace(", one)", ", one + one)")))
    assert "sample 15.0\n" in python(SAMPLE, **cached)


def dispatchers():
    """All that is compiled for kernels to call, where it is kept."""
    for found in pkgutil.walk_packages(cudeform.cpu.__path__, "cudeform.cpu."):
        for value in vars(importlib.import_module(found.name)).values():
            if isinstance(value, numba.core.dispatcher.Dispatcher):
                yield value


def test_what_is_linked_together_has_names_of_its_own():
    """A linker takes the first of two symbols of one name for both. Numba numbers functions of one
    name from 0 in each process, but kernels on disk were compiled by several.
    """
    named = defaultdict(set)
    for value in dispatchers():
        function = value.py_func
        if value.targetoptions.get("inline") != "always":  # no symbol
            named[function.__module__, function.__qualname__].add(id(function))
    assert len(named) > 40
    assert not [name for name, functions in named.items() if len(functions) > 1]


def test_functions_of_one_factory_are_named_apart():
    def factory(shift):
        return compiler.inner(lambda x: x + shift)

    names = {factory(shift).py_func.__qualname__ for shift in (1, 2)}
    assert len(names) == 2


FIRST_CALL = """
import json
import sys
import numpy as np
from numba.core import event
from numba.core.codegen import JitEngine
import cudeform

compiled, written = [], []
add_module = JitEngine.add_module

class Listener(event.Listener):
    def on_start(self, found):
        function = found.data["dispatcher"].py_func
        compiled.append((function.__module__.split(".")[0], function.__qualname__))

    def on_end(self, found):
        pass

def write(engine, module):
    written.append(module.name)
    return add_module(engine, module)

event.register("numba:compile", Listener())
JitEngine.add_module = write
image, weight = np.ones((1, 2, 4, 4), "float32"), np.ones((2, 2, 1, 1), "float32")
offset, boxes = np.zeros((1, 2, 4, 4), "float32"), np.array([[0, 0, 0, 4, 4]], "float32")
call = {
    "deform_conv2d": lambda: cudeform.deform_conv2d(image, offset, weight),
    "roi_align": lambda: 2 * cudeform.roi_align(image, boxes, 1),
    "ms_deform_attn": lambda: 2 * cudeform.ms_deform_attn(
        np.ones((1, 1, 1, 8), "float32"),
        ((1, 1),),
        np.full((1, 2, 1, 1, 1, 2), 0.5, "float32"),
        np.ones((1, 2, 1, 1, 1), "float32"),
    ),
    "dcnv3": lambda: cudeform.dcnv3(
        np.full((1, 2, 2, 4), 2, "float32"),
        np.zeros((1, 2, 2, 2), "float32"),
        np.ones((1, 2, 2, 1), "float32"),
        1,
    ),
}
assert call["OPERATOR"]().flat[0] == 2
assert "numba.np.linalg" not in sys.modules  # nor what else kernels are not made of
print(json.dumps([compiled, written]))
"""
# functions, and what is written: kernels, and Numba's code that lends memory. Attention compiles
# nothing for the nearest pixel, a softmax and channels that lie apart, a grid nothing for levels.
MOST = {"deform_conv2d": (7, 2), "roi_align": (11, 2), "ms_deform_attn": (7, 2), "dcnv3": (7, 2)}


@pytest.mark.parametrize("operator", MOST)
def test_a_first_call_compiles_few_functions_and_writes_machine_code_of_kernels_alone(
    operator, tmp_path
):
    """What a first call takes, without a clock: no function of Numba's, none twice."""
    program = FIRST_CALL.replace("OPERATOR", operator)
    compiled, written = json.loads(python(program, NUMBA_CACHE_DIR=str(tmp_path)))
    functions, modules = MOST[operator]
    assert not [name for package, name in compiled if package == "numba"]
    assert len(compiled) <= functions, compiled
    assert len(written) <= modules, written


CALLS = [(border, of) for border in ("zeros", "clamp") for of in ("values", "input", "points")]
COMPUTE = """
import itertools
import numpy as np
from numba.core.bytecode import FunctionIdentity
import cudeform

if {alike}:
    FunctionIdentity._unique_ids = itertools.repeat(0)
rng = np.random.default_rng(0)
image, grad_output = rng.standard_normal((1, 3, 5, 7)), rng.standard_normal((1, 3, 64))
points = rng.uniform(-2, 8, (1, 64, 2))
points[:, ::2] = points[:, ::2].round()
for border, of in {calls}:
    given = dict(input=image, points=points, border=border)
    if of == "values":
        found = cudeform.bilinear_sample(**given)
    else:
        gradients = cudeform.bilinear_sample_backward(grad_output, **given, needs=[of])
        found = getattr(gradients, of)
    print(border, of, found.tobytes().hex())
"""


def test_kernels_of_several_processes_give_what_those_of_one_do(tmp_path):
    """A cache that processes fill in any order. Numba's numbers are all the same there, as they
    may be by chance in processes that count for themselves: they must not be needed.
    """
    cached = {"NUMBA_CACHE_DIR": str(tmp_path)}
    calls = [CALLS[i] for i in np.random.default_rng(5).permutation(len(CALLS))]
    for part in (calls[:2], calls[2:4], calls[4:]):
        python(COMPUTE.format(alike=True, calls=part), **cached)
    together = python(COMPUTE.format(alike=False, calls=CALLS), **cached).splitlines()
    assert together == python(COMPUTE.format(alike=False, calls=CALLS)).splitlines()
    assert len(set(together)) == len(CALLS)


def test_other_versions_of_numba_compile_without_our_shortcuts():
    compute = COMPUTE.format(alike=False, calls=CALLS[:2])
    other = "import sys, numba\nnumba.__version__ = '0.60.0'\n"
    absent = "assert 'cudeform.cpu.language.pipeline' not in sys.modules\n"
    assert python(other + compute + absent) == python(compute)
