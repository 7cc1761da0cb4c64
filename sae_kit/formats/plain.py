"""The plain architecture that computes an SAE's outputs, and how an SAE comes back as it was.

A file says how outputs are computed (`Plain`): an architecture, its widths and its fields. How an
SAE was trained, files of other tools do not say; so what we write holds a record of ours beside
that, under a key that the other tool passes over. Read back, the recorded config has to compute
what the file tells everybody: a file that was edited on one side only is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from sae_kit.config import from_node, to_dict
from sae_kit.formats.places import refuse
from sae_kit.sae import SAE, SAEConfig
from sae_kit.sae.normalization import Normalization

RECORD = "sae_kit"
"""The key under which files have our record."""


@final
@dataclass(frozen=True)
class Plain:
    """The plain architecture that computes an SAE's outputs."""

    settings: Mapping[str, Any]
    """Our word for it as `arch`, and the config fields that decide outputs."""

    d_in: int
    """Width of what it reads."""

    d_out: int | None
    """Width of what it reconstructs; None = an autoencoder."""

    normalization: Normalization = "none"
    """How it normalises the rows it reads."""

    @staticmethod
    def of(sae: SAE) -> "Plain":
        """That of an SAE at hand."""
        plain = sae.inference()
        settings = {
            "arch": plain.arch,
            "d_sae": sae.d_sae,
            "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
            "skip": sae.config.skip,
            **plain.fields,
        }
        d_out = sae.d_out if sae.is_transcoder else None
        return Plain(settings, sae.d_in, d_out, sae.normalization)

    @property
    def arch(self) -> str:
        """Our word for it."""
        return str(self.settings["arch"])


@final
@dataclass(frozen=True)
class Record:
    """What our record says of an SAE."""

    config: SAEConfig
    """As it was trained."""

    is_transcoder: bool
    """Whether it reconstructs another site than it reads: files may say this of neither or both."""

    metadata: Mapping[str, Any]
    """Where it comes from."""

    @staticmethod
    def contents(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What a file is to hold under `RECORD`.

        Raises:
            ValueError: metadata that is not JSON.
        """
        try:
            json.dumps(metadata, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata: {error}; give JSON values only") from error
        return {
            "sae": to_dict(sae.config),
            "is_transcoder": sae.is_transcoder,
            "metadata": dict(metadata),
        }

    @staticmethod
    def read(contents: Mapping[str, Any], where: str) -> "Record | None":
        """The record among a file's contents; None where a file has none.

        Raises:
            ValueError: it has one that was damaged.
        """
        if RECORD not in contents:
            return None
        given = contents[RECORD]
        own = given if isinstance(given, Mapping) else {}
        metadata, is_transcoder = own.get("metadata"), own.get("is_transcoder")
        if not isinstance(metadata, Mapping) or not isinstance(is_transcoder, bool):
            refuse(where, f"{RECORD} is {str(given)[:80]!r}", "undo the edit, or remove it")
        try:
            config = from_node(SAEConfig, own.get("sae"), where=f"{RECORD}.sae")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return Record(config, is_transcoder, metadata)


def check_trained(config: SAEConfig, plain: Plain, where: str, key: str = RECORD) -> None:
    """Refuse a recorded config that does not compute what the file says to everybody.

    Args:
        config: what the record says.
        plain: what the rest of the file says.
        where: the file, for messages.
        key: of the record, for messages.
    """
    if config.d_sae != plain.settings["d_sae"]:  # before anything of that size is built
        refuse(where, f"{key} makes d_sae {config.d_sae} of {plain.settings}", "undo the edit")
    try:
        # A width of 1 will do, since no other width is among the settings.
        ours = Plain.of(config.build(1, plain.d_out and 1, generator=None))
    except ValueError as error:
        raise ValueError(f"{where}: {key}: {error}") from error
    if plain.settings != ours.settings:
        refuse(where, f"{key} makes {ours.settings} of {plain.settings}", "undo the edit")
