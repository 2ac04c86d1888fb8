"""A local Hugging Face folder as a model of ours. Safetensors only, never a pickle; what config.json does not describe is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file

from scaling.config import NonNegative, Positive, UserError
from scaling.decoder import DecoderConfig, Parameters
from scaling.huggingface.names import ACTIVATIONS, GPT2, GPT2_BLOCK, GPT2_MATRICES, LLAMA, LLAMA_BLOCK
from scaling.language_model import LanguageModel
from scaling.text_codec import make_codec

READABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Tensors of old folders that are no parameters."""
Facts = TypeVar("Facts", bound=msgspec.Struct)


class Kind(msgspec.Struct, frozen=True):
    """The part of config.json that every family has."""

    model_type: str


class Rotary(msgspec.Struct, frozen=True):
    """`rope_parameters`, or what came before it, `rope_scaling`."""

    rope_type: str = "default"
    type: str | None = None
    rope_theta: float | None = None


class LlamaFacts(msgspec.Struct, frozen=True):
    """config.json of Llama and those built like it, as far as it is read."""

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    hidden_act: str
    rms_norm_eps: NonNegative
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    sliding_window: Positive | None = None
    use_sliding_window: bool = True
    tie_word_embeddings: bool = False


class Gpt2Facts(msgspec.Struct, frozen=True):
    """config.json of GPT-2, as far as it is read."""

    n_embd: Positive
    n_layer: Positive
    n_head: Positive
    n_positions: Positive
    vocab_size: Positive
    n_inner: Positive | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: NonNegative = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True


class Ends(msgspec.Struct, frozen=True):
    """The end of a text in generation_config.json and config.json."""

    eos_token_id: int | list[int] | None = None


class Index(msgspec.Struct, frozen=True):
    """Which file holds which tensor."""

    weight_map: dict[str, str]


def load_folder(path: Path) -> LanguageModel:
    """A model of a local folder, float32.

    Raises
    ------
    UserError
        An architecture, a kind of positions or a file that is not read here; tensors that config.json does not describe.
    """
    kind = _facts(path / "config.json", Kind).model_type
    if kind not in READABLE:
        raise UserError(f"{path}: model_type = {kind!r} is not read here; allowed: {', '.join(READABLE)}")
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} has no tokenizer.json; save it there with AutoTokenizer.from_pretrained(...).save_pretrained")
    tensors = _tensors(path)
    try:
        config, parameters = _from_gpt2(path, tensors) if kind == "gpt2" else _from_llama(path, tensors)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing in the weights; is the folder whole?") from None
    if unread := sorted(name for name in tensors if not name.endswith(BUFFERS)):
        raise UserError(
            f"{path}: {unread[0]} (of {len(unread)} such tensors) has no place in this {kind}; do config.json and weights belong together?"
        )
    _check_shapes(config, parameters, path)
    codec = make_codec(str(path / "tokenizer.json"))
    named = [_facts(path / name, Ends).eos_token_id for name in ("generation_config.json", "config.json") if (path / name).is_file()]
    end = next((found for found in named if found not in (None, [])), codec.end)
    return LanguageModel(path.resolve().name, config, parameters, replace(codec, end=end[0] if isinstance(end, list) else end))


def _facts(file: Path, kind: type[Facts]) -> Facts:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise UserError(f"{file}: {error}; is this a model's folder?") from None


def _tensors(path: Path) -> dict[str, np.ndarray]:
    index = path / "model.safetensors.index.json"
    names = sorted(set(_facts(index, Index).weight_map.values())) if index.is_file() else ["model.safetensors"]
    found: dict[str, np.ndarray] = {}
    for name in names:
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing; only safetensors are read (save_pretrained writes them), never pickled weights")
        try:
            found |= {key: np.asarray(value, np.float32) for key, value in load_file(path / name).items()}
        except SafetensorError as error:
            raise UserError(f"{path / name}: not whole ({error}); copy it again") from None
    return found


def _from_llama(path: Path, tensors: dict[str, np.ndarray]) -> tuple[DecoderConfig, Parameters]:
    facts = _facts(path / "config.json", LlamaFacts)
    rotary = facts.rope_parameters or facts.rope_scaling or Rotary()
    if (rotary.type or rotary.rope_type) != "default" or facts.partial_rotary_factor != 1:
        kind = rotary.type or rotary.rope_type
        raise UserError(f"{path}: rotary positions of type {kind!r} are not read here; allowed: default, over the whole head")
    context = facts.max_position_embeddings
    if facts.sliding_window and facts.use_sliding_window:
        context = min(facts.sliding_window, context)  # within the window the attention is the same
    heads = facts.num_attention_heads
    config = DecoderConfig(
        family="llama",
        d_model=facts.hidden_size,
        n_layers=facts.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=facts.num_key_value_heads or heads,
        head_dim=facts.head_dim or facts.hidden_size // heads,
        d_ff=facts.intermediate_size,
        vocab_size=facts.vocab_size,
        context=context,
        activation=_activation(facts.hidden_act, path),
        epsilon=facts.rms_norm_eps,
        rope_base=rotary.rope_theta or facts.rope_theta,
    )
    optional = {"query_norm", "key_norm", *(name for name in LLAMA_BLOCK if name.endswith("_bias"))}
    blocks = [_taken(LLAMA_BLOCK, tensors, f"model.layers.{index}.", optional) for index in range(config.n_layers)]
    top = _taken(LLAMA, tensors, "", {"head"} if facts.tie_word_embeddings else set())
    return config, {**_with_head(top), "blocks": blocks}


def _from_gpt2(path: Path, tensors: dict[str, np.ndarray]) -> tuple[DecoderConfig, Parameters]:
    facts = _facts(path / "config.json", Gpt2Facts)
    if facts.scale_attn_by_inverse_layer_idx or not facts.scale_attn_weights:
        raise UserError(f"{path}: attention scaled by layer, or not at all, is not read here; allowed: GPT-2's own scale")
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""
    config = DecoderConfig(
        family="gpt2",
        d_model=facts.n_embd,
        n_layers=facts.n_layer,
        n_heads=facts.n_head,
        n_kv_heads=facts.n_head,
        head_dim=facts.n_embd // facts.n_head,
        d_ff=facts.n_inner or 4 * facts.n_embd,
        vocab_size=facts.vocab_size,
        context=facts.n_positions,
        activation=_activation(facts.activation_function, path),
        norm="layer",
        epsilon=facts.layer_norm_epsilon,
        positions="learned",
    )
    blocks = []
    for index in range(config.n_layers):
        at = f"{prefix}h.{index}."
        names = {
            f"{ours}{end}": f"{at}{theirs}.{'bias' if end else 'weight'}" for ours, theirs in GPT2_BLOCK.items() for end in ("", "_bias")
        }
        block = _taken(names, tensors, "", set())
        block |= {name: block[name].T for name in GPT2_MATRICES}
        block |= zip(("query", "key", "value"), jnp.split(tensors.pop(f"{at}attn.c_attn.weight").T, 3))
        block |= zip(("query_bias", "key_bias", "value_bias"), jnp.split(tensors.pop(f"{at}attn.c_attn.bias"), 3))
        blocks.append(block)
    names = {**{ours: prefix + theirs for ours, theirs in GPT2.items()}, "head": "lm_head.weight"}
    top = _taken(names, tensors, "", {"head"} if facts.tie_word_embeddings else set())
    return config, {**_with_head(top), "blocks": blocks}


def _activation(name: str, path: Path) -> Any:
    if name not in ACTIVATIONS:
        raise UserError(f"{path}: activation {name!r} is not read here; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _taken(names: dict[str, str], tensors: dict[str, np.ndarray], prefix: str, optional: set[str]) -> Parameters:
    """Move the named tensors out of `tensors`, so that what nobody reads is left there."""
    return {
        ours: jnp.asarray(tensors.pop(prefix + theirs))
        for ours, theirs in names.items()
        if prefix + theirs in tensors or ours not in optional
    }


def _with_head(parameters: Parameters) -> Parameters:
    """The head is the embedding where they are tied."""
    return {"head": parameters["embedding"], **parameters}


def _check_shapes(config: DecoderConfig, parameters: Parameters, path: Path) -> None:
    """Refuse tensors that are not of the shapes that config.json gives (a bias is as long as its matrix has rows)."""
    d, queries, keys = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    matrices = {"query": (queries, d), "key": (keys, d), "value": (keys, d), "output": (d, queries)}
    matrices |= {"gate": (config.d_ff, d), "up": (config.d_ff, d), "down": (d, config.d_ff)}
    matrices |= {"embedding": (config.vocab_size, d), "head": (config.vocab_size, d), "position": (config.context, d)}
    norms = {"query_norm": (config.head_dim,), "key_norm": (config.head_dim,)}
    for block in (parameters, *parameters["blocks"]):
        for name, value in block.items():
            if name == "blocks":
                continue
            kind = name.removesuffix("_bias")
            expected = norms.get(name) or (matrices.get(kind, (d,)) if kind == name else matrices.get(kind, (d,))[:1])
            if value.shape != expected:
                raise UserError(f"{path}: {name} is {value.shape} in the weights, {expected} by config.json; do they belong together?")
    if config.n_heads % config.n_kv_heads:
        raise UserError(f"{path}: {config.n_heads} heads cannot share {config.n_kv_heads} of keys and values; is config.json whole?")
