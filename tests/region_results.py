"""Results of eval=stable_regions, made up: figures are drawn of these."""

from typing import Any

import torch

from sae_kit.result import Result

SITE = "blocks.1.hook_resid_pre"


def curves(
    number: int,
    slopes: tuple[float, ...],
    same_ending: tuple[bool, ...] | None = None,
    **about: Any,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A row of curves of these slopes, and its arrays; `about` says of what model, site, path."""
    values = torch.tensor(slopes, dtype=torch.float64)
    r = torch.linspace(0, 1, 5).expand(len(values), 5)
    row = {
        "kind": "curves",
        "number": number,
        "model": "demo",
        "run": "",
        "n_tokens": -1,
        "n_parameters": 1000,
        "site": SITE,
        "pairs": "sampled",
        "path": "line",
        "n_pairs": len(values),
        "max_slope": values.median().item(),
        "max_slope_low": values.min().item(),
        "max_slope_high": values.max().item(),
        "max_slope_q1": values.min().item(),
        "max_slope_q3": values.max().item(),
        "gate_flips": 3.0,
        **about,
    }
    arrays = {
        "r": r,
        "kl": 2 * r,
        "max_slope": values,
        "same_ending": torch.tensor(same_ending or (False,) * len(values)),
        "gate_flips": 10 * values,
        "gate_crossings": 20 * values,
        "begin_crossings": values,
    }
    return row, {f"curves/{number}/{name}": array for name, array in arrays.items()}


def result(*parts: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> Result:
    """Of rows and their arrays."""
    return Result(
        name="stable_regions",
        scalars={"max_slope_cap": 49},
        rows=tuple(row for row, _ in parts),
        arrays={name: array for _, arrays in parts for name, array in arrays.items()},
    )
