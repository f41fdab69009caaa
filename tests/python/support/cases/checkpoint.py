# SPDX-License-Identifier: Apache-2.0
"""Folders of checkpoints, and functions that damage them."""

import json

from safetensors.torch import load_file, save_file

from support.cases.nn import make_model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save_tiny(folder, **changes):
    make_model(**changes).save(folder)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
