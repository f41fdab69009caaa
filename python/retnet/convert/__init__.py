# SPDX-License-Identifier: Apache-2.0
"""Converts checkpoints of torchscale and flash-linear-attention to checkpoints of this package.

Neither package is needed, and neither is Triton. A pickle may hold only tensors, plain values and
argparse.Namespace. No code that it names is run.

The logits of a converted model differ from those of the source as follows, for tiny models in
float32:

- by at most 1e-5 from flash-linear-attention,
- by at most 5e-5 from the recurrent form of torchscale.

In a trained model, the parallel form of torchscale differs from its recurrent form by up to 3e-3,
and its chunkwise form by up to 1e-1. These two forms clamp sums of scores and scale by them. The
norm of the heads removes such factors up to its eps, and retnet does not use them.
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
# Tensor names that only one project uses.
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

    The source can be:

    - A file of torchscale. It is a bare state dict (also .safetensors), `{"args": ..., "model":
      ...}` where args is a Namespace or a dict, or fairseq's layout with `cfg`. Both eras are
      supported: RMSNorm and GLU since 2023-09-28, and before that LayerNorm, a plain feed-forward
      network and biases.
    - The folder that save_pretrained of flash-linear-attention writes. It holds config.json, and
      model.safetensors or pytorch_model.bin, or several files of either kind with their index. If
      it holds tokenizer.json, that file is copied.

    If the tensors do not determine a setting, it comes from the configuration of the source or from
    the arguments below, which are fields of RetNetConfig. Nothing is guessed:

    - The files of fairseq lack norm_eps.
    - Bare state dicts lack every field below except num_heads.
    - The files of the old torchscale never determine group_norm_eps. Its value changed while the
      layout did not.

    Dropout is not converted.

    Args:
        source: the file or folder.
        target: folder of the new checkpoint. It must not hold a model.
        activation: "gelu" or "swish", in the feed-forward network.
        norm_eps: eps of the block norms.
        group_norm_eps: eps of the norm of each head.
        embed_scale: factor on the embeddings.
        residual_scale: factor on the residual branch.
        num_heads: H, the number of heads in a layer.

    Returns:
        The configuration of the new checkpoint.

    Raises:
        FileNotFoundError: there is no source, or it lacks a file.
        FileExistsError: target holds a model, or other files of these names.
        ValueError: the source is corrupt, truncated, of another kind or an unsupported variant of a
            known kind. Or a tensor is not float64, float32, float16 or bfloat16, as in a quantised
            model. Or the configuration contradicts the tensors or the arguments. Or arguments are
            missing. The message names the file and lists the missing arguments.
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
    """Returns the project of the checkpoint, by its tensor names. Raises if it is not supported."""
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
