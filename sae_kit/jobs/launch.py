"""What surrounds a Hydra entry point: the run-folder resolver, and errors as a user wants them.

A user's mistake ends in a clear message and exit status 2, not in a traceback. What counts as a
mistake is a ValueError raised by this package or by Hydra, whatever else Hydra refuses, an OSError
(disk, permissions, network), and a training run that cannot go on; anything else is a bug and shown
whole.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sae_kit import dist
from sae_kit.config import nearest
from sae_kit.dist import PeerLost, world
from sae_kit.train.allocator import keep_freed_memory
from sae_kit.train.loop import TrainingError

_OURS = Path(__file__).parent.parent
_HYDRA = Path(hydra.__file__).parent


def launch(entry: Callable[[], None]) -> None:
    """Run a `@hydra.main` function; does not return if it fails."""
    # Hydra would print its own cut-down traceback and hide the exception from the code below.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    keep_freed_memory()
    try:
        with dist.joined():
            # All processes of a run must find the same folder; `now` differs from one to the other.
            start = time.localtime(dist.gather(time.time())[0])
            OmegaConf.register_new_resolver(
                "started", lambda form: time.strftime(form, start), replace=True
            )
            entry()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        here = world()
        who = f" (process {here.rank} of {here.size})" if here.rank else ""
        print(f"error{who}: {message}", file=sys.stderr)
        sys.exit(2)


def explain(error: BaseException) -> str | None:
    """What to tell the user whose mistake this is; None if it is a bug."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(error)
    raised_in = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError):
        within = any(p.is_relative_to(_OURS) and p != Path(__file__) for p in raised_in)
        # Outside this package, only Hydra writes: it makes the run folder before the job starts.
        return str(error) if within else _no_folder(error)
    if isinstance(error, TrainingError | PeerLost):
        return str(error)
    if isinstance(error, RuntimeError) and "allocate" in str(error):  # PyTorch's, of any device
        return (
            f"not enough memory ({str(error).splitlines()[0]}); lower sae.d_sae, "
            "trainer.batch_rows or activations.buffer_rows (of an evaluation, its sizes)"
        )
    if isinstance(error, ValueError) and raised_in:
        theirs = any(raised_in[-1].is_relative_to(place) for place in (_OURS, _HYDRA))
        return str(error) if theirs else None
    return None


def _run_folder(given: str | None, fresh: str) -> str:
    """The folder of the run to continue, or else a fresh one."""
    return fresh if given is None else given


def _explain_config(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return (
            f"{error.override}: cannot be read ({reason}); write lists as 'field=[a,b]', and put "
            "values with brackets, commas or spaces of their own in quotes: field='\"...\"'"
        )
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key is not None:
        # Hydra's own advice, to append the key with a "+", would only postpone the error.
        parent = [] if cause.parent_node is None else list(cause.parent_node)
        known = [str(key) for key in parent if key != "hydra"]
        deeper = _places_of(str(cause.key), cause.parent_node)
        close = deeper or nearest(str(cause.key), known)
        guess = f"did you mean {' or '.join(close)}? " if close else ""
        given = str(error).rpartition("+")[2]
        return (
            f"{cause.full_key}: there is no such setting ({given}); "
            f"{guess}(known: {', '.join(known) or 'none'})"
        )
    return str(error).partition("\nConfig search path:")[0]


def _places_of(key: str, node: Container | None) -> list[str]:
    """Where a key that is missing in `node` itself stands further down in it, as dotted paths."""
    if not isinstance(node, DictConfig):
        return []
    found: list[str] = []
    todo = [("", OmegaConf.to_container(node, resolve=False))]
    for where, values in todo:
        if isinstance(values, dict):
            names = {str(name): where + str(name) for name in values if name != "hydra"}
            found += [path for name, path in names.items() if name == key]
            todo += [(f"{path}.", values[name]) for name, path in names.items()]
    return found


def _no_folder(error: OSError) -> str:
    return (
        f"hydra.run.dir: cannot make the run folder {error.filename} ({error.strerror}); choose "
        "another with hydra.run.dir=FOLDER"
    )
