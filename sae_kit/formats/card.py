"""The model card (README.md) of a repository of SAEs: what they are, how good, how to load them.

It is made of what the files themselves say, and of a run's evaluation if it has one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sae_kit.formats.base import SAEInfo
from sae_kit.formats.saelens_config import WORDS
from sae_kit.sae import SAEConfig

TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "saelens")

BASE_MODELS = {
    "gpt2-small": "openai-community/gpt2",
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large")},
    "gpt2-xl": "openai-community/gpt2-xl",
}
"""Ids on the hub of models that are named without an owner."""

NOT_IN_SAELENS = {*WORDS["groupmax"], *WORDS["topk"][1:], *WORDS["gated"][1:]}
"""Words of architectures that the layout holds and SAELens does not open."""

MEASURED = {"l0": "L0", "fvu": "FVU", "dead_fraction": "dead", "ce_recovered": "CE recovered"}
"""Columns of an evaluation that the card has -> their headings."""


def model_card(
    repo: str,
    saes: Mapping[str, SAEInfo],
    words: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as Markdown, with YAML in front of it.

    Args:
        repo: owner/name.
        saes: what is known of each SAE, by its folder in the repository; at least one.
        words: the architecture that its file names, by its folder.
        rows: of an evaluation (`eval=core`), one for each site or none.
    """
    first_folder, first = next(iter(saes.items()))
    model = str(first.metadata.get("model_name") or "a language model")
    base = BASE_MODELS.get(model, model if re.fullmatch(r"[\w.-]+/[\w.-]+", model) else None)
    front: dict[str, Any] = {"library_name": "sae_kit", "tags": list(TAGS)}
    if base is not None:
        front["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {repo.split('/')[1]}\n",
        f"{len(saes)} sparse autoencoder{'s' * (len(saes) > 1)} of {model}, written by sae_kit in "
        "SAELens' layout.\n",
        _table(saes, {str(row.get("site")): row for row in rows}),
        "## Loading\n",
        "```python\nfrom sae_kit import load_model, load_sae, load_saes\n\n"
        f'sae = load_sae("{repo}/{first_folder}")\n'
        f'saes = load_saes("{repo}")          # by site\n'
        "lm = load_model(like=sae)\n```\n",
    ]
    if words[first_folder] not in NOT_IN_SAELENS:
        parts.append(
            "```python\nfrom sae_lens import SAE\n\n"
            f'sae = SAE.from_pretrained("{repo}", "{first_folder}")\n```\n'
        )
    parts.append(_training(first))
    return "\n".join(parts)


def _table(saes: Mapping[str, SAEInfo], measured: Mapping[str, Mapping[str, Any]]) -> str:
    """One line an SAE."""
    columns = [key for key in MEASURED if any(key in row for row in measured.values())]
    headings = ["site", "architecture", "d_in", "d_sae", *(MEASURED[key] for key in columns)]
    lines = [headings, ["---"] * len(headings)]
    for folder, info in saes.items():
        row = measured.get(str(info.site), {})
        figures = [_figure(row.get(key)) for key in columns]
        site = f"`{info.site or folder}`"
        lines.append([site, _arch(info.config), str(info.d_in), str(info.config.d_sae), *figures])
    note = "\nL0 and FVU are of held-out text; see evaluation/.\n" if columns else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n{note}"


def _training(info: SAEInfo) -> str:
    """What the SAEs were trained on, and how."""
    metadata = info.metadata
    processing = metadata.get("model_from_pretrained_kwargs")
    processing = processing if isinstance(processing, Mapping) else {}
    facts = {
        "tokens in a context": metadata.get("context_size"),
        "contexts begin with the end-of-text token": metadata.get("prepend_bos"),
        "residual stream is mean-centred": processing.get("center_writing_weights"),
    }
    lines = [f"- {what}: {_said(fact)}" for what, fact in facts.items() if fact is not None]
    training = metadata.get("training")
    if not lines and training is None:
        return ""
    text = "## Training\n\n" + "\n".join(lines) + "\n"
    if isinstance(training, Mapping):
        settings = yaml.safe_dump(dict(training), sort_keys=False)
        text += f"\nSettings of `{info.site}`:\n\n```yaml\n{settings}```\n"
    return text


def _arch(config: SAEConfig) -> str:
    k = getattr(config, "k", None)
    return config.word + (f", k = {k}" if k else "")


def _said(fact: Any) -> str:
    return "yes" if fact is True else "no" if fact is False else str(fact)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
