"""The samples of a run on Train LoRA in a real browser: the latest ones, with their prompts."""

import json

from PIL import Image

from support.canvas import Canvas

RUN = "sampled"
SAMPLES = ".pistachio-panel .samples"


def write_run(folder) -> None:
    """A run that was stopped at step 20, with samples at two steps."""
    rows = [{"kind": "train", "step": step, "loss": 1.0, "loss_ema": 1.0, "lr": 1e-4, "seconds": 0.1} for step in range(1, 21)]
    for step, colour in ((10, "red"), (20, "green")):
        files = [f"samples/step-{step:06d}/{name}.png" for name in ("00-with-trigger", "01-without-trigger")]
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 64), colour).save(folder / file)
        pictures = [{"file": file, "prompt": f"prompt {i} at {step}", "with_trigger": i == 0, "seed": 0} for i, file in enumerate(files)]
        rows.insert(step + (step > 10), {"kind": "sample", "step": step, "pictures": pictures, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"settings": {"num_steps": 40}}))


def test_the_latest_samples_are_shown_with_their_prompts(browser, server):
    folder = server.base / "output" / "pistachio" / RUN
    write_run(folder)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        canvas = Canvas(page=context.new_page(), server=server).open(nodes_2=False)
        canvas.page.evaluate(
            """run => {
                const node = LiteGraph.createNode('PistachioTrainLora');
                app.graph.add(node);
                const widget = node.widgets.find(widget => widget.name === 'run_name');
                widget.value = run;
                widget.callback?.(run);
            }""",
            RUN,
        )
        canvas.page.wait_for_function(
            "samples => { const found = [...document.querySelectorAll(samples + ' img')]; return found.length === 2 && found.every(i => i.naturalWidth === 256); }",
            arg=SAMPLES, timeout=30_000,
        )
        links = canvas.page.locator(f"{SAMPLES} a")
        assert links.nth(0).get_attribute("title") == "Step 20, with the trigger word: prompt 0 at 20"
        assert links.nth(1).get_attribute("title") == "Step 20, without the trigger word: prompt 1 at 20"
        assert links.nth(0).get_attribute("class") == "with-trigger"
    finally:
        context.close()
        canvas.server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})
