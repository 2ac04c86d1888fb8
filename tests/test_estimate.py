"""Estimates: hand arithmetic on made-up seconds; the stored calibration; one real measurement."""

import msgspec
import pytest

from scaling import calibration as calibrations
from scaling.calibration import Calibration, Shape, learn, measure, read_calibration, shape_key, step_flops, unmeasured, write_calibration
from scaling.estimate import PASS_SECONDS, estimate
from scaling.plan import group_trunks, resolve
from scaling.record import Folder
from scaling.sealed import write_sealed
from scaling.sweep_file import load_sweep
from scaling.timings import KINDS, Stopwatch, Timings, describe, worker_seconds

replace = msgspec.structs.replace


@pytest.fixture
def trunks(tiny_sweep):
    """Widths 16, 8 (two seeds each, branches of 8k to 40k tokens) and the hold-out, width 24."""
    return group_trunks(resolve(load_sweep(tiny_sweep), corpus_hash="none"))


def shape_of(config, **seconds):
    model, batch_tokens = config.model, config.data.batch_tokens
    rest = {"step": 0.01, "window": 0.0, "cold": 8.0, "warm": 1.0, **seconds}
    return Shape(model=model, batch_tokens=batch_tokens, flops=step_flops(model, batch_tokens), **rest)


def test_a_model_that_is_not_registered_here_is_no_hindrance(trunks):
    """Another sweep's own model was measured on this machine; this one is estimated as if it had not been."""
    calibration = known(trunks, step=0.02)
    foreign = replace(calibration.shapes[0], model=replace(calibration.shapes[0].model, kind="elsewhere"), step=5.0)
    both = calibration.with_shapes([foreign])
    assert len(both.shapes) == len(calibration.shapes) + 1
    assert both.predict(trunks[0].config) == calibration.predict(trunks[0].config)
    assert unmeasured(both, [trunk.config for trunk in trunks]) == unmeasured(calibration, [trunk.config for trunk in trunks]) == []


def known(trunks, **seconds):
    free = {"start_up": 0, "records": 0, "preparation": 0, "forecast": 0, "analysis": 0}
    shapes = {trunk.config.model: shape_of(trunk.config, **seconds) for trunk in trunks}
    return Calibration(shapes=tuple(shapes.values()), **free)


def test_one_worker_does_everything_in_turn(tmp_path, trunks):
    """Three shapes come from the cache, the hold-out's while the forecast is made."""
    calibration = replace(known(trunks), start_up=2.0, preparation=1.0, analysis=5.0, forecast=3.0, records=0.5)
    steps = sum(trunk.trained_steps for trunk in trunks)
    runs = sum(len(trunk.runs) for trunk in trunks)
    expected = 1.0 + 2.0 + 2 * 1.0 + steps * 0.01 + runs * 0.5 + max(1.0, 3.0) + 5.0 + 2 * PASS_SECONDS
    result = estimate(Folder(tmp_path), trunks, calibration, workers=1)
    assert result.measured and result.seconds == pytest.approx(expected)
    with_windows = estimate(Folder(tmp_path), trunks, replace(calibration, shapes=known(trunks, window=0.25).shapes), workers=1)
    assert with_windows.seconds == pytest.approx(expected + runs * 32 * 0.25)


def test_two_workers_share_trunks_and_wait_for_the_hold_out(tmp_path, trunks):
    wide, narrow, held = trunks[0].trained_steps, trunks[2].trained_steps, trunks[4].trained_steps
    # each worker takes a shape of its own and keeps it; both fetch the hold-out's program while they wait
    expected = 1.0 + 2 * max(wide, narrow) * 0.01 + max(1.0, 4.0) + held * 0.01 + 2 * PASS_SECONDS
    calibration = replace(known(trunks), forecast=4.0)
    assert estimate(Folder(tmp_path), trunks, calibration, workers=2).seconds == pytest.approx(expected)
    assert estimate(Folder(tmp_path), trunks, calibration, workers=50).seconds < expected


def test_shapes_never_seen_are_compiled_cold(tmp_path, trunks):
    wide = [trunk for trunk in trunks if trunk.config.model.d_model == 16][:1]
    calibration = known(trunks)
    warm = estimate(Folder(tmp_path), wide, calibration, workers=1).seconds
    between = replace(calibration, shapes=tuple(s for s in calibration.shapes if s.model.d_model != 16))
    cold = estimate(Folder(tmp_path), wide, between, workers=1)
    assert cold.measured and cold.seconds == pytest.approx(warm + 7.0)  # a cold compilation instead of a warm one


def test_only_what_is_left_counts(tmp_path, trunks):
    folder, calibration = Folder(tmp_path), known(trunks)
    trunk = trunks[0]
    for run in trunk.runs[:-1]:
        folder.run(run.run_id).mkdir(parents=True)
    last = trunk.runs[-1]
    from_start = estimate(folder, [trunk], calibration, workers=1).seconds
    assert from_start == pytest.approx(1.0 + last.steps * 0.01 + PASS_SECONDS)
    folder.trunk(trunk.trunk_id).mkdir(parents=True)
    (folder.trunk(trunk.trunk_id) / "state-100.safetensors").write_text("")
    assert estimate(folder, [trunk], calibration, workers=1).seconds == pytest.approx(from_start - 1.0)
    folder.run(last.run_id).mkdir()
    assert estimate(folder, [trunk], calibration, workers=1).seconds == 0


def test_seconds_between_and_beyond_the_shapes_that_were_measured(trunks):
    wide, narrow, held = trunks[0].config, trunks[2].config, trunks[4].config
    small, large = shape_of(narrow, step=0.001), shape_of(held, step=0.003)
    fraction = (shape_of(wide).flops - small.flops) / (large.flops - small.flops)
    calibration = Calibration(shapes=(small, large))
    assert calibration.predict(wide).step == pytest.approx(0.001 + fraction * 0.002)
    only_small = Calibration(shapes=(small,))
    assert only_small.predict(held).step == pytest.approx(0.001 * large.flops / small.flops)
    other = replace(wide, data=replace(wide.data, batch_tokens=256))
    assert Calibration().predict(other) == calibration.predict(other)  # another batch: typical rates


def test_the_ends_of_a_sweep_are_what_is_measured(trunks, tmp_path):
    configs = [trunk.config for trunk in trunks]
    assert sorted(config.model.d_model for config in unmeasured(Calibration(), configs)) == [8, 24]
    ends = Calibration(shapes=tuple(shape_of(config) for config in unmeasured(Calibration(), configs)))
    assert unmeasured(ends, configs) == []
    assert [config.model.d_model for config in unmeasured(Calibration(shapes=ends.shapes[:1]), configs)] in ([8], [24])
    assert not estimate(Folder(tmp_path), trunks, Calibration(), workers=1).measured


@pytest.mark.parametrize("damage", [b"", b"{", b'{"shapes": [], "start_up": "fast"}', b'{"speed": 1}', b'{"start_up": -1.0}', b"\xff\xfe"])
def test_a_damaged_calibration_counts_as_none(trunks, damage, monkeypatch, tmp_path):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))
    write_calibration(known(trunks), workers=2)
    assert read_calibration(2) == known(trunks) and read_calibration(3) == Calibration()
    path = calibrations.calibration_path(2)
    path.write_bytes(damage)
    assert read_calibration(2) == Calibration()
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == damage and not path.exists()
    write_sealed(path, damage)  # whole, but of another version
    assert read_calibration(2) == Calibration()


def test_another_machine_or_other_flags_have_a_calibration_of_their_own(monkeypatch):
    here = calibrations.calibration_path(2)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert calibrations.calibration_path(2) != here


def test_a_sweep_teaches_what_it_took(trunks):
    run = trunks[0].runs[0]
    first = Timings(
        seconds={"training": 3.0, "evaluation": 0.8, "compilation": 6.0, "start-up": 1.5, "records": 0.3}, steps=200, compiled=2
    )
    second = Timings(seconds={"training": 1.0, "evaluation": 0.8, "compilation": 0.001, "records": 0.1}, steps=200)
    other = Timings(seconds={"training": 1.0, "evaluation": 0.8, "compilation": 1.2, "start-up": 2.5, "records": 0.2}, steps=100)
    learnt = learn(known(trunks), [(run, first), (run, second), (run, other)], analysis=4.0)
    shape = learnt.predict(run.trunk)
    assert shape.step == pytest.approx(0.01) and shape.window == pytest.approx(2.4 / 96)
    assert (shape.cold, shape.warm) == (6.0, 1.2)
    assert (learnt.start_up, learnt.analysis) == (2.0, 4.0) and learnt.records == pytest.approx(0.2)
    again = learn(learnt, [(run, second)])
    shape = again.predict(run.trunk)
    assert shape.step == pytest.approx(0.005) and (shape.cold, shape.warm) == (6.0, 1.2)


def test_measuring_runs_the_real_program(trunks):
    config = trunks[2].config
    result = measure(Calibration(), [config], workers=1, cpus=[0])
    (shape,) = result.shapes
    assert shape.key == shape_key(config) and 0 < shape.step < 1 and 0 < shape.window < 1 and result.start_up > 0
    assert (shape.cold is None) != (shape.warm is None)


def test_a_measurement_that_cannot_start_says_why(trunks, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_device")
    with pytest.raises(calibrations.MeasuringFailed, match="no_such_device"):
        measure(Calibration(), [trunks[2].config], workers=1, cpus=[0])


# ---------------------------------------------------------------- where time goes


def test_a_stopwatch_bills_every_second_once():
    watch = Stopwatch()
    with watch.during("training"):
        with watch.during("evaluation"):
            pass
        inner = watch.kind
    lap = watch.lap()
    assert inner == "training" and watch.kind == "start-up" and set(lap.seconds) == {"start-up", "training", "evaluation"}
    assert set(watch.lap().seconds) == {"start-up"}


def test_what_no_run_accounts_for_was_waiting():
    laps = [Timings(seconds={"training": 8.0, "evaluation": 1.0}), Timings(seconds={"training": 4.0, "start-up": 1.0})]
    seconds = worker_seconds(laps, workers=2, wall_seconds=10.0)
    assert sum(seconds.values()) == pytest.approx(20.0) and seconds["waiting"] == pytest.approx(6.0) and set(seconds) == set(KINDS)
    assert describe(seconds) == "training 60 %, evaluation 5 %, start-up and compilation 5 %, records 0 %, waiting 30 %"
