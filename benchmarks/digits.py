"""How few directions and edges a small network needs that reads pictures of digits, in three bases.

    python benchmarks/digits.py --folder FOLDER

The pictures are drawn here, so nothing is downloaded: digits in the typefaces that come with
matplotlib, turned, stretched and moved a little, with noise. A network of two hidden layers is
trained on some of them, with plain Adam. Then, for neurons, principal components and the Local
Interaction Basis, fitted on pictures it saw, and measured on others:

- accuracy with only the k most important directions of a node layer kept
- the fewest of the strongest edges between two node layers that cost at most 1 % of accuracy
- clusters of the graph that LIB's edges make, and which digits their directions tell apart

Source: Bushnaq et al. 2024, "The Local Interaction Basis" (2405.10928), whose experiment is a
network of this kind, 3,072-100-100-10, on CIFAR-10.
"""

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sae_kit.evals.basis.dissection import Dissection, class_shares
from sae_kit.evals.basis.interaction_graph import described
from sae_kit.evals.basis.node_network import of_modules
from sae_kit.evals.shared.communities import Leiden
from sae_kit.viz.interactions import clustered_graph, kept_accuracy, needed_edges

N_CLASSES = 10
NODE_LAYERS = ("pixels", "first hidden layer", "second hidden layer", "logits")
LOSS_OF_ACCURACY = 1e-2
BATCH = 500
KEPT = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 64, 96, 144, 196)
DRAWN = 60  # edges of each pair of layers in the figure of the graph


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Pictures, network, training."""

    side: int = 14
    """Of a picture, in pixels."""
    noise: float = 0.1
    """Standard deviation added to every pixel; ink is 1."""
    d_hidden: int = 48
    n_train: int = 8000
    n_test: int = 1000
    n_steps: int = 1200
    batch_rows: int = 200
    lr: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


def typefaces() -> list[Path]:
    """Those that come with matplotlib and have digits; its display faces have none."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = [*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf")]
    return sorted(path for path in found if "Display" not in path.stem)


def templates(side: int) -> Tensor:
    """`[typefaces classes side side]`: every digit in the middle, ink 1 on 0."""
    large = 4 * side
    found = []
    for path in typefaces():
        typeface = ImageFont.truetype(str(path), int(1.1 * large))
        for digit in range(N_CLASSES):
            image = Image.new("L", (large, large))
            draw = ImageDraw.Draw(image)
            draw.text((large / 2, large / 2), str(digit), 255, font=typeface, anchor="mm")
            found.append(np.asarray(image, dtype=np.float32) / 255)
    pictures = F.avg_pool2d(torch.from_numpy(np.stack(found))[:, None], 4)
    return pictures.view(len(typefaces()), N_CLASSES, side, side)


def pictures(n: int, setting: Setting, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` pictures `[n side*side]`, and the digits on them."""
    drawn = templates(setting.side)
    digits = torch.randint(N_CLASSES, (n,), generator=generator)
    faces = torch.randint(len(drawn), (n,), generator=generator)
    turn = 0.15 * torch.randn(n, generator=generator)  # radians
    stretch = 1 + 0.1 * torch.randn(2, n, generator=generator)
    move = 0.08 * torch.randn(n, 2, 1, generator=generator)  # of half a side
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    affine = torch.cat([rotation * stretch.T[:, :, None], move], 2)
    chosen = drawn[faces, digits][:, None]
    grid = F.affine_grid(affine, list(chosen.shape), align_corners=False)
    moved = F.grid_sample(chosen, grid, align_corners=False).flatten(1)
    return moved + setting.noise * torch.randn(moved.shape, generator=generator), digits


def network_of(setting: Setting, generator: torch.Generator) -> list[nn.Module]:
    """Three maps between the node layers, with weights drawn by the generator."""
    widths = [setting.side**2, setting.d_hidden, setting.d_hidden, N_CLASSES]
    layers = [nn.Linear(d_in, d_out) for d_in, d_out in itertools.pairwise(widths)]
    with torch.no_grad():
        for layer in layers:
            scale = math.sqrt(2 / layer.in_features)
            layer.weight.normal_(0.0, scale, generator=generator)
            layer.bias.zero_()
    return [nn.Sequential(layers[0], nn.ReLU()), nn.Sequential(layers[1], nn.ReLU()), layers[2]]


def train(setting: Setting, x: Tensor, digits: Tensor, generator: torch.Generator) -> nn.Sequential:
    """A network that reads these pictures."""
    model = nn.Sequential(*network_of(setting, generator))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay
    )
    for _ in range(setting.n_steps):
        rows = torch.randint(len(x), (setting.batch_rows,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model(x[rows]), digits[rows]).backward()
        optimiser.step()
    return model.requires_grad_(False)


def measure(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train, take apart: rows and figures."""
    generator = torch.Generator().manual_seed(setting.seed)
    x, digits = pictures(setting.n_train, setting, generator)
    tested, answers = pictures(setting.n_test, setting, generator)
    model = train(setting, x, digits, generator).double()
    network = of_modules(list(model), NODE_LAYERS)
    rows_in, rows_out = x.double()[:, None], tested.double()[:, None]
    dissection = Dissection(network, rows_in, rows_out, answers, batch=BATCH)
    seen = (model(x.double()).argmax(1) == digits).double().mean().item()
    about = {"kind": "network", "accuracy_train": seen, "accuracy_heldout": dissection.base}
    rows: list[dict[str, Any]] = [about, *dissection.kept(KEPT)]
    for basis in dissection.bases:
        found, graph = dissection.edges(basis, cost=LOSS_OF_ACCURACY)
        rows += found
    # The last basis is LIB.
    acts = zip(dissection.bases["LIB"], network.activations(rows_out), strict=True)
    shares = [class_shares(b.coordinates(a)[:, 0], answers, N_CLASSES) for b, a in acts]
    label = torch.cat([found.argmax(1) for found in shares])
    partition = graph.clusters(Leiden(), seed=0)
    clusters = list(described(partition, label))
    rewired = graph.rewired(torch.Generator().manual_seed(setting.seed))
    chance = rewired.clusters(Leiden(), seed=0).modularity
    rows += [{**row, "modularity_rewired": chance} for row in clusters]
    figures = {
        "kept": kept_accuracy(
            [row for row in rows if row["kind"] == "kept"],
            n_tested=setting.n_test,
            chance=1 / N_CLASSES,
            title="Digits read right in other pictures (bands: standard error)",
        ),
        "edges": needed_edges(
            [row for row in rows if row["kind"] == "edges"],
            title=f"Edges that keep digits read within {LOSS_OF_ACCURACY:.0%} of accuracy",
        ),
        "graph": clustered_graph(
            graph.strongest(DRAWN).weights,
            partition.community,
            layers=NODE_LAYERS,
            labels=label,
            cluster_names=[f"digit {row['label']} ({row['purity']:.0%})" for row in clusters],
            title=f"The {DRAWN} strongest edges of each pair of layers in LIB: clusters, "
            "with their commonest digit",
        ),
    }
    return rows, figures


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Edges needed by layer and basis, then clusters."""
    network = rows[0]
    lines = [
        f"accuracy {network['accuracy_train']:.4f}, held out {network['accuracy_heldout']:.4f}",
        "",
        f"{'edges needed from':22}{'neurons':>10}{'PCA':>10}{'LIB':>10}",
    ]
    for site in NODE_LAYERS[:-1]:
        own = [row for row in rows if (row["kind"], row.get("site")) == ("edges", site)]
        lines.append(f"{site:22}" + "".join(f"{row['n_needed']:10}" for row in own))
    lines += ["", "cluster of LIB's graph   directions   commonest digit   share of directions"]
    lines += [
        f"{row['cluster']:<24}{row['n_directions']:>11}{row['label']:>18}{row['purity']:>22.2f}"
        for row in rows
        if row["kind"] == "cluster"
    ]
    if rows[-1]["kind"] == "cluster":
        last = rows[-1]
        lines.append(
            f"modularity {last['modularity']:.3f}, rewired {last['modularity_rewired']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for figures and results")
    parser.add_argument("--json", action="store_true", help="an object a line, not a table")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows, figures = measure(Setting())
    for name, figure in figures.items():
        figure.savefig(asked.folder / f"{name}.png", dpi=200)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (asked.folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    print(lines if asked.json else table(rows))


if __name__ == "__main__":
    main()
