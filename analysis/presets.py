"""Published coefficients, each with its source and its conventions, for predictions, optima and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.laws import LAWS, Law

PF_DAY = 8.64e19  # FLOP


@dataclass(frozen=True)
class Preset:
    """Published coefficients of a law of the loss, with their source and their convention for N."""

    name: str
    law: Law
    params: Mapping[str, float]
    n_column: str
    source: str

    def predict(self, **variables: Any) -> np.ndarray:
        """Loss at the given N, D, C or U, nats per token (of that publication's tokenizer)."""
        return self.law.predict(self.params, **variables)


@dataclass(frozen=True)
class AllocationPreset:
    """A published compute-optimal allocation ``N* = params_at (C/flops)^a``, ``D* = tokens_at (C/flops)^b``; no law of the loss.

    Attributes
    ----------
    flops, params_at, tokens_at : float
        A published optimum (FLOPs, parameters, tokens) through which the two power laws pass.
    """

    name: str
    flops: float
    params_at: float
    tokens_at: float
    a: float
    b: float
    n_column: str
    source: str

    @property
    def formula(self) -> str:
        """The allocation in words."""
        return "N* = params_at (C/flops)^a, D* = tokens_at (C/flops)^b"

    @property
    def params(self) -> dict[str, float]:
        """Its numbers."""
        return {"flops": self.flops, "params_at": self.params_at, "tokens_at": self.tokens_at, "a": self.a, "b": self.b}


def _law(name: str, law: str, n_column: str, source: str, **params: float) -> Preset:
    return Preset(name, LAWS[law], MappingProxyType(params), n_column, source)


_GADRE = "Gadre et al. 2024, arXiv:2403.08540, loss on C4 of models trained on {} (tied exponents: 5 runs)"
_NANOCHAT = "nanochat 2026, development log: IsoFLOP optima of 1e18 FLOPs and exponents, N counted as {} (loss was bits per byte)"
PRESETS: Mapping[str, Preset | AllocationPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            _law("kaplan2020-n", "kaplan-n", "params_non_embedding", "Kaplan et al. 2020, eq. 1.1", N_c=8.8e13, alpha_N=0.076),
            _law("kaplan2020-d", "kaplan-d", "params_non_embedding", "Kaplan et al. 2020, eq. 1.2", D_c=5.4e13, alpha_D=0.095),
            _law(
                "kaplan2020-c", "kaplan-c", "params_non_embedding",
                "Kaplan et al. 2020, eq. 1.3 (3.1e8 PF-days of 8.64e19 FLOP)", C_c=3.1e8 * PF_DAY, alpha_C=0.050,
            ),
            _law(
                "kaplan2020", "kaplan-nd", "params_non_embedding", "Kaplan et al. 2020, table 2",
                N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103,
            ),
            _law(
                "hoffmann2022", "chinchilla", "params_total", "Hoffmann et al. 2022, arXiv:2203.15556, at the precision of its TeX source",
                E=float(np.exp(0.5267228)), A=float(np.exp(6.0073404)), B=float(np.exp(6.0179186)), alpha=0.33917084, beta=0.2849083,
            ),
            _law(
                "hoffmann2022-rounded", "chinchilla", "params_total", "Hoffmann et al. 2022, arXiv:2203.15556, as printed",
                E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28,
            ),
            _law(
                "besiroglu2024", "chinchilla", "params_total",
                "Besiroglu et al. 2024, arXiv:2404.10102 (least absolute deviations on 240 points read off Hoffmann's figure)",
                E=1.81686, A=482.006, B=2085.434, alpha=0.34781, beta=0.36585,
            ),
            _law(
                "muennighoff2023", "muennighoff", "params_total", "Muennighoff et al. 2023, arXiv:2305.16264",
                E=float(np.exp(0.6254804)), A=float(np.exp(6.255414)), B=float(np.exp(7.3049974)), alpha=0.3526596, beta=0.3526596,
                R_D=15.387756, R_N=5.309743,
            ),
            _law("gadre2024-c4", "chinchilla-tied", "params_total", _GADRE.format("C4"),
                 E=1.508261, A=113.693, B=189.516 * 6 ** (-0.242472 / 2), alpha=0.242472),
            _law("gadre2024-redpajama", "chinchilla-tied", "params_total", _GADRE.format("RedPajama"),
                 E=1.836648, A=166.211, B=366.687 * 6 ** (-0.272851 / 2), alpha=0.272851),
            _law("gadre2024-refinedweb", "chinchilla-tied", "params_total", _GADRE.format("RefinedWeb"),
                 E=1.734462, A=125.096, B=246.207 * 6 ** (-0.254395 / 2), alpha=0.254395),
            AllocationPreset(
                "porian2024", 1e18, 0.118926484 * 1e18**0.4968950782, 1.401425999 * 1e18**0.5031049218, 0.4968950782, 0.5031049218,
                "params", "Porian et al. 2024, arXiv:2406.19146, RefinedWeb with tuned rate and batch (N with the output head)",
            ),
            AllocationPreset(
                "llama3", 3.8e25, 402e9, 16.55e12, 0.47, 0.53, "params_total",
                "Llama 3, arXiv:2407.21783: 402B parameters and 16.55T tokens at 3.8e25 FLOPs, D* ~ C^0.53",
            ),
            AllocationPreset("nanochat-kaplan", 1e18, 110678115, 1241505403, 0.54, 0.49, "transformer and output head",
                             _NANOCHAT.format("transformer and output head")),
            AllocationPreset("nanochat-chinchilla", 1e18, 416320605, 1232157011, 0.37, 0.50, "params_total", _NANOCHAT.format("all")),
            AllocationPreset("nanochat-transformer", 1e18, 80259665, 1315639547, 0.70, 0.41, "params_non_embedding",
                             _NANOCHAT.format("transformer only")),
        )
    }
)  # fmt: skip


def get_preset(name: str) -> Preset | AllocationPreset:
    """Return the published preset of that name; UserError when there is none."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is neither a results folder, a CSV nor a preset; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
