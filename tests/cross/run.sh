#!/bin/sh
# Cross-compiles for AArch64 and runs a part of the tests in QEMU's user mode:
#     sh tests/cross/run.sh BUILD [meson-option...]
# BUILD receives root/ (the libraries of that architecture, unpacked from their packages), aarch64.ini (the cross file) and
# aarch64/ (the build, with meson-logs/testlog.json). Needs Debian on another architecture: the compiler and QEMU are
# installed as packages, the libraries only unpacked, so that the system does not take up a second architecture.
# The exit status is 77 when the compiler or the packages cannot be had.
set -u

source=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?the folder to build in is missing}" || exit 1
build=$(cd "$1" && pwd)
shift
triplet=aarch64-linux-gnu
root=$build/root
libraries=$root/usr/lib/$triplet
# Their versions belong together, so all of them come from the system's own release.
packages="libopenblas0-pthread libopenblas-pthread-dev liblapacke liblapacke-dev libtmglib3 libgfortran5 zlib1g zlib1g-dev
    libcmocka0 libcmocka-dev"

impossible() {
    echo "AArch64 is not tested here: $1."
    exit 77
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || impossible "it takes apt and dpkg"
[ "$(dpkg --print-architecture)" = arm64 ] && impossible "this is one, and the ordinary tests did it"
sh "$source/tests/install-packages.sh" cross >"$build/install.log" 2>&1
command -v $triplet-gcc >/dev/null 2>&1 && command -v qemu-aarch64 >/dev/null 2>&1 ||
    impossible "no $triplet-gcc or qemu-aarch64 (see $build/install.log)"

# apt with lists and a cache of its own, for the other architecture; no package counts as installed.
fetch() {
    rm -rf "$root" "$build/apt" && mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial" \
        "$build/apt/packages" "$root" && : >"$build/apt/status" || return 1
    cat >"$build/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Dir::State "$build/apt";
Dir::State::status "$build/apt/status";
Dir::Cache "$build/apt/cache";
END
    # Sources that do not have the architecture make the update fail; what counts is whether the packages come.
    APT_CONFIG=$build/apt/apt.conf apt-get update -q
    # shellcheck disable=SC2086 # words are wanted
    (cd "$build/apt/packages" && APT_CONFIG=$build/apt/apt.conf apt-get download -q $packages) || return 1
    for package in "$build/apt/packages"/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    # Absolute links would lead to the system's own files.
    find "$root" -type l | while read -r link; do
        target=$(readlink "$link")
        case $target in
        /*) ln -sfn "$root$target" "$link" ;;
        esac
    done
    rm -rf "$build/apt" && : >"$build/root.complete"
}
if [ ! -f "$build/root.complete" ]; then
    fetch >"$build/fetch.log" 2>&1 || impossible "its packages could not be had (see $build/fetch.log)"
fi

# One file, since of two only the last one's properties count. The BLAS and LAPACK, elsewhere reached by the links of
# Debian's alternatives, are named by their own folder. The CPU is one without SVE: plain ARMv8.
blas=$libraries/openblas-pthread
search="'-L$libraries', '-Wl,-rpath-link,$blas', '-Wl,-rpath-link,$libraries', '-Wl,-rpath-link,$root/lib/$triplet'"
cat >"$build/aarch64.ini.new" <<END
[binaries]
c = '$triplet-gcc'
ar = '$triplet-ar'
strip = '$triplet-strip'
pkgconfig = 'pkg-config'
exe_wrapper = ['qemu-aarch64', '-cpu', 'cortex-a72', '-L', '/usr/$triplet',
               '-E', 'LD_LIBRARY_PATH=$blas:$libraries:$root/lib/$triplet']

[properties]
pkg_config_libdir = ['$blas/pkgconfig', '$libraries/pkgconfig']
sys_root = '$root'

[built-in options]
c_args = ['-isystem', '$root/usr/include']
c_link_args = [$search]

[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'cortex-a72'
endian = 'little'
END
cmp -s "$build/aarch64.ini.new" "$build/aarch64.ini" || rm -rf "$build/aarch64"
mv "$build/aarch64.ini.new" "$build/aarch64.ini"

rm -f "$build/aarch64"/meson-logs/testlog*.json
reconfigure=""
[ -f "$build/aarch64/build.ninja" ] && reconfigure=--reconfigure
# shellcheck disable=SC2086
if ! { meson setup $reconfigure "$build/aarch64" "$source" --cross-file "$build/aarch64.ini" -Dtests=enabled \
    --buildtype=release "$@" && ninja -C "$build/aarch64"; } >"$build/aarch64.log" 2>&1; then
    tail -n 60 "$build/aarch64.log"
    echo "The whole output: $build/aarch64.log"
    exit 1
fi
# The emulator takes some fifty times as long, and more where threads wait for each other; so these, and one BLAS thread.
tests="base_context base_random base_status base_precision math_kernels loss_rate_reduction loss_simdino
    loss_prototype_losses model_golden_vit model_golden_head model_golden_vit_v2 model_masked_patches optim_clip
    optim_multipliers optim_schedule io_safetensors io_settings io_weights_v2 image_golden image_choose image_augment
    image_masks embed_embedder embed_features embed_precision train_peer_check"
# shellcheck disable=SC2086
OPENBLAS_NUM_THREADS=1 exec meson test -C "$build/aarch64" --no-rebuild -t 4 $tests
