#!/bin/sh
# Installs the library into a temporary prefix and builds consumers of it outside of the tree, in C99 and C++11, with the flags
# of pkg-config alone: against the shared library, the static one, and the build tree. Prints TAP.
#     sh run.sh SOURCE BUILD MESON PREFIX "CC" "CXX"      (CXX may be empty)
set -u
source=$1 build=$2 meson=$3 prefix=$4 cc=$5 cxx=$6

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
cp "$source/tests/consumer/consumer.c" "$source/tests/consumer/consumer.cpp" .

number=0
failed=0
report() { # NAME STATUS LOG
    number=$((number + 1))
    if [ "$2" = 0 ]; then
        echo "ok $number - $1"
    else
        echo "not ok $number - $1"
        failed=1
        sed 's/^/# /' "$3"
    fi
}

"$meson" install -C "$build" --no-rebuild --destdir "$folder/root" >install.log 2>&1
report "meson install" $? install.log
installed=$folder/root$prefix
module=$(find "$folder/root" -name simdino.pc)
# The prefix is elsewhere than it was configured for: only that line of the file changes.
sed "s|^prefix=.*|prefix=$installed|" "$module" >moved.pc && mv moved.pc "$module"
library=$(PKG_CONFIG_PATH=$(dirname "$module") pkg-config --variable=libdir simdino)

# NAME COMPILER SOURCE PKG_CONFIG_PATH LIBRARY_PATH FLAGS
consume() {
    # shellcheck disable=SC2046,SC2086 # words are wanted
    {
        $2 -Wall -Wextra -pedantic -Werror -o program "$3" \
            $(PKG_CONFIG_PATH=$4${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH} pkg-config --cflags --libs simdino) $6 \
            && LD_LIBRARY_PATH=$5${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ./program
    } >program.log 2>&1
    report "$1" $? program.log
    rm -f program
}

consume "C99, installed" "$cc -std=c99" consumer.c "$(dirname "$module")" "$library" "-lm"
consume "C99, build tree" "$cc -std=c99" consumer.c "$build/meson-uninstalled" "$build/lib" "-lm"
if [ -n "$cxx" ]; then
    consume "C++11, installed" "$cxx -std=c++11" consumer.cpp "$(dirname "$module")" "$library" "-pthread"
else
    number=$((number + 1))
    echo "ok $number - C++11, installed # SKIP no C++ compiler"
fi
# The example in README.md, with the variables that it leaves to the reader.
{
    echo '#include <simdino/simdino.h>'
    echo '#include <stdio.h>'
    echo 'static int failed;'
    echo 'static void check(sd_status status) { failed |= status != SD_OK; }'
    echo 'int run(const sd_image *images, size_t image_count);'
    echo 'int run(const sd_image *images, size_t image_count) {'
    echo '    sd_context *context; sd_dataset *dataset; sd_loader *loader; sd_pretrainer *trainer;'
    echo '    sd_pretrainer_config config; sd_step_metrics metrics = {0};'
    echo '    metrics.size = sizeof metrics;'
    awk '/^```c$/ { inside = 1; next } /^```$/ && inside { exit } inside' "$source/README.md"
    echo '    return failed;'
    echo '}'
    echo 'int main(void) { return 0; }'
} >readme.c
consume "C99, the example in README.md" "$cc -std=c99" readme.c "$(dirname "$module")" "$library" ""

# Without the shared library, -lsimdino means the static one, which needs what the .pc file lists as private. (pkg-config --static
# would go one step further and ask for what a static OpenBLAS needs: libgfortran.)
rm -f "$library"/libsimdino.so* "$library"/libsimdino*.dylib
private=$(sed -n 's/^Libs.private: //p' "$module")
required=$(PKG_CONFIG_PATH=$(dirname "$module") pkg-config --print-requires-private simdino)
# shellcheck disable=SC2086
consume "C99, static" "$cc -std=c99" consumer.c "$(dirname "$module")" "" "$(pkg-config --libs $required) $private -lm"

echo "1..$number"
exit $failed
