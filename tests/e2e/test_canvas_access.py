"""What the pack shows on the canvas, by the rules of WCAG 2.2 AA: in the host's dark and light theme, in both renderers, by keyboard."""

import json
import math
from io import BytesIO

import pytest
import torch
from PIL import Image

from pistachio.training.run import RunFolder
from support import access
from support.canvas import Canvas
from support.pictures import write_folder

RUN, FOLDER = "looked at by all", "looked_at"
PANEL, TAB, REVIEW = ".graph-canvas-container .pistachio-panel", ".pistachio-runs", ".graph-canvas-container .pistachio-review"
REVIEW_DIALOG, CHECKPOINTS, FOLDERS = ".pistachio-review-dialog", ".pistachio-checkpoints", "dialog.pistachio-folders"
THEMES = ("dark", "light")
WAIT_MS = 30_000


def write_run(server) -> None:
    """A finished run with all that can be shown of one: a tied range, the training pictures' losses, samples, checkpoints."""
    folder = RunFolder(server.base / "output" / "pistachio" / RUN)
    if folder.path.exists():
        return
    folder.path.mkdir(parents=True)
    rows = [{"kind": "train", "step": step, "loss": 1 + 0.1 * math.sin(step), "loss_ema": 1.0, "seconds": 0.5} for step in range(1, 401)]
    for step, held_out, trained in ((0, 0.0, 0.0), (100, -10.0, -12.0), (200, -14.0, -20.0), (300, -13.8, -28.0), (400, 2.0, -40.0)):
        loss = 2.0 * (1 + held_out / 100)
        rows.append({"kind": "eval", "step": step, "loss": loss, "loss_delta": loss - 2, "loss_delta_pct": held_out, "se": 0.02, "errors": {"a" * 64: [loss]}, "t_values": {"a" * 64: [0.5]}})
        rows.append({"kind": "probe", "step": step, "train_loss": 1.5 * (1 + trained / 100), "train_delta": 1.5 * trained / 100})
        picture = BytesIO()
        Image.new("RGB", (64, 64), (step // 2, 120, 60)).save(picture, "PNG")
        files = folder.save_samples(step, {name: picture.getvalue() for name in ("00-with-trigger.png", "01-without-trigger.png")})
        rows.append({"kind": "sample", "step": step, "pictures": [{"file": file, "prompt": "a portrait", "with_trigger": not i, "seed": 0} for i, file in enumerate(files)]})
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (200, 400):
        folder.save_checkpoint(step, {"x.lora_A.weight": torch.full((1, 1), 1.0)}, {}, {}, {})
    settings = {"num_steps": 400}
    folder.write_json("config.json", {"id": RUN, "family": "SDXL", "settings": settings})
    folder.write_json("dataset.json", {"trigger_word": "ohwx", "pictures": [{}] * 20})
    folder.write_json("report.json", {
        "run": RUN, "finished": True, "settings": settings, "chosen_step": 200, "last_step": 400, "tied_range": [200, 300], "verdict": "Step 200 is best.", "eval_delta_pct": -14.0,
    })


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server, repository):
    """Train LoRA with a finished run, Review Dataset and its folder on the canvas, and the list of runs beside it."""
    write_run(server)
    pictures = write_folder(server.base / "input" / FOLDER, 6, size=(64, 48))
    (pictures / "picture-05.txt").unlink(missing_ok=True)
    write_folder(server.base / "input" / "of_folders" / "one", 1, size=(64, 48))
    context = browser.new_context(viewport={"width": 1900, "height": 1100}, reduced_motion="reduce")
    canvas = Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    page = canvas.page
    page.locator(".pistachio-runs-tab-button").click()
    page.wait_for_selector(f"{TAB} .run")
    page.evaluate(
        """([run, folder]) => {
            app.graph.clear();
            const [train, from, review] = ['PistachioTrainLora', 'PistachioLoadImageFolder', 'PistachioReviewDataset'].map(type => LiteGraph.createNode(type));
            for (const node of [train, from, review]) app.graph.add(node);
            [train.pos, from.pos, review.pos] = [[0, 0], [560, 0], [560, 330]];
            const set = (node, name, value) => { const widget = node.widgets.find(one => one.name === name); widget.value = value; widget.callback?.(value); };
            set(train, 'run_name', run);
            set(from, 'folder', folder);
            from.connect(0, review, 0);
            train.setSize([520, 900]);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [480, 60];
            app.canvas.setDirty(true, true);
        }""",
        [RUN, FOLDER],
    )
    page.wait_for_selector(f"{PANEL} circle.dot", timeout=WAIT_MS)
    page.wait_for_selector(f"{REVIEW} .tile img[src]", timeout=WAIT_MS)
    page.locator(f"{REVIEW} .toolbar button", has_text="Check").click()
    page.wait_for_function("view => document.querySelector(view + ' .status').textContent.includes('what was found')", arg=REVIEW, timeout=WAIT_MS)
    access.prepare(page, repository)
    page.keyboard.press("Tab")  # from here on the focus is shown
    yield canvas
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})
    context.close()


@pytest.fixture(params=THEMES)
def page(request, canvas):
    canvas.page.evaluate("() => document.querySelectorAll('dialog[open]').forEach(dialog => dialog.close())")  # of a test that failed
    canvas.page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", request.param)
    canvas.page.wait_for_function("isDark => Boolean(document.querySelector('.dark-theme')) === isDark", arg=request.param == "dark")
    canvas.page.wait_for_timeout(300)  # the host's own colours change gradually
    return canvas.page


def open_list(page) -> None:
    back = page.locator(f"{TAB} .details .top button").first
    if back.count():
        back.click()
    page.wait_for_selector(f"{TAB} .run")


def is_accessible(page, selector: str) -> None:
    found = access.problems(page, selector)
    assert found == [], "\n".join(found)
    found = access.focus_problems(page, selector)
    assert found == [], "\n".join(found)
    assert access.moving(page, selector) == []


def test_the_panel(page):
    is_accessible(page, PANEL)
    for part, css_property, least in ((".tick", "fill", 4.5), ("path.held-out", "stroke", 3), ("path.trained", "stroke", 3), ("circle.dot:not(.chosen)", "fill", 3)):
        assert access.contrast(page, f"{PANEL} {part}", css_property) >= least, part
    live = page.locator(f"{PANEL} [role=status]").all_text_contents()
    assert any("Step 200 is best." in words for words in live)


def test_the_list_of_runs_and_a_run(page):
    open_list(page)
    is_accessible(page, TAB)
    assert access.contrast(page, f"{TAB} path.line", "stroke") >= 3
    page.locator(f"{TAB} .run", has_text=RUN).locator(".name").click()
    page.wait_for_selector(f"{TAB} .details circle.dot")
    is_accessible(page, TAB)


def test_the_review_on_its_node(page):
    is_accessible(page, REVIEW)
    page.locator(f"{REVIEW} .grid").focus()
    assert page.evaluate("view => { const grid = document.querySelector(view + ' .grid'); return grid.contains(document.getElementById(grid.getAttribute('aria-activedescendant'))); }", REVIEW)
    page.keyboard.press("?")
    page.wait_for_selector(f"{REVIEW} .help:not([hidden])")
    is_accessible(page, f"{REVIEW} .help")
    page.keyboard.press("Escape")
    page.locator(f"{REVIEW} .grid").focus()
    page.keyboard.press("Enter")
    is_accessible(page, f"{REVIEW} .editor")
    page.locator(f"{REVIEW} .editor textarea").press("Escape")


def test_the_review_in_its_dialog(page):
    page.evaluate("() => app.extensionManager.command.execute('Pistachio.ReviewDataset')")
    page.wait_for_selector(f"{REVIEW_DIALOG} .tile img[src]", timeout=WAIT_MS)
    is_accessible(page, REVIEW_DIALOG)
    page.locator(f"{REVIEW_DIALOG} .grid").focus()
    page.keyboard.press("Escape")
    page.wait_for_selector(REVIEW_DIALOG, state="detached")


def test_the_checkpoints(page):
    open_list(page)
    page.locator(f"{TAB} .run", has_text=RUN).locator(".name").click()
    opener = page.get_by_role("button", name="Compare checkpoints")
    opener.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{CHECKPOINTS} .set:not([hidden]) img")
    is_accessible(page, CHECKPOINTS)
    page.keyboard.press("Escape")
    page.wait_for_selector(CHECKPOINTS, state="detached")
    assert page.evaluate("() => document.activeElement?.textContent") == "Compare checkpoints"


def test_the_choice_of_a_folder(page):
    node = page.locator(".graph-canvas-container .pistachio-folder")
    assert access.problems(page, ".graph-canvas-container .pistachio-folder") == []
    node.get_by_role("button", name="Choose a folder").click()
    page.wait_for_selector(f"{FOLDERS} .row")
    is_accessible(page, FOLDERS)
    page.keyboard.press("Escape")
    page.wait_for_selector(FOLDERS, state="detached")


def test_nothing_of_ours_failed(canvas):
    assert canvas.our_errors() == []
