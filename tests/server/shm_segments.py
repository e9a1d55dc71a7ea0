"""Segments of shared memory as a client of the runtime makes and takes them (app/rpc/shm.h), in
Python: named ones, and descriptors over a Unix socket."""
import array
import json
import os
import secrets
import socket
import struct

FOLDER = "/dev/shm"
HEAD = struct.Struct("<IIQIIQQQ16s")
MAGIC, VERSION = 0x4d53524b, 1
DTYPES = {"u8": (1, "B"), "i32": (2, "i"), "f32": (3, "f")}


def started(pid="self"):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def new_name(pid=None):
    space = os.stat("/proc/self/ns/pid").st_ino
    begin = started(pid or "self")
    return f"/kr.{space:x}.{pid or os.getpid():x}.{begin:x}.{secrets.token_hex(16)}"


def left(pid):
    """Names of the segments that this process has made."""
    return [name for name in os.listdir(FOLDER)
            if name.startswith("kr.") and name.split(".")[2] == f"{pid:x}"]


def header(descriptor, **changes):
    fields = {"magic": MAGIC, "version": VERSION, "generation": descriptor["generation"],
              "type": DTYPES[descriptor["dtype"]][0], "n_dims": len(descriptor["shape"]),
              "d0": descriptor["shape"][0], "d1": (*descriptor["shape"], 0)[1],
              "bytes": descriptor["bytes"], "tail": bytes(16), **changes}
    return HEAD.pack(*fields.values())


def describe(dtype, values, generation, shape=None):
    """The descriptor without its kind and name, and the payload."""
    payload = array.array(DTYPES[dtype][1], values).tobytes()
    return {"generation": generation, "dtype": dtype, "shape": shape or [len(values)],
            "bytes": len(payload)}, payload


def make_named(descriptor, payload, name=None, **changes):
    """Writes the segment and returns its whole descriptor."""
    name = name or new_name()
    fd = os.open(FOLDER + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.write(fd, header(descriptor, **changes) + payload)
    os.close(fd)
    return {"kind": "posix", "name": name, **descriptor}


def make_memfd(descriptor, payload, **changes):
    """A descriptor of a file, and the descriptor for the message."""
    fd = os.memfd_create("test")
    os.write(fd, header(descriptor, **changes) + payload)
    return fd, {"kind": "memfd", **descriptor}


def values_of(data, descriptor):
    """Checks the header of a whole segment and returns its payload's values."""
    if data[:HEAD.size] != header(descriptor):
        raise AssertionError((data[:HEAD.size], descriptor))
    return array.array(DTYPES[descriptor["dtype"]][1], data[HEAD.size:])


def take_named(descriptor, keeps=False):
    path = FOLDER + descriptor["name"]
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o777 != 0o600:
            raise AssertionError("others may open it")
        if not keeps:
            os.unlink(path)
        return values_of(file.read(), descriptor)


class FdClient:
    """One connection to the runtime's socket that sends and receives descriptors; strictly one
    call after another."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(120)
        self.text, self.fds, self.last_id, self.generation = b"", [], 0, 0

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.socket.close()

    def next_generation(self):
        self.generation += 1
        return self.generation

    def call(self, method, fds=(), **params):
        """The whole answer."""
        self.last_id += 1
        line = json.dumps({"jsonrpc": "2.0", "id": self.last_id, "method": method,
                           "params": params}).encode() + b"\n"
        if fds:
            n = socket.send_fds(self.socket, [line], list(fds))
            line = line[n:]
        self.socket.sendall(line)
        while b"\n" not in self.text:
            data, fds, _, _ = socket.recv_fds(self.socket, 65536, 64)
            if not data:
                raise AssertionError("the runtime has gone")
            self.text += data
            self.fds += fds
        line, _, self.text = self.text.partition(b"\n")
        return json.loads(line)

    def take(self, descriptor):
        """The values of the descriptor's segment; its file stays in taken."""
        for fd in self.fds:
            data = os.pread(fd, os.fstat(fd).st_size, 0)
            if HEAD.unpack(data[:HEAD.size])[2] == descriptor["generation"]:
                self.fds.remove(fd)
                self.taken = fd
                return values_of(data, descriptor)
        raise AssertionError(f"no descriptor came for {descriptor}")
