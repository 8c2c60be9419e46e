#!/bin/sh
# Installs the packages that are missing for one purpose, and nothing when all are there:
#     sh tests/install-packages.sh run     to build the library and run examples/quickstart.sh
#     sh tests/install-packages.sh test    to build and run all tests
#     sh tests/install-packages.sh cross   to build for AArch64 and run that, together with test
#     sh tests/install-packages.sh bench   to measure beside PyTorch
#     sh tests/install-packages.sh docs    to build the API reference
# On Debian and its relatives it uses apt-get (with sudo unless run by root). Elsewhere it names what to install and goes
# on when the tools are there already.
set -eu

purpose=${1:-run}
build="gcc g++ libc6-dev meson ninja-build pkg-config libopenblas-dev liblapacke-dev zlib1g-dev
    libjpeg-dev libpng-dev"
case $purpose in
run) packages="$build dataset-fashion-mnist" ;;
test) packages="$build libcmocka-dev valgrind abigail-tools locales qemu-user" ;;
cross) packages="pkg-config gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" ;;
bench) packages="$build python3-torch libopenblas0-openmp" ;;
docs) packages="$build doxygen" ;;
*)
    echo "usage: sh tests/install-packages.sh run|test|cross|bench|docs" >&2
    exit 2
    ;;
esac

explain() {
    echo "Needed: a C compiler, meson (1.0 or later), ninja, pkg-config, a BLAS with its C interface, LAPACKE, zlib;"
    echo "for JPEG and PNG files in the program: libjpeg-turbo, libpng."
    [ "$purpose" = test ] && echo "For the tests: cmocka; better also a C++ compiler, valgrind, libabigail and QEMU for user programs."
    [ "$purpose" = bench ] && echo "For the comparison: PyTorch 2 for Python (or in a virtual environment: pip install torch torchvision onnx onnxruntime)."
    [ "$purpose" = docs ] && echo "For the API reference: Doxygen."
    [ "$purpose" = run ] && echo "For the quick start: the four Fashion-MNIST files (train-images-idx3-ubyte.gz, ...)."
    echo "  Debian, Ubuntu: apt-get install $packages"
    echo "  Fedora:         dnf install gcc gcc-c++ meson ninja-build pkgconf openblas-devel lapack-devel zlib-devel \\
                      libjpeg-turbo-devel libpng-devel $1"
    echo "  Arch:           pacman -S base-devel meson openblas lapacke zlib libjpeg-turbo libpng $2"
    echo "  macOS:          brew install meson ninja pkg-config openblas lapack jpeg-turbo libpng $3"
    echo "                  export PKG_CONFIG_PATH=\"\$(brew --prefix openblas)/lib/pkgconfig:\$(brew --prefix lapack)/lib/pkgconfig\""
}

elsewhere() {
    case $purpose in
    test) explain "libcmocka-devel valgrind libabigail qemu-user" "cmocka valgrind qemu-user" "cmocka" ;;
    bench) explain "python3-torch" "python-pytorch" "pytorch" ;;
    docs) explain "doxygen" "doxygen" "doxygen" ;;
    *) explain "" "" "" ;;
    esac
}

tools_are_there() {
    for tool in cc meson ninja pkg-config; do
        command -v "$tool" >/dev/null 2>&1 || return 1
    done
}

if ! command -v dpkg-query >/dev/null 2>&1; then
    elsewhere
    tools_are_there && exit 0
    echo "Tools are missing: install them and start again." >&2
    exit 1
fi

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
# oneDNN is an option of the build: tested where the distribution has it, and nobody's loss where not.
optional=""
if [ "$purpose" = test ] && ! dpkg-query -W libdnnl-dev >/dev/null 2>&1 &&
    { [ -n "$missing" ] || [ -n "$(apt-cache madison libdnnl-dev 2>/dev/null)" ]; }; then
    optional=libdnnl-dev
fi
[ -z "$missing$optional" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    [ -z "$missing" ] && exit 0
    echo "Missing packages, and no root rights to install them:$missing" >&2
    tools_are_there && exit 0
    exit 1
fi

echo "Installing:$missing $optional"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    # shellcheck disable=SC2086 # words are wanted
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1
}
# shellcheck disable=SC2086
if ! { $as_root apt-get update -q >"$log" 2>&1 && install $missing; }; then
    cat "$log" >&2
    echo "Could not install:$missing" >&2
    tools_are_there || exit 1
    echo "Going on without." >&2
fi
if [ -n "$optional" ] && ! install "$optional"; then
    echo "Going on without $optional."
fi
