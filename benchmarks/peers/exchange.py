"""The files in which the peers' drivers and the rest of the benchmarks meet.

Rows come from safetensors files holding `activations` [n d_in] float32. What a peer trained goes
into one safetensors file:

    W_dec  [d_sae d_in]    decoder directions, as the peer stores them (not made unit norm)
    codes  [n_eval d_sae]  float32 codes of the evaluation rows, by the peer's inference path
    recon  [n_eval d_in]   their reconstructions, in the units of the rows

with what made it (name, every setting, versions) as JSON under `origin` in the file's metadata.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from clock import emit, versions
from safetensors.torch import load_file, save_file
from torch import Tensor

CHUNK = 2048


class Batches:
    """The rows of a file in their order, `n_steps` batches of them, starting over at the end.

    Only whole batches are used: batch i is rows [j b, (j + 1) b) for j = i mod (n // b).
    """

    def __init__(self, path: Path, batch_rows: int, n_steps: int) -> None:
        self.rows = load_rows(path)
        self.batch_rows, self.n_steps = batch_rows, n_steps
        self._n_whole = len(self.rows) // batch_rows
        if not self._n_whole:
            raise SystemExit(
                f"batch-rows: value is {batch_rows}; give at most {len(self.rows)}, the rows "
                f"of {path}"
            )

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.n_steps):
            yield self.rows[self.positions(step)]  # a copy: some peers scale it in place

    def __len__(self) -> int:
        return self.n_steps

    def positions(self, step: int) -> Tensor:
        """Which rows of the file [batch_rows] make the batch of a step."""
        start = step % self._n_whole * self.batch_rows
        return torch.arange(start, start + self.batch_rows)


def load_rows(path: Path) -> Tensor:
    """`activations` [n d_in] of a safetensors file, as float32."""
    tensors = load_file(path)
    if "activations" not in tensors or tensors["activations"].ndim != 2:
        raise SystemExit(f"{path}: holds {sorted(tensors)}; give `activations` [n d_in]")
    return tensors["activations"].float()


@torch.no_grad()
def write(
    name: str,
    options: argparse.Namespace,
    W_dec: Tensor,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    *,
    seconds: float,
    packages: list[str],
) -> None:
    """Write the result file of a trained SAE and print a line about it."""
    rows = load_rows(options.eval_data)
    codes = torch.cat([encode(chunk) for chunk in rows.split(CHUNK)])
    recon = torch.cat([decode(chunk) for chunk in codes.split(CHUNK)])
    settings = {key: value for key, value in vars(options).items() if key != "command"}
    origin = {"name": name, "settings": settings, "versions": versions(packages)}
    tensors = {"W_dec": W_dec, "codes": codes, "recon": recon}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.detach().float().contiguous() for key, tensor in tensors.items()},
        options.out,
        metadata={"origin": json.dumps(origin, default=str)},
    )
    fires = codes > 0
    fvu = (rows - recon).square().sum() / (rows - rows.mean(0)).square().sum()
    line = {
        "name": name,
        "l0": round(fires.sum().item() / len(rows), 3),
        "fvu": round(fvu.item(), 5),
        "never_fired": round(1 - fires.any(0).float().mean().item(), 4),
        "training_seconds": round(seconds, 2),
        "out": str(options.out),
    }
    emit(line)
