"""Hooks of MkDocs: they add the reference, and copies of the repository's files that are linked.

Pages link to files of the repository (`../experiments/quickstart.yaml`), so that the links work
where the Markdown itself is read. The built site holds copies of these files under `files/`, and
its links lead there: it needs no network.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from generated import pages
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def target_outside(page: str, link: str) -> str | None:
    """The path from the repository's root that a link of a page leads to, if not into `docs/`."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) else path


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files that pages link to."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    for file in list(files.documentation_pages()):
        if file.abs_src_path is None:
            continue
        for match in LINK.finditer(Path(file.abs_src_path).read_text(encoding="utf-8")):
            path = target_outside(file.src_uri, match[2])
            if path and f"files/{path}" not in files.src_uris:
                if not (ROOT / path).is_file():
                    raise FileNotFoundError(f"{file.src_uri}: {match[2]} is no file")
                place = copy_of(path)
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def copy_of(path: str) -> str:
    """The place of a repository's file in the site; Markdown stays text there."""
    return f"files/{path}.txt" if path.endswith(".md") else f"files/{path}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files of the repository to their copies."""

    def led(match: re.Match[str]) -> str:
        path = target_outside(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        here = os.path.relpath(copy_of(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{here}{match[4]}"

    return LINK.sub(led, markdown)
