#!/usr/bin/env python3
"""Makes the seeds of the fuzzers that NumPy and PyTorch can write, and files that lie.

    python3 tests/fuzz/make_corpus.py tests/fuzz/corpus

The files are kept in the tree; this program is only needed to make others. good-*: must open; hostile-*: must be
refused, before memory is taken for what they claim; seed-*: anything may come out. corpus/checkpoint was written by the
library itself.
"""
import collections
import gzip
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib

import numpy as np
import torch

ROOT = sys.argv[1]


def put(folder, name, data):
    os.makedirs(os.path.join(ROOT, folder), exist_ok=True)
    with open(os.path.join(ROOT, folder, name), 'wb') as file:
        file.write(data)


def network(prefix='', hugging_face=False):
    """A vision transformer of width 4, patches of 2 x 2 pixels of one channel, a grid of 2 x 2, one block."""
    shapes = collections.OrderedDict(cls_token=(1, 1, 4), pos_embed=(1, 5, 4), register_tokens=(1, 2, 4),
                                     mask_token=(1, 4))
    shapes['patch_embed.proj.weight'] = (4, 1, 2, 2)
    shapes['patch_embed.proj.bias'] = (4,)
    block = {'norm1.weight': (4,), 'norm1.bias': (4,), 'attn.qkv.weight': (12, 4), 'attn.qkv.bias': (12,),
             'attn.proj.weight': (4, 4), 'attn.proj.bias': (4,), 'ls1.gamma': (4,), 'norm2.weight': (4,),
             'norm2.bias': (4,), 'mlp.fc1.weight': (8, 4), 'mlp.fc1.bias': (8,), 'mlp.fc2.weight': (4, 8),
             'mlp.fc2.bias': (4,), 'ls2.gamma': (4,)}
    for name, shape in block.items():
        shapes['blocks.0.' + name] = shape
    shapes['norm.weight'] = shapes['norm.bias'] = (4,)
    generator = np.random.default_rng(1)
    return collections.OrderedDict(
        (prefix + name, torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)))
        for name, shape in shapes.items())


def saved(value, **options):
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def archive(members, method=zipfile.ZIP_STORED, wide=False):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with file.open(info, 'w', force_zip64=wide) as member:
                member.write(data)
    return out.getvalue()


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


values = torch.arange(12.).reshape(3, 4)
objects = {'a': values, 'half': values.half()[:, 1:], 'bf16': values.t().bfloat16(), 'long': torch.tensor([1, -2]),
           'list': [1, 2.5, True, None, {'x': values[0]}], 'p': torch.nn.Parameter(values[:2]), 'np': np.float64(0.1),
           'text': 'text', 'set': {1}, 'expanded': values[:, :1].expand(3, 5)}

# ---- PyTorch, zip form -------------------------------------------------------------------------
for protocol in (2, 4, 5):
    put('pth', f'good-objects-{protocol}.pth', saved(objects, pickle_protocol=protocol))
put('pth', 'good-network.pth', saved({'teacher': network('backbone.')}))
plain = saved({'w': values, 'n': 3})
put('pth', 'good-deflated.pth', archive(members_of(plain), zipfile.ZIP_DEFLATED))
put('pth', 'good-wide.pth', archive(members_of(plain), wide=True))


def pth(data_pkl, storages=(('0', bytes(64)),), method=zipfile.ZIP_STORED):
    return archive([('x/data.pkl', data_pkl)] + [('x/data/' + key, data) for key, data in storages] +
                   [('x/version', b'3\n')], method)


def tensor_pickle(offset=0, shape=(4,), stride=(1,), elements=16, kind=b'FloatStorage', key=b'0', tail=b'.'):
    def number(value):
        size = max(1, (value.bit_length() + 8) // 8)
        return b'\x8a' + bytes([size]) + value.to_bytes(size, 'little', signed=True)

    def numbers(items):
        return b'(' + b''.join(number(item) for item in items) + b't'

    def text(data):
        return b'X' + struct.pack('<I', len(data)) + data
    return (b'\x80\x02}' + text(b'w') + b'ctorch._utils\n_rebuild_tensor_v2\n((' + text(b'storage') + b'ctorch\n' + kind +
            b'\n' + text(key) + text(b'cpu') + number(elements) + b'tQ' + number(offset) + numbers(shape) +
            numbers(stride) + b'\x89}tRs' + tail)


put('pth', 'good-by-hand.pth', pth(tensor_pickle()))
hostile = {
    'offset': tensor_pickle(offset=13),
    'offset-huge': tensor_pickle(offset=2**62),
    'negative': tensor_pickle(offset=-1),
    'shape': tensor_pickle(shape=(2**40,)),
    'shape-overflow': tensor_pickle(shape=(2**33, 2**33), stride=(2**33, 1)),
    'stride': tensor_pickle(shape=(2, 2), stride=(2**62, 1)),
    'expanded': tensor_pickle(shape=(2**20, 2**20), stride=(0, 0)),
    'dimensions': tensor_pickle(shape=(1,) * 9, stride=(1,) * 9),
    'strides-missing': tensor_pickle(shape=(1, 1), stride=(1,)),
    'no-storage': tensor_pickle(key=b'1'),
    'key': tensor_pickle(key=b'../../x'),
    'no-stop': tensor_pickle(tail=b''),
    'text-length': b'\x80\x02X\xff\xff\xff\xff' + b'abc.',
    'text-length-8': b'\x80\x04\x8d' + struct.pack('<Q', 2**63) + b'abc.',
    'long-length': b'\x80\x02\x8b\xff\xff\xff\x7f' + b'abc.',
    'frame': b'\x80\x04\x95' + struct.pack('<Q', 2**62) + b'N.',
    'memo-huge': b'\x80\x02Nr\xff\xff\xff\xff.',
    'memo-unset': b'\x80\x02h\x05.',
    'no-mark': b'\x80\x02Nt.',
    'empty-stack': b'\x80\x02.',
    'protocol': b'\x80\x09N.',
    'opcode': b'\x80\x02\xffN.',
    'deep': b'\x80\x02' + b'](' * 100 + b'K\x01' + b'e' * 100 + b'.',
    'cycle': b'\x80\x02]q\x00(h\x00e.',
    'laughs': b'\x80\x02]q\x00(' + b'K\x01' * 20 + b'e' + b''.join(
        b'](' + b'h' + bytes([i]) + (b'h' + bytes([i])) * 19 + b'eq' + bytes([i + 1]) for i in range(20)) + b'.',
    'name-long': b'\x80\x02}X' + struct.pack('<I', 2000) + b'n' * 2000 + b'K\x01s.',
}
for name, data in hostile.items():
    put('pth', f'hostile-{name}.pth', pth(data))
put('pth', 'hostile-pickle-bomb.pth', pth(b'\x80\x02' + b'N0' * 3000000 + b'N.', method=zipfile.ZIP_DEFLATED))
put('pth', 'hostile-big-endian.pth', archive([('x/data.pkl', tensor_pickle()), ('x/byteorder', b'big'),
                                               ('x/data/0', bytes(64))]))
# Executes nothing: the result is skipped, whatever it is.
put('pth', 'good-os-system.pth', pth(b'\x80\x02}X\x01\x00\x00\x00acos\nsystem\nX\x04\x00\x00\x00true\x85Rs.'))


# ---- zip: sizes and places that lie ---------------------------------------------------------------
def patched(data, signature, offset, fmt, value, which=0):
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    out = bytearray(data)
    struct.pack_into(fmt, out, at + offset, value)
    return bytes(out)


entry, local, end_record = b'PK\x01\x02', b'PK\x03\x04', b'PK\x05\x06'
small = pth(tensor_pickle())
packed = pth(tensor_pickle(), method=zipfile.ZIP_DEFLATED)
put('pth', 'hostile-zip-size.pth', patched(small, entry, 24, '<I', 0x7fffffff))
put('pth', 'hostile-zip-packed.pth', patched(patched(small, entry, 20, '<I', 0x7fffffff), entry, 24, '<I', 0x7fffffff))
put('pth', 'hostile-zip-ratio.pth', patched(packed, entry, 24, '<I', 0xfffffffe))
put('pth', 'hostile-zip-position.pth', patched(small, entry, 42, '<I', 0x7fffffff))
put('pth', 'hostile-zip-overlap.pth', patched(small, entry, 42, '<I', 0, 1))
put('pth', 'hostile-zip-count.pth', patched(small, end_record, 10, '<H', 0xfffe))
put('pth', 'hostile-zip-directory.pth', patched(small, end_record, 12, '<I', 0xfffffff0))
put('pth', 'hostile-zip-directory-position.pth', patched(small, end_record, 16, '<I', 0xfffffff0))
put('pth', 'hostile-zip-wide.pth', patched(small, end_record, 16, '<I', 0xffffffff))
put('pth', 'hostile-zip-encrypted.pth', patched(small, entry, 8, '<H', 1))
put('pth', 'hostile-zip-method.pth', patched(small, entry, 10, '<H', 12))
put('pth', 'hostile-zip-crc.pth', patched(small, entry, 16, '<I', 0x12345678))

# ---- PyTorch, old form --------------------------------------------------------------------------------
old = {'_use_new_zipfile_serialization': False}
for protocol in (2, 4):
    put('pth_legacy', f'good-objects-{protocol}.pth', saved(objects, pickle_protocol=protocol, **old))
put('pth_legacy', 'good-network.pth', saved(network('module.'), **old))
head = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2) + pickle.dumps({'little_endian': True}, 2)
keys = pickle.dumps(['0'], 2)
put('pth_legacy', 'good-by-hand.pth', head + tensor_pickle() + keys + struct.pack('<q', 16) + bytes(64))
put('pth_legacy', 'hostile-elements.pth', head + tensor_pickle() + keys + struct.pack('<q', 2**60) + bytes(64))
put('pth_legacy', 'hostile-elements-overflow.pth', head + tensor_pickle() + keys + struct.pack('<Q', 2**62 + 1) + bytes(64))
put('pth_legacy', 'hostile-truncated.pth', head + tensor_pickle() + keys + struct.pack('<q', 16) + bytes(63))
put('pth_legacy', 'hostile-keys.pth', head + tensor_pickle() + pickle.dumps(['0', '1', '2'], 2) + struct.pack('<q', 16) + bytes(64))
put('pth_legacy', 'hostile-key-twice.pth', head + tensor_pickle() + pickle.dumps(['0', '0'], 2) + struct.pack('<q', 4) + bytes(16) +
    struct.pack('<q', 4) + bytes(16))
put('pth_legacy', 'hostile-key-unknown.pth', head + tensor_pickle() + pickle.dumps(['9'], 2) + struct.pack('<q', 16) + bytes(64))
put('pth_legacy', 'hostile-offset.pth', head + tensor_pickle(offset=13) + keys + struct.pack('<q', 16) + bytes(64))
put('pth_legacy', 'hostile-magic.pth', pickle.dumps(12345678901234567890123, 2) + bytes(100))
put('pth_legacy', 'hostile-version.pth', head.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)) + bytes(100))
put('pth_legacy', 'hostile-big-endian.pth', head.replace(b'\x88', b'\x89') + tensor_pickle() + keys + struct.pack('<q', 16) + bytes(64))
for name in ('deep', 'cycle', 'laughs', 'text-length', 'memo-huge', 'expanded'):
    put('pth_legacy', f'hostile-{name}.pth', head + hostile[name] + keys + struct.pack('<q', 16) + bytes(64))


# ---- NumPy ----------------------------------------------------------------------------------------------
def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
for kind in ('<f4', '>f4', '<f2', '<f8', '<i8', '>i2', '|u1', '|b1'):
    put('npy', f'good-{kind[1:]}{"-big" if kind[0] == ">" else ""}.npy', npy((matrix % 2).astype(kind)))
put('npy', 'good-fortran.npy', npy(np.asfortranarray(matrix)))
put('npy', 'good-scalar.npy', npy(np.float32(3)))
put('npy', 'good-text.npy', npy(np.array(['a', 'bc'])))
put('npy', 'good-records.npy', npy(np.zeros(2, [('x', '<f4'), ('y', '<i4', (2,))])))


def header(text, data=b''):
    text = text.encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


usual = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
for name, data in {
        'huge': header(usual % '1099511627776,'), 'overflow': header(usual % '4294967296, 4294967296,'),
        'overflow-4': header(usual % '4611686018427387905,', bytes(4)), 'long-number': header(usual % ('9' * 40 + ',')),
        'dimensions': header(usual % ('1, ' * 9), bytes(4)), 'negative': header(usual % '-1,'),
        'short': header(usual % '4,', bytes(15)), 'trailing': header(usual % '4,', bytes(17)),
        'length': b'\x93NUMPY\x01\x00\xff\xff{}', 'length-2': b'\x93NUMPY\x02\x00\xff\xff\xff\xff{}',
        'version': b'\x93NUMPY\x09\x00\x10\x00' + bytes(16), 'no-shape': header("{'descr': '<f4', 'fortran_order': False}"),
        'twice': header("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}", bytes(4)),
        'unclosed': header("{'descr': '<f4', 'fortran_order': False, 'shape': (", bytes(4)),
        'item': header("{'descr': '<f99999999999', 'fortran_order': False, 'shape': (2,)}", bytes(4)),
        'empty-header': header('')}.items():
    put('npy', f'hostile-{name}.npy', data)

out = io.BytesIO()
np.savez(out, a=matrix, b=np.arange(3), s=np.array('text'))
put('npz', 'good-stored.npz', out.getvalue())
out = io.BytesIO()
np.savez_compressed(out, a=matrix, zeros=np.zeros(2000, np.float32))
put('npz', 'good-deflated.npz', out.getvalue())
out = io.BytesIO()
np.savez_compressed(out, **{name: tensor.numpy() for name, tensor in network('module.').items()})
put('npz', 'good-network.npz', out.getvalue())
put('npz', 'hostile-other.npz', archive([('readme.txt', b'text')]))
put('npz', 'hostile-short.npz', archive([('a.npy', header(usual % '4,', bytes(15)))]))
put('npz', 'hostile-huge.npz', archive([('a.npy', header(usual % '1099511627776,', bytes(16)))]))
put('npz', 'hostile-name-twice.npz', archive([('a.npy', npy(matrix)), ('b.npy', npy(matrix))]).replace(b'b.npy', b'a.npy'))
deflated = archive([('a.npy', npy(np.zeros(20000, np.float32)))], zipfile.ZIP_DEFLATED)
put('npz', 'hostile-ratio.npz', patched(deflated, entry, 24, '<I', 0x7fffffff))
put('npz', 'seed-bomb.npz', deflated)
put('npz', 'seed-truncated-stream.npz', patched(patched(deflated, entry, 20, '<I', 100), local, 18, '<I', 100))


# ---- safetensors --------------------------------------------------------------------------------------
def safetensors(tensors, extra=None):
    table, data = dict(extra or {}), b''
    for name, (kind, shape, raw) in tensors.items():
        table[name] = {'dtype': kind, 'shape': shape, 'data_offsets': [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(table).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + data


put('safetensors', 'good-network.safetensors', safetensors(
    {name: ('F32', list(tensor.shape), tensor.numpy().tobytes()) for name, tensor in network('backbone.').items()},
    {'__metadata__': {'format': 'pt', 'model.dim': '4', 'model.heads': '2', 'model.drop_path': '0 (0000000000000000)'}}))
sizes = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'F8_E4M3': 1, 'F8_E5M2': 1, 'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U64': 8,
         'U32': 4, 'U16': 2, 'U8': 1, 'BOOL': 1}
put('safetensors', 'good-types.safetensors', safetensors(
    {kind: (kind, [2, 3], bytes(range(7, 7 + 6 * size))) for kind, size in sizes.items()}))
put('safetensors', 'good-empty.safetensors', safetensors({}))
one = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


def raw_safetensors(text, data=bytes(8)):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack('<Q', len(text)) + text + data


for name, data in {
        'length': struct.pack('<Q', 2**40) + b'{}      ', 'length-max': struct.pack('<Q', 2**64 - 1) + b'{}      ',
        'offsets': raw_safetensors({'a': dict(one, data_offsets=[0, 2**40])}),
        'reversed': raw_safetensors({'a': dict(one, data_offsets=[8, 0])}),
        'shape': raw_safetensors({'a': dict(one, shape=[2**62, 4])}), 'overlap': raw_safetensors({'a': one, 'b': one}),
        'hole': raw_safetensors({'a': dict(one, data_offsets=[4, 12])}, bytes(12)),
        'deep': raw_safetensors(b'{"a":' + b'[' * 5000), 'dtype': raw_safetensors({'a': dict(one, dtype='F33')}),
        'twice': raw_safetensors(b'{"a":' + json.dumps(one).encode() + b',"a":' + json.dumps(one).encode() + b'}')}.items():
    put('safetensors', f'hostile-{name}.safetensors', data)


# ---- datasets ------------------------------------------------------------------------------------------
def idx(dimensions, data, kind=8):
    return bytes([0, 0, kind, len(dimensions)]) + b''.join(struct.pack('>I', n) for n in dimensions) + data


images = idx((3, 4, 5), bytes(range(60)))
put('idx', 'good-images.idx', images)
put('idx', 'good-colour.idx', idx((2, 3, 2, 3), bytes(range(36))))
put('idx', 'good-images.idx.gz', gzip.compress(images, mtime=0))
put('idx', 'seed-labels.idx', idx((6,), bytes(6)))
put('idx', 'hostile-count.idx', idx((2**30, 4, 5), bytes(60)))
put('idx', 'hostile-overflow.idx', idx((2**31 - 1, 2**31 - 1, 2**31 - 1), bytes(60)))
put('idx', 'hostile-zero.idx', idx((0, 4, 5), b''))
put('idx', 'hostile-trailing.idx', idx((3, 4, 5), bytes(61)))
put('idx', 'hostile-type.idx', idx((3, 4, 5), bytes(60), 13))
put('idx', 'hostile-count.idx.gz', gzip.compress(idx((2**30, 4, 5), bytes(60)), mtime=0))
put('idx', 'hostile-trailing.idx.gz', gzip.compress(images + b'x', mtime=0))
put('idx', 'seed-bomb.idx.gz', gzip.compress(idx((1, 300, 300), bytes(90000)), mtime=0))
record = bytes([3]) + bytes(i * 7 % 256 for i in range(3072))
put('cifar', 'good-one.bin', record)
put('cifar', 'good-two.bin', record + bytes([9]) + record[1:])
put('cifar', 'hostile-label.bin', bytes([10]) + record[1:])
put('cifar', 'hostile-size.bin', record + b'x')
put('cifar', 'hostile-short.bin', record[:3000])
