import { isLiteral } from "../define/subject.ts";
import { entriesOf, malformedEntry } from "./access.ts";
import { RequestError } from "./problem.ts";

/** What a signature is made of and found by (Standard Webhooks). */
export interface Signed {
  readonly id: string;
  /** Throws `unauthorized` unless the body was signed with one of the secrets for its subject. */
  verify(body: Uint8Array): Promise<void>;
}

const longestMs = 5 * 60_000;
const leastBytes = 24;
const encoder = new TextEncoder();

/**
 * What a webhook shows, for a subject that its secret is for. It is taken within `windowMs` around its time: not longer than
 * half of what the stream remembers ids for, so that one that is sent again is always a duplicate.
 * @throws RequestError `unauthorized`, in the same words whatever is wrong with it; `not-configured` for a malformed secret.
 */
export function signedBy(
  headers: Headers,
  { setting, subject, rememberedMs, now }: { setting: string; subject: string; rememberedMs: number; now: number },
): Signed {
  const secrets = secretsIn(setting).filter(({ subjects }) => subjects.includes(subject));
  const [id, timestamp, signature] = ["id", "timestamp", "signature"].map(
    (name) => headers.get(`webhook-${name}`) ?? "",
  );
  const signatures = signaturesIn(signature ?? "");
  const windowMs = Math.min(longestMs, rememberedMs / 2);
  const isInTime = /^\d{1,12}$/.test(timestamp ?? "") && Math.abs(Number(timestamp) * 1_000 - now) <= windowMs;
  if (!id || !isVisible(id) || !isInTime || secrets.length === 0 || signatures.length === 0) throw refused(windowMs);
  return {
    id,
    async verify(body) {
      const signed = new Uint8Array([...encoder.encode(`${id}.${timestamp}.`), ...body]);
      const tried = secrets.map(async ({ bytes }) => {
        const key = await crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
        return Promise.all(signatures.map((one) => crypto.subtle.verify("HMAC", key, one, signed)));
      });
      if (!(await Promise.all(tried)).flat().includes(true)) throw refused(windowMs);
    },
  };
}

/** Whether a text can be a message's id: visible ASCII, so that no header is made of it but its own. */
export function isVisible(id: string): boolean {
  return /^[\x21-\x7e]{1,255}$/.test(id);
}

function refused(windowMs: number): RequestError {
  return new RequestError(
    "unauthorized",
    `Expected a signature of Standard Webhooks (webhook-id, webhook-timestamp and webhook-signature) by a secret for this subject, not more than ${windowMs / 1_000} s old`,
  );
}

function secretsIn(setting: string): { subjects: string[]; bytes: Uint8Array<ArrayBuffer> }[] {
  return entriesOf(setting).map((entry, at) => {
    const [, names = "", secret = ""] = /^(.+):whsec_(.*)$/.exec(entry) ?? [];
    const [subjects, bytes] = [names.split(","), bytesOf(secret)];
    if (!bytes || bytes.length < leastBytes || !subjects.every(isLiteral)) {
      const expected = `subjects without wildcards and a secret of ${leastBytes} bytes or more, as in "payments.received:whsec_<base64>"`;
      throw malformedEntry("webhooks", at, expected);
    }
    return { subjects, bytes };
  });
}

/** As many as a provider sends while it replaces a secret, and not as many as somebody makes up. */
function signaturesIn(header: string): Uint8Array<ArrayBuffer>[] {
  const some = header.split(" ").slice(0, 8);
  return some.flatMap((one) => (one.startsWith("v1,") ? (bytesOf(one.slice(3)) ?? []) : []));
}

function bytesOf(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}
