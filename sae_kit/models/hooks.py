"""Sites: the named points of a model where activations are read or edited, or a run begins or ends.

The names are TransformerLens' own ("blocks.3.hook_resid_pre"), since every public SAE names its
site so. A model is anything that implements `Hookable`; no hook state survives a call, so nothing
has to be removed afterwards and two runs never see each other's edits.
"""

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_kit.config import nearest

Site = str
"""The name of a site, such as "blocks.3.hook_resid_pre"."""

Edit = Callable[[Tensor], Tensor]
"""Maps the activation at a site to what takes its place, of the same shape.

It must not write into its argument, which captures and weights may share.
"""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the positions before the ones being run, per block.

    `layers[i]` is a pair (keys, values), each `[batch n_pos n_head d_head]`. A prefix made by a run
    that started at block 6 holds blocks 6 and up only.
    """

    layers: Mapping[int, tuple[Tensor, Tensor]]
    is_forked: bool = False
    """See `forked`."""

    @property
    def n_pos(self) -> int:
        """How many positions are kept."""
        return next((k.shape[1] for k, _ in self.layers.values()), 0)

    @property
    def n_rows(self) -> int:
        """How many contexts (batch rows) it holds."""
        return next((k.shape[0] for k, _ in self.layers.values()), 0)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return next((k.device for k, _ in self.layers.values()), torch.device("cpu"))

    def first(self, n_pos: int) -> "Prefix":
        """The prefix cut down to its first `n_pos` positions (a view)."""
        return self._map(lambda t: t[:, :n_pos])

    def rows(self, index: Tensor) -> "Prefix":
        """The prefix with its batch rows chosen (and repeated) by `index`, an integer tensor."""
        return self._map(lambda t: t.index_select(0, index))

    def forked(self) -> "Prefix":
        """This prefix, behind which the positions of a run are alternatives for the next one.

        Each of them sees the prefix and itself, none sees another. A thousand versions of a
        prompt's last position then share its keys and values, which `rows` would copy for each.
        They are copied once here, into the order in which attention reads them.
        """

        def by_head(t: Tensor) -> Tensor:
            return t.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)

        return replace(self._map(by_head), is_forked=True)

    def since(self, layer: int) -> "Prefix":
        """The prefix of blocks `layer` and up only."""
        return replace(self, layers={i: pair for i, pair in self.layers.items() if i >= layer})

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Prefix":
        return replace(self, layers={i: (f(k), f(v)) for i, (k, v) in self.layers.items()})


@dataclass(frozen=True)
class Run:
    """What one run of a model produced."""

    logits: Tensor | None
    """`[batch pos vocab]`, or None where the run stopped earlier."""
    acts: Mapping[Site, Tensor]
    """The captured activations, by site, after any edit."""
    prefix: Prefix | None
    """Keys and values of all positions so far, where `keep_prefix` asked for them."""


DTYPES = ("float32", "bfloat16", "float16", "float64")
"""The words for a model's type of number."""


@runtime_checkable
class Hookable(Protocol):
    """A model that can be read, edited, entered and left at named sites."""

    @property
    def n_ctx(self) -> int:
        """The longest context, in positions."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...

    def sites(self) -> Mapping[Site, tuple[str, ...]]:
        """Every site with its axis names, in the order in which a run reaches them."""
        ...

    def width(self, site: Site) -> int:
        """The number of values per position at `site` (heads and their channels multiplied out)."""
        ...

    def run(
        self,
        tokens: Tensor | None = None,
        *,
        capture: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        start: tuple[Site, Tensor] | None = None,
        stop: Site | None = None,
        prefix: Prefix | None = None,
        keep_prefix: bool = False,
    ) -> Run:
        """Run the model on `tokens`, or from an activation; see `sae_kit.models.gpt2.GPT2.run`."""
        ...


def check_sites(sites: Iterable[Site], known: Collection[Site], what: str) -> None:
    """Raise a ValueError naming the first of `sites` that the model lacks, and its nearest."""
    if isinstance(sites, str):
        raise ValueError(f"{what}: {sites!r} is one name; give a list of them")
    for site in sites:
        if site not in known:
            close = ", ".join(nearest(site, known)) or ", ".join(list(known)[:3])
            raise ValueError(f"{what}: the model has no site {site!r}; nearest: {close}")


def check_tokens(tokens: Tensor, n_vocab: int) -> None:
    """Raise a ValueError unless these are token ids of the model, [batch pos]."""
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens: {tokens.dtype} of shape {tuple(tokens.shape)}; give integers [batch pos]"
        )
    if tokens.numel() == 0:
        return
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= n_vocab:  # a negative one would be counted from the end, silently
        raise ValueError(f"tokens: ids from {low} to {high}, but the model has 0 to {n_vocab - 1}")


def match_sites(
    patterns: str | Iterable[str], known: Collection[Site], *, what: str = "sites"
) -> list[Site]:
    """The sites that match any of the patterns, in the model's order.

    A pattern is a site's name, with `*` for any run of characters ("blocks.*.hook_resid_pre").

    Args:
        patterns: one or several.
        known: every site of the model.
        what: the config field that the patterns are from, for messages.

    Raises:
        ValueError: a pattern matches nothing; the message names the nearest sites.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not any(patterns):
        raise ValueError(
            f"{what}: the list is empty; give at least one, such as 'blocks.*.hook_resid_pre'"
        )
    found: set[Site] = set()
    for pattern in patterns:
        hits = fnmatch.filter(known, pattern)
        if not hits:
            # "blocks.99.hook_resid_pre" should find its like: compare with the number erased too.
            erased = {re.sub(r"\d+", "*", site) for site in known}
            close = nearest(pattern, known) or nearest(pattern, erased) or list(known)[:3]
            raise ValueError(
                f"{what}: {pattern!r} matches no site of the model; nearest: {', '.join(close)}"
            )
        found.update(hits)
    return [site for site in known if site in found]


def pair_sites(
    reads: str | Iterable[str], writes: str | Iterable[str], known: Collection[Site]
) -> dict[Site, Site]:
    """For transcoders: which site each one writes, by the site it reads.

    Both patterns are matched as by `match_sites`; the first site read goes with the first one
    written, and so on. A site is written after it is read.

    Raises:
        ValueError: a pattern matches nothing, or the sites do not pair so.
    """
    sources, targets = match_sites(reads, known), match_sites(writes, known, what="writes")
    if len(sources) != len(targets):
        raise ValueError(
            f"writes: {len(targets)} sites match, but {len(sources)} are read; give as many: "
            "sites=blocks.*.ln2.hook_normalized writes=blocks.*.hook_mlp_out"
        )
    place = {site: i for i, site in enumerate(known)}
    for source, target in zip(sources, targets, strict=True):
        if place[target] <= place[source]:
            raise ValueError(
                f"writes: {target} does not come after {source}, with which it is paired; give "
                "later sites, or writes=null for autoencoders"
            )
    return dict(zip(sources, targets, strict=True))


class Stopped(Exception):
    """Raised inside a run when it has reached its stop site; never leaves `run`."""


class Tape:
    """Applies the edits of one run, records its captures, and ends it at its stop site."""

    def __init__(self, capture: Collection[Site], edit: Mapping[Site, Edit], stop: Site | None):
        self._capture = frozenset(capture)
        self._edit = edit
        self._stop = stop
        self.acts: dict[Site, Tensor] = {}

    def wants(self, site: Site) -> bool:
        """Whether `site` has to be computed as a tensor of its own in this run."""
        return site in self._capture or site in self._edit or site == self._stop

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        if site in self._edit:
            edited = self._edit[site](x)
            if not isinstance(edited, Tensor):
                raise ValueError(f"edit of {site!r}: returned {edited!r}, not an activation")
            if edited.shape != x.shape:
                raise ValueError(
                    f"edit of {site!r}: returned shape {tuple(edited.shape)}, "
                    f"expected {tuple(x.shape)}"
                )
            x = edited
        if site in self._capture:
            self.acts[site] = x
        if site == self._stop:
            raise Stopped
        return x


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a config's word ("float32", "bfloat16", "float16", "float64")."""
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is unknown; use {', '.join(DTYPES)}")
    return getattr(torch, name)


def torch_device(name: str) -> torch.device:
    """The torch device of a config's word (cpu, cuda, cuda:1, mps); auto prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {name!r} is not available here ({error}); use auto or cpu"
        ) from error
    return device
