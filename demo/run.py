"""The whole mission on a CPU: twenty drawn portraits in, a chosen LoRA out, in a real ComfyUI over HTTP.

Run by `python dev.py demo`, which sets everything up first. Prints what happens and the figures,
and writes the contact sheet and, with --json, the figures for programs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "demo"
INPUT_FOLDER = "pistachio_demo"


def load_package(name: str, folder: Path) -> None:
    """By its path: with the checkout on sys.path its folder `nodes` would shadow ComfyUI's module."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "demo")]
load_package("demo", ROOT / "demo")
load_package("support", ROOT / "tests" / "support")

from demo import graph  # noqa: E402
from demo.attributes import identity_share  # noqa: E402
from demo.captions import TARGET  # noqa: E402
from demo.install import install_models  # noqa: E402
from demo.make_character import FOLDER as CHARACTER  # noqa: E402
from demo.prompts import SEED, evaluation_prompts  # noqa: E402
from demo.sheet import Row, contact_sheet  # noqa: E402
from PIL import Image  # noqa: E402
from support.server import Event, Listener, Server  # noqa: E402

TIMEOUT_SECONDS = 1800


def say(text: str) -> None:
    print(text, flush=True)


class Progress:
    """Says what the job is doing, from the server's own events."""

    def __init__(self, listener: Listener):
        self.listener, self.seen = listener, 0

    def report(self) -> None:
        events = self.listener.events[self.seen :]
        self.seen += len(events)
        for event in events:
            text = self.sentence(event)
            if text:
                say(f"  {text}")

    @staticmethod
    def sentence(event: Event) -> str | None:
        data = event.data
        if event.type == "executing" and data.get("node"):
            return {
                "captions": "Captioning (the pictures have captions already)", "encode": "Encoding pictures and captions",
                "train": "Training",
            }.get(data["node"])
        if event.type == "pistachio.evaluation" and data.get("loss_delta_pct") is not None:
            return f"step {data['step']:4d}: held-out loss {data['loss_delta_pct']:+.2f} %"
        if event.type == "pistachio.note":
            return data.get("text")
        return None


def run_prompt(server: Server, prompt: dict) -> dict:
    """Outputs by node name; raises with the host's own message when the graph fails."""
    listener = server.listen()
    progress = Progress(listener)
    try:
        prompt_id = server.queue(prompt, client_id=listener.client_id)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                result = server.finish(listener, prompt_id, timeout_seconds=1)
                break
            except TimeoutError:
                if not listener.is_open:
                    raise RuntimeError(f"ComfyUI ended while working:\n{server.log()[-4000:]}") from None
                progress.report()
        else:
            raise TimeoutError(f"The job did not end in {TIMEOUT_SECONDS} s.")
        progress.report()
    finally:
        listener.close()
    if result.status != "execution_success":
        raise RuntimeError(f"{result.status}: {result.message.get('exception_message')}\n{''.join(result.message.get('traceback') or [])}")
    return result.outputs


def generate(server: Server, arms: list[graph.Arm]) -> dict[str, list[Image.Image]]:
    outputs = run_prompt(server, graph.generation(arms))
    pictures = {}
    for arm in arms:
        pictures[arm.name] = []
        for index in range(len(arm.prompts)):
            saved = outputs[f"{arm.name}-{index:02d}-save"]["images"][0]
            path = server.base / "output" / saved["subfolder"] / saved["filename"]
            pictures[arm.name].append(Image.open(path).convert("RGB"))
    return pictures


def job(server: Server, prompt_seed: int) -> tuple[dict, Image.Image]:
    """The figures and the sheet."""
    say("Training: caption, split, encode, train, choose")
    started = time.monotonic()
    run_prompt(server, graph.training(INPUT_FOLDER))
    detail = server.get(f"/pistachio/runs/{graph.RUN_NAME}")
    report = detail["report"]
    seconds_training = time.monotonic() - started
    say(f"  {report['verdict']}  (chosen step {report['chosen_step']} of {report['last_step']}, {seconds_training:.0f} s)")

    run_prompt(server, graph.install_last(report["last_step"]))
    chosen_lora, last_lora = f"{graph.RUN_NAME}.safetensors", f"{graph.RUN_NAME}_last.safetensors"
    prompts = evaluation_prompts(seed=prompt_seed)
    with_trigger = tuple((p.with_trigger, p.seed) for p in prompts)
    without_trigger = tuple((p.without_trigger, p.seed) for p in prompts)
    arms = [
        graph.Arm(name="base", lora=None, prompts=with_trigger),
        graph.Arm(name="chosen", lora=chosen_lora, prompts=with_trigger),
        graph.Arm(name="last", lora=last_lora, prompts=with_trigger),
        graph.Arm(name="without", lora=chosen_lora, prompts=without_trigger),
    ]
    say(f"Generating {sum(len(arm.prompts) for arm in arms)} pictures with stock nodes")
    pictures = generate(server, arms)
    share = {name: identity_share(images, TARGET) for name, images in pictures.items()}
    real = [Image.open(path).convert("RGB") for path in sorted(CHARACTER.glob("*.png"))]
    rows = [
        Row(title="Training pictures", detail="drawn portraits\nof one person", pictures=real),
        Row(title="Base model", detail=f"same prompts, no LoRA\nidentity {share['base']:.2f}", pictures=pictures["base"]),
        Row(title="Chosen checkpoint", detail=f"step {report['chosen_step']}, with trigger\nidentity {share['chosen']:.2f}", pictures=pictures["chosen"], accent=True),
        Row(title="Last checkpoint", detail=f"step {report['last_step']}, with trigger\nidentity {share['last']:.2f}", pictures=pictures["last"]),
        Row(title="Chosen, no trigger", detail=f"stays the base's people\nidentity {share['without']:.2f}", pictures=pictures["without"]),
    ]
    sheet = contact_sheet(
        "Pistachio: twenty portraits to a LoRA, on a CPU",
        f"Identity is the share of six attributes recovered over {len(prompts)} prompts. {report['verdict']}",
        rows, [p.with_trigger for p in prompts],
    )
    figures = {
        "chosen_step": report["chosen_step"], "last_step": report["last_step"], "verdict": report["verdict"],
        "eval_delta_pct": report["eval_delta_pct"], "identity_base": share["base"], "identity_chosen": share["chosen"],
        "identity_last": share["last"], "identity_without_trigger": share["without"], "seconds_training": seconds_training,
        "lora_file": str(server.base / "models" / "loras" / chosen_lora),
    }
    return figures, sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--front-end-root", type=Path)
    parser.add_argument("--seconds-setup", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--prompt-seed", type=int, default=SEED, help="another set of scenes and noises for the generated pictures")
    parser.add_argument("--keep", action="store_true", help="leave ComfyUI's folder of this demo in place")
    options = parser.parse_args()

    started = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="pistachio-demo-"))
    install_models(base / "models")
    shutil.copytree(CHARACTER, base / "input" / INPUT_FOLDER)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    say("Starting ComfyUI on the CPU")
    with Server(comfyui=options.comfyui, base=base, front_end=options.front_end_root, pack=ROOT, port=options.port) as server:
        seconds_setup = options.seconds_setup + time.monotonic() - started
        started = time.monotonic()
        figures, sheet = job(server, options.prompt_seed)
        sheet_path, lora_path = OUTPUT / "contact_sheet.png", OUTPUT / f"{graph.RUN_NAME}.safetensors"
        sheet.save(sheet_path, optimize=True)
        shutil.copyfile(figures["lora_file"], lora_path)
        shutil.copyfile(base / "output" / "pistachio" / graph.RUN_NAME / "loss.png", OUTPUT / "loss.png")
        shutil.copyfile(base / "output" / "pistachio" / graph.RUN_NAME / "report.json", OUTPUT / "report.json")
        seconds_job = time.monotonic() - started
    if options.keep:
        say(f"ComfyUI's folder: {base}")
    else:
        shutil.rmtree(base, ignore_errors=True)
    figures |= {
        "seconds_setup": round(seconds_setup, 1), "seconds_job": round(seconds_job, 1),
        "lora_file": str(lora_path), "contact_sheet": str(sheet_path),
    }
    say(f"""
  identity with the trigger     {figures['identity_chosen']:.2f}   (base {figures['identity_base']:.2f}, last checkpoint {figures['identity_last']:.2f})
  identity without the trigger  {figures['identity_without_trigger']:.2f}
  held-out loss                 {figures['eval_delta_pct']:+.1f} % at step {figures['chosen_step']} of {figures['last_step']}
  time                          {figures['seconds_job']:.0f} s for the job, {figures['seconds_setup']:.0f} s to set up

  Contact sheet: {sheet_path}
  LoRA:          {lora_path}""")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
