"""The documentation is true in what can be checked without building it (`make docs` builds it)."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OURS = ("polycstr_jax", "algos")
NAVIGATION = (ROOT / ".ci" / "mkdocs.yml").read_text()
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


@pytest.fixture(scope="module")
def notebook():
    return json.loads((DOCS / "quickstart.ipynb").read_text())


@pytest.fixture(scope="module")
def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_quickstart_was_executed_once_from_top_to_bottom_without_an_error(code_cells):
    assert [cell["execution_count"] for cell in code_cells] == [*range(1, len(code_cells) + 1)]
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert sum(output["output_type"] == "stream" for output in outputs) >= 5


def test_the_quickstart_is_small_and_says_nothing_of_where_it_ran(notebook):
    text = json.dumps(notebook)
    assert len(text) < 300_000
    assert not re.search(r"/home/|/root/|/tmp/|/Users/|site-packages", text)


def test_the_quickstart_uses_only_public_names_that_exist(code_cells):
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells))
    modules, used = {}, 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            for alias in node.names:
                assert not alias.name.startswith("_")
                found = importlib.import_module(node.module)
                if not hasattr(found, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                value = getattr(found, alias.name)
                if hasattr(value, "__path__") or hasattr(value, "__file__"):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr == "_fields", ast.unparse(node)
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)
                used += 1
    assert used > 10


def pages():
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_page_is_in_the_navigation():
    assert not [page for page in pages() if f": {page}\n" not in NAVIGATION]


@pytest.mark.parametrize("page", [*pages(), "../README.md"])
def test_links_lead_to_files_of_the_repository(page):
    path = DOCS / page
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    missing = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    assert not missing
