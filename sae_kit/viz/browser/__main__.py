"""Builds the feature browser from saved results.

    python -m sae_kit.viz.browser RESULT [RESULT ...] --out site

A result is the folder of an evaluation: eval=dashboard, eval=feature_evolution, or both of the same
SAEs. Open site/index.html in a browser.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_kit.result import Result
from sae_kit.viz.browser.build import build


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and print what to open; 1 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_kit.viz.browser", description="Build the feature browser."
    )
    parser.add_argument("results", nargs="+", type=Path, help="folders of saved results")
    parser.add_argument("--out", type=Path, required=True, help="the site's folder")
    asked = parser.parse_args(arguments)
    try:
        build([Result.load(folder) for folder in asked.results], asked.out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"open {asked.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
