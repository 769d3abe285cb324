"""Writes the reference in docs/client.md from signatures and docstrings: `python client/reference.py`."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent / "instantid_client"
PAGE = Path(__file__).parents[1] / "docs" / "client.md"
BEGIN, END = "<!-- written by `python client/reference.py` -->\n", "<!-- end -->\n"
GROUPS = {
    "Clients": ["InstantIDClient", "AsyncInstantIDClient", "ClientOptions", "TLS", "Routing", "Retry"],
    "Requests": ["Photo", "Options", "BatchRequest"],
    "Results": ["GenerationResult", "FaceReport", "BatchItem", "Health", "ServerHealth"],
    "Tests without a server": ["FakeClient", "AsyncFakeClient", "FakeRequest", "Transport", "AsyncTransport"],
}


def reference() -> str:
    """The text between the markers, which it includes."""
    sources = {path.stem: path.read_text() for path in sorted(PACKAGE.glob("*.py"))}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    classes = {
        node.name: _of_class(node, sources[name])
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    aliases = {name: text for tree in trees.values() for name, text in _documented_names(tree)}
    parts = []
    for title, names in GROUPS.items():
        parts.append(f"### {title}")
        parts += [classes[name] if name in classes else f"**`{name}`**: {aliases[name]}" for name in names]
    errors = ast.get_docstring(trees["errors"])
    return BEGIN + "\n\n".join([*parts, "### Errors", f"```\n{errors}\n```"]) + "\n\n" + END


def page_with_reference(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + reference() + rest.partition(END)[2]


def _documented_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of the module with the text under them."""
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(node.target, ast.Name):
            yield node.target.id, _joined(ast.literal_eval(following.value))


def _of_class(node: ast.ClassDef, source: str) -> str:
    bases = f"({', '.join(ast.unparse(base) for base in node.bases)})" if node.bases else ""
    fields = [f"    {ast.get_source_segment(source, item)}" for item in node.body if isinstance(item, ast.AnnAssign)]
    methods = [
        item for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and _is_public(item)
    ]
    code = [f"class {node.name}{bases}:", *fields, *(_signature(method) for method in methods)]
    told = [f"- `{method.name}`: {_joined(text)}" for method in methods if (text := ast.get_docstring(method))]
    texts = [
        f"**`{node.name}`**: {ast.get_docstring(node)}",
        "```python\n" + "\n".join(code) + "\n```",
        "\n".join(told),
    ]
    return "\n\n".join(text for text in texts if text)


def _is_public(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return method.name == "__init__" or not method.name.startswith("_")


def _signature(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    keyword = "async def" if isinstance(method, ast.AsyncFunctionDef) else "def"
    head = f"    {keyword} {method.name}("
    text = f"{head}{ast.unparse(method.args)}) -> {ast.unparse(method.returns) if method.returns else 'None'}"
    return text if len(text) <= 120 else text.replace(head, f"{head}\n        ").replace(") ->", "\n    ) ->")


def _joined(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


if __name__ == "__main__":
    PAGE.write_text(page_with_reference(PAGE.read_text()))
