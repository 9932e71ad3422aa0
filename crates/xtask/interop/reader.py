"""Reads a log of Exchequer with pymerkle (the tree, RFC 9162) and python-ecdsa (Ed25519): it shares no code with the project.

Usage: reader.py KIT SOURCE, where SOURCE is the log's URL or directory. It rebuilds the whole tree from the entries, compares the roots
of all checkpoints, verifies inclusion and consistency proofs and tlog-proof files, and requires that changed ones are refused.
Exit status 0 only if all of that holds.
"""

import base64
import glob
import hashlib
import os
import struct
import sys
import urllib.request

import pymerkle
from ecdsa import Ed25519, VerifyingKey
from ecdsa.keys import BadSignatureError
from ecdsa.util import MalformedSignature


def require(holds, what):
    if not holds:
        sys.exit(what + ": does not hold")


REFUSALS = (
    ValueError,
    IndexError,
    struct.error,
    BadSignatureError,
    MalformedSignature,
    pymerkle.InvalidProof,
    pymerkle.InvalidChallenge,
)


def refused(what, act, *arguments):
    try:
        act(*arguments)
    except REFUSALS:
        return
    sys.exit(what + " is not refused")


def changes(data, step=1):
    """Copies of the data with one byte changed. Decoders of base64 ignore the last bits before the padding: these are left out."""
    for at in range(0, len(data), step):
        if data[at + 1 : at + 2] != b"=":
            yield at, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def fetch(source, name):
    if source.startswith("http"):
        with urllib.request.urlopen(source + "/" + name) as answer:
            return answer.read()
    with open(os.path.join(source, name), "rb") as file:
        return file.read()


class Key:
    """A verifier key of type 01, and the type 04 key that goes with it."""

    def __init__(self, vkey):
        self.name, given, encoded = vkey.split("+", 2)
        kind, public = base64.b64decode(encoded)[:1], base64.b64decode(encoded)[1:]
        require(kind == b"\x01" and len(public) == 32, "the vkey is of type 01")
        require(self.key_id(1, public).hex() == given, "the vkey's id")
        self.ids = {self.key_id(1, public): 1, self.key_id(4, public): 4}
        self.key = VerifyingKey.from_string(public, curve=Ed25519)

    def key_id(self, kind, public):
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]

    def open(self, note):
        """Size and root of a checkpoint that the log signed and cosigned."""
        text, signatures = note.decode().rsplit("\n\n", 1)
        text += "\n"
        if not signatures.endswith("\n"):
            raise ValueError("the note has no end")
        signed = set()
        for line in signatures[:-1].split("\n"):
            dash, name, encoded = line.split(" ")
            raw = base64.b64decode(encoded, validate=True)
            kind = self.ids.get(raw[:4])
            if dash != "\u2014":
                raise ValueError("not a signature line")
            if name != self.name or kind is None:
                continue
            message, signature = text, raw[4:]
            if kind == 4:
                time = struct.unpack(">Q", signature[:8])[0]
                message, signature = "cosignature/v1\ntime %d\n%s" % (time, text), signature[8:]
            self.key.verify(signature, message.encode())
            signed.add(kind)
        if signed != {1, 4}:
            raise ValueError("signed by %r" % signed)
        lines = text.split("\n")
        if lines[0] != self.name:
            raise ValueError("another origin")
        return int(lines[1]), base64.b64decode(lines[2], validate=True)


def bundle_name(index, size):
    width = min(size - 256 * index, 256)
    groups = ["%03d" % (index % 1000)]
    while index >= 1000:
        index //= 1000
        groups.insert(0, "x%03d" % (index % 1000))
    return "tile/entries/" + "/".join(groups) + ("" if width == 256 else ".p/%d" % width), width


def entries(source, size):
    for index in range((size + 255) // 256):
        name, width = bundle_name(index, size)
        data = fetch(source, name)
        for _ in range(width):
            length = struct.unpack(">H", data[:2])[0]
            require(len(data) >= 2 + length, name)
            yield data[2 : 2 + length]
            data = data[2 + length :]
        require(data == b"", name + " ends with its last entry")


def check_file(key, file, entry, tree):
    """Verifies a tlog-proof file; pymerkle knows the shape of the path, the file has its hashes."""
    head, note = file.split(b"\n\n", 1)
    lines = head.decode().split("\n")
    if lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("index "):
        raise ValueError("not a tlog-proof")
    index = int(lines[1][6:])
    size, root = key.open(note)
    proof = tree.prove_inclusion(index + 1, size)
    base = tree.hash_buff(entry)
    proof.path = [base] + [base64.b64decode(line, validate=True) for line in lines[2:]]
    pymerkle.verify_inclusion(base, root, proof, index=index + 1, size=size)


def main():
    kit, source = sys.argv[1:]
    with open(os.path.join(kit, "vkey")) as file:
        key = Key(file.read())
    note = fetch(source, "checkpoint")
    size, root = key.open(note)
    for at, changed in changes(note, 2):
        refused("a checkpoint with byte %d changed" % at, key.open, changed)

    tree = pymerkle.InmemoryTree(algorithm="sha256")
    leaves = list(entries(source, size))
    for entry in leaves:
        tree.append_entry(entry)
    require(tree.get_root(size) == root, "the root of %d entries" % size)

    earlier = sorted(glob.glob(os.path.join(kit, "checkpoint.*")))
    require(len(earlier) > 1, "the kit has checkpoints")
    for name in earlier:
        with open(name, "rb") as file:
            old_size, old_root = key.open(file.read())
        proof = tree.prove_consistency(old_size, size)
        pymerkle.verify_consistency(old_root, root, proof, prior_size=old_size, later_size=size)
        forged = bytes([old_root[0] ^ 1]) + old_root[1:]
        refused("another root than " + name, pymerkle.verify_consistency, forged, root, proof)
        require(tree.get_root(old_size) == old_root, name)

    files = sorted(glob.glob(os.path.join(kit, "*.tlog-proof")))
    require(len(files) > 1, "the kit has proofs")
    for name in files:
        with open(name, "rb") as file:
            proof = file.read()
        entry = leaves[int(os.path.basename(name).split(".")[0])]
        check_file(key, proof, entry, tree)
        refused("another entry than " + name, check_file, key, proof, entry + b"\0", tree)
        head = proof.index(b"\n\n")
        for at, changed in changes(proof[:head], 31):
            refused("%s with byte %d changed" % (name, at), check_file, key, changed + proof[head:], entry, tree)
    print(
        "python: %s: %d entries; the root, %d earlier checkpoints and %d tlog-proofs hold; every tampered copy is refused"
        % (source, size, len(earlier), len(files))
    )


main()
