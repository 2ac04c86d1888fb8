"""Saved training states: safetensors files that carry their own checksum (docs/formats.md)."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors


def encode_tree(tree: Any, metadata: dict[str, str]) -> bytes:
    """A safetensors file of the leaves of `tree`, named by path (`parameters.blocks.0.up`), with a checksum in its metadata."""
    tensors = {name: np.asarray(value) for name, value in _flatten(tree).items()}
    return save_tensors(tensors, {**metadata, "checksum": state_checksum(tensors, metadata)})


def decode_tree(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of `encode_tree`.

    Raises
    ------
    ValueError
        If the file is truncated, altered or something else.
    """
    try:
        tensors = load_tensors(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        checksum = metadata.pop("checksum")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a saved state: {error}") from None
    if checksum != state_checksum(tensors, metadata):
        raise ValueError("checksum does not match")
    return tensors, metadata


def state_checksum(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """SHA-256 over the metadata and over names, shapes, types and bytes of the tensors, in name order."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def restore_tree(tensors: dict[str, np.ndarray], template: Any) -> Any:
    """The tree with the structure of `template` and the values of `tensors`."""
    return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(tensors[name]) for name in _flatten(template)])


def _flatten(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
