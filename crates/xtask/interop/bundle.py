"""Verifies a result bundle of Exchequer with securesystemslib (DSSE) and jsonschema: it shares no code with the project.

Usage: bundle.py KIT, a directory with `agent.pem`, `agent.hex`, `other.hex`, `schema.json` and `kept/`, which `exchequer run --bundle`
wrote. It verifies the envelope by the public key, holds the payload to the schema and to its canonical encoding, compares the files with
the subjects by SHA-256, and requires that changed copies are refused. Exit status 0 only if all of that holds.
"""

import base64
import copy
import hashlib
import json
import os
import sys

import jsonschema
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import SSlibKey


def require(holds, what):
    if not holds:
        sys.exit(what + ": does not hold")


def read(*path):
    with open(os.path.join(sys.argv[1], *path), "rb") as file:
        return file.read()


def key_of(hexed):
    """The key under the id that docs/bundle.md derives: SHA-256 of its SubjectPublicKeyInfo."""
    der = bytes.fromhex("302a300506032b6570032100" + hexed)
    return SSlibKey(hashlib.sha256(der).hexdigest(), "ed25519", "ed25519", {"public": hexed})


def verify(envelope, key):
    # The library's reader changes what it reads.
    return Envelope.from_dict(copy.deepcopy(envelope)).verify([key], 1)


def refused(what, envelope, key):
    try:
        verify(envelope, key)
    except (VerificationError, UnverifiedSignatureError, ValueError):
        return
    sys.exit(what + " is not refused")


def flipped(encoded, at):
    raw = bytearray(base64.b64decode(encoded, validate=True))
    raw[at % len(raw)] ^= 1
    return base64.b64encode(bytes(raw)).decode()


def changed(envelope, change):
    other = copy.deepcopy(envelope)
    change(other)
    return other


def canonical(value):
    """RFC 8785 for what is in a bundle: whole numbers, names of ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


envelope = json.loads(read("kept", "bundle.dsse.json"))
key = key_of(read("agent.hex").decode().strip())
pem = b"".join(line for line in read("agent.pem").splitlines() if not line.startswith(b"-"))
require(hashlib.sha256(base64.b64decode(pem)).hexdigest() == key.keyid, "agent.pem is the key of agent.hex")
require(verify(envelope, key) == {key.keyid: key}, "the signature")
require(envelope["payloadType"] == "application/vnd.in-toto+json", "the payload's type")

payload = base64.b64decode(envelope["payload"], validate=True)
statement = json.loads(payload)
require(canonical(statement) == payload, "the payload is in its canonical encoding")
schema = json.loads(read("schema.json"))
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
validator.validate(statement)
for path, value in [
    (("predicate", "signing_status"), "maybe"),
    (("predicate", "result", "cause"), "vanished"),
    (("predicate", "outcome", "hash"), "00"),
    (("predicate", "unknown"), 1),
    (("subject",), []),
]:
    other = copy.deepcopy(statement)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    require(not validator.is_valid(other), "the schema refuses another " + ".".join(path))
for name in statement["predicate"]:
    other = copy.deepcopy(statement)
    del other["predicate"][name]
    require(validator.is_valid(other) == (name == "usage"), "the schema asks for " + name)

digests = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
require(list(digests) == ["stdout", "stderr", "artifacts/made.txt", "result"], "the subjects are those of the execution")
for name, digest in digests.items():
    require(hashlib.sha256(read("kept", name)).hexdigest() == digest, "the digest of " + name)
require(canonical(statement["predicate"]["result"]) == read("kept", "result"), "the result is the predicate's")
require(statement["predicate"]["signing_status"] == "signed", "the bundle says that it is signed")
require(statement["predicate"]["agent"]["public_key"] == key.keyval["public"], "the bundle names its key")

count = 0
for at in range(0, len(payload), 97):
    refused("payload byte %d" % at, changed(envelope, lambda e: e.update(payload=flipped(e["payload"], at))), key)
    count += 1
for at in range(64):
    sig = flipped(envelope["signatures"][0]["sig"], at)
    refused("signature byte %d" % at, changed(envelope, lambda e: e["signatures"][0].update(sig=sig)), key)
    count += 1
refused("another payloadType", changed(envelope, lambda e: e.update(payloadType="application/json")), key)
refused("no signature", changed(envelope, lambda e: e.update(signatures=[])), key)
other = key_of(read("other.hex").decode().strip())
refused("another key", envelope, other)
renamed = changed(envelope, lambda e: e["signatures"][0].update(keyid=other.keyid))
refused("another key under the bundle's id", renamed, other)
print("securesystemslib: the bundle verifies, %d changed copies are refused" % (count + 4))
