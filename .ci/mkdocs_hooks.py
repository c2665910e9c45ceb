"""What MkDocs cannot do by itself with this repository's pages (hooks of mkdocs.yml).

The pages are written to be read on a Git host: their links lead to results/, to modules and to the
notebook. For the site, what docs/ links to outside of it is taken along, Markdown as a page; a
module leads to its page of the API reference; the notebook becomes a page, as it was executed.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")  # the path of an inline link or image
PACKAGES = ("polycstr_jax", "algos")


def modules() -> list[str]:
    """Dotted names of what the API reference shows: every module, packages first."""
    names = []
    for package in PACKAGES:
        files = sorted((ROOT / package).glob("[!_]*.py"))
        first = [package] if (ROOT / package / "__init__.py").stat().st_size else []
        names += first + [f"{package}.{file.stem}" for file in files]
    return names


def in_site(path: str) -> str:
    """Where a file of the repository (posix path from its root) is in the site's sources."""
    if path == "README.md":  # the site has a front page of its own
        return "index.md"
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    module = path.removesuffix(".py").replace("/", ".")
    if path.endswith(".py") and module in modules():
        return f"api/{module}.md"
    return path


def of_repository(page: str) -> str:
    """Where a page of the site is in the repository."""
    return f"docs/{page}" if (ROOT / "docs" / page).exists() or page == "quickstart.md" else page


def targets(page: str, text: str) -> dict[str, str]:
    """The links of a page to files of the repository: as written, and as paths from its root."""
    folder = posixpath.dirname(of_repository(page))
    found = {link: posixpath.normpath(posixpath.join(folder, link)) for link in LINK.findall(text)}
    return {link: path for link, path in found.items() if (ROOT / path).is_file()}


def on_config(config):
    pages = [{name: f"api/{name}.md"} for name in modules()]
    config.nav.append({"API reference": pages})
    return config


def on_files(files, config):
    css = File("site.css", str(ROOT / ".ci"), config.site_dir, config.use_directory_urls)
    files.append(css)
    for name in modules():
        text = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(notebook)
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, name, content=content))
        files.append(File.generated(config, f"{notebook.stem}.md", content=text))
    # What is linked outside of docs/, and what that links to.
    pages = [file for file in files if file.is_documentation_page()]
    while pages:
        page = pages.pop()
        for path in targets(page.src_uri, page.content_string).values():
            if files.get_file_from_path(in_site(path)) is None:
                file = File(path, str(ROOT), config.site_dir, config.use_directory_urls)
                files.append(file)
                pages += [file] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown, page, config, files):
    known, folder = targets(page.file.src_uri, markdown), posixpath.dirname(page.file.src_uri)

    def moved(match):
        path = known.get(match.group())
        return match.group() if path is None else os.path.relpath(in_site(path), folder or ".")

    markdown = LINK.sub(moved, markdown)
    return markdown.replace("<details>", "<details markdown>")
