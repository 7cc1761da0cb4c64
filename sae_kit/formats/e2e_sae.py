"""Apollo Research's SAEs, trained end to end (and locally) by e2e_sae.

A run's folder, or a pair of files of one name:

    final_config.yaml, samples_<n>.pt     the largest n is the trained SAE
    <name>.yaml, <name>.pt                as published

With P the site, its dots replaced by hyphens (blocks-6-hook_resid_pre):

    P.encoder.0.weight [d_sae d_in], P.encoder.0.bias, P.decoder.weight [d_in d_sae], P.decoder.bias

of a run, and without P and the 0 as published (apollo-research/e2e-saes-gpt2), where the config is
what names the site.

    code  = relu(x @ encoder.weight.T + encoder.bias)            nothing is subtracted from x
    recon = code @ normalised(decoder.weight).T + decoder.bias

A run's decoder is not of unit norm: its columns are normalised whenever the SAE runs, and here when
it is opened. The published ones were normalised before they were written.

Source: ApolloResearch/e2e_sae 2.1.1, with 2405.12241. Models are loaded by name as TransformerLens
does by default, which takes the mean out of the residual stream; contexts have no BOS.

Limits: one site in a file; a run of several sites is to be split first.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any, final

import torch
import yaml
from torch import Tensor

from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.configs import config_of, length_of
from sae_kit.formats.pickles import keys_of, peek_pt, read_pt
from sae_kit.formats.places import Place, refuse
from sae_kit.formats.sites import layer_of
from sae_kit.formats.tensors import check_header, header_of

RUN_CONFIG = "final_config.yaml"
MAX_YAML = 1 << 18
"""Characters of the longest config; a run's has some 3,000."""

CONTEXT_SIZE = 1024
"""That of GPT-2, which the published SAEs were trained on, where a config does not say."""

NAMES = {
    "encoder.0.weight": "W_enc",
    "encoder.0.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}
"""What follows the site in the names of tensors -> ours. Both weights are transposed besides."""

PUBLISHED = {name.replace(".0.", "."): ours for name, ours in NAMES.items()}
"""The same of published files, which have no site in them."""

_SAMPLES = re.compile(r"samples_(\d+)\.pt")
_FIRST = ".encoder.0.weight"


@final
class E2ESAEFormat(Format, name="e2e_sae"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders of runs, and torch files that have a config of their name or are all there is."""
        files = {PurePosixPath(name) for name in names}
        runs = {
            file.parent
            for file in files
            if _SAMPLES.fullmatch(file.name) and file.with_name(RUN_CONFIG) in files
        }
        singles = {
            file
            for file in files
            if file.suffix == ".pt" and (file.with_suffix(".yaml") in files or len(files) == 1)
        }
        return sorted("" if str(entry) == "." else str(entry) for entry in runs | singles)

    def recognises(self, place: Place) -> bool:
        """By the names of its tensors."""
        keys = keys_of(*_weights_file(place))
        # Others use the published names too; what tells them apart is the config.
        is_published = keys == PUBLISHED.keys() and _config(place) is not None
        return is_published or any(key.endswith(_FIRST) for key in keys)

    def site(self, place: Place) -> str | None:
        """By the names of its tensors, or by the config of one as published."""
        return _site_in(place)

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        file, name = _weights_file(place)
        site, where = _site_in(place), file.file(name)
        tensors = header_of(peek_pt(file, name))
        names = {ours: theirs for theirs, ours in _names(place).items()}
        d_in = length_of(tensors, names["b_dec"], where)
        d_sae = length_of(tensors, names["b_enc"], where)
        shapes = {"W_enc": (d_sae, d_in), "b_enc": (d_sae,), "W_dec": (d_in, d_sae)}
        shapes["b_dec"] = (d_in,)
        check_header(
            tensors,
            {names[ours]: shape for ours, shape in shapes.items()},
            where,
            because=f"biases of {d_in} and {d_sae}",
        )
        config = _config(place)
        if config is not None:
            _check_belongs(*config, site=site, d_in=d_in, d_sae=d_sae)
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config_of(
                {"arch": "relu", "d_sae": d_sae, "apply_b_dec_to_input": False}, where
            ),
            d_in=d_in,
            site=site,
            metadata=_metadata({} if config is None else config[0]),
            conversions=("decoder columns normalised, as e2e_sae does whenever it runs",),
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        file, name = _weights_file(place)
        contents = read_pt(file, name)
        weights: dict[str, Tensor] = {ours: contents[key] for key, ours in _names(place).items()}
        wide = torch.promote_types(weights["W_dec"].dtype, torch.float32)
        weights["W_dec"] = torch.nn.functional.normalize(weights["W_dec"].to(wide), dim=0).T
        return weights | {"W_enc": weights["W_enc"].T}


def _weights_file(place: Place) -> tuple[Place, str]:
    """The torch file of an SAE; of a run, that after most samples."""
    names = place.names()
    counts = {name: int(found[1]) for name in names if (found := _SAMPLES.fullmatch(name))}
    if place.has(RUN_CONFIG) and counts:
        return place, max(counts, key=counts.__getitem__)
    return place, names[0]


def _names(place: Place) -> Mapping[str, str]:
    """The file's names of tensors -> ours."""
    file, name = _weights_file(place)
    if peek_pt(file, name).keys() == PUBLISHED.keys():
        return PUBLISHED
    stem = str(_site_in(place)).replace(".", "-")
    return {f"{stem}.{theirs}": ours for theirs, ours in NAMES.items()}


def _site_in(place: Place) -> str | None:
    """The one site whose tensors are in a file, or that the config names if they do not say."""
    file, name = _weights_file(place)
    keys = peek_pt(file, name).keys()
    if keys == PUBLISHED.keys():
        positions = _positions({} if (config := _config(place)) is None else config[0])
        return positions[0] if len(positions) == 1 and layer_of(positions[0]) is not None else None
    stems = [key.removesuffix(_FIRST) for key in keys if key.endswith(_FIRST)]
    sites = [stem.replace("-", ".") for stem in stems]
    if len(sites) != 1:
        refuse(
            file.file(name),
            f"holds SAEs of {len(sites)} sites ({', '.join(sites)[:200]})",
            "save the tensors of each site in a file of its own",
        )
    return sites[0]


# --- the config -----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Plain values, each where it stands: values repeated by name can grow without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("a value that is repeated by name")
        return super().compose_node(parent, index)


def _parse(text: str) -> Any:
    if len(text) > MAX_YAML:
        raise ValueError(f"longer than {MAX_YAML:,} characters")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise
    except Exception as error:  # of a word such as `!!int ""` it raises what comes
        raise ValueError(" ".join(str(error).split())) from error


def _config(place: Place) -> tuple[Mapping[str, Any], str] | None:
    """What the config says and where it is; None where there is none."""
    if place.has(RUN_CONFIG):
        return place.parsed(RUN_CONFIG, _parse, "YAML"), place.file(RUN_CONFIG)
    for name in (PurePosixPath(place.names()[0]).with_suffix(".yaml").name, RUN_CONFIG):
        if (file := place.beside(name)) is not None:
            return file.parsed(name, _parse, "YAML"), file.where
    return None


def _check_belongs(
    config: Mapping[str, Any], where: str, *, site: str | None, d_in: int, d_sae: int
) -> None:
    """Refuse a config that is another SAE's."""
    saes = _part(config, "saes")
    positions = _positions(config)
    if site and "sae_positions" in saes and not any(position in site for position in positions):
        refuse(
            where,
            f"sae_positions is {str(saes['sae_positions'])[:200]}, and the weights are of {site}",
            "see whether it is the config of these weights",
        )
    ratio = saes.get("dict_size_to_input_ratio")
    if isinstance(ratio, int | float) and not 0 <= ratio * d_in - d_sae < 1:
        refuse(
            where,
            f"dict_size_to_input_ratio is {ratio}, and the weights have {d_sae} latents for "
            f"{d_in} inputs",
            "see whether it is the config of these weights",
        )


def _positions(config: Mapping[str, Any]) -> list[str]:
    """The (parts of) names of sites that a config trains at."""
    positions = _part(config, "saes").get("sae_positions")
    listed = positions if isinstance(positions, list) else [positions]
    return [position for position in listed if isinstance(position, str)]


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the SAE comes from, in SAELens' vocabulary."""
    data = _part(config, "train_data")
    metadata: dict[str, Any] = {"context_size": CONTEXT_SIZE, "prepend_bos": False}
    if type(n_ctx := data.get("n_ctx")) is int:
        metadata["context_size"] = n_ctx
    if isinstance(data_name := data.get("dataset_name"), str):
        metadata["dataset_path"] = data_name
    if isinstance(model := config.get("tlens_model_name"), str):
        metadata["model_name"] = model
    if config.get("tlens_model_path") is None:
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    if (objective := _objective(_part(config, "loss"))) is not None:
        metadata["training"] = {"objective": {"name": objective}}
    return metadata


def _objective(loss: Mapping[str, Any]) -> str | None:
    """Our word for what the terms of a loss train for; a term with coefficient 0 is only logged."""
    words = {
        "e2e_downstream": _part(loss, "in_to_orig").get("total_coeff"),
        "e2e": _part(loss, "logits_kl").get("coeff"),
        "local": _part(loss, "out_to_in").get("coeff"),
    }
    weighted = (word for word, of in words.items() if isinstance(of, int | float) and of > 0)
    return next(weighted, None)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}
