"""Pushes a run's SAEs to the Hugging Face hub, with a model card.

    python -m sae_kit.publish outputs/train/<run> owner/name [--private]

See formats/publish.py for what the repository then holds.
"""

import argparse
import sys
from collections.abc import Sequence

from sae_kit.formats.publish import push_saes


def main(arguments: Sequence[str] | None = None) -> int:
    """Push, and print the address; 1 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_kit.publish", description="Push SAEs to the Hugging Face hub."
    )
    parser.add_argument("folder", help="a run folder, or a folder of SAEs in the native layout")
    parser.add_argument("repo", help="owner/name")
    parser.add_argument("--private", action="store_true", help="if a repository is made: private")
    asked = parser.parse_args(arguments)
    try:
        print(push_saes(asked.folder, asked.repo, private=asked.private))
    except (ValueError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
