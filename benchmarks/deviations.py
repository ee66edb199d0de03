"""Where torchvision's poolings of regions are not what they should be: the numbers of docs/roi.md.

python benchmarks/deviations.py
"""

from __future__ import annotations

from functools import partial

import torch
import torchvision

import cudeform


def main() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 9, 8, 8, dtype=torch.float64)
    box = torch.tensor([[0, 2.0, 2.0, 12.0, 12.0]], dtype=torch.float64)
    grad = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    direction = torch.randn_like(image)
    print(f"torchvision {torchvision.__version__}, a box from 2 to 12 in a map of 8 x 8")
    for name, pool in (
        ("torchvision", torchvision.ops.ps_roi_pool),
        ("cudeform", cudeform.ps_roi_pool),
        ("cudeform, rfcn", partial(cudeform.ps_roi_pool, convention="rfcn")),
    ):
        leaf = image.clone().requires_grad_()
        pool(leaf, box, 3).backward(grad)
        along = float((pool(direction, box, 3) * grad).sum())
        back = float((direction * leaf.grad).sum())
        print(f"ps_roi_pool of {name}: <Jv, g> = {along:.4f}, <v, J'g> = {back:.4f}")
    empty = torch.tensor([[0, 3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    for name, pool in (
        ("torchvision", torchvision.ops.ps_roi_align),
        ("cudeform", cudeform.ps_roi_align),
    ):
        value = float(pool(image, empty, 3)[0, 0, 0, 0])
        print(f"ps_roi_align of {name}, a box without area: {value}")


if __name__ == "__main__":
    main()
