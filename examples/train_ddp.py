# SPDX-License-Identifier: Apache-2.0
"""Trains with data parallelism, with one process for each GPU or several on the CPU:

torchrun --nproc-per-node 8 examples/train_ddp.py [STEPS]
"""

import math
import os
import sys
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
BATCH, LENGTH, RATE = 8, 256, 4e-3  # the batch of one process

dist.init_process_group()  # NCCL on GPUs and gloo elsewhere
rank = dist.get_rank()
if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(map(Path.read_bytes, files))), dtype=torch.uint8)

torch.manual_seed(0)  # the same weights everywhere
model = RetNetForCausalLM(RetNetConfig.preset("tiny")).to(device)
parallel = DistributedDataParallel(model)  # averages the gradients
optimizer = torch.optim.AdamW(parallel.parameters(), lr=RATE)
draw = torch.Generator().manual_seed(rank)  # each process reads other text
for step in range(STEPS):
    starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=draw)
    ids = text[starts + torch.arange(LENGTH)].long().to(device)  # [B, T]
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = parallel(ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step + 1 == STEPS:
        total = loss.detach() / dist.get_world_size()
        dist.all_reduce(total)
        if rank == 0:
            print(f"step {step}: {total.item() / math.log(2):.2f} bits/byte", flush=True)

if rank == 0:
    model.save("ddp")
    print("saved in ddp; retnet generate ddp --prompt 'import os'")
dist.barrier()  # the others wait for rank 0
dist.destroy_process_group()
