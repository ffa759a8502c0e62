"""Takes js/docs/<node>/node.webp: every node on a real canvas, with the neighbours that it usually has, after its example has run.

`python take_help_pictures.py COMFYUI FRONT_END [NODE ...] [--shots FOLDER]`. Needs Chromium and the demo's model; knows each node's example
graph, nothing of how the help pages are written.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from standalone import ROOT, import_packages

VIEW = {"width": 1100, "height": 1700}
PIXELS = 1.5  # of the picture for one of the page: sharp in a panel on a dense screen
QUALITIES, MOST_BYTES = (62, 50, 40, 30), 36_000
MARGIN_PX, AT_PX, ROW_PX = 12, (260, 330), 40
HIDE = """
.side-tool-bar-container, .sidebar-container, .comfyui-body-top, .workflow-tabs-container, .graph-canvas-menu, .p-toast, .p-dialog-mask,
.actionbar-container, [data-testid="subgraph-breadcrumb"], .comfy-menu-button-wrapper, .p-splitter-gutter, .p-tooltip { display: none !important; }
"""

import_packages("support", "demo")

from demo.install import install_models  # noqa: E402
from demo.make_character import FOLDER as CHARACTER  # noqa: E402
from support.canvas import Canvas  # noqa: E402
from support.graph import Graph, Output  # noqa: E402
from support.help_scenes import PARTS, SCENES, Scene, prepare  # noqa: E402
from support.server import Server  # noqa: E402


class Drawing:
    """A scene's graph: the node in the middle, its neighbours folded above and below, what else it needs to run out of sight."""

    def __init__(self, object_info: dict, node_type: str, scene: Scene):
        self.graph = Graph(object_info=object_info, pack_version="", core_version="")
        self.made: dict[str, tuple[Output, ...]] = {}
        self.shown: list[int] = []
        direct = [part.partition(":")[0] for part in scene.takes.values()]
        links = {name: self.part(part) for name, part in scene.takes.items()}
        outputs = self.graph.add(node_type, (0, 0), scene.size, **links, **{name: value for name, value in scene.values.items() if name != "size"})
        self.main = self.graph.nodes[-1]
        if "size" in scene.values:  # a name that the node's own size has in `add`
            widgets = [one["name"] for one in self.main["inputs"] if "widget" in one]
            self.main["widgets_values"][widgets.index("size") - len(widgets)] = scene.values["size"]
        above = [self.node_of(part) for part in dict.fromkeys(direct)]
        below = []
        for slot, kind, name, *values in scene.gives:
            self.graph.add(kind, (0, 0), (200, 100), **{name: outputs[slot]}, **(values[0] if values else {}))
            below.append(self.graph.nodes[-1])
        for row, one in enumerate(above):
            one["flags"], one["pos"] = {"collapsed": True}, [0, -ROW_PX * (len(above) - row) - 28]
        for one in below:
            one["flags"], one["pos"] = {"collapsed": True}, [0, 900]
        for name, at in scene.open.items():
            one = next(node for node in self.graph.nodes if node["type"] == name)
            one["flags"], one["pos"], one["size"] = {}, list(at[:2]), list(at[2:])
        shown = [self.main, *above, *below]
        self.shown = [node["id"] for node in shown]
        self.below = [node["id"] for node in below if node["flags"]]
        for node in self.graph.nodes:
            if node["id"] not in self.shown:
                node["flags"], node["pos"] = {"collapsed": True}, [-3000, 40 * node["id"]]

    def node_of(self, part: str) -> dict:
        return self.graph.nodes[self.made[part][0].node - 1]

    def part(self, reference: str) -> Output:
        name, _, slot = reference.partition(":")
        if name not in self.made:
            part = PARTS[name]
            links = {one: self.part(source) for one, source in part.takes.items()}
            self.made[name] = self.graph.add(part.type, (0, 0), (300, 100), **links, **part.values)
        return self.made[name][int(slot or 0)]

    def workflow(self) -> dict:
        self.graph.group("", (0, 0, *self.main["size"]), "#000000")  # where the canvas opens; none is drawn
        return self.graph.workflow(workflow_id="00000000-0000-0000-0000-000000000000") | {"groups": []}


# The canvas's own measures, whichever renderer is on: nodes in canvas units, with their title bars.
BOUNDS = """ids => {
  const nodes = ids.map(id => app.graph.getNodeById(id));
  const sides = nodes.map(n => {
    const dom = document.querySelector(`[data-node-id='${n.id}']`);
    if (dom) { const r = dom.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }
    n.updateArea?.(app.canvas.ctx); const [x, y, w, h] = n.boundingRect, o = app.canvas.ds.offset, s = app.canvas.ds.scale;
    return [(x + o[0]) * s, (y + o[1]) * s, (x + w + o[0]) * s, (y + h + o[1]) * s];
  });
  return [Math.min(...sides.map(s => s[0])), Math.min(...sides.map(s => s[1])), Math.max(...sides.map(s => s[2])), Math.max(...sides.map(s => s[3]))];
}"""
LOOK = """([shown, main, size, x, y]) => {
  for (const node of [...app.graph._nodes]) if (!shown.includes(Number(node.id))) app.graph.remove(node);
  app.graph.getNodeById(main).setSize(size);
  app.canvas.deselectAll(); app.canvas.clear_background_color = "#3a3d45"; app.canvas.background_image = null;
  app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true);
}"""
HANG = """([ids, right, bottom, row]) => ids.forEach((id, index) => {
  const node = app.graph.getNodeById(id);
  node.pos = [right - 225, bottom + 30 + row * (index + 0.6)];
  app.canvas.setDirty(true, true);
})"""


def run(canvas: Canvas, target: int) -> None:
    """Queues what one node of the loaded graph needs, and waits for its end."""
    page, server = canvas.page, canvas.server
    everything = canvas.prompt()
    prompt, wanted = {}, [str(target)]
    while wanted:
        name = wanted.pop()
        prompt[name] = everything[name]
        wanted += [str(value[0]) for value in everything[name]["inputs"].values() if isinstance(value, list)]
    prompt["9000"] = {"class_type": "PreviewAny", "inputs": {"source": [str(target), 0]}}  # not every node runs by itself
    prompt_id = server.queue(prompt, client_id=page.evaluate("() => window.app.api.clientId"))
    while not (ended := server.history(prompt_id)):
        page.wait_for_timeout(500)
    if ended["status"]["status_str"] != "success":
        raise RuntimeError(f"its example failed: {ended['status']['messages'][-1][1].get('exception_message')}")


def take(canvas: Canvas, node_type: str, scene: Scene, target: Path) -> None:
    page, server = canvas.page, canvas.server
    if scene.first:
        drawing = Drawing(server.object_info(), PARTS[scene.first].type, Scene(takes=PARTS[scene.first].takes, values=PARTS[scene.first].values))
        canvas.load(drawing.workflow())
        run(canvas, drawing.main["id"])
        page.evaluate("() => window.app.refreshComboInNodes()")
    drawing = Drawing(server.object_info(), node_type, scene)
    canvas.load(drawing.workflow())
    page.wait_for_timeout(600)
    if scene.runs:
        run(canvas, drawing.main["id"])
        page.wait_for_timeout(scene.settle_ms)
    page.evaluate(LOOK, [drawing.shown, drawing.main["id"], scene.size, *AT_PX])
    page.mouse.move(5, VIEW["height"] - 5)
    seen = None
    while (sides := page.evaluate(BOUNDS, [drawing.main["id"]])) != seen:  # a node grows after its pictures and words have come
        seen = sides
        page.evaluate(HANG, [drawing.below, sides[2] - AT_PX[0], sides[3] - AT_PX[1], ROW_PX])
        page.wait_for_timeout(700)
    left, top, right, bottom = page.evaluate(BOUNDS, drawing.shown)
    clip = {
        "x": max(0, left - MARGIN_PX - scene.room_px), "y": max(0, top - MARGIN_PX),
        "width": right - left + 2 * MARGIN_PX + 2 * scene.room_px, "height": min(VIEW["height"] - top, bottom - top + 2 * MARGIN_PX),
    }
    picture = Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        picture.save(target, quality=quality, method=6)
        if target.stat().st_size <= MOST_BYTES:
            break
    print(f"{node_type}: {picture.width} x {picture.height}, {target.stat().st_size / 1e3:.1f} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("front_end", type=Path)
    parser.add_argument("nodes", nargs="*")
    parser.add_argument("--shots", type=Path, default=ROOT / "js" / "docs")
    parser.add_argument("--base", type=Path, help="a folder that is kept: its runs are found again")
    parser.add_argument("--classic", action="store_true")
    given = parser.parse_args()
    base = given.base or Path(tempfile.mkdtemp(prefix="pistachio-help-"))
    install_models(base / "models")
    for folder in ("input", "models"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    prepare(base, CHARACTER)
    with Server(comfyui=given.comfyui.resolve(), base=base.resolve(), front_end=given.front_end.resolve(), pack=ROOT) as server:
        take_all(server, given.nodes or list(SCENES), given.shots, nodes_2=not given.classic)
    if given.base is None:
        shutil.rmtree(base, ignore_errors=True)


def take_all(server: Server, nodes: list[str], shots: Path, *, nodes_2: bool) -> None:
    from playwright.sync_api import sync_playwright

    server.post("/api/settings", {
        "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Canvas.SelectionToolbox": False,
        "Comfy.NodeBadge.NodeIdBadgeMode": "None", "Comfy.NodeBadge.NodeSourceBadgeMode": "None", "LiteGraph.Canvas.MinFontSizeForLOD": 0,
        "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1, "Comfy.EnableTooltips": False,
    })
    failed = []
    with sync_playwright() as playwright:
        path = next(path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport=VIEW, device_scale_factor=PIXELS).new_page()
        canvas = Canvas(page=page, server=server).open(nodes_2=nodes_2)
        page.add_style_tag(content=HIDE)
        for node_type in nodes:
            try:
                take(canvas, node_type, SCENES[node_type], shots / node_type / "node.webp")
            except Exception as error:  # one scene's fault keeps no other picture back; all are told at the end
                failed.append(f"{node_type}: {error}")
        browser.close()
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
