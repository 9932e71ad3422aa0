// Verifies a result bundle of Exchequer with @sigstore/verify: it shares no code with the project.
//
// Usage: node bundle.cjs MODULES KIT, where MODULES is the folder in which npm installed the packages and KIT a directory with
// `agent.pem`, `other.pem` and `kept/bundle.dsse.json`. The envelope is put into a Sigstore bundle that names the public key by its id, as
// that library takes it; no certificate, log or timestamp is asked of it. Changed copies have to be refused. Exit status 0 only if all of
// that holds.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");

const [modules, kit] = process.argv.slice(2).map((folder) => path.resolve(folder));
const load = createRequire(path.join(modules, "package.json"));
const { bundleFromJSON, ValidationError } = load("@sigstore/bundle");
const { Verifier, VerificationError, toSignedEntity, toTrustMaterial } = load("@sigstore/verify");

function requireThat(holds, what) {
  if (!holds) {
    console.error(`${what}: does not hold`);
    process.exit(1);
  }
}

const read = (name) => fs.readFileSync(path.join(kit, name), "utf8");

// The id that docs/bundle.md derives: SHA-256 of the key's SubjectPublicKeyInfo.
function keyId(pem) {
  const der = crypto.createPublicKey(pem).export({ type: "spki", format: "der" });
  return crypto.createHash("sha256").update(der).digest("hex");
}

// Keys are found by the id in the bundle, which is the caller's to choose: `named` is the id under which the key is known.
function verify(envelope, pem, named = keyId(pem)) {
  const none = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
  const der = crypto.createPublicKey(pem).export({ type: "spki", format: "der" });
  const trust = toTrustMaterial(none, { [named]: { rawBytes: der, publicKey: pem } });
  const bundle = bundleFromJSON({
    mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
    verificationMaterial: { publicKey: { hint: envelope.signatures[0]?.keyid ?? named }, tlogEntries: [] },
    dsseEnvelope: envelope,
  });
  const thresholds = { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 };
  return new Verifier(trust, thresholds).verify(toSignedEntity(bundle));
}

function refused(what, envelope, pem, named) {
  try {
    verify(envelope, pem, named);
  } catch (error) {
    requireThat(error instanceof VerificationError || error instanceof ValidationError, `${what}: ${error}`);
    return;
  }
  requireThat(false, `${what} is refused`);
}

function flipped(encoded, at) {
  const raw = Buffer.from(encoded, "base64");
  raw[at % raw.length] ^= 1;
  return raw.toString("base64");
}

const text = read("kept/bundle.dsse.json");
function changed(change) {
  const envelope = JSON.parse(text);
  change(envelope);
  return envelope;
}

const [agent, other] = [read("agent.pem"), read("other.pem")];
const envelope = JSON.parse(text);
requireThat(envelope.signatures[0].keyid === keyId(agent), "the key id is the digest of agent.pem");
verify(envelope, agent);

const length = Buffer.from(envelope.payload, "base64").length;
let count = 0;
for (let at = 0; at < length; at += 97) {
  refused(`payload byte ${at}`, changed((e) => (e.payload = flipped(e.payload, at))), agent);
  count += 1;
}
for (let at = 0; at < 64; at += 1) {
  refused(`signature byte ${at}`, changed((e) => (e.signatures[0].sig = flipped(e.signatures[0].sig, at))), agent);
  count += 1;
}
refused("another payloadType", changed((e) => (e.payloadType = "application/json")), agent);
refused("no signature", changed((e) => (e.signatures = [])), agent);
refused("another key", envelope, other);
refused("another key under the bundle's id", envelope, other, keyId(agent));
console.log(`@sigstore/verify: the bundle verifies, ${count + 4} changed copies are refused`);
