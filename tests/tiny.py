"""The sweep of seconds that many tests train; `corpus` is to be filled in."""

TINY = """
name = "tiny"
corpus = "{corpus}"
[model]
d_model = [8, 16]
n_layers = 1
sequence_length = 32
[data]
tokens = ["8k", "16k", "24k", "40k"]
[training]
seeds = 2
data_order = "shared"
batch_tokens = 128
warmup_steps = 5
[evaluation]
windows = 32
[holdout]
d_model = [24]
tokens = ["40k"]
threshold = 0.5
[fit]
laws = ["chinchilla"]
bootstrap = 100
[records]
checkpoint_seconds = 0.2
"""
