"""The memory estimate against what an H200 reported, micro-batches that fit, and the refusal."""

import msgspec
import pytest

from scaling.config import ModelConfig, UserError
from scaling.memory import USABLE, training_memory
from scaling.plan import resolve
from scaling.sweep_file import load_sweep

PEAKS = {(384, 6, 6, 64): 9.9, (512, 10, 8, 64): 17.2, (768, 14, 6, 64): 31.6, (1024, 24, 8, 32): 35.3}
"""(width, layers, heads, windows of 1,024) -> peak GiB that JAX reported on one H200 (docs/gpu.md)."""


@pytest.mark.parametrize("shape", PEAKS)
def test_estimate_against_the_peak_on_a_gpu(shape):
    d, layers, heads, windows = shape
    model = ModelConfig(d_model=d, n_layers=layers, n_heads=heads, d_ff=4 * d, vocab_size=8192, sequence_length=1024)
    estimate = training_memory(model, optimizer="muon", precision="bfloat16", windows=windows).total / 2**30
    assert 0.95 * PEAKS[shape] < estimate < 1.13 * PEAKS[shape]  # never short by more than the tenth that USABLE leaves
    assert USABLE < 0.95


def sized(path, memory):
    sweep = load_sweep(path)
    return msgspec.structs.replace(
        sweep,
        training=msgspec.structs.replace(sweep.training, batch_tokens=32 * 24, precision="bfloat16"),
        devices=msgspec.structs.replace(sweep.devices, memory=memory),
    )


def test_micro_batches_are_the_fewest_that_fit(tiny_sweep):
    def parts(memory):
        return {run.trunk.model.d_model: run.trunk.batch_parts for run in resolve(sized(tiny_sweep, memory), corpus_hash="x")}

    assert parts("1G") == {8: 1, 16: 1, 24: 1}
    model = resolve(sized(tiny_sweep, "1G"), corpus_hash="x")[-1].trunk.model
    for windows in (12, 4, 1):  # 24 windows in 2, 6 and 24 parts
        needed = training_memory(model, optimizer="muon", precision="bfloat16", windows=windows).total / USABLE
        assert parts(needed * 1.001)[24] == 24 // windows
    with pytest.raises(
        UserError, match=r"devices.memory = 100k: training d_model = 8 on a single window .* GB \(parameters .*; use a smaller"
    ):
        resolve(sized(tiny_sweep, "100k"), corpus_hash="x")
    assert (
        len(
            {
                run.run_id
                for memory in ("1G", needed)
                for run in resolve(sized(tiny_sweep, memory), corpus_hash="x")
                if run.trunk.model.d_model == 24
            }
        )
        == 2
    )


def test_parameter_shards_share_the_state():
    model = ModelConfig(d_model=1024, n_layers=24, n_heads=8, d_ff=4096, vocab_size=8192, sequence_length=1024)
    whole, shared = (training_memory(model, optimizer="adamw", precision="bfloat16", windows=1, parameter_shards=n) for n in (1, 4))
    assert shared.parameters == whole.parameters / 4 and shared.optimizer == whole.optimizer / 4
    assert shared.activations == whole.activations
