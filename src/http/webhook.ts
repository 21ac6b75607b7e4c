import { bytesOf, type Secret } from "./access.ts";
import { RequestError } from "./problem.ts";

/** What a signature is made of and found by (Standard Webhooks). */
export interface Signed {
  readonly id: string;
  /** Throws `unauthorized` unless the body was signed with one of the secrets for its subject, and is still in time. */
  verify(body: Uint8Array): Promise<void>;
}

/** What a webhook is looked at by. */
export interface Expected {
  readonly secrets: readonly Secret[];
  readonly subject: string;
  /** How far from now its time may be. */
  readonly windowMs: number;
  readonly now: () => number;
}

/** The furthest that a webhook's time may be from now, however long its stream remembers ids. */
export const longestWindowMs = 5 * 60_000;
const encoder = new TextEncoder();

/**
 * What a webhook shows, for a subject that its secret is for. Its time is looked at before its body is read, and once more
 * when that has come: a body may be slow on purpose.
 * @throws RequestError `unauthorized`, in the same words whatever is wrong with it.
 */
export function signedBy(headers: Headers, { secrets, subject, windowMs, now }: Expected): Signed {
  const own = secrets.filter((secret) => secret.subject === subject);
  const [id, timestamp, signature] = ["id", "timestamp", "signature"].map(
    (name) => headers.get(`webhook-${name}`) ?? "",
  );
  const signatures = signaturesIn(signature ?? "");
  const isInTime = () => /^\d{1,12}$/.test(timestamp ?? "") && Math.abs(Number(timestamp) * 1_000 - now()) <= windowMs;
  if (!id || !isVisible(id) || !isInTime() || own.length === 0 || signatures.length === 0) throw refused();
  return {
    id,
    async verify(body) {
      const head = encoder.encode(`${id}.${timestamp}.`);
      const signed = new Uint8Array(head.length + body.length);
      signed.set(head);
      signed.set(body, head.length);
      const tried = own.map(async ({ bytes }) => {
        const key = await crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
        return Promise.all(signatures.map((one) => crypto.subtle.verify("HMAC", key, one, signed)));
      });
      if (!(await Promise.all(tried)).flat().includes(true) || !isInTime()) throw refused();
    },
  };
}

/** Whether a text can be a message's id: visible ASCII, so that no header is made of it but its own. */
export function isVisible(id: string): boolean {
  return /^[\x21-\x7e]{1,255}$/.test(id);
}

function refused(): RequestError {
  return new RequestError(
    "unauthorized",
    "Expected a signature of Standard Webhooks (webhook-id, webhook-timestamp and webhook-signature) by a secret for this subject, made just now",
  );
}

/** As many as a provider sends while it replaces a secret, and not as many as somebody makes up. */
function signaturesIn(header: string): Uint8Array<ArrayBuffer>[] {
  const some = header.split(" ").slice(0, 8);
  return some.flatMap((one) => (one.startsWith("v1,") ? (bytesOf(one.slice(3)) ?? []) : []));
}
