"""Takes docs/images/review.jpg: the review of the demo's portraits on a real canvas, with marks and with a caption being edited.

`python take_review_picture.py COMFYUI FRONT_END`. Needs Chromium, no model.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from standalone import ROOT, import_packages

import_packages("support", "demo", "pistachio")

from demo.make_character import FOLDER as CHARACTER  # noqa: E402
from pistachio.dataset.joycaption.needs_review import ReviewEntry, update_needs_review  # noqa: E402
from support.canvas import Canvas  # noqa: E402
from support.server import Server  # noqa: E402

VIEW, WIDTH_PX = {"width": 1620, "height": 1110}, 1200  # of the picture, which is smaller than the page
FOLDER = "my_character"
DIALOG = "dialog .pistachio-review"


def mark(server: Server, folder: Path) -> None:
    names = {number: f"portrait_{number:02d}.png" for number in range(1, 21)}
    for number in (3, 12):
        caption = (folder / names[number]).with_suffix(".txt").read_text(encoding="utf-8").strip()
        update_needs_review(folder, {names[number]: ReviewEntry(reason="it stops in the middle", caption=caption)})
    for what, numbers in (("excluded", (2,)), ("held_out", (5, 11))):
        server.post("/pistachio/review/mark", {"folder": FOLDER, "names": [names[number] for number in numbers], "mark": what, "on": True})
    seen = (folder / names[8]).with_suffix(".txt").read_text(encoding="utf-8").strip()
    server.post("/pistachio/review/caption", {"folder": FOLDER, "name": names[8], "text": seen.replace(", bust", ", soft light, bust"), "seen": seen})


def take(server: Server) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next(path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport=VIEW).new_page()
        Canvas(page=page, server=server).open()
        page.evaluate("() => { app.graph.clear(); app.extensionManager.command.execute('Pistachio.ReviewDataset'); }")
        folder = page.locator("dialog.pistachio-review-dialog input").first
        folder.fill(FOLDER)
        folder.press("Enter")
        page.locator(f"{DIALOG} .tile img[src]").nth(19).wait_for()
        page.locator(f"{DIALOG} .grid").focus()
        for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        page.wait_for_timeout(2000)
        shot = Image.open(BytesIO(page.locator("dialog.pistachio-review-dialog").screenshot())).convert("RGB")
        browser.close()
    shot = shot.resize((WIDTH_PX, round(shot.height * WIDTH_PX / shot.width)), Image.Resampling.LANCZOS)
    shot.save(ROOT / "docs" / "images" / "review.jpg", quality=85, optimize=True)
    print(shot.size)


def main(comfyui: Path, front_end: Path) -> None:
    base = Path(tempfile.mkdtemp(prefix="pistachio-review-"))
    folder = shutil.copytree(CHARACTER, base / "input" / FOLDER)
    with Server(comfyui=comfyui, base=base, front_end=front_end, pack=ROOT) as server:
        mark(server, folder)
        take(server)
    shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
