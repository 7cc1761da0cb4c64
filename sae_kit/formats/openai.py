"""OpenAI's SAEs of GPT-2 small, and files of the same code: one .pt file per SAE, no config.

    resid_post_mlp_v5_32k/autoencoders/6.pt

    pre_bias [d_in], encoder.weight [d_sae d_in], latent_bias [d_sae], decoder.weight [d_in d_sae],
    activation = "TopK" or "ReLU", activation_state_dict = {k, postact_fn}; statistics of training

    code  = activation((x - pre_bias) @ encoder.weight.T + latent_bias)
    recon = code @ decoder.weight.T + pre_bias

No flag says whether rows are normalised: they are where the activation is TopK (v5), to mean 0 and
standard deviation 1 over channels, and are not where it is ReLU (v1 and v4). The deviation is the
unbiased one, see sae/normalization.py. A file saved anew by this code has `activation.k` and
`activation.postact_fn` as well.

Source: openai/sparse_autoencoder, model.py and paths.py, for which 2406.04093 was written. Layer
and site are those of the path, however it begins; a file of another path belongs nowhere until
load_sae(site=...) says where.

Limits: TopK followed by ReLU, and ReLU; encoder and decoder of their own, not tied.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, final

from torch import Tensor

from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.configs import config_of, length_of
from sae_kit.formats.pickles import keys_of, peek_pt, read_pt
from sae_kit.formats.places import Place, refuse
from sae_kit.formats.tensors import check_header, header_of

NAMES = {
    "pre_bias": "b_dec",
    "latent_bias": "b_enc",
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
}
"""The file's names of tensors -> ours. Both weights are transposed besides."""

STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")

SITES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
"""Their names of places in a block -> ours."""

_PATH = re.compile(rf"(?:^|/)({'|'.join(SITES)})(?:_v\w+)?/autoencoders/(\d+)\.pt$")

PUBLISHED = {
    "model_name": "gpt2-small",
    "model_from_pretrained_kwargs": {"center_writing_weights": False},
    "context_size": 64,
    "prepend_bos": False,
}
"""What the SAEs that OpenAI published were trained on."""

_PUBLISHED_WIDTHS = {(768, 32768), (768, 131072), (3072, 32768)}


@final
class OpenAIFormat(Format, name="openai"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Torch files in folders without any config."""
        configured = {
            PurePosixPath(name).parent for name in names if name.endswith((".json", ".yaml"))
        }
        return sorted(
            name
            for name in names
            if name.endswith(".pt") and PurePosixPath(name).parent not in configured
        )

    def recognises(self, place: Place) -> bool:
        """By the names of its tensors."""
        return keys_of(place, place.names()[0]) >= NAMES.keys()

    def site(self, place: Place) -> str | None:
        """By the path."""
        found = _PATH.search(place.where)
        return f"blocks.{found[2]}.{SITES[found[1]]}" if found else None

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        contents, where = peek_pt(place, place.names()[0]), place.where
        tensors = header_of(contents)
        d_in, d_sae = (
            length_of(tensors, "pre_bias", where),
            length_of(tensors, "latent_bias", where),
        )
        check_header(
            {name: entry for name, entry in tensors.items() if name not in STATISTICS},
            {
                "pre_bias": (d_in,),
                "latent_bias": (d_sae,),
                "encoder.weight": (d_sae, d_in),
                "decoder.weight": (d_in, d_sae),
            },
            where,
            because=f"pre_bias of {d_in} and latent_bias of {d_sae}",
        )
        activation = _activation(contents, where)
        site = self.site(place)
        return SAEInfo(
            source=where,
            format=self.name,
            config=config_of({"d_sae": d_sae, **activation}, where),
            d_in=d_in,
            normalization="layer_norm" if activation["arch"] == "topk" else "none",
            site=site,
            metadata=PUBLISHED if site or (d_in, d_sae) in _PUBLISHED_WIDTHS else {},
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        contents = read_pt(place, place.names()[0])
        weights: dict[str, Tensor] = {ours: contents[theirs] for theirs, ours in NAMES.items()}
        return weights | {name: weights[name].T for name in ("W_enc", "W_dec")}


def _activation(contents: dict[str, Any], where: str) -> dict[str, Any]:
    """Our word for the activation, and its k."""
    word = contents.get("activation", "ReLU")  # as their loader has it
    if word == "ReLU":
        return {"arch": "relu"}
    if word != "TopK":
        refuse(where, f"activation is {word!r:.80}", "only TopK and ReLU can be opened")
    state = contents.get("activation_state_dict")
    given = {name: contents.get(f"activation.{name}") for name in ("k", "postact_fn")}
    given |= state if isinstance(state, dict) else {}
    if (after := given["postact_fn"]) not in ("ReLU", None):
        refuse(where, f"postact_fn is {after!r:.80}", "only ReLU can be opened")
    return {"arch": "topk", "k": given["k"]}
