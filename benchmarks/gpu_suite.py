"""What only a graphics card can show: whether the kernels pay, how fast a whole step is beside every peer, and that training is right.

    python dev.py bench gpu_suite --json FILE [--only PART,...] [--rows NAME;NAME] [--budget SECONDS] [--fresh] [--rehearse] [--require-gpu]
    python benchmarks/gpu_suite.py --comfyui PATH --check          is everything there? For a machine without a network

Parts: questions, kernels, wan14b, flux, sdxl, sd35, ablation, loss, correctness. A call ends within its budget, and FILE is written
after every row: the same call again goes on with the rows that are missing. A rehearsal runs every line small on the CPU and
writes which rows ran, never a time or a size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty, Queue

BEGAN = time.monotonic()  # a call's time is counted from here: what is imported below takes seconds of it

from bench_support import ROOT, booted_host, environment, load_packages, write_json
from gpu_parts import CEILINGS, FIRST_ROW_SECONDS, FLOPS, NETWORKS, PARTS, ROUNDS, Asked, is_failure, names_of, run, words
from gpu_results import MOST_TRIES, Results
from missing_packages import REPLACEABLE, replace_missing

NO_DEVICE = "NO CUDA DEVICE: nothing was measured"
EXIT_FAILED, EXIT_USAGE, EXIT_NO_GPU, EXIT_KILLED = 1, 2, 3, 143
BUDGET_SECONDS, REHEARSAL_SECONDS = 560.0, 3600.0
GRACE_SECONDS = 20.0  # of the budget: for a worker to end by itself, and for this process to write
BOOT_SECONDS = 30.0  # of a worker, until one has told
END_SECONDS = 15.0  # of a worker that has nothing more to tell: one whose card has failed may hang
CARD_RESULTS = ROOT / "benchmarks" / "results"
RECORD = "\x1e"  # before each line of a worker that is a record
# Of a machine without a network: what the host imports, and what single arms need.
NEEDED = ("torch", "torchvision", "torchaudio", "transformers", "tokenizers", "sentencepiece", "safetensors", "einops", "aiohttp", "yarl", "yaml", "PIL", "scipy", "psutil", "tqdm")
WANTED = {"peft": "the arms of PEFT and W8A8", "triton": "compiled arms", "bitsandbytes": "the arms of nf4"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--json", type=Path, help="write the result here after every row, and go on from what it holds")
    parser.add_argument("--only", default="", help=f"comma-separated parts: {', '.join(PARTS)}")
    parser.add_argument("--rows", default="", help="names of rows or of operations, separated by semicolons; all")
    parser.add_argument("--budget", type=float, help=f"seconds that this call may take ({BUDGET_SECONDS:.0f})")
    parser.add_argument("--fresh", action="store_true", help="measure again what FILE holds")
    parser.add_argument("--require-gpu", action="store_true", help=f"without a card, exit with {EXIT_NO_GPU}")
    parser.add_argument("--rehearse", action="store_true", help="run every part small on the CPU; measures nothing")
    parser.add_argument("--check", action="store_true", help="only say what is missing here")
    parser.add_argument("--bare", action="store_true", help="do without the packages that missing_packages.py can replace, though they are installed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # JSON of what a process of its own is to do
    return parser.parse_args()


# ---- a worker ------------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    """In a process of its own: rows of one part, each given as it comes."""
    import torch

    given = json.loads(options.worker)
    device = torch.device("cpu" if options.rehearse else "cuda", *([] if options.rehearse else [0]))
    torch.backends.cudnn.allow_tf32 = False  # fp32 checks are of fp32
    tell = lambda kind, name, row=None: print(RECORD + json.dumps([kind, name, row]), flush=True)
    replaced = replace_missing(also=REPLACEABLE if options.bare else ())
    with booted_host(options.comfyui, cpu=options.rehearse) as host:
        if not options.rehearse:  # the tests' host takes one thread; a run has all: the optimiser in RAM needs them
            torch.set_num_threads(os.cpu_count() or 1)
        tell("host", "", {**environment(host), "replaced_packages": replaced})
        run(Asked(
            part=given["part"], names=given["names"], device=device, rehearse=options.rehearse, deadline=given["deadline"],
            begin=lambda name: tell("begin", name), emit=lambda name, row: tell("row", name, row), seconds=given["seconds"], known=given["known"],
        ))
        tell("end", "")
    return 0


class Worker:
    """A child process; its records come through `records` until it ends, or says that it does."""

    def __init__(self, options: argparse.Namespace, task: dict):
        command = [sys.executable, str(Path(__file__).resolve()), "--comfyui", str(options.comfyui), "--worker", json.dumps(task)]
        self.errors = tempfile.TemporaryFile(mode="w+", errors="replace")
        self.process = subprocess.Popen(
            [*command, *(["--rehearse"] if options.rehearse else []), *(["--bare"] if options.bare else [])], stdout=subprocess.PIPE, stderr=self.errors, text=True, errors="replace",
        )
        self.queue: Queue = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.startswith(RECORD):
                self.queue.put(json.loads(line[1:]))
        self.queue.put(None)

    def records(self, deadline: float):
        """Until the process ends or the deadline, when it is killed."""
        while True:
            try:
                record = self.queue.get(timeout=max(0.1, deadline - time.monotonic()))
            except Empty:
                return self.end(0.0)
            if record is None or record[0] == "end":
                return self.end(END_SECONDS)
            yield record

    def end(self, seconds: float) -> None:
        """By itself within so many seconds, or killed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read().strip()[-2000:] or f"exit status {self.process.returncode}"


# ---- this process --------------------------------------------------------


class Suite:
    def __init__(self, options: argparse.Namespace, results: Results, deadline: float):
        self.options, self.results, self.deadline = options, results, deadline
        self.boot_seconds = BOOT_SECONDS
        self.broken: set[tuple[str, str]] = set()  # rows that failed in this call: it doesn't try them again

    def left(self) -> float:
        return self.deadline - GRACE_SECONDS - time.monotonic()

    def missing(self, part: str, names: list[str]) -> list[str]:
        """Round by round, so that arms take turns; what failed before comes last, and not for ever."""
        turns = 1 if self.options.rehearse else ROUNDS.get(part, 1)
        names = sorted((name for name in names if self.results.tries(part, name) < MOST_TRIES), key=lambda name: name != CEILINGS and self.results.rank(part, name))
        return [name for turn in range(turns) for name in names if self.results.rounds(part, name) <= turn and (turn == 0 or name != FLOPS)]

    def has_time_for_a_worker(self, part: str) -> bool:
        return self.left() > self.boot_seconds + FIRST_ROW_SECONDS.get(part, 5.0)

    def run(self, part: str, names: list[str]) -> None:
        todo, killed_at = self.missing(part, names), self.deadline - GRACE_SECONDS / 2
        while todo and self.has_time_for_a_worker(part):
            rows = {row_name: self.results.row(part, row_name) for row_name in names}
            task = {
                "part": part, "names": todo, "deadline": self.deadline - GRACE_SECONDS,  # of the machine's clock: a worker takes long to begin
                "seconds": {name: row["total_s"] for name, row in rows.items() if row and "total_s" in row}, "known": {n: r for n, r in rows.items() if r and n == CEILINGS},
            }
            started, worker, begun, finished = time.monotonic(), Worker(self.options, task), None, 0
            try:
                for kind, name, row in worker.records(killed_at):
                    if kind == "host":
                        self.boot_seconds = time.monotonic() - started
                        self.results.value["environment"] |= row
                    elif kind == "begin":
                        begun = name
                        self.results.begin(part, name)
                    elif kind == "row":
                        begun, finished = None, finished + 1
                        self.add(part, name, row)
            finally:
                worker.end(0.0)
            is_late = time.monotonic() >= killed_at
            if begun is not None:
                self.add(part, begun, self.results.timed_out(part, begun, "the time ran out over it") if is_late else {"failed": f"its process ended: {worker.last_words()}"})
                finished += 1
            elif finished == 0 and not is_late:
                self.add(part, todo[0], {"failed": f"its process ended: {worker.last_words()}"})
                finished = 1
            todo = [name for name in todo[finished:] if (part, name) not in self.broken]  # it would only cost another process
        for name in todo:
            if self.results.row(part, name) is None:
                self.results.add(part, name, {"skipped": "no time left"})

    def add(self, part: str, name: str, row: dict) -> None:
        if (part, name) in self.broken:  # a worker gives a row that failed again for each round
            return
        if any(key in row for key in ("failed", "timed_out", "device_fault")):
            self.broken.add((part, name))
        row = self.results.add(part, name, row)
        print(f"{part:11} {name:44} {words(row)}", flush=True)
        self.judge(part)

    def judge(self, part: str) -> None:
        """What the rows so far say of the targets."""
        if self.options.rehearse:
            return
        import gpu_loss
        from gpu_speed import add_utilisation
        from gpu_targets import judged

        if part in NETWORKS:
            add_utilisation(self.results.rows(part))
        if part == "loss":
            self.results.value["equal_loss"] = gpu_loss.verdict(self.results.rows("loss"))
        self.results.set("targets", judged(self.results.value["parts"], self.results.value.get("equal_loss")))


def wanted_rows(names: list[str], rows: str, part: str) -> list[str]:
    asked = [word.strip() for word in rows.split(";") if word.strip()]
    if not asked:
        return names
    operation_of = {}
    if part == "kernels":
        from gpu_kernels import operations

        operation_of = operations()
    return [name for name in names if name in asked or operation_of.get(name) in asked or name in (FLOPS, CEILINGS)]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def check_machine(options: argparse.Namespace) -> int:
    """Says what this machine lacks, without measuring: packages, then a boot of the host on the CPU."""
    missing = [name for name in NEEDED if not _installed(name)]
    for name, what in WANTED.items():
        if not _installed(name):
            print(f"'{name}' is not installed: {what} will say so and be left out.")
    if missing:
        print(f"Not installed: {', '.join(missing)}.")
    bare = ["--bare"] if options.bare else []
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--comfyui", str(options.comfyui), *bare, "--rehearse", "--worker", json.dumps({"part": "questions", "names": [], "deadline": time.monotonic() + 60, "seconds": {}, "known": {}})],
        capture_output=True, text=True,
    )
    if done.returncode != 0:
        print(f"The host can't be started: {done.stderr.strip()[-1500:]}")
    records = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith(RECORD)]
    replaced = next((row["replaced_packages"] for kind, _, row in records if kind == "host"), [])
    if replaced:
        print(f"Not installed and not needed here, replaced by inert modules: {', '.join(replaced)}.")
    print("Everything needed is there." if not missing and done.returncode == 0 else "NOT READY")
    return 0 if not missing and done.returncode == 0 else EXIT_FAILED


def head(options: argparse.Namespace) -> dict:
    """What stands above the rows. Reads the host's version from its file: this process starts none."""
    import platform

    import torch
    from gpu_card import card, commit

    version = (Path(options.comfyui) / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]
    found = {
        "host_version": version, "torch_version": torch.__version__, "python_version": platform.python_version(), "commit": commit(ROOT),
        "device": "CPU, a rehearsal" if options.rehearse else torch.cuda.get_device_name(0),
    }
    if not options.rehearse:
        found["card"] = card()
    return {"rehearsal": options.rehearse, "environment": found}


def main() -> int:
    options = parse()
    load_packages()
    if options.worker:
        return work(options)
    if options.check:
        return check_machine(options)
    parts = [word.strip() for word in options.only.split(",") if word.strip()] or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"There is no part {', '.join(unknown)}. There are: {', '.join(PARTS)}.")
        return EXIT_USAGE
    if options.rehearse and options.json and CARD_RESULTS in options.json.resolve().parents:
        print(f"{CARD_RESULTS} holds what cards measured. Write a rehearsal somewhere else.")
        return EXIT_USAGE
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print(NO_DEVICE)
        if options.json and CARD_RESULTS not in options.json.resolve().parents:
            write_json(options.json, {"skipped": True, "reason": NO_DEVICE, "torch_version": torch.__version__})
        return EXIT_NO_GPU if options.require_gpu else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_KILLED))  # not without its worker
    deadline = BEGAN + (options.budget or (REHEARSAL_SECONDS if options.rehearse else BUDGET_SECONDS))
    try:
        results = Results(options.json, head(options), fresh=options.fresh)
    except ValueError as error:
        print(error)
        return EXIT_USAGE
    if options.rehearse:
        print("REHEARSAL on the CPU over small networks: nothing here is a measurement of a card")
    suite, shown = Suite(options, results, deadline), []
    for part in parts:
        if suite.left() < 0:
            print(f"No time left for {part}: call again.")
            continue
        suite.run(part, wanted_rows(names_of(part), options.rows, part))
        shown.append(part)
    for target in results.value.get("targets", []):
        if target["passed"] is not None:
            print(f"target  {'reached' if target['passed'] else 'MISSED':8} {target['target']}: {target['measured']:.3g}, {target['wanted']} ({target['of']})")
    failed = [f"{part}: {name}" for part in shown for name, row in results.value["parts"].get(part, {}).items() if is_failure(row)]
    unfinished = [f"{part}: {name}" for part in shown for name, row in results.value["parts"].get(part, {}).items() if "skipped" in row]
    results.set("failures", failed)
    if unfinished:
        print(f"{len(unfinished)} rows are still to be measured: call again with the same file.")
    print("Everything that ran passed." if not failed else "FAILED: " + "; ".join(failed))
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
