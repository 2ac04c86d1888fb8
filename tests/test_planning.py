"""Hours and money: hand arithmetic, the closed form of the frontier, tables of one's own, and optima as runs of a sweep."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from analysis.presets import PRESETS
from scaling.cli.main import main
from scaling.cli.planning import flops_for_share
from scaling.config import UserError
from scaling.hardware import Device, bill, money, read_device

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference" / "quickstart"


def test_hours_and_money_by_hand() -> None:
    device = Device(peak=1e12, mfu=0.5, price=2.0, source="a data sheet")
    assert device.hours(3.6e15) == 2.0 and device.flops(2.0) == 3.6e15
    assert bill(device, [1.8e15, 3.6e15], [1e6, 1e7]) == "3 device-hours, $6.00 at $2.00 an hour (50 % of the peak, assumed; a data sheet)"
    assert [money(v) for v in (0.00213, 12.3, 4100.0)] == ["$0.0021", "$12.30", "$4,100"]


def test_measured_shares_are_used_between_the_sizes_measured() -> None:
    device = Device(peak=1e12, mfu=0.5, price=0.0, source="", measured=[(1e6, 0.1), (1e8, 0.3)])
    assert device.share(1e7) == (pytest.approx(0.2), True)
    assert device.share(1e9) == device.share(None) == (0.5, False)


def test_every_entry_of_the_table_is_read_and_others_are_refused(tmp_path) -> None:
    for name in ("h100", "h200", "a100", "rtx4090", "cpu"):
        assert read_device(name).source
    own = tmp_path / "mine.toml"
    own.write_text('[node]\npeak = 1e15\nmfu = 0.3\nprice = 9\nsource = "mine"\n[wrong]\npeak = -1\nmfu = 0.3\nprice = 9\nsource = ""\n')
    assert read_device(f"{own}:node").price == 9
    for name, words in (("b300x", "allowed: h100"), (f"{own}:wrong", "peak"), (f"{tmp_path}/none.toml:a", "cannot be read")):
        with pytest.raises(UserError, match=words):
            read_device(name)


def test_halving_the_reducible_loss_is_the_closed_form() -> None:
    """On Chinchilla's frontier it falls as C^-(alpha beta / (alpha + beta))."""
    preset = PRESETS["besiroglu2024"]
    alpha, beta = preset.params["alpha"], preset.params["beta"]
    assert flops_for_share(preset, 1e21, 0.5) == pytest.approx(1e21 * 2 ** ((alpha + beta) / (alpha * beta)), rel=1e-6)


def test_optimal_takes_hours_and_gives_an_entry(capsys) -> None:
    assert main(["optimal", str(REFERENCE), "--hours", "1", "--hardware", "cpu", "--entry", "--bootstrap", "0"]) == 0
    out, err = capsys.readouterr()
    entry = tomllib.loads(out[out.index("# ") :])["run"][0]
    assert entry["d_model"] % 8 == 0 and entry["tokens"] > 1e6
    assert "1 h of cpu: 1.19e+14 FLOPs" in err and "$0.04" in err


def test_a_budget_is_given_once(capsys) -> None:
    for flags in ([], ["--flops", "1e20", "--hours", "2", "--hardware", "h100"], ["--hours", "2"], ["--flops", "1e20", "--reducible", "2"]):
        assert main(["optimal", "besiroglu2024", *flags]) == 2
    assert main(["optimal", "besiroglu2024", "--flops", "1e20", "--entry"]) == 2
    assert "is no sweep's folder" in capsys.readouterr().err
