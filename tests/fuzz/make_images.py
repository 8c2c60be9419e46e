#!/usr/bin/env python3
"""Makes the JPEG and PNG files of the corpus, with which tests/program checks pixels too.

    python3 tests/fuzz/make_images.py tests/fuzz/corpus

The files are kept in the tree; this program is only needed to make others. PNG files are written by hand, JPEG files by
Pillow. good-*: must open; hostile-*: must be refused; seed-*: anything may come out.
"""
import io
import os
import struct
import sys
import zlib

ROOT = sys.argv[1]
WIDTH, HEIGHT = 13, 9  # no multiple of 8: the last blocks and bytes of a row are cut


def put(folder, name, data):
    os.makedirs(os.path.join(ROOT, folder), exist_ok=True)
    with open(os.path.join(ROOT, folder, name), 'wb') as file:
        file.write(data)


def value(x, y, c):
    """The pixels that tests/program/test_image_file.c expects."""
    return (x * 18 + y * 3, x * 5 + y * 22, 240 - x * 7 - y * 13)[c]


# ---- PNG ---------------------------------------------------------------------------------------
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SIGNATURE = b'\x89PNG\r\n\x1a\n'


def chunk(kind, data=b''):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def header(kind, depth, width=WIDTH, height=HEIGHT, interlaced=0, method=0):
    return chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, kind, method, 0, interlaced))


def samples(kind, depth, x, y):
    """Whole numbers below 2**depth."""
    gray = value(x, y, 0)
    if kind == PALETTE:
        return [(x + 2 * y) % min(16, 2 ** depth)]
    if depth < 8:
        return [gray >> (8 - depth)]
    out = [gray] if kind in (GRAY, GRAY_ALPHA) else [value(x, y, c) for c in range(3)]
    out += [(x * 31 + y * 17) % 256] if kind in (GRAY_ALPHA, RGBA) else []
    return [v * 257 if depth == 16 else v for v in out]


def rows(kind, depth, xs, ys):
    """Scan lines; the filters take turns, so that each is undone once."""
    out, before = b'', None
    step = max(1, depth * {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}[kind] // 8)
    for number, y in enumerate(ys):
        bits = ''.join(format(v, f'0{depth}b') for x in xs for v in samples(kind, depth, x, y))
        bits += '0' * (-len(bits) % 8)
        line = bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))
        up = before or bytes(len(line))
        how, coded = number % 5, bytearray()
        for i, byte in enumerate(line):
            a = line[i - step] if i >= step else 0
            b = up[i]
            c = up[i - step] if i >= step else 0
            guess = a + b - c
            paeth = min((a, b, c), key=lambda v: abs(guess - v))
            coded.append((byte - (0, a, b, (a + b) // 2, paeth)[how]) % 256)
        out += bytes([how]) + bytes(coded)
        before = line
    return out


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def pixels(kind, depth, interlaced=0):
    if not interlaced:
        return rows(kind, depth, range(WIDTH), range(HEIGHT))
    return b''.join(rows(kind, depth, range(x, WIDTH, dx), range(y, HEIGHT, dy)) for x, y, dx, dy in PASSES
                    if x < WIDTH and y < HEIGHT)


def png(kind, depth, interlaced=0, before=b'', behind=b''):
    packed = zlib.compress(pixels(kind, depth, interlaced), 9)
    middle = len(packed) // 2
    return (SIGNATURE + header(kind, depth, interlaced=interlaced) + before + chunk(b'IDAT', packed[:middle]) +
            chunk(b'IDAT', packed[middle:]) + behind + chunk(b'IEND'))


palette = chunk(b'PLTE', bytes(v for i in range(16) for v in (i * 16, 255 - i * 15, i * i)))
for depth in (1, 2, 4, 8, 16):
    put('png', f'good-gray-{depth}.png', png(GRAY, depth))
for depth in (8, 16):
    put('png', f'good-rgb-{depth}.png', png(RGB, depth))
    put('png', f'good-rgba-{depth}.png', png(RGBA, depth))
    put('png', f'good-gray-alpha-{depth}.png', png(GRAY_ALPHA, depth))
for depth in (4, 8):
    put('png', f'good-palette-{depth}.png', png(PALETTE, depth, before=palette))
put('png', 'good-palette-transparent.png', png(PALETTE, 4, before=palette + chunk(b'tRNS', bytes(range(0, 160, 16)))))
put('png', 'good-gray-transparent.png', png(GRAY, 8, before=chunk(b'tRNS', struct.pack('>H', value(3, 3, 0)))))
put('png', 'good-rgb-transparent.png',
    png(RGB, 8, before=chunk(b'tRNS', struct.pack('>HHH', *(value(3, 3, c) for c in range(3))))))
put('png', 'good-rgb-interlaced.png', png(RGB, 8, 1))
put('png', 'good-gray-1-interlaced.png', png(GRAY, 1, 1))
put('png', 'good-palette-interlaced.png', png(PALETTE, 4, 1, before=palette))
# A megabyte of text, and a profile that is none: neither is looked at.
put('png', 'good-text.png', png(GRAY, 8, before=chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(1 << 20), 9)) +
                                chunk(b'iCCP', b'p\0\0' + zlib.compress(bytes(1 << 16), 9)),
                                behind=chunk(b'tEXt', b'k\0v') + chunk(b'teSt', b'nobody knows this chunk')))
put('png', 'seed-palette-index.png', png(PALETTE, 8, before=chunk(b'PLTE', bytes(range(9)))))
put('png', 'seed-trailing.png', png(GRAY, 8) + b'more')

good = png(RGB, 8)
some = chunk(b'IDAT', zlib.compress(pixels(RGB, 8)))
end = chunk(b'IEND')
put('png', 'hostile-empty.png', b'')
put('png', 'hostile-signature.png', SIGNATURE)
put('png', 'hostile-no-end.png', good[:-12])
put('png', 'hostile-no-pixels.png', SIGNATURE + header(RGB, 8) + end)
put('png', 'hostile-no-palette.png', png(PALETTE, 8))
put('png', 'hostile-no-header.png', SIGNATURE + some + end)
put('png', 'hostile-checksum.png', good.replace(some[-4:], b'abcd') if some[-4:] in good else
    SIGNATURE + header(RGB, 8) + some[:-4] + b'abcd' + end)
put('png', 'hostile-critical.png', SIGNATURE + header(RGB, 8) + chunk(b'TEST') + some + end)
put('png', 'hostile-depth.png', SIGNATURE + header(RGB, 4) + some + end)
put('png', 'hostile-kind.png', SIGNATURE + header(5, 8) + some + end)
put('png', 'hostile-method.png', SIGNATURE + header(RGB, 8, method=1) + some + end)
put('png', 'hostile-short.png', SIGNATURE + header(RGB, 8) + chunk(b'IDAT', zlib.compress(pixels(RGB, 8)[:-50])) + end)
put('png', 'hostile-stream.png', SIGNATURE + header(RGB, 8) + chunk(b'IDAT', bytes(range(200))) + end)
put('png', 'hostile-chunk-length.png', SIGNATURE + header(RGB, 8) + b'\x7f\xff\xff\xffIDAT' + some[8:] + end)
for name, width, height in (('zero', 0, 9), ('largest', 2**31 - 1, 2**31 - 1), ('beyond', 2**32 - 1, 9),
                            ('wide', 2**27 + 1, 1), ('huge', 100000, 100000), ('large', 11000, 11000)):
    put('png', f'hostile-{name}.png', SIGNATURE + header(RGB, 8, width, height) + some + end)
put('png', 'hostile-interlaced.png', SIGNATURE + header(RGB, 16, 11000, 11000, 1) + some + end)
# All but the last row of an image that is a thousand times as large as its file.
put('png', 'hostile-bomb.png', SIGNATURE + header(RGB, 8, 1000, 1000) + chunk(b'IDAT', zlib.compress(bytes(2999000), 9)) + end)
# Pixels that go on behind the last row.
put('png', 'seed-bomb.png', SIGNATURE + header(GRAY, 8) + chunk(b'IDAT', zlib.compress(bytes(1 << 22), 9)) + end)

# ---- JPEG --------------------------------------------------------------------------------------
try:
    from PIL import Image
except ImportError:
    sys.exit('without Pillow: no JPEG files')


def picture(mode):
    image = Image.new(mode, (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            colors = tuple(value(x, y, c) for c in range(3))
            image.putpixel((x, y), colors if mode == 'RGB' else colors[0] if mode == 'L' else
                           tuple(255 - v for v in colors) + (64,))
    return image


def jpeg(mode='RGB', **options):
    out = io.BytesIO()
    picture(mode).save(out, 'JPEG', quality=options.pop('quality', 98), **options)
    return out.getvalue()


def segments(data):
    """Markers with their contents; from a scan on, up to the next marker that is none of a scan."""
    at, out = 2, []
    while at < len(data):
        marker, length = data[at + 1], struct.unpack('>H', data[at + 2:at + 4])[0] if data[at + 1] != 0xd9 else 0
        stop = at + 2 + length
        while marker == 0xda and not (data[stop] == 0xff and data[stop + 1] not in (0, *range(0xd0, 0xd8))):
            stop += 1
        out.append((marker, data[at:stop]))
        at = stop
    return out


def joined(parts):
    return b'\xff\xd8' + b''.join(data for _, data in parts)


def exif(orientation, order='<'):
    body = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IHHHIHHI', 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b'Exif\0\0' + body


def with_marker(data, marker, body):
    return data[:2] + b'\xff' + bytes([marker]) + struct.pack('>H', len(body) + 2) + body + data[2:]


rgb = jpeg(subsampling=0)
progressive = jpeg(subsampling=0, progressive=True)
restarts = jpeg(subsampling=0, restart_marker_blocks=1)
cmyk = jpeg('CMYK', subsampling=0)
put('jpeg', 'good-rgb.jpg', rgb)
put('jpeg', 'good-gray.jpg', jpeg('L'))
put('jpeg', 'good-subsampled.jpg', jpeg(subsampling=2))
put('jpeg', 'good-progressive.jpg', progressive)
put('jpeg', 'good-progressive-gray.jpg', jpeg('L', progressive=True))
put('jpeg', 'good-restarts.jpg', restarts)
put('jpeg', 'good-cmyk.jpg', cmyk)
put('jpeg', 'good-oriented.jpg', with_marker(rgb, 0xe1, exif(6)))
put('jpeg', 'good-oriented-motorola.jpg', with_marker(jpeg('L'), 0xe1, exif(5, '>')))
put('jpeg', 'good-trailing.jpg', rgb + b'more')
# The same inks, but not inverted, as programs write them that do not follow Adobe: values are 255 - those.
put('jpeg', 'seed-cmyk-plain.jpg', joined(part for part in segments(cmyk) if part[0] != 0xee))
put('jpeg', 'seed-exif-table.jpg', with_marker(rgb, 0xe1, b'Exif\0\0II*\0\xff\xff\xff\xff' + bytes(20)))
put('jpeg', 'seed-exif-count.jpg', with_marker(rgb, 0xe1, b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + bytes(20)))
put('jpeg', 'seed-exif-short.jpg', with_marker(rgb, 0xe1, b'Exif\0\0II*\0\x08\0\0\0'))


def resized(data, width, height):
    parts = [(marker, part[:5] + struct.pack('>HH', height, width) + part[9:] if marker in (0xc0, 0xc2) else part)
             for marker, part in segments(data)]
    return joined(parts)


put('jpeg', 'hostile-empty.jpg', b'')
put('jpeg', 'hostile-start.jpg', rgb[:3])
put('jpeg', 'hostile-no-end.jpg', rgb[:-2])
put('jpeg', 'hostile-half.jpg', rgb[:len(rgb) - 40] + b'\xff\xd9')
put('jpeg', 'hostile-no-tables.jpg', joined(part for part in segments(rgb) if part[0] != 0xdb))
put('jpeg', 'seed-no-codes.jpg', joined(part for part in segments(rgb) if part[0] != 0xc4))
put('jpeg', 'hostile-no-scan.jpg', joined(part for part in segments(rgb) if part[0] != 0xda))
put('jpeg', 'hostile-zero.jpg', resized(rgb, 0, 9))
put('jpeg', 'hostile-no-height.jpg', resized(rgb, 13, 0))
put('jpeg', 'hostile-largest.jpg', resized(rgb, 65535, 65535))
put('jpeg', 'hostile-huge.jpg', resized(rgb, 65500, 65500))
put('jpeg', 'hostile-large.jpg', resized(rgb, 10000, 10000))
put('jpeg', 'hostile-large-progressive.jpg', resized(progressive, 10000, 10000))
put('jpeg', 'hostile-taller.jpg', resized(rgb, 13, 100))
put('jpeg', 'hostile-restart.jpg', restarts.replace(b'\xff\xd1', b'\xff\xd5'))
scans = segments(progressive)
first = next(i for i, part in enumerate(scans) if part[0] == 0xda)
put('jpeg', 'hostile-scans.jpg', joined(scans[:first + 1] + [scans[first]] * 150 + scans[first + 1:]))
sof = next(part for marker, part in segments(rgb) if marker == 0xc0)
put('jpeg', 'hostile-precision.jpg', rgb.replace(sof, sof[:4] + b'\x0c' + sof[5:]))
put('jpeg', 'hostile-two-components.jpg', joined(
    (m, p[:3] + b'\x0e' + p[4:9] + b'\x02' + p[10:16] if m == 0xc0 else
     p[:3] + b'\x0a\x02' + p[5:9] + p[11:] if m == 0xda else p) for m, p in segments(rgb)))
