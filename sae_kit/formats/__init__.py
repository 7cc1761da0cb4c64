"""Public layouts of SAEs on disk, read and written. One module per layout."""

from sae_kit.formats.base import SAEInfo, inspect_sae, load_sae, load_saes, save_sae

__all__ = ["SAEInfo", "inspect_sae", "load_sae", "load_saes", "save_sae"]
