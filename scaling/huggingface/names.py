"""Names of tensors and of activations in Hugging Face folders of the Llama and GPT-2 families, by ours (`scaling.decoder`)."""

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
