"""The repository's own tools: set-up, notebooks, the address. The wheel leaves them out."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command_line(name: str, text: str) -> argparse.ArgumentParser:
    """The parser of `python -m tools.NAME`, whose docstring is `text`."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=f"python -m tools.{name}", description=text, formatter_class=shape
    )
