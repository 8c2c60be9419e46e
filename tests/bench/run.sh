#!/bin/sh
# What `meson compile -C build bench` runs: the training step on one thread and on all, embedding and the coding rate.
#     sh tests/bench/run.sh PATH/simdino-bench
# SIMDINO_BENCH_JSON names a file for the figures. A PyTorch program that times the same work (modes `step`, `embed` and `coding_rate`, options as below) is
# run beside it when SIMDINO_BENCH_PEER holds its command line.
set -eu
bench=$1
json=${SIMDINO_BENCH_JSON:-}
peer=${SIMDINO_BENCH_PEER:-}
cores=$(getconf _NPROCESSORS_ONLN)

# OpenBLAS is to choose its kernels itself; only when it is older than the CPU and says so, its advice is followed.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
advised=$("$bench" advice)
if [ -n "$advised" ]; then
    echo "OpenBLAS does not know this CPU: OPENBLAS_CORETYPE=$advised for this run"
    export OPENBLAS_CORETYPE="$advised"
fi

ours() {
    if [ -n "$json" ]; then "$bench" "$@" --json "$json"; else "$bench" "$@"; fi
}

theirs() {
    [ -n "$peer" ] || return 0
    # shellcheck disable=SC2086 # a command with its arguments
    (unset OPENBLAS_CORETYPE && $peer "$@") || echo "the peer failed or was skipped"
}

for threads in 1 "$cores"; do
    ours step --threads "$threads" --batch 4 --steps 3
    ours step --threads "$threads" --dim 192 --depth 6 --patch 4 --image 32 --local 16 --locals 6 --batch 64 --steps 5
done
theirs step --size small --image 224 --local 96 --locals 10 --batch 4 --threads "$cores"
theirs step --dim 192 --depth 6 --heads 3 --patch 4 --image 32 --local 16 --locals 6 --batch 64 --threads "$cores"
for batch in 1 8 64; do
    ours embed --threads "$cores" --batch $batch
    theirs embed --size small --batch $batch --threads "$cores"
done
ours embed --threads "$cores" --dim 768 --patch 14 --batch 8
theirs embed --size base --patch 14 --batch 8 --threads "$cores"
for n in 64 512 4096; do
    ours coding-rate --n $n --d 256 --threads "$cores"
    theirs coding_rate --n $n --d 256 --threads "$cores"
done
