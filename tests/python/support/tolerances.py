# SPDX-License-Identifier: Apache-2.0
"""The tolerance table of docs/numerics.md, and the comparison with a float64 reference."""

import torch
from torch import Tensor

# dtype of the inputs: (error of the whole tensor, error of the worst row)
TOLERANCES = {
    torch.float64: (1e-11, 1e-10),
    torch.float32: (2e-6, 1e-5),
    torch.bfloat16: (5e-3, 2e-2),
    torch.float16: (7e-4, 3e-3),
}

# dtype of the inputs: error of the gradient of log_decay, relative to its root mean square
LOG_DECAY_LIMITS = {
    torch.float64: 1e-11,
    torch.float32: 5e-6,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}


def errors(actual: Tensor, reference: Tensor) -> tuple[float, float]:
    """The two errors of ``actual`` against the float64 ``reference`` of the same shape.

    The first is |x - ref| / |ref| over the whole tensor. The second is the worst row (last
    dimension): |row error| / max(|row|, root mean square of the row norms), since a norm over
    everything would hide one row of garbage.
    """
    difference = (actual.detach().double() - reference.detach()).flatten(0, -2)
    rows = reference.detach().flatten(0, -2).norm(dim=-1)
    typical = rows.square().mean().sqrt()
    whole = difference.norm() / reference.norm()
    worst = (difference.norm(dim=-1) / rows.clamp_min(typical)).max()
    return whole.item(), worst.item()


def assert_as_good_as_composite(
    actual: Tensor, composite: Tensor, reference: Tensor, name: str = "output"
) -> None:
    """Asserts that the error of a kernel over the whole tensor is at most twice that of the
    composite, which took the same rounded inputs.
    """
    reference = reference.detach().cpu()
    (mine, _), (yardstick, _) = (errors(x.cpu(), reference) for x in (actual, composite))
    assert mine <= 2 * yardstick, f"{name}: error {mine:.2e}, the composite's is {yardstick:.2e}"


def assert_close_to_reference(
    actual: Tensor,
    reference: Tensor,
    dtype: torch.dtype,
    *,
    grad: bool = False,
    factor: float = 1.0,
    name: str = "output",
) -> None:
    """``actual`` is within the table's two errors of ``reference``; gradients get twice as much.

    Args:
        actual: what the operator returned, of any dtype and shape.
        reference: float64, same shape.
        dtype: of the operator's inputs: the column of the table.
        grad: whether this is a gradient.
        factor: 2 where two results, each within the table, are compared with one another.
        name: of the tensor, for the message.
    """
    assert actual.shape == reference.shape, f"{name}: {actual.shape} is not {reference.shape}"
    if reference.numel() == 0:
        return
    reference = reference.detach().double().to(actual.device)
    bad = int((~torch.isfinite(actual)).sum())
    assert bad == 0, f"{name}: {bad} elements of {actual.numel()} are not finite"
    if reference.dim() < 1 or not reference.any():
        assert not actual.any(), f"{name}: must be zero"
        return
    if reference.dim() == 1:
        actual, reference = actual[None], reference[None]
    whole, worst = errors(actual, reference)
    limit_whole, limit_worst = (factor * (2 if grad else 1) * t for t in TOLERANCES[dtype])
    assert whole <= limit_whole, f"{name}: error {whole:.2e} is above {limit_whole:.0e}"
    assert worst <= limit_worst, f"{name}: error of the worst row {worst:.2e} > {limit_worst:.0e}"
