"""A model as a Hugging Face folder, exactly.

Our own transformer is exported as `Qwen3ForCausalLM` (Llama with a norm of queries and keys), which it equals exactly: gains of one for its
gainless norms, rows of the embedding normed ahead, and relu(x)^2 as relu(x) times x, so that `gate_proj` and `up_proj` are the same matrix
(stored twice).
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from scaling.config import UserError
from scaling.huggingface.names import GPT2, GPT2_BLOCK, GPT2_MATRICES, LLAMA, LLAMA_BLOCK
from scaling.language_model import LanguageModel


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
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": False}
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
