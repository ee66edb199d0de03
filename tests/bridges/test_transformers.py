"""Detectors of transformers with their attention and with ours, and our modules with their keys."""

import copy
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from detectors import DETECTORS, build  # noqa: E402

import cudeform  # noqa: E402
from cudeform.torch import nn, patch  # noqa: E402


def numbers(value):
    """All tensors of numbers in an output."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    values = value.values() if hasattr(value, "values") else value
    return [] if value is None else [tensor for part in values for tensor in numbers(part)]


def results(model, given):
    """All that a model returns, and the gradients of all its parameters, by name."""
    model.zero_grad()
    outputs = numbers(model(**given))
    loss = sum(output[output.isfinite()].sin().sum() for output in outputs)
    loss.backward(retain_graph=True)  # OmDet-Turbo keeps what it has made of words
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return found | {name: grad.clone() for name, grad in gradients.items() if grad is not None}


def outputs_of(results):
    return [result for name, result in results.items() if name.startswith("output")]


def assert_equal(found, expected):
    """To 1e-10; where a gradient that is 0 for all offsets is there, it may be of zeros."""
    assert found.keys() >= expected.keys()
    for name, result in found.items():
        wanted = expected.get(name, torch.zeros_like(result))
        scale = max(1.0, wanted[wanted.isfinite()].abs().max().item())
        torch.testing.assert_close(
            result, wanted, rtol=0, atol=1e-10 * scale, msg=lambda text, name=name: name + text
        )


@pytest.fixture
def calls(monkeypatch):
    """The options of all calls of the operator."""
    made, operator = [], cudeform.ms_deform_attn

    def counted(*given, **options):
        made.append(options)
        return operator(*given, **options)

    monkeypatch.setattr(cudeform, "ms_deform_attn", counted)
    return made


@pytest.mark.parametrize("name", DETECTORS)
def test_every_architecture(name, calls):
    model, given = build(name)
    expected = results(model, given)
    assert sum("sampling_offsets" in key for key in expected) >= 4 or "discrete" in name
    assert not calls
    with patch() as everywhere:
        assert_equal(results(model, given), expected)
    times = len(calls)
    with patch(model) as here, torch.no_grad():
        for found, wanted in zip(numbers(model(**given)), outputs_of(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert len(calls) == 2 * times == 2 * len(here.replaced) > 0
    assert any(f".{name.partition(' ')[0]}." in replaced for replaced in everywhere.replaced)
    assert all(
        option.get("method", "bilinear") == ("nearest" if "discrete" in name else "bilinear")
        for option in calls
    )
    model(**given)
    assert len(calls) == 2 * times


def ours(theirs):
    """Our module for one of transformers, with its checkpoint."""
    if hasattr(theirs, "value_proj"):
        options = dict(method="nearest") if getattr(theirs, "method", "") == "discrete" else {}
        module = nn.MSDeformAttn(
            theirs.d_model, theirs.n_levels, theirs.n_heads, theirs.n_points, **options
        )
    else:
        module = nn.MSDeformableAttention(
            theirs.d_model,
            theirs.n_heads,
            theirs.n_levels,
            theirs.n_points,
            theirs.decoder_method,
            theirs.offset_scale,
            projected=False,
        )
    module.double().load_state_dict(theirs.state_dict())
    return module


def recorded(model, given):
    """(attention of transformers, its arguments, what it gave) of each in a model."""
    records = []

    def record(module, positional, options, output):
        if positional:
            options = options | {"hidden_states": positional[0]}
        records.append((module, options, output[0]))

    hooks = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "sampling_offsets")
    ]
    with torch.no_grad():
        model(**given)
    for hook in hooks:
        hook.remove()
    assert records
    return records


@pytest.mark.parametrize("name", DETECTORS)
def test_modules_load_checkpoints_of_every_architecture(name):
    model, given = build(name)
    records = recorded(model, given)
    for theirs, options, expected in records:
        query, moved = options["hidden_states"], options.get("position_embeddings")
        query = query if moved is None else query + moved
        module, mask = ours(theirs), options.get("attention_mask")
        shared = query, options["reference_points"], options["encoder_hidden_states"]
        shapes = options["spatial_shapes_list"]
        if isinstance(module, nn.MSDeformableAttention):
            found = module(*shared, shapes, mask)
        elif name in ("mask2former", "oneformer"):
            assert mask is not None
            found = module(*shared, shapes, input_padding_mask=mask)
        else:
            found = module(*shared, torch.tensor(shapes), input_keep_mask=mask)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Within(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, options):
        return self.inner(**options)[0]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2", "d_fine", "mask2former"])
def test_patched_attention_is_compiled(name, everywhere):
    """As one operator of the graph, in each of the ways in which theirs is called."""
    model, given = build(name)
    theirs, options, expected = recorded(model, given)[-1]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    with patch(None if everywhere else model), torch.no_grad():
        found = torch.compile(Within(theirs), fullgraph=True, backend=backend)(options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes]
    assert sum("ms_deform_attn" in target for target in targets) == 1
    assert not any("grid_sample" in target for target in targets)


def test_a_patched_model_is_pickled_as_it_was(calls):
    """Another process has no patch; a copy in this one has."""
    model, given = build("deformable_detr")
    with patch(model), torch.no_grad():
        pickled, copied = pickle.dumps(model), copy.deepcopy(model)
        model(**given)
        times = len(calls)
        copied(**given)
        assert len(calls) == 2 * times > 0
        pickle.loads(pickled)(**given)
    assert len(calls) == 2 * times


def test_no_architecture_is_left_out():
    marks = "def multi_scale_deformable_attention", "class MultiScaleDeformableAttention"
    models = Path(transformers.__file__).parent / "models"
    having = {
        file.parent.name
        for file in models.glob("*/modeling_*.py")
        if any(mark in file.read_text(encoding="utf8") for mark in marks)
    }
    assert having and having <= {name.partition(" ")[0] for name in DETECTORS}
