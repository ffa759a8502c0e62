"""The review in a real browser, in both renderers: 1000 pictures, keys, editing, conflicts, undo after a reload, the dialog."""

import shutil
import uuid

import pytest

from support.canvas import Canvas
from support.pictures import write_folder

NUM_PICTURES, NUM_DRAWN = 1000, 8
VIEW, DIALOG = ".graph-canvas-container .pistachio-review", "dialog .pistachio-review"
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def folder(server):
    """1,000 picture files, of eight drawings."""
    path = write_folder(server.base / "input" / "canvas_review", NUM_DRAWN, size=(64, 48))
    for index in range(NUM_DRAWN, NUM_PICTURES):
        drawn = path / f"picture-{index % NUM_DRAWN + 1:02d}.png"
        shutil.copy(drawn, path / f"picture-{index + 1:04d}.png")
        (path / f"picture-{index + 1:04d}.txt").write_text(f"drawing {index + 1} of the set, {drawn.with_suffix('.txt').read_text()}")
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server):
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    context.close()
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})


def load(canvas, folder) -> None:
    """Load Image Folder and Review Dataset, made as a person makes them."""
    canvas.page.evaluate("() => app.graph.clear()")
    canvas.page.wait_for_function("view => !document.querySelector(view)", arg=VIEW)  # the newer renderer takes its time
    canvas.page.evaluate(
        """folder => {
            const [from, review] = ['PistachioLoadImageFolder', 'PistachioReviewDataset'].map(type => LiteGraph.createNode(type));
            app.graph.add(from);
            app.graph.add(review);
            from.pos = [20, 60];
            review.pos = [460, 60];
            from.widgets.find(widget => widget.name === 'folder').value = folder;
            from.connect(0, review, 0);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [60, 40];
            app.canvas.setDirty(true, true);
        }""",
        folder.name,
    )
    canvas.page.wait_for_selector(f"{VIEW} .tile img[src]", timeout=WAIT_MS)


def status(canvas, words: str, view: str = VIEW) -> None:
    canvas.page.wait_for_function("([view, words]) => document.querySelector(view + ' .status').textContent.includes(words)", arg=[view, words], timeout=WAIT_MS)


def counts(canvas, words: str, view: str = VIEW) -> None:
    canvas.page.wait_for_function("([view, words]) => document.querySelector(view + ' .counts').textContent === words", arg=[view, words], timeout=WAIT_MS)


def current(canvas, view: str = VIEW) -> str:
    """What a screen reader says of the current cell."""
    return canvas.page.evaluate("view => document.getElementById(document.querySelector(view + ' .grid').getAttribute('aria-activedescendant'))?.getAttribute('aria-label')", view)


def text(folder, number: int) -> str:
    return (folder / f"picture-{number:0{2 if number <= NUM_DRAWN else 4}d}.txt").read_text().strip()


def test_a_thousand_pictures_by_keyboard_with_few_elements(canvas, folder):
    load(canvas, folder)
    counts(canvas, "1000 pictures")
    page = canvas.page
    page.locator(f"{VIEW} .grid").focus()
    assert current(canvas).startswith("picture-01.png. ")
    page.keyboard.press("End")
    assert current(canvas).startswith("picture-1000.png. drawing 1000 of")
    most = page.evaluate(
        """async view => {
            const grid = document.querySelector(view + ' .grid');
            let most = 0;
            for (let top = grid.scrollHeight; top > 0; top -= 1500) {
                grid.scrollTop = top;
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                most = Math.max(most, grid.querySelectorAll('*').length);
            }
            return most;
        }""",
        VIEW,
    )
    assert most < 600
    page.keyboard.press("/")
    page.keyboard.type("DRAWING 777 ")
    counts(canvas, "1 of 1000 pictures")
    page.keyboard.press("Enter")
    assert current(canvas).startswith("picture-0777.png. ")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    counts(canvas, "1000 pictures")
    node = page.evaluate("() => app.graph._nodes.find(node => node.type === 'PistachioReviewDataset').size")
    box = page.locator(VIEW).bounding_box()
    assert 0.85 * node[0] < box["width"] <= node[0] + 1 and 0.6 * node[1] < box["height"] <= node[1]  # it fills its node


def test_edits_marks_and_undo_after_a_reload(canvas, folder):
    load(canvas, folder)
    page, before = canvas.page, text(folder, 2)
    page.locator(f"{VIEW} .grid").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("a caption by hand")
    page.keyboard.press("Control+Enter")
    status(canvas, "picture-02.png: caption saved.")
    assert text(folder, 2) == "a caption by hand" and "edited" in current(canvas)
    page.keyboard.press("Enter")
    page.keyboard.type("nonsense")
    page.keyboard.press("Escape")
    assert text(folder, 2) == "a caption by hand"
    page.keyboard.press("x")
    status(canvas, "picture-02.png: excluded.")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("h")
    counts(canvas, "1000 pictures, 1 excluded, 1 held out")
    page.locator(f"{VIEW} select").select_option("excluded")
    counts(canvas, "1 of 1000 pictures, 1 excluded, 1 held out")
    page.keyboard.press("x")
    counts(canvas, "1000 pictures, 1 held out")  # the filter has lost its last picture
    page.keyboard.press("Control+z")
    status(canvas, "Undone: including picture-02.png")
    num_nodes = page.evaluate("() => app.graph._nodes.length")

    page.reload()
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.length > 0", timeout=120_000)
    load(canvas, folder)
    page.locator(f"{VIEW} .grid").focus()
    for words in ("holding out picture-03.png", "excluding picture-02.png", "the caption of picture-02.txt"):
        page.keyboard.press("Control+z")
        status(canvas, f"Undone: {words}.")
    assert text(folder, 2) == before
    counts(canvas, "1000 pictures")
    page.keyboard.press("Control+Shift+z")
    status(canvas, "Redone: the caption of picture-02.txt")
    page.keyboard.press("Control+z")
    status(canvas, "Undone: the caption")
    assert page.evaluate("() => app.graph._nodes.length") == num_nodes == 2  # the canvas undid nothing of its own
    assert [error for error in canvas.our_errors() if "api.comfy.org" not in error] == []


def test_a_caption_that_changed_meanwhile_is_shown_beside_mine(canvas, folder):
    load(canvas, folder)
    page, before = canvas.page, text(folder, 4)
    page.locator(f"{VIEW} .grid").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    (folder / "picture-04.txt").write_text("by a captioner")
    page.keyboard.press("Control+a")
    page.keyboard.type("mine")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"{VIEW} .conflict:not([hidden])", timeout=WAIT_MS)
    assert text(folder, 4) == "by a captioner" == page.text_content(f"{VIEW} .theirs")
    assert page.input_value(f"{VIEW} .conflict textarea") == "mine"
    page.get_by_role("button", name="Keep mine").click()
    status(canvas, "picture-04.png: caption saved.")
    assert text(folder, 4) == "mine"
    page.keyboard.press("Control+z")
    status(canvas, "Undone")
    assert text(folder, 4) == "by a captioner"
    (folder / "picture-04.txt").write_text(before)


def test_a_text_that_cannot_be_saved_is_kept_until_it_is(canvas, folder):
    load(canvas, folder)
    page, before = canvas.page, text(folder, 6)
    page.route("**/pistachio/review/caption", lambda route: route.abort())
    page.locator(f"{VIEW} .tile", has_text="picture-06.png").dblclick()
    page.keyboard.press("Control+a")
    page.keyboard.type("kept")
    page.locator(f"{VIEW} .search").click()
    status(canvas, "Not saved")
    assert "kept" in page.locator(f"{VIEW} .tile", has_text="not saved").text_content() and text(folder, 6) == before
    page.locator(f"{VIEW} .grid").focus()
    for words in ("excluded", "included"):  # what succeeds since takes no way away
        page.keyboard.press("x")
        status(canvas, f"picture-06.png: {words}.")
    page.unroute("**/pistachio/review/caption")
    page.get_by_role("button", name="Try again").click()
    status(canvas, "picture-06.png: caption saved.")
    assert text(folder, 6) == "kept" and page.locator(f"{VIEW} .badge.unsaved").count() == 0
    assert not page.get_by_role("button", name="Try again").is_visible()

    # Opened anew and left as it stands, an unsaved text is tried again too.
    page.route("**/pistachio/review/caption", lambda route: route.abort())
    page.locator(f"{VIEW} .tile", has_text="picture-06.png").dblclick()
    page.keyboard.type(" once more")
    page.keyboard.press("Control+Enter")
    status(canvas, "Not saved")
    page.unroute("**/pistachio/review/caption")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    status(canvas, "picture-06.png: caption saved.")
    assert "once more" in text(folder, 6)
    (folder / "picture-06.txt").write_text(before)


def test_a_caption_that_is_being_typed_is_saved_before_the_page_goes(canvas, folder):
    load(canvas, folder)
    page, before = canvas.page, text(folder, 7)
    page.locator(f"{VIEW} .tile", has_text="picture-07.png").dblclick()
    page.keyboard.press("Control+a")
    page.keyboard.type("half a sentence")
    assert page.evaluate("() => window.dispatchEvent(new Event('beforeunload', { cancelable: true }))") is False  # the person is asked
    status(canvas, "picture-07.png: caption saved.")
    assert text(folder, 7) == "half a sentence"
    (folder / "picture-07.txt").write_text(before)


def test_the_review_inside_a_blueprint_shows_what_the_run_was_given(canvas, browser, server):
    """Its own widget is not what runs: the two name other folders, and other pictures. In a page of its own: the host keeps elements of a subgraph that is gone."""
    for name, count in (("blueprint_given", 3), ("blueprint_own", 5)):
        write_folder(server.base / "input" / name, count, size=(64, 48))
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    try:
        own = Canvas(page=context.new_page(), server=server).open()
        page = own.page
        own.load(blueprint("blueprint_own"))
        page.wait_for_function("() => app.graph._nodes.length === 1 && app.graph._nodes[0].subgraph", timeout=WAIT_MS)
        page.evaluate("folder => { app.graph._nodes[0].widgets.find(widget => widget.name === 'folder').value = folder; app.canvas.setGraph(app.graph._nodes[0].subgraph); }", "blueprint_given")
        page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [60, 40]; app.canvas.setDirty(true, true); }")
        page.wait_for_selector(VIEW, timeout=WAIT_MS)
        page.wait_for_function("() => document.querySelector('.pistachio-folder .hint')?.textContent.startsWith('The folder comes in by the input')", timeout=WAIT_MS)
        assert page.locator(f"{VIEW} .tile").count() == 0
        given = page.evaluate("async () => Object.values((await app.graphToPrompt()).output).find(node => node.class_type === 'PistachioLoadImageFolder').inputs.folder")
        assert given == "blueprint_given"
        own.queue()
        counts(own, "3 pictures")
    finally:
        context.close()


def blueprint(own_folder: str) -> dict:
    """Load Image Folder and Review Dataset in a subgraph that is given the folder."""
    there = {"id": -10, "bounding": [-200, 60, 120, 60]}, {"id": -20, "bounding": [1200, 60, 120, 60]}
    inner = [
        {"id": 1, "type": "PistachioLoadImageFolder", "pos": [0, 60], "size": [320, 260], "flags": {}, "order": 0, "mode": 0, "properties": {}, "widgets_values": [own_folder, True],
         "inputs": [{"name": "folder", "type": "STRING", "widget": {"name": "folder"}, "link": 1}], "outputs": [{"name": "dataset", "type": "PISTACHIO_DATASET", "links": [2]}]},
        {"id": 2, "type": "PistachioReviewDataset", "pos": [420, 60], "size": [640, 640], "flags": {}, "order": 1, "mode": 0, "properties": {}, "widgets_values": ["", 1024],
         "inputs": [{"name": "dataset", "type": "PISTACHIO_DATASET", "link": 2}], "outputs": [{"name": "dataset", "type": "PISTACHIO_DATASET", "links": []}]},
    ]
    links = [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "STRING"},
        {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "PISTACHIO_DATASET"},
    ]
    given = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, "given")), "name": "folder", "type": "STRING", "linkIds": [1], "pos": [-100, 80]}
    subgraph = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, "review in a subgraph")), "version": 1, "revision": 0, "config": {}, "name": "Review inside", "inputNode": there[0], "outputNode": there[1],
        "inputs": [given], "outputs": [], "widgets": [], "nodes": inner, "groups": [], "links": links, "extra": {}, "state": {"lastGroupId": 0, "lastNodeId": 2, "lastLinkId": 2, "lastRerouteId": 0},
    }
    outer = {
        "id": 5, "type": subgraph["id"], "pos": [0, 0], "size": [360, 130], "flags": {}, "order": 0, "mode": 0, "properties": {}, "widgets_values": [], "outputs": [],
        "inputs": [{"name": "folder", "type": "STRING", "widget": {"name": "folder"}, "link": None}],
    }
    return {"last_node_id": 5, "last_link_id": 0, "nodes": [outer], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4, "definitions": {"subgraphs": [subgraph]}}


def test_what_a_check_finds_is_said_in_the_language_of_the_canvas(canvas, browser, server, request):
    few = write_folder(server.base / "input" / "canvas_few_zh", 6, size=(64, 48))
    (few / "picture-05.txt").unlink(missing_ok=True)
    server.post("/api/settings", {"Comfy.Locale": "zh"})
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    try:
        zh = Canvas(page=context.new_page(), server=server).open(nodes_2="2" in request.node.callspec.id)
        load(zh, few)
        zh.page.locator(VIEW).get_by_role("button", name="检查", exact=True).click()
        status(zh, "筛选列表中会显示所发现的问题")
        status(zh, "尚不能训练：有 1 处会使训练无法进行")  # the picture without a caption; six are enough
        option = zh.page.locator(f"{VIEW} option[value='finding:no_caption']")
        assert option.text_content() == "描述（1）" and option.get_attribute("title").startswith("1 张图片没有描述：picture-05.png。 请用「数据集打标」")
        zh.page.locator(f"{VIEW} select").select_option("finding:no_caption")
        assert current(zh).startswith("picture-05.png. 描述. ")
    finally:
        context.close()
        server.post("/api/settings", {"Comfy.Locale": "en"})


def test_the_dialog_shows_findings_and_takes_no_key_from_the_canvas(canvas, folder):
    few = write_folder(folder.parent / "canvas_few", 6, size=(64, 48))
    (few / "picture-05.txt").unlink()
    load(canvas, few)
    page = canvas.page
    page.evaluate("() => app.extensionManager.command.execute('Pistachio.ReviewDataset')")
    page.wait_for_selector(f"{DIALOG} .tile img[src]", timeout=WAIT_MS)
    page.locator(DIALOG).get_by_role("button", name="Check", exact=True).click()
    status(canvas, "The filter shows what was found.", DIALOG)
    page.locator(f"{DIALOG} select").select_option("finding:no_caption")
    counts(canvas, "1 of 6 pictures", DIALOG)
    assert current(canvas, DIALOG).startswith("picture-05.png. Captions. ")
    page.keyboard.press("?")
    page.wait_for_selector(f"{DIALOG} .help:not([hidden])")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.pistachio-review-dialog", state="detached")
    assert [node["type"] for node in canvas.nodes()] == ["PistachioLoadImageFolder", "PistachioReviewDataset"]
