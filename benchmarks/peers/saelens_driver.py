"""SAELens from outside: its training step timed, its SAEs trained on rows, its runner timed.

    PYTHON saelens_driver.py step | train | run [options]

PYTHON is that of SAELens' environment (tests/parity/requirements-saelens.txt). Every step is taken
by its SAETrainer: forward, losses, backward, clipping, Adam, firing counts. What `train` writes is
what its own inference SAE gives, loaded from the files that it saves.
"""

import argparse
import math
import tempfile
import time
from itertools import accumulate
from typing import Any

import clock
import torch
from command_line import CommandLine
from datasets import Dataset
from exchange import Batches, write
from sae_lens import SAE, multi_sae_training_runner
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

ARCHITECTURES = ("standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
PENALTY = {"standard": "l1", "gated": "l1", "jumprelu": "l0"}  # the others take k
PACKAGES = ["sae-lens", "transformer-lens"]
LR = 3e-4  # the default of its runners
N_NORM_BATCHES = 100


def build(
    options: argparse.Namespace, architecture: str, d_in: int, **settings: Any
) -> TrainingSAE:
    """A SAE for training; what neither options nor settings give (None) stays at its default."""
    sae_class, config_class = get_sae_training_class(architecture)
    if architecture not in PENALTY:
        settings["k"] = options.k
    if architecture == "matryoshka_batchtopk":
        shares = accumulate(options.group_fractions)
        settings["matryoshka_widths"] = [round(share * options.d_sae) for share in shares]
    given = {key: value for key, value in settings.items() if value is not None}
    return sae_class(config_class(d_in=d_in, d_sae=options.d_sae, **given))


def step(options: argparse.Namespace) -> None:
    """Time the step of each architecture asked for."""
    for architecture in options.architecture or ARCHITECTURES:
        time_trainer(options, architecture)


def time_trainer(options: argparse.Namespace, architecture: str) -> None:
    """Time the step of its trainer."""
    torch.manual_seed(0)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(10**6 * options.rows, options.rows, lr=LR, lr_end=LR),
        sae=build(options, architecture, options.d_in),
        data_provider=iter(()),
    )
    n_dead = round(options.dead * options.d_sae)

    def one(x: Tensor) -> None:
        trainer.n_forward_passes_since_fired[:n_dead] = trainer.cfg.dead_feature_window + 1
        trainer.step(x)
        trainer.n_training_steps += 1

    clock.time_step(f"saelens {architecture}", options, one, PACKAGES)


def training_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `train` say in the names that the architecture's configuration has."""
    settings: dict[str, Any] = {}
    if penalty := PENALTY.get(options.architecture):
        settings[f"{penalty}_coefficient"] = options.coefficient
        settings[f"{penalty}_warm_up_steps"] = options.sparsity_warmup_steps
    if options.architecture == "jumprelu" and options.target_l0:
        settings["target_l0"] = options.target_l0
        settings["jumprelu_sparsity_loss_mode"] = "quadratic"
    if options.normalize:
        settings["normalize_activations"] = "expected_average_only_in"
    return settings


def train(options: argparse.Namespace) -> None:
    """Train on the rows of a file and write what the saved SAE makes of the evaluation rows."""
    batches = Batches(options.data, options.batch_rows, options.steps)
    torch.manual_seed(options.seed)
    d_in = batches.rows.shape[1]
    sae = build(options, options.architecture, d_in, **training_settings(options))
    config = SAETrainerConfig(
        total_training_samples=options.steps * options.batch_rows,
        train_batch_size_samples=options.batch_rows,
        lr=options.lr or LR,
        lr_end=options.lr or LR,
        lr_warm_up_steps=options.warmup_steps or 0,
        lr_decay_steps=options.decay_steps,
    )
    if options.beta2 is not None:
        config.adam_beta2 = options.beta2
    if options.dead_after:
        config.dead_feature_window = math.ceil(options.dead_after / options.batch_rows)
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(batches))
    if options.normalize:  # beforehand, so that the trainer's batches stay those of the file
        n_batches = min(N_NORM_BATCHES, options.steps)
        trainer.activation_scaler.estimate_scaling_factor(d_in, iter(batches), n_batches)
    start = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
    write(
        f"saelens {options.architecture}",
        options,
        saved.W_dec,
        saved.encode,
        saved.decode,
        seconds=seconds,
        packages=PACKAGES,
    )


class ClockedTrainer(MultiSAETrainer):
    """Its trainer of several SAEs, with the times at which steps begin and the last one ends."""

    stamps: list[float] = []  # noqa: RUF012 (of the class: the runner keeps the trainer to itself)

    def _maybe_log_sparsity(self, final: bool = False) -> None:
        self.stamps.append(time.perf_counter())
        super()._maybe_log_sparsity(final)


def random_gpt2() -> HookedTransformer:
    """A model of GPT-2 small's shape with random weights; no tokenizer, no hub."""
    config = HookedTransformerConfig(
        n_layers=12,
        d_model=768,
        n_ctx=1024,
        d_head=64,
        n_heads=12,
        d_mlp=3072,
        d_vocab=50257,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        seed=0,
    )
    return HookedTransformer(config)


def run(options: argparse.Namespace) -> None:
    """Time its runner of several SAEs on a language model, from tokens to Adam."""
    bare_gb = clock.resident("VmRSS")
    n_contexts = options.rows // options.context_size
    n_steps = clock.N_WARMUP + options.steps
    # Its buffer reads ahead of the first step: tokens for twice the steps are enough.
    tokens = torch.randint(50257, (2 * n_steps * n_contexts, options.context_size))
    sites = [f"blocks.{layer}.hook_resid_post" for layer in range(options.layers)]
    config_class = get_sae_training_class("topk")[1]
    config = multi_sae_training_runner.MultiSAETrainingRunnerConfig(
        saes={site: config_class(d_in=768, d_sae=options.d_sae, k=options.k) for site in sites},
        hook_names={site: site for site in sites},
        context_size=options.context_size,
        store_batch_size_prompts=n_contexts,
        n_batches_in_buffer=n_contexts,  # counted in contexts: the least that holds a batch
        training_tokens=n_steps * options.rows,
        train_batch_size_tokens=options.rows,
        prepend_bos=False,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    )
    multi_sae_training_runner.MultiSAETrainer = ClockedTrainer
    runner = multi_sae_training_runner.MultiSAETrainingRunner(
        config,
        override_dataset=Dataset.from_dict({"tokens": tokens.tolist()}),
        override_model=random_gpt2(),
    )
    runner.run()
    clock.report_run("saelens run", options, ClockedTrainer.stamps, bare_gb, PACKAGES)


def main() -> None:
    """Read the command and do it."""
    line = CommandLine(__doc__.split("\n")[0], ARCHITECTURES)
    line.add_penalties()
    line.add_run()
    line.train.add_argument("--beta2", type=float, help="Adam's; default: its own")
    options = line.parser.parse_args()
    {"step": step, "train": train, "run": run}[options.command](options)


if __name__ == "__main__":
    main()
