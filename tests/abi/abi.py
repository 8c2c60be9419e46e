#!/usr/bin/env python3
"""The exported ABI against the public headers and against the record of this folder. Prints TAP.

    abi.py check  --source DIR --build DIR --cc CC... [--cxx CXX...]
    abi.py update --source DIR --build DIR --cc CC...     writes the record anew

The record, simdino-0.lp64.txt, has one line for each function, enum value, constant, struct size and struct member. What it
holds must never change; what is new is added to it by `meson compile -C build update-abi`, so that a change of the ABI is
always a change that a reviewer sees.
"""

import argparse
import difflib
import gzip
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

RECORD = "simdino-0.lp64.txt"
DUMP = "simdino-0.x86_64.abi.gz"  # libabigail's view of the same, from the debug information
NODE = "SIMDINO_0.1"


# ---- the headers -----------------------------------------------------------------------------------------------------


def strip(text):
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    return text.replace('extern "C" {', "")


def squeeze(text):
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s*\*\s*", " *", text).replace("* *", "**").replace("( ", "(")


def parameter_type(parameter):
    """Without its name, which is no part of the ABI."""
    match = re.fullmatch(r"(.*[\s*])(\w+)(\s*\[[^\]]*\])?", parameter.strip())
    if match is None or match.group(1).strip() in ("const", "unsigned", "struct", "enum"):
        return squeeze(parameter)
    return squeeze(match.group(1)) + (" *" if match.group(3) else "")


def prototype(text):
    match = re.fullmatch(r"(.*?)\(\s*\*\s*(\w+)\s*\)\s*\((.*)\)|(.*?)(\w+)\s*\((.*)\)", squeeze(text))
    result, name, parameters = match.group(1, 2, 3) if match.group(2) else match.group(4, 5, 6)
    return name, f"{squeeze(result)} {name}({', '.join(parameter_type(p) for p in parameters.split(','))})"


class Headers:
    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.h"))
        self.functions, self.callbacks, self.enums, self.structs, self.constants = {}, {}, {}, {}, []
        for path in self.paths:
            self.read(path.read_text())

    def read(self, raw):
        for name in re.findall(r"^#define\s+(SD_\w+)\s+\S", raw, flags=re.M):
            if name != "SD_API" and not name.startswith("SD_VERSION_"):
                self.constants.append(name)
        text = strip(raw)
        for match in re.finditer(r"typedef\s+enum\s+(\w+)\s*\{(.*?)\}\s*\w+\s*;", text, flags=re.S):
            self.enums[match.group(1)] = re.findall(r"\b(SD_\w+)\s*(?:=|,|$)", match.group(2).strip())
        for match in re.finditer(r"typedef\s+struct\s+(\w+)\s*\{(.*?)\}\s*\w+\s*;", text, flags=re.S):
            members = []
            for declaration in match.group(2).split(";"):
                if not declaration.strip():
                    continue
                first, *others = declaration.split(",")
                kind, name = re.fullmatch(r"(.*?[\s*])(\w+(?:\s*\[\w+\])?)", first.strip(), flags=re.S).groups()
                base = squeeze(kind).rstrip(" *")
                members.append((name, squeeze(kind)))
                for other in others:
                    stars = other.count("*") * "*"
                    members.append((other.replace("*", "").strip(), f"{base} {stars}".strip()))
            self.structs[match.group(1)] = members
        for match in re.finditer(r"typedef\s+([^;{}]*\(\s*\*\s*\w+\s*\)[^;{}]*);", text):
            name, form = prototype(match.group(1))
            self.callbacks[name] = form
        for match in re.finditer(r"\bSD_API\b([^;{}]*);", text):
            name, form = prototype(match.group(1))
            self.functions[name] = form


# ---- the record ------------------------------------------------------------------------------------------------------


def layout_program(headers):
    lines = ["#include <simdino/simdino.h>", "#include <stdio.h>", "int main(void) {"]
    for name, values in headers.enums.items():
        for value in values:
            lines.append(f'    printf("enum {name} {value} = %ld\\n", (long){value});')
    for name in headers.constants:
        lines.append(f'    printf("constant {name} = %ld\\n", (long)({name}));')
    for name, members in headers.structs.items():
        lines.append(f'    printf("struct {name} size %zu\\n", sizeof(struct {name}));')
        for member, kind in members:
            plain, array = re.fullmatch(r"(\w+)\s*(\[\w+\])?", member).groups()
            lines.append(
                f'    printf("struct {name}.{plain} offset %zu size %zu type {kind}{" []" if array else ""}\\n",'
                f" offsetof(struct {name}, {plain}), sizeof(((struct {name} *)0)->{plain}));"
            )
    lines += ["    return 0;", "}", ""]
    return "\n".join(lines)


def current_record(headers, source, compiler):
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "layout.c")
        program.write_text(layout_program(headers))
        binary = pathlib.Path(folder, "layout")
        subprocess.run([*compiler, "-I", str(source / "include"), "-o", str(binary), str(program)], check=True)
        lines = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout.splitlines()
    lines += [f"function {form}" for form in headers.functions.values()]
    lines += [f"callback {form}" for form in headers.callbacks.values()]
    return sorted(lines)


def compare(old, new):
    """What a program compiled against the record would notice, and what is new."""
    broken, added = [], []
    grown = set()  # configuration structs, which carry their size, may grow at the end
    for line in old:
        match = re.fullmatch(r"struct (\w+) size (\d+)", line)
        if line in new:
            continue
        if match and f"struct {match.group(1)}.size offset 0 size 8 type size_t" in old:
            now = [n for n in new if n.startswith(f"struct {match.group(1)} size ")]
            if now and int(now[0].rsplit(" ", 1)[1]) > int(match.group(2)):
                grown.add(now[0])
                continue
        broken.append(line)
    for line in new:
        if line not in old:
            added.append(line)
    return broken, added


# ---- binaries --------------------------------------------------------------------------------------------------------


def symbols(arguments, path):
    """Names of the defined global symbols."""
    text = subprocess.run(["nm", *arguments, str(path)], check=True, capture_output=True, text=True).stdout
    names = set()
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in "TDBRVWiGSC":
            names.add(fields[2])
    return names


def dump(source, shared):
    command = ["abidw", "--headers-dir", str(source / "include"), "--drop-private-types", "--no-show-locs"]
    command += ["--suppressions", str(source / "tests" / "abi" / "opaque.abignore")]
    command += ["--no-corpus-path", "--no-comp-dir-path", "--no-elf-needed", "--exported-interfaces-only", str(shared)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def can_dump(shared):
    if not shared.exists() or not shutil.which("abidw") or not shutil.which("readelf"):
        return False
    sections = subprocess.run(["readelf", "-h", "-S", "-W", str(shared)], capture_output=True, text=True).stdout
    return ".debug_info" in sections and "X86-64" in sections


def dump_difference(source, shared, path):
    """What abidiff finds changed; new functions do not count."""
    with tempfile.TemporaryDirectory() as folder:
        old, new = pathlib.Path(folder, "old.abi"), pathlib.Path(folder, "new.abi")
        old.write_bytes(gzip.decompress(path.read_bytes()))
        new.write_bytes(dump(source, shared))
        result = subprocess.run(["abidiff", "--no-added-syms", str(old), str(new)], capture_output=True, text=True)
    return (result.stdout + result.stderr).splitlines() if result.returncode else []


# ---- TAP -------------------------------------------------------------------------------------------------------------


class Tap:
    def __init__(self):
        self.count = self.failed = 0

    def test(self, name, problems, remedy=""):
        self.count += 1
        if problems:
            self.failed += 1
        print(f"{'not ok' if problems else 'ok'} {self.count} - {name}")
        for problem in problems:
            print(f"# {problem}")
        if problems and remedy:
            print(f"# {remedy}")

    def skip(self, name, why):
        self.count += 1
        print(f"ok {self.count} - {name} # SKIP {why}")

    def end(self):
        print(f"1..{self.count}")
        return 1 if self.failed else 0


def differences(one, one_name, other, other_name):
    return [f"{name}: only in {one_name}" for name in sorted(one - other)] + [
        f"{name}: only in {other_name}" for name in sorted(other - one)
    ]


def compile_header(compiler, flags, suffix, source, header):
    with tempfile.TemporaryDirectory() as folder:
        unit = pathlib.Path(folder, "unit" + suffix)
        # Twice, so that a missing include guard shows too.
        unit.write_text(f"#include <simdino/{header.name}>\n#include <simdino/{header.name}>\nint main(void) {{ return 0; }}\n")
        command = [*compiler, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-I", str(source / "include"), "-c", str(unit)]
        result = subprocess.run([*command, "-o", str(unit) + ".o"], capture_output=True, text=True)
        return result.stderr.splitlines()


def check(options):
    tap = Tap()
    source, build = options.source, options.build
    headers = Headers(source / "include" / "simdino")
    declared = set(headers.functions)

    text = re.sub(r"/\*.*?\*/", "", (source / "lib" / "simdino.map").read_text(), flags=re.S)
    listed = set(re.findall(r"\b(sd_\w+)\s*;", text))
    tap.test("the version script lists the functions of the headers", differences(declared, "the headers", listed, "lib/simdino.map"))

    shared = build / "lib" / "libsimdino.so"
    if shared.exists() and shutil.which("nm"):
        exported = symbols(["-D", "--defined-only"], shared)
        unversioned = sorted(name for name in exported if not name.endswith("@@" + NODE))
        exported = {name.split("@")[0] for name in exported}
        tap.test("the shared library exports the functions of the headers", differences(declared, "the headers", exported, "the library"))
        tap.test("each of them has the version " + NODE, unversioned)
        text = subprocess.run(["readelf", "-d", str(shared)], capture_output=True, text=True).stdout
        tap.test("its SONAME is libsimdino.so.0", [] if "[libsimdino.so.0]" in text else ["readelf -d tells another one"])
    else:
        tap.skip("the shared library exports the functions of the headers", "no ELF library or no nm")
    static = build / "lib" / "libsimdino.a"
    if static.exists() and shutil.which("nm"):
        strangers = {name for name in symbols(["-g", "--defined-only"], static) if not name.startswith("sd_")}
        tap.test("the static library defines only names that begin with sd_", sorted(strangers))
    else:
        tap.skip("the static library defines only names that begin with sd_", "no static library or no nm")

    umbrella = (source / "include" / "simdino" / "simdino.h").read_text()
    missing = [p.name for p in headers.paths if p.name != "simdino.h" and f"<simdino/{p.name}>" not in umbrella]
    tap.test("simdino.h includes every header", missing)
    for header in headers.paths:
        tap.test(f"{header.name} alone as C99", compile_header(options.cc, ["-std=c99"], ".c", source, header))
        if options.cxx:
            tap.test(f"{header.name} alone as C++11", compile_header(options.cxx, ["-std=c++11"], ".cpp", source, header))
        else:
            tap.skip(f"{header.name} alone as C++11", "no C++ compiler")

    record_path = source / "tests" / "abi" / RECORD
    now = current_record(headers, source, options.cc)
    if "struct sd_image size 40" not in now:
        tap.skip("nothing recorded has changed", "the record is that of platforms with 64-bit long and pointers")
    else:
        old = [line for line in record_path.read_text().splitlines() if line and not line.startswith("#")]
        broken, added = compare(old, now)
        tap.test("nothing recorded has changed", broken, "programs compiled against an older header would break")
        tap.test("everything is recorded", added, "if it is meant: meson compile -C BUILD update-abi, and commit the record")

    if can_dump(shared) and (source / "tests" / "abi" / DUMP).exists():
        tap.test("abidiff finds the recorded ABI", dump_difference(source, shared, source / "tests" / "abi" / DUMP))
    else:
        tap.skip("abidiff finds the recorded ABI", "needs x86-64, libabigail's tools and a build with debug information")

    # The comparison itself must be able to fail.
    sample = ["struct a size 16", "struct a.size offset 0 size 8 type size_t", "struct b size 8", "function int f(int)"]
    blind = []
    if compare(sample, sample) != ([], []):
        blind.append("equal records differ")
    if compare(sample, ["struct a size 24", *sample[1:]])[0]:
        blind.append("a configuration that grew is taken for a break")
    for index, changed in ((0, "struct a size 8"), (2, "struct b size 16"), (3, "function int f(long)")):
        if not compare(sample, [*sample[:index], changed, *sample[index + 1 :]])[0]:
            blind.append(f"not noticed: {changed}")
    tap.test("the comparison notices a break", blind)
    return tap.end()


def update(options):
    path = options.source / "tests" / "abi" / RECORD
    new = current_record(Headers(options.source / "include" / "simdino"), options.source, options.cc)
    old = path.read_text().splitlines() if path.exists() else []
    comment = ["# The ABI of libsimdino.so.0 where long and pointers have 64 bits. Written by: meson compile -C BUILD update-abi"]
    for line in difflib.unified_diff(old, comment + new, "recorded", "now", lineterm="", n=0):
        print(line)
    path.write_text("\n".join(comment + new) + "\n")
    shared = options.build / "lib" / "libsimdino.so"
    if can_dump(shared):
        (options.source / "tests" / "abi" / DUMP).write_bytes(gzip.compress(dump(options.source, shared), mtime=0))
    else:
        print(f"{DUMP} is left as it is: it needs x86-64, libabigail's tools and a build with debug information")
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["check", "update"])
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--cc", required=True, help="command of the C compiler")
    parser.add_argument("--cxx", default="", help="command of the C++ compiler")
    options = parser.parse_args()
    options.cc, options.cxx = options.cc.split(), options.cxx.split()
    return check(options) if options.command == "check" else update(options)


if __name__ == "__main__":
    sys.exit(main())
