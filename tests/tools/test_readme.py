"""The README keeps its word: its code runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_code_runs(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "student" in names:
        assert all(torch.isfinite(p.grad).all() for p in names["student"].parameters())
        assert all(p.grad is None for p in names["target"].parameters())
    else:
        assert names["image"].size == (32, 32)


def test_its_links_lead_somewhere_and_every_lesson_is_in_its_table():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert "```python" in README
    assert [link for link in links if not (ROOT / link).exists()] == []
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](notebooks/{notebook.name})" in README
