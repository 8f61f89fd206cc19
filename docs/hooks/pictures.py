"""Pictures that a benchmark drew beside its results are shown on pages without a copy in ``docs/``.

A page links to them as they lie in the repository, ``../benchmarks/…/speed.png``, which GitHub follows too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(\.\./(benchmarks/[\w./-]+\.png)\)")


def on_files(files: Any, config: Any, **kwargs: Any) -> Any:
    """Adds the pictures that pages link to."""
    for page in files.documentation_pages():
        for path in LINK.findall(page.content_string):
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Links to them where the site has them; pages with such pictures are in ``docs/`` itself."""
    return LINK.sub(r"](\1)", markdown)
