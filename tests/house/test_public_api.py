"""What a user imports: names, signatures, docstrings, and what an import brings along."""

import ast
import inspect
import pickle
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from checkout import MODULES, PACKAGE
from numpydoc.docscrape import FunctionDoc

import cudeform
from cudeform import descriptions
from cudeform.registry import OPERATORS
from cudeform.types import Array

every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
FUNCTIONS = [name for name in cudeform.__all__ if inspect.isfunction(getattr(cudeform, name))]


@cache
def top_names(module):
    """Names at the top of a module: imported, assigned, functions and classes."""
    imported, assigned, defined = set(), set(), set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imported.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                assigned.update(n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    return imported, assigned, defined


@cache
def stated_names(module):
    """The module's __all__; None where it has none."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return None


def is_public(name):
    return not name.startswith("_")


def public_names(module):
    """What others may take from a module: what it states, or what it makes itself."""
    _, assigned, defined = top_names(module)
    stated = stated_names(module)
    return set(filter(is_public, assigned | defined)) if stated is None else set(stated)


# Beside packages: what users import from.
FOR_USERS = {"cpu.threads", "dask", "keras", "plot", "torch.onnx", "types"}


def reading_order(name):
    """CONSTANTS, Classes, functions, each by the alphabet: the order of the linter."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def overloads():
    """Name -> its declarations for one option or another, and the function that is called."""
    found = {}
    for path in (PACKAGE / "ops").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in cudeform.__all__:
                found.setdefault(node.name, []).append(node)
    return {name: nodes for name, nodes in found.items() if len(nodes) > 1}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_says_what_it_takes(name):
    """Arrays of one framework come in, and the same come out."""
    hints = get_type_hints(getattr(cudeform, name))
    assert hints.keys() == {*inspect.signature(getattr(cudeform, name)).parameters, "return"}
    assert [k for k, hint in hints.items() if hint is Any] == ["spatial_shapes"] * ("msda" in name)
    assert Array in (hints["return"], *get_args(hints["return"]))


def test_overloads_have_the_signature_of_their_function():
    assert overloads().keys() == {"roi_align", "roi_pool"}
    for name, (*declared, last) in overloads().items():
        assert [ast.unparse(node.args).count("return_argmax") for node in declared] == [1, 1, 1]
        for node in declared[:2]:
            option = node.args.kwonlyargs[-1]
            assert ast.unparse(option).startswith("return_argmax: Literal["), name
            option.annotation = last.args.kwonlyargs[-1].annotation
            node.args.kw_defaults[-1] = last.args.kw_defaults[-1]
        assert {ast.unparse(node.args) for node in declared} == {ast.unparse(last.args)}, name


@pytest.mark.parametrize(
    ("function", "option"),
    [
        ("conv2d", "layout"),
        ("conv2d", "precision"),
        ("bilinear_sample", "border"),
        ("roi_align", "mode"),
        ("roi_pool", "mode"),
        ("ps_roi_pool", "convention"),
    ],
)
def test_types_have_the_choices_that_there_are(function, option):
    """As the message lists them that refuses another one."""
    arrays = np.zeros((1, 4, 4, 4)), np.zeros((1, 5 if "roi" in function else 2))
    more = (2,) if "roi" in function else ()
    with pytest.raises(ValueError, match="to be one of") as refused:
        getattr(cudeform, function)(*arrays, *more, **{option: "?"})
    choices = re.search("to be one of (.*), got", str(refused.value))[1]
    declared = get_type_hints(getattr(cudeform, function))[option]
    assert ", ".join(map(repr, get_args(declared))) == choices


@every_row
def test_gradients_are_named_tuples_of_what_comes_in(row):
    """Generic to type checkers, and to frameworks a tuple with names whose parts they map."""
    returned = get_type_hints(row.backward)["return"]
    assert get_args(returned) == (Array,)
    assert row.gradients.__bases__ == (tuple,)
    for name, hint in get_type_hints(row.gradients).items():
        assert get_args(hint) == (Array, Any), name
    assert pickle.loads(pickle.dumps(row.gradients(1))) == row.gradients(1)
    assert repr(row.gradients()).startswith(row.gradients.__name__ + "(")


@pytest.mark.parametrize("module", MODULES)
def test_all_is_explicit_and_true(module):
    """Of a package and of what users import from: sorted, each name bound, none left out."""
    imported, assigned, defined = top_names(module)
    names = stated_names(module)
    if names is None:
        is_package = MODULES[module].name == "__init__.py" and imported | assigned | defined
        assert not is_package and module not in FOR_USERS, "needs a literal __all__"
        return
    assert names == sorted(names, key=reading_order)
    assert len(names) == len(set(names)) > 0
    assert set(names) <= imported | assigned | defined
    assert not set(filter(is_public, defined)) - set(names)


FILES_WITH = Counter(  # by word
    word
    for folder in ("cudeform", "tests", "benchmarks", "examples", "docs")
    for path in (PACKAGE.parent / folder).rglob("*.py")
    for word in set(re.findall(r"\w+", path.read_text()))
)


@pytest.mark.parametrize("module", [m for m in MODULES if stated_names(m) is None])
def test_what_a_module_keeps_to_itself_begins_with_an_underscore(module):
    """Every other function or class is there for another file, or is what an operator returns."""
    *_, defined = top_names(module)
    returned = {row.gradients.__name__ for row in OPERATORS}
    alone = {name for name in filter(is_public, defined) if FILES_WITH[name] == 1}
    assert not alone - returned


@pytest.mark.parametrize("module", MODULES)
def test_modules_take_from_each_other_only_what_is_public(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cudeform":
            source = node.module.removeprefix("cudeform").removeprefix(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix(".")
                taken = f"{module} takes {alias.name} from {node.module}"
                assert inner in MODULES or alias.name in public_names(source), taken


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def python(code):
    """What a new interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


HEAVY = ["numba", "llvmlite", "cupy", "torch", "jax", "keras", "ml_dtypes"] + [
    "matplotlib",
    "rich",
    "scipy",
    "skimage",
]


def test_import_brings_only_numpy():
    loaded = python(
        f"import cudeform, cudeform.registry, sys; print([n for n in {HEAVY} if n in sys.modules])"
    )
    assert loaded == "[]"


def test_import_works_where_nothing_else_is_installed():
    """None in sys.modules is how Python says that a module cannot be imported."""
    assert (
        python(
            f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import cudeform;"
            " print(cudeform.__version__)"
        )
        == cudeform.__version__
    )


def test_a_call_on_numpy_arrays_imports_no_other_framework():
    frameworks = ["cupy", "torch", "jax", "keras"]
    loaded = python(
        "import sys; import numpy as np; import cudeform;"
        "cudeform.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)));"
        f"print([name for name in {frameworks} if name in sys.modules])"
    )
    assert loaded == "[]"


@every_row
def test_forward_takes_what_its_row_says(row):
    parameters = inspect.signature(row.forward).parameters
    arguments = {argument.name: argument for argument in row.arguments}
    # What is asked for besides the result is no option of it.
    assert set(parameters) - {"return_argmax"} == arguments.keys() | {o.name for o in row.options}
    for name, argument in arguments.items():
        default = parameters[name].default
        assert default in (None, inspect.Parameter.empty), name
        assert argument.optional or default is inspect.Parameter.empty, name


@every_row
def test_backward_takes_and_returns_what_its_row_says(row):
    """grad_output, then the forward's arguments in its order; a gradient for each array."""
    forward = inspect.signature(row.forward).parameters
    backward = inspect.signature(row.backward).parameters
    assert next(iter(backward)) == "grad_output"
    kept = [name for name in forward if name in backward]
    # What the forward may have returned besides its result saves work.
    assert [n for n in backward if n not in ("grad_output", "needs", "argmax")] == kept
    # A sum's addend has a gradient but no influence on one.
    assert set(forward) - set(kept) <= {"bias", "return_argmax"}
    for name in kept:
        assert backward[name].default == forward[name].default, name
    assert list(row.gradients._fields) == [a.name for a in row.arguments if a.differentiable]


@every_row
def test_a_signature_has_the_defaults_of_its_options(row):
    """Bridges and pictures ask for plans with the options that they were given, and no more."""
    parameters = inspect.signature(row.forward).parameters
    assert {name: parameters[name].default for name in row.defaults} == row.defaults


@every_row
def test_dispatch_is_told_of_all_arrays(row):
    """In the order of the signature, in which messages name them."""
    known = {"grad_output", "argmax", *(argument.name for argument in row.arguments)}
    for function in (row.forward, row.backward):
        expected = tuple(name for name in inspect.signature(function).parameters if name in known)
        assert inspect.getclosurevars(function).nonlocals["arrays"] == expected


@every_row
def test_cases_try_every_optional_argument_and_every_option(row):
    cases = list(row.cases(np.random.default_rng(0)))
    assert len({case.name for case in cases}) == len(cases)
    for argument in row.arguments:
        present = {argument.name in case.arrays for case in cases}
        both = argument.optional or argument.name in row.static
        assert present == ({True, False} if both else {True}), argument.name
    tried = {name for case in cases for name in case.options}
    assert {o.name for o in row.options} - tried <= {"precision"}, (
        "precision is about a GPU's arithmetic"
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_is_complete(name):
    function = getattr(cudeform, name)
    doc = FunctionDoc(function)
    assert doc["Summary"] and len(doc["Summary"]) == 1, "one line says what it does"
    described = [part for p in doc["Parameters"] for part in p.name.split(", ")]
    assert sorted(described) == sorted(inspect.signature(function).parameters)
    for section in ("Returns", "Raises"):
        assert doc[section], f"no {section} section"


def test_what_docstrings_share_is_filled_in_and_all_of_it_used():
    field = re.compile(r"^ *%\((\w+)\)s$", re.MULTILINE)
    used = set(field.findall("\n".join(descriptions._SHARED.values())))
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                fields = field.findall(ast.get_docstring(node) or "")
                by = {ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list}
                assert not fields or by & {"described", "dispatched"}, f"{module}: {node.name}"
                used.update(fields)
    assert used == set(descriptions._SHARED)


@every_row
def test_operator_has_an_example_and_cites_its_paper(row):
    doc = FunctionDoc(row.forward)
    assert doc["Examples"]
    assert bool(doc["References"]) == bool(row.paper)
