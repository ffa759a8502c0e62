"""What the canvas costs: a real ComfyUI server, a real Chromium, the panel with 20,000 points and the list of 100 runs.

`python dev.py bench canvas [--json FILE]`. Frames: intervals of requestAnimationFrame while a run of 20,000 steps goes on
ten times a second over the page's own websocket and the pointer moves over its chart, beside the same page at rest. Steps:
a tiny training with no tab, one, and ten listeners that draw nothing, in turns, the browser on another processor than the server. Opening: a click on the sidebar's button until list and curves are painted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_support  # noqa: E402

POINTS = 20_000
LIST_RUNS, LIST_STEPS = 100, 1000
FRAME_SECONDS, REST_SECONDS, MESSAGES_PER_SECOND, STEPS_PER_MESSAGE = 12, 5, 10, 25
TABS = (0, 1, 0, 10)
TURN_SECONDS, SETTLE_SECONDS = 10, 4
GOALS = {"frame_ms_p95": 1000 / 60 + 1, "step_overhead_pct": 2.0, "step_overhead_10_listeners_pct": 2.0, "open_ms": 1000.0}
LONG_STEPS = 200_000
OPENS = 5

# Frames as the page sees them, and how long the page's own work took of each.
WATCH_FRAMES = """seconds => new Promise(done => {
    const frames = [];
    let before = performance.now();
    const begun = before;
    const next = now => {
        frames.push(now - before);
        before = now;
        if (now - begun < seconds * 1000) requestAnimationFrame(next);
        else done(frames.slice(2));
    };
    requestAnimationFrame(next);
})"""
# Until the last of the list's curves has come to the screen: two frames after it is in the page.
OPEN_LIST = """([button, count]) => new Promise((done, failed) => {
    const begun = performance.now();
    const late = setTimeout(() => failed(new Error('the list did not come')), 60000);
    document.querySelector(button).click();
    const look = () => {
        if (document.querySelectorAll('.pistachio-runs li.run svg path.line').length < count) return requestAnimationFrame(look);
        requestAnimationFrame(() => requestAnimationFrame(() => { clearTimeout(late); done(performance.now() - begun); }));
    };
    look();
})"""
LISTEN = """
import asyncio, sys, aiohttp
async def one(session, number):
    async with session.ws_connect(f"{sys.argv[1]}/ws?clientId=listener{number}", compress=15) as socket:
        async for _ in socket: pass
async def main():
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*[one(session, number) for number in range(int(sys.argv[2]))])
asyncio.run(main())
"""
RUNS_TAB = ".pistachio-runs-tab-button"
PANEL = ".pistachio-panel"


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def front_end_of(comfyui: Path) -> Path:
    """As `dev.py` installs it."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("pistachio_dev", bench_support.ROOT / "dev.py")
    dev = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = dev  # its dataclasses look themselves up
    spec.loader.exec_module(dev)
    return dev.front_end(comfyui)


@contextmanager
def running_server(comfyui: Path, base: Path):
    from support import tiny_models
    from support.server import Server

    version = tuple(int(part) for part in re.search(r'__version__ = "([\d.]+)"', (comfyui / "comfyui_version.py").read_text()).group(1).split(".")[:3])
    files = tiny_models.kept_folder(bench_support.ROOT, version)
    for name in tiny_models.BUILDERS:
        if not (files / name).exists():
            raise SystemExit(f"The tiny models are not there. Run `python dev.py test e2e -k test_server` once, which writes them to {files}.")
        target = base / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(files / name)
    with Server(comfyui=comfyui, base=base, front_end=front_end_of(comfyui), pack=bench_support.ROOT) as server:
        yield server


@contextmanager
def running_browser():
    import shutil

    from playwright.sync_api import sync_playwright

    executable = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    if executable is None:
        raise SystemExit("There is no Chromium or Chrome on PATH. Install one, then run again.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


# ---- frames ------------------------------------------------------------------


class Wire:
    """The page's websocket to the server, with messages put in between: the page can't tell them from the trainer's."""

    def __init__(self, page):
        self.page, self.socket = page, None
        page.route_web_socket(re.compile(r"/ws(\?|$)"), self._opened)

    def _opened(self, socket) -> None:
        self.socket = socket
        server = socket.connect_to_server()
        server.on_message(lambda message: socket.send(message))
        socket.on_message(lambda message: server.send(message))

    def send(self, event: str, data: dict) -> None:
        self.socket.send(json.dumps({"type": event, "data": data}))


def panel_on(canvas, run: str) -> None:
    """One Train LoRA node with this run, seen whole."""
    canvas.page.evaluate(
        """run => {
            app.graph.clear();
            const node = LiteGraph.createNode('PistachioTrainLora');
            app.graph.add(node);
            node.pos = [40, 40];
            const widget = node.widgets.find(widget => widget.name === 'run_name');
            widget.value = run;
            widget.callback?.(run);
            node.setSize([900, node.size[1] + 300]);
            app.canvas.ds.scale = 0.9;
            app.canvas.ds.offset = [60, 40];
            app.canvas.setDirty(true, true);
        }""",
        run,
    )
    canvas.page.wait_for_function("panel => document.querySelector(panel + ' path.training')?.getAttribute('d')", arg=PANEL, timeout=60_000)
    canvas.page.wait_for_timeout(2000)


def measure_frames(server, browser, run_folder, num_steps: int) -> dict:
    """`run_folder` has POINTS steps of `num_steps`; a lock makes it a run that is being trained."""
    from support.canvas import Canvas

    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    wire, sitting = Wire(page), uuid.uuid4().hex
    # The server trains no such run, so its answer lacks which sitting the messages go on with.
    live = {"sitting": sitting, "sequence": 0, "phase": "", "seconds_left": None}
    page.route(re.compile(r"/history$"), lambda route: route.fulfill(json=route.fetch().json() | {"live": live}))
    canvas = Canvas(page=page, server=server).open(nodes_2=False)
    with run_folder.locked():
        panel_on(canvas, run_folder.name)
        points = int(page.text_content(f"{PANEL} .steps").split()[1])
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = busy_seconds(session)
        at_rest = page.evaluate(WATCH_FRAMES, REST_SECONDS)
        busy_at_rest = (busy_seconds(session) - before) / len(at_rest)
        box = page.locator(f"{PANEL} .plot").bounding_box()
        before = busy_seconds(session)
        page.evaluate(f"() => {{ window.watched = ({WATCH_FRAMES})({FRAME_SECONDS}); }}")
        node_id = page.evaluate("() => String(app.graph._nodes[0].id)")
        sequence, step = 0, points
        drawn, begun = 0, time.monotonic()
        while time.monotonic() - begun < FRAME_SECONDS:
            rows = [[step + i, 0.1 + 0.05 * ((step + i) % 7) / 7, 0.004] for i in range(1, STEPS_PER_MESSAGE + 1)]
            step, sequence = rows[-1][0], sequence + 1
            wire.send("pistachio.step", {
                "run": run_folder.name, "node_id": node_id, "num_steps": num_steps, "sitting": sitting, "sequence": sequence, "step": step, "loss": rows[-1][1],
                "loss_ema": rows[-1][1], "seconds": 0.004, "seconds_left": 60.0, "rows": rows,
                "memory": {"place": "process", "used_bytes": 10**9 + step, "peak_bytes": 2 * 10**9, "total_bytes": 16 * 10**9, "planned_bytes": None},
            })
            page.mouse.move(box["x"] + box["width"] * (0.1 + 0.8 * (sequence % 40) / 40), box["y"] + box["height"] / 2)
            drawn += 1
            page.wait_for_timeout(max(0.0, 1000 * (begun + drawn / MESSAGES_PER_SECOND - time.monotonic())))
        frames = page.evaluate("() => window.watched")
        busy = busy_seconds(session) - before
        shown = int(page.text_content(f"{PANEL} .steps").split()[1])
        if shown != step:
            raise RuntimeError(f"The panel shows step {shown} and was sent step {step}: what was measured is not what it says.")
    context.close()
    return {
        "points": points, "frame_ms_p95": round(p95(frames), 2), "frame_ms_median": round(statistics.median(frames), 2), "frame_ms_p95_at_rest": round(p95(at_rest), 2),
        "page_processor_ms_a_frame": round(1000 * busy / len(frames), 2), "page_processor_ms_a_frame_at_rest": round(1000 * busy_at_rest, 2), "messages": drawn, "points_at_end": shown, "frames": len(frames),
    }


def busy_seconds(session) -> float:
    """Processor time of the page's main thread, by the browser's own count."""
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


# ---- steps -------------------------------------------------------------------


def measure_steps(server, browser, rounds: int) -> dict:
    """Turns of one training: how long a step takes by the clock, and how busy the server's other threads are meanwhile.

    Server and browser get processors of their own where there are two: a card trains while the browser draws, and what is
    asked is what the server does for its tabs, not how two programs share a processor.
    """
    from support.jobs import training_job
    from support.pictures import write_folder

    write_folder(server.base / "input" / "bench_pictures", 8, trigger_word="zwx")
    run = "bench_steps"
    job = training_job("wan21", folder="bench_pictures", run_name=run, num_steps=LONG_STEPS, num_evaluations=2, train={"batch_size": 1})
    metrics = server.base / "output" / "pistachio" / run / "metrics.jsonl"
    server.queue(job)
    wait_until(lambda: metrics.is_file() and step_of(metrics) > 20, "the training did not begin")
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    is_apart = len(processors) > 1
    if is_apart:
        pin(server.process.pid, processors[:1])
        pin(os.getpid(), processors[1:])
    turns: list[tuple[int, float, float]] = []
    for _ in range(rounds):
        for tabs in TABS:
            context = browser.new_context(viewport={"width": 1200, "height": 900})
            if tabs == 1:
                open_panel(context, server, run)
            with listening(server.url, tabs if tabs > 1 else 0):
                time.sleep(SETTLE_SECONDS)
                turns.append((tabs, *turn(metrics, server.process.pid)))
            print(f"{tabs:2} tabs: {turns[-1][1]:.2f} ms a step, {turns[-1][2]:.3f} ms of it beside the training", flush=True)
            context.close()
            time.sleep(1)
    if is_apart:
        pin(os.getpid(), processors)
        pin(server.process.pid, processors)
    server.interrupt()
    wait_until(lambda: not server.get("/queue")["queue_running"], "the training did not end")
    return summary(turns) | {"processors_apart": is_apart, "turns": [[tabs, round(step, 3), round(beside, 3)] for tabs, step, beside in turns]}


@contextmanager
def listening(url: str, count: int):
    """`count` websockets as a browser opens them, compression too, that read and draw nothing: ten pages drawn in software starve the machine."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN, url, str(count)]) if count else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def open_panel(context, server, run: str) -> None:
    from support.canvas import Canvas

    page = context.new_page()
    Canvas(page=page, server=server).open(nodes_2=False)
    page.evaluate(
        "run => { app.graph.clear(); const node = LiteGraph.createNode('PistachioTrainLora'); node.id = 'train'; app.graph.add(node);"
        " const widget = node.widgets.find(widget => widget.name === 'run_name'); widget.value = run; widget.callback?.(run); }", run,
    )
    page.wait_for_function("panel => /[1-9]/.test(document.querySelector(panel + ' .steps')?.textContent ?? '')", arg=PANEL, timeout=60_000)


def summary(turns: list[tuple[int, float, float]]) -> dict:
    """A turn with tabs is held against the turns without any before and after it: a machine's pace drifts."""
    rest = [step for tabs, step, _ in turns if tabs == 0]
    rest_beside = statistics.median(beside / step for tabs, step, beside in turns if tabs == 0)
    result = {"step_ms": round(statistics.median(rest), 3), "rest_turns_spread_pct": round(100 * (max(rest) / min(rest) - 1), 2)}
    for tabs, name in ((1, ""), (10, "_10_listeners")):
        wall, counted = [], []
        for at, (count, step, beside) in enumerate(turns):
            if count == tabs:
                near = [turns[i][1] for i in (at - 1, at + 1) if 0 <= i < len(turns) and turns[i][0] == 0]
                wall.append(100 * (step / statistics.mean(near) - 1))
                counted.append(100 * (beside / step - rest_beside))
        result[f"step_overhead{name}_pct"] = round(statistics.median(wall), 2)
        result[f"step_overhead{name}_range_pct"] = [round(min(wall), 2), round(max(wall), 2)]
        result[f"server_work{name}_pct"] = round(statistics.median(counted), 2)
    return result


def turn(metrics: Path, pid: int) -> tuple[float, float]:
    """Milliseconds of a step by the clock, and processor time that all threads but the training's took meanwhile."""
    first, begun, worked = step_of(metrics), time.monotonic(), processor_seconds(pid)
    time.sleep(TURN_SECONDS)
    steps, seconds = step_of(metrics) - first, time.monotonic() - begun
    took = {thread: after - worked.get(thread, 0.0) for thread, after in processor_seconds(pid).items()}
    return 1000 * seconds / steps, 1000 * (sum(took.values()) - max(took.values())) / steps


def step_of(metrics: Path) -> int:
    """Of the last whole row."""
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4000))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2])["step"] if len(lines) > 1 else 0


def processor_seconds(pid: int) -> dict[int, float]:
    """Thread -> what it took until now."""
    import psutil

    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def pin(pid: int, processors: list[int]) -> None:
    """A process with its threads and children; those that are begun later inherit it."""
    import psutil

    whole = psutil.Process(pid)
    for process in (whole, *whole.children(recursive=True)):
        for thread in process.threads():
            try:
                os.sched_setaffinity(thread.id, processors)
            except ProcessLookupError:  # it ended meanwhile
                continue


def wait_until(condition, problem: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(problem)
        time.sleep(0.2)


# ---- opening -----------------------------------------------------------------


def measure_opening(server, browser) -> dict:
    """The first time, with nothing read yet, and with a page that is new each time."""
    from support.canvas import Canvas

    times = []
    for _ in range(OPENS):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        canvas = Canvas(page=context.new_page(), server=server).open(nodes_2=False)
        canvas.page.wait_for_selector(RUNS_TAB, timeout=30_000)
        canvas.page.wait_for_timeout(1500)
        times.append(canvas.page.evaluate(OPEN_LIST, [RUNS_TAB, LIST_RUNS]))
        context.close()
    return {"open_ms": round(times[0], 1), "open_again_ms": round(statistics.median(times[1:]), 1), "runs": LIST_RUNS, "run_points": LIST_RUNS * LIST_STEPS}


# ---- the whole ---------------------------------------------------------------


def measure(comfyui: Path, base: Path, rounds: int, parts: set[str]) -> dict:
    from support import many_runs

    root = base / "output" / "pistachio"
    root.mkdir(parents=True)
    result = {}
    with running_browser() as browser:
        if "open" in parts:
            many_runs.write_runs(root, count=LIST_RUNS, num_steps=LIST_STEPS)
        with running_server(comfyui, base) as server:
            if "open" in parts:  # first: nothing may have read the runs before
                result |= told(measure_opening(server, browser))
            if "frames" in parts:
                num_steps = POINTS + 2 * FRAME_SECONDS * MESSAGES_PER_SECOND * STEPS_PER_MESSAGE
                folder = many_runs.write_run(root, 900, num_steps=POINTS, with_files=False, is_finished=False)
                config = folder.config()
                config["settings"]["num_steps"] = num_steps
                folder.write_json("config.json", config)
                result |= told(measure_frames(server, browser, folder, num_steps))
            if "steps" in parts:
                result |= told(measure_steps(server, browser, rounds))
    return result


def told(part: dict) -> dict:
    """Printed as soon as it is known: the whole takes minutes."""
    print(json.dumps({name: value for name, value in part.items() if name != "turns"}, indent=1), flush=True)
    return part


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each number of tabs")
    parser.add_argument("--parts", default="open,frames,steps", help="of the three")
    options = parser.parse_args()
    bench_support.load_packages()
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pistachio-bench-") as base:
        result = measure(options.comfyui.resolve(), Path(base), options.rounds, set(options.parts.split(",")))
    result["protocol"] = {
        "processors": os.cpu_count(), "load_average_before": load, "load_average_after": os.getloadavg() if load else None,
        "seconds": round(time.perf_counter() - begun, 1), "browser": "chromium, headless, without a graphics card",
        "step_overhead_pct": "by the clock, against the turns without a tab before and after; server_work_pct: processor time of the server's other threads",
    }
    missed = [f"{name} is {result[name]}, the goal is {goal:.1f}" for name, goal in GOALS.items() if name in result and result[name] > goal]
    print("\n".join(missed) or "Every goal that was measured is met.")
    bench_support.write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
