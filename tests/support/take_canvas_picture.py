"""Takes docs/images/canvas.png: the workflow on a real canvas, after it has run on the demo's model and portraits.

`python take_canvas_picture.py COMFYUI FRONT_END [STEPS]`. Needs Chromium; the pictures on the nodes are what the job made.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "docs" / "images" / "canvas.png"
VIEW = {"width": 1800, "height": 1200}
MARGIN_PX = 14
ROWS = ((0, 1), (2, 3))  # groups beside each other; in one row they would be too small to read
HIDE = """
.side-tool-bar-container, .sidebar-container, .comfyui-body-top, .workflow-tabs-container, .graph-canvas-menu, .p-toast,
.actionbar-container, [data-testid="subgraph-breadcrumb"], .comfy-menu-button-wrapper, .p-splitter-gutter { display: none !important; }
"""


def load_package(name: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, HERE)]
load_package("support", HERE)
load_package("demo", ROOT / "demo")

from demo.captions import TRIGGER  # noqa: E402
from demo.graph import SAMPLER, SIZE_PX  # noqa: E402
from demo.install import CLIP_NAME, DIT_NAME, VAE_NAME, install_models  # noqa: E402
from demo.make_character import FOLDER as CHARACTER  # noqa: E402
from demo.prompts import evaluation_prompts  # noqa: E402
from support import build_workflows  # noqa: E402
from support.build_workflows import Family, File  # noqa: E402
from support.canvas import Canvas  # noqa: E402
from support.graph import Graph  # noqa: E402
from support.server import Server  # noqa: E402


def demo_workflow(object_info: dict, num_steps: int) -> dict:
    """The bundled training workflow with the demo's files, sizes and learning rate."""
    family = Family(
        key="demo", title="The demo's base model", resolution=SIZE_PX, caption_length="short", size=(SIZE_PX, SIZE_PX),
        sampler={name: value for name, value in SAMPLER.items() if name != "denoise"}, latent="EmptySD3LatentImage",
        network=File(name=DIT_NAME, directory="diffusion_models", url=""), clip_type="sd3",
        text_encoders=(File(name=CLIP_NAME, directory="text_encoders", url=""),), vae=File(name=VAE_NAME, directory="vae", url=""),
        about="Trained by this project on drawn portraits, for tests and for this picture.", negative="",
    )
    graph = Graph(object_info=object_info, pack_version="", core_version="")
    build_workflows.train_character(graph, family)
    prompt = evaluation_prompts()[0]
    changes = {
        "PistachioCaptionDataset": {"trigger_word": TRIGGER},
        "PistachioTrainLora": {"num_steps": num_steps, "batch_size": 4, "run_name": "my_character"},
        "PistachioOptimizerSettings": {"learning_rate": 1e-3},
        "KSampler": {"seed": prompt.seed},
    }
    for node in graph.nodes:
        if node["type"] == "MarkdownNote":
            node["widgets_values"] = [text.replace(build_workflows.TRIGGER, TRIGGER) for text in node["widgets_values"]]
        names = [one["name"] for one in node["inputs"] if "widget" in one]
        values = changes.get(node["type"], {})
        if node["title" if "title" in node else "type"] == "Prompt, with the trigger word":
            values = {"text": prompt.with_trigger}
        for name, value in values.items():
            node["widgets_values"][names.index(name)] = value
    return graph.workflow(workflow_id="00000000-0000-0000-0000-000000000000")


def take(server: Server, num_steps: int) -> None:
    from playwright.sync_api import sync_playwright

    workflow = demo_workflow(server.object_info(), num_steps)
    server.post("/api/settings", {
        "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Canvas.SelectionToolbox": False,
        "Comfy.NodeBadge.NodeIdBadgeMode": "None", "Comfy.NodeBadge.NodeSourceBadgeMode": "None", "LiteGraph.Canvas.MinFontSizeForLOD": 0,
        "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    })
    with sync_playwright() as playwright:
        path = next(path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport=VIEW).new_page()
        canvas = Canvas(page=page, server=server).open(nodes_2=True)
        canvas.load(workflow)
        canvas.queue()
        page.wait_for_timeout(3000)
        while server.get("/queue")["queue_running"] or server.get("/queue")["queue_pending"]:
            page.wait_for_timeout(3000)
        page.add_style_tag(content=HIDE)
        page.mouse.move(5, VIEW["height"] - 5)
        rows = [picture_of(page, workflow["groups"][first], workflow["groups"][last]) for first, last in ROWS]
        browser.close()
    picture = Image.new("RGB", (VIEW["width"], sum(row.height for row in rows)))
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    picture.save(OUTPUT, optimize=True)


def picture_of(page, first: dict, last: dict) -> Image.Image:
    """The canvas from one group to another, over the whole width."""
    (left, top, _, height), right = first["bounding"], last["bounding"][0] + last["bounding"][2]
    scale = (VIEW["width"] - 2 * MARGIN_PX) / (right - left)
    page.evaluate(
        "([scale, x, y]) => { app.canvas.deselectAll(); app.canvas.ds.scale = scale; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true); }",
        [scale, MARGIN_PX / scale - left, MARGIN_PX / scale - top],
    )
    page.wait_for_timeout(6000)
    clip = {"x": 0, "y": 0, "width": VIEW["width"], "height": min(VIEW["height"], round(height * scale) + 2 * MARGIN_PX)}
    return Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main(comfyui: Path, front_end: Path, num_steps: int) -> None:
    base = Path(tempfile.mkdtemp(prefix="pistachio-picture-"))
    install_models(base / "models")
    shutil.copytree(CHARACTER, base / "input" / "my_character")
    with Server(comfyui=comfyui, base=base, front_end=front_end, pack=ROOT) as server:
        take(server, num_steps)
    shutil.rmtree(base, ignore_errors=True)
    print(OUTPUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3]) if len(sys.argv) > 3 else 200)
