"""Runs in processes of their own, which SIGKILL ends at any moment: at a time, or within a chosen write.

`Killer` is the parent's side. The other side is this file run as a script: it imports everything once, then forks a
child for each life of a run, so that a life starts in milliseconds. What a job is, the script is told by name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LONGEST_LIFE_SECONDS = 300.0


class Killer:
    """With it as context: `live` runs a job until it ends or is killed."""

    def __init__(self, job: str, *arguments: str):
        self.command = [sys.executable, str(Path(__file__)), job, *arguments]
        self.num_kills = 0

    def __enter__(self) -> "Killer":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._answer() == {"ready": True}
        return self

    def __exit__(self, *exc_info) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=30)

    def live(
        self, folder: Path, *, kill_after_rows: int | None = None, kill_after_seconds: float = 0.0, kill_at: tuple[str, int] | None = None,
        save_interval_seconds: float = 0.3,
    ) -> dict:
        """One life. {"status": "finished", "points": {kind: how many}} or {"status": "killed"}.

        `kill_after_rows`: so many seconds after metrics.jsonl has so many rows: a moment that doesn't hang on the machine's speed.
        `kill_at`: within the n-th write of a kind ("row", "save"), which it leaves half done.
        """
        order = {"folder": str(folder), "kill_at": kill_at, "save_interval_seconds": save_interval_seconds}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        pid = self._answer()["pid"]
        if kill_after_rows is not None:
            deadline = time.monotonic() + LONGEST_LIFE_SECONDS
            while _num_rows(folder) < kill_after_rows:
                assert time.monotonic() < deadline, f"the run has not come to row {kill_after_rows}"
                time.sleep(0.001)
            time.sleep(kill_after_seconds)
            os.kill(pid, signal.SIGKILL)  # a child that has ended already is a zombie until the server has waited for it
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        answer = self._answer()
        assert answer["status"] in ("finished", "killed"), answer
        self.num_kills += answer["status"] == "killed"
        return answer

    def _answer(self) -> dict:
        line = " "
        while line and not line.startswith('{"'):  # a host prints, too
            line = self.server.stdout.readline()
        assert line, "the server of runs has ended"
        return json.loads(line)


def _num_rows(folder: Path) -> int:
    """In the run's metrics.jsonl, which lies in the folder or in the run below it."""
    return max((path.read_bytes().count(b"\n") for path in (folder / "metrics.jsonl", *folder.glob("*/metrics.jsonl")) if path.is_file()), default=0)


# ---- the other side ----------------------------------------------------------


class Death:
    """Ends this process within the n-th write of a kind. Counts them, too."""

    def __init__(self, kill_at):
        self.kill_at = tuple(kill_at) if kill_at else None
        self.points = {"row": 0, "save": 0}

    def at(self, kind: str, tear=lambda: None) -> None:
        self.points[kind] += 1
        if (kind, self.points[kind]) == self.kill_at:
            tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Around everything that a run writes with: before it, and after it with what it wrote torn."""
        import shutil

        import torch
        from pistachio.training import run

        def around(owner, name: str, tear) -> None:
            real = getattr(owner, name)

            def call(*args, **kwargs):
                self.at("save")
                result = real(*args, **kwargs)
                self.at("save", lambda: tear(*args))
                return result

            setattr(owner, name, call)

        def halve(path) -> None:
            with open(path, "rb+") as file:
                file.truncate(os.path.getsize(path) // 2)

        around(torch, "save", lambda state, path: halve(path))
        around(run, "save_file", lambda tensors, path: halve(path))
        around(os, "replace", lambda *paths: None)
        around(os, "fsync", lambda file: None)
        remove = shutil.rmtree

        def rmtree(path, **kwargs):
            if Path(path).exists():
                self.at("save", lambda: next(Path(path).iterdir()).unlink())
            return remove(path, **kwargs)

        shutil.rmtree = rmtree
        append = run.RunFolder.append_metric

        def append_metric(folder, row):
            def half() -> None:
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                with open(folder.path / "metrics.jsonl", "ab") as file:
                    file.write(line[: len(line) // 2])

            self.at("row", half)
            append(folder, row)

        run.RunFolder.append_metric = append_metric


def _child(job, order: dict) -> None:
    """Never returns."""
    code = 1
    try:
        death = Death(order["kill_at"])
        death.install()
        job(Path(order["folder"]), order["save_interval_seconds"])
        print(json.dumps({"status": "finished", "points": death.points}), flush=True)
        code = 0
    except Exception as error:  # said to the test; a traceback goes to its stderr
        import traceback

        traceback.print_exc()
        print(json.dumps({"status": f"failed: {type(error).__name__}: {error}"}), flush=True)
    finally:
        os._exit(code)


def serve(job) -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(job, order)
        print(json.dumps({"pid": pid}), flush=True)
        sys.stdin.readline()  # the parent has killed it, or won't
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print(json.dumps({"status": "killed"}), flush=True)


def _host_job(comfyui: Path, base: Path):
    """A tiny Wan through the pack's own door to the host, with samples."""
    from support import host, tiny_models
    from support.encoded import encoded_set

    booted = host.boot(comfyui, base)
    tiny_models.place(booted.models, tiny_models.kept_folder(TESTS.parent, booted.version), "wan21")
    tiny = tiny_models.load("wan21")
    encoded = encoded_set(base / "cache", tiny)

    import torch
    from pistachio.bridge.sampling import SampleSettings
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, TrainConfig
    from pistachio.training.config.samples import SampleConfig

    config = TrainConfig(
        num_steps=8, batch_size=2, seed=5, adapter=AdapterConfig(rank=2, alpha=2), optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        evaluation=EvaluationConfig(num_evaluations=4, timesteps_per_image=4, early_stop=False),
    )
    samples = SampleSettings(config=SampleConfig(prompts=("a [trigger]",), num_steps=2), clip=tiny.clip, vae=tiny.vae)

    def job(folder: Path, save_interval_seconds: float) -> None:
        with torch.inference_mode():
            train_lora(
                tiny.model, encoded, config, run_name="anna", logging_config=LoggingConfig(save_state_minutes=save_interval_seconds / 60), runs_folder=folder,
                log_row=lambda row: None, check_interrupted=lambda: None, samples=samples,
            )

    return job


def main(name: str, *arguments: str) -> None:
    sys.path[:] = [str(TESTS), *(entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent)]
    import conftest  # noqa: F401  loads the packages `pistachio` and `support`

    import torch
    import torch._dynamo  # noqa: F401  an optimiser imports it, for seconds: here once, not in every life

    torch.set_num_threads(1)
    if name == "flow":
        from support.flow_runs import flow_run

        serve(lambda folder, seconds: flow_run(folder, save_interval_seconds=seconds))
    elif name == "host":
        serve(_host_job(*map(Path, arguments)))
    else:
        raise SystemExit(f"There is no job '{name}'.")


if __name__ == "__main__":
    main(*sys.argv[1:])
