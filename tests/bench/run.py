#!/usr/bin/env python3
"""How fast libsimdino is on this machine, beside PyTorch and ONNX Runtime. What `meson compile -C build bench` runs.

    run.py [PATH/simdino-bench] [--only step,embed,coding-rate,augment] [--quick] [--json FILE]
    run.py [PATH/simdino-bench] --growth        how our cost grows with batch, tokens, width and threads

Ours and the peers run in turn, on as many threads. A peer's figure is that of its best way: PyTorch eager or compiled,
of float or bf16 weights, ONNX Runtime. SIMDINO_BENCH_PYTHON names a Python that has the peers (default: python3);
without them the rest is measured all the same. SIMDINO_BENCH_JSON is a default for --json.
"""
import argparse
import json
import os
from pathlib import Path

import growth
from measure import Failed, Missing, Programs, cores, middle, processor, say, stop
from rows import ORT, SIZES, CHOICES, TORCH, rows

BUSY = 0.1  # cores: less than that of other programs is not worth a word
WIDTHS = (61, 14, 7, 40, 6)


class Bench:
    def __init__(self, programs, size, rounds, peers):
        self.programs, self.size, self.rounds = programs, size, rounds
        self.notes, self.busy_rows, self.most_busy = [], 0, 0.0
        self.info, self.peak = programs.ours("info"), programs.ours("peak", "--steps", str(SIZES[size]["peak"]))
        self.versions, self.absent = {}, {}
        for program in (TORCH, ORT):
            try:
                if not peers:
                    raise Missing("left out")
                self.versions.update(programs.peer(program, "versions"))
            except (Missing, Failed) as error:
                self.absent[program] = str(error)
        self.versions.pop("others_busy_cores", None)
        self.absent_said = False

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def peer(self, row, name, results):
        program, *more = row.peers[name]
        if program in self.absent or "failed" in results.get(name, {}):
            return
        try:
            result = self.programs.peer(program, row.mode, *row.arguments, *more)
            results.setdefault(name, {"rounds": []})["rounds"].append(result)
        except Missing as error:
            results[name] = {"failed": str(error)}
            self.note(f"{name}: {error}")
        except Failed as error:
            results[name] = {"failed": str(error)}
            self.note(f"{name} failed in \"{row.work}\": {error}")

    def measure(self, row):
        ours, peers = [], {}
        for _ in range(self.rounds):
            ours.append(self.programs.ours(row.mode, *row.arguments, *row.ours, "--no-sgemm"))
            for name in row.peers:
                self.peer(row, name, peers)
        result = {"work": row.work, "mode": row.mode, "precision": row.precision, "ours": summary(ours), "peers": peers}
        for name, peer in peers.items():
            if "failed" not in peer:
                peer.update(summary(peer["rounds"]))
                self.compare_counts(row, name, ours[0], peer["rounds"][0])
        ranked = sorted((p["ms"], name) for name, p in peers.items() if "ms" in p)
        if ranked:
            result["best_peer"], result["ratio"] = ranked[0][1], ranked[0][0] / result["ours"]["ms"]
        ceiling = self.peak[f"{row.precision}_all"]
        if result["ours"]["gflops"] > 0.0 and ceiling > 0.0:
            result["share_of_peak"] = result["ours"]["gflops"] / ceiling
        everything = ours + [r for p in peers.values() for r in p.get("rounds", [])]
        result["others_busy_cores"] = max(r["others_busy_cores"] for r in everything)
        self.busy_rows += result["others_busy_cores"] > BUSY
        self.most_busy = max(self.most_busy, result["others_busy_cores"])
        return result

    def compare_counts(self, row, name, ours, peer):
        for key in ("parameters", "gflop"):
            if key in ours and abs(ours[key] - peer.get(key, ours[key])) > 1e-5 * abs(ours[key]) + 1e-6:
                self.note(f"not the same work: {name} has {peer[key]} {key} in \"{row.work}\", ours {ours[key]}")

    # ---- the table ----

    def line(self, *cells):
        say("| " + " | ".join(str(c).ljust(w) for c, w in zip(cells, WIDTHS)) + " |")

    def no_peer(self):
        text = "-" if self.absent_said or TORCH not in self.absent else "PyTorch not installed"
        self.absent_said = True
        return text if self.absent.get(TORCH) != "left out" else "-"

    def show(self, row, result):
        ours, mark = result["ours"], " *" if result["others_busy_cores"] > BUSY else ""
        share = f"{100 * result['share_of_peak']:.1f}%" if "share_of_peak" in result else ""
        if "best_peer" in result:
            best = result["peers"][result["best_peer"]]
            peer, ratio = f"{amount(row.mode, best)} ({result['best_peer']})", f"{result['ratio']:.2f}"
        else:
            peer, ratio = self.no_peer(), ""
        self.line(row.work + mark, amount(row.mode, ours), share, peer, ratio)

    def show_memory(self, row, result):
        """Peak memory of the first step, and that of the thriftiest peer; and what the step takes otherwise."""
        ranked = sorted((p["peak_rss_mib"], name) for name, p in result["peers"].items() if "ms" in p)
        fastest = min((p["ms"] for p in result["peers"].values() if "ms" in p), default=None)
        lines = []
        for way, more in {"": [], **CHOICES}.items():
            ours = summary([self.programs.ours("step", *row.arguments, *more, "--no-sgemm")]) if more else result["ours"]
            work = f"the same, {way}, and its time" if more else "peak memory of the first step (ours / peer)"
            memory = {"work": work, "mode": "memory", "ours_mib": ours["peak_rss_mib"], "ours_ms": ours["ms"]}
            peer, ratio = self.no_peer(), ""
            if ranked:
                memory.update(best_peer=ranked[0][1], peer_mib=ranked[0][0], ratio=ours["peak_rss_mib"] / ranked[0][0])
                peer, ratio = f"{ranked[0][0]:.0f} MiB ({ranked[0][1]})", f"{memory['ratio']:.2f}"
            amounts = f"{ours['peak_rss_mib']:.0f} MiB"
            if more:
                amounts += f", {figures(ours['ms'])} ms"
                ratio += f", {fastest / ours['ms']:.2f}" if fastest else ""
            self.line(work, amounts, "", peer, ratio)
            lines.append(memory)
        return lines

    def cores_apart(self):
        ns = self.peak["round_trip_ns"]
        return "" if ns == 0.0 else f"; two threads answer each other in {ns:.0f} ns" + (
            ": cores that share no cache, or other programs" if ns > 200.0 else "")

    def header(self):
        info, peak = self.info, self.peak
        say(f"libsimdino {info['version']}, {processor()}, {cores()} cores; {self.programs.threads} threads")
        say(f"BLAS: {info['blas']}, kernel {info['blas_kernel'] or 'unknown'}; products by {info['products']}; "
            f"own loops {info['cpu_level']}; bf16: {info['bf16'] or 'no'}")
        if self.programs.coretype:
            say(f"OpenBLAS does not know this CPU: OPENBLAS_CORETYPE={self.programs.coretype} for this run")
        bf16 = f"; bf16 {peak['bf16_one']:.1f} and {peak['bf16_all']:.1f}" if peak["bf16_all"] > 0 else ""
        say(f"Peak ({peak['instructions']}): fp32 {peak['fp32_one']:.1f} GFLOP/s on one core, "
            f"{peak['fp32_all']:.1f} on {peak['threads']}{bf16}{self.cores_apart()}")
        if self.versions:
            say("Peers: " + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        for reason in sorted(set(self.absent.values()) - {"left out"}):
            say(f"Peers: {reason}; SIMDINO_BENCH_PYTHON names a Python that has them")
        if self.size != "full":
            say(f"A {self.size} run: smaller batches, fewer repetitions, PyTorch not compiled; no figures to quote")
        say()

    def table(self, modes, compiled):
        results, first = [], None
        self.line("work", "ours", "of peak", "fastest peer", "ratio")
        self.line(*("-" * w for w in WIDTHS))
        for row in rows(self.size, modes, compiled):
            if row.precision == "bf16" and self.info["no_bf16"]:
                self.line(row.work, "skipped", "", "", "")
                self.note(f"bf16 is skipped: {self.info['no_bf16']}")
                results.append({"work": row.work, "mode": row.mode, "skipped": self.info["no_bf16"]})
                continue
            results.append(self.measure(row))
            self.show(row, results[-1])
            if first is None and row.mode == "step":
                first = row, results[-1]
        if first is not None:
            results += self.show_memory(*first)
        return results

    def footer(self):
        say("\nratio: the peer's time over ours (memory: ours over the peer's, then times); of peak: GFLOP/s, which count matrix\n"
            "products by a formula, as a share of the peak above in that precision.")
        if self.busy_rows:
            say(f"* Other programs kept up to {self.most_busy:.1f} cores busy in {self.busy_rows} rows: measure again.")
        for text in self.notes:
            say(text)


def summary(results):
    return {**results[0], **{k: middle(results, k) for k in ("ms", "ms_fastest", "gflops", "peak_rss_mib")},
            "rounds": results}


def amount(mode, result):
    if mode == "augment":
        return f"{figures(1e3 / result['ms'])} images/s"
    return f"{figures(result['ms'])} ms"


def figures(value):
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def parse():
    default = Path(__file__).resolve().parents[2] / "build" / "tests" / "bench" / "simdino-bench"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", default=default, type=Path, help=f"default: {default}")
    parser.add_argument("--only", default="step,embed,coding-rate,augment", help="modes, with commas between them")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", default="full")
    parser.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="to test the bench itself")
    parser.add_argument("--growth", action="store_true", help="how our cost grows, instead of the comparison")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager alone: compiling takes the most time")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, help="how often the programs run in turn (default: 2)")
    parser.add_argument("--python", default=os.environ.get("SIMDINO_BENCH_PYTHON") or "python3",
                        help="with the peers (default: SIMDINO_BENCH_PYTHON, else python3)")
    parser.add_argument("--json", default=os.environ.get("SIMDINO_BENCH_JSON"), metavar="FILE",
                        help="all figures (default: SIMDINO_BENCH_JSON)")
    o = parser.parse_args()
    o.modes = o.only.split(",")
    unknown = set(o.modes) - {"step", "embed", "coding-rate", "augment"}
    if unknown or o.threads < 1 or (o.rounds or 1) < 1:
        parser.error(f"unknown in --only: {', '.join(unknown)}" if unknown else "--threads, --rounds: at least 1")
    if not o.bench.exists():
        parser.error(f"there is no {o.bench}: ninja -C build tests/bench/simdino-bench")
    return o


def main():
    o = parse()
    try:
        programs = Programs(o.bench.resolve(), o.python, o.threads)
        peers = not (o.no_peers or o.growth)
        bench = Bench(programs, o.size, o.rounds or SIZES[o.size]["rounds"], peers)
        bench.header()
        if o.growth:
            results = growth.tables(programs, o.size, o.modes)
        else:
            results = bench.table(o.modes, o.size == "full" and not o.no_compile)
            bench.footer()
    except Failed as error:
        stop(error)
    if o.json:
        machine = {"processor": processor(), "cores": cores(), "threads": o.threads, "info": bench.info,
                   "peak": bench.peak, "openblas_coretype": programs.coretype, "peers": bench.versions,
                   "missing": bench.absent, "size": o.size}
        document = {"machine": machine, "growth" if o.growth else "rows": results, "notes": bench.notes}
        Path(o.json).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
