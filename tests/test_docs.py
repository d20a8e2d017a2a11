"""What the documentation says can be done, done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT


def test_the_examples_of_embedding_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "embedding.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    scope: dict[str, object] = {"__name__": "embedding"}
    for block in blocks:
        exec(compile(block, "docs/embedding.md", "exec"), scope)


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_begins_with_its_two_commands() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.DOTALL)
    assert "rollpoint demo" in blocks[0]
    assert "pytest" in blocks[1]
