# What the tests of the program share; they read it with "." first of all. $1 is the program.
set -u
LC_ALL=C
export LC_ALL

simdino=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
count=0

report() { # report STATUS NAME: one test
    count=$((count + 1))
    if [ "$1" = 0 ]; then
        echo "ok $count - $2"
    else
        echo "not ok $count - $2"
        sed 's/^/# /' out err 2>/dev/null | tail -n 20
    fi
}
run() { # run ARGUMENTS: standard output into out, standard error into err, exit code into $code
    "$simdino" "$@" >out 2>err </dev/null
    code=$?
}
expect() { # expect CODE NAME [PATTERN FILE]...: the last run ended with CODE, and FILE has a line with PATTERN
    wanted=$1 name=$2 good=0
    shift 2
    [ "$code" = "$wanted" ] || { good=1 && echo "# exit code $code, expected $wanted"; }
    while [ $# -gt 1 ]; do
        grep -q -e "$1" "$2" || { good=1 && echo "# no line \"$1\" in $2"; }
        shift 2
    done
    report $good "$name"
}

is_png() {
    [ "$(head -c 8 "$1" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] &&
        [ "$(tail -c 8 "$1" | od -An -tx1 | tr -d ' \n')" = 49454e44ae426082 ] || return 1
    if command -v python3 >/dev/null; then # every chunk's checksum, and the size of the picture
        python3 - "$1" <<'PYTHON'
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
at, pixels = 8, b""
while at < len(data):
    length, = struct.unpack(">I", data[at:at + 4])
    body = data[at + 4:at + 8 + length]
    assert zlib.crc32(body) == struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0]
    if body[:4] == b"IHDR":
        width, height = struct.unpack(">II", body[4:12])
    if body[:4] == b"IDAT":
        pixels += body[4:]
    at += 12 + length
assert len(zlib.decompress(pixels)) == height * (1 + 3 * width)
PYTHON
    fi
}
