"""Pistachio's jobs without a canvas: `python __main__.py caption|split|select|queue ...` in the pack's folder.

`caption`, `split` and `select` need no running ComfyUI; `queue` sends a prompt to one. This file finds the
pack by its own place, whatever the folder is called, and keeps that folder off sys.path.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import shutil
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def load_pack() -> None:
    # Python puts a script's folder first, where its `nodes` would shadow ComfyUI's module.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    spec = importlib.util.spec_from_file_location("pistachio", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["pistachio"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def show_progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def print_notes(notes) -> None:
    for note in notes:
        print(note)


def caption(options) -> int:
    import torch

    from pistachio.dataset.folder import load_folder
    from pistachio.dataset.joycaption.captioner import LazyJoyCaptioner, caption_dataset
    from pistachio.dataset.joycaption.gguf import LazyGgufCaptioner
    from pistachio.dataset.joycaption.prompts import CaptionRequest

    dataset = load_folder(options.folder)
    if options.mmproj is not None:
        captioner = LazyGgufCaptioner(model_file=Path(options.model), projector_file=options.mmproj, gpu_layers=options.gpu_layers)
    else:
        captioner = LazyJoyCaptioner(
            folder_or_repo=options.model, precision=options.precision, models_folder=options.models_folder,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
    request = CaptionRequest(
        caption_type=options.caption_type, length=options.length, name=options.name, max_new_tokens=options.max_new_tokens, seed=options.seed
    )
    captioned = caption_dataset(
        dataset, captioner, request, batch_size=options.batch_size, overwrite=options.overwrite, trigger_word=options.trigger, progress=show_progress
    )
    print_notes(captioned.notes)
    return 0 if all(picture.caption for picture in captioned.pictures) else 1


def split(options) -> int:
    from pistachio.dataset.folder import load_folder
    from pistachio.dataset.split import is_held_out, split_dataset, write_folders

    dataset = split_dataset(load_folder(options.folder), held_out_share=options.share, held_out_names=tuple(options.held_out))
    for picture in dataset.pictures:
        print(f"{'held out' if is_held_out(dataset, picture) else 'train':9}{picture.relative_path}")
    print_notes((*dataset.notes, *dataset.split.notes))
    if options.write:
        train, held_out = write_folders(dataset, options.write)
        print(f"Copied to {train} and {held_out}.")
    return 0


def select(options) -> int:
    from pistachio.training.errors import PistachioError
    from pistachio.training.report import records_from_rows
    from pistachio.training.run import RunFolder
    from pistachio.training.selection import select as choose

    run = RunFolder(options.run)
    steps, report = run.checkpoint_steps(), run.report()
    if not steps:
        raise PistachioError(f"'{options.run}' has no checkpoints. Give a run's folder, such as output/pistachio/my_character.")
    words, chosen = (report["words"], report["chosen_step"]) if report else ((), None)
    if report is None:
        records = records_from_rows(run.metrics())
        if len(records) > 1:
            selection = choose(records)
            words, chosen = selection.words, selection.chosen_step
    print_notes(words)
    step = options.step if options.step is not None else chosen
    if step not in steps:
        raise PistachioError(f"There is no checkpoint at step {step}. There are: {', '.join(map(str, steps))}. Give one with --step.")
    print(f"Checkpoint: {run.checkpoint_file(step)}")
    if options.to:
        target = options.to / f"{options.name or run.name}.safetensors"
        if target.exists():
            raise PistachioError(f"'{target}' exists. Give another --name, or move that file away.")
        options.to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.checkpoint_file(step), target)
        print(f"Copied to {target}.")
    return 0


def queue(options) -> int:
    return asyncio.run(_queue(json.loads(options.prompt.read_text(encoding="utf-8")), options.server.rstrip("/")))


async def _queue(prompt: dict, server: str) -> int:
    import aiohttp

    client_id = uuid.uuid4().hex
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server}/ws?clientId={client_id}", max_msg_size=0) as events:
        async with session.post(f"{server}/prompt", json={"prompt": prompt, "client_id": client_id}) as response:
            answer = await response.json()
        for node_id, node in (answer.get("node_errors") or {}).items():
            for error in node["errors"]:
                print(f"Node {node_id} ({node['class_type']}): {error['message']}: {error['details']}", file=sys.stderr)
        if response.status != 200:
            print(f"Refused: {answer['error']['message']}", file=sys.stderr)
            return 1
        async for message in events:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue  # previews and texts for a canvas
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if kind.startswith("pistachio."):
                print(json.dumps({"event": kind, **data}, ensure_ascii=False), flush=True)
            elif kind in ENDS and data.get("prompt_id") == answer["prompt_id"]:
                if kind != "execution_success":
                    print(f"{kind}: {data.get('exception_message', '')}", file=sys.stderr)
                return 0 if kind == "execution_success" and not answer.get("node_errors") else 1
    print("The server closed the connection.", file=sys.stderr)
    return 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pistachio", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="caption|split|select|queue")

    one = commands.add_parser("caption", help="caption the pictures of a folder that have no caption yet")
    one.set_defaults(run_command=caption)
    one.add_argument("folder", type=Path)
    one.add_argument("--model", default="fancyfeast/llama-joycaption-beta-one-hf-llava", help="a JoyCaption folder or Hugging Face name, or with --mmproj a .gguf file")
    one.add_argument("--mmproj", type=Path, help="the projector of a GGUF model; needs llama-cpp-python")
    one.add_argument("--gpu-layers", type=int, default=-1, help="of a GGUF model; -1: all")
    one.add_argument("--models-folder", type=Path, default=Path("models/LLM"), help="where it is downloaded to")
    one.add_argument("--precision", default="bf16", choices=("bf16", "int8", "nf4", "fp32"))
    one.add_argument("--trigger", default="", help="trigger word, put before every new caption")
    one.add_argument("--caption-type", default="Straightforward")
    one.add_argument("--length", default="medium-length")
    one.add_argument("--name", default="", help="how captions call the character")
    one.add_argument("--batch-size", type=int, default=8)
    one.add_argument("--max-new-tokens", type=int, default=300)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--overwrite", action="store_true", help="caption every picture anew")

    one = commands.add_parser("split", help="say which pictures are held out, and copy them apart")
    one.set_defaults(run_command=split)
    one.add_argument("folder", type=Path)
    one.add_argument("--share", type=float, default=0.2)
    one.add_argument("--held-out", nargs="*", default=[], help="names of the pictures to hold out")
    one.add_argument("--write", type=Path, help="folder for the copies: train/ and eval/")

    one = commands.add_parser("select", help="say which checkpoint of a run is best, and copy it")
    one.set_defaults(run_command=select)
    one.add_argument("run", type=Path, help="a run's folder")
    one.add_argument("--step", type=int, help="another checkpoint than the chosen one")
    one.add_argument("--to", type=Path, help="folder to copy the LoRA into, such as models/loras")
    one.add_argument("--name", default="", help="name of the copy; the run's if not given")

    one = commands.add_parser("queue", help="run a prompt (API format) on a running ComfyUI and print its events")
    one.set_defaults(run_command=queue)
    one.add_argument("prompt", type=Path, help="JSON file: 'Export (API)' on the canvas")
    one.add_argument("--server", default="http://127.0.0.1:8188")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    load_pack()
    from pistachio.training.errors import PistachioError

    try:
        return options.run_command(options)
    except (PistachioError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
