import type { Msg } from "@nats-io/nats-core";

/** A message as the server handed it out, with what its ack subject tells. */
export interface Delivery {
  readonly message: Msg;
  /** Where a settlement is sent. */
  readonly ackSubject: string;
  readonly stream: string;
  readonly consumer: string;
  /** The message's sequence in its stream. */
  readonly sequence: number;
  /** How often the server has handed this message out on this consumer, this time included. */
  readonly deliveryCount: number;
  /** When the message was stored, as nanoseconds since 1970, in digits. */
  readonly storedNs: string;
  /** How many more messages wait on the consumer. */
  readonly pending: number;
}

/**
 * Reads the ack subject: `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<timestamp>.<pending>`,
 * with domain and account in front in its longer form (NATS ADR-15). Undefined for anything else, such as a pull's status.
 */
export function deliveryOf(message: Msg): Delivery | undefined {
  const tokens = message.reply?.split(".") ?? [];
  if (tokens[0] !== "$JS" || tokens[1] !== "ACK" || tokens.length < 9) return undefined;
  const [stream, consumer, delivered, sequence, , storedNs, pending] = tokens.slice(tokens.length === 9 ? 2 : 4);
  return {
    message,
    ackSubject: message.reply as string,
    stream: stream as string,
    consumer: consumer as string,
    sequence: Number(sequence),
    deliveryCount: Number(delivered),
    storedNs: storedNs as string,
    pending: Number(pending),
  };
}

/** A name for this delivery's message that stays the same at every redelivery, and for ever after its stream was made anew. */
export function derivedId(delivery: Delivery, suffix: string | number): string {
  return `${delivery.stream}.${delivery.consumer}.${delivery.sequence}.${delivery.storedNs}.${suffix}`;
}

/** When the message was stored. */
export function storedAt(delivery: Delivery): Date {
  return new Date(Number(delivery.storedNs.slice(0, -6)));
}

/** The message's headers as they were sent; none where the client cannot take them apart (a name with a space, say). */
export function headersOf(message: Msg): [name: string, value: string][] {
  try {
    const { headers } = message;
    return (headers?.keys() ?? []).flatMap((name) =>
      (headers?.values(name) ?? []).map((value) => [name, value] as [string, string]),
    );
  } catch {
    return [];
  }
}
