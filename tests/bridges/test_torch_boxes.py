"""Boxes image by image as PyTorch's tensors on a GPU, whose part the CPU and the emulator play."""

import backends
import numpy as np
import pytest
from emulator.device import EmulatorDevice, install, to_device, to_host

import cudeform
from cudeform.cuda import box_rows

torch = pytest.importorskip("torch")


@pytest.fixture
def joins(monkeypatch):
    """A list of the calls that joined boxes, with the kernel; nobody may join others."""
    from cudeform.torch import asked, boxes, route

    backends.require(backends.BACKENDS["emulator"])
    calls = []

    def compute(function, tensors, options):
        calls.append(tensors)
        arrays = {name: to_device(tensor.numpy()) for name, tensor in tensors.items()}
        return torch.from_numpy(to_host(function(**arrays, **options)))

    monkeypatch.setattr(boxes, "compute", compute)
    monkeypatch.setattr(asked, "_of_images", lambda boxes: None)  # as elsewhere than on the host
    monkeypatch.setattr(boxes, "_is_simple", lambda images, boxes: True)
    monkeypatch.setattr(route.torch, "cat", None)
    with install(EmulatorDevice()):
        yield calls


def arguments():
    rng = np.random.default_rng(5)
    image = torch.from_numpy(rng.standard_normal((3, 2, 6, 7)).astype(np.float32))
    boxes = torch.tensor([[0, 1, 1, 5, 4], [0, 0, 2, 3, 6], [2, 1, 0, 6, 5.0]])
    lists = [boxes[:2, 1:], boxes[:0, 1:], boxes[2:, 1:]]
    return image, boxes, lists


def both(image, boxes):
    """Output, argmax, and the gradient by autograd and by the function for it."""
    image = image.clone().requires_grad_()
    output = cudeform.roi_align(image, boxes, 2, sampling_ratio=2)
    largest, argmax = cudeform.roi_pool(image.detach(), boxes, 2, return_argmax=True)
    (grad,) = torch.autograd.grad(output, image, torch.ones_like(output), create_graph=True)
    again = cudeform.roi_align_backward(
        torch.ones_like(output), image.detach(), boxes, 2, sampling_ratio=2
    )
    return [t.detach().numpy() for t in (output, largest, argmax, grad, again.input)]


def test_boxes_of_a_gpu_are_joined_by_a_kernel(request):
    image, boxes, lists = arguments()
    want = both(image, boxes)
    calls = request.getfixturevalue("joins")
    for got, expected in zip(both(image, lists), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert len(calls) == 4
    with pytest.raises(ValueError, match=r"`boxes\[1\]` of shape \(L, 4\), got \(3, 5\)"):
        cudeform.roi_align(image, [lists[0], boxes, lists[2]], 2)


def test_boxes_of_the_host_are_joined_by_torch(monkeypatch):
    monkeypatch.setattr(box_rows, "join", None)
    image, boxes, lists = arguments()
    for got, want in zip(both(image, lists), both(image, boxes), strict=True):
        np.testing.assert_array_equal(got, want)
