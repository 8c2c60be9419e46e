#!/bin/sh
# The second command: installs what is missing, builds, and runs all tests.
#     sh tests/run.sh            everything
#     sh tests/run.sh quick      without sanitizers, valgrind and emulated CPUs
# Everything is, with a normal build: unit and golden tests, the program, the examples, the same under valgrind, ABI and
# symbols, consumers outside of the tree, the plain kernels, and a CPU without AVX; with AddressSanitizer and
# UndefinedBehaviorSanitizer the first three again; for AArch64, cross-compiled, those that an emulator can do; and, where
# oneDNN is installed, what its products reach in a build with it.
# Builds in build/tests (SIMDINO_TEST_BUILD names another place); CC and CXX choose the compilers. SIMDINO_WERROR=1 makes
# warnings errors. The last line is "N passed, N failed", and the exit status is 0 when nothing failed.
set -u

source=$(cd "$(dirname "$0")/.." && pwd)
build=${SIMDINO_TEST_BUILD:-$source/build/tests}
what=${1:-all}
case $what in
all | quick) ;;
*)
    echo "usage: sh tests/run.sh [quick]" >&2
    exit 2
    ;;
esac

sh "$source/tests/install-packages.sh" test || exit 1
mkdir -p "$build" || exit 1
build=$(cd "$build" && pwd)
started=$(date +%s)
werror=false
[ "${SIMDINO_WERROR:-0}" = 1 ] && werror=true
logs=""

# A locale with a decimal comma, for the tests that must not care.
if [ ! -d "$build/locale/de_DE.UTF-8" ] && command -v localedef >/dev/null 2>&1; then
    mkdir -p "$build/locale" && localedef -i de_DE -f UTF-8 "$build/locale/de_DE.UTF-8" >/dev/null 2>&1
fi
[ -d "$build/locale/de_DE.UTF-8" ] && export LOCPATH="$build/locale"

# Compiles without filling the terminal; shows the end of the output when it fails.
prepare() { # FOLDER meson-option...
    folder=$build/$1
    shift
    rm -f "$folder"/meson-logs/testlog*.json
    reconfigure=""
    [ -f "$folder/build.ninja" ] && reconfigure=--reconfigure
    # shellcheck disable=SC2086
    meson setup $reconfigure "$folder" "$source" -Dtests=enabled "$@" >"$folder.log" 2>&1 && ninja -C "$folder" ${targets:-} >>"$folder.log" 2>&1 && return 0
    tail -n 60 "$folder.log"
    echo "The whole output: $folder.log"
    return 1
}

heading() {
    echo
    echo "== $1 ($(($(date +%s) - started)) s)"
}

heading "normal build"
skip=""
[ "$what" = quick ] && skip="--no-suite valgrind --no-suite emulated"
# shellcheck disable=SC2086
prepare normal --buildtype=release -Ddebug=true -Dwerror="$werror" && meson test -C "$build/normal" --no-rebuild $skip
logs="$logs normal=$build/normal/meson-logs/testlog.json"

if [ "$what" = all ]; then
    heading "build with AddressSanitizer and UndefinedBehaviorSanitizer"
    # Not with warnings as errors: instrumented code misleads the compiler's flow analysis.
    prepare sanitized --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false &&
        ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1:abort_on_error=0 \
            UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 meson test -C "$build/sanitized" --no-rebuild -t 4
    logs="$logs sanitized=$build/sanitized/meson-logs/testlog.json"

    heading "AArch64 in an emulator"
    sh "$source/tests/cross/run.sh" "$build/cross" -Dwerror="$werror"
    [ $? = 77 ] || logs="$logs aarch64=$build/cross/aarch64/meson-logs/testlog.json"

    # the suites that its products reach; meson compiles what these need
    if echo '#include <oneapi/dnnl/dnnl.h>' | ${CC:-cc} -E -x c - >/dev/null 2>&1; then
        heading "build with oneDNN"
        targets=build.ninja prepare onednn --buildtype=release -Dtools=false -Dexamples=false -Donednn=enabled &&
            meson test -C "$build/onednn" --suite math --suite model --suite embed
        logs="$logs onednn=$build/onednn/meson-logs/testlog.json"
    fi
fi

heading "results"
# shellcheck disable=SC2086 # one argument for each run
python3 "$source/tests/summary.py" $logs
