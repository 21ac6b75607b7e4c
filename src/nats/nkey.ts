import { SortieError } from "../errors.ts";

/** Signs what the server asks to have signed, with the key of one user. */
export interface Signer {
  /** As the server knows the user: `U…`. */
  publicKey(): Promise<string>;
  /** The signature in base64. */
  sign(text: string): Promise<string>;
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const seedLength = 58;
const prefixes = { seed: 18, user: 20 };
const kinds: Record<string, string> = {
  O: "an operator",
  A: "an account",
  N: "a server",
  C: "a cluster",
  X: "a curve",
};

/**
 * The key of a user's seed. WebCrypto signs with it: the curve in the NATS client is JavaScript, and takes as long as a
 * whole request may on a small plan.
 * @throws SortieError `not-configured`, saying what is wrong with the seed and nothing of what is in it.
 */
export function signerOf(seed: string, setting: string): Signer {
  const key = importKey(rawSeed(seed, setting));
  key.catch(() => {}); // told to whoever signs
  return {
    async publicKey() {
      const { x = "" } = await crypto.subtle.exportKey("jwk", await key);
      const raw = Uint8Array.from(atob(x.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
      const body = Uint8Array.of(prefixes.user << 3, ...raw);
      const sum = crc16(body);
      return encode(Uint8Array.of(...body, sum & 0xff, sum >> 8));
    },
    async sign(text) {
      const signature = await crypto.subtle.sign("Ed25519", await key, new TextEncoder().encode(text));
      return btoa(String.fromCharCode(...new Uint8Array(signature)));
    },
  };
}

async function importKey(raw: Uint8Array) {
  // PKCS #8 (RFC 8410): the only form in which WebCrypto takes a private key without its public one
  const head = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
  return crypto.subtle.importKey("pkcs8", Uint8Array.of(...head, ...raw), { name: "Ed25519" }, true, ["sign"]);
}

function rawSeed(text: string, setting: string): Uint8Array {
  const seed = text.trim();
  const refuse = (got: string) => {
    throw new SortieError(
      "not-configured",
      `${setting}: expected a user's seed, ${seedLength} characters of which the first are SU, got ${got}`,
    );
  };
  if (/^U[A-Z2-7]{55}$/.test(seed)) refuse("a user's public key: its seed is the secret that belongs to it");
  const kind = kinds[/^S([OANCX])[A-Z2-7]+$/.exec(seed)?.[1] ?? ""];
  if (kind) refuse(`the seed of ${kind}, which cannot log in`);
  if (!seed.startsWith("SU")) refuse(`${seed.length} characters that begin otherwise`);
  if (seed.length !== seedLength)
    refuse(`${seed.length}: ${seed.length < seedLength ? "it is cut short" : "too many"}`);
  if (!/^[A-Z2-7]+$/.test(seed)) refuse("characters that are in no seed: it was changed on its way here");
  const bytes = decode(seed);
  const body = bytes.subarray(0, 34);
  const [first = 0, second = 0] = body;
  const whole = crc16(body) === ((bytes[34] ?? 0) | ((bytes[35] ?? 0) << 8));
  const ofUser = first >> 3 === prefixes.seed && (((first & 7) << 5) | (second >> 3)) === prefixes.user << 3;
  if (!whole || !ofUser || encode(bytes) !== seed)
    refuse("one whose checksum does not fit: a character was lost or changed on its way here");
  return body.subarray(2);
}

function decode(text: string): Uint8Array {
  const bytes = new Uint8Array((text.length * 5) >> 3);
  let [bits, held, at] = [0, 0, 0];
  for (const char of text) {
    held = ((held << 5) | alphabet.indexOf(char)) & 0xfff;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = held >> bits;
  }
  return bytes;
}

function encode(bytes: Uint8Array): string {
  let [bits, held, text] = [0, 0, ""];
  for (const byte of bytes) {
    held = ((held << 8) | byte) & 0xfff;
    for (bits += 8; bits >= 5; bits -= 5) text += alphabet[(held >> (bits - 5)) & 31];
  }
  return bits > 0 ? text + alphabet[(held << (5 - bits)) & 31] : text;
}

/** CRC-16/XMODEM. */
function crc16(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) {
    sum ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) sum = (sum << 1) ^ (sum & 0x8000 ? 0x1021 : 0);
    sum &= 0xffff;
  }
  return sum;
}
