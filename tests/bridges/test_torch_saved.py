"""What is saved is loaded in a new process, in which nothing of ours is named but cudeform."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import cudeform

torch = pytest.importorskip("torch")

from attention_calls import rand, scattered  # noqa: E402
from torch_programs import FULL, Functions  # noqa: E402

from cudeform.torch import nn  # noqa: E402

LOADED = """
import sys
assert "torch._dynamo" not in sys.modules  # the compiler, which takes longer to import than torch
given, expected = torch.load("tensors.pt")
exported, traced = torch.export.load("exported.pt2").module(), torch.jit.load("traced.pt")
for program in (exported, traced):
    assert all(map(torch.equal, program(*given), expected))
moving = [tensor.requires_grad_() for tensor in given if tensor.is_floating_point()]
for program in (exported, traced):
    sum(result.sum() for result in program(*given)).backward()
assert all(tensor.grad.any() for tensor in moving[:5])
print("loaded")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every operator in an exported and in a traced program."""
    folder = tmp_path_factory.mktemp("saved")
    program = Functions(torch.float32)
    given = tuple(program.given())
    torch.export.save(torch.export.export(program, given), folder / "exported.pt2")
    torch.jit.save(torch.jit.trace(program, given), folder / "traced.pt")
    torch.save((given, program(*given)), folder / "tensors.pt")
    return folder


def run(code, folder):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("imports", ["import cudeform\nimport torch", "import torch, cudeform"])
def test_saved_programs_load(folder, imports):
    """Whichever is imported first."""
    if imports.startswith("import cudeform") and not entry_points(group="torch.backends"):
        pytest.skip("cudeform is not installed, or was before it had an entry point")
    assert run(imports + LOADED, folder) == ["loaded"]


def test_torch_alone_does_not_load_the_package(tmp_path):
    code = "import sys, torch; print('cudeform' in sys.modules, 'cudeform.torch' in sys.modules)"
    assert run(code, tmp_path) == ["False", "False"]


@pytest.mark.parametrize("version, known", [("2.7.1+cpu", False), ("2.8.0", True)])
def test_an_old_torch_is_left_alone(monkeypatch, version, known):
    """It has no bridge, and arrays of NumPy need none."""
    monkeypatch.setattr(cudeform, "torch", sys.modules["cudeform.torch"])
    monkeypatch.delitem(sys.modules, "cudeform.torch")
    monkeypatch.setattr(torch, "__version__", version)
    cudeform.dispatch.define()
    assert ("cudeform.torch" in sys.modules) == known


class Layers(torch.nn.Module):
    """A function, and the modules of DCNv3, DCNv4 and deformable attention."""

    def __init__(self):
        super().__init__()
        self.first = scattered(nn.DCNv3(8, group=2))
        self.second = scattered(nn.DCNv4(8, group=2))
        self.third = scattered(nn.MSDeformAttn(8, 1, 2, 3))

    def forward(self, images, points):
        sizes = images.shape[-2:]
        seen = cudeform.bilinear_sample(images, points.flip(-1)).relu().transpose(1, 2)
        images = self.first(images.permute(0, 2, 3, 1)).flatten(1, 2)
        images = self.second(images, shape=sizes)
        read = self.third(seen, points[:, :, None] / 5, images, [sizes])
        points, weights = points[:, :, None, None, None] / 5, points[:, :, None, None, :1]
        return read + cudeform.ms_deform_attn(images[:, :, None], [sizes], points, weights)


def layers():
    return Layers(), (rand(1, 8, 4, 5, dtype=torch.float32), 4 * rand(1, 3, 2, dtype=torch.float32))


def test_an_exported_module_has_one_node_of_each_operator():
    module, given = layers()
    program = torch.export.export(module, given)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ours = [name.split(".")[1] for name in called if name.startswith("cudeform.")]
    assert ours == ["bilinear_sample", "dcnv3", "dcnv4", "ms_deform_attn", "ms_deform_attn"]
    assert not any("grid_sample" in name for name in called)
    torch.testing.assert_close(program.module()(*given), module(*given))


@pytest.mark.skipif(shutil.which("g++") is None or not FULL, reason="needs g++, and a minute")
def test_a_compiled_package_loads(tmp_path):
    module, given = layers()
    path = str(tmp_path / "compiled.pt2")
    exported = torch.export.export(module, given)
    torch._inductor.aoti_compile_and_package(exported, package_path=path)
    torch.save((given, module(*given)), tmp_path / "tensors.pt")
    code = """
import torch, cudeform
given, expected = torch.load("tensors.pt")
found = torch._inductor.aoti_load_package("compiled.pt2")(*given)
print(torch.allclose(found, expected, rtol=1e-5, atol=1e-6))
"""
    assert run(code, tmp_path)[-1] == "True"
