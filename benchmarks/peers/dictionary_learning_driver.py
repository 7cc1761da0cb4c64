"""dictionary_learning from outside: its training step timed, its SAEs trained on rows.

    PYTHON dictionary_learning_driver.py step | train [options]

PYTHON is that of its environment (tests/parity/requirements-dictionary-learning.txt). `step` is the
update() of its trainers, `train` its trainSAE. Its schedules are absolute numbers of steps, meant
for runs of some hundred thousand; in shorter runs each is cut to a tenth of the run (annealing of p
begins by the middle), without which it refuses the run, or never anneals, or never sets the
threshold that its BatchTopK SAEs are used with.
"""

import argparse
import time
from typing import Any

import clock
import torch
from command_line import CommandLine
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.trainers.trainer import SAETrainer
from dictionary_learning.training import trainSAE
from exchange import Batches, write
from torch import Tensor

TRAINERS = {
    "standard": StandardTrainer,
    "standard_april": StandardTrainerAprilUpdate,
    "gated": GatedSAETrainer,
    "topk": TopKTrainer,
    "batch_topk": BatchTopKTrainer,
    "jumprelu": JumpReluTrainer,
    "matryoshka": MatryoshkaBatchTopKTrainer,
    "p_anneal": PAnnealTrainer,
}
TOP_K = ("topk", "batch_topk", "matryoshka")
# What each calls the coefficient of its sparsity loss.
COEFFICIENT = {
    "standard": "l1_penalty",
    "standard_april": "l1_penalty",
    "gated": "l1_penalty",
    "jumprelu": "sparsity_penalty",
    "p_anneal": "initial_sparsity_penalty",
}
# Its defaults for p ("Lp", p to 0) end in a division by zero, 1/p; these are its demo's.
P_ANNEAL = {"sparsity_function": "Lp^p", "p_end": 0.2}
# Where its own defaults lie, in steps.
LR_WARMUP, SPARSITY_WARMUP, THRESHOLD_START, ANNEAL_START = 1000, 2000, 1000, 15000
PACKAGES = ["dictionary-learning"]


def settings_of(
    options: argparse.Namespace, architecture: str, d_in: int, n_steps: int
) -> dict[str, Any]:
    """Arguments of its trainer; what is None or not there stays at its default."""
    tenth = n_steps // 10
    settings: dict[str, Any] = {
        "steps": n_steps,
        "activation_dim": d_in,
        "dict_size": options.d_sae,
        "layer": 0,
        "lm_name": "rows",
        "device": "cpu",
        "warmup_steps": min(LR_WARMUP, tenth),
    }
    if architecture in TOP_K:
        settings |= {"k": options.k, "threshold_start_step": min(THRESHOLD_START, tenth)}
    else:
        settings["sparsity_warmup_steps"] = min(SPARSITY_WARMUP, tenth)
    if architecture == "matryoshka":
        settings["group_fractions"] = list(options.group_fractions)
    if architecture == "p_anneal":
        settings |= P_ANNEAL | {"anneal_start": min(ANNEAL_START, n_steps // 2)}
    return settings


def step(options: argparse.Namespace) -> None:
    """Time the step of each architecture asked for."""
    for architecture in options.architecture or TRAINERS:
        time_update(options, architecture)


def time_update(options: argparse.Namespace, architecture: str) -> None:
    """Time update() where its warm-ups are over and p is being annealed."""
    n_steps = 10 * ANNEAL_START
    torch.manual_seed(0)
    settings = settings_of(options, architecture, options.d_in, n_steps)
    trainer = TRAINERS[architecture](**settings)
    trainer.update(0, clock.random_rows(options))  # sets b_dec
    moment = iter(range(ANNEAL_START, n_steps))  # the first of these sets the next p
    n_dead = round(options.dead * options.d_sae)

    def one(x: Tensor) -> None:
        if n_dead:
            trainer.num_tokens_since_fired[:n_dead] = trainer.dead_feature_threshold
        trainer.update(next(moment), x)

    clock.time_step(f"dictionary_learning {architecture}", options, one, PACKAGES)


def training_settings(options: argparse.Namespace, d_in: int) -> dict[str, Any]:
    """Arguments of its trainer, with what the options of `train` say."""
    architecture = options.architecture
    settings = settings_of(options, architecture, d_in, options.steps)
    settings["seed"] = options.seed
    chosen = {
        "lr": options.lr,
        "warmup_steps": options.warmup_steps,
        "decay_start": options.steps - options.decay_steps if options.decay_steps else None,
    }
    if architecture not in TOP_K:
        chosen[COEFFICIENT[architecture]] = options.coefficient
        chosen["sparsity_warmup_steps"] = options.sparsity_warmup_steps
    if architecture == "jumprelu":
        chosen["target_l0"] = options.target_l0
    return settings | {key: value for key, value in chosen.items() if value is not None}


def train(options: argparse.Namespace) -> None:
    """Train on the rows of a file and write what the SAE makes of the evaluation rows."""
    batches = Batches(options.data, options.batch_rows, options.steps)
    trainers: list[SAETrainer] = []

    def build(**settings: Any) -> SAETrainer:
        torch.manual_seed(options.seed)  # its JumpReLU trainer keeps the seed but does not use it
        trainer = TRAINERS[options.architecture](**settings)
        if options.dead_after:
            trainer.dead_feature_threshold = options.dead_after
        trainers.append(trainer)
        return trainer

    config = training_settings(options, batches.rows.shape[1]) | {"trainer": build}
    start = time.perf_counter()
    trainSAE(
        batches,
        [config],
        steps=options.steps,
        normalize_activations=options.normalize,
        device="cpu",
    )
    seconds = time.perf_counter() - start
    sae = trainers[0].ae
    W_dec = sae.W_dec if hasattr(sae, "W_dec") else sae.decoder.weight.T
    write(
        f"dictionary_learning {options.architecture}",
        options,
        W_dec,
        sae.encode,
        sae.decode,
        seconds=seconds,
        packages=PACKAGES,
    )


def main() -> None:
    """Read the command and do it."""
    line = CommandLine(__doc__.split("\n")[0], tuple(TRAINERS))
    line.add_penalties()
    options = line.parser.parse_args()
    {"step": step, "train": train}[options.command](options)


if __name__ == "__main__":
    main()
