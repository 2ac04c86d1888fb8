"""Hugging Face folders, both ways: names and layouts of tensors and configs of the Llama and GPT-2 families, exactly.

Our own transformer is exported as `Qwen3ForCausalLM` (Llama with a norm of queries and keys), which it equals exactly: gains of one for its
gainless norms, rows of the embedding normed ahead, and relu(x)^2 as relu(x) times x, so that `gate_proj` and `up_proj` are the same matrix
(stored twice). Read are safetensors only, never a pickle.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file
from safetensors.numpy import save_file

from scaling.config import UserError
from scaling.decoder import DecoderConfig, Parameters
from scaling.language_model import LanguageModel, read_json
from scaling.text_codec import make_codec

LLAMA = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
LLAMA_BLOCK = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
}
LLAMA_BLOCK |= {
    f"{ours}{end}": f"{theirs}_proj.{'bias' if end else 'weight'}"
    for ours, theirs in {
        "query": "self_attn.q",
        "key": "self_attn.k",
        "value": "self_attn.v",
        "output": "self_attn.o",
        "gate": "mlp.gate",
        "up": "mlp.up",
        "down": "mlp.down",
    }.items()
    for end in ("", "_bias")
}
GPT2 = {"embedding": "wte.weight", "position": "wpe.weight", "norm": "ln_f.weight", "norm_bias": "ln_f.bias"}
GPT2_BLOCK = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
GPT2_MATRICES = ("output", "up", "down")
"""Stored (in, out) there, as is `attn.c_attn`, which holds query, key and value side by side."""

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2"}
READABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


# ---------------------------------------------------------------- reading


def load_folder(path: Path) -> LanguageModel:
    """A model of a local folder, float32.

    Raises
    ------
    UserError
        An architecture, a kind of positions or a file that is not read here.
    """
    facts = read_json(path / "config.json")
    kind = facts.get("model_type")
    if kind not in READABLE:
        raise UserError(f"{path}: model_type = {kind!r} is not read here; allowed: {', '.join(READABLE)}")
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} has no tokenizer.json; save it there with AutoTokenizer.from_pretrained(...).save_pretrained")
    tensors = _tensors(path)
    try:
        config, parameters = _from_gpt2(facts, tensors) if kind == "gpt2" else _from_llama(facts, tensors, path)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing in config.json or the weights; is the folder whole?") from None
    codec = make_codec(str(path / "tokenizer.json"))
    generation = read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    end = generation.get("eos_token_id", facts.get("eos_token_id"))
    ends = end if isinstance(end, list) else [end]
    codec = replace(codec, end=int(ends[0])) if ends and ends[0] is not None else codec
    return LanguageModel(path.resolve().name, config, parameters, codec)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    index = path / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    found: dict[str, np.ndarray] = {}
    for name in names:
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing; only safetensors are read (save_pretrained writes them), never pickled weights")
        try:
            found |= {key: np.asarray(value, np.float32) for key, value in load_file(path / name).items()}
        except SafetensorError as error:
            raise UserError(f"{path / name}: not whole ({error}); copy it again") from None
    return found


def _from_llama(facts: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> tuple[DecoderConfig, Parameters]:
    rope = facts.get("rope_parameters") or {**(facts.get("rope_scaling") or {}), "rope_theta": facts.get("rope_theta", 10_000.0)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or facts.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{path}: rotary positions of type {kind!r} are not read here; allowed: default, over the whole head")
    window, context = facts.get("sliding_window"), facts["max_position_embeddings"]
    if window and facts.get("use_sliding_window", True):
        context = min(window, context)  # within the window the attention is the same
    heads = facts["num_attention_heads"]
    config = DecoderConfig(
        family="llama",
        d_model=facts["hidden_size"],
        n_layers=facts["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or facts["hidden_size"] // heads,
        d_ff=facts["intermediate_size"],
        vocab_size=facts["vocab_size"],
        context=context,
        activation=_activation(facts["hidden_act"], path),
        epsilon=facts["rms_norm_eps"],
        rope_base=float(rope["rope_theta"]),
    )
    optional = {"query_norm", "key_norm", *(name for name in LLAMA_BLOCK if name.endswith("_bias"))}
    blocks = [_found(LLAMA_BLOCK, tensors, f"model.layers.{index}.", optional) for index in range(config.n_layers)]
    return config, {**_with_head(_found(LLAMA, tensors, "", {"head"})), "blocks": blocks}


def _from_gpt2(facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[DecoderConfig, Parameters]:
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""
    config = DecoderConfig(
        family="gpt2",
        d_model=facts["n_embd"],
        n_layers=facts["n_layer"],
        n_heads=facts["n_head"],
        n_kv_heads=facts["n_head"],
        head_dim=facts["n_embd"] // facts["n_head"],
        d_ff=facts.get("n_inner") or 4 * facts["n_embd"],
        vocab_size=facts["vocab_size"],
        context=facts["n_positions"],
        activation=_activation(facts.get("activation_function", "gelu_new"), Path("config.json")),
        norm="layer",
        epsilon=facts.get("layer_norm_epsilon", 1e-5),
        positions="learned",
    )
    blocks = []
    for index in range(config.n_layers):
        at = f"{prefix}h.{index}."
        names = {
            f"{ours}{end}": f"{at}{theirs}.{'bias' if end else 'weight'}" for ours, theirs in GPT2_BLOCK.items() for end in ("", "_bias")
        }
        block = _found(names, tensors, "", set())
        block |= {name: block[name].T for name in GPT2_MATRICES}
        block |= zip(("query", "key", "value"), jnp.split(tensors[f"{at}attn.c_attn.weight"].T, 3))
        block |= zip(("query_bias", "key_bias", "value_bias"), jnp.split(tensors[f"{at}attn.c_attn.bias"], 3))
        blocks.append(block)
    top = _found({**{ours: prefix + theirs for ours, theirs in GPT2.items()}, "head": "lm_head.weight"}, tensors, "", {"head"})
    return config, {**_with_head(top), "blocks": blocks}


def _activation(name: str, path: Path) -> Any:
    if name not in ACTIVATIONS:
        raise UserError(f"{path}: activation {name!r} is not read here; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _found(names: dict[str, str], tensors: dict[str, np.ndarray], prefix: str, optional: set[str]) -> Parameters:
    return {
        ours: jnp.asarray(tensors[prefix + theirs]) for ours, theirs in names.items() if prefix + theirs in tensors or ours not in optional
    }


def _with_head(parameters: Parameters) -> Parameters:
    """The head is the embedding where they are tied."""
    return {"head": parameters["embedding"], **parameters}


# ---------------------------------------------------------------- writing


def save_folder(model: LanguageModel, folder: Path, *, tokenizer: dict[str, Any], card: str) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load without a network; it appears in one rename.

    Raises
    ------
    UserError
        If the folder exists and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder} exists already and is not empty; name a new folder")
    if model.config.normalised_sigmoids:
        raise UserError(
            f"{model.name} was trained one-versus-rest; no architecture of transformers normalises sigmoids, so it is not exported"
        )
    facts, tensors = _to_gpt2(model) if model.config.family == "gpt2" else _to_llama(model)
    end = model.codec.end
    facts |= {"bos_token_id": end, "eos_token_id": end, "torch_dtype": "float32", "tie_word_embeddings": False}
    end_text = next((entry["content"] for entry in tokenizer.get("added_tokens", []) if entry["id"] == end), None)
    tokenizer_facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
        **({"bos_token": end_text, "eos_token": end_text, "pad_token": end_text} if end_text else {}),
    }
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": False, "max_length": model.config.context}
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, scratch / "model.safetensors", {"format": "pt"})
        for name, value in {
            "config.json": facts,
            "generation_config.json": generation,
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": tokenizer_facts,
        }.items():
            (scratch / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (scratch / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _to_llama(model: LanguageModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config, ones = model.config, np.ones(model.config.d_model, np.float32)
    ours = config.family == "transformer"
    facts = {
        "architectures": ["Qwen3ForCausalLM" if ours else "LlamaForCausalLM"],
        "model_type": "qwen3" if ours else "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu" if ours else "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.epsilon,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": False,
        "vocab_size": config.vocab_size,
    }
    parameters = {"norm": ones, **model.parameters}
    tensors = {theirs: np.asarray(parameters[name]) for name, theirs in LLAMA.items()}
    for index, block in enumerate(model.parameters["blocks"]):
        block = {"attention_norm": ones, "mlp_norm": ones, **({"gate": block["up"]} if ours else {}), **block}
        tensors |= {f"model.layers.{index}.{theirs}": np.asarray(block[name]) for name, theirs in LLAMA_BLOCK.items() if name in block}
    return facts, tensors


def _to_gpt2(model: LanguageModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = model.config
    facts = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.epsilon,
        "vocab_size": config.vocab_size,
    }
    as_array: Callable[..., np.ndarray] = np.asarray
    tensors = {f"transformer.{theirs}": as_array(model.parameters[name]) for name, theirs in GPT2.items()}
    tensors["lm_head.weight"] = as_array(model.parameters["head"])
    for index, block in enumerate(model.parameters["blocks"]):
        at = f"transformer.h.{index}."
        for name, theirs in GPT2_BLOCK.items():
            tensors[f"{at}{theirs}.weight"] = as_array(block[name].T if name in GPT2_MATRICES else block[name])
            tensors[f"{at}{theirs}.bias"] = as_array(block[f"{name}_bias"])
        tensors[f"{at}attn.c_attn.weight"] = np.concatenate([as_array(block[name]).T for name in ("query", "key", "value")], 1)
        tensors[f"{at}attn.c_attn.bias"] = np.concatenate([as_array(block[f"{name}_bias"]) for name in ("query", "key", "value")])
    return facts, tensors
