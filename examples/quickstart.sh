#!/bin/sh
# From a fresh clone to a trained network, in about ten minutes on two cores:
#     sh examples/quickstart.sh
# installs what is missing (Debian packages; elsewhere it names them), builds the library and the program, pretrains a
# vision transformer with SimDINO on Fashion-MNIST, and measures its features by nearest neighbours.
# Settings, all optional: SIMDINO_MINUTES of training (default: what is left of ten minutes), SIMDINO_DATA (folder of
# the images), SIMDINO_BUILD (build folder, default build), and any options of `simdino pretrain` as arguments
# (--recipe and --method among them; without them the recipe is simdino-centred-grey).
set -eu

started=$(date +%s)
cd "$(dirname "$0")/.."
build=${SIMDINO_BUILD:-build}
data=${SIMDINO_DATA:-/usr/share/datasets/fashion-mnist}
results=$build/quickstart

elapsed() {
    seconds=$(($(date +%s) - started))
    printf '%d:%02d' $((seconds / 60)) $((seconds % 60))
}
step() {
    printf '\n== %s  (%s)\n' "$1" "$(elapsed)"
}

# These override OpenBLAS's choice of kernels, often to slower ones.
for name in OPENBLAS_CORETYPE OPENBLAS_L2_SIZE; do
    if eval "[ -n \"\${$name+set}\" ]"; then
        eval "echo \"Ignoring $name=\$$name: OpenBLAS chooses the kernels for this CPU itself.\""
        unset $name
    fi
done

step "Installing what is missing"
sh tests/install-packages.sh run
if [ ! -e "$data/train-images-idx3-ubyte.gz" ] && [ ! -e "$data/train-images-idx3-ubyte" ]; then
    echo "Fashion-MNIST is not in $data." >&2
    echo "Install Debian's package dataset-fashion-mnist, or set SIMDINO_DATA to a folder with its four files." >&2
    exit 1
fi

step "Building (log: $build/quickstart-build.log)"
mkdir -p "$build"
log=$build/quickstart-build.log
build_all() {
    if [ ! -e "$build/build.ninja" ]; then
        meson setup "$build" --buildtype=release
    fi
    ninja -C "$build" examples/simdino/simdino
}
if ! build_all >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "The build failed; its whole log is $log." >&2
    exit 1
fi
simdino=$build/examples/simdino/simdino
"$simdino" info

# Ten minutes in all, two and a half of them for the k-NN search and a reserve; at least two for training.
seconds=$((450 - ($(date +%s) - started)))
[ $seconds -ge 120 ] || seconds=120
minutes=${SIMDINO_MINUTES:-$((seconds / 60)).$((seconds % 60 * 10 / 60))}
step "Pretraining on 60000 images without labels, $minutes minutes"
mkdir -p "$results"
case " $* " in
*" --recipe"* | *" --method"*) ;;
*) set -- --recipe simdino-centred-grey "$@" ;;
esac
"$simdino" pretrain --data "$data" --out "$results/model.safetensors" --overwrite --minutes "$minutes" \
    --metrics "$results/metrics.csv" --curve "$results/loss.png" "$@"

step "k-NN: how often do the nearest training images have the class of the test image?"
"$simdino" knn --weights "$results/model.safetensors" --data "$data" --neighbors "$results/neighbors.png"

step "Done"
echo "checkpoint          $results/model.safetensors"
echo "loss curve          $results/loss.png"
echo "nearest neighbours  $results/neighbors.png"
echo "numbers per step    $results/metrics.csv"
echo "the program         $simdino --help"
