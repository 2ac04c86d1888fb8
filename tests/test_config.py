import msgspec
import pytest

from scaling.cli.main import main
from scaling.config import Sweep, UserError, format_quantity, parse_quantity
from scaling.plan import flops_spent, group_trunks, resolve
from scaling.sweep_file import load_sweep

GOOD = 'name = "x"\ncorpus = "python-stdlib"\n[model]\nd_model = [16]\n[data]\ntokens = ["1M"]\n'

BAD = {
    "unknown key": (GOOD + "[training]\nsedes = 2\n", "unknown key `sedes` in training"),
    "unknown section": (GOOD + "[trainin]\nseeds = 2\n", "unknown key `trainin` in top level"),
    "wrong type": (GOOD.replace("[16]", '["wide"]'), "model.d_model[0]: Expected `int`, got `str`"),
    "boolean for a number": (GOOD.replace("[16]", "[true]"), "Expected `int`, got `bool`"),
    "fraction for a whole number": (GOOD + "[training]\nseeds = 1.5\n", "training.seeds"),
    "negative": (GOOD.replace("[16]", "[-16]"), "Expected `int` >= 1"),
    "missing key": (GOOD.replace('name = "x"\n', ""), "missing required key `name`"),
    "heads do not divide": (GOOD.replace("[16]", "[20]"), "d_model = 20 is not divisible by the head dimension 8"),
    "empty grid": (GOOD.replace("[16]", "[]"), "model.d_model is empty"),
    "twice the same": (GOOD.replace('["1M"]', '["1M", 1e6]'), "data.tokens names a value twice"),
    "not a quantity": (GOOD.replace('"1M"', '"1 potato"'), "'1 potato' is not a positive quantity"),
    "infinite quantity": (GOOD.replace('"1M"', "inf"), "not a positive quantity"),
    "too few tokens": (GOOD.replace('"1M"', '"512"'), "too few for a trunk and a cooldown"),
    "unknown corpus": (GOOD.replace("python-stdlib", "no-such-text"), "unknown corpus `no-such-text`; allowed: python-stdlib"),
    "unknown law": (GOOD + '[fit]\nlaws = ["newton"]\n', "newton"),
    "batch and context": (GOOD + "[training]\nbatch_tokens = 500\n", "not a multiple of model.sequence_length"),
    "hold-out that is fitted": (GOOD + '[holdout]\nd_model = [16]\ntokens = ["1M"]\n', "a hold-out is a trunk of its own"),
    "too few runs for a forecast": (
        GOOD + '[holdout]\nd_model = [32]\ntokens = ["1M"]\n',
        "needs 7 runs to forecast the hold-out, the grid has 1",
    ),
    "escaping name": (GOOD.replace('"x"', '"../x"'), "name"),
    "broken TOML": (GOOD + "[model\n", "not valid TOML"),
    "an option that no record can hold": (GOOD + "[training]\noptions = { a = nan }\n", "training.options: a = nan cannot be recorded"),
    "rate out of range": (GOOD + "[training]\nlearning_rate = nan\n", "training.learning_rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sweep_is_one_line_and_exit_2_and_leaves_nothing_behind(case, tmp_path, capsys):
    text, expected = BAD[case]
    path, results = tmp_path / "bad.toml", tmp_path / "results"
    path.write_text(text)
    assert main(["run", str(path), "--results", str(results)]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not results.exists()


def test_binary_and_missing_files_are_named(tmp_path, capsys):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00name")
    for path in (binary, tmp_path / "missing.toml"):
        assert main(["plan", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("20e9", 20e9), ("20B", 20e9), ("1.5M", 1.5e6), ("4k", 4e3), (512, 512.0), (".5M", 5e5)])
def test_quantities(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "-4k", "0", "nan", "inf", "4 kilo", "1e999", True, "1_000"])
def test_not_quantities(text):
    with pytest.raises(UserError):
        parse_quantity(text)


@pytest.mark.parametrize(("value", "text"), [(512, "512"), (999.9, "1k"), (4096, "4.1k"), (2_000_000, "2M"), (1.5e9, "1.5B")])
def test_format_quantity(value, text):
    assert format_quantity(value) == text


def _runs(text, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(text)
    return resolve(load_sweep(path), corpus_hash="0")


def test_ids_change_with_what_determines_the_numbers_and_with_nothing_else(tmp_path):
    base = _runs(GOOD, tmp_path)[0]
    assert base.run_id == "d16-D1M-s0-15172353-be9c47e526", "ids changed: results on users' disks would be trained again"
    assert _runs(GOOD.replace('"x"', '"y"'), tmp_path)[0].run_id == base.run_id
    longer = _runs(GOOD.replace('"1M"', '"2M"'), tmp_path)[0]
    assert longer.trunk_id == base.trunk_id and longer.run_id != base.run_id
    for change in ("learning_rate = 0.02", "warmup_steps = 51", "beta2 = 0.98"):
        other = _runs(GOOD + f"[training]\n{change}\n", tmp_path)[0]
        assert other.trunk_id != base.trunk_id and other.run_id != base.run_id


def test_shared_trunks_are_billed_once(tmp_path):
    runs = _runs(GOOD.replace('["1M"]', '["1M", "2M", "4M"]'), tmp_path)
    (trunk,) = group_trunks(runs)
    spent = flops_spent(trunk)
    assert sum(spent.values()) == trunk.flops
    steps = [run.steps for run in trunk.runs]
    shared = trunk.runs[-1].branch_step
    assert trunk.trained_steps == shared + sum(run.steps - run.branch_step for run in trunk.runs)
    assert trunk.trained_steps < sum(steps)


def test_every_shipped_sweep_resolves():
    from pathlib import Path

    paths = sorted((Path(__file__).parent.parent / "sweeps").glob("*.toml"))
    assert len(paths) >= 2
    for path in paths:
        sweep = load_sweep(path)
        assert isinstance(sweep, Sweep)
        assert resolve(sweep, corpus_hash="0")
        assert msgspec.json.decode(msgspec.json.encode(sweep), type=Sweep) == sweep


def test_a_mistake_with_long_names_is_cut_but_ends_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "long.toml"
    path.write_text(GOOD.replace('"python-stdlib"', f'["{"x" * 9000}", "{"y" * 9000}"]') + "[data.mixture]\ncode = 1.0\n")
    assert main(["plan", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 2100
