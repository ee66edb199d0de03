"""The house stands as it was drawn: imports point downward, every operator has all its rooms."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import reference
from checkout import MODULES, PACKAGE, ROOT

import cudeform
from cudeform.registry import OPERATORS

# From the ground up. A module imports from floors below its own, or from its own room if that
# is an open one. An entry that ends with a dot is a room: a package with all that is in it.
FLOORS = [
    ["checks", "descriptions", "directions", "extensions.", "imports", "types"],
    ["arrays", "dispatch", "threads"],
    ["plans."],
    ["boxes", "levels"],
    ["converters.", "cpu.language.", "cuda."],
    ["cpu.sampler"],
    ["cpu.taps", "cpu.located", "cpu.sample_gradients"],
    ["cpu.conv.", "cpu.regions."],  # neither knows of the other
    ["cpu.gathered", "cpu.fields"],
    ["cpu.queries"],
    ["cpu.sizes", "cpu.spreading"],
    ["cpu.sorting"],
    ["cpu.aggregator"],
    ["cpu.portions"],
    ["cpu."],
    ["ops"],
    ["ops.call"],
    ["ops."],
    [""],  # the public names, cudeform/__init__.py
    ["cases"],
    ["registry"],
    ["derivatives."],
    ["dlpack", "torch.", "jax."],
    ["plot", "layers.", "keras", "dask"],
    ["commands", "commands.table"],
    ["commands.machine"],
    ["demo."],
    ["commands."],
    ["bench."],
    ["__main__"],
]
# Upwards or level, in functions: where a call goes on whose arrays tell.
UPWARD = {"dispatch": {"arrays", "torch", "torch.fx", "jax", "dlpack"}}
OPEN_ROOMS = (
    "plans.",
    "cpu.language.",
    "cpu.conv.",
    "cpu.regions.",
    "cuda.",
    "derivatives.",
    "extensions.",
    "torch.",
    "jax.",
    "layers.",
    "demo.",
    "commands.",
    "bench.",
)

# Who may import what is not everybody's. NumPy and the standard library are.
TORCH_BENCHES = ("torch_peers", "cuda_contender", "cuda_peers")
RESERVED = {
    "numba": ("cpu/",),
    "llvmlite": ("cpu/",),
    "cupy": ("cuda/device.py", "commands/machine.py"),
    "cupy_backends": ("cuda/cupy_device.py",),
    "cupyx": (),
    "torch": ("torch/", "keras.py", *(f"bench/{name}.py" for name in TORCH_BENCHES)),
    # peers, engines: what `bench` measures against
    "torchvision": ("bench/torch_peers.py", "bench/cuda_peers.py"),
    "onnx": ("bench/engines.py", "torch/onnx.py"),
    "onnxscript": ("torch/onnx.py", "torch/onnx_values.py"),
    "onnxruntime": ("bench/engines.py",),
    "openvino": ("bench/engines.py",),
    "jax": ("jax/", "keras.py"),
    "keras": ("keras.py",),
    "tensorflow": ("keras.py",),
    "dask": ("dask.py",),
    "sklearn": (),  # the examples' data
    "ctypes": ("cuda/products.py", "cuda/replay.py"),  # cuBLAS, while a stream is captured
    # nvidia-smi; contenders in processes of their own
    "subprocess": ("commands/machine.py", "bench/contest.py"),
    "matplotlib": ("plot.py", "demo/", "commands/demo.py"),
    "rich": ("demo/", "commands/demo.py"),
    "skimage": ("demo/",),
    "scipy": ("demo/",),
    "PIL": ("demo/",),
    "transformers": ("bench/torch_peers.py",),
    "torch_ms_deform_attn": ("bench/torch_peers.py",),
    "MultiScaleDeformableAttention": ("bench/cuda_peers.py",),
    "DCNv3": ("bench/cuda_peers.py",),
    "DCNv4": ("bench/cuda_peers.py",),
}


def place(module):
    """(floor, room) of a module of the package."""
    for floor, entries in enumerate(FLOORS):
        for entry in entries:
            if module == entry:
                return floor, module
            if entry.endswith(".") and (module + ".").startswith(entry):
                # The package itself stands with its content, unless it has a floor of its own.
                own = any(module in others for others in FLOORS)
                if not own:
                    return floor, entry
    pytest.fail(f"cudeform/{module.replace('.', '/')}.py has no floor in test_architecture.py")


def imports(path):
    """Absolute dotted names that a file imports, wherever in it; ours down to the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("cudeform.") in MODULES
                names.add(inner if is_module and inner.startswith("cudeform.") else node.module)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    floor, room = place(module)
    for other in our_imports(module):
        assert other in MODULES, f"cudeform.{other} is no module"
        other_floor, other_room = place(other)
        at_home = room == other_room and room in OPEN_ROOMS
        assert other_floor < floor or at_home, f"{module or 'cudeform'} imports {other}"


def our_imports(module):
    """Modules of the package that one imports, wherever in it; but for calls that go on upward."""
    for name in imports(MODULES[module]):
        if name == "cudeform" or name.startswith("cudeform."):
            other = name.removeprefix("cudeform").removeprefix(".")
            if other not in UPWARD.get(module, ()):
                yield other


def test_no_circle_of_imports():
    """Not within a room either, not in a function, and not for the sake of a type."""
    left = {module: set(our_imports(module)) for module in MODULES}
    while free := [module for module, others in left.items() if not others]:
        for module in free:
            del left[module]
        for others in left.values():
            others.difference_update(free)
    assert not left, f"circles among {sorted(left)}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module):
    path = MODULES[module].relative_to(PACKAGE).as_posix()
    for name in imports(MODULES[module]):
        library = name.partition(".")[0]
        rooms = RESERVED.get(library)
        if rooms is not None:
            allowed = any(path == r or (r.endswith("/") and path.startswith(r)) for r in rooms)
            assert allowed, f"cudeform/{path} imports {library}"


def private_names(path, library):
    """Names of a library, written out from it on, that begin with one underscore on the way."""
    tree = ast.parse(path.read_text())
    written = {name for name in imports(path) if name.partition(".")[0] == library}
    written |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in written if re.match(rf"{library}\.(\w+\.)*_(?!_)", name)}


def test_private_names_of_torch_stand_in_one_file():
    assert private_names(MODULES["torch.state"], "torch")
    for module, path in MODULES.items():
        assert module == "torch.state" or not private_names(path, "torch"), module


def test_floors_name_no_file_that_is_gone():
    for entry in {entry for entries in FLOORS for entry in entries}:
        assert any(m == entry or m.startswith(entry) for m in MODULES), entry


def test_examples_use_public_names_only():
    """Those of the package, of `cudeform.layers` and of `cudeform.torch.nn`."""
    folder = ROOT / "examples"
    for path in sorted(folder.glob("*.py")):
        ours = {name for name in imports(path) if name.partition(".")[0] == "cudeform"}
        assert ours <= {"cudeform", "cudeform.layers", "cudeform.torch.nn"}, path.name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ours:
                public = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= set(public), path.name


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_tests_stand_in_folders_and_share_helpers():
    """No test module imports another, and a name is found once."""
    names = [path.stem for path in TESTS]
    assert len(set(names)) == len(names) > 0
    for path in TESTS:
        assert path.parent != ROOT / "tests", f"{path.name}: in which folder?"
        assert not imports(path) & set(names), path.name


def test_reference_shares_no_code_with_the_package():
    path = Path(reference.__file__)
    assert imports(path) == {
        "numpy",
        "reference_aggregation",
        "reference_attention",
        "reference_roi",
    }
    for family in ("aggregation", "attention"):
        assert imports(path.with_name(f"reference_{family}.py")) == {"numpy"}
    assert imports(path.with_name("reference_roi.py")) == {"math", "typing", "numpy"}


SOURCES = [
    path
    for folder in ("cudeform", "kernels", "tests", "benchmarks", "examples", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp") and "_build" not in path.parts
]


def test_no_file_is_longer_than_a_sitting():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert lengths
    long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 450}
    assert not long


def test_kernel_files_include_only_each_other():
    kernels = sorted((ROOT / "kernels").glob("*.cu*"))
    names = {path.name for path in kernels}
    for path in kernels:
        for line in path.read_text().splitlines():
            if line.lstrip().startswith("#include"):
                assert line.split('"')[1:2] and line.split('"')[1] in names, f"{path.name}: {line}"


every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)


@every_row
def test_operator_has_all_its_rooms(row):
    assert row.forward.__module__ == row.backward.__module__
    assert row.forward.__module__.startswith("cudeform.ops.")
    for folder in ("cpu", "cuda"):
        rooms = [PACKAGE / folder / name for name in (f"{row.family}.py", row.family)]
        assert any(room.exists() for room in rooms), f"{folder}/{row.family}"


def test_every_kernel_file_is_launched_from_cuda():
    """And every file that cuda/ names is there."""
    named = {
        node.value
        for path in sorted((PACKAGE / "cuda").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = {name for name in named if name.endswith(".cu") and name != ".cu"}
    assert named == {path.name for path in (ROOT / "kernels").glob("*.cu")}


@every_row
def test_backends_have_the_same_functions(row):
    """cpu/<family>.py and cuda/<family>.py: `forward` and `backward` of the same parameters."""
    cpu, cuda = (
        importlib.import_module(f"cudeform.{name}.{row.family}") for name in ("cpu", "cuda")
    )
    for name in ("forward", "backward"):
        parameters = list(inspect.signature(getattr(cpu, name)).parameters)
        assert parameters == list(inspect.signature(getattr(cuda, name)).parameters)


@every_row
def test_operator_is_exported_and_has_a_reference(row):
    for name in (row.name, row.name + "_backward"):
        assert name in cudeform.__all__
        assert callable(getattr(cudeform, name))
        assert name in reference.__all__
        assert callable(getattr(reference, name))
