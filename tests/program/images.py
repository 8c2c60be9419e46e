#!/usr/bin/env python3
"""Makes images for test_images.sh and looks into what the program wrote, with Python's own modules only.

    images.py make FOLDER COUNT CLASS...  colour PNG files FOLDER/CLASS/00.png, ..., of many sizes
    images.py same FOLDER FILE COUNT      grey images of 16 x 16, as PNG files and as an IDX file
    images.py plain FILE WIDTH HEIGHT     one image of one colour
    images.py links FOLDER COUNT FILE     many links to one file
    images.py npz FILE                    its arrays, and the texts in them
    images.py near A.npy B.npy LIMIT      fails when any two numbers differ by more
    images.py csv A.csv B.npz             fails when a table is not what the archive says
    images.py size FILE.png               its width, its height, and how many colours it has
"""
import ast
import csv
import os
import struct
import sys
import zipfile
import zlib


def write_png(path, width, height, channels, rows):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, channels - 1, 0, 0, 0)) +
                   chunk(b'IDAT', zlib.compress(b''.join(b'\0' + bytes(row) for row in rows))) + chunk(b'IEND', b''))


def pattern(kind, x, y, number):
    x, y = (x + number) % 16, (y + 2 * number) % 16
    return (x < 8, y < 8, x // 3 % 2 == 0, (x - 8) ** 2 + (y - 8) ** 2 < 25)[kind % 4]


def make(folder, count, *classes):
    for kind, name in enumerate(classes):
        for i in range(int(count)):
            width, height = 20 + 3 * (i % 7), 18 + 5 * (i % 5)
            color = (200 - 9 * (i % 9), 60 + 40 * kind % 190, 90 + 7 * i % 100)
            rows = [[v for x in range(width) for v in (color if pattern(kind, x, y, i) else (30, 40 + i, 25))]
                    for y in range(height)]
            write_png(f'{folder}/{name}/{i:02}.png', width, height, 3, rows)


def same(folder, path, count):
    pixels = [[[(150 if pattern(i, x, y, i) else 30) + (i * 7 + x * y) % 60 for x in range(16)] for y in range(16)]
              for i in range(int(count))]
    for i, rows in enumerate(pixels):
        write_png(f'{folder}/{i:03}.png', 16, 16, 1, rows)
    with open(path, 'wb') as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack('>III', len(pixels), 16, 16))
        file.write(bytes(v for rows in pixels for row in rows for v in row))


def plain(path, width, height):
    write_png(path, int(width), int(height), 3, [[120, 60, 200] * int(width)] * int(height))


def links(folder, count, path):
    os.makedirs(folder, exist_ok=True)
    for i in range(int(count)):
        os.symlink(os.path.abspath(path), f'{folder}/{i:05}.png')


def array(data):
    """Type, shape and values of a .npy file."""
    assert data[:6] == b'\x93NUMPY'
    length, = struct.unpack('<H', data[8:10])
    head = ast.literal_eval(data[10:10 + length].decode())
    assert (10 + length) % 64 == 0 and not head['fortran_order']
    kind, shape, raw = head['descr'], head['shape'], data[10 + length:]
    count = 1
    for n in shape:
        count *= n
    if kind[:2] == '|S':
        item = int(kind[2:])
        values = [raw[i * item:(i + 1) * item].rstrip(b'\0').decode() for i in range(count)]
        assert max(map(len, (v.encode() for v in values))) == item
    else:
        values = list(struct.unpack('<' + str(count) + {'<f4': 'f', '<i4': 'i', '<i8': 'q'}[kind], raw[:count * int(kind[2:])]))
        item = int(kind[2:])
    assert len(raw) == count * item
    return kind, shape, values


def arrays(path):
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        return {name: array(file.read(name)) for name in file.namelist()}


def npz(path):
    for name, (kind, shape, values) in arrays(path).items():
        print(name, kind, shape, [ascii(v) for v in values] if kind[0] == '|' else values if kind == '<i4' else '')


def near(left, right, limit):
    _, shape, a = array(open(left, 'rb').read())
    _, other, b = array(open(right, 'rb').read())
    assert shape == other, (shape, other)
    far = max(abs(x - y) for x, y in zip(a, b))
    assert far <= float(limit), far


def table(path, archive):
    members = arrays(archive)
    _, (count, dim), values = members['embeddings.npy']
    files = members['files.npy'][2]
    with open(path, newline='') as file:
        head, *rows = list(csv.reader(file))
    labelled = 'labels.npy' in members
    assert head == ['image'] + ['label'] * labelled + [f'f{j}' for j in range(dim)], head
    assert len(rows) == count
    for i, row in enumerate(rows):
        assert row[0] == files[i], (row[0], files[i])
        if labelled:
            assert row[1] == members['classes.npy'][2][members['labels.npy'][2][i]]
        got = [struct.unpack('<f', struct.pack('<f', float(text)))[0] for text in row[1 + labelled:]]
        assert got == values[i * dim:(i + 1) * dim], i


def size(path):
    data, at, packed = open(path, 'rb').read(), 8, b''
    while at < len(data):
        length, = struct.unpack('>I', data[at:at + 4])
        if data[at + 4:at + 8] == b'IHDR':
            width, height = struct.unpack('>II', data[at + 8:at + 16])
        if data[at + 4:at + 8] == b'IDAT':
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(packed)
    colors = {raw[row + x:row + x + 3] for row in range(1, len(raw), 1 + 3 * width) for x in range(0, 3 * width, 3)}
    print(width, height, len(colors))


if __name__ == '__main__':
    {'make': make, 'same': same, 'plain': plain, 'links': links, 'npz': npz, 'near': near, 'csv': table,
     'size': size}[sys.argv[1]](*sys.argv[2:])
