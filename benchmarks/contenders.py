# SPDX-License-Identifier: Apache-2.0
"""Contenders: the operators of retnet and torch's attention. peers.py has those of other projects.

A contender gets the inputs of a case and returns a call to be timed. What a model prepares once or
has anyway (masks, a layout, separate leaves for gradients) is made before, outside the timed call.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import ATTENTION_HEAD, Case, Credit, Inputs, attention_credit, retention_credit
from retnet import ops

# How outputs compare with retnet's: equal, equal up to a positive factor per row (which the norm
# after retention removes), or another function.
Agreement = Literal["equal", "rows", "none"]

# The longest sequences of forms that are quadratic in T, or run token by token.
LONGEST = 2048


@dataclass(frozen=True)
class Run:
    """A contender made ready for a case.

    ``call`` returns what ``agreement`` speaks of: out [B, T, H, V] (a step: [B, H, V]) and, with a
    backward and if equal, the gradients of q, k and v.
    """

    call: Callable[[], tuple[Tensor, ...]]
    credit: Credit
    agreement: Agreement = "equal"
    note: str = ""  # what was chosen for it
    state: Tensor | None = None  # what a step changes in place


class Contender(Protocol):
    """One implementation of one form."""

    name: str

    def why_not(self, case: Case) -> str | None:
        """Returns why it cannot take part in the case, or None."""

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Prepares the call."""


def timed(
    case: Case, forward: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Runs ``forward(*leaves)`` without grad mode or, if the case asks for gradients, with those of
    the leaves.
    """
    if not case.backward:

        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (forward(*leaves),)

        return call
    leaves = [x.detach().clone().requires_grad_() for x in leaves]

    def call_with_backward() -> tuple[Tensor, ...]:
        out = forward(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))

    return call_with_backward


class Retention:
    """One form of retnet.ops.retention. It also computes the final state."""

    def __init__(self, form: ops.Form):
        self.form = form
        self.name = f"retnet {form}"

    def why_not(self, case: Case) -> str | None:
        """Rejects sequences that are too long for the slow forms."""
        return None if self.form == "chunkwise" else too_long(case)

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Returns the call of the operator as a model makes it."""

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return ops.retention(q, k, v, inputs.log_decay, form=self.form)[0]

        leaves = [inputs.q, inputs.k, inputs.v]
        return Run(timed(case, forward, leaves, inputs.grad), retention_credit(case))


class RetentionStep:
    """retnet.ops.retention_step, which updates its own state in place."""

    name = "retnet retention_step"

    def why_not(self, case: Case) -> str | None:
        """Returns None, because it can always run."""
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Returns the call of the operator as a model makes it."""
        assert inputs.state is not None
        state = inputs.state.clone()

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return ops.retention_step(q, k, v, inputs.log_decay, state)

        leaves = [inputs.q, inputs.k, inputs.v]
        call = timed(case, forward, leaves, inputs.grad)
        return Run(call, retention_credit(case), state=state)


class Attention:
    """torch's causal scaled_dot_product_attention at the same d_model: heads of 128, same B and T.

    A step is one token's attention to a cache of T tokens. ``backend`` is one of torch's, on a GPU
    alone (FlashAttention, cuDNN); without it torch chooses.
    """

    def __init__(self, backend: SDPBackend | None = None):
        self.backend = backend
        self.name = "sdpa" if backend is None else f"sdpa {backend.name.split('_')[0].lower()}"

    def why_not(self, case: Case) -> str | None:
        """Requires a GPU if a backend is named."""
        return None if self.backend is None or case.device.type == "cuda" else "needs a GPU"

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Returns a call on tensors as a model has them: [B, T, H, D] viewed as [B, H, T, D]. A
        cache has the same layout.
        """
        B, T, H = case.shape.B, case.shape.T, case.shape.attention_heads
        generator = torch.Generator(case.device).manual_seed(1)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, device=case.device, dtype=case.dtype)

        credit = attention_credit(case)
        if case.is_step:
            q = normal(B, H, 1, ATTENTION_HEAD)
            k, v = (normal(B, H, T, ATTENTION_HEAD) for _ in range(2))
            step = F.scaled_dot_product_attention
            return Run(timed(case, step, [q, k, v], q), credit, "none")

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

        q, k, v, grad = (normal(B, T, H, ATTENTION_HEAD) for _ in range(4))
        return Run(timed(case, forward, [q, k, v], grad), credit, "none")


def too_long(case: Case) -> str | None:
    """Returns the reason not to run a slow form at this length, or None."""
    return None if case.shape.T <= LONGEST else f"this form is measured up to T={LONGEST}"
