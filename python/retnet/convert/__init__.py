# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of torchscale and flash-linear-attention, written anew as ours.

Neither package is needed, nor is Triton. Weights only: a pickle may hold tensors, plain values and
argparse.Namespace, and nothing that it names is run.

In float32, of tiny models, a converted model's logits are within 1e-5 of flash-linear-attention's
and 5e-5 of torchscale's recurrent form. From that torchscale's parallel form differs by up to 3e-3
once trained, its chunkwise form by up to 1e-1: they clamp and scale sums of scores by factors
which the head norm undoes up to its eps, and which have no part here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from retnet import checkpoint
from retnet._files import replace_file
from retnet.config import RetNetConfig
from retnet.convert import _fla, _torchscale
from retnet.convert._source import Source, read, shorten

__all__ = ["convert"]

_TOKENIZER = "tokenizer.json"
_READ = ("torchscale", "flash-linear-attention")
# Names that only one project gives its tensors.
_PROJECTS = {
    "torchscale": r"(decoder\.)?(retnet_rel_pos\.|layers\.\d+\.retention_layer_norm\.)",
    "flash-linear-attention": r"model\.(embeddings\.|layers\.\d+\.attn\.)",
    "syncdoth/RetNet": r"model\.(retnet_rel_pos\.|layers\.\d+\.retention_layer_norm\.)",
    "Jamie-Stirling/RetNet": r"(.*\.)?retentions\.\d+\..*W_[QKVGO]$",
    "yet-another-retnet": r"decoder\.layers\.\d+\.(linear1|norm1|retention)\.",
}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    activation: str | None = None,
    norm_eps: float | None = None,
    group_norm_eps: float | None = None,
    embed_scale: float | None = None,
    residual_scale: float | None = None,
    num_heads: int | None = None,
) -> RetNetConfig:
    """Reads a checkpoint of another project and writes a folder that `retnet.load` reads.

    What source can be:

    - torchscale, a file: a bare state dict (also .safetensors), `{"args": ..., "model": ...}` with
      args a Namespace or a dict, or fairseq's layout with `cfg`. Both eras: RMSNorm and GLU
      (2023-09-28 and later), and before that LayerNorm, plain feed-forward and biases.
    - flash-linear-attention, the folder of save_pretrained: config.json, and model.safetensors or
      pytorch_model.bin, or several of either with their index. A tokenizer.json there is copied.

    What the tensors do not tell comes from the source's own configuration or from the arguments
    below, which are fields of RetNetConfig; nothing is guessed. fairseq's files lack norm_eps, bare
    state dicts every field below but num_heads. The old torchscale's files never tell
    group_norm_eps, which changed while its layout did not. Dropout is left out.

    Args:
        source: the file or folder.
        target: folder of the new checkpoint, which must hold no model.
        activation: "gelu" or "swish", in the feed-forward network.
        norm_eps: of the block norms.
        group_norm_eps: of the heads' norm.
        embed_scale: factor on the embeddings.
        residual_scale: factor on the residual branch.
        num_heads: H, heads of a layer.

    Returns:
        The configuration of the new checkpoint.

    Raises:
        FileNotFoundError: there is no source, or it lacks a file.
        FileExistsError: target holds a model, or foreign files of these names.
        ValueError: a corrupt, truncated or foreign source, an unsupported variant of a known one,
            tensors of another dtype than float64, float32, float16 and bfloat16 (a quantised
            model), a configuration that contradicts tensors or arguments, or arguments that are
            missing; the message names the file, and lists what to give.
        OSError: target could not be written.
    """
    source, target = Path(source), Path(target)
    if (target / checkpoint.WEIGHTS).exists():
        raise FileExistsError(f"{target}: holds a model; choose another target")
    options = {
        "activation": activation,
        "norm_eps": norm_eps,
        "group_norm_eps": group_norm_eps,
        "embed_scale": embed_scale,
        "residual_scale": residual_scale,
        "num_heads": num_heads,
    }
    found = read(source, options)
    project = _project(found)
    found.check_dtypes()
    translate = _fla.translate if project == "flash-linear-attention" else _torchscale.translate
    model = translate(found)
    checkpoint.check_weights(source, model.config, checkpoint.kinds_of(model.tensors))
    checkpoint.write(target, model.config, model.tensors, {"converted_from": model.origin})
    tokenizer = source / _TOKENIZER
    if tokenizer.is_file():
        replace_file(target / _TOKENIZER, lambda part: shutil.copyfile(tokenizer, part))
    return model.config


def _project(found: Source) -> str:
    """Tells by names of tensors and settings whose checkpoint it is; raises for those not read."""
    known = (
        p for p, pattern in _PROJECTS.items() if any(re.match(pattern, n) for n in found.tensors)
    )
    project = next(known, None)
    if project is None:
        raise found.error(
            f"must be a checkpoint of {' or '.join(_READ)}, got tensors {shorten(found.tensors)}"
        )
    if project not in _READ:
        raise found.error(f"checkpoints of {project} are not supported")
    return project
