#!/bin/sh
# Runs the program as a user does, on a tiny data set that is made here: sh test_program.sh PATH/TO/simdino
# Prints TAP: a line "ok N - what" or "not ok N - what" for each test.
. "$(dirname "$0")/helpers.sh"
cd "$folder" || exit 1

# ---- a tiny data set: four kinds of 16 x 16 images, in IDX files ----

bytes_of_images() { # bytes_of_images COUNT SEED: octal escapes of the pixels
    awk -v count="$1" -v seed="$2" 'BEGIN {
        srand(seed)
        for (i = 0; i < count; i++) {
            shift = int(3 * rand())
            for (y = 0; y < 16; y++) for (x = 0; x < 16; x++) {
                kind = i % 4
                if (kind == 0) bright = x + shift < 8
                else if (kind == 1) bright = y + shift < 8
                else if (kind == 2) bright = int((x + shift) / 3) % 2
                else bright = (x - 8) * (x - 8) + (y - 8) * (y - 8) < 16 + 9 * shift
                printf "\\%03o", (bright ? 150 : 30) + int(60 * rand())
            }
        }
    }'
}
write_images() { # write_images FILE COUNT SEED; COUNT < 256
    printf "\\0\\0\\10\\3\\0\\0\\0\\$(printf %o "$2")\\0\\0\\0\\20\\0\\0\\0\\20$(bytes_of_images "$2" "$3")" >"$1"
}
write_labels() { # write_labels FILE COUNT
    printf "\\0\\0\\10\\1\\0\\0\\0\\$(printf %o "$2")$(awk -v count="$2" 'BEGIN {
        for (i = 0; i < count; i++) printf "\\%03o", i % 4 }')" >"$1"
}
mkdir data
write_images data/train-images-idx3-ubyte 192 1
write_labels data/train-labels-idx1-ubyte 192
write_images data/t10k-images-idx3-ubyte 48 2
write_labels data/t10k-labels-idx1-ubyte 48

# A network that trains in a second. Every pretraining below uses it.
tiny="--data data --patch 4 --dim 32 --depth 2 --heads 2 --head-hidden 32 --head-dim 16 --global-size 16
    --local-size 8 --locals 2 --batch 32 --lr 1e-3 --threads 2 --coeff 1"

# ---- help and wrong usage ----

run --version
expect 0 "--version tells the version" '^simdino [0-9]*\.[0-9]*\.[0-9]*$' out
run --help
expect 0 "--help lists the commands" 'pretrain' out 'coding-rate' out
for command in pretrain embed knn coding-rate info; do
    run $command --help
    expect 0 "$command --help" "^Usage: simdino $command" out '  --help' out
done
run pretrain --help
expect 0 "the help tells defaults" 'default: model.safetensors' out 'small-grey' out
run
expect 2 "no command: the help, exit code 2" '^Usage' err
run pretrian
expect 2 "an unknown command gets a suggestion" 'did you mean "pretrain"' err
run pretrain --step 3
expect 2 "an unknown option gets a suggestion" 'did you mean --steps' err
run pretrain --data data --steps
expect 2 "a missing value" '--steps needs a value' err
run pretrain --data data --steps 3x
expect 2 "a value that is no number" 'expected a whole number' err
run pretrain --data data --momentum 1.5
expect 2 "a value out of bounds" 'must be from 0 to 1' err
run pretrain --data data --optimizer adam
expect 2 "a wrong word gets a suggestion" 'did you mean adamw' err
run pretrain --data data --epochs 1 --steps 2
expect 2 "two lengths" 'exclude each other' err
run pretrain --data data --blur 0.1,0.2
expect 2 "too few numbers" 'expected 3 numbers' err
run pretrain
expect 2 "pretrain without --data" '--data is missing' err
run pretrain --resume a --data data --lr 1
expect 2 "--resume keeps the settings" 'cannot be changed by --resume' err
run info --what
expect 2 "info takes no options" 'no option --what' err
run embed --weights a --data data --out a.txt
expect 2 "embed wants .npz or .npy" 'must end in' err

# ---- failures that are not the user's way of calling ----

run pretrain --data nowhere
expect 1 "images that do not exist" 'nowhere' err
mkdir empty
run pretrain --data empty
expect 1 "a folder without images says what is looked for" 'train-images-idx3-ubyte' err
run pretrain --data "$simdino"
expect 1 "a file that is no data set" 'neither an IDX file' err
head -c 5000 data/train-images-idx3-ubyte >short-idx3-ubyte
run pretrain --data short-idx3-ubyte
expect 1 "a truncated data set" 'short-idx3-ubyte' err
run pretrain $tiny --steps 2 --out nowhere/model.safetensors
expect 1 "a folder that does not exist is found before training" 'cannot write nowhere/model' err
run pretrain $tiny --heads 3 --steps 2
expect 1 "settings that contradict each other" 'heads' err
run pretrain $tiny --batch 1000 --steps 2
expect 1 "a batch larger than the data set" 'batch' err

run info
expect 0 "info" '^simdino ' out '^CPU' out '^BLAS kernel' out '^threads' out

# ---- pretraining, saving, resuming ----

run pretrain $tiny --steps 12 --seed 5 --out whole.safetensors --metrics whole.csv --curve curve.png
expect 0 "pretrain" '^finished after 12 of 12 steps' out 'saved whole.safetensors' out
rows=$(grep -c '^[0-9]' whole.csv)
[ "$rows" = 12 ] && head -n 1 whole.csv | grep -q '^step,epoch,loss,compression,expansion'
report $? "the metrics file has a row for each of the 12 steps"
awk -F, 'NR > 1 && ($3 == "" || $3 + $4 + $5 > 1e-4 || $3 + $4 + $5 < -1e-4) { bad = 1 } END { exit bad }' whole.csv
report $? "loss = -compression - expansion in each row"

is_png curve.png
report $? "the loss curve is a valid PNG file"

run pretrain $tiny --steps 12 --seed 5 --out whole.safetensors
expect 1 "an existing checkpoint is not overwritten" 'exists already' err

# Everything but the speed and the time must be equal.
losses() { cut -d, -f1-12 "$1"; }
run pretrain $tiny --steps 12 --seed 5 --out parts.safetensors --metrics parts.csv --stop-after 5
expect 0 "--stop-after" 'stopped after 5 of 12' out 'resume parts.safetensors' err
run pretrain --data data --resume parts.safetensors --metrics parts.csv --threads 1
expect 0 "--resume" 'finished after 12 of 12' out
[ -s whole.csv ] && [ "$(losses whole.csv)" = "$(losses parts.csv)" ]
report $? "a resumed run, on another number of threads, has the same losses as the whole one"
cmp -s whole.safetensors parts.safetensors
report $? "and saves the same checkpoint"
run pretrain --data data --resume parts.safetensors
expect 0 "resuming what is finished does nothing" 'saved parts' out

run pretrain $tiny --steps 4 --out lines.safetensors --metrics lines.jsonl --micro-batch 16 --activations memory \
    --knn-every 2 --optimizer sgd
expect 0 "JSON lines, pieces of a batch, k-NN while training" '^{"step":0,"epoch":' lines.jsonl \
    '"knn":0\.' lines.jsonl 'k-NN accuracy' err
run pretrain $tiny --minutes 0.05 --out minutes.safetensors
expect 0 "--minutes measures the speed and plans the steps" 'steps fit into 0.05 minutes' err '^finished' out

if [ -c /dev/full ]; then
    run pretrain $tiny --steps 4 --out full.safetensors --metrics /dev/full
    expect 1 "a full disk for the metrics does not end the training" 'cannot write /dev/full' err '^finished' out
fi

# A limit on the size of files stands for a full disk: the checkpoint does not fit, and the older one is kept.
cp whole.safetensors kept.safetensors
(
    trap '' XFSZ
    ulimit -f 50
    run pretrain $tiny --steps 2 --out kept.safetensors --overwrite
    exit "$code"
)
code=$?
expect 1 "a checkpoint that does not fit" 'cannot save the checkpoint: ' err
cmp -s whole.safetensors kept.safetensors && [ "$(ls kept.safetensors*)" = kept.safetensors ]
report $? "leaves the older one as it was, and no other file"

# Ctrl-C: training that would take hours is interrupted once its first steps are in the metrics file.
"$simdino" pretrain $tiny --steps 1000000 --out stopped.safetensors --metrics stopped.csv >out 2>err &
process=$!
waited=0
while [ "$(cat stopped.csv 2>/dev/null | wc -l)" -lt 4 ] && [ $waited -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
done
kill -INT $process
wait $process
code=$?
expect 130 "Ctrl-C saves a checkpoint and ends" '^stopped after' out 'saved stopped.safetensors' out \
    'pretrain --resume stopped.safetensors' err
steps=$(grep -c '^[0-9]' stopped.csv)
run pretrain --data data --resume stopped.safetensors --metrics stopped.csv --stop-after 2
expect 0 "and the run goes on from there" '^stopped after' out
[ "$(cut -d, -f1 stopped.csv | tail -n 1)" = $((steps + 1)) ] && [ "$(grep -c '^[0-9]' stopped.csv)" = $((steps + 2)) ]
report $? "with the next step"

# A learning rate that breaks the numbers: an error, and the checkpoint that was saved before stays.
run pretrain $tiny --steps 60 --out broken.safetensors --lr 1e30 --warmup 0 --clip none --save-every 1 --overwrite
expect 1 "a loss that is not a number stops the training" 'training stopped' err 'holds the state after' err
run embed --weights broken.safetensors --data data --out broken.npy
[ -s broken.safetensors ]
report $? "and the last checkpoint is kept"

head -c 3000 whole.safetensors >cut.safetensors
run pretrain --data data --resume cut.safetensors
expect 1 "a truncated checkpoint" 'cut.safetensors' err
{ head -c 20000 whole.safetensors; printf 'DAMAGED'; tail -c +20008 whole.safetensors; } >bad.safetensors
run knn --weights bad.safetensors --data data
expect 1 "a damaged checkpoint" 'bad.safetensors' err

# ---- precision ----

export SIMDINO_BF16=emulate
run pretrain $tiny --steps 4 --precision bf16 --out bf16.safetensors
expect 0 "pretrain in bf16"
run embed --weights bf16.safetensors --data data --split test --precision bf16 -o bf16.npy
expect 0 "embed in bf16" '48 rows' out
run info
expect 0 "info tells what bf16 is computed with" '^bf16 *emulated' out
unset SIMDINO_BF16
export SIMDINO_CPU=generic
run pretrain $tiny --steps 4 --precision bf16 --out refused.safetensors
expect 1 "bf16 is refused on a CPU without it" 'needs a CPU with AVX512_BF16' err
run pretrain --data data --resume bf16.safetensors
expect 1 "and so is a resumption in bf16" 'needs a CPU with AVX512_BF16' err
run embed --weights bf16.safetensors --data data --split test -o fp32.npy
expect 0 "but the network can be used" '48 rows' out
run embed --weights bf16.safetensors --data data --split test --precision bf16 -o bf16.npy
expect 1 "embed refuses bf16, too" 'needs a CPU with AVX512_BF16' err
run info
expect 0 "info tells that there is no bf16" '^bf16 *not available' out
unset SIMDINO_CPU
run pretrain $tiny --precision half
expect 2 "an unknown precision" 'precision' err

# ---- embeddings, coding rate, k-NN ----

run embed --weights whole.safetensors --data data --split test -o test.npy
expect 0 "embed to .npy" '48 rows of 32 numbers' out
[ "$(wc -c <test.npy)" = $((128 + 48 * 32 * 4)) ]
report $? "the .npy file has the size that NumPy expects"
run embed --weights whole.safetensors --data data --head --student --out=train.npz
expect 0 "embed to .npz" '192 rows of 16 numbers, and their labels' out
if command -v python3 >/dev/null; then
    python3 -c 'import zipfile; z = zipfile.ZipFile("train.npz"); assert z.testzip() is None
assert z.namelist() == ["embeddings.npy", "labels.npy"]
assert z.read("labels.npy")[128:136] == bytes([0, 0, 0, 0, 1, 0, 0, 0])'
    report $? "the .npz file is a sound archive with features and labels"
fi
run coding-rate test.npy --eps 0.5
expect 0 "coding-rate of a file" '^rows *48$' out '^R ' out '^gamma R' out '^effective rank' out
# One row with the number 1: R = 1/2 ln(1 + 1/0.05).
{ printf '\223NUMPY\1\0\166\0'; printf '%-117s\n' "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1), }"
    printf '\0\0\0\0\0\0\360\77'; } >one.npy
run coding-rate one.npy
expect 0 "the coding rate of a known matrix" '^R *1\.52226122 nats' out '^effective rank *1\.0000' out
run coding-rate --weights whole.safetensors --data data --split test --head
expect 0 "coding-rate of embeddings" '^columns *16$' out
run coding-rate whole.csv
expect 1 "a file that is no .npy" 'not a .npy file' err

run knn --weights whole.safetensors --data data --neighbors neighbors.png
expect 0 "knn, three rows" 'raw pixels, centred .*%' out 'untrained network .*%' out 'trained network .*%' out
is_png neighbors.png
report $? "the picture of neighbours is a valid PNG file"
run knn --data data --center both -k 5
expect 0 "knn of raw pixels alone, both forms" 'raw pixels   .*%' out 'raw pixels, centred' out
run knn --data data -k 500
expect 1 "more neighbours than images" 'only 192 training images' err

# ---- other data sets ----

mkdir zipped cifar
gzip -c data/train-images-idx3-ubyte >zipped/train-images-idx3-ubyte.gz
gzip -c data/train-labels-idx1-ubyte >zipped/train-labels-idx1-ubyte.gz
run embed --weights whole.safetensors --data zipped/train-images-idx3-ubyte.gz --out zipped.npz
expect 0 "one compressed IDX file; its labels are found" '192 rows of 32 numbers, and their labels' out
run embed --weights whole.safetensors --data zipped --split test --out zipped.npz
expect 1 "a folder without test images" 'no test images' err
for label in 0 1 2 3 4 5 6 7 8 9; do
    printf "\\$(printf %o $label)"
    head -c 3072 data/train-images-idx3-ubyte
done >cifar/data_batch_1.bin
cp cifar/data_batch_1.bin cifar/test_batch.bin
run pretrain --data cifar --patch 8 --dim 16 --depth 1 --heads 1 --head-hidden 16 --head-dim 8 --locals 0 --batch 5 \
    --epochs 1 --out cifar.safetensors
expect 0 "CIFAR-10 files" 'CIFAR-10, 10 images of 32 x 32 x 3' err 'finished after 2 of 2' out
run knn --weights cifar.safetensors --data cifar/data_batch_1.bin,cifar/test_batch.bin \
    --test-data cifar/test_batch.bin --only-trained -k 1
expect 0 "CIFAR-10 files by name" '20 training images, 10 test images' out

# ---- methods, recipes, weights under other names ----

small="--patch 7 --dim 16 --depth 1 --heads 1 --head-hidden 16 --head-dim 8 --locals 0 --batch 16 --steps 3 --overwrite"
for method in simdino simdinov2 dino dinov2; do
    run pretrain --method $method --data data $small --out $method.safetensors --metrics $method.csv
    expect 0 "pretrain --method $method" "method *$method" err 'finished after 3 of 3' out
done
run pretrain --resume dinov2.safetensors --method dino --data data
expect 2 "another method than the checkpoint's" 'method' err
run pretrain --method dino --recipe simdino-small-grey --data data $small --out x.safetensors
expect 2 "a recipe of another method" 'is of method simdino, not dino' err
run pretrain --method dinov2 --targets sinkhorn --data data $small --out x.safetensors \
    --set "model.patch_head=1 model.patch_prototypes=24 dino.student_temp=0.2"
expect 0 "settings by name" 'finished after 3 of 3' out
run pretrain --data data $small --out x.safetensors --set "model.wings=2"
expect 2 "a setting that does not exist" 'no setting "model.wings"' err
run recipe
expect 0 "the list of recipes" 'simdinov2-vitl16' out 'dino-small-colour' out
run recipe dinov2-vitb16
expect 0 "a recipe" 'include = dinov2-vitl16' out
run recipe simdino-vits16 --all --batch 256
expect 0 "all settings of a recipe" '^batch_size = 256$' out '^lr = 0.0005$' out
{ echo "method = dino"; echo "include = dino-small-grey"; echo "model.prototypes = 40"; } >mine.recipe
run pretrain --recipe mine.recipe --data data $small --out x.safetensors
expect 0 "a recipe of one's own" 'method *dino' err
run recipe nothing
expect 1 "no such recipe" 'no recipe and no file "nothing"' err
run inspect dinov2.safetensors --tensors
expect 0 "inspect a checkpoint" 'dim 16, depth 1' out 'training *dinov2, step 3 of 3' out 'mask_token' out
run convert simdino.safetensors official.npz
expect 0 "convert to official names" 'under official names' out
run convert simdino.safetensors official.npz -o other.npz
expect 2 "convert to two files" 'only one file' err
run convert simdino.safetensors
expect 2 "convert to no file" 'which file' err
run inspect official.npz --tensors --heads 1
expect 0 "inspect what was converted" 'cls_token' out '0 missing, 0 unexpected' out
run embed --weights simdino.safetensors --data data --out own.npy
expect 0 "features of a checkpoint" 'saved own.npy' out
run embed --weights official.npz --heads 1 --mean 0.286 --std 0.353 --data data --out published.npy
expect 0 "features of published weights" 'saved published.npy' out
cmp own.npy published.npy >out 2>err
report $? "published weights give the same features"
run embed --weights official.npz --heads 1 --mean 0.286,0.3 --data data --out published.npy
expect 2 "too many means" 'gives 2 numbers, the network has 1 channels' err
run embed --weights official.npz --heads 3 --data data --out published.npy
expect 1 "heads that do not divide the width" 'heads' err
run knn --weights official.npz --heads 1 --data data -k 3
expect 0 "k-NN of published weights" 'trained network' out
run convert whole.csv -o y.npz
expect 1 "convert what is no file of weights" 'whole.csv' err
run convert simdino.safetensors -o official.txt
expect 1 "convert to an unknown form" 'official.txt' err

echo "1..$count"
