import type { ConsumerDefinition } from "../define/consumer.ts";
import { companionOf, companionsOf } from "../define/own.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { within } from "../nats/within.ts";
import { parkedHeaders } from "./park.ts";

/** Where a consumer's messages come from: its own consumer, and those of Sortie's that stand beside it. */
export interface Source {
  readonly kind: "own" | "parked" | "exhausted";
  readonly stream: string;
  readonly consumer: string;
  /** How many deliveries may be outstanding, over all invocations; Infinity for any number. */
  readonly mostOutstanding: number;
}

/** What a parked copy stands for. */
interface Parked {
  /** The delivery that it is a copy of. */
  readonly delivery: Delivery;
  /** Where that delivery is acknowledged. */
  readonly originAck: string;
  /** When its retry is due, in epoch milliseconds. */
  readonly notBefore: number;
}

export function sourcesOf(consumer: ConsumerDefinition): Source[] {
  const own: Source = {
    kind: "own",
    stream: consumer.stream.name,
    consumer: consumer.name,
    mostOutstanding: consumer.maxAckPending === -1 ? Infinity : consumer.maxAckPending,
  };
  const name = companionOf(consumer);
  return [
    own,
    ...companionsOf(consumer).map(({ kind, stream }) => ({ kind, stream, consumer: name, mostOutstanding: Infinity })),
  ];
}

/** A parked copy as the delivery that it was. */
export function resolveParked(consumer: ConsumerDefinition, copy: Delivery): Parked {
  const [, , , , sequence = "", storedNs = ""] = copy.subject.split(".");
  const headers = copy.headers();
  const value = (name: string) => headers.find(([header]) => header === name)?.[1];
  const own = headers.filter(([name]) => !Object.values<string>(parkedHeaders).includes(name) && !/^Nats-/i.test(name));
  return {
    delivery: {
      ...copy,
      subject: value(parkedHeaders.subject) ?? "",
      headers: () => own,
      stream: consumer.stream.name,
      consumer: consumer.name,
      sequence: Number(sequence),
      storedNs,
      again: true,
    },
    notBefore: Number(value(parkedHeaders.until)),
    originAck: value(parkedHeaders.ack) ?? "",
  };
}

/** The message that the server gave up on, as a delivery; undefined where it is gone. */
export async function resolveExhausted(
  connection: Connection,
  consumer: ConsumerDefinition,
  advisory: Delivery,
  ms: number,
): Promise<Delivery | undefined> {
  const { stream_seq: seq } = JSON.parse(new TextDecoder().decode(advisory.data)) as { stream_seq: number };
  const subject = `$JS.API.STREAM.MSG.GET.${consumer.stream.name}`;
  const got = connection.request(subject, JSON.stringify({ seq }), { timeout: Math.max(1, ms) });
  const { message, error } = (await within(ms, "reading a message that the server gave up on", got)).json<{
    error?: { code: number; description?: string };
    message?: { subject: string; seq: number; time: string; data?: string; hdrs?: string };
  }>();
  if (error?.code === 404) return undefined;
  if (!message) throw new Error(`reading message ${seq} of stream "${consumer.stream.name}": ${error?.description}`);
  const headers = headersIn(bytesOf(message.hdrs));
  const data = bytesOf(message.data);
  return {
    ...advisory,
    subject: message.subject,
    data,
    bytes: data.length + (message.hdrs?.length ?? 0),
    headers: () => headers,
    stream: consumer.stream.name,
    consumer: consumer.name,
    sequence: message.seq,
    storedNs: nanosecondsOf(message.time),
    again: true,
  };
}

function bytesOf(base64 = ""): Uint8Array {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
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

/** An RFC 3339 time of the server as nanoseconds since 1970, in digits. */
function nanosecondsOf(time: string): string {
  const [, seconds = "", fraction = ""] = /^(.{19})(?:\.(\d+))?/.exec(time) ?? [];
  return `${Date.parse(`${seconds}Z`) / 1_000}${fraction.padEnd(9, "0")}`;
}
