"""The list of runs in the sidebar, in a real browser: search, open, compare, install, rename, continue, trash; by mouse and by keys; what the settings change there."""

import json
import math
import re
import shutil
import urllib.error
import urllib.request
from io import BytesIO

import pytest
import torch
from PIL import Image

from pistachio.training.run import RunFolder
from support import many_runs
from support.canvas import Canvas

TAB = ".pistachio-runs"


def evaluation(step, percent, *, base):
    loss = base * (1 + percent / 100)
    return {"kind": "eval", "step": step, "loss": loss, "loss_delta": loss - base, "loss_delta_pct": percent, "se": 0.02,
            "errors": {"a" * 64: [loss]}, "t_values": {"a" * 64: [0.5]}}


def write_run(server, name, percents, *, base=2.0, trigger="ohwx"):
    """As training leaves it, with two checkpoints of a tiny file."""
    folder = RunFolder(server.base / "output" / "pistachio" / name)
    folder.path.mkdir(parents=True)
    folder.write_json("config.json", {"id": name, "family": "SDXL", "base_file": "tiny_xl.safetensors", "settings": {"num_steps": 200}})
    folder.write_json("dataset.json", {"trigger_word": trigger, "pictures": [{}] * 20})
    rows = [{"kind": "train", "step": step, "loss": 1.0, "loss_ema": 1.0 + 0.2 * math.sin(step)} for step in range(1, 201)]
    rows += [evaluation(100 * i, percent, base=base) for i, percent in enumerate(percents)]
    for step in (0, 100, 200):
        picture = BytesIO()
        Image.new("RGB", (64, 64), (step, 120, 60)).save(picture, "PNG")
        (file,) = folder.save_samples(step, {"00-with-trigger.png": picture.getvalue()})
        rows.append({"kind": "sample", "step": step, "pictures": [{"file": file, "prompt": "a portrait", "with_trigger": True, "seed": 7}]})
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (100, 200):
        folder.save_checkpoint(step, {"x.lora_A.weight": torch.full((1, 1), float(step))}, {}, {}, {})
    folder.write_json("report.json", {
        "run": name, "chosen_step": 100, "last_step": 200, "finished": True, "verdict": f"Step 100 of {name} is best.",
        "eval_delta_pct": percents[1], "settings": {"num_steps": 200}, "state": "overfit", "tied_range": [100, 100],
    })
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["nodes 1", "nodes 2"])
def canvas(request, browser, server):
    for name, *rest in (("side mia", (0, -12, -9)), ("side tom", (0, -4, 3)), ("side other", (0, -1, -2), 2.5)):
        if not (server.base / "output" / "pistachio" / name).exists():
            write_run(server, name, rest[0], base=rest[1] if len(rest) > 1 else 2.0)
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, permissions=["clipboard-read", "clipboard-write"])
    yield Canvas(page=context.new_page(), server=server).open(nodes_2=request.param)
    context.close()
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def tab(canvas):
    """The list, with every search and tick taken away."""
    page = canvas.page
    if not page.locator(TAB).count():
        page.locator(".pistachio-runs-tab-button").click()
        page.wait_for_selector(f"{TAB}")
    back = page.locator(f"{TAB} button", has_text="All runs")
    if back.count():
        back.click()
    page.locator(f"{TAB} input[type=search]").fill("side")
    ticked = page.locator(f"{TAB} .run input:checked")
    while ticked.count():
        ticked.first.uncheck()
    return page.locator(TAB)


def names(tab):
    return sorted(tab.locator(".run .name").all_text_contents())


def test_a_search_finds_runs_by_every_word(tab):
    assert names(tab) == ["side mia", "side other", "side tom"]
    row = tab.locator(".run", has_text="side mia")
    assert row.locator(".better").text_content() == "−12 %" and row.locator(".base").text_content() == "tiny_xl"
    assert row.locator(".verdict").text_content() == "Step 100 of side mia is best." and " kB" in row.locator(".about").text_content()
    assert row.locator("path.line").count() == 1
    tab.locator("input[type=search]").fill("side SDXL tom")
    assert names(tab) == ["side tom"]
    tab.locator("input[type=search]").fill("side nobody")
    assert tab.locator(".nothing").text_content() == "No run has these words."
    assert tab.locator(".total").text_content().startswith("0 of ")


def test_runs_of_one_protocol_share_a_chart_and_others_say_why_not(tab):
    compare = tab.get_by_role("button", name="Compare", exact=True)
    tab.get_by_label("Compare side mia").check()
    assert compare.is_disabled()
    tab.get_by_label("Compare side tom").check()
    compare.click()
    tab.locator(".compared path").nth(1).wait_for()
    assert tab.locator(".compared path").count() == 2 and tab.locator(".problem").count() == 0
    assert "side mia ends at −9.0 %" in tab.locator(".compared svg").get_attribute("aria-label")
    assert tab.locator(".key .value").all_text_contents() == ["−12 %, step 100 chosen", "−4.0 %, step 100 chosen"]
    tab.locator(".compared").press("End")  # the last step, of both
    assert tab.locator(".key .value").all_text_contents() == ["step 200: −9.0 % ± 1.0", "step 200: +3.0 % ± 1.0"]
    tab.get_by_role("button", name="All runs").click()
    tab.get_by_label("Compare side other").check()
    compare.click()
    tab.locator(".problem").wait_for()
    assert "began at other losses" in tab.locator(".problem").text_content() and tab.locator(".compared path").count() == 2
    tab.get_by_role("button", name="All runs").click()
    tab.get_by_label("Compare side tom").uncheck()
    compare.click()
    tab.locator(".problem").wait_for()
    assert tab.locator(".compared").count() == 0


def test_a_checkpoint_is_installed_from_the_list(tab, server):
    tab.get_by_role("button", name="side mia", exact=True).click()
    tab.get_by_label("Install step 200").click()
    tab.locator("tr", has_text="your choice").wait_for()
    assert (server.base / "models" / "loras" / "side mia-step200.safetensors").is_file()
    assert tab.locator("tr.chosen th").text_content() == "100chosen"
    assert tab.locator("circle.dot").count() == 3


def test_a_choice_is_marked_where_a_report_records_it_and_the_keys_stay_with_the_button(tab, canvas, server, request):
    """A run that was interrupted has no report; a finished one's is in the test before."""
    name = f"side stopped {request.node.callspec.id}"
    folder = write_run(server, name, (0, -3, -5))
    (folder.path / "report.json").unlink()
    tab.get_by_label("Read the list again").click()
    tab.get_by_role("button", name=name, exact=True).click()
    install = tab.get_by_label("Install step 200")
    with canvas.page.expect_response(lambda answer: answer.url.endswith("/install")) as answered:
        install.press("Enter")
    assert answered.value.json()["recorded"] is False
    canvas.page.locator(".p-toast-message", has_text="Step 200 is installed").first.wait_for()
    assert tab.locator("tr", has_text="your choice").count() == 0
    tab.get_by_role("button", name="All runs").click()
    tab.get_by_role("button", name="side other", exact=True).click()
    tab.get_by_label("Install step 200").press("Enter")
    tab.locator("tr", has_text="your choice").wait_for()  # its rows are drawn anew
    assert canvas.page.evaluate("() => document.activeElement.ariaLabel") == "Install step 200"
    folder.path.rename(server.base / name)


def test_the_page_of_a_run_that_is_trained_goes_on(tab, canvas, server, request):
    name = f"under way {request.node.callspec.id}"
    folder, page = write_run(server, name, (0, -3)), canvas.page
    (folder.path / "report.json").unlink()
    with folder.locked():
        tab.get_by_label("Read the list again").click()
        tab.locator("input[type=search]").fill(name)
        tab.get_by_role("button", name=name, exact=True).click()
        tab.locator("circle.dot").nth(1).wait_for()
        tab.locator("h3").evaluate("heading => { heading.dataset.before = 'yes'; }")
        row = {key: value for key, value in evaluation(200, -5, base=2.0).items() if key not in ("kind", "errors", "t_values")}
        page.evaluate(
            "detail => app.api.dispatchEvent(new CustomEvent('pistachio.evaluation', { detail }))",
            row | {"run": name, "node_id": "1", "num_steps": 200, "sitting": None, "sequence": 1},  # this server does not train it, and has no sitting
        )
        tab.locator("circle.dot").nth(2).wait_for()
        assert "−5.0 % ± 1.0" in tab.locator("table.checkpoints tr", has_text="200").text_content()
    with (folder.path / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps(evaluation(200, -5, base=2.0)) + "\n")
    page.evaluate("() => app.api.dispatchEvent(new CustomEvent('execution_interrupted', { detail: {} }))")
    tab.locator(".status", has_text="queue again to go on").wait_for()
    assert "interrupted at step 200 of 200" in tab.locator(".about").text_content()
    assert tab.locator("h3").get_attribute("data-before") == "yes" and tab.locator("circle.dot").count() == 3  # the same page all along
    folder.path.rename(server.base / name)


def test_checkpoints_are_compared_by_their_samples_and_one_is_taken(tab, canvas, server):
    page, dialog = canvas.page, canvas.page.locator(".pistachio-checkpoints")
    lora, report = server.base / "models" / "loras" / "side tom-step200.safetensors", RunFolder(server.base / "output" / "pistachio" / "side tom").report
    tab.get_by_role("button", name="side tom", exact=True).click()
    tab.get_by_role("button", name="Compare checkpoints").click()
    assert dialog.locator("output").text_content() == "Step 100 · held-out loss −4.0 % ± 1.0 · chosen"
    page.wait_for_function("() => document.querySelector('.pistachio-checkpoints .set:not([hidden]) img').naturalWidth > 0")
    page.keyboard.press("ArrowRight")
    assert dialog.locator("output").text_content() == "Step 200 · held-out loss +3.0 % ± 1.0"
    assert dialog.locator(".set:not([hidden]) img").get_attribute("alt") == "Step 200: a portrait"
    assert "seed 7" in dialog.locator(".set:not([hidden]) figcaption").text_content()
    dialog.get_by_role("button", name="Use this one").click()
    page.wait_for_function("() => document.querySelector('.pistachio-checkpoints output').value.endsWith('your choice')")
    assert lora.is_file() and report()["override"]["step"] == 200
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "the base model" in dialog.locator("output").text_content() and dialog.get_by_role("button", name="Use this one").is_disabled()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert page.evaluate("() => document.activeElement.textContent") == "Compare checkpoints"
    with urllib.request.urlopen(f"{server.url}/experiment/models/preview/loras/0/side%20tom-step200.safetensors") as shown:  # ComfyUI's own model browser
        assert shown.status == 200 and shown.headers.get_content_type() == "image/webp"
    server.post("/pistachio/runs/side%20tom/install", {"step": 100})
    assert "override" not in report() and lora.is_file()


def test_all_steps_stand_side_by_side(tab, canvas):
    dialog = canvas.page.locator(".pistachio-checkpoints")
    tab.get_by_role("button", name="side mia", exact=True).click()
    tab.get_by_role("button", name="Compare checkpoints").click()
    dialog.get_by_role("button", name="All steps").click()
    assert dialog.get_by_role("columnheader").count() == 3 and dialog.locator(".all tbody img").count() == 3
    assert dialog.locator("th.shown").text_content() == "Step 100−12 % ± 1.0chosen"
    canvas.page.keyboard.press("End")
    assert dialog.locator("th.shown .step").text_content() == "Step 200"
    dialog.locator(".all td").nth(2).click()  # the corner is a cell too
    assert dialog.locator("output").text_content().startswith("Step 100")
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="detached")


def test_the_list_is_walked_by_keys(tab, canvas):
    focused = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    shown, page = tab.locator(".run .name").all_text_contents(), canvas.page
    tab.get_by_label("Read the list again").focus()
    page.keyboard.press("Tab")  # to the run that was open last
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == shown[1]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "Copy the trigger word ohwx"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    tab.locator("h3", has_text=shown[2]).wait_for()
    tab.get_by_role("button", name="All runs").press("Enter")
    assert page.evaluate(focused) == shown[2]


def test_the_trigger_is_copied(tab, canvas):
    tab.get_by_role("button", name="side mia", exact=True).click()
    tab.get_by_label("Copy the trigger word ohwx").click()
    canvas.page.wait_for_function("async () => (await navigator.clipboard.readText()) === 'ohwx'")
    tab.get_by_role("button", name="All runs").click()
    canvas.page.evaluate("() => navigator.clipboard.writeText('')")
    tab.get_by_label("Copy the trigger word ohwx").first.click()
    canvas.page.wait_for_function("async () => (await navigator.clipboard.readText()) === 'ohwx'")


def test_a_run_is_continued_on_the_canvas(tab, canvas):
    canvas.page.evaluate("() => { app.graph.clear(); const node = LiteGraph.createNode('PistachioTrainLora'); node.pos = [900, 200]; app.graph.add(node); }")
    tab.get_by_role("button", name="side mia", exact=True).click()
    tab.get_by_role("button", name="Continue").click()
    canvas.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'PistachioLoadRun')")
    assert canvas.page.evaluate(
        "() => { const train = app.graph._nodes.find(node => node.type === 'PistachioTrainLora');"
        " const loader = train.getInputNode(train.inputs.findIndex(input => input.name === 'continue_run'));"
        " return loader.widgets.find(widget => widget.name === 'run').value; }"
    ) == "side mia"


def test_the_command_continues_the_nodes_own_run_alone(tab, canvas):
    """It queues the graph at once: another run's name would train somebody else."""
    page = canvas.page
    page.evaluate("() => { app.graph.clear(); const node = LiteGraph.createNode('PistachioTrainLora'); app.graph.add(node);"
                  " node.widgets.find(widget => widget.name === 'run_name').value = 'side not there'; }")
    page.evaluate("() => { app.extensionManager.command.execute('Pistachio.ContinueByHalf'); }")
    page.locator(".p-toast-message", has_text="There is no run to continue.").first.wait_for()
    assert page.evaluate("() => app.graph._nodes.length") == 1 and page.evaluate("() => app.graph._nodes[0].widgets.find(widget => widget.name === 'num_steps').value") == 0


def test_a_run_is_put_on_the_canvas(tab, canvas):
    canvas.page.evaluate("() => app.graph.clear()")
    tab.get_by_role("button", name="side tom", exact=True).click()
    tab.get_by_role("button", name="Put on canvas").click()
    canvas.page.wait_for_function("() => app.graph._nodes.length === 2")
    assert canvas.page.evaluate(
        "() => { const select = app.graph._nodes.find(node => node.type === 'PistachioSelectCheckpoint');"
        " return select.getInputNode(select.inputs.findIndex(input => input.name === 'run')).widgets.find(widget => widget.name === 'run').value; }"
    ) == "side tom"


def test_a_run_is_renamed_and_moved_to_the_trash(tab, canvas, server, request):
    page, folder = canvas.page, server.base / "output" / "pistachio"
    name = f"side {request.node.callspec.id}"
    write_run(server, f"{name} first", (0, -3, -5))
    tab.get_by_label("Read the list again").click()
    tab.get_by_role("button", name=f"{name} first", exact=True).click()
    tab.get_by_role("button", name="Rename").focus()
    page.keyboard.down("Enter")
    page.wait_for_timeout(300)  # as long as a finger is on the key
    page.keyboard.up("Enter")
    box = page.get_by_role("dialog").get_by_role("textbox")
    box.fill(f"{name} last")
    box.press("Enter")
    tab.locator("h3", has_text=f"{name} last").wait_for()
    page.wait_for_function("name => document.activeElement.textContent === name", arg=f"{name} last")
    assert RunFolder(folder / f"{name} last").report()["run"] == f"{name} last" and not (folder / f"{name} first").exists()
    tab.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    tab.locator("input[type=search]").wait_for()
    assert f"{name} last" not in names(tab)
    assert (folder / ".trash" / f"{name} last" / "metrics.jsonl").is_file()
    page.wait_for_function("() => document.activeElement.matches('.pistachio-runs .run .name')")
    assert re.search(r" on the disk, and \d+(\.\d)? [kM]B in the trash$", tab.locator(".total").text_content())


# ---- the settings below Pistachio ------------------------------------------------


@pytest.fixture
def setting(canvas):
    """`setting(id, value)`, as the host's dialog sets it; at the end every one is as it was."""
    page, before = canvas.page, {}

    def change(name, value):
        before.setdefault(name, page.evaluate("id => app.extensionManager.setting.get(id)", name))
        page.evaluate("([id, value]) => app.extensionManager.setting.set(id, value)", [name, value])

    yield change
    for name, value in before.items():
        page.evaluate("([id, value]) => app.extensionManager.setting.set(id, value)", [name, value])


def opened(tab, name):
    """A part of a run's page, which is drawn anew."""
    back = tab.get_by_role("button", name="All runs")
    if back.count():
        back.click()
    tab.get_by_role("button", name=name, exact=True).click()
    tab.locator("path.training[d^=M]").wait_for()
    return tab


def test_the_setting_of_the_log_scale_is_that_of_new_charts(tab, setting):
    for is_log in (True, False):
        setting("Pistachio.Chart.LogScale", is_log)
        assert opened(tab, "side mia").locator("button.log").get_attribute("aria-pressed") == str(is_log).lower()


def test_the_setting_of_the_smoothing_flattens_the_training_loss(tab, setting):
    def height():
        points = opened(tab, "side mia").locator("path.training").get_attribute("d")[1:].split("L")
        ys = [float(point.split(" ")[1]) for point in points]
        return max(ys[10:]) - min(ys[10:])

    plain = height()
    setting("Pistachio.Chart.Smoothing", 0.9)
    assert 0 < height() < plain / 2


def test_the_end_of_a_run_is_told_where_the_settings_say_so(tab, canvas, setting):
    end = "run => app.api.dispatchEvent(new CustomEvent('pistachio.finished', { detail: { run, verdict: 'Finished.' } }))"
    setting("Pistachio.Runs.TellWhenEnded", False)
    canvas.page.evaluate(end, "quiet run")
    setting("Pistachio.Runs.TellWhenEnded", True)
    canvas.page.evaluate(end, "told run")
    canvas.page.locator(".p-toast-message", has_text="told run has ended").wait_for()
    assert canvas.page.locator(".p-toast-message", has_text="quiet run").count() == 0


def test_a_stop_is_asked_about_where_the_settings_say_so(tab, canvas, server, setting, request):
    page, asked = canvas.page, []
    page.on("request", lambda sent: asked.append(sent.url) if sent.url.endswith("/ask") else None)
    folder = RunFolder(server.base / "output" / "pistachio" / f"side trained {request.node.callspec.id}")
    folder.path.mkdir()
    folder.write_json("config.json", {"id": "a", "family": "SDXL", "settings": {"num_steps": 200}})
    stop = "() => { app.extensionManager.command.execute('Pistachio.StopAndKeep'); }"
    with folder.locked():
        setting("Pistachio.Runs.ConfirmStop", True)
        page.evaluate(stop)
        page.get_by_role("dialog").get_by_text(f"Stop {folder.name}?").wait_for()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").wait_for(state="detached")
        assert asked == []
        setting("Pistachio.Runs.ConfirmStop", False)
        page.evaluate(stop)
        page.locator(".p-toast-message", has_text="isn't being trained now").wait_for()  # by this server: the test holds its lock
        assert len(asked) == 1 and page.get_by_role("dialog").count() == 0
    (folder.path / "config.json").unlink()
    folder.path.rename(folder.path.parent / f".{folder.name}")


def test_the_list_is_read_again_as_often_as_the_settings_say(tab, server, setting, request):
    name = f"side from elsewhere {request.node.callspec.id}"
    write_run(server, name, (0, -3, -5))
    setting("Pistachio.Runs.RefreshSeconds", 1)  # 30 would be later than this waits
    tab.get_by_role("button", name=name, exact=True).wait_for(timeout=15_000)
    (server.base / "output" / "pistachio" / name).rename(server.base / name)
    tab.get_by_role("button", name=name, exact=True).wait_for(state="detached", timeout=15_000)


# ---- in another language ---------------------------------------------------------


def test_what_the_server_says_of_runs_is_said_in_the_language_of_the_canvas(canvas, browser, server, request):
    """A run as training writes it; one of an older version has no codes, and its verdict stays English."""
    folder = many_runs.write_run(server.base / "output" / "pistachio", 8, num_steps=200, num_evaluations=10)  # the ninth: its loss rises again
    name, report = folder.name, folder.report()
    assert report["state"] == "overfit"
    verdict = f"大约从第 {report['best_step']} 步起，它开始死记训练图片。我们保留了第 {report['chosen_step']} 步。"
    server.post("/api/settings", {"Comfy.Locale": "zh"})
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    try:
        page = Canvas(page=context.new_page(), server=server).open(nodes_2="2" in request.node.callspec.id).page
        page.locator(".pistachio-runs-tab-button").click()
        tab = page.locator(TAB)
        assert tab.locator(f".run[data-run='{name}'] .verdict").text_content() == verdict
        assert tab.locator(".run[data-run='side mia'] .verdict").text_content() == "Step 100 of side mia is best."
        tab.locator("input[type=search]").fill("死记")
        assert names(tab) == [name]
        tab.get_by_role("button", name=name, exact=True).click()
        tab.locator(".words.verdict", has_text=verdict).wait_for()
        tab.get_by_role("button", name="比较检查点").click()
        dialog = page.locator(".pistachio-checkpoints")
        assert verdict in dialog.locator(".verdict").text_content()
        page.keyboard.press("Escape")
        page.evaluate(
            "detail => app.api.dispatchEvent(new CustomEvent('pistachio.finished', { detail }))",
            {"run": name, "verdict": report["verdict"], "verdict_message": report["verdict_message"]},
        )
        page.locator(".p-toast-message", has_text=verdict).wait_for()
        tab.get_by_role("button", name="全部训练").click()
        tab.locator("input[type=search]").fill("")
        for ticked in (name, "side mia"):
            tab.get_by_label(f"比较 {ticked}").check()
        tab.get_by_role("button", name="比较", exact=True).click()
        tab.locator(".problem", has_text="留出的图片不同").wait_for()
    finally:
        context.close()
        server.post("/api/settings", {"Comfy.Locale": "en"})
        shutil.rmtree(folder.path)


def test_nothing_of_ours_failed(tab, canvas):
    assert canvas.our_errors() == []


def test_another_sites_page_changes_nothing(server):
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Origin": "http://elsewhere.example"},
                    {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}):
        asked = urllib.request.Request(f"{server.url}/pistachio/runs/side%20mia/trash", data=b"{}", headers=headers, method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        assert refused.value.code in (403, 415)
    assert (server.base / "output" / "pistachio" / "side mia").is_dir()
