#!/bin/sh
# Puts the paper's claim to a test that fits on two cores: SimDINO against DINO and SimDINOv2 against DINOv2.
#     sh examples/study/study.sh                       everything, hours
#     STUDY_SECONDS=20 STUDY_PARTS=methods sh examples/study/study.sh
# Every run gets the same time of computing: each method's speed is measured first, and its number of steps follows. A run
# is one thread; as many go side by side as the machine has cores. Runs that have a result are not repeated: stop it when
# you like, and start it again to go on. At the end (and with "sh examples/study/study.sh tables" at any time) the tables
# are written to results.md beside the runs, and the pictures, when the program `study_chart` was built.
#
# Settings, all optional:
#   STUDY_SECONDS   of computing per run of the comparison of methods (default 120); runs of the other part get half of it
#   STUDY_SEEDS     seeds of the comparison of methods (default "0 1 2")
#   STUDY_DATA      "name=folder ..." (default: Fashion-MNIST of Debian's package; add "cifar-10=FOLDER" with the binary
#                   files)
#   STUDY_PARTS     "methods robustness" (default), or one of them
#   STUDY_METHODS   of "simdino dino simdinov2 dinov2" (default), those to run
#   STUDY_OPTIONS   of `simdino pretrain`, for every run: another network, other crops
#   STUDY_BUILD     build folder (default build), STUDY_OUT results (default $STUDY_BUILD/study), STUDY_JOBS (all cores)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
build=${STUDY_BUILD:-build}
out=${STUDY_OUT:-$build/study}
seconds=${STUDY_SECONDS:-120}
seeds=${STUDY_SEEDS:-0 1 2}
data=${STUDY_DATA:-fashion-mnist=/usr/share/datasets/fashion-mnist}
parts=${STUDY_PARTS:-methods robustness}
options=${STUDY_OPTIONS:-}
jobs=${STUDY_JOBS:-$(nproc 2>/dev/null || echo 2)}
methods=${STUDY_METHODS:-simdino dino simdinov2 dinov2}
simdino=$build/examples/simdino/simdino
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE || true

folder_of() { # DATA
    for pair in $data; do
        case $pair in "$1="*) echo "${pair#*=}" ;; esac
    done
}

# ---- one run: DATA METHOD PART VARIANT SEED OPTIONS... ---------------------------------------------------------------

key_of() { printf '%s_%s_%s_%s_%s' "$1" "$2" "$3" "$4" "$5"; }

# Steps of 64 images that the method does in the time given; measured once, alone.
calibrate() { # DATA METHOD
    file=$out/speed_$1_$2
    [ -s "$file" ] && return 0
    # shellcheck disable=SC2086 # options are words
    "$simdino" pretrain --method "$2" $options --data "$(folder_of "$1")" --out "$out/speed.safetensors" --overwrite \
        --steps 120 --threads 1 --metrics "$out/speed.csv" >/dev/null 2>&1
    # the median of the steps after the first 20
    awk -F, 'NR > 21 { print $14 }' "$out/speed.csv" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }' \
        >"$file.new"
    mv "$file.new" "$file"
    rm -f "$out/speed.safetensors" "$out/speed.csv"
}

# What the k-NN accuracies are to be compared with: raw pixels, and the network before training.
baseline() { # DATA
    result=$out/runs/$1_baseline.csv
    [ -s "$result" ] && return 0
    folder=$(folder_of "$1")
    # shellcheck disable=SC2086
    "$simdino" pretrain $options --data "$folder" --out "$out/one.safetensors" --overwrite --steps 1 --threads 1 >/dev/null 2>&1
    "$simdino" knn --weights "$out/one.safetensors" --data "$folder" --train-limit 20000 --test-limit 5000 --center on \
        --threads 1 2>/dev/null | awk -v data="$1" '
        /raw pixels/ { name = "pixels" }
        /untrained network/ { name = "untrained" }
        / trained network/ { name = "" }
        /%/ && name != "" { for (i = 1; i <= NF; i++) if ($i ~ /%$/) { printf "%s,%s,baseline,base,0,0,%.2f,0,0,0\n", data, name, $i; break } }
        ' >"$result.new"
    mv "$result.new" "$result"
    rm -f "$out/one.safetensors"
}

run_one() { # DATA METHOD PART VARIANT SEED BATCH OPTIONS...
    name=$1 method=$2 part=$3 variant=$4 seed=$5 batch=$6
    shift 6
    key=$(key_of "$name" "$method" "$part" "$variant" "$seed")
    result=$out/runs/$key.csv
    [ -s "$result" ] && return 0
    step=$(cat "$out/speed_${name}_$method")
    share=1
    [ "$part" = methods ] || share=0.5
    images=$(awk -v t="$seconds" -v s="$step" -v share="$share" 'BEGIN { print int(share * t / s) * 64 }')
    steps=$((images / batch))
    [ $steps -gt 0 ] || steps=1
    base=$out/runs/$key
    # shellcheck disable=SC2086
    if ! "$simdino" pretrain --method "$method" $options --data "$(folder_of "$name")" --out "$base.safetensors" --overwrite \
        --steps $steps --batch "$batch" --seed "$seed" --threads 1 --metrics "$base.steps" "$@" >"$base.log" 2>&1; then
        # a run that ends in numbers that are not finite is a result, too
        if grep -q "not finite" "$base.log"; then
            echo "$name,$method,$part,$variant,$seed,$images,0,0,1,nan" >"$result"
        else
            echo "run $key failed: see $base.log" >&2
        fi
        return 0
    fi
    accuracy=$("$simdino" knn --weights "$base.safetensors" --data "$(folder_of "$name")" --only-trained \
        --train-limit 20000 --test-limit 5000 --center on --threads 1 2>>"$base.log" |
        sed -n 's/.* \([0-9.]*\)%  *[0-9.]*%.*/\1/p' | tail -n 1)
    # rank and similarity: means over the last 50 steps
    tail -n 50 "$base.steps" | awk -F, -v head="$name,$method,$part,$variant,$seed,$images,$accuracy" '
        $1 ~ /^[0-9]/ { rank += $7; similar += $8; loss = $3; n++ }
        END { printf "%s,%.3f,%.4f,%.4f\n", head, rank / n, similar / n, loss }' >"$result.new"
    mv "$result.new" "$result"
    rm -f "$base.safetensors" "$base.steps"
}

# ---- the plan: one line per run ------------------------------------------------------------------------------------

plan_methods() { # DATA
    for seed in $seeds; do
        for method in $methods; do
            echo "$1 $method methods base $seed 64"
        done
    done
}

# What is varied from the method's small recipe: batch 64, momentum 0.99, learning rate 0.001.
plan_robustness() { # DATA
    for method in $methods; do
        echo "$1 $method robustness base 0 64"
        echo "$1 $method robustness batch=16 0 16 --lr 0.001"
        echo "$1 $method robustness batch=256 0 256 --lr 0.001"
        for momentum in 0 0.9 0.996; do
            echo "$1 $method robustness momentum=$momentum 0 64 --momentum $momentum"
        done
        echo "$1 $method robustness lr=x0.3 0 64 --lr 0.0003"
        echo "$1 $method robustness lr=x3 0 64 --lr 0.003"
        case $method in
        simdino*)
            echo "$1 $method robustness eps=0.005 0 64 --eps 0.005"
            echo "$1 $method robustness eps=0.5 0 64 --eps 0.5"
            echo "$1 $method robustness coeff=1 0 64 --coeff 1"
            echo "$1 $method robustness coeff=10 0 64 --coeff 10"
            ;;
        *)
            echo "$1 $method robustness temperature=0.02 0 64 --teacher-temp-start 0.02 --teacher-temp 0.02"
            echo "$1 $method robustness temperature=0.04 0 64 --teacher-temp-start 0.04 --teacher-temp 0.04"
            echo "$1 $method robustness temperature=0.1 0 64 --teacher-temp-start 0.1 --teacher-temp 0.1"
            echo "$1 $method robustness centering=off 0 64 --center-momentum 1"
            ;;
        esac
    done
}

plan() {
    for pair in $data; do
        for part in $parts; do
            "plan_$part" "${pair%%=*}"
        done
    done
}

tables() {
    cat "$out"/runs/*.csv >"$out/results.csv" 2>/dev/null || { echo "there are no results in $out/runs" >&2; exit 1; }
    awk -f "$here/tables.awk" "$out/results.csv" >"$out/results.md"
    chart=$build/examples/study/study_chart
    if [ -x "$chart" ]; then
        for pair in $data; do
            "$chart" "$out/results.csv" "${pair%%=*}" "$out/${pair%%=*}.png"
        done
    fi
    echo "tables: $out/results.md"
}

case ${1:-} in
--one)
    # of the whole plan, line $2
    number=$2
    set -- $(plan | sed -n "${number}p")
    run_one "$@"
    echo "[$(ls "$out/runs" | grep -v baseline | grep -c '\.csv$')/$(plan | wc -l)] $1 $2 $3 $4 seed $5: $(tail -n 1 \
        "$out/runs/$(key_of "$1" "$2" "$3" "$4" "$5").csv" 2>/dev/null | awk -F, '{ print "k-NN " $7 "%, rank " $8 }')"
    ;;
tables)
    tables
    ;;
"")
    if [ ! -x "$simdino" ]; then
        echo "$simdino is missing: build first (meson setup $build --buildtype=release && ninja -C $build)" >&2
        exit 1
    fi
    mkdir -p "$out/runs"
    for pair in $data; do
        baseline "${pair%%=*}"
        for method in $methods; do
            calibrate "${pair%%=*}" "$method"
        done
    done
    echo "$(plan | wc -l) runs of $seconds s (robustness: half), $jobs side by side; results in $out"
    seq "$(plan | wc -l)" | xargs -P "$jobs" -n 1 sh "$here/study.sh" --one
    tables
    ;;
*)
    echo "usage: study.sh [tables]" >&2
    exit 2
    ;;
esac
