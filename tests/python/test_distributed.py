# SPDX-License-Identifier: Apache-2.0
"""A model inside DistributedDataParallel, and a sequence cut into parts."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import retnet.nn
from cases_nn import close, make_model, random_ids
from cases_retention import FORMS, make_inputs
from retnet.ops import retention


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("head", ["one chunk", "chunks", "hooked"])
def test_data_parallel_gradients(one_process, head, monkeypatch):
    ids, plain, parallel = random_ids(2, 9), make_model(), make_model()
    if head != "one chunk":
        monkeypatch.setattr(retnet.nn.loss, "_LOGITS", 0)
        monkeypatch.setattr(retnet.nn.loss, "_TOKENS", 6)
    if head == "hooked":
        parallel.lm_head.register_forward_hook(lambda *call: None)
    plain(ids, labels=ids).loss.backward()
    DistributedDataParallel(parallel)(ids, labels=ids).loss.backward()
    for a, b in zip(parallel.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad)


@pytest.mark.parametrize("form", FORMS)
def test_state_of_one_part_is_initial_state_of_the_next(form):
    inputs = make_inputs(T=70)
    expected, expected_state = retention(**inputs, form=form)
    state, outs = inputs["initial_state"], []
    for part in (slice(0, 33), slice(33, 70)):
        tokens = {name: inputs[name][:, part] for name in "qkv"}
        out, state = retention(
            **tokens, log_decay=inputs["log_decay"], initial_state=state, form=form
        )
        outs.append(out)
    close(torch.cat(outs, 1), expected, 1e-12)
    close(state, expected_state, 1e-12)
