"""Programs that torch.fx traces symbolically."""

import pytest

import cudeform

torch = pytest.importorskip("torch")

from cudeform.torch import nn  # noqa: E402

IMAGES, BOXES = torch.linspace(0, 1, 256).reshape(1, 4, 8, 8), torch.tensor([[0.0, 0, 0, 5, 6]])


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.DCN(4, 4, 3, 1, 1)

    def forward(self, images, boxes):
        return cudeform.roi_align(self.convolution(images), boxes, output_size=2) + 1


def test_a_call_is_a_node_that_computes_and_differentiates():
    network = Network()
    traced = torch.fx.symbolic_trace(network)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert cudeform.deform_conv2d in called and cudeform.roi_align in called
    expected, output = network(IMAGES, BOXES), traced(IMAGES, BOXES)
    assert torch.equal(output, expected)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    output.sum().backward()
    assert all(map(torch.equal, gradients, [p.grad for p in network.parameters()]))
