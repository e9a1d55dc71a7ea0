"""Reading GGUF files with numpy alone: keys, tensor descriptions, exact dequantisation to f32.

An independent second reader: shares no code with the C one, so that the two can check each other.
It trusts its input (use it on files you made or already opened with kr)."""
import mmap
import struct

import numpy as np

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}
# ggml type id: (name, items per block, bytes per block)
TYPES = {0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20),
         6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 12: ("q4_k", 256, 144),
         13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 30: ("bf16", 1, 2)}


class Tensor:
    """shape is outermost first, as numpy has it."""

    def __init__(self, name, shape, type_name, raw):
        self.name, self.shape, self.type_name, self.raw = name, shape, type_name, raw

    def to_f32(self):
        return dequantise(self.raw, self.type_name).reshape(self.shape)


class Gguf:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.pos = 4
        version, n_tensors, n_keys = self._read("<I"), self._read("<Q"), self._read("<Q")
        if self.data[:4] != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path}: not a GGUF file of version 2 or 3")
        self.keys = {}
        for _ in range(n_keys):
            key = self._text()
            self.keys[key] = self._value(self._read("<I"))
        entries = []
        for _ in range(n_tensors):
            name, n_dims = self._text(), self._read("<I")
            dims = [self._read("<Q") for _ in range(n_dims)]
            entries.append((name, dims, self._read("<I"), self._read("<Q")))
        align = self.keys.get("general.alignment", 32)
        begin = (self.pos + align - 1) // align * align
        self.tensors = []
        for name, dims, kind, offset in entries:
            type_name, items, n_bytes = TYPES[kind]
            size = int(np.prod(dims, dtype=np.int64)) // items * n_bytes
            raw = np.frombuffer(self.data, np.uint8, size, begin + offset).reshape(-1, n_bytes)
            self.tensors.append(Tensor(name, tuple(reversed(dims)), type_name, raw))

    def _read(self, form):
        value, = struct.unpack_from(form, self.data, self.pos)
        self.pos += struct.calcsize(form)
        return value

    def _text(self):
        n = self._read("<Q")
        self.pos += n
        return self.data[self.pos - n:self.pos].decode("utf-8", "replace")

    def _value(self, kind):
        if kind == 8:
            return self._text()
        if kind == 9:
            item, n = self._read("<I"), self._read("<Q")
            return [self._value(item) for _ in range(n)]
        return self._read(SCALARS[kind])


def _half(blocks, at):
    """The f16 at byte `at` of each block, as a column of f32."""
    return blocks[:, at:at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed):
    """Low nibbles, then high nibbles."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks, at):
    bits = blocks[:, at:at + 4].copy().view(np.uint32)
    return ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def _scales_of_k(packed):
    """The eight 6-bit scales and mins in 12 bytes of a q4_k or q5_k block."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    least = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    return scale.astype(np.float32), least.astype(np.float32)


def _q4_q5_k(blocks, is_q5):
    n = len(blocks)
    scale, least = _scales_of_k(blocks[:, 4:16])
    packed = blocks[:, 48 if is_q5 else 16:].reshape(n, 4, 32)
    q = np.stack([packed & 15, packed >> 4], axis=2).reshape(n, 8, 32)
    if is_q5:
        shift = np.arange(8, dtype=np.uint8)[None, :, None]
        q = q | ((blocks[:, None, 16:48] >> shift & 1) << 4)
    scale, least = _half(blocks, 0) * scale, _half(blocks, 2) * least
    return scale[:, :, None] * q.astype(np.float32) - least[:, :, None]


def _q6_k(blocks):
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 2, 32)
    low = np.stack([low & 15, low >> 4], axis=2).reshape(n, 2, 4, 32)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> shift & 3
    q = (low | high << 4).astype(np.int8).reshape(n, 16, 16) - np.int8(32)
    scale = _half(blocks, 208) * blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    return scale[:, :, None] * q.astype(np.float32)


def dequantise(raw, type_name):
    """raw: [n_blocks, block_bytes] u8. Returns flat f32 values, exactly those the file means."""
    if type_name == "f32":
        return raw.copy().view(np.float32).ravel()
    if type_name == "f16":
        return raw.copy().view(np.float16).astype(np.float32).ravel()
    if type_name == "bf16":
        return (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32).ravel()
    if type_name == "q8_0":
        values = _half(raw, 0) * raw[:, 2:].copy().view(np.int8).astype(np.float32)
    elif type_name == "q4_0":
        values = _half(raw, 0) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)
    elif type_name == "q4_1":
        values = _half(raw, 0) * _nibbles(raw[:, 4:]).astype(np.float32) + _half(raw, 2)
    elif type_name == "q5_0":
        q = _nibbles(raw[:, 6:]) | _fifth_bits(raw, 2)
        values = _half(raw, 0) * (q.astype(np.float32) - 16)
    elif type_name == "q5_1":
        q = _nibbles(raw[:, 8:]) | _fifth_bits(raw, 4)
        values = _half(raw, 0) * q.astype(np.float32) + _half(raw, 2)
    elif type_name in ("q4_k", "q5_k"):
        values = _q4_q5_k(raw, type_name == "q5_k")
    elif type_name == "q6_k":
        values = _q6_k(raw)
    else:
        raise ValueError(f"no dequantisation for {type_name}")
    return values.ravel()
