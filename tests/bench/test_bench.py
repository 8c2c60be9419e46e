#!/usr/bin/env python3
"""The bench with the smallest sizes, without peers: its table, its JSON, and that it says what is missing.

test_bench.py PATH/simdino-bench       prints TAP
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCH = sys.argv[1]
ROW = {"work", "mode", "precision", "ours", "peers", "others_busy_cores"}
OURS = {"ms", "ms_fastest", "gflop", "gflops", "peak_rss_mib", "threads", "rounds"}
MACHINE = {"processor", "cores", "threads", "info", "peak", "openblas_coretype", "peers", "missing", "size"}


def run(*command, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIMDINO_BENCH_")}
    return subprocess.run([sys.executable, *map(str, command)], env={**environment, **variables}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def driver(folder, *arguments, **variables):
    """What it printed and its JSON."""
    file = Path(folder) / "figures.json"
    done = run(HERE / "run.py", BENCH, "--tiny", "--threads", 2, *arguments, SIMDINO_BENCH_JSON=str(file), **variables)
    assert done.returncode == 0, done.stdout
    return done.stdout, json.loads(file.read_text())


def fake_peer(folder):
    """A Python without PyTorch, whatever is installed here: it sees a package of that name that cannot be imported."""
    modules = Path(folder) / "modules"
    for name in ("torch", "onnxruntime"):
        (modules / name).mkdir(parents=True)
        (modules / name / "__init__.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": str(modules), "SIMDINO_BENCH_PYTHON": sys.executable}


def test_all_rows_are_measured(folder):
    out, figures = driver(folder, "--no-peers")
    assert MACHINE <= set(figures["machine"]), figures["machine"]
    peak = figures["machine"]["peak"]
    assert peak["fp32_one"] > 0.1 and peak["fp32_all"] > 0.1, peak
    assert peak["threads"] == 1 or peak["round_trip_ns"] > 1.0, peak
    assert {r["mode"] for r in figures["rows"]} == {"step", "embed", "coding-rate", "augment", "memory"}
    for row in figures["rows"]:
        assert row["work"] in out, (row["work"], out)
        if row["mode"] == "memory":
            assert row["ours_mib"] > 1.0, row
        elif "skipped" not in row:
            assert ROW <= set(row) and OURS <= set(row["ours"]), row
            assert row["ours"]["ms"] > 0.0 and row["ours"]["threads"] == (1 if row["mode"] == "augment" else 2), row
            assert row["mode"] == "augment" or row["ours"]["gflops"] > 0.0 and row["share_of_peak"] > 0.0, row


def test_a_mode_can_be_chosen(folder):
    _, figures = driver(folder, "--no-peers", "--only", "coding-rate")
    assert [r["mode"] for r in figures["rows"]] == ["coding-rate"], figures["rows"]
    assert run(HERE / "run.py", BENCH, "--only", "nothing").returncode == 2


def test_growth(folder):
    out, figures = driver(folder, "--growth")
    assert [(t["mode"], t["varied"]) for t in figures["growth"]] == [("embed", "batch"), ("step", "threads")]
    for table in figures["growth"]:
        assert len(table["points"]) == 2, table
        assert all(p["ms"] > 0.0 and p["gflop"] > 0.0 and p["core_ms_per_gflop"] > 0.0 for p in table["points"]), table
    assert out.count("|---------:|") == 2, out


def test_layers(folder):
    file = Path(folder) / "layers.json"
    subprocess.run([BENCH, "layers", "--dim", "32", "--image", "32", "--steps", "1", "--json", file], check=True,
                   stdout=subprocess.DEVNULL)
    parts = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(parts) == 15 and all(p["ms"] > 0.0 and p["mb"] > 0.0 for p in parts), parts
    # forward: 24 D^2 and 4 T D for each of the rows; backward twice that, and attention's products again
    d, t, rows = (parts[0][k] for k in ("dim", "tokens", "rows"))
    assert abs(sum(p["gflop"] for p in parts) - 1e-9 * rows * (72 * d * d + 16 * t * d)) < 2e-5, parts


def test_sections(folder):
    file = Path(folder) / "sections.json"
    subprocess.run([BENCH, "sections", "--dim", "32", "--depth", "2", "--heads", "1", "--image", "32", "--local", "16", "--batch",
                    "2", "--steps", "1", "--threads", "4", "--json", file], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["threads"] for line in lines] == [1, 2, 4], lines
    assert lines[0]["waiting"] < 1e-6 and all(0.0 <= line["waiting"] < 1.0 for line in lines), lines
    # two forward passes and a backward pass of two blocks, the loss, norms and the optimizer
    assert all(10 <= line["sections"] <= line["tasks"] and line["ms"] > 0.0 for line in lines), lines


def test_a_missing_peer_is_said_once(folder):
    out, figures = driver(folder, "--only", "coding-rate,step", **fake_peer(folder))
    assert set(figures["machine"]["missing"]) == {"torch_peer.py", "ort_peer.py"}, figures["machine"]
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert sum("PyTorch not installed" in line for line in table) == 1, out
    assert all("ratio" not in row for row in figures["rows"]), figures["rows"]


def test_peers_say_that_packages_are_missing(folder):
    for program, *arguments in (("torch_peer.py", "step"), ("torch_peer.py", "versions"), ("ort_peer.py", "embed"),
                                ("torch_pretrain.py", "--data", folder)):
        done = run(HERE / "peers" / program, *arguments, **fake_peer(tempfile.mkdtemp(dir=folder)))
        assert done.returncode == 77 and "not installed" in done.stdout, (program, done.returncode, done.stdout)


def test_a_peer_that_fails_does_not_end_the_run(folder):
    out, figures = driver(folder, "--only", "coding-rate", SIMDINO_BENCH_PYTHON="/nowhere/python")
    assert len(figures["rows"]) == 1 and "/nowhere/python" in out, out


def main():
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    print(f"1..{len(tests)}")
    for number, (name, test) in enumerate(tests, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                test(folder)
                print(f"ok {number} - {name}", flush=True)
            except AssertionError as error:
                print(f"not ok {number} - {name}", flush=True)
                print("\n".join("# " + line for line in str(error).splitlines()), flush=True)


if __name__ == "__main__":
    main()
