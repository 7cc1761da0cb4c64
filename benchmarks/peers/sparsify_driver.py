"""sparsify from outside: its training step timed, its SAEs trained on rows, its trainer timed.

    PYTHON sparsify_driver.py step | train | run [options]

PYTHON is that of sparsify's environment (tests/parity/requirements-sparsify.txt). Its trainer works
inside a language model's pass, so `step` and `train` hand it a stand-in model: the token ids are
numbers of rows, and the one site gives those rows. All else (bias initialisation, FVU loss, AuxK,
gradient projection, optimiser, averaging, saving) is its own Trainer.fit.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import clock
import torch
from command_line import CommandLine
from exchange import Batches, write
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

PACKAGES = ["eai-sparsify", "transformers"]
SITE = "site"
LR_WARMUP = 1000  # its default, of Adam and Muon; cut to a tenth of a shorter run


class RowsModel(nn.Module):
    """As much of a language model as its trainer needs, serving rows [n d_in] by their number."""

    device = torch.device("cpu")
    dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}  # noqa: RUF012

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.site = nn.Identity()

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.site(self.rows[input_ids])


class Numbers:
    """A data set of `n` items of token ids; `fetch(i)` gives them, and the times are kept."""

    def __init__(self, n: int, fetch: Callable[[int], Tensor]) -> None:
        self.n, self.fetch = n, fetch
        self.stamps: list[float] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        self.stamps.append(time.perf_counter())
        return {"input_ids": self.fetch(item)}


class ClockedTrainer(Trainer):
    """Its trainer, which notes when the last step has ended instead of saving."""

    def save(self) -> None:
        self.dataset.stamps.append(time.perf_counter())


def config_of(options: argparse.Namespace, **settings: Any) -> TrainConfig:
    """Its configuration; what is not given stays at its default."""
    given = {key: value for key, value in settings.items() if value is not None}
    return TrainConfig(
        SparseCoderConfig(num_latents=options.d_sae, k=options.k),
        optimizer=options.optimizer,
        auxk_alpha=options.auxk_alpha,
        log_to_wandb=False,
        **given,
    )


def step(options: argparse.Namespace) -> None:
    """Time the step of its one architecture."""
    rows = clock.random_rows(options)
    n_dead = round(options.dead * options.d_sae)

    def fetch(item: int) -> Tensor:
        counts = trainer.num_tokens_since_fired[SITE]
        counts[:n_dead] = config.dead_feature_threshold + 1
        return torch.arange(options.rows)

    data = Numbers(clock.N_WARMUP + options.steps, fetch)
    config = config_of(options, batch_size=1, hookpoints=[SITE])
    trainer = ClockedTrainer(config, data, RowsModel(rows))
    trainer.fit()
    stamps = data.stamps[clock.N_WARMUP :]
    seconds = min(end - start for start, end in pairwise(stamps))
    clock.report_step(f"sparsify topk ({options.optimizer})", options, seconds, PACKAGES)


def train(options: argparse.Namespace) -> None:
    """Train on the rows of a file and write what the saved SAE makes of the evaluation rows."""
    batches = Batches(options.data, options.batch_rows, options.steps)
    data = Numbers(options.steps, batches.positions)
    warmup_steps = options.warmup_steps
    if warmup_steps is None:
        warmup_steps = min(LR_WARMUP, options.steps // 10)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(
            options,
            batch_size=1,
            hookpoints=[SITE],
            init_seeds=[options.seed],
            lr=options.lr,
            lr_warmup_steps=warmup_steps,
            dead_feature_threshold=options.dead_after,
            save_dir=folder,
            run_name="run",
        )
        start = time.perf_counter()
        Trainer(config, data, RowsModel(batches.rows)).fit()
        seconds = time.perf_counter() - start
        saved = SparseCoder.load_from_disk(Path(folder, "run", SITE))

    def encode(x: Tensor) -> Tensor:
        code = saved.encode(x)
        return torch.zeros(len(x), options.d_sae).scatter_(1, code.top_indices, code.top_acts)

    def decode(codes: Tensor) -> Tensor:
        top = codes.topk(saved.cfg.k, sorted=False)
        return saved.decode(top.values, top.indices)

    write(
        f"sparsify topk ({options.optimizer}, auxk {options.auxk_alpha:g})",
        options,
        saved.W_dec,
        encode,
        decode,
        seconds=seconds,
        packages=PACKAGES,
    )


def run(options: argparse.Namespace) -> None:
    """Time its trainer on a model of GPT-2 small's shape with random weights."""
    bare_gb = clock.resident("VmRSS")
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config()).eval()
    n_contexts = options.rows // options.context_size
    n_items = (clock.N_WARMUP + options.steps) * n_contexts
    data = Numbers(n_items, lambda item: torch.randint(50257, (options.context_size,)))
    sites = [f"h.{layer}" for layer in range(options.layers)]
    trainer = ClockedTrainer(
        config_of(options, batch_size=n_contexts, hookpoints=sites), data, model
    )
    trainer.fit()
    stamps = [*data.stamps[:-1:n_contexts], data.stamps[-1]]
    clock.report_run(f"sparsify run ({options.optimizer})", options, stamps, bare_gb, PACKAGES)


def main() -> None:
    """Read the command and do it."""
    line = CommandLine(__doc__.split("\n")[0], ("topk",))
    for one in (line.step, line.train, line.add_run()):
        one.add_argument("--optimizer", choices=("signum", "adam", "muon"), default="signum")
        one.add_argument("--auxk-alpha", type=float, default=0.0, help="1/32 = 0.03125 in papers")
    options = line.parser.parse_args()
    {"step": step, "train": train, "run": run}[options.command](options)


if __name__ == "__main__":
    main()
