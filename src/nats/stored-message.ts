import type { Connection } from "./connection.ts";
import { within } from "./within.ts";

/** A message as a stream has stored it. */
export interface StoredMessage {
  readonly subject: string;
  readonly sequence: number;
  readonly data: Uint8Array;
  /** How large it is, its headers included. */
  readonly bytes: number;
  readonly headers: readonly (readonly [name: string, value: string])[];
  /** When it was stored, as an RFC 3339 time of the server's clock. */
  readonly time: string;
}

/** Which message: the one with a sequence, the latest of a subject, or the next of a pattern from a sequence on. */
export type Which =
  | { readonly seq: number }
  | { readonly last_by_subj: string }
  | { readonly next_by_subj: string; readonly seq: number };

/**
 * Asks a stream's leader for a message; undefined where there is none.
 * @throws Error with the server's description of what is wrong, or what the client throws.
 */
export async function storedMessage(
  connection: Connection,
  stream: string,
  which: Which,
  ms: number,
  what: string,
): Promise<StoredMessage | undefined> {
  const subject = `$JS.API.STREAM.MSG.GET.${stream}`;
  const got = connection.request(subject, JSON.stringify(which), { timeout: Math.max(1, ms) });
  const { message, error } = (await within(ms, what, got)).json<{
    error?: { code: number; err_code?: number; description?: string };
    message?: { subject: string; seq: number; time: string; data?: string; hdrs?: string };
  }>();
  if (error?.err_code === 10037) return undefined;
  if (!message) throw new Error(`${what} of stream "${stream}": ${error?.description}`);
  const data = bytesOf(message.data);
  const block = bytesOf(message.hdrs);
  return {
    subject: message.subject,
    sequence: message.seq,
    data,
    bytes: data.length + block.length,
    headers: headersIn(block),
    time: message.time,
  };
}

function bytesOf(base64 = ""): Uint8Array {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at); // Uint8Array.from takes ten times as long
  return bytes;
}

/** The lines of a header block (NATS ADR-4). */
function headersIn(block: Uint8Array): [name: string, value: string][] {
  return new TextDecoder()
    .decode(block)
    .split("\r\n")
    .slice(1)
    .flatMap((line) => {
      const colon = line.indexOf(":");
      return colon > 0 ? [[line.slice(0, colon), line.slice(colon + 1).trim()] as [string, string]] : [];
    });
}

/** A header's first value; undefined where there is none. */
export function headerOf({ headers }: Pick<StoredMessage, "headers">, name: string): string | undefined {
  return headers.find(([header]) => header === name)?.[1];
}

/** An RFC 3339 time of the server as nanoseconds since 1970, in digits. */
export function nanosecondsOf(time: string): string {
  const [, seconds = "", fraction = ""] = /^(.{19})(?:\.(\d+))?/.exec(time) ?? [];
  return `${Date.parse(`${seconds}Z`) / 1_000}${fraction.padEnd(9, "0")}`;
}
