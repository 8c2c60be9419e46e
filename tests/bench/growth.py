"""How the cost of a step and of embedding grows with batch, tokens, width and threads: milliseconds beside arithmetic.
What grows faster than its arithmetic has a rising last column."""
from measure import middle, say

VIT = {"dim": 384, "depth": 12, "patch": 16, "image": 224}
SMALL = {"dim": 192, "depth": 6, "patch": 4, "image": 32, "local": 16, "locals": 6}
TINY = {"dim": 32, "depth": 1, "patch": 8, "image": 16, "batch": 2}


def doubling(most):
    values = [1]
    while values[-1] * 2 <= most:
        values.append(values[-1] * 2)
    return values if values[-1] == most else values + [most]


def axes(size, modes, threads):
    """Mode, what varies, its values, and the rest of the options."""
    batches, widths = (1, 2, 4, 8, 16, 32), (96, 192, 384, 768)
    if size == "tiny":
        yield "embed", "batch", (1, 2), TINY
        yield "step", "threads", (1, 2), {**TINY, "local": 8, "locals": 1, "head-hidden": 64}
        return
    sides = {"embed": (96, 160, 224, 320, 448), "step": (32, 48, 64, 96)}
    if size == "quick":
        batches, widths, sides = batches[:4], widths[:3], {k: v[:3] for k, v in sides.items()}
    if "embed" in modes:
        yield "embed", "batch", batches, VIT
        yield "embed", "image", sides["embed"], {**VIT, "batch": 4}
        yield "embed", "dim", widths, {**VIT, "batch": 4}
        yield "embed", "threads", doubling(threads), {**VIT, "batch": 8}
    if "step" in modes:
        yield "step", "batch", batches, SMALL
        yield "step", "image", sides["step"], {**SMALL, "batch": 4}
        yield "step", "dim", widths, {**SMALL, "batch": 8}
        yield "step", "threads", doubling(threads), {**SMALL, "batch": 32}


def arguments(options):
    return [text for key, value in options.items() for text in ("--" + key, str(value))]


def point(programs, mode, options, size):
    """The median of some runs of the program, of some repetitions each."""
    runs, steps = (1, 1) if size == "tiny" else (1, 3) if size == "quick" else (3, 5)
    command = [mode, *arguments({**options, "steps": steps}), "--no-sgemm"]
    results = [programs.ours(*command) for _ in range(runs)]
    return {"ms": middle(results, "ms"), "gflop": results[0]["gflop"], "threads": results[0]["threads"],
            "tokens": (results[0]["image"] // results[0]["patch"]) ** 2 + 1,
            "others_busy_cores": max(r["others_busy_cores"] for r in results)}


def tables(programs, size, modes):
    results, busy = [], 0.0
    for mode, varied, values, rest in axes(size, modes, programs.threads):
        fixed = ", ".join(f"{k} {v}" for k, v in rest.items() if k != varied)
        say(f"{mode}: {varied} ({fixed}{'' if varied == 'threads' else f', threads {programs.threads}'})\n")
        # by core, so that threads are seen to share the work evenly or not
        say(f"| {varied:>8} | tokens |      GFLOP |         ms | core-ms / GFLOP | to the first |")
        say("|---------:|-------:|-----------:|-----------:|----------------:|-------------:|")
        points = []
        for value in values:
            options = {**rest, varied: value}
            if mode == "step" and varied == "image":
                options["local"] = value // 2  # which is a multiple of the patch as well
            p = {varied: value, **point(programs, mode, options, size)}
            p["core_ms_per_gflop"] = p["ms"] * p["threads"] / p["gflop"]
            points.append(p)
            relative = p["core_ms_per_gflop"] / points[0]["core_ms_per_gflop"]
            say(f"| {value:8} | {p['tokens']:6} | {p['gflop']:10.3f} | {p['ms']:10.3f} | "
                f"{p['core_ms_per_gflop']:15.3f} | {relative:12.2f} |")
            busy = max(busy, p["others_busy_cores"])
        say()
        results.append({"mode": mode, "varied": varied, "fixed": rest, "points": points})
    if busy > 0.1:
        say(f"Other programs kept up to {busy:.1f} cores busy meanwhile: measure again.")
    return results
