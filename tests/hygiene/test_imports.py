"""Imports go one way: nodes -> bridge -> dataset, training; and only `bridge` meets ComfyUI."""

import ast
from pathlib import Path

import pytest

COMFYUI = {
    "comfy", "comfy_extras", "comfy_execution", "comfy_config", "comfy_api", "comfy_api_nodes", "folder_paths", "server", "nodes",
    "execution", "node_helpers", "latent_preview", "app", "utils", "comfyui_version", "protocol",
}
OWN = {"nodes", "bridge", "dataset", "training", "pistachio", "support", "demo"}

# Layer -> (our other layers that it may import, parts of ComfyUI that it may import)
ALLOWED = {
    "training": ({"dataset"}, set()),  # side by side: the class of errors is in one, the atomic writes are in the other
    "dataset": ({"training"}, set()),
    "bridge": ({"dataset", "training"}, COMFYUI),
    "nodes": ({"bridge", "dataset", "training"}, {"comfy_api"}),
}


def imports_of(path: Path, text: str) -> list[tuple[int, str, str]]:
    """(line, "own" or "absolute", first name) of every import, at any depth of the file."""
    found = []
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, "absolute", alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, "absolute", node.module.split(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.parts[: len(path.parent.parts) - (node.level - 1)]
            assert len(path.parent.parts) >= node.level - 1, f"{path}:{node.lineno} reaches above the pack"
            targets = [package + tuple((node.module or "").split("."))] if node.module else [package + (alias.name,) for alias in node.names]
            found += [(node.lineno, "own", target[0]) for target in targets]
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_is_below_it(tree, text_of, layer):
    own, host = ALLOWED[layer]
    files = [path for path in tree if path.parts[0] == layer and path.suffix == ".py"]
    assert files
    wrong = []
    for path in files:
        for line, kind, name in imports_of(path, text_of(path)):
            if kind == "own" and name in OWN and name not in own | {layer}:
                wrong.append(f"{path}:{line} imports {name}/")
            elif kind == "absolute" and name in COMFYUI - host:
                wrong.append(f"{path}:{line} imports ComfyUI's {name}")
            elif kind == "absolute" and name in OWN - COMFYUI:
                wrong.append(f"{path}:{line} imports {name} by an absolute name, which does not exist inside ComfyUI")
    assert wrong == []


def test_the_check_sees_what_it_should():
    text = "import comfy.sd\nfrom ..bridge import model\nfrom .. import nodes\nfrom .config import X\ndef f():\n    import server\n"
    assert imports_of(Path("training/adapters/lora.py"), text) == [
        (1, "absolute", "comfy"), (2, "own", "training"), (3, "own", "training"), (4, "own", "training"), (6, "absolute", "server"),
    ]
    assert imports_of(Path("training/loop.py"), "from ..bridge import model\nfrom .. import nodes\n") == [(1, "own", "bridge"), (2, "own", "nodes")]
