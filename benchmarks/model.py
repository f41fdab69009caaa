# SPDX-License-Identifier: Apache-2.0
"""Compares RetNet with a Transformer of as many parameters: ``python benchmarks/model.py``.

The Transformer is the Llama of Hugging Face with as many parameters (within 1%), heads of 128, and
the same width, depth and vocabulary. A training step (forward, loss, backward, AdamW) is measured
by length, with attention as written in the paper ("eager") and by scaled_dot_product_attention
("sdpa", FlashAttention on a GPU). Decoding one token is measured by context length, with a cache
that grows and with one of fixed size. Each result is related to a limit of the machine, which is
probed just before. A case that would not fit into memory is listed as such and not run. The script
writes raw/model.json and its section of summary.json.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import machine
import summary
from cases import Case, Shape, attention_credit, least_flop
from peers import load
from retnet import RetNetConfig
from retnet._memory import keep_memory_mapped
from retnet.nn import RetNetForCausalLM
from timing import Clock, Spread, alternate, peak_memory, rounds_within

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 256, "embed_dim": 256, "num_layers": 2, "num_heads": 1},
    "100m": {"vocab_size": 32000, "embed_dim": 768, "num_layers": 12, "num_heads": 3},
    "1.3b": {"vocab_size": 32000, "embed_dim": 2048, "num_layers": 24, "num_heads": 8},
}
LENGTHS = {"train": [2048, 8192], "decode": [128, 2048, 8192]}
QUICK = {"train": [64], "decode": [16, 32]}
SECONDS = 10.0  # seconds of timed calls per contender
# The entries of machine.ceilings that bound a training step and a decode step.
LIMITS = {
    ("training step", "cpu"): "fma_flop_per_s",
    ("training step", "cuda"): "matmul_flop_per_s",
    ("decode step", "cpu"): "read_bytes_per_s",
    ("decode step", "cuda"): "copy_bytes_per_s",
}
Call = Callable[[], object]
# transformers renames the argument `past_key_values`. The old name works in all versions so far.
warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)


def retnet_model(size: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns a RetNet in the shape of the paper: K = 256, V = 512, F = 2d, tied embeddings."""
    sizes = SIZES[size]
    config = RetNetConfig.preset("1.3b", **sizes, ffn_dim=2 * sizes["embed_dim"])
    config = RetNetConfig(**{**vars(config), "tie_embeddings": True})
    return RetNetForCausalLM(config, device=device, dtype=dtype)


def llama_model(size: str, attention: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns its twin: the 8 d^2 + 4 d^2 parameters of a RetNet layer are 4 d^2 + 3 d f in
    Llama.
    """
    transformers: Any = load("transformers")
    d = SIZES[size]["embed_dim"]
    config = transformers.LlamaConfig(
        vocab_size=SIZES[size]["vocab_size"],
        hidden_size=d,
        num_hidden_layers=SIZES[size]["num_layers"],
        num_attention_heads=d // 128,
        num_key_value_heads=d // 128,
        intermediate_size=8 * d // 3,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        attn_implementation=attention,
        pad_token_id=None,
    )
    with torch.device(device):
        return transformers.LlamaForCausalLM(config).to(dtype)


def kept_numbers(size: str, length: int) -> int:
    """Returns what autograd keeps of RetNet for the backward pass, B = 1, in numbers of the model's
    dtype.

    It keeps 18 d for a token in a layer: input and output of both norms (4), rotated q and k (2), v
    (2), gate (2), the output of retention (2), that of the gated norm (2), and the two inner
    activations of the FFN (4). After the layers it keeps the input of the last norm and the
    gradient of its output (2).
    """
    return length * SIZES[size]["embed_dim"] * (18 * SIZES[size]["num_layers"] + 2)


def least_memory(size: str, length: int, dtype: torch.dtype) -> int:
    """Returns the least number of bytes that a training step of RetNet adds, at the start of its
    backward pass.

    These are what autograd keeps, the gradient of the head in float32, and a chunk of logits, which
    its gradient overwrites (as linear_cross_entropy does).
    """
    vocab, d = SIZES[size]["vocab_size"], SIZES[size]["embed_dim"]
    chunk = min(length, max(1024, (1 << 25) // vocab))
    return (kept_numbers(size, length) + vocab * chunk) * dtype.itemsize + 4 * vocab * d


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Training:
    """Training steps at one length, B = 1."""

    work = "training step"

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype):
        self.size, self.device, self.dtype = size, device, dtype
        self.models = {
            "retnet": retnet_model(size, device, dtype),
            "llama sdpa": llama_model(size, "sdpa", device, dtype),
            "llama eager": llama_model(size, "eager", device, dtype),
        }

    def needs(self, name: str, length: int) -> int:
        """Returns the bytes beyond the models that a step needs. "eager" keeps T x T weights."""
        if name != "llama eager":
            return 0
        sizes = SIZES[self.size]
        of_a_layer = sizes["embed_dim"] // 128 * length**2 * (self.dtype.itemsize + 4)
        return sizes["num_layers"] * of_a_layer

    def least(self, name: str, length: int, held: int | None) -> float:
        """Returns FLOP: 6 for each parameter and token (the embedding is the head), and the part
        that mixes the tokens. For attention this is the causal half, for retention the chunkwise
        form (cases.py).
        """
        sizes = SIZES[self.size]
        heads = sizes["num_heads"]
        case = Case("forward+backward", Shape(1, length, heads, 256, 512), self.dtype, self.device)
        of_a_layer = least_flop(case) if name == "retnet" else attention_credit(case).flop
        return 6 * parameters(self.models[name]) * length + sizes["num_layers"] * of_a_layer

    def call(self, name: str, length: int) -> tuple[Call, int | None]:
        """Returns the step and None, because no bytes are held between steps."""
        model = self.models[name].train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids = torch.randint(SIZES[self.size]["vocab_size"], (1, length), device=self.device)

        def step() -> None:
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step, None


class Decoding:
    """Decodes one token after `length` tokens in B sequences. The cache or state is filled with
    noise.
    """

    work = "decode step"

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype, batch: int):
        self.size, self.device, self.dtype, self.batch = size, device, dtype, batch
        llama = llama_model(size, "sdpa", device, dtype)
        self.models = {
            "retnet": retnet_model(size, device, dtype),
            "llama dynamic cache": llama,
            "llama static cache": llama,
        }

    def needs(self, name: str, length: int) -> int:
        """Returns the bytes of the cache, and of the copy that a growing cache makes."""
        sizes = SIZES[self.size]
        cache = 2 * sizes["num_layers"] * self.batch * sizes["embed_dim"] * length
        return 0 if name == "retnet" else 2 * cache * self.dtype.itemsize

    def least(self, name: str, length: int, held: int | None) -> float:
        """Returns bytes: weights and cache are read, and a state is also written."""
        weights = parameters(self.models[name]) * self.dtype.itemsize
        return weights + (held or 0) * (2 if name == "retnet" else 1)

    def call(self, name: str, length: int) -> tuple[Call, int | None]:
        """Returns the step and the bytes of the state or the cache."""
        model: Any = self.models[name].eval()
        ids = torch.zeros(self.batch, 1, dtype=torch.long, device=self.device)
        if name == "retnet":
            state = model.config.make_state(self.batch, device=self.device)
            state.retention.normal_()
            state.positions.fill_(length)

            @torch.no_grad()
            def retnet_step() -> Tensor:
                return model(ids, state=state, inplace=True).logits.argmax(-1)

            return retnet_step, state.retention.nbytes
        transformers: Any = load("transformers")
        heads = SIZES[self.size]["embed_dim"] // 128
        if "static" in name:
            cache = transformers.StaticCache(model.config, max_cache_len=length + 128)
        else:
            cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            for layer in range(SIZES[self.size]["num_layers"]):
                k, v = torch.randn(
                    2, self.batch, heads, length, 128, device=self.device, dtype=self.dtype
                )
                cache.update(k, v, layer)
        held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))

        @torch.no_grad()
        def llama_step() -> Tensor:
            return model(ids, past_key_values=cache, use_cache=True).logits.argmax(-1)

        return llama_step, held


def available(device: torch.device) -> int:
    """Returns the bytes that can be allocated now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo").read_text()
    return 1024 * int(meminfo.split("MemAvailable:")[1].split()[0])


def measure(works: Any, length: int, clock: Clock, least: int, quick: bool) -> list[dict[str, Any]]:
    """Measures all contenders at one length, in turns, each for SECONDS and at least ``least``
    times.
    """
    results = {
        name: {
            "work": works.work,
            "contender": name,
            "size": works.size,
            "parameters": parameters(model),
            "batch": getattr(works, "batch", 1),
            "length": length,
            "dtype": str(works.dtype).removeprefix("torch."),
            "status": "not run",
        }
        for name, model in works.models.items()
    }
    calls: dict[str, Call] = {}
    rounds: dict[str, int] = {}

    def failed(name: str, error: Exception) -> None:
        results[name] |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
        calls.pop(name, None)

    for name, result in results.items():
        needs, free = works.needs(name, length), available(works.device)
        if needs > free:
            result["reason"] = f"needs {needs / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
            continue
        try:
            call, held = works.call(name, length)
            call()
            memory, seconds = peak_memory(call, works.device)
        except Exception as error:
            failed(name, error)
            continue
        calls[name] = call
        rounds[name] = rounds_within(0.0 if quick else SECONDS, seconds, least)
        result |= {"peak_memory_bytes": memory, "state_bytes": held}
        if (works.work, name) == ("training step", "retnet"):
            result["least_memory_bytes"] = least_memory(works.size, length, works.dtype)
    ceilings = machine.ceilings(works.device, works.dtype, clock, quick)
    tokens = works.batch if works.work == "decode step" else length
    for name, times in alternate(calls, rounds, clock, failed).items():
        spread = Spread.of(times)
        results[name] |= {"status": "ok", "seconds": vars(spread)}
        results[name]["tokens_per_s"] = tokens / spread.median
        ceiling = ceilings[LIMITS[works.work, works.device.type]]
        work = works.least(name, length, results[name]["state_bytes"])
        results[name] |= {"ceilings": ceilings, "share": work / spread.median / ceiling}
    ours = results["retnet"]
    for result in results.values():
        if result["status"] == "ok" == ours["status"]:
            ratio = result["seconds"]["median"] / ours["seconds"]["median"]
            result["times_retnet"] = ratio
    return list(results.values())


def show(results: list[dict[str, Any]]) -> str:
    """Formats one length as a table."""
    first = results[0]
    probed: dict[str, float] = next((r["ceilings"] for r in results if r["status"] == "ok"), {})
    lines = [
        f"{first['work']}   {first['size']}   B={first['batch']} T={first['length']}"
        f"   {first['dtype']}   ceilings probed now: "
        + "   ".join(f"{name} {x:.3g}" for name, x in probed.items()),
        f"  {'contender':22}{'parameters':>12}{'median ms':>11}{'quartiles':>20}{'tokens/s':>10}"
        f"{'/ retnet':>9}{'of limit':>9}{'state MiB':>11}{'peak MiB':>10}",
    ]
    for r in results:
        start = f"  {r['contender']:22}{r['parameters'] / 1e6:10.1f} M"
        if r["status"] != "ok":
            lines.append(f"{start}  {r['status']}: {r['reason']}")
            continue
        s = r["seconds"]
        quartiles = f"{summary.number(s['q1'] * 1e3)}..{summary.number(s['q3'] * 1e3)}"
        mib = ["-" if r[key] is None else f"{r[key] / 2**20:,.0f}" for key in MEMORY[:2]]
        lines.append(
            f"{start}{summary.number(s['median'] * 1e3):>11}{quartiles:>20}"
            f"{summary.number(r['tokens_per_s']):>10}{r.get('times_retnet', float('nan')):9.2f}"
            f"{r['share']:9.1%}"
            f"{mib[0]:>11}{mib[1]:>10}"
            + (
                f"  (least {r['least_memory_bytes'] / 2**20:,.0f})"
                if "least_memory_bytes" in r
                else ""
            )
        )
    return "\n".join(lines)


CASE = ("work", "size", "batch", "length", "dtype")
MEMORY = ("state_bytes", "peak_memory_bytes", "least_memory_bytes")


def rows(results: list[dict[str, Any]]) -> list[summary.Row]:
    """Returns the rows of the summary: what ran, and for RetNet the speedup over each baseline."""
    found = []
    for r in results:
        if r["status"] != "ok":
            continue
        same = [x for x in results if x["status"] == "ok" and all(x[k] == r[k] for k in CASE)]
        memory = {
            f"{name}_mib": summary.round_to(None if r.get(key) is None else r[key] / summary.MIB)
            for name, key in zip(("state", "peak", "least"), MEMORY, strict=True)
        }
        found.append(
            {
                **{key: r[key] for key in CASE},
                "contender": r["contender"],
                "parameters": r["parameters"],
                **summary.times(r["seconds"]),
                "tokens_per_s": summary.round_to(r["tokens_per_s"]),
                "share": summary.round_to(r["share"]),
                **memory,
                "speedup": {
                    x["contender"]: summary.round_to(x["times_retnet"])
                    for x in same
                    if r["contender"] == "retnet" != x["contender"]
                },
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--device", help="cpu or cuda (default: the GPU if there is one)")
    add("--quick", action="store_true", help="use toy sizes, to see whether everything runs")
    add("--train", default="100m", choices=SIZES, help="size of the trained model (default: 100m)")
    add("--decode", default="1.3b", choices=SIZES, help="size of the decoder (default: 1.3b)")
    add("--batch", type=int, nargs="+", default=[1], help="sequences decoded at once (default: 1)")
    add("--rounds", type=int, default=5, help="least timed calls of each contender (default: 5)")
    add("--lengths", type=int, nargs="+", help="measure only these lengths")
    add("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_memory_mapped()
    if isinstance(load("transformers"), str):
        print(f"transformers: {load('transformers')}")
        return 2
    out: Path = options.out or machine.results_folder(device, options.quick)
    if options.quick:
        options.train = options.decode = "tiny"
        options.rounds = 2
    clock, facts = Clock(device), machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    results: list[dict[str, Any]] = []
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    content = {"format": 1, "command": command, "machine": facts, "results": results}
    lengths = {
        work: [n for n in some if not options.lengths or n in options.lengths]
        for work, some in (QUICK if options.quick else LENGTHS).items()
    }
    # Decoding reads weights, so it uses 16 bits on every machine.
    decoded = torch.float32 if options.quick else torch.bfloat16
    todo: list[tuple[Callable[[], Any], list[int]]] = [
        (partial(Decoding, options.decode, device, decoded, batch), lengths["decode"])
        for batch in options.batch
    ]
    for dtype in [torch.float32] if options.quick else machine.dtypes(device, quick=False):
        todo.append((partial(Training, options.train, device, dtype), lengths["train"]))
    with tqdm(total=sum(len(each) for _, each in todo), unit="case", disable=None) as bar:
        for make, some in todo:
            if not some:
                continue
            works = make()
            for length in some:
                measured = measure(works, length, clock, options.rounds, options.quick)
                results += measured
                tqdm.write(show(measured) + "\n")
                summary.write(out, "model", content, rows(results))
                bar.update()
            del works
    return 1 if any(r["status"] == "failed" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
