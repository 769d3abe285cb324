"""Shows on which provider onnxruntime runs each node of the fused face graph, from its own placement log.

`python bench/face_placement.py [GRAPH]` prints nodes by execution provider and operator: with the CUDA build of
onnxruntime on a GPU it shows what falls back to the CPU; elsewhere everything runs on the CPU.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

LOAD = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 0
ort.InferenceSession(sys.argv[1], options, providers=ort.get_available_providers())
"""
HEADER = re.compile(r"(All nodes|Node\(s\)) placed on \[(\w+)\]\. Number of nodes: (\d+)")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \(")


def placements(graph: Path) -> Counter[tuple[str, str]]:
    """Count nodes by (provider, operator), with subgraphs; the operator is "all" if one provider has every node."""
    log = subprocess.run([sys.executable, "-c", LOAD, str(graph)], capture_output=True, text=True, check=True).stderr
    found: Counter[tuple[str, str]] = Counter()
    provider = ""
    for line in log.splitlines():
        if header := HEADER.search(line):
            kind, provider, count = header.groups()
            found[provider, "all"] += int(count) if kind == "All nodes" else 0
        elif node := NODE.search(line):
            found[provider, node.group(1)] += 1
    return +found


def main(
    graph: Annotated[Path, typer.Argument(help="The fused file.")] = Path("weights/miniature/face_analysis.onnx"),
) -> None:
    """Print how many nodes of each operator each provider runs, graph and subgraphs together."""
    table = Table("provider", "operator", "nodes")
    for (provider, operator), count in sorted(placements(graph).items()):
        table.add_row(provider, operator, str(count))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
