"""What a user imports: names, signatures, docstrings, and what an import brings along."""

import ast
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from checkout import MODULES, ROOT
from numpydoc.docscrape import FunctionDoc

import cudeform
from cudeform.plans.outlines import PLANNERS
from cudeform.registry import OPERATORS

every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
FUNCTIONS = [name for name in cudeform.__all__ if inspect.isfunction(getattr(cudeform, name))]


def bound_names(tree):
    """(all names bound at the top of a module, the functions and classes among them)"""
    bound, defined = set(), set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                bound.update(n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    return bound | defined, defined


def stated_names(module):
    """The module's __all__."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def reading_order(name):
    """CONSTANTS, Classes, functions, each by the alphabet: the order of the linter."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def stub_signatures():
    """Name -> (names of the positional parameters, of the others, defaults) of each declaration."""
    tree = ast.parse((ROOT / "cudeform" / "__init__.pyi").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            given, named = node.args.args, node.args.kwonlyargs
            defaults = dict(
                zip([a.arg for a in given][::-1], node.args.defaults[::-1], strict=False)
            )
            defaults |= dict(zip([a.arg for a in named], node.args.kw_defaults, strict=True))
            values = {n: ast.literal_eval(d) for n, d in defaults.items() if d is not None}
            yield node.name, ([a.arg for a in given], [a.arg for a in named], values)


def test_types_are_declared_for_the_signatures_that_are_there():
    declared = dict(stub_signatures())  # of overloads the last, which has all defaults
    assert set(declared) == set(cudeform.__all__)
    for name, stated in declared.items():
        parameters = inspect.signature(getattr(cudeform, name)).parameters.values()
        named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        given = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        assert stated == (given, named, defaults), name
    for name, (given, named, _) in stub_signatures():  # and the other overloads
        assert (given, named) == declared[name][:2]


@pytest.mark.parametrize(
    ("function", "option", "declared"),
    [
        ("conv2d", "layout", "_Layout: TypeAlias = "),
        ("conv2d", "precision", "_Precision: TypeAlias = "),
        ("bilinear_sample", "border", "_Border: TypeAlias = "),
        ("roi_align", "mode", "mode: "),
        ("roi_pool", "mode", "mode: "),
        ("ps_roi_pool", "convention", "convention: "),
    ],
)
def test_types_have_the_choices_that_there_are(function, option, declared):
    """As the message lists them that refuses another one."""
    arrays = np.zeros((1, 4, 4, 4)), np.zeros((1, 5 if "roi" in function else 2))
    more = (2,) if "roi" in function else ()
    with pytest.raises(ValueError, match="to be one of") as refused:
        getattr(cudeform, function)(*arrays, *more, **{option: "?"})
    choices = re.search("to be one of (.*), got", str(refused.value))[1].replace("'", '"')
    assert f"{declared}Literal[{choices}]" in (ROOT / "cudeform" / "__init__.pyi").read_text()


@every_row
def test_types_have_the_fields_of_gradients(row):
    """Each named tuple has a generic twin, and the signature names it."""
    declared = (ROOT / "cudeform" / "__init__.pyi").read_text()
    gradients = inspect.signature(row.backward, eval_str=True).return_annotation
    twin = re.search(rf"class _{gradients.__name__}\(.*\n((?:    .*\n)+)", declared)
    assert tuple(re.findall(r"^    (\w+): _Array \| Any$", twin[1], re.M)) == gradients._fields
    signature = declared[declared.index(f"def {row.name}_backward(") :]
    assert f") -> _{gradients.__name__}[_Array]: ..." in signature.partition("\ndef ")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_all_is_explicit_and_true(module):
    """Sorted, each name is bound, and no public function or class is left out."""
    tree = ast.parse(MODULES[module].read_text())
    bound, defined = bound_names(tree)
    if not bound:
        return  # the docstring of a package and no more
    names = stated_names(module)
    assert names, "needs a literal __all__"
    assert names == sorted(names, key=reading_order)
    assert len(names) == len(set(names))
    assert set(names) <= bound
    assert not {name for name in defined if not name.startswith("_")} - set(names)


@pytest.mark.parametrize("module", MODULES)
def test_modules_take_from_each_other_only_what_is_public(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cudeform":
            source = node.module.removeprefix("cudeform").removeprefix(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix(".")
                taken = f"{module} takes {alias.name} from {node.module}"
                assert inner in MODULES or alias.name in stated_names(source), taken


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
    returned = inspect.signature(row.backward, eval_str=True).return_annotation
    assert list(returned._fields) == [a.name for a in row.arguments if a.differentiable]


@every_row
def test_a_plan_has_the_defaults_of_its_operator(row):
    """Bridges and pictures ask for plans with the options that they were given, and no more."""
    parameters = inspect.signature(PLANNERS[row.name]).parameters
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


@every_row
def test_operator_has_an_example_and_cites_its_paper(row):
    doc = FunctionDoc(row.forward)
    assert doc["Examples"]
    assert bool(doc["References"]) == bool(row.paper)
