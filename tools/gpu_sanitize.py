# SPDX-License-Identifier: Apache-2.0
"""Makes small calls of every operator on the GPU, with odd sizes, forward and backward.

tools/gpu_check.sh runs it under compute-sanitizer, which makes kernels many times slower. The tests
check the results.
"""

import torch
from torch import Tensor

from retnet import ops

B, T, H, K, V = 2, 67, 3, 20, 36


def normal(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns a leaf that requires a gradient."""
    return torch.randn(*sizes, dtype=dtype, device="cuda").requires_grad_()


def main() -> None:
    """Calls all operators."""
    heads = torch.arange(H, dtype=torch.float32, device="cuda")
    log_decay = torch.log1p(-torch.exp2(-5 - heads))
    positions = torch.arange(T, device="cuda")
    frequencies = 10000.0 ** -torch.linspace(0, 1, K // 2, device="cuda")
    forms: tuple[ops.Form, ...] = ("chunkwise", "parallel", "recurrent")
    for form in forms:
        out, state = ops.retention(
            normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), log_decay, form=form
        )
        (out.float().sum() + state.sum()).backward()
    # Every tile of the chunkwise kernel and of log_decay's gradient, packed with an empty sequence;
    # then segments.
    bounds = torch.tensor([0, 0, 1, T], dtype=torch.int32, device="cuda")
    for head_dim_qk, head_dim_v in ((36, 20), (64, 128), (128, 132), (256, 428)):
        for dtype in (torch.bfloat16, torch.float16):
            state = torch.randn(3, H, head_dim_qk, head_dim_v, device="cuda")
            q, k = (normal(1, T, H, head_dim_qk, dtype=dtype) for _ in range(2))
            v = normal(1, T, H, head_dim_v, dtype=dtype)
            decay = log_decay.clone().requires_grad_()
            out, _ = ops.retention(q, k, v, decay, state, cu_seqlens=bounds)
            out.float().sum().backward()
    torch.use_deterministic_algorithms(True)
    long = normal(1, 2100, 1, 64)
    ops.retention(long, long, long, log_decay[:1])
    torch.use_deterministic_algorithms(False)
    q, k = ops.rotary(normal(B, T, H, K), normal(B, T, H, K), positions, frequencies)
    (q.float().sum() + k.float().sum()).backward()
    norms: tuple[ops.Norm, ...] = ("layer", "rms")
    for norm in norms:
        for width in (V, 1, 432, 512):
            x, gate = normal(B, T, H, width), normal(B, T, H, width)
            weight, bias = normal(H, width), normal(H, width)
            out = ops.gated_group_norm(x, gate, weight, bias, eps=1e-6, norm=norm)
            out.float().sum().backward()
            ops.gated_group_norm(x.detach(), eps=1e-6, norm=norm)
    with torch.no_grad():
        token = normal(B, H, K), normal(B, H, K), normal(B, H, V)
        state = torch.zeros(B, H, K, V, device="cuda")
        ops.retention_step(*token, log_decay, state)
        ops.multi_scale_retention_step(
            *token, normal(B, H, V), log_decay, state, positions[:B], frequencies, eps=1e-6
        )
    torch.cuda.synchronize()
    print("all operators ran")


if __name__ == "__main__":
    main()
