"""What the package remembers between calls has an end: entries by number, and each by its size."""

import ast
import importlib
import inspect
import pickle
import pkgutil
import sys

import numpy as np
import pytest
from checkout import MODULES
from good_calls import CALLS
from wrong_values import VALUES

import cudeform
from cudeform import plans
from cudeform.cpu.conv import convolve, gradients
from cudeform.cpu.language import memory
from cudeform.cpu.regions import blocking
from cudeform.plans.convolution import ConvPlan
from cudeform.plans.outlines import Outline
from cudeform.plans.points import Points
from cudeform.plans.regions import RoiPlan


def modules():
    for found in pkgutil.walk_packages(cudeform.__path__, "cudeform."):
        if not found.name.startswith(("cudeform.commands", "cudeform.__main__", "cudeform.keras")):
            yield importlib.import_module(found.name)


def test_every_cache_has_a_most():
    """But for those of functions without arguments, which have one entry."""
    caches = {
        f"{module.__name__}.{name}": function
        for module in modules()
        for name, function in vars(module).items()
        if hasattr(function, "cache_parameters")
    }
    assert len(caches) > 5
    for name, function in caches.items():
        endless = function.cache_parameters()["maxsize"] is None
        assert not endless or not inspect.signature(function).parameters, name


# What functions write into of what stands in a module, and why that has an end.
WRITTEN = {
    "arrays": {"_kinds"},  # _MOST_KINDS
    "cpu.language.disk": {"_said"},  # a warning for each folder of kernels
    "cpu.language.inlining": {"_READ"},  # functions of ours
    "cuda.device": {"_cupy_devices", "_registered"},  # devices; types of a test's arrays
    "dispatch": {"_calls", "_found"},  # bridges; _MOST_TYPES
    "ops.call": {"_KNOWN"},  # _MOST_KNOWN
    "plans": {"_REMEMBERED"},  # _MOST_REMEMBERED
    "plans.outlines": {"ARGUMENTS", "PLANNERS"},  # operators
    "threads": {"_count", "_pools"},  # numbers of threads that were set, one at a time
    "torch.host": {"_known"},  # _MOST
    "torch.patching": {"_CLASSES"},  # weakly
    "torch.recorded": {"_devices"},  # GPUs, of which the oldest calls are forgotten
    "torch.state": {"_disabled"},  # functions of ours
}


def written(path):
    """Names of a module that functions in it assign, or put things into."""
    tree, names = ast.parse(path.read_text()), set()
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names.update(target.id for target in targets if isinstance(target, ast.Name))
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, ast.Global):
                    found.update(node.names)
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    found.add(getattr(node.value, "id", ""))
                if isinstance(node, ast.Attribute) and node.attr in WRITES:
                    found.add(getattr(node.value, "id", ""))
    return names & found


WRITES = ("add", "append", "extend", "insert", "setdefault", "update")


def test_every_memory_of_a_module_is_known():
    found = {module: names for module, path in MODULES.items() if (names := written(path))}
    assert found == WRITTEN


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ((1, 2), True),
        (np.zeros(100), True),
        (np.zeros(10**6), False),
        ([(1, np.zeros(60))] * 1000, False),
        (list(range(100_000)), False),
    ],
    ids=["pair", "array", "large array", "many parts", "long list"],
)
def test_large_results_are_made_again(result, kept):
    made = []

    @memory.remembered
    def make(number):
        made.append(number)
        return result

    assert make(1) is result and make(1) is result
    assert made == ([1] if kept else [1, 1])


def conv_plan(batch):
    points = Points(batch, 64, 64, 64, 64, 64, (3, 3), (1, 1), (-1, -1), (1, 1))
    return ConvPlan(points, 64, 1, "ieee", deformable=True, modulated=False)


def test_plans_of_large_batches_are_not_kept():
    few, many = conv_plan(2), conv_plan(20_000)
    of_gradients = frozenset(["input", "weight"]), True, 0, 1
    for prepare, more in ((convolve._prepared, (False, 1)), (gradients._prepared, of_gradients)):
        assert prepare(few, 4, True, *more) is prepare(few, 4, True, *more)
        again = prepare(many, 4, True, *more)
        assert prepare(many, 4, True, *more) is not again
        assert len(again.parts) > 1000
    plan = RoiPlan(20_000, 256, 64, 64, 20_000, (7, 7), 1.0, "aligned", "grid_centers", 2)
    job = blocking.job_of(plan, 4, plan.regions)
    assert blocking.rounds(job, 2, 4) is blocking.rounds(job, 2, 4)
    assert blocking.rounds(job, 20_000, 4) is not blocking.rounds(job, 20_000, 4)


def size(value):
    """Characters that a key takes, about as many as bytes."""
    return sum(map(size, value)) if isinstance(value, tuple) else len(repr(value))


def test_no_option_makes_a_large_key():
    """Whatever the options are, of calls that failed nothing is kept, and of others little."""
    large = ["x" * 10**5, (1,) * 10**5, ((1, 1),) * 10**4, 10**1000, "NCHW" + " " * 10**5]
    for call in CALLS:
        for argument, kind in call.kinds.items():
            if call.op in cudeform.__all__ and not kind.startswith("array"):
                for value in large:
                    with pytest.raises((TypeError, ValueError), match="expected `"):
                        call(**{argument: value})
    deep = VALUES["deep tuple"]()
    for _ in range(10**4):
        deep = (deep,)
    with pytest.raises(TypeError, match="expected `stride` to be an integer or a pair"):
        cudeform.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1)), stride=(deep, 1))
    assert plans._REMEMBERED and max(map(size, plans._REMEMBERED)) < 1000


def test_plans_are_kept_up_to_a_number():
    given = {"input": Outline((1, 1, 9, 9)), "weight": Outline((1, 1, 3, 3))}
    for options in ({"padding": 1}, {"stride": (1, 2)}, {"padding": ((1, 2), (0, 1))}):
        assert plans.plan("conv2d", given, options) is plans.plan("conv2d", given, options)
    boxes = {"input": Outline((1, 1, 9, 9)), "boxes": Outline((2, 5))}
    options = {"output_size": 3, "spatial_scale": 0.5, "aligned": True}
    assert plans.plan("roi_align", boxes, options) is plans.plan("roi_align", boxes, options)
    for padding in range(3000):
        plans.plan("conv2d", given, {"padding": padding})
    assert len(plans._REMEMBERED) <= 1024


def test_a_plan_takes_no_hash_to_another_process():
    """It keeps its own, and strings have others there."""
    plan = conv_plan(2)
    assert hash(plan) == hash(conv_plan(2)) != hash(conv_plan(3))
    vars(plan)["_hash"] = 1
    assert hash(plan) == 1
    taken = pickle.loads(pickle.dumps(plan))
    assert taken == plan and hash(taken) == hash(conv_plan(2))


def test_plans_of_many_shapes_leave_nothing_behind():
    def blocks(first, count):
        for size in range(first, first + count):
            plans.plan("bilinear_sample", {"input": Outline((1, 1, 9, size)), "points": POINTS}, {})
        plans._REMEMBERED.clear()
        return sys.getallocatedblocks()

    few = blocks(9, 2000)
    assert blocks(10_000, 50_000) - few < 2000


POINTS = Outline((1, 5, 2))
