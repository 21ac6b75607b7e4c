import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

/** Files in PEM. */
export interface Certificates {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** Makes an authority of one's own, and a certificate of it for localhost and 127.0.0.1, in `folder`. */
export async function makeCertificates(folder: string): Promise<Certificates> {
  const [authority, server] = [keyPair(), keyPair()];
  const isAuthority = extension("551d13", sequence(tlv(0x01, Buffer.of(0xff))), true);
  const names = [tlv(0x82, Buffer.from("localhost")), tlv(0x87, Buffer.of(127, 0, 0, 1))];
  const files = {
    ca: certificate("Test CA", authority.publicKey, authority.privateKey, isAuthority),
    cert: certificate("localhost", server.publicKey, authority.privateKey, extension("551d11", sequence(...names))),
    key: server.privateKey.export({ type: "pkcs8", format: "pem" }) as string,
  };
  const write = async (name: keyof Certificates) => {
    const path = join(folder, `${name}.pem`);
    await writeFile(path, files[name]);
    return path;
  };
  const [ca, cert, key] = await Promise.all([write("ca"), write("cert"), write("key")]);
  return { ca, cert, key };
}

const keyPair = () => generateKeyPairSync("ec", { namedCurve: "P-256" });

/** X.509 v3 (RFC 5280), as little of it as a certificate needs; Node reads them, but makes none. */
function certificate(name: string, subject: KeyObject, issuer: KeyObject, ...extensions: Buffer[]): string {
  const algorithm = sequence(oid("2a8648ce3d040302")); // ECDSA with SHA-256
  const day = (offset: number) => tlv(0x17, Buffer.from(utcTime(Date.now() + offset * 86_400_000)));
  const body = sequence(
    tlv(0xa0, tlv(0x02, Buffer.of(2))),
    tlv(0x02, Buffer.of(1, ...crypto.getRandomValues(new Uint8Array(8)))),
    algorithm,
    commonName("Test CA"),
    sequence(day(-1), day(1)),
    commonName(name),
    subject.export({ type: "spki", format: "der" }),
    tlv(0xa3, sequence(...extensions)),
  );
  const signature = tlv(0x03, Buffer.concat([Buffer.of(0), sign("sha256", body, issuer)]));
  const base64 = sequence(body, algorithm, signature).toString("base64");
  return `-----BEGIN CERTIFICATE-----\n${base64.replace(/.{64}/g, "$&\n")}\n-----END CERTIFICATE-----\n`;
}

function commonName(name: string): Buffer {
  return sequence(tlv(0x31, sequence(oid("550403"), tlv(0x0c, Buffer.from(name)))));
}

function extension(id: string, value: Buffer, critical = false): Buffer {
  return sequence(oid(id), ...(critical ? [tlv(0x01, Buffer.of(0xff))] : []), tlv(0x04, value));
}

function utcTime(ms: number): string {
  return `${new Date(ms).toISOString().replace(/[-:T]/g, "").slice(2, 14)}Z`;
}

const oid = (hex: string) => tlv(0x06, Buffer.from(hex, "hex"));
const sequence = (...parts: Buffer[]) => tlv(0x30, Buffer.concat(parts));

function tlv(tag: number, value: Buffer): Buffer {
  const { length } = value;
  const size = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.of(tag, ...size), value]);
}
