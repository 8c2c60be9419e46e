#!/usr/bin/env python3
"""Adds up the results of several `meson test` runs by single test case and shows the output of those that failed.

    summary.py NAME=LOG.json...     a log that does not exist, or is empty, counts as one failure

The last line is "N passed, N failed" (and ", N skipped"); the exit status is 1 when any failed.
"""

import collections
import json
import pathlib
import re
import sys

SHOWN = 120  # lines of output of a failed test


def cases(entry):
    """Passed, failed and skipped cases of one executable."""
    passed = failed = skipped = 0
    output = entry.get("stdout") or ""
    plans = re.findall(r"^1\.\.(\d+)", output, flags=re.M)
    if plans:
        for line in output.splitlines():
            match = re.match(r"(not )?ok\b(.*)", line)
            if not match:
                continue
            if re.search(r"#\s*skip", match.group(2), flags=re.I):
                skipped += 1
            elif match.group(1):
                failed += 1
            else:
                passed += 1
        failed += max(0, sum(map(int, plans)) - passed - failed - skipped)  # planned and never run
    elif entry["result"] in ("OK", "EXPECTEDFAIL"):
        passed = 1
    elif entry["result"] == "SKIP":
        skipped = 1
    if entry["result"] not in ("OK", "SKIP", "EXPECTEDFAIL") and failed == 0:
        failed = 1  # it crashed, ran out of time, or left cases out
    return passed, failed, skipped


def show(run, entry):
    print(f"---- {run}: {entry['name']}: {entry['result']}, exit status {entry['returncode']}")
    for stream in ("stdout", "stderr"):
        lines = (entry.get(stream) or "").splitlines()
        if len(lines) > SHOWN:
            print(f"     ({len(lines) - SHOWN} lines of {stream} before these)")
        print("\n".join(lines[-SHOWN:]))


def main():
    total = collections.Counter()
    slowest = []
    lines = []
    for argument in sys.argv[1:]:
        run, path = argument.split("=", 1)
        path = pathlib.Path(path)
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        sums = collections.Counter()
        for entry in entries:
            for kind, number in zip(("passed", "failed", "skipped"), cases(entry)):
                sums[kind] += number
            if cases(entry)[1]:
                show(run, entry)
            slowest.append((entry.get("duration") or 0.0, run, entry["name"]))
        if not entries:
            sums["failed"] += 1
            print(f"---- {run}: it did not come to tests; see above")
        lines.append(f"{run:22} {sums['passed']:6} passed {sums['failed']:6} failed {sums['skipped']:6} skipped")
        total += sums
    print("\nslowest:")
    for seconds, run, name in sorted(slowest, reverse=True)[:5]:
        print(f"{seconds:8.1f} s  {run}: {name}")
    print("")
    print("\n".join(lines))
    print("")
    closing = f"{total['passed']} passed, {total['failed']} failed"
    print(closing + (f", {total['skipped']} skipped" if total["skipped"] else ""))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
