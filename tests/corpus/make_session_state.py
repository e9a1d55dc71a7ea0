"""make_session_state.py: seeds of fuzz_session_state (its source says what the bytes mean): true
saves of several lengths and one damage of each field of the header."""
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "session_state")


def write(name, data):
    with open(os.path.join(HERE, name), "wb") as file:
        file.write(bytes(data))


def damaged(n_tokens, n_more=0, patches=()):
    data = bytearray([1, n_tokens]) + struct.pack("b", n_more)
    for at, value in patches:
        data += struct.pack("<HB", at, value)
    return data


def main():
    os.makedirs(HERE, exist_ok=True)
    for n in (0, 1, 16, 23, 40, 62, 64):
        write(f"ok_{n}", damaged(n))
    write("bad_empty", [0])
    write("bad_magic", [0] + list(b"KRSTATF" + bytes(70)))
    write("bad_header_cut", [0] + list(b"KRSTATE\0\1\0\0\0\x40"))
    write("bad_zeros", [0] + [0] * 200)
    write("bad_cut", damaged(20, -1))
    write("bad_more", damaged(20, 100))
    fields = {"version": 8, "header_bytes": 12, "fingerprint": 24, "payload": 32,
              "payload_high": 39, "n_tokens": 40, "n_tokens_high": 43, "n_groups": 44,
              "first_0": 48, "first_1": 52, "first_1_high": 55, "first_3": 60}
    for name, at in fields.items():
        write(f"bad_{name}", damaged(40, 0, [(at, 0xff)]))
    write("bad_first_less", damaged(60, 0, [(48, 0), (52, 0)]))
    write("ok_other_length", damaged(40, 0, [(40, 41)]))  # as many pages: only the hash knew
    write("ok_nan", damaged(20, 0, [(64 + i, 0x7f) for i in range(1, 64, 2)]))


if __name__ == "__main__":
    main()
