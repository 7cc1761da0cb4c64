"""Connor Kissane's attention SAEs: a .pt file of four tensors, and a JSON file of the same name.

    <name>.pt         W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_in], b_dec [d_in]
    <name>_cfg.json   act_size = d_in, dict_size = d_sae, act_name = the site

    code  = relu((x - b_dec) @ W_enc + b_enc)
    recon = code @ W_dec + b_dec

Source: ckkissane/attn-saes-gpt2-small-all-layers (gpt2-small-hook-z-kk in SAELens), with
2406.17759. They read all heads of a layer at once, in their order: attn.hook_z, flattened. How the
model was processed is not known; what hook_z holds depends on it by a constant for each head.

Limits: what the config does not say is as SAELens has it for this set: GPT-2 small, contexts of 128
tokens that begin with BOS.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, final

from torch import Tensor

from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.configs import config_of, whole_of
from sae_kit.formats.pickles import keys_of, peek_pt, read_pt
from sae_kit.formats.places import Place, refuse
from sae_kit.formats.tensors import check_header, header_of

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
DEFAULTS = {"model_name": "gpt2-small", "context_size": 128, "prepend_bos": True}

_SUFFIX = "_cfg.json"
_LAYER = re.compile(r"_L(\d+)_Hcat_z_")


@final
class KissaneFormat(Format, name="kissane"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Torch files that have a config of their name, or are all there is."""
        return sorted(
            name
            for name in names
            if name.endswith(".pt")
            and (name.removesuffix(".pt") + _SUFFIX in names or len(names) == 1)
        )

    def recognises(self, place: Place) -> bool:
        """By its config, and the names of its tensors."""
        name = place.names()[0]
        return place.beside(_config_name(name)) is not None and keys_of(place, name) == set(NAMES)

    def site(self, place: Place) -> str | None:
        """By the name of the file, which has the layer, or by the config."""
        if found := _LAYER.search(place.where):
            return f"blocks.{found[1]}.attn.hook_z"
        contents, _ = _config(place)
        site = contents.get("act_name")
        return site if isinstance(site, str) else None

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        contents, where = _config(place)
        d_in, d_sae = whole_of(contents, "act_size", where), whole_of(contents, "dict_size", where)
        tensors = header_of(peek_pt(place, place.names()[0]))
        check_header(
            tensors,
            {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)},
            place.where,
            because=f"act_size={d_in} and dict_size={d_sae}",
        )
        site, said = self.site(place), contents.get("act_name")
        if isinstance(said, str) and said != site:
            refuse(where, f"act_name is {said[:80]!r}", f"{place.where} is of {site}")
        given = {"model_name": contents.get("model_name"), "context_size": contents.get("seq_len")}
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config_of({"arch": "relu", "d_sae": d_sae}, where),
            d_in=d_in,
            site=site,
            metadata={
                key: given[key] if type(given.get(key)) is type(value) else value
                for key, value in DEFAULTS.items()
            },
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        contents = read_pt(place, place.names()[0])
        return {name: contents[name] for name in NAMES}


def _config_name(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".pt") + _SUFFIX


def _config(place: Place) -> tuple[dict[str, Any], str]:
    """What the config beside the weights says, and where it is."""
    name = _config_name(place.names()[0])
    file = place.beside(name)
    if file is None:
        refuse(place.where, f"has no {name} beside it", "put it there")
    return file.json(name), file.where
