# SPDX-License-Identifier: Apache-2.0
"""Trains a RetNet on Python's standard library, byte by byte: train_minimal.py [STEPS]"""

import math
import sys
import sysconfig
from pathlib import Path

import torch

from retnet.config import RetNetConfig
from retnet.generation import generate
from retnet.nn import RetNetForCausalLM

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600  # about two minutes
BATCH, LENGTH, RATE = 8, 256, 4e-3

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(map(Path.read_bytes, files))), dtype=torch.uint8)
print(f"{len(files)} files, {len(text) / 1e6:.1f} MB")

torch.manual_seed(0)
model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.05)
for step in range(STEPS):
    starts = torch.randint(len(text) - LENGTH, (BATCH, 1))
    ids = text[starts + torch.arange(LENGTH)].long()  # [B, T]; one byte is one token
    loss = model(ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step % 20 == 0:
        print(f"step {step}: {loss.item() / math.log(2):.2f} bits/byte", flush=True)

prompt = torch.tensor([list(b"def read_file(path):\n")])
texts = generate(model, prompt, max_new_tokens=300, temperature=0.7, seed=0)
print(bytes(texts[0].tolist()).decode(errors="replace"))
