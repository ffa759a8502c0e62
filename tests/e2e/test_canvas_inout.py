"""Files in and words out on the canvas, in a real browser and both renderers: drops, the folder dialog, notices, a stopped server."""

import shutil
import zlib

import pytest

from support import tiny_workflows
from support.canvas import Canvas
from support.pictures import write_folder

WAIT_MS = 30_000
VIEW, DIALOG = ".pistachio-folder:not(.button)", "dialog.pistachio-folders"


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server):
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    context.close()
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def given(tmp_path):
    """A folder of somebody's, with captions, one damaged picture, and things that are no pictures."""
    folder = write_folder(tmp_path / "carla", 3, size=(64, 48))
    (folder / "notes.md").write_text("not for a dataset")
    (folder / "damaged.png").write_bytes((folder / "picture-01.png").read_bytes()[:200])
    (folder / "sub").mkdir()
    shutil.copy(folder / "picture-01.png", folder / "sub" / "inner.png")
    return folder


@pytest.fixture
def name(request) -> str:
    """Of a folder in input/ that no other test has."""
    return f"inout_{zlib.crc32(request.node.nodeid.encode()):08x}"


def make(canvas, *types: str, folder: str) -> None:
    """A workflow of these nodes side by side, the first one with this folder."""
    canvas.page.evaluate("() => app.graph.clear()")
    canvas.page.wait_for_function("view => !document.querySelector(view)", arg=VIEW, timeout=WAIT_MS)
    nodes = [{"id": 11 + i, "type": type, "pos": [20 + 430 * i, 60], "size": [300, 100], "flags": {}, "order": i, "mode": 0, "properties": {}} for i, type in enumerate(types)]
    nodes[0]["widgets_values"] = [folder, True]
    view = {"scale": 1, "offset": [80, 140]}
    canvas.load({"last_node_id": 20, "last_link_id": 0, "nodes": nodes, "links": [], "groups": [], "config": {}, "extra": {"ds": view}, "version": 0.4})
    canvas.page.evaluate("view => { app.canvas.ds.scale = view.scale; app.canvas.ds.offset = view.offset; app.canvas.setDirty(true, true); }", view)
    canvas.page.wait_for_selector(VIEW, timeout=WAIT_MS)


def drop(canvas, x: float, y: float, *paths) -> None:
    """As the system's file manager does it: the browser is given names on the disk."""
    session = canvas.page.context.new_cdp_session(canvas.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
    session.detach()


def middle(canvas, selector: str) -> tuple[float, float]:
    box = canvas.page.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def title_of_node(canvas) -> tuple[float, float]:
    """A point on the first node that is the canvas's own in the older renderer."""
    return tuple(canvas.page.evaluate("() => { const node = app.graph._nodes[0]; return app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 12]); }"))


FOLDER = "app.graph._nodes.find(node => node.type === '{type}').widgets.find(widget => widget.name === 'folder').value"


def folder_of(canvas, type: str = "PistachioLoadImageFolder") -> str:
    return canvas.page.evaluate(f"() => {FOLDER.replace('{type}', type)}")


def status(canvas, words: str) -> str:
    canvas.page.wait_for_function("([view, words]) => document.querySelector(view + ' .status')?.textContent.includes(words)", arg=[VIEW, words], timeout=WAIT_MS)
    return canvas.page.text_content(f"{VIEW} .status")


def toasts(canvas) -> list[str]:
    return canvas.page.locator(".p-toast-message").all_inner_texts()


def test_a_dropped_folder_becomes_a_set_and_its_workflow_is_not_loaded(canvas, server, given, name):
    folder = given.rename(given.parent / name)
    make(canvas, "PistachioLoadImageFolder", folder="is_not_there")
    nodes = canvas.nodes()
    drop(canvas, *title_of_node(canvas), folder)
    words = status(canvas, "added")
    assert words == f"4 added to pistachio/{name}. 3 captions with them. 2 were refused."
    assert folder_of(canvas) == f"pistachio/{name}"
    there = server.base / "input" / "pistachio" / name
    assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()) == [
        *(f"picture-0{i}.{ending}" for i in (1, 2, 3) for ending in ("png", "txt")), "sub/inner.png",
    ]
    assert (there / "picture-01.png").read_bytes() == (folder / "picture-01.png").read_bytes()
    canvas.page.locator(VIEW).get_by_role("button", name="2 notes").click()
    notes = canvas.page.locator("dialog.notes").inner_text()
    assert "'damaged.png' is damaged or cut short" in notes and "notes.md" in notes
    canvas.page.keyboard.press("Escape")
    canvas.page.locator(VIEW).get_by_role("button", name="Close").click()
    canvas.page.wait_for_function("view => document.querySelectorAll(view + ' .strip img').length === 4 && [...document.querySelectorAll(view + ' .strip img')].every(image => image.naturalWidth > 0)", arg=VIEW, timeout=WAIT_MS)
    assert "4 pictures, 3 with a caption" in canvas.page.locator(VIEW).inner_text()
    assert canvas.nodes() == nodes

    # Once more, onto the pictures that stand on the node: nothing twice.
    drop(canvas, *middle(canvas, f"{VIEW} .strip"), folder / "picture-01.png", folder / "picture-01.txt")
    canvas.page.wait_for_function("() => [...document.querySelectorAll('.p-toast-message')].some(toast => toast.textContent.includes('1 was there already.'))", timeout=WAIT_MS)
    assert canvas.nodes() == nodes and len(list(there.glob("*.png"))) == 3 and canvas.our_errors() == []


def test_another_picture_of_the_same_name_gets_a_number_and_takes_its_caption_along(canvas, server, given, name):
    there = write_folder(server.base / "input" / name, 2, size=(40, 40))
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    make(canvas, "PistachioLoadImageFolder", folder=name)
    drop(canvas, *middle(canvas, VIEW), given / "picture-01.png", given / "picture-01.txt", given / "picture-03.png")
    assert status(canvas, "added") == f"2 added to {name}. 1 caption with them. 1 got a number: another file had its name."
    assert {path.name: path.read_bytes() for path in there.iterdir() if path.name in before} == before
    assert (there / "picture-01-2.txt").read_bytes() == (given / "picture-01.txt").read_bytes()
    assert folder_of(canvas) == name

    # A folder onto a node that shows another set: the person says where it goes.
    drop(canvas, *middle(canvas, VIEW), given / "sub")
    canvas.page.locator("dialog.ask").get_by_role("button", name="New set pistachio/sub").click()
    canvas.page.wait_for_function(f"() => {FOLDER.replace('{type}', 'PistachioLoadImageFolder')} === 'pistachio/sub'", timeout=WAIT_MS)
    shutil.rmtree(server.base / "input" / "pistachio" / "sub")


def test_no_other_set_takes_the_place_of_one_that_takes_no_files_unasked(canvas, server, given, name):
    there = write_folder(server.base / "output" / name, 5, size=(40, 40))
    make(canvas, "PistachioLoadImageFolder", folder=f"output/{name}")
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    dialog = canvas.page.locator("dialog.ask")
    drop(canvas, *middle(canvas, VIEW), given / "picture-01.png")
    dialog.wait_for(timeout=WAIT_MS)
    assert "Where do the files go?" in dialog.inner_text() and f"output/{name}: 5 pictures" in dialog.inner_text()
    assert dialog.get_by_role("button").all_inner_texts() == ["Cancel", f"New set pistachio/{name}"]
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="detached")
    assert folder_of(canvas) == f"output/{name}" and not (server.base / "input" / "pistachio" / name).exists()
    drop(canvas, *middle(canvas, VIEW), given / "picture-01.png")
    dialog.get_by_role("button", name=f"New set pistachio/{name}").click()
    canvas.page.wait_for_function(f"() => {FOLDER.replace('{type}', 'PistachioLoadImageFolder')} === 'pistachio/{name}'", timeout=WAIT_MS)
    assert (server.base / "input" / "pistachio" / name / "picture-01.png").is_file() and {path.name: path.read_bytes() for path in there.iterdir()} == before


def test_a_folder_is_chosen_by_keyboard(canvas, server, name):
    root = server.base / "input" / name
    for index in (1, 2, 10):
        write_folder(root / f"set {index}", 2 + index % 3, size=(32, 32))
    write_folder(root / "set 2" / "inner", 1, size=(32, 32))
    make(canvas, "PistachioLoadImageFolder", "PistachioSaveToDataset", folder=f"{name}/set 1")
    page = canvas.page
    page.locator(VIEW).get_by_role("button", name="Choose a folder").click()
    page.wait_for_selector(f"{DIALOG} .row", timeout=WAIT_MS)
    rows = page.locator(f"{DIALOG} .row strong")
    assert rows.all_inner_texts() == ["set 1", "set 2", "set 10"]
    current = lambda: page.evaluate("dialog => { const list = document.querySelector(dialog + ' .list'); return document.getElementById(list.getAttribute('aria-activedescendant'))?.getAttribute('aria-label'); }", DIALOG)
    assert current() == "set 1. 3 pictures, all with a caption"
    page.keyboard.press("ArrowDown")
    assert current() == "set 2. 5 pictures, all with a caption. 1 folder"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("dialog => document.querySelector(dialog + ' .row strong')?.textContent === 'inner'", arg=DIALOG)
    assert page.locator(f"{DIALOG} .trail button").all_inner_texts() == ["Places", "input", name, "set 2"]
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("dialog => document.querySelectorAll(dialog + ' .row').length === 3", arg=DIALOG)
    assert current() == "set 2. 5 pictures, all with a caption. 1 folder"
    page.keyboard.type("10")
    page.wait_for_function("dialog => document.querySelectorAll(dialog + ' .row').length === 1", arg=DIALOG)
    page.wait_for_function("dialog => document.querySelector(dialog + ' .row img')?.naturalWidth > 0", arg=DIALOG, timeout=WAIT_MS)
    page.keyboard.press("Enter")
    page.wait_for_selector(DIALOG, state="detached")
    assert folder_of(canvas) == f"{name}/set 10"
    page.wait_for_function("view => document.querySelector(view + ' .count').textContent.startsWith('3 pictures')", arg=VIEW, timeout=WAIT_MS)

    page.locator(".pistachio-folder.button button").click()
    page.wait_for_selector(f"{DIALOG} .row", timeout=WAIT_MS)
    page.locator(f"{DIALOG} .name").fill("made later")
    page.keyboard.press("Enter")
    page.wait_for_selector(DIALOG, state="detached")
    assert folder_of(canvas, "PistachioSaveToDataset") == "made later"
    assert len(canvas.nodes()) == 2 and canvas.our_errors() == []


def test_what_comes_late_is_seen_on_nodes_whose_values_were_changed(canvas, server, name):
    write_folder(server.base / "input" / name, 6, size=(32, 32))
    make(canvas, "PistachioLoadImageFolder", "PistachioSplitDataset", "PistachioLoadJoyCaption", folder=name)
    canvas.page.evaluate("() => app.graph._nodes[0].connect(0, app.graph._nodes[1], 0)")
    canvas.fill({"PistachioSplitDataset": {"held_out_share": 0.3}, "PistachioLoadJoyCaption": {"precision": "int8"}}, centre="PistachioLoadImageFolder", offset=(80, 140), scale=1)
    words, offer = canvas.page.locator(".pistachio-sentences .words", has_text="held out"), canvas.page.locator(".pistachio-captioner")
    offer.wait_for(timeout=WAIT_MS)
    assert words.count() == 0 and "JoyCaption is not on this machine" in offer.inner_text()
    canvas.queue()
    words.wait_for(timeout=WAIT_MS)
    canvas.page.wait_for_timeout(500)  # the older renderer places an element when it draws
    for index, shown in ((1, words), (2, offer)):
        box = shown.bounding_box()
        left, top, right, bottom = canvas.page.evaluate("index => { const {pos, size} = app.graph._nodes[index], at = (x, y) => app.canvas.ds.convertOffsetToCanvas([x, y]); return [...at(pos[0], pos[1]), ...at(pos[0] + size[0], pos[1] + size[1])]; }", index)
        assert left < box["x"] and box["x"] + box["width"] < right and top < box["y"] and box["y"] + box["height"] < bottom
        assert box["height"] > 16
    assert canvas.our_errors() == []


def test_what_to_change_is_told_in_a_toast_and_marked_on_the_node(canvas):
    make(canvas, "PistachioLoadImageFolder", "PistachioCheckDataset", folder="no_such_folder")
    canvas.page.evaluate("() => app.graph._nodes[0].connect(0, app.graph._nodes[1], 0)")
    canvas.queue()
    canvas.page.wait_for_function("() => [...document.querySelectorAll('.p-toast-message')].some(toast => toast.textContent.includes('no_such_folder'))", timeout=WAIT_MS)
    (told,) = [text for text in toasts(canvas) if "no_such_folder" in text]
    assert told.startswith("Load Image Folder") and "does not exist. Put the pictures into a folder there" in told and "Traceback" not in told
    assert canvas.page.evaluate("() => Object.keys(app.lastNodeErrors)") == [canvas.nodes()[0]["id"]]


def test_a_missing_base_model_offers_its_download(canvas, server):
    server.post("/api/settings", {"Comfy.Workflow.ShowMissingModelsWarning": True})
    page = canvas.page
    page.reload()
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.length > 0", timeout=120_000)
    canvas.load(tiny_workflows.BUNDLED["train_character_sdxl"])
    page.wait_for_function("() => document.body.innerText.includes('sd_xl_base_1.0.safetensors')", timeout=WAIT_MS)
    offers = page.get_by_role("button", name="Download")
    offers.first.wait_for(timeout=WAIT_MS)
    page.wait_for_selector(".pistachio-captioner", timeout=WAIT_MS)
    assert "JoyCaption is not on this machine" in page.locator(".pistachio-captioner").first.inner_text()
    server.post("/api/settings", {"Comfy.Workflow.ShowMissingModelsWarning": False})
    page.keyboard.press("Escape")


def test_a_stopped_server_says_so_and_everything_is_there_again_when_it_is_back(browser, start_server):
    server = start_server()
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    canvas = Canvas(page=context.new_page(), server=server).open(nodes_2=False)
    page = canvas.page
    canvas.load(tiny_workflows.BUNDLED["train_character_sd15"])
    table = tiny_workflows.swaps("sd15", run_name="stopped", num_steps=2000)
    table["PistachioEvaluationSettings"] = {"num_evaluations": 20, "timesteps_per_image": 2, "early_stop": False}
    canvas.fill(table, centre="PistachioTrainLora", offset=(500, 120), scale=0.8)
    panel = ".pistachio-panel"
    step = "Number(/\\d+/.exec(document.querySelector('.pistachio-panel .steps')?.textContent.replaceAll(',', '') ?? '0'))"
    page.evaluate("() => document.querySelector('.pistachio-runs-tab-button').click()")
    canvas.queue()
    page.wait_for_function(f"() => {step} > 30", timeout=200_000)
    page.wait_for_selector(".pistachio-runs", timeout=WAIT_MS)
    server.kill()
    for place in (panel, ".pistachio-runs"):
        page.wait_for_function("place => document.querySelector(place)?.innerText.includes('The server does not answer. Trying again')", arg=place, timeout=WAIT_MS)
    before = page.evaluate(f"() => {step}")
    server.start()
    page.wait_for_selector(".pistachio-away", state="detached", timeout=60_000)
    page.wait_for_function("() => [...document.querySelectorAll('.p-toast-message')].some(toast => toast.textContent.includes(\"ended while 'stopped' was training\"))", timeout=WAIT_MS)
    (told,) = [text for text in toasts(canvas) if "was training" in text]
    assert "Press Run with the same graph: it goes on from its last saved step" in told
    page.wait_for_function(f"() => document.querySelector('{panel} .status').textContent.includes('saved')", timeout=WAIT_MS)
    page.wait_for_function("() => document.querySelector('.pistachio-runs')?.innerText.includes('stopped')", timeout=WAIT_MS)

    # What the words promise.
    canvas.queue()
    page.wait_for_function(f"() => {step} > {before}", timeout=200_000)
    server.interrupt()
    page.wait_for_function(f"() => document.querySelector('{panel} .status').textContent.includes('saved')", timeout=60_000)
    steps = [row["step"] for row in server.get("/pistachio/runs/stopped")["metrics"] if row["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] >= before
    assert canvas.our_errors() == []
    context.close()
