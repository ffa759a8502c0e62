"""The live panel on Train LoRA in a real browser, in both renderers: it grows while it trains and is there after a reload."""

import json
from pathlib import Path

import pytest

from support import tiny_workflows
from support.canvas import Canvas
from support.pictures import write_folder

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "train_character_wan21.json"
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
    canvas.page.evaluate(
        """table => {
            for (const node of app.graph._nodes)
                for (const [name, value] of Object.entries(table[node.type] ?? {})) {
                    const widget = node.widgets.find(widget => widget.name === name);
                    widget.value = value;
                    widget.callback?.(value);
                }
            const train = app.graph._nodes.find(node => node.type === 'PistachioTrainLora');
            app.canvas.ds.scale = 0.9;
            app.canvas.ds.offset = [200 - train.pos[0], 120 - train.pos[1]];
            app.canvas.setDirty(true, true);
        }""",
        table,
    )
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
            new MutationObserver(() => {
                const text = part => root.querySelector(part).textContent;
                if (text('.steps')) window.panelSeen.push([text('.steps'), text('.status'), root.querySelectorAll('circle.dot').length]);
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
    assert any(status.endswith(" left") for _, status, _ in seen)
    assert len({steps for steps, _, _ in seen}) > 3 and seen[-1][0] == f"Step {NUM_STEPS} of {NUM_STEPS}"
    counts = [count for _, _, count in seen]
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
