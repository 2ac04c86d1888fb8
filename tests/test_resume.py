"""Exact resume: the truth is the run that was not interrupted. A crash may come before or after any rename of a file."""

import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import resolve_all, start, trainer_for

from scaling import claim as claims
from scaling.checkpoint import decode_tree, encode_tree
from scaling.config import RunConfig
from scaling.plan import group_trunks
from scaling.record import read_result


class Crash(BaseException):
    """Not an Exception: nothing may catch it and carry on."""


def outcome(folder, run: RunConfig):
    """All of a run that does not depend on when, where and in how many attempts it was trained."""
    result = read_result(folder, run.run_id)
    assert result is not None
    volatile = {"timings", "finished_at", "attempt", "checksum", "files"}
    path = folder.run(run.run_id)
    weights = {name: value.tobytes() for name, value in load_file(path / "weights.safetensors").items()}
    return {key: value for key, value in result.items() if key not in volatile}, (path / "metrics.jsonl").read_bytes(), weights


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_at_any_write_loses_nothing(tmp_path, tiny_sweep, moment, monkeypatch):
    """Saved after every segment, crashed at the k-th rename for every k: the next attempt ends with the same bits."""
    tiny_sweep.write_text(tiny_sweep.read_text().replace('"8k", "16k", "24k", "40k"', '"12k", "24k"'))
    resolved = resolve_all(tiny_sweep)
    trunk = next(trunk for trunk in group_trunks(resolved.runs) if trunk.config.model.d_model == 8)
    rename, count = os.replace, 0

    def attempt(folder, crash_at):
        nonlocal count
        count = 0

        def counted(source, target):
            nonlocal count
            count += 1
            if count == crash_at and moment == "before":
                raise Crash
            rename(source, target)
            if count == crash_at:
                raise Crash

        trainer = replace(trainer_for(folder, resolved, trunk), checkpoint_seconds=1e-9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted)
            try:
                trainer.train()
            finally:
                patch.undo()
                claims.release(folder, trunk.trunk_id, trainer.claim)

    whole = start(tmp_path / "whole", resolved)
    attempt(whole, crash_at=None)
    writes, truth = count, [outcome(whole, run) for run in trunk.runs]
    assert writes >= 10
    for crash_at in range(1, writes + 1):
        broken = start(tmp_path / f"broken-{crash_at}", resolved)
        with pytest.raises(Crash):
            attempt(broken, crash_at)
        attempt(broken, crash_at=None)
        assert [outcome(broken, run) for run in trunk.runs] == truth, f"crash {moment} rename {crash_at}"
        left = sorted(path.name for path in broken.trunk(trunk.trunk_id).iterdir())
        assert left == sorted(path.name for path in whole.trunk(trunk.trunk_id).iterdir()), "pruned as if nothing had happened"
        assert not list(broken.root.rglob("*.damaged-*"))


def test_a_saved_state_with_any_bit_flipped_or_cut_anywhere_is_refused():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(4, 6)).astype(np.float32), "b": [np.arange(5, dtype=np.int32)]}
    metadata = {"trunk_id": "t", "step": "150", "points": '[{"step": 150, "train_loss": 2.25}]'}
    data = encode_tree(tree, metadata)
    tensors, read = decode_tree(data)
    np.testing.assert_array_equal(tensors["a"], tree["a"])
    assert read == metadata
    for at in range(len(data)):
        for flipped in (1 << int(rng.integers(8)), 0x20):  # 0x20: upper and lower case in names
            damaged = bytearray(data)
            damaged[at] ^= flipped
            with pytest.raises(ValueError):
                decode_tree(bytes(damaged))
        with pytest.raises(ValueError):
            decode_tree(data[:at])
