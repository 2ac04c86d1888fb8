"""Run inside .venv-hf (torch and transformers, no scaling): what real `transformers` makes of folders, written to answers.json."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def answer(folder: Path, question: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = torch.tensor(question["tokens"])
    with torch.no_grad():
        logits = model(tokens).logits.double().numpy()
    np.save(folder.with_suffix(".logits.npy"), logits)
    ids = tokenizer(question["prompt"], return_tensors="pt", add_special_tokens=False).input_ids
    new = {"max_new_tokens": question["new_tokens"], "do_sample": False}
    greedy = model.generate(ids, **new)[0, ids.shape[1] :]
    end = model.generation_config.eos_token_id
    beams = model.generate(ids, num_beams=4, length_penalty=0.0, early_stopping="never", **new)[0, ids.shape[1] :]
    return {
        "class": type(model).__name__,
        "prompt_ids": ids[0].tolist(),
        "text_ids": [tokenizer(text, add_special_tokens=False).input_ids for text in question["texts"]],
        "text_back": [tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) for text in question["texts"]],
        "greedy": greedy.tolist(),
        "greedy_text": tokenizer.decode(greedy, skip_special_tokens=True),
        "beam": beams.tolist(),
        "end": end,
    }


def warped(logits: list, settings: dict) -> list:
    chain = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if settings.get("top_k"):
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1.0) < 1:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    if settings.get("min_p", 0.0) > 0:
        chain.append(MinPLogitsWarper(settings["min_p"]))
    scores = chain(torch.zeros(len(logits), 1, dtype=torch.long), torch.tensor(logits))
    return torch.softmax(scores, -1).tolist()


def make(folder: Path, kind: str) -> None:
    """Save a small model of random weights with a tokenizer, as a user's folder."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(0)
    common = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    llama = {**common, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    models = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**llama, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
        "llama_bf16": lambda: LlamaForCausalLM(LlamaConfig(**llama)).to(torch.bfloat16),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**llama, head_dim=16)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**llama)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**llama, head_dim=16)),
    }
    model = models[kind]()
    for _name, parameter in model.named_parameters():  # biases and gains away from zeros and ones
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder.parent / "tokenizer.json"), eos_token="<|end|>")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    questions = json.loads((work / "questions.json").read_text())
    for kind in questions["make"]:
        make(work / kind, kind)
    answers = {name: answer(work / name, question) for name, question in questions["folders"].items()}
    answers["warped"] = [warped(questions["logits"], settings) for settings in questions["settings"]]
    (work / "answers.json").write_text(json.dumps(answers))
