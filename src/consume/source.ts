import type { ConsumerDefinition } from "../define/consumer.ts";
import { companionOf, companionsOf } from "../define/own.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { nanosecondsOf, storedMessage } from "../nats/stored-message.ts";
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
  const what = "reading a message that the server gave up on";
  const stored = await storedMessage(connection, consumer.stream.name, { seq }, ms, what);
  if (!stored) return undefined;
  return {
    ...advisory,
    subject: stored.subject,
    data: stored.data,
    bytes: stored.bytes,
    headers: () => stored.headers,
    stream: consumer.stream.name,
    consumer: consumer.name,
    sequence: stored.sequence,
    storedNs: nanosecondsOf(stored.time),
    again: true,
  };
}
