"""What each process of test_torch_distributed.py runs: `torch_ranks.py RANK FILE`."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.nn.parallel import DistributedDataParallel

import cudeform
from cudeform.torch.nn import ModulatedDeformConv2dPack

RANKS = 2


def model():
    torch.manual_seed(3)
    module = ModulatedDeformConv2dPack(2, 4, 3, padding=1)
    torch.nn.init.normal_(module.conv_offset.weight, std=0.3)
    return module


def images():
    return torch.randn(2 * RANKS, 2, 5, 6, generator=torch.Generator().manual_seed(4))


def expected():
    """Gradients of the whole batch on one process."""
    module = model()
    module(images()).square().mean().backward()
    return {name: p.grad for name, p in module.named_parameters()}


def own(rank):
    return images()[2 * rank : 2 * rank + 2]


def check(found, name):
    for key, gradient in expected().items():
        torch.testing.assert_close(found[key], gradient, msg=lambda m, k=key: f"{name} {k}: {m}")
    print(name, "ok", flush=True)


def data_parallel(rank):
    module = DistributedDataParallel(model())
    module(own(rank)).square().mean().backward()
    check({n.removeprefix("module."): p.grad for n, p in module.named_parameters()}, "ddp")


def fully_sharded(rank, mesh):
    """FSDP2 resizes the storage of parameters, which a NumPy view made the usual way forbids."""
    module = fully_shard(model(), mesh=mesh)
    for _ in range(2):
        module.zero_grad()
        module(own(rank)).square().mean().backward()
    found = {name: p.grad.full_tensor() for name, p in module.named_parameters()}
    scale = sharded_gradient_of_torch(mesh)
    check({name: gradient / scale for name, gradient in found.items()}, "fsdp")


def sharded_gradient_of_torch(mesh):
    """The gradient that a sharded layer of PyTorch's own has where that of the whole batch is 1.

    The processes' mean, and so 1; in PyTorch 2.8 their sum.
    """
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    fully_shard(layer, mesh=mesh)
    layer(torch.ones(2, 1)).mean().backward()
    return layer.weight.grad.full_tensor().item()


def tensors():
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return images(), normal(2 * RANKS, 18, 5, 6), normal(4, 2, 3, 3), normal(4)


def sharded(mesh):
    """DTensors: the batch in parts, the weight everywhere; its gradient is the sum."""
    plain = [t.requires_grad_() for t in tensors()]
    cudeform.deform_conv2d(*plain, padding=1).square().sum().backward()
    where = [Shard(0), Shard(0), Replicate(), Replicate()]
    parts = [
        distribute_tensor(t.detach(), mesh, [p]).requires_grad_()
        for t, p in zip(tensors(), where, strict=True)
    ]
    output = cudeform.deform_conv2d(*parts, padding=1)
    assert isinstance(output, DTensor) and output.placements == (Shard(0),)
    output.square().sum().backward()
    for part, whole in zip(parts, plain, strict=True):
        torch.testing.assert_close(part.grad.full_tensor(), whole.grad)
    print("dtensor ok", flush=True)


def mapped(mesh):
    """local_map: the gradient of a replicated weight must be declared a sum, or it is a part."""
    plain = [t.requires_grad_() for t in tensors()]
    cudeform.deform_conv2d(*plain, padding=1).square().sum().backward()
    where = ([Shard(0)], [Shard(0)], [Replicate()], [Replicate()])
    parts = [
        distribute_tensor(t.detach(), mesh, p).requires_grad_()
        for t, p in zip(tensors(), where, strict=True)
    ]
    function = local_map(
        lambda *local: cudeform.deform_conv2d(*local, padding=1),
        out_placements=[Shard(0)],
        in_placements=where,
        in_grad_placements=([Shard(0)], [Shard(0)], [Partial()], [Partial()]),
        device_mesh=mesh,
    )
    function(*parts).square().sum().backward()
    torch.testing.assert_close(parts[2].grad.full_tensor(), plain[2].grad)
    print("local_map ok", flush=True)


def main(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    data_parallel(rank)
    fully_sharded(rank, mesh)
    sharded(mesh)
    mapped(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
