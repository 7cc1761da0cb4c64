"""The commands and options that the drivers of the peers have in common."""

import argparse
from collections.abc import Sequence
from pathlib import Path

# Shares of the latents in each nested group: those of dictionary_learning's demo, for both peers
# that have Matryoshka SAEs, since neither of them has a default.
NESTED = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


def positive(text: str) -> int:
    """A whole number of at least one, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"value is {value}; give 1 or more")
    return value


class CommandLine:
    """`step` and `train`, with `run` for the peers that have it; a driver adds its own options."""

    def __init__(self, description: str, architectures: Sequence[str]) -> None:
        self.parser = argparse.ArgumentParser(description=description)
        self._commands = self.parser.add_subparsers(dest="command", required=True)
        self.step = self._add_step(architectures)
        self.train = self._add_train(architectures)

    def _add_step(self, architectures: Sequence[str]) -> argparse.ArgumentParser:
        step = self._commands.add_parser("step", help="time one step beside the encoder product")
        step.add_argument("--architecture", choices=architectures, action="append")
        step.add_argument("--d-in", type=positive, default=768)
        step.add_argument("--d-sae", type=positive, default=24576)
        step.add_argument("--rows", type=positive, default=2048)
        step.add_argument("--k", type=positive, default=32)
        step.add_argument("--steps", type=positive, default=3, help="timed, after one warm-up")
        step.add_argument("--dead", type=float, default=0.0, help="share of latents held dead")
        step.add_argument("--group-fractions", type=float, nargs="+", default=NESTED)
        return step

    def _add_train(self, architectures: Sequence[str]) -> argparse.ArgumentParser:
        train = self._commands.add_parser("train", help="train on rows of a file; write the result")
        train.add_argument("--architecture", choices=architectures, required=True)
        train.add_argument("--data", type=Path, required=True, help="`activations` to train on")
        train.add_argument("--eval-data", type=Path, required=True, help="`activations` to encode")
        train.add_argument("--out", type=Path, required=True)
        train.add_argument("--d-sae", type=positive, required=True)
        train.add_argument("--batch-rows", type=positive, required=True)
        train.add_argument("--steps", type=positive, required=True)
        train.add_argument("--seed", type=int, default=0)
        train.add_argument("--lr", type=float, help="default: the peer's own")
        train.add_argument("--k", type=positive, default=32, help="latents a row; TopK and its kin")
        train.add_argument("--dead-after", type=positive, help="rows unfired that make one dead")
        train.add_argument("--warmup-steps", type=int, help="of the learning rate")
        train.add_argument("--group-fractions", type=float, nargs="+", default=NESTED)
        return train

    def add_penalties(self) -> None:
        """For peers that have sparsity losses and schedules to set."""
        self.train.add_argument("--coefficient", type=float, help="of the sparsity loss")
        self.train.add_argument("--target-l0", type=float, help="of JumpReLU")
        self.train.add_argument("--sparsity-warmup-steps", type=int)
        self.train.add_argument("--decay-steps", type=int, default=0, help="lr to 0 at the end")
        self.train.add_argument("--normalize", action="store_true", help="scale rows as it does")

    def add_run(self) -> argparse.ArgumentParser:
        """For peers that train on a language model's activations from end to end."""
        run = self._commands.add_parser("run", help="time whole training on GPT-2 small's shape")
        run.add_argument("--layers", type=positive, default=12, help="sites: outputs of blocks")
        run.add_argument("--d-sae", type=positive, default=24576)
        run.add_argument("--rows", type=positive, default=2048, help="tokens a step")
        run.add_argument("--context-size", type=positive, default=256)
        run.add_argument("--k", type=positive, default=32)
        run.add_argument("--steps", type=positive, default=2, help="timed, after one warm-up")
        return run
