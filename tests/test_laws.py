"""Law forms and presets against hand arithmetic and the papers."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.errors import UserError
from analysis.laws import LAWS, PRESETS, get_law, get_preset


def test_forms_by_hand() -> None:
    assert float(get_law("power-d").predict({"E": 1, "B": 10, "beta": 1}, D=5)) == 3
    assert float(get_law("power-c").predict({"E": 0.5, "G": 8, "gamma": 1 / 3}, C=64)) == pytest.approx(2.5)
    both = get_law("chinchilla").predict({"E": 1, "A": 4, "B": 9, "alpha": 0.5, "beta": 0.5}, N=[4, 16], D=[9, 81])
    assert both == pytest.approx([6, 3])


def test_draws_and_points_broadcast() -> None:
    draws = {"E": np.ones((3, 1)), "A": np.ones((3, 1)), "alpha": np.ones((3, 1))}
    assert get_law("power-n").predict(draws, N=np.array([1.0, 2.0])).shape == (3, 2)


def test_published_coefficients() -> None:
    """Hoffmann et al. 2022, equation 10 (rounded), and the two losses that their abstract's models get under it."""
    hoffmann = PRESETS["hoffmann2022"].params
    assert [hoffmann[p] for p in ("E", "A", "B", "alpha", "beta")] == pytest.approx([1.69, 406.4, 410.7, 0.34, 0.28], rel=0.02)
    assert float(PRESETS["hoffmann2022"].predict(N=70e9, D=1.4e12)) < float(PRESETS["hoffmann2022"].predict(N=280e9, D=300e9))
    assert PRESETS["besiroglu2024"].params["E"] == pytest.approx(1.8169, abs=1e-4)


def test_registry_is_complete_and_named() -> None:
    for name, law in LAWS.items():
        assert law.name == name and law.source and law.subset
        assert law.parameters[0] == "E" and len(law.parameters) == 1 + 2 * len(law.variables)
        assert all(part in law.formula for part in (*law.parameters, *law.variables))
    for call in (get_law, get_preset):
        with pytest.raises(UserError, match=r"chinchilla|hoffmann2022"):
            call("nope")
    with pytest.raises(ValueError, match="D is missing"):
        get_law("chinchilla").predict(PRESETS["hoffmann2022"].params, N=1)
