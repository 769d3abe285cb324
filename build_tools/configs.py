"""Everything that repeats the contract, written from it: `python -m build_tools configs`.

The files stay literal in the repository. Of a file that people edit too, only the parts that repeat are replaced.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from instantid import contract
from instantid.contract import Choice, Images, ModelSignature, Number, Option, Tensor
from instantid.profile import FEW_STEPS, SDXL, Profile

ROOT = Path(__file__).parents[1]
HEADER = "Written by `python -m build_tools configs` from src/instantid/contract.py; edit that file."
PYTHON_TYPES = {"BYTES": "str", "INT32": "int", "INT64": "int", "FP32": "float"}
CLIENT_OPTIONS = '''"""Options of a call. {header}"""

from typing import TypedDict

from instantid_client.photos import Photo


class Options(TypedDict, total=False):
    """What a caller may set beside photo and prompt; what is left out has the server's default."""

{fields}
'''

Part = tuple[str, str, str]
"""How the line before a part begins, the whole line after it, and the lines between."""


def write_configs(root: Path = ROOT, check: bool = False) -> list[Path]:
    """Write each file of the tree in `root` that differs from the contract; return their paths. `check` only returns.

    Raises ValueError, naming the file, if a part to replace is not in it exactly once.
    """
    stale = {path: text for path, text in _files(root) if not path.is_file() or path.read_text() != text}
    for path, text in {} if check else stale.items():
        path.write_text(text)
    return list(stale)


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    client = root / "client/instantid_client"
    yield client / "contract.py", f"# {HEADER}\n" + (root / "src/instantid/contract.py").read_text()
    yield client / "_options.py", _client_options()
    for path, parts in _edited_files(root):
        text = path.read_text()
        for part in parts:
            text = _replace(path, text, part)
        yield path, text


def _edited_files(root: Path) -> Iterator[tuple[Path, list[Part]]]:
    for model in contract.MODELS:
        folder = root / "model_repository" / model.name
        for path in (folder / "config.pbtxt", *folder.glob("configs/*.pbtxt")):
            yield path, _config(model)
    start, end = "    # Options of the contract", "    # End of the options."
    yield root / "src/instantid/request.py", [(start, end, "\n".join(_request_fields()))]
    yield root / "README.md", [_table("inputs", contract.OPTIONS), _outputs()]
    yield root / "docs/calling.md", [_table("parameters", contract.PARAMETERS)]
    yield root / "docs/checkpoints.md", [_few_steps()]


def _replace(path: Path, text: str, part: Part) -> str:
    start, end, body = part
    pattern = rf"^({re.escape(start)}[^\n]*\n).*?(^{re.escape(end)}$)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.MULTILINE | re.DOTALL)
    if count != 1:
        raise ValueError(f"{path}: must have one part from {start!r} to {end!r}, has {count}")
    return replaced


def _config(model: ModelSignature) -> list[Part]:
    parts = [("input [", "]", _tensors(model.inputs)), ("output [", "]", _tensors(model.outputs))]
    if model is contract.INSTANTID:
        parts.append(("  step [", "  ]", ",\n".join(map(_step, contract.STEPS))))
    return parts


def _tensors(tensors: Iterable[Tensor]) -> str:
    return ",\n".join(map(_tensor, tensors))


def _tensor(tensor: Tensor) -> str:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = ", ".join(map(str, tensor.dims))
    optional = ", optional: true" if tensor.optional else ""
    return f'  {{ name: "{tensor.name}", data_type: TYPE_{kind}, dims: [ {dims} ]{optional} }}'


def _step(model: ModelSignature) -> str:
    inputs = [f'      input_map {{ key: "{t.name}", value: "{t.name}" }}' for t in model.inputs]
    outputs = [f'      output_map {{ key: "{t.name}", value: "{model.prefix}{t.name}" }}' for t in model.outputs]
    head = [f'      model_name: "{model.name}"', "      model_version: -1"]
    return "\n".join(["    {", *head, *inputs, *outputs, "    }"])


def _request_fields() -> Iterator[str]:
    """Fields of GenerationRequest; a drawn number is 0 for those who make a request themselves."""
    for option in (*contract.OPTIONS, contract.TENANT, contract.PRIORITY_LEVEL):
        if isinstance(option, Images):
            continue
        default = 0 if isinstance(option, Number) and option.default is None else option.default
        written = f'"{default}"' if isinstance(default, str) else repr(default)
        yield f"    {option.name}: {PYTHON_TYPES[option.datatype]}" + (f" = {written}" if default is not None else "")


def _client_options() -> str:
    fields = (
        f"    {option.name}: {'Photo' if isinstance(option, Images) else PYTHON_TYPES[option.datatype]}"
        for option in contract.OPTIONS
        if option.name not in contract.REQUIRED
    )
    return CLIENT_OPTIONS.format(header=HEADER, fields="\n".join(fields))


def _marked(name: str, rows: Iterable[str]) -> Part:
    """A part of a page in Markdown, between comments that a reader does not see."""
    return f"<!-- {name}: written by", f"<!-- end of {name} -->", "\n".join(("", *rows, ""))


def _table(name: str, options: Iterable[Option]) -> Part:
    rows = (
        f"| `{option.name}` | {_type(option)} | {_default(option)} | {_bound(option)} | {option.help} |"
        for option in options
    )
    return _marked(name, ["| name | type | default | bounds | meaning |", "|---|---|---|---|---|", *rows])


def _type(option: Option) -> str:
    return (
        f"{option.datatype} [1..{option.high}]" if isinstance(option, Images) and option.high > 1 else option.datatype
    )


def _default(option: Option) -> str:
    if option.default is None or isinstance(option.default, str):
        return f"`{option.default}`" if option.default else "empty" if option.default == "" else ""
    return f"{option.default:g}"


def _bound(option: Option) -> str:
    return ", ".join(f"`{name}`" for name in option.choices) if isinstance(option, Choice) else option.bound


def _outputs() -> Part:
    shape = {1: "[1]", -1: "[n]"}
    rows = [f"| `{t.name}` | {t.datatype} {shape[t.dims[0]]} | {t.help} |" for t in contract.INSTANTID.outputs]
    return _marked("outputs", ["| output | type | meaning |", "|---|---|---|", *rows])


def _few_steps() -> Part:
    rows = []
    for mode, changes in FEW_STEPS.items():
        profile = Profile(mode, **{**SDXL, **changes})
        file = f"`lora/{profile.lora}`" if profile.lora else ""
        any_other = "any, default " if len(profile.schedulers) > 1 else ""
        steps, scale = (
            f"{n.bound}, default {n.default:g}" for n in (profile.num_inference_steps, profile.guidance_scale)
        )
        rows.append(f"| `{mode}` | {file} | {any_other}`{profile.schedulers[0]}` | {steps} | {scale} |")
    return _marked(
        "few-steps", ["| mode | file in the set | scheduler | steps | guidance |", "|---|---|---|---|---|", *rows]
    )
