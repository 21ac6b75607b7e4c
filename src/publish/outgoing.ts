import { type StreamDefinition, schemaOf } from "../define/stream.ts";
import { isLiteral } from "../define/subject.ts";
import { SortieError, shown } from "../errors.ts";
import { decode, encode, validate } from "../schema.ts";

/** Names and values; a name may come more than once. */
export type Headers = readonly (readonly [name: string, value: string])[];

/** The header that says which messages belong together: what a handler publishes carries on what its message had. */
export const correlationHeader = "Sortie-Correlation-Id";

const encoder = new TextEncoder();

const maxSubjectLength = 512; // a subject beyond the server's control line would cost the whole connection

/** A message that is ready to be published: validated and encoded. */
export interface Outgoing {
  /** The stream that must store it; without one, whichever captures the subject. */
  readonly stream?: string;
  readonly subject: string;
  readonly payload: Uint8Array;
  /** A second publish with the same id within the stream's duplicate window stores nothing. */
  readonly id?: string | undefined;
  readonly headers?: Headers;
}

/** Throws `invalid-option` for an id that no header can carry, or that is beyond all use. */
export function assertId(id: string, what: string): void {
  const isText = typeof id === "string" && id.isWellFormed() && /^[^\p{Cc}]{1,255}$/u.test(id);
  if (isText && id.trim() === id) return; // at their ends spaces belong to nobody's header
  throw new SortieError(
    "invalid-option",
    `${what}: expected an id of 1 to 255 characters without control characters and without spaces at its ends, got ${shown(id)}`,
  );
}

/** The stream, of those given, that has a schema for `subject`. Throws `unknown-subject` where none has. */
export function streamFor(streams: readonly StreamDefinition[], subject: string): StreamDefinition {
  const fits = isLiteral(subject) && subject.length <= maxSubjectLength;
  const stream = fits ? streams.find((stream) => schemaOf(stream, subject)) : undefined;
  if (stream) return stream;
  const known = streams.flatMap((stream) => Object.keys(stream.schemas)).join(", ");
  throw new SortieError(
    "unknown-subject",
    `No stream of this app has a schema for "${subject.slice(0, maxSubjectLength)}". It knows: ${known || "no subject at all"}`,
  );
}

/**
 * Encodes a value and checks that what is stored can be read back by the subject's schema.
 * @throws SortieError `unknown-subject`, `invalid-payload`
 */
export function prepare(streams: readonly StreamDefinition[], subject: string, value: unknown): Promise<Outgoing> {
  return preparePayload(streams, subject, encode(subject, value));
}

/** As `prepare`, for a payload that is JSON already; it is stored byte for byte. */
export async function preparePayload(
  streams: readonly StreamDefinition[],
  subject: string,
  payload: Uint8Array,
): Promise<Outgoing> {
  const stream = streamFor(streams, subject);
  const schema = schemaOf(stream, subject);
  if (schema) await validate(subject, schema, decode(subject, payload));
  return { stream: stream.name, subject, payload };
}

/** The bytes that a message's headers take beside its payload (NATS ADR-4): both together must fit the server's max_payload. */
export function headersSize({ id, stream, headers = [] }: Pick<Outgoing, "id" | "stream" | "headers">): number {
  const lines = headers.map(lineOf);
  if (id) lines.push(lineOf(["Nats-Msg-Id", id]));
  if (stream) lines.push(lineOf(["Nats-Expected-Stream", stream]));
  return lines.length === 0 ? 0 : encoder.encode(`NATS/1.0\r\n${lines.join("")}\r\n`).length;
}

/** The bytes that one header takes among others. */
export function lineSize(header: Headers[number]): number {
  return encoder.encode(lineOf(header)).length;
}

function lineOf([name, value]: Headers[number]): string {
  return `${name}: ${value}\r\n`;
}
