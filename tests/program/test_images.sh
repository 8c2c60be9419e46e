#!/bin/sh
# The program with image files: sh test_images.sh PATH/TO/simdino CORPUS [jpeg] [png], which names the kinds that were
# built in and the folder of tests/fuzz/corpus. Prints TAP, like test_program.sh.
. "$(dirname "$0")/helpers.sh"
tools=$(cd "$(dirname "$0")" && pwd)/images.py
corpus=$2
shift 2
kinds=" $* "
cd "$folder" || exit 1

images() {
    python3 "$tools" "$@" >looked 2>&1
}
looked() { # looked NAME: the last look with images() was fine
    [ $? = 0 ] || { sed 's/^/# /' looked && false; }
    report $? "$1"
}
skip() { # skip NAME WHY
    count=$((count + 1))
    echo "ok $count - $1 # SKIP $2"
}
messages() { # how many lines the program complained with
    grep -v 'warning: OpenBLAS' err | wc -l | tr -d ' '
}
has() {
    case $kinds in *" $1 "*) true ;; *) false ;; esac
}

tiny="--patch 4 --dim 32 --depth 2 --heads 2 --head-hidden 32 --head-dim 16 --global-size 16 --local-size 8 --locals 2
    --batch 16 --lr 1e-3 --threads 2 --coeff 1 --seed 3 --overwrite"

# ---- help and wrong usage ----

for command in "index build" "index query" "index export" show; do
    run $command --help
    expect 0 "$command --help" "^Usage: simdino $command" out '  --help' out
done
run index --help
expect 0 "index --help" 'simdino index query' out
run index
expect 2 "index without what" 'Usage: simdino index build' err
run index remove
expect 2 "index with what it has not" 'there is no "index remove"' err
run index build
expect 2 "index build without images" 'which folder' err
run index build some
expect 2 "index build without a file" '--out is missing' err
run index build some --out a.index
expect 2 "index build without a network" '--weights is missing' err
run index query a.index
expect 2 "index query without images" 'images to ask about are missing' err
run index export a.index
expect 2 "index export without a file" '--out is missing' err
run show --weights a --out b.png
expect 2 "show without images" 'the images are missing' err
run show a.png --weights a --out b.png --patch 3
expect 2 "show with half a place" 'expected 2 numbers' err
run show a.png --weights a --out b.png --what attentoin
expect 2 "show of an unknown kind" 'did you mean attention' err
run embed some --weights a --out b.npz --on-error skp
expect 2 "--on-error with a wrong word" 'did you mean skip' err
run embed some --data other --weights a --out b.npz
expect 2 "images in two places" 'exclude each other' err

# ---- kinds that were not built in ----

mkdir jpegs pngs
cp "$corpus"/jpeg/good-*.jpg jpegs
cp "$corpus"/png/good-*.png pngs
for kind in jpeg png; do
    if ! has $kind; then
        run pretrain --data ${kind}s $tiny --steps 1
        expect 1 "without $kind its files are named" 'which this program was built without' err 'none of the' err
    fi
done
if ! has png; then
    if has jpeg; then
        run pretrain --data jpegs $tiny --batch 4 --steps 2 --out jpeg.safetensors
        expect 0 "pretrain on JPEG files" '^finished after 2' out
        run embed jpegs --weights jpeg.safetensors --out jpeg.npz
        expect 0 "embed JPEG files" '10 rows of 32 numbers' out
    fi
    skip "all other tests of image files" "this build reads no PNG files"
    echo "1..$count"
    exit 0
fi

# ---- pretraining on a folder ----

images make data/train 12 cat dog "sea horse"
images make data/test 3 cat dog "sea horse" yak
run pretrain --data data $tiny --steps 4 --knn-every 2 --out color.safetensors --metrics one.csv
expect 0 "pretrain on a folder of PNG files" 'images, 36 images' err '^finished after 4 of 4' out 'k-NN accuracy' err
cp -r data/train broken
echo text >broken/cat/03.png
: >broken/dog/05.png
head -c 60 data/train/dog/07.png >broken/dog/07.png
run pretrain --data broken $tiny --steps 4 --out broken.safetensors --metrics two.csv --threads 1
expect 0 "broken images are named, counted and left out" 'left out: broken/cat/03.png: neither a JPEG' err \
    'left out: broken/dog/05.png: the file is empty' err 'left out: broken/dog/07.png: ' err \
    '3 of 36 images could not be read and were left out' err '^finished' out
run pretrain --data broken $tiny --steps 4 --out again.safetensors
cmp -s broken.safetensors again.safetensors
report $? "and what stands for them does not depend on the threads"
run pretrain --data broken $tiny --steps 4 --out stop.safetensors --on-error stop
expect 1 "or they stop the run" 'simdino: broken/.*/0[357].png: ' err
[ "$(grep -c 'png' err)" = 1 ] && ! grep -q -e "host's" -e 'left out' err && [ ! -e stop.safetensors ]
report $? "with one message, and nothing is written"

# ---- embed ----

color="--weights color.safetensors"
run embed data $color -o all.npz
expect 0 "embed a folder of class folders" '36 rows of 32 numbers, and their labels' out
images npz all.npz
looked "the archive is sound"
grep -q "^embeddings.npy <f4 (36, 32)" looked && grep -q "^labels.npy <i4 (36,) \[0, 0, .* 2, 2\]" looked &&
    grep -q "^files.npy |S16 (36,) .*'cat/00.png'.*'sea horse/11.png'" looked &&
    grep -q "^classes.npy |S9 (4,) .*'cat'.*'dog'.*'sea horse'" looked
report $? "it has features, labels, files and classes"
run embed data $color -o all.csv
images csv all.csv all.npz
looked "a table has the same"
run embed data $color -o all.npy
run embed data $color -o one.npy --threads 1
cmp -s all.npy one.npy
report $? "the features do not depend on the threads"
run embed data/train/dog/04.png $color -o single.npy
expect 0 "embed one file" '1 rows of 32' out
run embed data/train/dog $color -o dog.csv
images npz all.npz
[ "$(sed -n 's/^04.png,//p' dog.csv)" = "$(sed -n 's/^dog\/04.png,dog,//p' all.csv)" ]
report $? "an image alone and one of many have the same features"
run embed data $color --split test -o test.npz
images npz test.npz
grep -q "labels.npy <i4 (12,) \[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3\]" looked && grep -q "classes.npy .*'yak'" looked
report $? "classes of the test images have the numbers of training, and then numbers of their own"
run embed data $color --limit 5 --normalize --features class-mean -o five.npz
expect 0 "the first images, other features" '5 rows of 64' out
run embed broken $color -o broken.npz
expect 0 "embed leaves broken images out" '33 rows of 32' out '3 of 36 images' err
images npz broken.npz
grep -q "'cat/02.png'\", \"'cat/04.png'" looked && grep -q "labels.npy .*(33,)" looked
report $? "and their names and labels"
run embed broken $color -o stopped.npz --on-error stop
expect 1 "or stops" 'simdino: broken/cat/03.png: neither' err
[ "$(messages)" = 1 ] && [ ! -e stopped.npz ]
report $? "with one message, and nothing is written"

# The same pixels by way of PNG files and by way of an IDX file.
images same gray gray-idx3-ubyte 32
run pretrain --data gray $tiny --steps 2 --out gray.safetensors
expect 0 "a folder of grey images makes a network of one channel" 'grey images, 32 images of 16 x 16 x 1' err
run embed gray --weights gray.safetensors --resize 0 --crop 0 -o files.npy
run embed gray-idx3-ubyte --weights gray.safetensors -o idx.npy
cmp files.npy idx.npy >out 2>err
report $? "PNG files and an IDX file of the same pixels give the same features"
run embed data --weights gray.safetensors -o gray.npy
expect 0 "colours become grey where the network has one channel" '36 rows' out
run embed gray $color -o gray3.npy
expect 0 "and grey is repeated where it has three" '32 rows' out

# ---- names and kinds of files ----

mkdir -p odd/sub.png odd/.hidden
newline='line
break'
for name in 'a,b' 'quote"d' "$newline" 'ünïcode 雪' '%41' "it's" '-dash' 'tab	here'; do
    cp data/train/cat/01.png "odd/$name.png"
done
cp data/train/cat/02.png odd/sub.png/UPPER.PNG
cp data/train/cat/02.png odd/.hidden/no.png
cp data/train/cat/02.png odd/.no.png
echo text >odd/notes.txt
ln -s .. odd/sub.png/back
run embed odd $color -o odd.npz
expect 0 "names of every kind; links back are not followed" '9 rows' out 'leads back to a folder' err
images npz odd.npz
grep -q "'a,b.png'" looked && grep -q 'line\\\\nbreak.png' looked && grep -q '\\\\xfcn\\\\xefcode' looked &&
    grep -q 'sub.png/UPPER.PNG' looked && ! grep -q -e hidden -e '\.no' looked
report $? "are in the archive as they are"
run embed odd $color -o odd.csv
images csv odd.csv odd.npz
looked "and in the table"
mkdir strange
cp data/train/cat/01.png strange/fine.png
ln -s nowhere.png strange/link.png
mkfifo strange/pipe.png
wanted='strange/link.png: No such file' wanted2='strange/pipe.png: not a regular file' files=3
if [ "$(id -u)" != 0 ]; then
    cp data/train/cat/01.png strange/secret.png
    chmod 0 strange/secret.png
    files=4
fi
run embed strange $color -o strange.npz
expect 0 "links that lead nowhere, pipes, what may not be read" "$wanted" err "$wanted2" err \
    "$((files - 1)) of $files images" err '1 rows' out
run embed strange/pipe.png $color -o strange.npz
expect 1 "a pipe by its name" 'strange/pipe.png: not a regular file' err
images plain long.png 3000 1
run embed long.png $color -o long.npz
expect 1 "a line of pixels" '3000 x 1 pixels: more than 256 times as long as wide' err 'none of the 1 images' err
mkdir hostile
cp "$corpus"/png/hostile-*.png hostile
files=$(ls hostile | wc -l)
cp data/train/cat/01.png hostile/fine.png
run embed hostile $color -o hostile.npz
expect 0 "files that lie" "$((files + 0)) of $((files + 1)) images" err 'do not fit into' err '1 rows' out
rm hostile/fine.png
run embed hostile $color -o hostile2.npz
expect 1 "and nothing else" "none of the $((files + 0)) images can be read" err
[ ! -e hostile2.npz ]
report $? "leave no output"
run embed pngs $color -o kinds.npz
expect 0 "every form of PNG" "$(ls pngs | wc -l | tr -d ' ') rows" out
mkdir train-class
cp -r data/train/cat train-class/train
cp -r data/train/dog train-class/car
run embed train-class $color -o class.npz
expect 0 "a class that is called train" '24 rows of 32 numbers, and their labels' out 'taken for one of 2 classes' err
echo nothing >notes.txt
run embed notes.txt $color -o notes.npz
expect 1 "a file that is none of images" 'neither an IDX file' err
run embed nowhere $color -o notes.npz
expect 1 "a folder that does not exist" 'nowhere' err
run embed data $color -o nowhere/a.npz
expect 1 "an output in a folder that does not exist" 'cannot write nowhere/a.npz' err
mkdir folder.npz
run embed data $color -o folder.npz
expect 1 "an output that is a folder" 'cannot write folder.npz: Is a directory' err
ln -s target.npz link.npz
: >target.npz
run embed data $color -o link.npz
[ -L link.npz ] && cmp -s target.npz all.npz
report $? "an output that is a link stays one"

if has jpeg; then
    run embed jpegs $color -o jpeg.npz
    expect 0 "every form of JPEG" "$(ls jpegs | wc -l | tr -d ' ') rows" out
    mkdir wrong
    cp "$corpus/jpeg/good-rgb.jpg" wrong/a.png
    cp "$corpus/png/good-rgb-8.png" wrong/b.jpg
    run embed wrong $color -o wrong.npz
    expect 0 "the kind is told by the content, not by the name" '2 rows' out
    mkdir lying
    cp "$corpus"/jpeg/hostile-*.jpg lying
    files=$(ls lying | wc -l)
    cp "$corpus/jpeg/good-rgb.jpg" lying/fine.jpg
    run embed lying $color -o lying.npz
    expect 0 "JPEG files that lie" "$((files + 0)) of $((files + 1)) images" err 'do not fit into' err 'scans' err '1 rows' out
    cp "$corpus/jpeg/good-rgb.jpg" mixed.jpg
    run show mixed.jpg data/train/cat/01.png $color -o mixed.png
    expect 0 "JPEG and PNG together" 'saved mixed.png' out
else
    skip "JPEG files" "this build reads none"
fi

# ---- k-NN ----

run knn $color --data data --neighbors neighbors.png -k 3
expect 0 "k-NN on class folders" '36 training images, 12 test images' out 'raw pixels, 32 x 32' out 'trained network .*%' out
is_png neighbors.png
report $? "and its picture"
run knn $color --data data/train --test-data broken -k 3 --only-trained
expect 0 "test images of another folder, some broken" 'trained network .*%' out '3 of 36 images' err
run knn $color --data data/train -k 3
expect 1 "k-NN without test images" 'brings no test images' err
run knn $color --data broken --test-data data/test -k 3 --on-error stop
expect 1 "k-NN that stops at a broken image" 'broken/cat/03.png' err
[ "$(messages)" = 1 ]
report $? "with one message"

# ---- index ----

run index build data $color -o all.index
expect 0 "index build" '36 rows of 32 numbers, compared by cosine' out
run index query all.index data/train/dog/04.png -k 3
expect 0 "index query finds the image itself" '^data/train/dog/04.png$' out '^ *1 *1 *16  dog  .*dog/04.png$' out
[ "$(wc -l <out)" = 4 ]
report $? "and as many as were asked for"
run index query all.index data/test -k 2 --contact-sheet sheet.png
expect 0 "a folder as the question, with a contact sheet" 'test/yak/02.png' out 'saved sheet.png' out
is_png sheet.png
report $? "which is a valid PNG file"
images size sheet.png
awk '{ exit !($1 > 400 && $2 > 12 * 150 && $3 > 20) }' looked
report $? "with a row of images for each question"
run index query all.index data/test/cat/00.png -k 1000000 --contact-sheet many.png
expect 0 "more neighbours than there are, and than a sheet has room for" '^ *36 ' out 'shows the 24 nearest of 36' err
(cd odd && run index query ../all.index ../data/train/cat/00.png -k 1 && mv out err .. && exit "$code")
code=$?
expect 0 "a question from another folder" '1 *1 *0  cat  /' out
run index query all.index broken --on-error skip -k 1
expect 0 "broken questions are left out" '3 of 36 images' err
run index query all.index broken --on-error stop -k 1
expect 1 "or stop" 'broken/cat/03.png' err
run index query all.index notes.txt
expect 1 "a question that is no image" 'notes.txt: neither a JPEG nor a PNG' err
run index query all.index nowhere.png
expect 1 "a question that is not there" 'nowhere.png: No such file' err
run index query all.index data/test --weights gray.safetensors
expect 0 "another network of the same width"
run index build odd $color -o odd.index
run index query odd.index data/train/cat/02.png -k 9
expect 0 "an index of names of every kind" 'UPPER.PNG' out 'a,b.png' out '%41.png' out
grep -q 'tab	here' out && grep -q '^break.png' out
report $? "that are told as they are"
run index build broken $color -o broken.index
expect 0 "an index without the broken images" '33 rows' out
run index query broken.index data/train/cat/04.png -k 1
expect 0 "keeps the numbers of the others" '^ *1 *1 *4  cat' out
run index build broken $color -o stop.index --on-error stop
expect 1 "or is not made" 'broken/cat/03.png' err
[ ! -e stop.index ] && [ ! -e stop.index.list ]
report $? "at all"
run index build gray-idx3-ubyte --weights gray.safetensors -o idx.index
run index query idx.index gray/007.png -k 1 --contact-sheet idx.png
expect 0 "an index of an IDX file, asked with an image" '^ *1 *1 *7$' out 'saved idx.png' out

# The same network as others publish it: the list beside the index keeps what such a file does not tell.
run convert color.safetensors official.npz
run index build data --weights official.npz --heads 2 --mean 0.4 --std 0.3 --blocks 2 -o official.index
expect 0 "an index by published weights" '36 rows of 64 numbers' out
run index query official.index data/train/cat/05.png -k 1
expect 0 "knows how they were used" '^ *1 *1 *5  cat' out
run show data/train/cat/05.png --weights official.npz --heads 2 -o official.png
expect 0 "show by published weights" 'saved official.png' out

run index export all.index -o rows.npy --ids ids.npy
expect 0 "index export" '36 rows of 32' out
run embed data $color --normalize -o normal.npy
images near rows.npy normal.npy 1e-6
looked "gives the features that embed gives"
run index export all.index -o rows.fvecs
[ "$(wc -c <rows.fvecs)" = $((36 * (4 + 32 * 4))) ]
report $? "and .fvecs"
run index export all.index -o rows.txt
expect 1 "but no other form" 'rows.txt' err
run index build all.npy -o numbers.index --metric l2
expect 0 "an index of numbers" '36 rows of 32 numbers, compared by l2' out
run index query numbers.index one.npy -k 1
expect 0 "asked with numbers" '^row 35$' out '^ *1 *0 *35$' out
run index query numbers.index data/test/cat/00.png
expect 1 "an index of numbers knows no network" 'was made of numbers' err
run index query numbers.index data/train/dog/04.png $color -k 1
expect 0 "but can be told one" '^ *1 .* 16$' out
run index query all.index single.npy
expect 0 "an index of images, asked with numbers" '^ *1 *1 *16  dog' out
run index query all.index five.npz
expect 1 "numbers must be a .npy file" 'five.npz' err
run embed data $color --features class-mean --limit 4 -o wide.npy
run index query all.index wide.npy
expect 1 "numbers of another width" 'the queries have 64 numbers, the rows of all.index have 32' err

cp all.index other.index
cp broken.index.list other.index.list
run index query other.index data/test
expect 1 "a list of another index" 'not of one making' err
printf 'simdino index list 1\nimages\t1\nx\ty\n' >other.index.list
run index query other.index data/test
expect 1 "a damaged list" 'other.index.list: not the list of an index' err
head -c 3000 all.index >cut.index
run index query cut.index data/test
expect 1 "a damaged index" 'cut.index' err
mv color.safetensors moved.safetensors
run index query all.index data/test
expect 1 "the network is gone" 'color.safetensors' err
run index query all.index data/test --weights moved.safetensors -k 1
expect 0 "and named anew" 'test/cat/00.png' out
mv moved.safetensors color.safetensors

# A limit on the size of files stands for a full disk: the older index is kept, with its own list.
cp broken.index kept.index
cp broken.index.list kept.index.list
(
    trap '' XFSZ
    ulimit -f 5
    run index build data $color -o kept.index --features class-mean
    exit "$code"
)
code=$?
expect 1 "an index that does not fit" 'cannot save the index' err
cmp -s broken.index kept.index && cmp -s broken.index.list kept.index.list && [ "$(ls kept.index* | wc -l)" = 2 ]
report $? "leaves the older one and its list as they were, and no other file"
if [ -c /dev/full ]; then
    "$simdino" index query all.index data/test >/dev/full 2>err </dev/null
    code=$?
    expect 1 "standard output on a full disk" 'cannot write to standard output' err
fi

# ---- show ----

for what in all attention pca similarity; do
    run show data/train/cat/01.png data/train/dog/02.png $color --what $what -o $what.png
    expect 0 "show --what $what" "saved $what.png" out
    is_png $what.png && images size $what.png && awk '{ exit !($1 >= 512 && $2 >= 512 && $3 >= 20) }' looked
    report $? "a valid PNG file with colours"
done
[ "$(for what in all attention pca similarity; do cksum <$what.png; done | sort -u | wc -l)" = 4 ]
report $? "four different pictures"
run show data/train/cat $color --size 32 --block 0 --head 1 --what attention --threshold 0.6 -o head.png
expect 0 "show a folder, one head, the largest attentions" 'saved head.png' out
run show data/train/cat $color --together --smooth --panel 64 --size 32 -o together.png
expect 0 "show --together --smooth" 'saved together.png' out
run show data/train/cat/01.png $color --what similarity --patch 1,2 -o patch.png
expect 0 "show a chosen patch" 'saved patch.png' out
run show data/train/cat/01.png $color --patch 99,0 -o no.png
expect 2 "a patch that is not there" 'has 4 rows and . columns' err
run show data/train/cat/01.png $color --block 7 -o no.png
expect 2 "a block that is not there" 'has 2 blocks of 2 heads' err
run show data/train/cat/01.png $color --head 2 -o no.png
expect 2 "a head that is not there" 'has 2 blocks of 2 heads' err
images plain plain.png 40 30
run show plain.png $color --size 24 -o flat.png
expect 0 "an image of one colour" 'saved flat.png' out
images plain strip.png 2000 2
run show strip.png $color --size 1000 -o strip-out.png
expect 1 "an image with too many patches" 'a smaller --size is needed' err
run show broken/cat/02.png broken/cat/03.png gray $color -o left.png
expect 0 "show leaves broken images out" 'left out: broken/cat/03.png' err '1 of 34 images' err
run show broken/cat/02.png broken/cat/03.png $color -o stop.png --on-error stop
expect 1 "or stops" 'simdino: broken/cat/03.png' err
run show notes.txt $color -o none.png
expect 1 "no image at all" 'none of the images' err
[ ! -e no.png ] && [ ! -e stop.png ] && [ ! -e none.png ]
report $? "and what failed left no file"
run show empty-name-not-there $color -o none.png
expect 1 "an image that is not there" 'empty-name-not-there: No such file' err
mkdir empty
run show empty $color -o none.png
expect 1 "a folder without images" 'no JPEG or PNG files' err
if [ -c /dev/full ]; then
    run show data/train/cat/01.png $color -o /dev/full
    expect 1 "a picture on a full disk" 'cannot write /dev/full: No space' err
    [ -c /dev/full ]
    report $? "which stays what it is"
fi

# ---- Ctrl-C, in the middle of work for minutes ----

images plain large.png 1500 1500
images links many/a 1500 large.png
images links many/b 1500 large.png
interrupt() { # interrupt ARGUMENTS: the program is interrupted in the middle of its work
    "$simdino" "$@" >out 2>err </dev/null &
    process=$!
    sleep 1
    kill -INT $process
    wait $process
    code=$?
}
interrupt embed many $color -o many.npz
expect 130 "Ctrl-C ends embed"
interrupt index build many $color -o many.index
expect 130 "Ctrl-C ends index build"
interrupt knn $color --data many --test-data many -k 1
expect 130 "Ctrl-C ends knn"
[ "$(ls many.* 2>/dev/null | wc -l)" = 1 ] # the picture of more neighbours
report $? "and leaves no file"

echo "1..$count"
