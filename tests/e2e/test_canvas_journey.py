"""The whole way in a real browser, in both renderers: templates, training, a reload, stop, continue, compare, install, review, the one form.

What is seen on the way is kept as pictures in build/journey. Parts of it have tests of their own elsewhere; this one goes through them as a person does.
"""

import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from support import tiny_workflows
from support.build_workflows import BLUEPRINTS, TITLES
from support.canvas import Canvas
from support.pictures import write_folder

ROOT = Path(__file__).resolve().parents[2]
PANEL = ".pistachio-panel"
WAIT_MS, TRAIN_MS = 60_000, 400_000
NUM_STEPS = 50_000  # it is stopped long before, however slow or fast the machine is
SHORTCUTS = {
    "OpenRuns": "R", "CompareCheckpoints": "C", "EvaluateNow": "E", "SampleNow": "P", "StopAndKeep": "S", "ContinueByHalf": "H",
    "OpenTrainingWorkflow": "T", "ReviewDataset": "D",
}
SETTINGS = {"Chart.LogScale", "Chart.Smoothing", "Runs.TellWhenEnded", "Runs.ConfirmStop", "Runs.RefreshSeconds"}


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server):
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    context.close()
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def keep(canvas, request):
    """`keep(name)`: a picture of the page, for the docs and for whoever looks."""
    folder = ROOT / "build" / "journey"
    folder.mkdir(parents=True, exist_ok=True)
    host = "apps" if has_forms(canvas) else "graphs"
    renderer = request.node.callspec.params["canvas"] + 1
    return lambda name: canvas.page.screenshot(path=folder / f"{name}-{host}-nodes{renderer}.png")


@pytest.fixture
def left_idle(server):
    """The run of a test that failed would stand before the next ones in the queue, and take their time on a small machine."""
    yield
    server.post("/queue", {"clear": True})
    while server.get("/queue")["queue_running"]:
        server.interrupt()
        time.sleep(0.5)


def has_forms(canvas) -> bool:
    return canvas.page.evaluate("() => app.extensionManager.setting.get('Comfy.AppBuilder.VueNodeSwitchDismissed') !== undefined")


def command(canvas, name: str) -> None:
    canvas.page.evaluate("name => { app.extensionManager.command.execute(name); }", name)


def press(locator) -> None:
    """A click that does not wait for the host's animations to end, which they don't on a busy machine."""
    locator.wait_for(timeout=WAIT_MS)
    locator.evaluate("element => element.click()")


def open_templates(canvas):
    """The host's dialog, at the pack's own list; its cards."""
    page = canvas.page
    command(canvas, "Comfy.BrowseTemplates")
    page.get_by_test_id("template-workflows-content").wait_for(timeout=WAIT_MS)
    press(page.get_by_role("dialog").get_by_text("Pistachio", exact=True).first)
    page.wait_for_function(
        "titles => { const ids = [...document.querySelectorAll('[data-testid^=template-workflow-]')].map(card => card.dataset.testid.slice(18));"
        " return ids.length && ids.every(id => titles.includes(id)); }", arg=list(TITLES.values()), timeout=WAIT_MS,
    )
    return page.locator("[data-testid^='template-workflow-']")


def open_template(canvas, key: str) -> None:
    open_templates(canvas)
    # The host closes its dialog once more when all is loaded, which is after the nodes are there: one that was opened meanwhile would go too.
    canvas.page.evaluate(
        """() => {
            const load = app.loadGraphData;
            window.isTemplateLoaded = false;
            app.loadGraphData = async function (...given) {
                app.loadGraphData = load;
                const answer = await load.apply(app, given);
                setTimeout(() => { window.isTemplateLoaded = true; });
                return answer;
            };
        }"""
    )
    press(canvas.page.get_by_test_id(f"template-workflow-{TITLES[key]}"))
    canvas.page.wait_for_function("() => window.isTemplateLoaded", timeout=WAIT_MS)
    num_nodes = len(json.loads(tiny_workflows.BUNDLED[key].read_text(encoding="utf-8"))["nodes"])
    canvas.page.wait_for_function("count => app.graph._nodes.length === count", arg=num_nodes, timeout=WAIT_MS)
    skip_tour(canvas)


def skip_tour(canvas) -> None:
    """The host shows its own tour at the first form of a person."""
    if has_forms(canvas) and canvas.page.evaluate("() => app.graph.extra?.linearMode === true"):
        skip = canvas.page.get_by_role("button", name="Skip")
        canvas.page.wait_for_timeout(1500)
        if skip.count():
            press(skip.first)


def fill(canvas, table: dict) -> None:
    """Values into the widgets of nodes, by type; then the train node in the middle of the view."""
    canvas.fill(table, centre="PistachioTrainLora", offset=(300, 120))


def load_training(canvas, run_name: str) -> None:
    """The bundled workflow with tiny values, and Sample Settings as a person adds them."""
    open_template(canvas, "train_character_wan21")
    table = tiny_workflows.swaps("wan21", run_name=run_name, num_steps=NUM_STEPS)
    table["PistachioEvaluationSettings"] = {"num_evaluations": 6, "timesteps_per_image": 2, "early_stop": False}
    table["PistachioSampleSettings"] = {"prompts": "a portrait", "steps": 1}
    canvas.page.evaluate(
        """() => {
            const find = type => app.graph._nodes.find(node => node.type === type);
            const train = find('PistachioTrainLora'), samples = LiteGraph.createNode('PistachioSampleSettings');
            samples.pos = [train.pos[0] - 380, train.pos[1] + 900];
            app.graph.add(samples);
            const join = (from, to, input) => from.connect(from.outputs.findIndex(({type}) => type === to.inputs.find(({name}) => name === input).type), to, to.inputs.findIndex(({name}) => name === input));
            join(find('CLIPLoader'), samples, 'clip');
            join(find('VAELoader'), samples, 'vae');
            join(samples, train, 'samples');
        }"""
    )
    fill(canvas, table)
    canvas.page.wait_for_selector(PANEL, timeout=WAIT_MS)


def wait_for(canvas, condition: str, timeout_ms: int = TRAIN_MS) -> None:
    script = f"panel => {{ const find = part => document.querySelector(panel + ' ' + part); return {condition}; }}"
    canvas.page.wait_for_function(script, arg=PANEL, timeout=timeout_ms)


def watch_notices(canvas) -> None:
    """Keeps the words of every notice: it goes by itself, sooner than a busy machine looks."""
    canvas.page.evaluate(
        """() => {
            window.noticesSeen = '';
            new MutationObserver((records) => {
                for (const {addedNodes} of records)
                    for (const node of addedNodes) if (node.querySelector?.('.p-toast-message, .p-toast-summary') || node.closest?.('.p-toast')) window.noticesSeen += node.textContent;
            }).observe(document.body, {subtree: true, childList: true});
        }"""
    )


def steps(canvas) -> tuple[int, int]:
    """The step that the panel shows, and of how many."""
    step, of = re.findall(r"\d+", (canvas.page.text_content(f"{PANEL} .steps") or "0 0").replace(",", ""))
    return int(step), int(of)


def test_templates_have_titles_thumbnails_and_the_order_of_the_work(canvas, keep):
    cards = open_templates(canvas)
    canvas.page.wait_for_function("count => document.querySelectorAll('[data-testid^=template-workflow-]').length === count", arg=len(TITLES), timeout=WAIT_MS)
    titles = [card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()]
    assert titles == list(TITLES.values())
    for card, title in zip(cards.all(), titles):
        card.evaluate("element => element.scrollIntoView()")
        assert title in card.text_content()
        picture = card.locator("img").first
        picture.wait_for(timeout=WAIT_MS)
        canvas.page.wait_for_function("image => image.complete && image.naturalWidth === 512", arg=picture.element_handle(), timeout=WAIT_MS)
    cards.first.evaluate("element => element.scrollIntoView()")
    keep("templates")
    canvas.page.keyboard.press("Escape")


def test_each_template_opens_whole(canvas):
    is_nodes_2 = canvas.page.evaluate("() => app.extensionManager.setting.get('Comfy.VueNodes.Enabled')")
    for key in ("one_form", "continue_run") if is_nodes_2 else TITLES:  # a template is a template in either renderer
        open_template(canvas, key)
        assert [node["type"] for node in canvas.nodes() if node["missing"] and node["type"] != "MarkdownNote"] == [], key
    assert canvas.our_errors() == []


def test_commands_have_shortcuts_of_their_own_and_settings_stand_below_pistachio(canvas, keep):
    page = canvas.page
    told = page.evaluate(
        "() => app.extensionManager.command.commands.filter(({id}) => id.startsWith('Pistachio.')).map(one => [one.id, one.keybinding?.combo.toString() ?? ''])"
    )
    assert dict(told) == {f"Pistachio.{name}": f"Alt + Shift + {key.lower()}" for name, key in SHORTCUTS.items()}
    values = page.evaluate("names => names.map(name => app.extensionManager.setting.get('Pistachio.' + name))", sorted(SETTINGS))
    assert dict(zip(sorted(SETTINGS), values)) == {
        "Chart.LogScale": False, "Chart.Smoothing": 0, "Runs.ConfirmStop": False, "Runs.RefreshSeconds": 30, "Runs.TellWhenEnded": True,
    }
    command(canvas, "Comfy.ShowSettingsDialog")
    dialog = page.get_by_role("dialog")
    press(dialog.get_by_text("Pistachio", exact=True).first)
    for words in ("Draw new charts with a log scale", "Smooth the training loss further", "Ask before a run is stopped"):
        dialog.get_by_text(words).first.wait_for(timeout=WAIT_MS)
    keep("settings")
    page.keyboard.press("Escape")


def test_from_a_template_to_an_installed_lora(canvas, server, keep, left_idle, request):
    page, run_name = canvas.page, f"journey_{request.node.callspec.id.replace(' ', '_')}"
    load_training(canvas, run_name)
    canvas.queue()
    wait_for(canvas, "/^Step [1-9]/.test(find('.steps')?.textContent)")
    page.keyboard.press("Alt+Shift+E")
    wait_for(canvas, "document.querySelectorAll(panel + ' circle.dot').length >= 2")  # the curve grows
    first, of = steps(canvas)
    assert 0 < first < of == NUM_STEPS

    page.reload()
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.length > 0", timeout=120_000)
    load_training(canvas, run_name)
    wait_for(canvas, f"Number((find('.steps')?.textContent.match(/\\d+/) ?? [0])[0]) > {first}")
    assert page.locator(f"{PANEL} circle.dot").count() >= 2  # what came before the reload is there
    page.keyboard.press("Alt+Shift+E")
    page.keyboard.press("Alt+Shift+P")
    wait_for(canvas, "document.querySelectorAll(panel + ' circle.dot').length >= 3")
    keep("training")

    watch_notices(canvas)
    page.keyboard.press("Alt+Shift+S")
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    page.wait_for_function("words => window.noticesSeen.includes(words)", arg=f"{run_name} has ended", timeout=WAIT_MS)
    stopped = server.get(f"/pistachio/runs/{run_name}")
    assert stopped["status"] == "finished" and first < stopped["last_step"] < NUM_STEPS

    page.keyboard.press("Alt+Shift+H")
    wait_for(canvas, f"Number((find('.steps')?.textContent.match(/\\d+/) ?? [0])[0]) > {stopped['last_step']}")
    assert steps(canvas)[1] == NUM_STEPS  # it was stopped before its planned end
    page.keyboard.press("Alt+Shift+S")
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    continued = server.get(f"/pistachio/runs/{run_name}")
    before, after = ([row for row in run["metrics"] if row["kind"] == "train"] for run in (stopped, continued))
    assert continued["last_step"] > stopped["last_step"] and after[: len(before)] == before
    keep("finished")

    page.keyboard.press("Alt+Shift+C")
    dialog = page.locator(".pistachio-checkpoints")
    dialog.wait_for(timeout=WAIT_MS)
    page.wait_for_function("() => document.querySelector('.pistachio-checkpoints .set:not([hidden]) img').naturalWidth > 0", timeout=WAIT_MS)
    keep("compare")
    use = dialog.get_by_role("button", name="Use this one")
    step = int(re.search(r"Step (\d+)", dialog.locator("output").text_content()).group(1))
    assert use.is_enabled() and step in continued["checkpoints"]
    press(use)
    page.wait_for_function("words => window.noticesSeen.includes(words)", arg=f"Step {step} is installed", timeout=WAIT_MS)
    assert list((server.base / "models" / "loras").glob(f"{run_name}*.safetensors"))
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert canvas.our_errors() == []


def test_captions_are_reviewed(canvas, server, keep):
    page, caption = canvas.page, server.base / "input" / tiny_workflows.FOLDER / "picture-02.txt"
    before = caption.read_text().strip()
    open_template(canvas, "caption_and_review")
    page.keyboard.press("Alt+Shift+D")
    page.wait_for_selector("dialog .pistachio-review .tile img[src]", timeout=WAIT_MS)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("ohwx, a caption by hand")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('dialog .pistachio-review .status').textContent.includes('picture-02.png: caption saved.')", timeout=WAIT_MS)
    assert caption.read_text().strip() == "ohwx, a caption by hand"
    keep("review")
    page.keyboard.press("Control+z")
    page.wait_for_function("() => document.querySelector('dialog .pistachio-review .status').textContent.startsWith('Undone')", timeout=WAIT_MS)
    assert caption.read_text().strip() == before
    page.keyboard.press("Escape")
    page.locator("dialog.pistachio-review-dialog").wait_for(state="detached")


def test_one_form_ends_on_a_test_sheet(canvas, server, keep, left_idle, request):
    page = canvas.page
    open_template(canvas, "one_form")
    fill(canvas, {
        "CheckpointLoaderSimple": {"ckpt_name": "tiny_sd15.safetensors"}, "PistachioTrainLora": {"num_steps": 2},
        "PistachioTestSheet": {"scenes": "by the sea\nin a red coat", "steps": 1, "seed": int(request.node.callspec.params["canvas"])},  # else the host remembers the sheet
    })
    before = {path.name for path in (server.base / "output" / "pistachio").glob("test_sheet*.png")}
    is_app = page.evaluate("() => app.graph.extra?.linearMode === true")
    assert is_app == has_forms(canvas)
    if is_app:
        shown = page.get_by_test_id("linear-widgets").text_content()
        assert [shown.index(words) for words in ("folder of pictures", "base model", "trigger word")] == sorted(shown.index(words) for words in ("folder of pictures", "base model", "trigger word"))
        assert page.locator(f"[data-testid=linear-widgets] {PANEL}").count() == 1
        press(page.get_by_test_id("linear-run-button").get_by_role("button", name="Run"))
    else:
        canvas.queue()
    def made():
        return [path for path in (server.base / "output" / "pistachio").glob("test_sheet*.png") if path.name not in before]

    for _ in range(TRAIN_MS // 500):
        if made() and not server.get("/queue")["queue_running"]:  # before its end a file may be there in part
            break
        page.wait_for_timeout(500)
    (sheet,) = made()
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 2 * 160  # two scenes, each without and with the LoRA
    (run,) = [run for run in server.get("/pistachio/runs")["runs"] if run["name"].startswith("ohwx_SD15_")]
    assert run["status"] == "finished" and list((server.base / "models" / "loras").glob(f"{run['name']}*.safetensors"))
    page.wait_for_timeout(1500)
    keep("one_form")
    if is_app:
        is_whole = "panel => { const {bottom} = panel.getBoundingClientRect(); return [...panel.querySelectorAll('.actions button:not([hidden])')].map(button => button.getBoundingClientRect().bottom <= bottom); }"
        assert page.locator(f"[data-testid=linear-widgets] {PANEL}").evaluate(is_whole) == [True]
        page.locator(f"[data-testid=linear-widgets] {PANEL} .actions").evaluate("actions => actions.scrollIntoView({block: 'end'})")
        keep("one_form_end")
        command(canvas, "Comfy.ToggleLinear")


def test_blueprints_stand_in_the_node_library_and_become_graphs(canvas, keep):
    page = canvas.page
    command(canvas, "Comfy.NewBlankWorkflow")
    page.wait_for_function("() => app.graph._nodes.length === 0", timeout=WAIT_MS)
    command(canvas, "Workspace.ToggleSidebarTab.node-library")
    search = page.locator(".sidebar-content-container input").first
    search.wait_for(timeout=WAIT_MS)
    for index, blueprint in enumerate(BLUEPRINTS, 1):
        search.fill(blueprint.name)
        entry = page.locator(".sidebar-content-container").get_by_text(blueprint.name, exact=True).first
        press(entry)
        page.wait_for_timeout(500)
        page.mouse.click(900, 300 * index)  # the newer host asks where
        page.wait_for_function("count => app.graph._nodes.length === count", arg=index, timeout=WAIT_MS)
    keep("blueprints")
    command(canvas, "Workspace.ToggleSidebarTab.node-library")
    types = {node["class_type"] for node in canvas.prompt().values()}
    assert {"PistachioCaptionDataset", "PistachioReviewDataset", "PistachioTrainLora", "PistachioSelectCheckpoint", "LoraLoaderModelOnly"} <= types
    titles = page.evaluate("() => app.graph._nodes.map(node => [node.title, node.widgets.map(widget => widget.name)])")
    assert titles == [[BLUEPRINTS[0].name, ["folder", "trigger_word"]], [BLUEPRINTS[1].name, ["step"]]]


def test_the_canvas_is_given_search_words_where_the_host_takes_them(canvas, server):
    words = server.object_info()["PistachioTrainLora"].get("search_aliases")
    assert (words is not None) == has_forms(canvas)
    assert words is None or {"lora", "train", "kohya"} <= set(words)


def test_nothing_of_ours_failed(canvas):
    assert [error for error in canvas.our_errors() if "api.comfy.org" not in error] == []
