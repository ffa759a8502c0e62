"""Help pages open on the canvas with their picture, in English and in Chinese; a node's words stand on the node after it ran."""

import pytest

from support import pictures
from support.canvas import Canvas

TITLES = {"en": ("Split Dataset", "Example"), "zh": ("划分数据集", "示例")}
SHOWN = "() => [...document.querySelectorAll('.node-help-content img')].some(one => one.complete && one.naturalWidth > 0)"


@pytest.fixture
def opened(browser, server):
    """`opened(settings)` -> a canvas whose page was loaded under them; the host's own come back."""
    contexts = []

    def open_with(settings: dict, **how) -> Canvas:
        server.post("/api/settings", settings)
        contexts.append(browser.new_context(viewport={"width": 1600, "height": 1000}))
        return Canvas(page=contexts[-1].new_page(), server=server).open(**how)

    yield open_with
    for context in contexts:
        context.close()
    server.post("/api/settings", {"Comfy.Locale": "en", "Comfy.VueNodes.Enabled": False})


def split_node(canvas: Canvas) -> int:
    return canvas.page.evaluate(
        "() => { app.graph.clear(); const node = LiteGraph.createNode('PistachioSplitDataset'); node.pos = [500, 300];"
        " app.graph.add(node); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.canvas.setDirty(true, true); return Number(node.id); }"
    )


@pytest.mark.parametrize("language", TITLES)
def test_a_help_page_opens_with_its_picture(opened, language):
    canvas = opened({"Comfy.Locale": language}, nodes_2=False)
    page, node_id = canvas.page, split_node(canvas)
    page.wait_for_timeout(300)
    page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", node_id)
    page.get_by_test_id("info-button").click()
    title, example = TITLES[language]
    help_page = page.locator(".node-help-content")
    help_page.get_by_role("heading", name=title, exact=True).wait_for()
    help_page.get_by_role("heading", name=example, exact=True).wait_for()
    page.wait_for_function(SHOWN)
    assert help_page.locator("img").get_attribute("src").endswith("/docs/PistachioSplitDataset/node.webp")
    assert help_page.locator("table").count() == 1
    assert canvas.our_errors() == []


def test_what_a_node_has_to_say_stands_on_it(opened, server):
    folder = server.base / "input" / "help_pictures"
    if not folder.exists():
        pictures.write_folder(folder)
    canvas = opened({"Comfy.Locale": "en"}, nodes_2=False)
    prompt = {
        "1": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": "help_pictures", "recursive": True}},
        "2": {"class_type": "PistachioSplitDataset", "inputs": {"dataset": ["1", 0], "held_out_share": 0.2, "held_out_pictures": "", "write_folders": ""}},
    }
    canvas.page.evaluate("prompt => window.app.loadApiJson(prompt, 'help')", prompt)
    canvas.queue()
    words = canvas.page.locator(".pistachio-sentences .words", has_text="held out")
    words.wait_for()
    box = words.bounding_box()
    assert box["height"] > 16 and box["width"] > 100
    assert canvas.our_errors() == []
