"""The samples of a run on Train LoRA in a real browser: the same prompts over the steps, and two of them compared."""

import json

import pytest
from PIL import Image

from support.canvas import Canvas

RUN = "sampled"
SAMPLES = ".pistachio-panel .samples"
DIALOG = ".pistachio-compare-steps"
STEPS = ((0, "gray"), (10, "red"), (20, "green"))


def write_run(folder) -> None:
    """A run that was stopped at step 20, with samples at three steps."""
    rows = [{"kind": "train", "step": step, "loss": 1.0, "loss_ema": 1.0, "lr": 1e-4, "seconds": 0.1} for step in range(1, 21)]
    for step, colour in STEPS:
        files = [f"samples/step-{step:06d}/{name}.png" for name in ("00-with-trigger", "01-without-trigger")]
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 64), colour).save(folder / file)
        pictures = [{"file": file, "prompt": ("ohwx in a park", "in a park")[i], "with_trigger": i == 0, "seed": 0} for i, file in enumerate(files)]
        rows.append({"kind": "sample", "step": step, "pictures": pictures, "seconds": 1.0})
    rows.append({"kind": "eval", "step": 20, "loss": 1.9, "loss_delta": -0.1, "loss_delta_pct": -5.0, "se": 0.0, "errors": {}, "t_values": {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"settings": {"num_steps": 40}}))


@pytest.mark.parametrize("nodes_2", [False, True], ids=["nodes 1", "nodes 2"])
def test_samples_are_rows_over_the_steps_and_two_are_compared(browser, server, nodes_2):
    write_run(server.base / "output" / "pistachio" / RUN)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        canvas = Canvas(page=context.new_page(), server=server).open(nodes_2=nodes_2)
        page = canvas.page
        page.evaluate(
            """run => {
                app.graph.clear();
                const node = LiteGraph.createNode('PistachioTrainLora');
                app.graph.add(node);
                node.setSize([800, node.size[1] + 200]);
                app.canvas.ds.scale = 0.8;
                app.canvas.ds.offset = [150, -200];
                const widget = node.widgets.find(widget => widget.name === 'run_name');
                widget.value = run;
                widget.callback?.(run);
            }""",
            RUN,
        )
        page.wait_for_function(
            "samples => { const found = [...document.querySelectorAll(samples + ' img')]; return found.length === 6 && found.some(i => i.naturalWidth === 160); }",
            arg=SAMPLES, timeout=30_000,
        )
        assert page.locator(f"{SAMPLES} thead th").all_text_contents() == ["base", "10", "20"]
        assert page.locator(f"{SAMPLES} tbody th").all_text_contents() == ["ohwx in a park", "in a park"]

        last = page.locator(f"{SAMPLES} button").last
        last.focus()
        page.keyboard.press("ArrowUp")  # to the first prompt
        page.keyboard.press("Enter")
        page.wait_for_function("dialog => [...document.querySelectorAll(dialog + ' img')].every(i => i.naturalWidth === 1024)", arg=DIALOG, timeout=30_000)
        assert page.locator(f"{DIALOG} select").evaluate_all("all => all.map(one => one.selectedOptions[0].textContent)") == ["Step 10", "Step 20 · −5.0 %"]
        page.keyboard.press("Home")  # the slider has the focus
        assert page.locator(f"{DIALOG} .stage").evaluate("stage => stage.style.getPropertyValue('--at')") == "0%"
        page.locator(f"{DIALOG} select").first.select_option("0")
        page.keyboard.press("PageDown")
        assert page.text_content(f"{DIALOG} .prompt") == "without the trigger word: in a park"
        assert "step-000000%2F01-without-trigger" in page.get_attribute(f"{DIALOG} img.left", "src")
        page.locator(f"{DIALOG} button[aria-pressed]").click()
        left, right = (page.locator(f"{DIALOG} img.{side}").bounding_box() for side in ("left", "right"))
        assert left["x"] + left["width"] <= right["x"] and left["width"] == pytest.approx(right["width"], abs=1)
        page.keyboard.press("Escape")
        assert page.locator(DIALOG).count() == 0
        assert page.evaluate("() => document.activeElement.dataset.step") == "20"  # back where it was opened
        assert canvas.our_errors() == []
    finally:
        context.close()
        server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})
