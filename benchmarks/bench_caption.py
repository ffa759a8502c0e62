"""Captions a second: ours at batch 8 against a batch script's way, on one tiny LLaVA of the real classes.

The script's way: pictures one after the other, each opened, resized and captioned at batch 1 on one thread, with a plain
transformers call. Ours: `caption_dataset`. Both answer greedily, so that their tokens can be compared.
Run by `python dev.py bench caption [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_support  # noqa: E402

TEXTS = ["a portrait of a woman with red hair", "a photo of a man in a blue coat", "a drawing of a woman with glasses"]


def write_pictures(folder: Path, number: int, side: int) -> None:
    """JPEGs of drawn shapes: they decode as photographs do, and no two are alike."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        draw = np.random.default_rng(index)
        image = Image.new("RGB", (side, side * 5 // 4), tuple(int(v) for v in draw.integers(0, 256, 3)))
        pen = ImageDraw.Draw(image)
        for _ in range(60):
            x, y, w, h = (int(v) for v in draw.integers(0, side, 4))
            pen.ellipse((x, y, x + w // 3 + 2, y + h // 3 + 2), fill=tuple(int(v) for v in draw.integers(0, 256, 3)))
        image.save(folder / f"picture-{index:03d}.jpg", quality=92)


class Reference:
    """Model and tokenizer from transformers itself; nothing of the pack but the prompt's words."""

    def __init__(self, model_folder: Path):
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        self.model = LlavaForConditionalGeneration.from_pretrained(model_folder).float().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def caption(self, path: Path, chat: list[dict], max_new_tokens: int) -> list[int]:
        import torch
        from PIL import Image

        config = self.model.config
        side = config.vision_config.image_size
        pixels = np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
        pixels = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0 - 0.5) / 0.5
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        image_token = getattr(config, "image_token_index", None) or config.image_token_id
        place = ids.index(image_token)
        ids = torch.tensor([ids[:place] + [image_token] * config.image_seq_length + ids[place + 1 :]])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, do_sample=False, temperature=None, top_p=None,
                max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id,
            )[0, ids.shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        return output[: next((i for i, token in enumerate(output) if token in ends), len(output))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="not needed: captions are made without a host")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--side", type=int, default=1024, help="width of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    bench_support.load_packages()
    import torch
    from pistachio.dataset.captions import read_caption, write_caption
    from pistachio.dataset.folder import load_folder
    from pistachio.dataset.joycaption.captioner import LazyJoyCaptioner, caption_dataset
    from pistachio.dataset.joycaption.prompts import SYSTEM_PROMPTS, CaptionRequest, build_prompt
    from support import tiny_llava

    torch.set_num_threads(1)
    request = CaptionRequest(caption_type="MidJourney", options=(), temperature=0, max_new_tokens=160)
    with tempfile.TemporaryDirectory(prefix="pistachio-bench-") as base:
        base = Path(base)
        model_folder = tiny_llava.write_joycaption(base / "tiny-joycaption-beta-one", TEXTS, seed=5, end_gain=1.2)  # answers of 3 to 60 tokens
        write_pictures(base / "pictures", options.pictures, options.side)
        dataset = load_folder(base / "pictures")
        chat = [{"role": "system", "content": SYSTEM_PROMPTS["beta-one"]}, {"role": "user", "content": build_prompt(request)}]

        reference, ours = Reference(model_folder), LazyJoyCaptioner(folder_or_repo=model_folder, precision="fp32")
        _ = ours.kind  # loads
        recorded: dict[str, list[int]] = {}
        tokens_of = _recording(ours, recorded)

        def by_reference() -> dict[str, list[int]]:
            tokens = {}
            for picture in dataset.pictures:
                tokens[picture.relative_path] = found = reference.caption(picture.path, chat, request.max_new_tokens)
                write_caption(picture.caption_path, reference.tokenizer.decode(found, skip_special_tokens=True))
            return tokens

        def by_us() -> dict[str, list[int]]:
            recorded.clear()
            done = caption_dataset(dataset, tokens_of, request, batch_size=options.batch, overwrite=True, overwrite_edited=True, free_after=False)
            saved.append(sum(bool(read_caption(picture.caption_path)) for picture in done.pictures))
            return dict(zip((picture.relative_path for picture in dataset.pictures), recorded.pop("in order")))

        seconds: dict[str, list[float]] = {"reference": [], "ours": []}
        results, saved = {}, []
        for round_number in range(options.rounds + 1):  # the first one warms up and is dropped
            for name, run in (("reference", by_reference), ("ours", by_us)):
                for picture in dataset.pictures:
                    picture.caption_path.unlink(missing_ok=True)
                started = time.perf_counter()
                results[name] = run()
                if round_number:
                    seconds[name].append(time.perf_counter() - started)
        identical = results["ours"] == results["reference"]
        per_second = {name: options.pictures / statistics.median(values) for name, values in seconds.items()}
        ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds["ours"])]
        result = {
            "ours_per_s": round(per_second["ours"], 3), "reference_per_s": round(per_second["reference"], 3),
            "ratio": round(per_second["ours"] / per_second["reference"], 3), "identical_tokens": identical,
            "ratios": [round(ratio, 3) for ratio in ratios], "pictures": options.pictures, "side": options.side, "batch_size": options.batch,
            "captions_saved": saved[-1], "mean_tokens": round(statistics.mean(map(len, results["ours"].values())), 1),
            "torch": torch.__version__, "threads_of_torch": torch.get_num_threads(),
        }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if identical else 1


def _recording(captioner, recorded: dict):
    """The captioner itself, with the tokens of its first answers kept; asking again after a glitch is not recorded, but its time counts."""
    model = captioner._load().model
    generate = model.generate

    def wrapped(**named):
        output = generate(**named)
        first = captioner._load()
        if not model.generation_config.do_sample:  # a retry samples
            rows = output[:, named["input_ids"].shape[1] :].tolist()
            kept = [row[: next((i for i, token in enumerate(row) if token in first.eos_token_ids), len(row))] for row in rows]
            recorded.setdefault("in order", []).extend(kept)
        return output

    model.generate = wrapped
    return captioner


if __name__ == "__main__":
    sys.exit(main())
