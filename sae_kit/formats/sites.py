"""Names of sites in other tools' files, and the order in which a model computes sites.

Ours are TransformerLens' (blocks.3.hook_resid_post). Tools that hook Hugging Face modules name the
module instead, whose output it is: h.3 or layers.3 (block 3), h.3.mlp, h.3.attn, h.3.mlp.act.

Limits: sites of GPT-2's and Llama's layouts; a name that is none of these is no site of ours.
"""

import re
import sys

# What follows the number of the block in a module's name, and in ours.
_WITHIN = {
    "": "hook_resid_post",
    ".mlp": "hook_mlp_out",
    ".attn": "hook_attn_out",
    ".self_attn": "hook_attn_out",
    ".mlp.act": "mlp.hook_post",
    ".mlp.act_fn": "mlp.hook_post",
}
_EMBEDDINGS = ("wte", "embed_tokens")
_MODULE = re.compile(r"(?:(?:transformer|model)\.)?(?:h|layers)\.(\d+)(\..+)?")

# Sites in the order in which a block computes them; a name that is none of these comes last.
_ORDER = (
    "hook_resid_pre",
    "ln1.",
    "attn.",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.",
    "mlp.",
    "hook_mlp_out",
    "hook_resid_post",
)


def site_of_module(module: str) -> str | None:
    """The site at which a Hugging Face module's output is, if it is one of ours."""
    if module.split(".")[-1] in _EMBEDDINGS:
        return "hook_embed"
    match = _MODULE.fullmatch(module)
    within = _WITHIN.get(match[2] or "") if match else None
    return f"blocks.{match[1]}.{within}" if match and within else None


def module_of_site(site: str) -> str | None:
    """The module of a Hugging Face GPT-2 whose output is at a site; None where no module's is."""
    if site == "hook_embed":
        return "wte"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
    within = {ours: theirs for theirs, ours in reversed(_WITHIN.items())}
    return f"h.{match[1]}{within[match[2]]}" if match and match[2] in within else None


def layer_of(site: str) -> int | None:
    """The number of a site's block."""
    match = re.match(r"blocks\.(\d+)\.", site)
    return int(match[1]) if match else None


def site_order(site: str) -> tuple[int, int, str]:
    """A key that sorts sites in the order in which the model computes them."""
    layer = layer_of(site)
    if layer is None:
        return (sys.maxsize if site.startswith("ln_final") else -1, 0, site)
    name = site.split(".", 2)[2]
    ranks = (rank for rank, start in enumerate(_ORDER) if name.startswith(start))
    return (layer, next(ranks, len(_ORDER)), site)
