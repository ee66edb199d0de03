"""Focal losses with the arguments of mmcv, in torch's own functions."""

from __future__ import annotations

import torch
from torch import Tensor

from cudeform.torch.extensions.calls import compiled, fill

_TINY = torch.finfo(torch.float32).tiny  # under the logarithm


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=_TINY).log()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor


def _sigmoid_loss(
    input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float, backward: bool
) -> Tensor:
    p, q = _wide(input).sigmoid(), _wide(-input).sigmoid()  # (N, classes)
    if backward:
        right = q**gamma * (q - gamma * p * _log(p))
        wrong = p**gamma * (gamma * q * _log(q) - p)
    else:
        right, wrong = q**gamma * _log(p), p**gamma * _log(q)
    is_right = target[:, None] == torch.arange(input.shape[1], device=input.device)
    result = torch.where(is_right, -alpha * right, (alpha - 1) * wrong)
    return result * weight[target, None] if weight.numel() else result


@compiled
def sigmoid_focal_loss_forward(
    input: Tensor,  # (N, classes), before the sigmoid
    target: Tensor,  # (N), classes
    weight: Tensor,  # (classes), or empty
    output: Tensor,  # (N, classes), filled
    gamma: float,
    alpha: float,
) -> None:
    fill(output, _sigmoid_loss(input, target, weight, gamma, alpha, backward=False))


@compiled
def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,  # (N, classes), filled: of the sum of all losses
    gamma: float,
    alpha: float,
) -> None:
    fill(grad_input, _sigmoid_loss(input, target, weight, gamma, alpha, backward=True))


def _of_target(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the class of each row, and whether it has one."""
    counts = target >= 0
    return _wide(input).gather(1, target.clamp(min=0)[:, None])[:, 0], counts


@compiled
def softmax_focal_loss_forward(
    input: Tensor,  # (N, classes), after the softmax
    target: Tensor,  # (N), classes; below 0 for none
    weight: Tensor,  # (classes), or empty
    output: Tensor,  # (N), filled
    gamma: float,
    alpha: float,
) -> None:
    p, counts = _of_target(input, target)
    loss = torch.where(counts, -alpha * (1 - p) ** gamma * _log(p), 0)
    fill(output, loss * weight[target.clamp(min=0)] if weight.numel() else loss)


@compiled
def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,  # (N), filled
    grad_input: Tensor,  # (N, classes), filled: of what the softmax was given
    gamma: float,
    alpha: float,
) -> None:
    p, counts = _of_target(input, target)
    factor = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    factor = torch.where(counts, factor, 0)
    if weight.numel():
        factor = factor * weight[target.clamp(min=0)]
    fill(buff, factor)
    classes = torch.arange(input.shape[1], device=input.device)
    fill(grad_input, factor[:, None] * ((target[:, None] == classes).to(p.dtype) - input))
