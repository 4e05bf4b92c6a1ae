"""Hatchling hook: puts the checkout's `data/` into the wheel as `slam_edu/_data/`.

A hook and not hatchling's `force-include` table, for two reasons: a forced folder ignores every
exclusion, so `data/raw/` (what the shipped files were made from, often large) would travel along;
and an editable install would get a second, soon outdated copy beside the checkout's own files.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LEFT_OUT = {"raw", "__pycache__"}  # folders of data/ that stay in the checkout


def data_files(root: Path) -> dict[str, str]:
    """The files of `root/data` that belong in the wheel, {path on disk: path in the wheel}."""
    data = root / "data"
    files = {}
    for path in sorted(data.rglob("*")):
        parts = path.relative_to(data).parts
        hidden = any(part.startswith(".") for part in parts)
        script = path.suffix == ".py"  # what made a file is not needed to read it
        if path.is_file() and not (hidden or script or LEFT_OUT.intersection(parts[:-1])):
            files[str(path)] = "/".join(("slam_edu", "_data", *parts))
    return files


class DataHook(BuildHookInterface):
    """Adds `data_files` to a wheel; leaves an editable install alone, which reads the checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        """Called by hatchling before it builds; `version` is "standard" or "editable"."""
        if version != "editable":
            build_data["force_include"].update(data_files(Path(self.root)))
