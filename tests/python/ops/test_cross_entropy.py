# SPDX-License-Identifier: Apache-2.0
"""cross_entropy_with_gradient_ agrees with its definition in float64. This holds for the kernel on
every instruction set and for the composite that runs elsewhere.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.cases.ops import assert_rounded_once, strided
from support.instruction_sets import chosen_instruction_sets
from support.oracles.cross_entropy import cross_entropy_by_definition
from support.tolerances import TOLERANCES, assert_close_to_reference

parametrize = pytest.mark.parametrize
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Op = Callable[..., Tensor]
INF, NAN = math.inf, math.nan

fused = torch.ops.retnet.cross_entropy_with_gradient_


def composite(logits: Tensor, targets: Tensor, **options: int) -> Tensor:
    """Calls what devices without a kernel run."""
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    return fused.default._op_dk(key, logits, targets, **options)


@pytest.fixture(params=[*chosen_instruction_sets(), "composite"])
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Op:
    """Returns the kernel of an instruction set, or the composite."""
    if request.param == "composite":
        return composite
    monkeypatch.setenv("RETNET_CPU", request.param)
    return fused


def make(
    N: int,
    V: int,
    dtype: torch.dtype = torch.float32,
    *,
    scale: float = 1,
    offset: float = 0,
    ignored: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """Returns logits and targets. About `ignored` of the targets are -100."""
    generator = torch.Generator().manual_seed(N * 1000 + V)
    logits = torch.randn(N, V, generator=generator, dtype=torch.float64) * scale + offset
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = -100
    return logits.to(dtype), targets


def check(op: Op, logits: Tensor, targets: Tensor, **options: int) -> Tensor:
    """Returns the gradient, which overwrites the logits."""
    dtype, accumulate = logits.dtype, torch.promote_types(logits.dtype, torch.float32)
    expected, gradient = cross_entropy_by_definition(
        logits.detach().cpu().double(), targets.cpu(), **options
    )
    loss = op(logits, targets, **options)
    assert loss.shape == () and loss.dtype == accumulate and loss.device == logits.device
    limit = TOLERANCES[accumulate][0]  # the loss is not rounded to a 16-bit dtype
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=limit, atol=limit)
    assert logits.dtype == dtype
    assert_close_to_reference(logits, gradient, dtype)
    if logits.numel():
        assert_rounded_once(logits, gradient)
    return logits


@pytest.mark.usefixtures("one_thread")
@parametrize("V", [1, 2, 13, 16, 31, 33, 1000])
@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_against_the_definition(dtype, V, op):
    for N in (0, 1, 3, 70):
        check(op, *make(N, V, dtype))
        check(op, *make(N, V, dtype, ignored=0))


@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_on_the_device(dtype, device):
    for V in (1, 33, 1000):
        check(fused, *(x.to(device) for x in make(70, V, dtype)))


@parametrize(("scale", "offset"), [(1, 1e4), (1, -1e4), (100, 0), (1e4, 0)], ids=str)
@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_large_logits(dtype, scale, offset, op):
    """exp(1e4) is infinite and exp(-1e4) is zero. Most classes have no probability if logits are
    far apart.
    """
    check(op, *make(70, 33, dtype, scale=scale, offset=offset))


@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_classes(dtype, op):
    """One logit is above 200,000 equal ones. Their sum in float32, term by term, would have an
    error of 1e-4.
    """
    logits = torch.zeros(2, 200_000, dtype=dtype)
    logits[:, 77_777] = 0.3
    check(op, logits, torch.tensor([77_777, 5]))


def test_the_sum_over_rows_is_wide(op):
    """30,000 losses that are added one by one in float32 would have an error of 1e-5."""
    logits, targets = make(30_000, 3, ignored=0)
    expected = cross_entropy_by_definition(logits.double(), targets)[0]
    limit = 1e-6 if op is composite else 1e-7
    torch.testing.assert_close(op(logits, targets).double(), expected, rtol=limit, atol=0)


@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_minus_infinity_has_no_probability(dtype, op):
    logits, targets = make(5, 37, dtype, ignored=0)
    logits[0, 3], logits[1, 30:], logits[2, :36] = -INF, -INF, -INF
    targets[:3] = torch.tensor([4, 5, 36])
    masked = logits == -INF
    assert not check(op, logits, targets)[masked].any()  # bit by bit


@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_a_target_without_probability(dtype, op):
    logits, targets = make(3, 37, dtype, ignored=0)
    logits[1, targets[1]] = -INF
    expected = cross_entropy_by_definition(logits.double(), targets)[1]
    assert op(logits, targets) == INF
    assert logits[1, targets[1]] == -1
    assert_close_to_reference(logits, expected, dtype)


@parametrize("bad", [NAN, INF, "only -inf"], ids=str)
@parametrize("V", [13, 37])
@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_not_a_number(dtype, V, bad, op):
    """A row with NaN or infinity, or without any finite logit, is NaN, as in torch. It does not
    affect the rows beside it. An ignored row is zero.
    """
    for column in range(V):
        logits, targets = make(5, V, dtype, ignored=0)
        expected = logits.clone()
        expected[[1, 3]] = 0
        if bad == "only -inf":
            logits[[1, 3]] = -INF
        else:
            logits[[1, 3], column] = bad
        targets[3] = -100
        assert torch.isnan(op(logits, targets))
        assert torch.isnan(logits[1]).all()
        logits[1], targets[1] = 0, -100
        op(expected, targets)
        assert torch.equal(logits, expected)


def test_a_nan_with_a_payload(op):
    """The last bits of this NaN are set, too."""
    logits, targets = make(1, 37, ignored=0)
    logits.view(torch.int32)[0, 20] = 0x7F800001
    assert torch.isnan(op(logits, targets)) and torch.isnan(logits).all()


@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_batch_invariance(dtype, op):
    """The rows belong to a wider tensor and start at an odd offset. The values between them do not
    change.
    """
    logits, targets = make(7, 37, dtype)
    wide = torch.full((14, 48), NAN, dtype=dtype)
    apart = wide[::2, 3:40].copy_(logits)
    between = wide.isnan()
    loss = op(apart, strided(targets[:, None])[:, 0])
    assert torch.equal(loss, op(logits, targets)) and torch.equal(apart, logits)
    assert torch.equal(wide.isnan(), between)


def test_one_class_of_any_stride(op):
    logits, targets = torch.randn(2, 5, 3)[:, :, 1:2].unbind()[0], torch.zeros(5, dtype=torch.int64)
    assert logits.stride() == (3, 1)
    assert op(logits, targets) == 0 and not logits.any()
    assert op(torch.randn(1, 5).T, targets) == 0


@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_another_ignore_index(dtype, op):
    logits, targets = make(70, 13, dtype, ignored=0)
    assert (targets == 3).any()
    check(op, logits, targets, ignore_index=3)
    every, _ = make(70, 13, dtype)
    assert op(every, torch.full((70,), -100)) == 0 and not every.any()


@parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(dtype, op, threads):
    """The kernel gives the same bits with any number of threads, and from run to run."""
    if op is composite:
        pytest.skip("torch's sums")
    results = []
    for count in (1, 3, 3):
        threads(count)
        logits, targets = make(200, 5000, dtype)
        results.append((op(logits, targets), logits))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@parametrize("bad", [-1, -99, 13, 2**40])
@parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_a_target_that_is_no_class(dtype, bad, op):
    """The operator raises before it writes anything."""
    logits, targets = make(70, 13, dtype)
    targets[69] = bad
    before = logits.clone()
    with pytest.raises(IndexError) as error:
        op(logits, targets)
    assert str(error.value).splitlines()[0] == (
        "cross_entropy_with_gradient_: targets must lie in [0, V) = [0, 13) or be ignore_index = "
        f"-100, got {bad} in row 69"
    )
    assert torch.equal(logits, before)


ERRORS = {
    "rank": ({"logits": torch.zeros(3)}, "logits must have shape [N, V], got [3]"),
    "V": ({"logits": torch.zeros(3, 0)}, "logits must have V >= 1, got [3, 0]"),
    "dtype": (
        {"logits": torch.zeros(3, 5, dtype=torch.int32)},
        "logits must be float32, float64, bfloat16 or float16, got int32",
    ),
    "targets": (
        {"targets": torch.zeros(2, dtype=torch.int64)},
        "targets must have shape [N] = [3], got [2]",
    ),
    "int32": (
        {"targets": torch.zeros(3, dtype=torch.int32)},
        "targets must be int64 (classes), got int32",
    ),
    "device": (
        {"targets": torch.zeros(3, dtype=torch.int64, device="meta")},
        "targets must be on logits's device cpu, got meta",
    ),
    "columns": (
        {"logits": torch.zeros(5, 3).T},
        "logits must have dense rows that do not overlap, got shape [3, 5] with strides [1, 3]",
    ),
    "expanded": (
        {"logits": torch.zeros(1, 5).expand(3, 5)},
        "logits must have dense rows that do not overlap, got shape [3, 5] with strides [0, 1]",
    ),
    "gradient": (
        {"logits": torch.zeros(3, 5, requires_grad=True)},
        "logits must not require grad while grad mode is on (their gradient is what they become: "
        "pass logits.detach()), got requires_grad=True",
    ),
}


@parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(changes, message):
    inputs = {"logits": torch.zeros(3, 5), "targets": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(RuntimeError) as error:
        fused(**(inputs | changes))
    assert str(error.value).splitlines()[0] == f"cross_entropy_with_gradient_: {message}"


# Integration with PyTorch


@parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, device):
    logits, targets = (x.to(device) for x in make(5, 13, dtype))
    torch.library.opcheck(fused, (logits, targets), {"ignore_index": -100})
    torch.library.opcheck(fused, (logits, targets))


def test_without_gradients():
    """A leaf that requires grad may be overwritten if no graph is made. A graph that has saved the
    logits detects the change.
    """
    logits, targets = make(5, 13)
    kept = logits.clone().requires_grad_() * 1
    loss = kept.square().sum()
    with torch.no_grad():
        check(fused, logits.requires_grad_(), targets)
        fused(kept, targets)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_leaves_it_alone(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        check(fused, *make(5, 13, dtype))


def test_meta():
    for dtype in (*DTYPES, torch.float64):
        logits, targets = make(5, 13, dtype)
        loss = fused(logits.to("meta"), targets.to("meta"))
        real = fused(logits, targets)
        assert loss.is_meta and loss.shape == real.shape and loss.dtype == real.dtype


def test_compiled(device):
    """One graph serves any shape and changes the logits in place."""
    torch._dynamo.reset()

    def run(logits, targets):
        doubled = logits * 2
        loss = fused(doubled, targets)
        fused(logits, targets)
        return loss, doubled

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for N, V in ((5, 13), (6, 17), (7, 31)):
            logits, targets = (x.to(device) for x in make(N, V))
            again = logits.clone()
            for a, b in zip(compiled(logits, targets), run(again, targets), strict=True):
                assert torch.equal(a, b)
            assert torch.equal(logits, again)
