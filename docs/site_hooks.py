"""Hooks of MkDocs: the READMEs of `hooks/` and `deploy/` are pages of the site, too."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside of `docs/`."""
    readmes = (path for top in ("hooks", "deploy") for path in ROOT.glob(f"{top}/*/README.md"))
    outside = [*sorted(readmes), ROOT / "CHANGELOG.md"]
    for path in outside:
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as the repository has them into links of the site, where `docs/` is the top."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({up}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+CHANGELOG\.md", f"]({up}CHANGELOG.md", markdown)
    return re.sub(r"\]\((?:\.\./)+((?:hooks|deploy)/[\w-]+)\)", rf"]({up}\1/README.md)", markdown)
