"""The recipe: shapes, rates and schedules against hand arithmetic; the coordinate check finds a rate that does not transfer."""

import math

import msgspec
import numpy as np
import pytest

from scaling.config import ModelGrid, Training, UserError
from scaling.coordinates import coordinate_check, slopes
from scaling.corpus import prepare
from scaling.optimizer import rate_multiplier
from scaling.plan import group_trunks, resolve
from scaling.recipe import branch_step_of, matrix_rate, optimizer_of, small_recipe
from scaling.sweep_file import load_sweep

OFF = {"batch_tokens": 512, "warmup_steps": 10, "decay_power": 0.0, "decay_from_tokens": 1.0, "cooldown_start": 1e9, "cooldown_end": 2e9}


@pytest.mark.parametrize(
    ("width", "layers", "heads"),
    [(8, 1, 1), (16, 2, 2), (24, 3, 3), (32, 4, 4), (40, 5, 5), (48, 6, 3), (64, 8, 4), (96, 12, 3), (128, 16, 4)],
)
def test_shapes_of_the_recipe(width, layers, heads):
    model = small_recipe(width, grid=ModelGrid(d_model=[width]), vocab_size=256)
    assert (model.n_layers, model.n_heads, model.d_ff) == (layers, heads, 4 * width)
    shallow = small_recipe(width, grid=ModelGrid(d_model=[width], n_layers=3), vocab_size=256)
    assert shallow.n_layers == 3


def test_rate_of_the_matrices():
    training = Training(learning_rate=0.02, learning_rate_params="10k", learning_rate_params_power=0.5, learning_rate_tokens_power=0.25)
    assert matrix_rate(training, params=40_000, tokens=16e6) == pytest.approx(0.02 / 2 / 2)
    plain = Training()
    assert matrix_rate(plain, params=25_000, tokens=1e6) == pytest.approx(0.025)
    assert matrix_rate(plain, params=400_000, tokens=9e9) == pytest.approx(0.025 * 16**-0.29)
    rates = optimizer_of(plain, d_model=64)
    assert (rates.embedding_learning_rate, rates.head_learning_rate) == (0.05, 0.015 / 2)


@pytest.mark.parametrize(("shape", "half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_whole_run_schedules(shape, half):
    """Flat after the warm-up at 1; at the middle of what is left 1 - .9 / 2; .1 just past the last step."""
    whole = {**OFF, "cosine": float(shape == "cosine"), "linear": float(shape == "linear"), "total_steps": 109.0, "final_rate": 0.1}
    assert float(rate_multiplier(4, **whole)) == pytest.approx(0.5)
    assert float(rate_multiplier(9, **whole)) == pytest.approx(1.0)
    assert float(rate_multiplier(59, **whole)) == pytest.approx(half)
    assert float(rate_multiplier(109, **whole)) == pytest.approx(0.1 if shape != "constant" else 1.0)
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2 if shape == "cosine" else 0.775 if shape == "linear" else 1.0
    assert float(rate_multiplier(34, **whole)) == pytest.approx(quarter, abs=1e-6)


def test_independent_runs_share_nothing_and_trunks_share_all(tiny_sweep):
    sweep = load_sweep(tiny_sweep)
    shared = group_trunks(resolve(sweep, corpus_hash="0"))
    assert [len(trunk.runs) for trunk in shared if trunk.role == "fit"] == [4] * 4
    for shape in ("wsd", "cosine", "linear", "constant"):
        training = msgspec.structs.replace(sweep.training, schedule=shape, data_order="own")
        runs = resolve(msgspec.structs.replace(sweep, training=training), corpus_hash="0")
        trunks = group_trunks(runs)
        assert all(len(trunk.runs) == 1 for trunk in trunks)
        assert len({run.trunk.data.seed_data for run in runs}) == len(runs)
        cooled = {run.branch_step < run.steps for run in runs}
        assert cooled == {shape == "wsd"}
        assert branch_step_of(training, steps=100) == (80 if shape == "wsd" else 100)


def test_every_trunk_has_a_data_order_of_its_own_unless_shared(tiny_sweep):
    sweep = load_sweep(tiny_sweep)
    orders = {}
    for order in ("own", "shared"):
        training = msgspec.structs.replace(sweep.training, data_order=order)
        trunks = group_trunks(resolve(msgspec.structs.replace(sweep, training=training), corpus_hash="0"))
        orders[order] = len({trunk.config.data.seed_data for trunk in trunks}), len(trunks)
    assert orders == {"own": (5, 5), "shared": (2, 5)}


def test_seeds_by_width(tiny_sweep):
    sweep = load_sweep(tiny_sweep)
    by_width = msgspec.structs.replace(sweep, training=msgspec.structs.replace(sweep.training, seeds=[3, 1]))
    trunks = [trunk for trunk in group_trunks(resolve(by_width, corpus_hash="0")) if trunk.role == "fit"]
    assert sorted(trunk.config.model.d_model for trunk in trunks) == [8, 8, 8, 16]
    tiny_sweep.write_text(tiny_sweep.read_text().replace("seeds = 2", "seeds = [3, 1, 1]"))
    with pytest.raises(UserError, match="lists 3 numbers for 2 widths"):
        load_sweep(tiny_sweep)


def test_the_tuning_text_is_apart(text_folder):
    corpus = prepare(str(text_folder))
    texts = [set(split.tobytes().split(b"\0")) for split in (corpus.train, corpus.heldout, corpus.tune)]
    assert all(texts) and not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    tune, _ = corpus.evaluation_windows(4, length=32, split="tune")
    held, _ = corpus.evaluation_windows(4, length=32)
    assert tune.shape == held.shape == (4, 33) and not np.array_equal(tune, held)


def test_the_coordinate_check_finds_a_rate_that_does_not_transfer(tiny_sweep):
    """Muon's updates at one rate, and Adam's at a rate ~ 1 / width, move every width alike; Adam's at one rate move wide models more.

    Depth is held here, and Muon's fall with N, which stands for the depth, is off.
    """
    sweep = load_sweep(tiny_sweep)
    model = msgspec.structs.replace(sweep.model, d_model=[16, 32, 64, 128])
    corpus = prepare(sweep.corpus)

    def slope(part, **settings):
        training = msgspec.structs.replace(sweep.training, batch_tokens=512, **settings)
        checked = msgspec.structs.replace(sweep, model=model, training=training)
        return slopes(coordinate_check(checked, corpus, steps=5, seeds=2))[part]

    for settings in ({"learning_rate_params_power": 0.0}, {"optimizer": "adamw", "learning_rate_params_power": 0.5}):
        assert abs(slope("residual stream", **settings)) < 0.25
    assert slope("residual stream", optimizer="adamw", learning_rate=0.003, learning_rate_params_power=0.0) > 0.6
