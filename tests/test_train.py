"""The training loop: golden losses, resume, divergence. The truth of a resume is the run that was not interrupted."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from scaling import claim as claims
from scaling import train
from scaling.corpus import prepare
from scaling.plan import group_trunks, resolve
from scaling.record import Folder, Resolved, read_metrics, read_result, write_json
from scaling.sweep_file import load_sweep
from scaling.train import Trainer
from scaling.worker import work


def resolve_all(path):
    sweep = load_sweep(path)
    corpus = prepare(sweep.corpus)
    runs = resolve(sweep, corpus_hash=corpus.content_hash)
    return Resolved(sweep=sweep, corpus_hash=corpus.content_hash, corpus_facts=corpus.facts, runs=runs)


@pytest.fixture
def resolved(tiny_sweep):
    return resolve_all(tiny_sweep)


def start(root, resolved):
    root.mkdir(parents=True, exist_ok=True)
    write_json(Folder(root).resolved, resolved)
    return Folder(root)


def trainer_for(folder, resolved, trunk=None):
    trunk = trunk or group_trunks(resolved.runs)[0]
    claim = claims.take(folder, trunk.trunk_id)
    assert claim is not None
    return Trainer(folder, trunk, claim, prepare(resolved.sweep.corpus))


GOLDEN = {
    "recipe 2": ("", [2.732217, 2.277851, 2.239527, 2.176238, 2.106631, 2.034557, 2.007604]),
    "at the rate of recipe 1": (
        "learning_rate = 0.016\nlearning_rate_params_power = 0",
        [2.770022, 2.298742, 2.277589, 2.240714, 2.181875, 2.127202, 2.102756],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_losses(tmp_path, tiny_sweep, case):
    """If this fails and the change of numbers is meant, raise RECIPE_VERSION and renew results/reference (float32 rounding is allowed)."""
    settings, expected = GOLDEN[case]
    tiny_sweep.write_text(tiny_sweep.read_text().replace("[training]", f"[training]\n{settings}"))
    resolved = resolve_all(tiny_sweep)
    folder = start(tmp_path / "a", resolved)
    trainer = trainer_for(folder, resolved)
    trainer.train()
    losses = [point["train_loss"] for point in read_metrics(folder.run(trainer.trunk.runs[-1].run_id) / "metrics.jsonl")]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


class Stop(Exception):
    pass


def _files(folder, run):
    result = read_result(folder, run.run_id)
    volatile = {"timings", "finished_at", "attempt", "checksum", "files"}
    kept = {key: value for key, value in result.items() if key not in volatile}
    path = folder.run(run.run_id)
    return kept, (path / "metrics.jsonl").read_bytes(), load_file(path / "weights.safetensors")


@pytest.mark.parametrize("stop_after", [1, 3, 6, 8])
def test_interrupted_anywhere_equals_uninterrupted_bit_for_bit(tmp_path, resolved, stop_after, monkeypatch):
    whole, broken = start(tmp_path / "whole", resolved), start(tmp_path / "broken", resolved)
    trainer = trainer_for(whole, resolved)
    trainer.train()
    calls = 0
    original = train.text_of

    def text(*arguments):
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise Stop
        return original(*arguments)

    interrupted = replace(trainer_for(broken, resolved), checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(train, "text_of", text)
        with pytest.raises(Stop):
            interrupted.train()
    claims.release(broken, interrupted.trunk.trunk_id, interrupted.claim)
    trainer_for(broken, resolved).train()
    for run in trainer.trunk.runs:
        (result, metrics, weights), (result2, metrics2, weights2) = _files(whole, run), _files(broken, run)
        assert result == result2
        assert metrics == metrics2
        assert weights.keys() == weights2.keys()
        for name in weights:
            np.testing.assert_array_equal(weights[name], weights2[name])


def test_damaged_state_is_set_aside_and_made_again(tmp_path, resolved):
    folder = start(tmp_path / "a", resolved)
    first = trainer_for(folder, resolved)
    first.train()
    claims.release(folder, first.trunk.trunk_id, first.claim)
    last = first.trunk.runs[-1]
    before = _files(folder, last)
    shutil.rmtree(folder.run(last.run_id))
    (state,) = folder.trunk(first.trunk.trunk_id).glob("state-*.safetensors")
    data = bytearray(state.read_bytes())
    data[-100] ^= 1
    state.write_bytes(data)
    messages = []
    replace(trainer_for(folder, resolved), notify=messages.append).train()
    assert any("damaged state set aside" in message for message in messages)
    assert _files(folder, last)[:2] == before[:2]


def test_damaged_result_is_set_aside_and_made_again(tmp_path, resolved):
    folder = start(tmp_path / "a", resolved)
    first = trainer_for(folder, resolved)
    first.train()
    run = first.trunk.runs[0]
    path = folder.run(run.run_id) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_result(folder, run.run_id) is None
    assert [entry.name for entry in folder.runs.glob("*.damaged-*")] == [f"{run.run_id}.damaged-1"]


def test_divergence_is_recorded_with_its_step_and_the_rest_goes_on(tmp_path, resolved):
    hot = msgspec.structs.replace(
        resolved.sweep, training=msgspec.structs.replace(resolved.sweep.training, head_learning_rate=10.0, embedding_learning_rate=10.0)
    )
    runs = resolve(msgspec.structs.replace(hot, holdout=None), corpus_hash=resolved.corpus_hash)
    bad = [
        msgspec.structs.replace(
            run,
            trunk=msgspec.structs.replace(run.trunk, optimizer=msgspec.structs.replace(run.trunk.optimizer, head_learning_rate=1e38)),
        )
        if run.trunk.model.d_model == 16
        else run
        for run in runs
    ]
    mixed = msgspec.structs.replace(resolved, runs=bad)
    folder = start(tmp_path / "a", mixed)
    work(folder.root)
    for run in bad:
        result = read_result(folder, run.run_id)
        if run.trunk.model.d_model == 16:
            assert result["status"] == "diverged" and 1 <= result["step"] <= run.steps and "loss" not in result
        else:
            assert result["status"] == "done"


def test_held_out_loss_is_that_of_the_saved_weights(tmp_path, resolved):
    """Written weights, read back and scored by the readable model, give the recorded loss."""
    import jax.numpy as jnp

    from scaling import model

    folder = start(tmp_path / "a", resolved)
    trainer = trainer_for(folder, resolved)
    trainer.train()
    run = trainer.trunk.runs[-1]
    parameters: dict = {}
    for name, value in load_file(folder.run(run.run_id) / "weights.safetensors").items():
        node = parameters
        *parts, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(value)
    windows, _ = trainer.corpus.evaluation_windows(32, length=32)
    expected = model.cross_entropy(run.trunk.model, parameters, jnp.asarray(windows, jnp.int32)).mean()
    result = read_result(folder, run.run_id)
    assert result["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(float(expected) / np.log(2), rel=1e-5)
    config = json.loads((folder.run(run.run_id) / "config.json").read_text())
    assert config["trunk"]["model"]["d_model"] == run.trunk.model.d_model and config["forecast"] is None
