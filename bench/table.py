#!/usr/bin/env python3
"""Joins our lines and the peers' into a table of ratios.

    python3 bench/table.py OURS.jsonl PEERS.jsonl [part of a name …]

OURS are lines of `cargo bench --bench gpu`, PEERS those of `bench/peers.py`, both from one run on
one machine. × is the peer's time over ours: above 1 ours is faster. Targets are in
`bench/targets.json`; `met` and `missed` say how we stand to them. Of several lines for one case the
last counts.
"""
import json
import pathlib
import sys


def lines(path):
    with open(path) as file:
        return [json.loads(text) for text in file if text.startswith("{")]


def main(ours, peers, *parts):
    targets = json.loads((pathlib.Path(__file__).parent / "targets.json").read_text())
    others = {}
    for found in lines(peers):
        others.setdefault(found["case"], {})[found["peer"]] = found
    print("| case | ours, µs | target, µs | | peers, µs (×) | variant |")
    print("|---|---|---|---|---|---|")
    for case, our in {found["case"]: found for found in lines(ours)}.items():
        if parts and not any(part in case for part in parts):
            continue
        us, target = our["us"], targets.get(case)
        verdict = "" if target is None else "met" if us <= target else "missed"
        beside = ", ".join(
            f"{name} {other['us']:g} ({other['us'] / us:.2f}{', with dispatch' if other.get('wall') else ''})"
            for name, other in sorted(others.get(case, {}).items(), key=lambda item: item[1]["us"])
        )
        print(f"| {case} | {us:g} | {target or '–'} | {verdict} | {beside or '–'} | {our['variant']} |")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
