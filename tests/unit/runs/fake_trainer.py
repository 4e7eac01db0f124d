"""A trainer without training: acts out the scenario named in OPSD_TRAINER_FAKE.

Reads run.json and writes events, an adapter and a result as the real one would. Plain Python, so
that it starts at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STEP_S = 0.02


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    scenario = os.environ.get("OPSD_TRAINER_FAKE", "ok")
    out = Path(spec["output_dir"])
    num_steps = spec["optim"]["num_steps"]
    print(f"fake trainer: scenario {scenario}", flush=True)
    if scenario == "never_starts":
        time.sleep(600)
    if scenario == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if scenario == "grandchild":
        start_grandchild(out)
    with (out / "events.jsonl").open("a") as events:
        play(scenario, spec, out, events, num_steps)
    return 0


def play(scenario: str, spec: dict, out: Path, events, num_steps: int) -> None:  # type: ignore[no-untyped-def, type-arg]
    write(events, kind="started", num_steps=num_steps)
    if scenario in ("checked", "blind_teacher"):
        check_teacher(scenario, out, spec, events, num_steps)
    for step in range(1, num_steps + 1):
        if scenario in ("until_told", "grandchild", "ignores_sigterm"):
            # A safety net for tests that fail: nothing of theirs stays behind for long.
            deadline = time.monotonic() + 60
            while not (out / "go").exists() and time.monotonic() < deadline:
                time.sleep(STEP_S)
                write(events, kind="heartbeat", step=step - 1, num_steps=num_steps)
        if step == 2:
            misbehave(scenario, events)
        time.sleep(STEP_S)
        metrics = {"loss": 1.0 / step, "generated_tokens": str(100 * step), "step_s": 8.0}
        metrics["loss_implementation"] = "native-avx2" if step > 1 else "torch"
        write(events, kind="step", step=step, num_steps=num_steps, metrics=metrics)
        every = spec["export_every_steps"]
        if every and step % every == 0 and step < num_steps and scenario != "no_exports":
            export(out, events, step, num_steps)
    finish(scenario, spec, out, num_steps)


def check_teacher(scenario: str, out: Path, spec: dict, events, num_steps: int) -> None:  # type: ignore[no-untyped-def, type-arg]
    report = {"num_problems": 8, "accuracy_with": 0.5, "passed": scenario == "checked"}
    write(events, kind="teacher_check", num_steps=num_steps, teacher_check=report)
    if scenario == "blind_teacher":
        result = {"run_id": spec["run_id"], "outcome": "RUN_OUTCOME_FAILED", "error": "it is blind"}
        (out / "result.json").write_text(json.dumps(result))
        sys.exit(1)


def export(out: Path, events, step: int, num_steps: int) -> None:  # type: ignore[no-untyped-def]
    """The adapter as it is after the step."""
    adapter = out / "adapters" / f"step-{step:08d}"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "weights").write_text(str(step))
    write(
        events,
        kind="export",
        step=step,
        num_steps=num_steps,
        metrics={"generated_tokens": str(100 * step)},
        message=f"{step:064x}",
    )


def misbehave(scenario: str, events) -> None:  # type: ignore[no-untyped-def]
    if scenario == "dies":
        print("Traceback: out of luck", file=sys.stderr, flush=True)
        sys.exit(3)
    if scenario == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario == "hangs":
        time.sleep(600)
    if scenario == "garbage_events":
        events.write("\x00\x01 this is no event\n")
        events.flush()
        time.sleep(600)
    if scenario == "nan_event":
        events.write('{"kind": "step", "step": 2, "metrics": {"loss": NaN}}\n')
        events.flush()
        time.sleep(600)
    if scenario == "absurd_step":
        write(events, kind="step", step=4_000_000_000, num_steps=1)
        time.sleep(600)


def finish(scenario: str, spec: dict, out: Path, num_steps: int) -> None:  # type: ignore[type-arg]
    adapter = out / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "weights").write_text(scenario)
    with open(spec["shard"]["path"], encoding="utf-8") as shard:
        pair_ids = [json.loads(line)["id"] for line in shard]
    rates = {pair_id: {"attempts": 4, "solved": 1} for pair_id in pair_ids}
    if scenario == "garbage_rates":
        rates[pair_ids[0]]["solved"] = 5
    if scenario in ("solves", "garbage_rates"):
        (out / "solve-rates.json").write_text(json.dumps(rates))
    result: dict[str, object] = {
        "run_id": spec["run_id"],
        "outcome": "RUN_OUTCOME_SUCCEEDED",
        "adapter_path": str(adapter),
        "adapter_sha256": "a" * 64,
        "steps_done": num_steps,
        "generated_tokens": str(100 * num_steps),
        "wall_s": 1.5,
        "last": {"loss": 0.25, "generated_tokens": str(100 * num_steps)},
    }
    flaws: dict[str, dict[str, object]] = {
        "wrong_run_id": {"run_id": "someone else's"},
        "failed": {"outcome": "RUN_OUTCOME_FAILED", "error": "no gradient arrived"},
        "loses_a_rank": {"outcome": "RUN_OUTCOME_FAILED", "error": "connection closed by peer"},
        "stopped": {"outcome": "RUN_OUTCOME_CANCELLED"},
        "outside": {"adapter_path": "/etc"},
        "nan_result": {"last": {"loss": "NaN"}},
        "no_sha": {"adapter_sha256": ""},
    }
    result |= flaws.get(scenario, {})
    text = "{not json" if scenario == "garbage_result" else json.dumps(result)
    if scenario == "no_result":
        return
    if scenario == "loses_a_rank":
        ends = [
            {"rank": 0, "exit_status": 1, "host": ""},
            {"rank": 1, "exit_status": -9, "host": ""},
        ]
        (out / "group.json").write_text(json.dumps({"ranks": ends}))
    (out / ".result").write_text(text)
    os.replace(out / ".result", out / "result.json")
    if scenario == "lingers":
        time.sleep(600)


def start_grandchild(out: Path) -> None:
    """In a session of its own, as torchrun starts its ranks; deaf to SIGTERM."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        ],
        start_new_session=True,
    )
    (out / "grandchild").write_text(str(child.pid))


def write(events, **event: object) -> None:  # type: ignore[no-untyped-def]
    # The clock of this play: ten seconds a step.
    event["time_unix_s"] = 1000.0 + 10 * int(str(event.get("step", 0)))
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    sys.exit(main())
