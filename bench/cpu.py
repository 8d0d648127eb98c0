#!/usr/bin/env python3
"""Nitrox's CPU device beside PyTorch's CPU path, in one run on one machine: bench/results/cpu.md.

    python3 bench/cpu.py --python python-with-torch --rounds 5 > table.md

Round after round and frame after frame, `bench/frame_time.exs` and two `bench/torch_cpu.py`, with one
thread and with two (with one under `taskset -c 1`), take their turns; each runs alone. A figure is the
median over the rounds of a round's p50, with the fastest and the slowest round behind it, and PyTorch's
is that of the way which is best by the median. What the machine does beside is
measured as well: a turn waits for a quiet second, and one in which others took more than --busy of the
CPU time is taken again, up to --tries times.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICKS = os.sysconf("SC_CLK_TCK")
BACKBONES = "mlp,lstm,gru,mamba,attention,jamba"
FORMS = ("step", "window")


class Load:
    """CPU seconds of the machine (with those that the host gave to others) and of our processes."""

    def __init__(self, workers):
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        self.machine = (user + nice + system + irq + softirq + steal) / TICKS
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.own = ended.ru_utime + ended.ru_stime
        for worker in workers:
            with open(f"/proc/{worker.process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            self.own += (int(fields[11]) + int(fields[12])) / TICKS
        self.time = time.monotonic()

    def others_since(self, before):
        """The share of the machine's CPU time that was neither idle nor ours."""
        others = (self.machine - before.machine) - (self.own - before.own)
        return max(others, 0) / ((self.time - before.time) * os.cpu_count())


class Torch:
    """A `bench/torch_cpu.py` that waits for cases."""

    def __init__(self, threads, args):
        command = [args.python, "bench/torch_cpu.py", "--threads", str(threads)]
        self.process = subprocess.Popen(
            command + ["--frames", str(args.frames)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def turn(self, case):
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != "\n":
            if not line:
                sys.exit("bench/torch_cpu.py ended")
            lines.append(json.loads(line))
        return lines


class Nitrox:
    def __init__(self, args, folder):
        self.path = os.path.join(folder, "lines.jsonl")
        self.command = ["mix", "run", "bench/frame_time.exs", "--device", "cpu", "--no-benchee"]
        self.command += ["--frames", str(args.frames), "--paced-frames", "0", "--cold-frames", "0"]
        self.command += ["--json", self.path]

    def turn(self, case):
        backbone, form = case.split("-")
        command = self.command + ["--backbone", backbone, "--form", form]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        with open(self.path) as file:
            return [json.loads(line) for line in file]


def quiet(workers, args):
    """Waits for a second in which nobody else does much, but not for ever."""
    for _ in range(args.patience):
        before = Load(workers)
        time.sleep(1)
        if Load(workers).others_since(before) <= args.busy:
            return


def turn(side, case, workers, args):
    """The lines of a turn and the share that others took; of several tries the quietest one."""
    tries = []
    for _ in range(args.tries):
        quiet(workers, args)
        before = Load(workers)
        found = side.turn(case)
        tries.append((Load(workers).others_since(before), found))
        if tries[-1][0] <= args.busy:
            break
    return min(tries, key=lambda found: found[0])


def measure(sides, args):
    """All lines, each with its round, and with what others took meanwhile."""
    workers = [side for side in sides if isinstance(side, Torch)]
    names = args.backbone.split(",")
    cases, lines = [f"{name}-{form}" for name in names for form in FORMS], []
    for case in cases:
        for side in workers:
            log(f"PyTorch compiles {case}")
            side.turn(case)
    for n in range(args.rounds):
        for case in cases:
            # Who goes first changes from round to round.
            for side in sides if n % 2 else sides[::-1]:
                others, found = turn(side, case, workers, args)
                log(f"round {n + 1}, {case}, {type(side).__name__}: others took {others:.1%}")
                extra = {"round": n + 1, "side": type(side).__name__, "others": round(others, 3)}
                lines += [extra | line for line in found]
    return lines


def log(message):
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)


def text(us):
    return f"{us:.1f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def row(case, lines):
    ours = [line["us"]["p50"] for line in lines if line["side"] == "Nitrox"]
    ways = {}
    for line in lines:
        if line["side"] == "Torch":
            threads = "1 thread" if line["threads"] == 1 else f"{line['threads']} threads"
            ways.setdefault(f"{line['way']}, {threads}", []).append(line["us"])
    best = min(ways, key=lambda way: statistics.median(us["frame"] for us in ways[way]))
    theirs = [us["frame"] for us in ways[best]]
    net = min(statistics.median(us["net"] for us in ways[way]) for way in ways)
    us, them = statistics.median(ours), statistics.median(theirs)
    spread = lambda times: (
        f"{text(statistics.median(times))} ({text(min(times))} – {text(max(times))})"
    )
    cells = [case.removeprefix("frame/").replace("-", " "), spread(ours), spread(theirs), best]
    return cells + [f"{them / us:.2f}", text(net), f"{net / us:.2f}"]


def table(lines):
    head = ["frame", "Nitrox", "PyTorch", "its best way", "PyTorch ÷ Nitrox"]
    rows = [head + ["PyTorch's net alone", "÷ Nitrox"], ["---"] * 7]
    for case in dict.fromkeys(line["case"] for line in lines):
        rows.append(row(case, [line for line in lines if line["case"] == case]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def output(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def cpu():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' if cores > 1 else ''} of {len(names)}, {names[0]}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default="python3", help="one that has torch")
    parser.add_argument("--backbone", default=BACKBONES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--busy", type=float, default=0.05, help="most that others may take")
    parser.add_argument("--patience", type=int, default=60, help="seconds to wait for quiet")
    parser.add_argument("--tries", type=int, default=3, help="of a turn that was not quiet")
    parser.add_argument("--lines", help="also writes every line here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        counts = [threads for threads in (1, 2) if threads <= len(os.sched_getaffinity(0))]
        sides = [Nitrox(args, folder)] + [Torch(threads, args) for threads in counts]
        lines = measure(sides, args)
    if args.lines:
        with open(args.lines, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    torch = next(line["torch"] for line in lines if line["side"] == "Torch")
    others = [line["others"] for line in lines]
    elixir, commit = (
        output("elixir", "--short-version"),
        output("git", "rev-parse", "--short", "HEAD"),
    )
    print(
        f"{datetime.date.today():%-d %B %Y}, {cpu()}, Linux {platform.release()}. PyTorch {torch},"
    )
    print(
        f"Elixir {elixir}, commit {commit}. {args.rounds} rounds of {args.frames} frames. Others took"
    )
    print(
        f"{statistics.median(others):.0%} of the machine during a turn (median), {max(others):.0%} at most.\n"
    )
    print(table(lines))


if __name__ == "__main__":
    main()
