"""The live panel on Train LoRA in a real browser, in both renderers: it grows while it trains, is there after a reload, and
loses nothing when a page comes late or its connection breaks."""

import json
import math
import re
from pathlib import Path

import pytest

from support import tiny_workflows
from support.canvas import Canvas
from support.pictures import write_folder

WORKFLOW = tiny_workflows.BUNDLED["train_character_wan21"]
TRAIN_TIMEOUT_MS = 400_000
NUM_STEPS, NUM_EVALUATIONS = 300, 6  # some seconds, so that a busy machine draws states in between
PANEL = ".pistachio-panel"


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server):
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    context.close()
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})


def load(canvas, run_name: str) -> None:
    """The bundled workflow with the tiny values written into its widgets, seen at the train node."""
    canvas.load(WORKFLOW)
    table = tiny_workflows.swaps("wan21", run_name=run_name, num_steps=NUM_STEPS)
    table["PistachioEvaluationSettings"] = {"num_evaluations": NUM_EVALUATIONS, "timesteps_per_image": 2, "early_stop": False}
    canvas.fill(table, centre="PistachioTrainLora", offset=(200, 120))
    canvas.page.wait_for_selector(PANEL, timeout=30_000)


def text(canvas, part: str) -> str:
    return canvas.page.text_content(f"{PANEL} {part}") or ""


def dots(canvas) -> int:
    return canvas.page.locator(f"{PANEL} circle.dot").count()


def watch(canvas) -> None:
    """Notes every state that the panel is drawn in: what is shown for a moment is missed by asking now and then."""
    canvas.page.evaluate(
        """panel => {
            const root = document.querySelector(panel);
            window.panelSeen = [];
            window.phasesTold = [];
            app.api.addEventListener('pistachio.phase', event => window.phasesTold.push(event.detail.phase));
            new MutationObserver(() => {
                const text = part => root.querySelector(part).textContent;
                if (text('.steps')) window.panelSeen.push([text('.steps'), text('.status'), root.querySelectorAll('circle.dot').length, text('.phase'), text('.memory')]);
            }).observe(root, {subtree: true, childList: true, characterData: true});
        }""",
        PANEL,
    )


def wait_for(canvas, condition: str) -> None:
    canvas.page.wait_for_function(f"panel => {{ const find = part => document.querySelector(panel + ' ' + part); return {condition}; }}", arg=PANEL, timeout=TRAIN_TIMEOUT_MS)


def test_the_curve_grows_while_it_trains_and_is_there_after_a_reload(canvas, server, request):
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    run_name = f"panel_{request.node.callspec.id.replace(' ', '_')}"
    load(canvas, run_name)
    assert "held-out" in text(canvas, ".hint") and dots(canvas) == 0

    watch(canvas)
    canvas.queue()
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    details = server.get(f"/pistachio/runs/{run_name}")
    evaluations = [row for row in details["metrics"] if row["kind"] == "eval"]
    # The node's end, at which the panel asks for the whole history once more, comes after the run's.
    canvas.page.wait_for_function("() => fetch('/queue').then((answer) => answer.json()).then((queue) => queue.queue_running.length === 0)", timeout=120_000)
    # The same question asked after the panel's is answered after it, however slow the machine.
    canvas.page.evaluate(f"() => fetch('/pistachio/runs/{run_name}').then((answer) => answer.text())")
    canvas.page.wait_for_timeout(1500)
    seen = canvas.page.evaluate("() => window.panelSeen")
    assert any(" left" in status and ("steps/s" in status or "a step" in status) for _, status, *_ in seen)
    assert {"training", "evaluating"} <= {phase for *_, phase, _ in seen}
    assert "caching" in canvas.page.evaluate("() => window.phasesTold")  # a quick machine has cached before the page draws it
    assert any(memory.startswith("ComfyUI's process ") and "peak " in memory and "RAM " in memory for *_, memory in seen)
    assert len({steps for steps, *_ in seen}) > 3 and seen[-1][0] == f"Step {NUM_STEPS} of {NUM_STEPS}"
    counts = [count for _, _, count, *_ in seen]
    assert counts == sorted(counts) and len(set(counts)) > 2  # it grew before it was finished
    assert dots(canvas) == len(evaluations) == counts[-1]
    assert text(canvas, ".words") == details["verdict"]
    assert str(details["chosen_step"]) in text(canvas, ".status")
    assert canvas.page.locator(f"{PANEL} path.training").count() == 1
    drawn = canvas.page.inner_html(f"{PANEL} .plot")

    canvas.page.reload()
    canvas.page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.length > 0", timeout=120_000)
    load(canvas, run_name)
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    canvas.page.wait_for_timeout(1500)
    assert dots(canvas) == len(evaluations) and text(canvas, ".words") == details["verdict"]
    assert canvas.page.inner_html(f"{PANEL} .plot") == drawn

    name_widget = "app.graph._nodes.find(node => node.type === 'PistachioTrainLora').widgets.find(widget => widget.name === 'run_name')"
    canvas.page.evaluate(f"() => {{ const widget = {name_widget}; widget.value = 'no_such_run'; widget.callback('no_such_run'); }}")
    wait_for(canvas, "!find('.hint').hidden && find('.hint').offsetHeight > 0")


def points(path: str) -> list[str]:
    return re.split("[ML]", path)[1:]


class Wire:
    """A page's websocket that the test can deafen: what the server sends then is lost, and nobody says so."""

    def __init__(self, page):
        self.is_deaf, self.lost = False, 0
        page.route_web_socket(re.compile(r"/ws(\?|$)"), self.opened)

    def opened(self, socket):
        server = socket.connect_to_server()
        socket.on_message(server.send)
        server.on_message(lambda message: self.pass_on(socket, message))

    def pass_on(self, socket, message):
        if self.is_deaf and isinstance(message, str) and '"pistachio.' in message:
            self.lost += 1
        else:
            socket.send(message)


def test_nothing_is_lost_in_a_second_tab_on_a_broken_connection_or_by_a_reload(canvas, browser, server, request):
    """The second tab never hears that the node has ended, so all that it shows came by the history and the events."""
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    run_name = f"watched_{request.node.callspec.id.replace(' ', '_')}"
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    try:
        second = Canvas(page=context.new_page(), server=server)
        wire = Wire(second.page)
        second.open()
        load(canvas, run_name)
        canvas.queue()
        wait_for(canvas, "/^Step [1-9]/.test(find('.steps')?.textContent)")
        load(second, run_name)  # in the middle
        wait_for(second, "/^Step [1-9]/.test(find('.steps')?.textContent)")
        wire.is_deaf = True
        while not wire.lost:
            second.page.wait_for_timeout(50)
        wire.is_deaf = False
        second.page.evaluate("() => app.api.socket.close()")
        canvas.page.reload()  # this one in the middle of it too
        canvas.page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.length > 0", timeout=120_000)
        load(canvas, run_name)
        for each in (canvas, second):
            wait_for(each, "find('.status')?.textContent.startsWith('finished')")
        details = server.get(f"/pistachio/runs/{run_name}")
        second.page.wait_for_timeout(500)
        drawn = second.page.get_attribute(f"{PANEL} path.training", "d")
        assert text(second, ".words") == details["verdict"] and text(second, ".steps") == f"Step {NUM_STEPS} of {NUM_STEPS}"
        assert dots(second) == len([row for row in details["metrics"] if row["kind"] == "eval"])
        second.page.evaluate("run => { const node = app.graph._nodes.find(node => node.type === 'PistachioTrainLora');"
                             " node.widgets.find(widget => widget.name === 'run_name').callback(run); }", run_name)  # asks for all of it anew
        second.page.wait_for_timeout(1500)
        assert points(second.page.get_attribute(f"{PANEL} path.training", "d")) == points(drawn)
        assert len(points(drawn)) > NUM_STEPS / 2
        assert canvas.our_errors() == [] and second.our_errors() == []
    finally:
        context.close()


def test_stop_measures_and_keeps_what_there_is(canvas, server, request):
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    run_name = f"stopped_{request.node.callspec.id.replace(' ', '_')}"
    load(canvas, run_name)
    canvas.queue()
    stop = canvas.page.locator(f"{PANEL} button", has_text="Stop and keep")
    stop.wait_for(timeout=TRAIN_TIMEOUT_MS)
    assert not canvas.page.locator(f"{PANEL} button", has_text="Continue by half").is_visible()
    wait_for(canvas, "/^Step [1-9]/.test(find('.steps')?.textContent)")
    stop.click()
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    details = server.get(f"/pistachio/runs/{run_name}")
    assert 0 < details["last_step"] < NUM_STEPS and details["last_step"] in details["checkpoints"]
    assert any("you stopped it" in note for note in details["report"]["notes"])
    canvas.page.locator(f"{PANEL} button", has_text=f"Continue to {NUM_STEPS}").click()
    wait_for(canvas, f"find('.status')?.textContent.startsWith('finished') && find('.steps').textContent === 'Step {NUM_STEPS} of {NUM_STEPS}'")
    canvas.page.locator(f"{PANEL} button", has_text="Continue by half").wait_for()
    assert server.get(f"/pistachio/runs/{run_name}")["last_step"] == NUM_STEPS


LONG = 8000  # steps: more than the page keeps one by one


def finished(server, run_name: str) -> None:
    """A run as training leaves it, with a tied range, the training pictures' own losses and its memory."""
    folder = server.base / "output" / "pistachio" / run_name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"kind": "train", "step": step, "loss": 2.0, "loss_ema": 1.0 + 0.1 * math.sin(step), "seconds": 0.5} for step in range(1, LONG + 1)]
    for share, held_out, trained in ((0, 0.0, 0.0), (1, -10.0, -12.0), (2, -14.0, -20.0), (3, -13.8, -28.0), (4, -9.0, -40.0)):
        step = share * LONG // 4
        loss = 2.0 * (1 + held_out / 100)
        rows.append({"kind": "eval", "step": step, "loss": loss, "loss_delta": loss - 2.0, "loss_delta_pct": held_out, "se": 0.02, "errors": {}, "t_values": {}})
        rows.append({"kind": "probe", "step": step, "train_loss": 1.5 * (1 + trained / 100), "train_delta": 1.5 * trained / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"num_steps": LONG}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    (folder / "report.json").write_text(json.dumps({
        "finished": True, "settings": settings, "chosen_step": 4000, "last_step": LONG, "tied_range": [4000, 6000], "verdict": "Step 4000 is best.", "eval_delta_pct": -14.0,
    }))
    plan = {"phases": {"step": 11_000_000_000, "evaluation": 9_000_000_000}}
    (folder / "plan.json").write_text(json.dumps({"plan": plan, "measured_bytes": 10_500_000_000, "limit_bytes": 15_000_000_000, "situation": {"device": "a card"}}))


def test_the_chart_answers_the_pointer(canvas, server, request):
    run_name = f"looked_at_{request.node.callspec.id.replace(' ', '_')}"
    finished(server, run_name)
    load(canvas, run_name)
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")
    page = canvas.page
    assert page.locator(f"{PANEL} rect.tied").count() == 1 and page.locator(f"{PANEL} path.trained").count() == 1
    page.wait_for_timeout(500)  # the panel takes its last size
    # In one call of the page: a redraw replaces the dots.
    box = page.evaluate("dot => document.querySelector(dot).getBoundingClientRect().toJSON()", f"{PANEL} circle.dot.chosen")
    x, y = box["x"] + box["width"] / 2, box["y"] + 20
    page.mouse.move(x, y)
    page.wait_for_selector(f"{PANEL} .readout")
    assert page.text_content(f"{PANEL} .readout").startswith("step 4000 · held out −14 % ± 1.0 · training pictures −20 % · gap 6.0 points · training loss ")
    assert text(canvas, ".memory") == "peak 10.5 GB · planned 11.0 GB · limit 15.0 GB"
    assert text(canvas, ".legend .trained") == "training pictures, gap 31.0 points"

    ticks = page.locator(f"{PANEL} text.tick").all_text_contents()
    page.mouse.down()
    page.mouse.move(x + box["width"] * 8, y, steps=3)
    whole = page.get_attribute(f"{PANEL} path.training", "d")
    page.mouse.up()
    page.wait_for_selector(f"{PANEL} button.whole:not([hidden])")
    assert page.locator(f"{PANEL} text.tick").all_text_contents() != ticks and page.locator(f"{PANEL} circle.dot").count() < 5
    page.wait_for_function("([path, whole]) => document.querySelector(path).getAttribute('d') !== whole", arg=[f"{PANEL} path.training", whole])
    assert any("/history?first=" in address for address in canvas.requested)  # a part is drawn in the server's detail
    page.locator(f"{PANEL} button.whole").click()
    assert page.locator(f"{PANEL} circle.dot").count() == 5

    page.locator(f"{PANEL} .plot").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert text(canvas, ".readout").startswith("step 2000 · held out −10 %")
    page.keyboard.press("+")
    page.wait_for_selector(f"{PANEL} button.whole:not([hidden])")
    page.keyboard.press("0")
    page.wait_for_selector(f"{PANEL} button.whole", state="hidden")

    line = page.get_attribute(f"{PANEL} path.held-out", "d")
    page.locator(f"{PANEL} button.log").click()
    assert page.get_attribute(f"{PANEL} path.held-out", "d") != line
    assert canvas.our_errors() == []


BLUEPRINT = Path(__file__).parents[2] / "subgraphs" / "Train and choose (Pistachio).json"
INSIDE = """() => {
    const outer = app.graph._nodes.find(node => node.subgraph);
    app.canvas.openSubgraph ? app.canvas.openSubgraph(outer.subgraph, outer) : app.canvas.setGraph(outer.subgraph);
    const train = outer.subgraph._nodes.find(node => node.type === 'PistachioTrainLora');
    app.canvas.ds.scale = 0.7; // the whole of a tall node; from farther away Nodes 2.0 draws no buttons
    app.canvas.ds.offset = [400 - train.pos[0], 140 - train.pos[1]];
    app.canvas.setDirty(true, true);
    return `${outer.id}:${train.id}`;
}"""


def test_in_a_subgraph_the_panel_keeps_its_run_over_a_reload_and_continues_it_there(canvas, server, request):
    """The node's run_name is linked in the blueprint, so that the canvas hears the run's name from the server alone."""
    run_name = f"within_{request.node.callspec.id.replace(' ', '_')}"
    finished(server, run_name)
    page, sent = canvas.page, []
    canvas.load(BLUEPRINT)
    path = page.evaluate(INSIDE)
    page.locator(f"{PANEL} .hint").wait_for(timeout=30_000)
    tell = "([node, run, workflow]) => app.api.dispatchEvent(new CustomEvent('executed', { detail: { node, output: { pistachio_run: [{ run, workflow }] } } }))"
    page.evaluate(tell, [path, "of another workflow", "not this one"])
    page.evaluate(tell, [path, run_name, page.evaluate("() => app.graph.id")])
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")

    # The host keeps what was changed a moment later.
    page.wait_for_function("run => [localStorage, sessionStorage].some(kept => Object.values({...kept}).some(text => text.includes(run)))", arg=run_name, timeout=30_000)
    page.reload()  # it opens the workflow again as it stood
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph?._nodes.some(node => node.subgraph)", timeout=120_000)
    page.evaluate(INSIDE)
    wait_for(canvas, "find('.status')?.textContent.startsWith('finished')")

    def take(route):
        sent.append(route.request.post_data_json)
        route.fulfill(json={"prompt_id": "taken", "number": 1, "node_errors": {}})

    page.route("**/api/prompt", take)
    page.locator(f"{PANEL} button", has_text="Continue by half").click()
    for _ in range(100):
        if sent:
            break
        page.wait_for_timeout(100)
    page.unroute("**/api/prompt")
    (prompt,) = [each["prompt"] for each in sent]
    trained = prompt[path]["inputs"]
    assert trained["num_steps"] == LONG * 3 // 2
    assert prompt[trained["continue_run"][0]]["class_type"] == "PistachioLoadRun" and prompt[trained["continue_run"][0]]["inputs"]["run"] == run_name
    assert canvas.our_errors() == []


def test_caching_is_told_of_the_open_workflow_alone(canvas, server):
    """Another workflow's node may have the same number; which workflow a prompt is of stands in the server's queue."""
    load(canvas, "never_run")
    page = canvas.page
    source, workflow = page.evaluate(
        "() => { const train = app.graph._nodes.find(node => node.type === 'PistachioTrainLora');"
        " return [train.getInputNode(train.inputs.findIndex(input => input.name === 'encoded')).id, app.graph.id]; }"
    )
    queue = [[1, "ours", {}, {"extra_pnginfo": {"workflow": {"id": workflow}}}, []], [2, "theirs", {}, {"extra_pnginfo": {"workflow": {"id": "another"}}}, []]]
    page.route("**/api/queue", lambda route: route.fulfill(json={"queue_running": queue, "queue_pending": []}))
    tell = "async detail => { app.api.dispatchEvent(new CustomEvent('progress', { detail })); await new Promise(done => setTimeout(done, 500)); }"
    page.evaluate(tell, {"node": str(source), "value": 5, "max": 20, "prompt_id": "theirs"})
    assert "held-out" in text(canvas, ".hint")
    page.evaluate(tell, {"node": str(source), "value": 5, "max": 20, "prompt_id": "ours"})
    assert "5 of 20" in text(canvas, ".hint")
    page.evaluate(tell, {"node": str(source), "value": 20, "max": 20, "prompt_id": "ours"})
    assert "held-out" in text(canvas, ".hint")
    page.unroute("**/api/queue")


def test_the_panel_is_not_saved_and_not_sent(canvas):
    load(canvas, "never_run")
    written = next(node for node in json.loads(WORKFLOW.read_text())["nodes"] if node["type"] == "PistachioTrainLora")
    saved = canvas.page.evaluate("() => window.app.graph.serialize().nodes.find(node => node.type === 'PistachioTrainLora')")
    assert len([value for value in saved["widgets_values"] if value is not None]) == len(written["widgets_values"])
    (sent,) = [node for node in canvas.prompt().values() if node["class_type"] == "PistachioTrainLora"]
    assert "live" not in sent["inputs"]


def test_the_panel_fills_its_node_and_stays_inside(canvas):
    load(canvas, "never_run")
    canvas.page.wait_for_timeout(1000)
    box = canvas.page.locator(PANEL).bounding_box()
    size = canvas.page.evaluate(
        "() => { const node = app.graph._nodes.find(node => node.type === 'PistachioTrainLora'); return [node.size[0] * app.canvas.ds.scale, node.size[1] * app.canvas.ds.scale]; }"
    )
    assert 0.85 * size[0] < box["width"] <= size[0] + 1
    assert 200 < box["height"] < size[1]
