"""Takes docs/images/canvas.png and one_form.png, and the form's thumbnail: the workflows on a real canvas, after they ran on the demo's model and portraits.

`python take_canvas_picture.py COMFYUI FRONT_END [STEPS]`. Needs Chromium and a front end with app mode; what is seen is what the jobs made.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file
from standalone import ROOT, import_packages

IMAGES = ROOT / "docs" / "images"
VIEW = {"width": 1800, "height": 1900}  # higher than any row: the canvas's own buttons stand at its foot
FORM_VIEW = {"width": 1500, "height": 1000}
THUMBNAIL_PX = 512
MARGIN, HEADER, LABEL, BETWEEN, AROUND, CELL_PX = 22, 70, 24, 6, 26, 160  # of a test sheet, whose pictures are as small as the demo's
CHECKPOINT = "pistachio_demo.safetensors"
SCENES = ("laughing, yellow shirt, blue background, bust", "sad, black shirt, pink background, close-up", "surprised, white shirt, orange background, bust",
          "happy, green shirt, teal background, close-up", "angry, blue shirt, grey background, bust", "happy, red shirt, purple background, bust")
MARGIN_PX = 14
ROWS = ((0, 1), (2, 3))  # groups beside each other; in one row they would be too small to read
HIDE = """
.side-tool-bar-container, .sidebar-container, .comfyui-body-top, .workflow-tabs-container, .graph-canvas-menu, .p-toast,
.actionbar-container, [data-testid="subgraph-breadcrumb"], .comfy-menu-button-wrapper, .p-splitter-gutter { display: none !important; }
"""

import_packages("support", "demo")

from demo.captions import TRIGGER  # noqa: E402
from demo.graph import LEARNING_RATE, SAMPLER, SIZE_PX  # noqa: E402
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
    return changed(graph, {
        "PistachioCaptionDataset": {"trigger_word": TRIGGER},
        "PistachioTrainLora": {"num_steps": num_steps, "batch_size": 4, "run_name": "my_character"},
        "PistachioOptimizerSettings": {"learning_rate": LEARNING_RATE},
        "KSampler": {"seed": prompt.seed},
        "Prompt, with the trigger word": {"text": prompt.with_trigger},
    })


def form_workflow(object_info: dict, num_steps: int) -> dict:
    """The one form with the demo's checkpoint; a base so small needs a higher learning rate and a smaller size than the form plans."""
    graph = Graph(object_info=object_info, pack_version="", core_version="")
    build_workflows.one_form(graph)
    (optimizer,) = graph.add("PistachioOptimizerSettings", (1350, 1150), (320, 200), learning_rate=LEARNING_RATE)
    train = next(node for node in graph.nodes if node["type"] == "PistachioTrainLora")
    slot = next(index for index, one in enumerate(train["inputs"]) if one["name"] == "optimizer")
    train["inputs"][slot]["link"] = len(graph.links) + 1
    graph.links.append([len(graph.links) + 1, optimizer.node, 0, train["id"], slot, optimizer.type])
    encode = next(node for node in graph.nodes if node["type"] == "PistachioEncodeDataset")
    size = next(one for one in encode["inputs"] if one["name"] == "resolution")
    graph.links = [link for link in graph.links if link[0] != size["link"]]
    size["link"] = None
    return changed(graph, {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "PistachioCaptionDataset": {"trigger_word": TRIGGER},
        "PistachioEncodeDataset": {"resolution": SIZE_PX},
        "PistachioTrainLora": {"num_steps": num_steps, "batch_size": 4},
        "PistachioTestSheet": {
            "scenes": "\n".join(f"woman, {scene}" for scene in SCENES), "steps": SAMPLER["steps"], "cfg": SAMPLER["cfg"],
            "scheduler": SAMPLER["scheduler"], "negative_prompt": "", "seed": 1000,
        },
    })


def changed(graph: Graph, changes: dict[str, dict]) -> dict:
    """The workflow with other values; a key is a node's title where it has one, else its type."""
    for node in graph.nodes:
        if node["type"] == "MarkdownNote":
            node["widgets_values"] = [text.replace(build_workflows.TRIGGER, TRIGGER) for text in node["widgets_values"]]
        node["properties"].pop("models", None)
        names = [one["name"] for one in node["inputs"] if "widget" in one]
        for name, value in (changes.get(node.get("title"), {}) | changes.get(node["type"], {})).items():
            node["widgets_values"][names.index(name)] = value
    return graph.workflow(workflow_id="00000000-0000-0000-0000-000000000000")


def write_checkpoint(models: Path) -> None:
    """The demo's three files as one, as a checkpoint loader takes them."""
    parts = {"model.diffusion_model.": f"diffusion_models/{DIT_NAME}", "first_stage_model.": f"vae/{VAE_NAME}", "text_encoders.clip_l.transformer.": f"text_encoders/{CLIP_NAME}"}
    tensors = {f"{prefix}{key}": tensor for prefix, name in parts.items() for key, tensor in load_file(models / name).items()}
    (models / "checkpoints").mkdir(exist_ok=True)
    save_file(tensors, models / "checkpoints" / CHECKPOINT)


def take(server: Server, num_steps: int) -> None:
    from playwright.sync_api import sync_playwright

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
        workflow = demo_workflow(server.object_info(), num_steps)
        canvas.load(workflow)
        canvas.queue()
        wait(page, server)
        page.add_style_tag(content=HIDE)
        page.mouse.move(5, VIEW["height"] - 5)
        boxes = page.evaluate(SETTLE)
        rows = [picture_of(page, boxes[first], boxes[last]) for first, last in ROWS]
        picture = Image.new("RGB", (VIEW["width"], sum(row.height for row in rows)))
        top = 0
        for row in rows:
            picture.paste(row, (0, top))
            top += row.height
        picture.save(IMAGES / "canvas.png", optimize=True)

        page = browser.new_context(viewport=FORM_VIEW).new_page()
        canvas = Canvas(page=page, server=server).open(nodes_2=True)
        title = build_workflows.TITLES["one_form"]
        page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [form_workflow(server.object_info(), num_steps), title])
        page.get_by_role("button", name="Skip").click(timeout=20_000)
        page.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
        wait(page, server)
        page.add_style_tag(content=".p-toast { display: none !important; }")
        page.wait_for_timeout(4000)
        page.screenshot(path=IMAGES / "one_form.png")
        browser.close()
    (sheet,) = (server.base / "output" / "pistachio").glob("test_sheet*.png")
    thumbnail(Image.open(sheet).convert("RGB")).save(build_workflows.bundled("one_form").with_suffix(".jpg"), quality=88)


def wait(page, server: Server) -> None:
    page.wait_for_timeout(3000)
    while server.get("/queue")["queue_running"] or server.get("/queue")["queue_pending"]:
        page.wait_for_timeout(3000)
    page.wait_for_timeout(2000)


def thumbnail(sheet: Image.Image) -> Image.Image:
    """The first two scenes, base and LoRA beside each other: the words of a sheet would be too small to read."""
    made = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "white")
    side = (THUMBNAIL_PX - 4) // 2
    for scene in range(2):
        for place in range(2):
            left = MARGIN + scene * (2 * CELL_PX + BETWEEN + AROUND) + place * (CELL_PX + BETWEEN)
            top = MARGIN + HEADER + LABEL
            cell = sheet.crop((left, top, left + CELL_PX, top + CELL_PX)).resize((side, side), Image.Resampling.LANCZOS)
            made.paste(cell, (place * (side + 4), scene * (side + 4)))
    return made


# In Nodes 2.0 a node is as high as what it shows, which is more after a run: those below it move down, and the groups grow.
SETTLE = """() => {
    const TITLE = 30, GAP = 24, ROOM = 36;
    return app.graph._groups.map((group) => {
        const [left, top, width, height] = group._bounding;
        const inside = app.graph._nodes.filter(({ pos: [x, y] }) => x >= left && x < left + width && y >= top && y < top + height);
        const columns = Map.groupBy(inside, (node) => Math.round(node.pos[0]));
        for (const nodes of columns.values()) {
            nodes.sort((a, b) => a.pos[1] - b.pos[1]);
            for (let i = 1; i < nodes.length; i++) {
                const least = nodes[i - 1].pos[1] + nodes[i - 1].size[1] + GAP + TITLE;
                if (nodes[i].pos[1] < least) nodes[i].pos = [nodes[i].pos[0], least];
            }
        }
        const bottom = Math.max(...inside.map((node) => node.pos[1] + node.size[1])) + ROOM;
        const right = Math.max(...inside.map((node) => node.pos[0] + node.size[0])) + ROOM;
        group.size = [Math.max(width, right - left), bottom - top];
        return [left, top, Math.max(width, right - left), bottom - top];
    });
}"""


def picture_of(page, first: list, last: list) -> Image.Image:
    """The canvas from one group to another, over the whole width."""
    (left, top, _, height), right = first, last[0] + last[2]
    height = max(height, last[3])
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
    write_checkpoint(base / "models")
    shutil.copytree(CHARACTER, base / "input" / "my_character")
    with Server(comfyui=comfyui, base=base, front_end=front_end, pack=ROOT) as server:
        take(server, num_steps)
    shutil.rmtree(base, ignore_errors=True)
    print(IMAGES)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3]) if len(sys.argv) > 3 else 200)
