"""Open saved SAEs that were damaged or made to do harm, and see that nothing but a refusal follows.

    python tests/fuzz_formats.py --mutants 10000 --seed 0

Each mutant of a sample (mutations.py) is inspected and opened, and found from the folder above. It
may open, or be refused by a ValueError that names it. Anything else is a failure: another error, a
warning, a command that was run, more than `SECONDS` for a mutant, or more than `HEADROOM` bytes of
memory beyond those of samples that are whole (a limit of the operating system, so that a larger
allocation fails).

The table has a line for each format; exit status 1 says that there were failures, which are listed
with what makes them again: --only <number of the mutant>.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from format_samples import SAMPLES, Sample
from mutations import MARKER, Link, Tree, mutate

from sae_kit.formats import inspect_sae, load_sae, load_saes

HEADROOM = 64 << 20
SECONDS = 10

# What a reader says that ran out of memory, and took it for damage to the file.
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "Cannot allocate")


class TooSlowError(BaseException):
    """A mutant that takes too long; no reader may catch it."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Alarms interrupt what takes too long."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def tree_of(sample: Sample) -> tuple[Tree, str]:
    """The files of a sample, and the place to open among them."""
    with tempfile.TemporaryDirectory() as folder:
        place = sample.write(Path(folder))
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        tree = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return dict(sorted(tree.items())), place.relative_to(folder).as_posix()


def lay_out(tree: Tree, folder: Path) -> None:
    """Write a tree into a folder, which is emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, what in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, Link):
            path.symlink_to(what.to)
        elif what is None:
            path.mkdir()
        else:
            path.write_bytes(what)


def attempt(folder: Path, place: str) -> str:
    """Open what lies there in every way: "opened", "refused", or what went wrong."""
    outcomes = [outcome_of(open_, folder / place, folder) for open_ in (inspect_sae, load_sae)]
    outcomes.append(outcome_of(load_saes, folder, folder))
    if marks := [mark for mark in (folder / MARKER, Path(MARKER)) if mark.exists()]:
        for mark in marks:
            mark.unlink()
        return "a command was run"
    wrong = [one for one in outcomes if one not in ("opened", "refused")]
    if outcomes[0] == "refused" and outcomes[1] == "opened":
        wrong.append("opened, though inspecting refused it")
    return wrong[0] if wrong else outcomes[1]


def outcome_of(open_: Callable[[Path], object], source: Path, folder: Path) -> str:
    """Open a source one way; the folder is what a refusal has to name."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = open_(source)
        for sae in found.values() if isinstance(found, dict) else [found]:
            json.dumps(dict(sae.metadata))
            if isinstance(sae, torch.nn.Module):
                sae(torch.ones(2, sae.d_in, dtype=sae.W_dec.dtype))
    except ValueError as error:
        message = str(error)
        if type(error) is not ValueError or folder.as_posix() not in message:
            return f"{open_.__name__}: {type(error).__name__}, unnamed: {message[:200]}"
        if any(words in message for words in OUT_OF_MEMORY):
            return f"{open_.__name__}: out of memory: {message[:200]}"
        return "refused"
    except (Exception, TooSlowError) as error:
        return f"{open_.__name__}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "opened"


def limit_memory() -> None:
    """No more memory than now, and the headroom."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def campaign(n: int, seed: int, only: int | None) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by format, and the failures."""
    trees = {sample: tree_of(sample) for sample in SAMPLES}
    others = [tree for tree, _ in trees.values()]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failures = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root).resolve() / "sae"
        for sample, (tree, place) in trees.items():  # whole: what they allocate is allowed
            lay_out(tree, folder)
            if (outcome := attempt(folder, place)) != "opened":
                failures.append(f"{sample}, whole: {outcome}")
        before = peak()
        limit_memory()
        os.chdir(root)  # where commands would leave their mark
        for number in range(n) if only is None else [only]:
            sample = SAMPLES[number % len(SAMPLES)]
            tree, place = trees[sample]
            what, mutant = mutate(random.Random(f"{seed} {number}"), tree, others)
            lay_out(mutant, folder)
            outcome = attempt(folder, place)
            is_fine = outcome in ("opened", "refused")
            counts[sample.format][outcome if is_fine else "anything else"] += 1
            if not is_fine:
                failures.append(f"{number} ({sample}, {what}): {outcome}")
            if only is not None:
                print(f"{sample}, {what}: {outcome}")
        os.chdir("/")
    print(f"mutants took {(peak() - before) >> 20} MiB more than samples that are whole")
    return counts, failures


def peak() -> int:
    """Bytes of memory that were in use at one time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one mutant to try")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with watched():
        counts, failures = campaign(given.mutants, given.seed, given.only)
    columns = ("opened", "refused", "anything else")
    print(f"{'format':<20}{'mutants':>9}" + "".join(f"{column:>15}" for column in columns))
    total: Counter[str] = Counter()
    for name, count in counts.items():
        total += count
        print(f"{name:<20}{count.total():>9}" + "".join(f"{count[c]:>15}" for c in columns))
    print(f"{'all':<20}{total.total():>9}" + "".join(f"{total[c]:>15}" for c in columns))
    print("\n".join(failures[:50]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
