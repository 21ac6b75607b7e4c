import type { Msg } from "@nats-io/nats-core";

/** A message as the server handed it out, with what its ack subject tells. */
export interface Delivery {
  readonly subject: string;
  readonly data: Uint8Array;
  /** How large it is, its headers included. */
  readonly bytes: number;
  /** The message's headers as they were sent. */
  headers(): readonly (readonly [name: string, value: string])[];
  /** Where a settlement is sent. */
  readonly ackSubject: string;
  readonly stream: string;
  readonly consumer: string;
  /** The message's sequence in its stream. */
  readonly sequence: number;
  /** When the message was stored, as nanoseconds since 1970, in digits. */
  readonly storedNs: string;
  /** Whether it may have been handed out before, so that a handler may have been started for it. */
  readonly again: boolean;
  /** How many more messages wait on the consumer. */
  readonly pending: number;
}

/**
 * Reads the ack subject: `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<timestamp>.<pending>`,
 * with domain and account in front in its longer form (NATS ADR-15). Undefined for anything else, such as a pull's status.
 */
export function deliveryOf(message: Msg): Delivery | undefined {
  const { reply } = message;
  if (!reply?.startsWith("$JS.ACK.")) return undefined;
  const tokens = reply.split(".");
  if (tokens.length < 9) return undefined;
  const from = tokens.length === 9 ? 2 : 4;
  return {
    subject: message.subject,
    data: message.data,
    bytes: sizeOf(message),
    headers: () => headersOf(message),
    ackSubject: reply,
    stream: tokens[from] as string,
    consumer: tokens[from + 1] as string,
    again: tokens[from + 2] !== "1",
    sequence: Number(tokens[from + 3]),
    storedNs: tokens[from + 5] as string,
    pending: Number(tokens[from + 6]),
  };
}

/** The consumer that a settlement sent to an ack subject goes to. */
export function consumerOf(ackSubject: string): { stream: string; consumer: string } {
  const tokens = ackSubject.split(".");
  const from = tokens.length === 9 ? 2 : 4;
  return { stream: tokens[from] as string, consumer: tokens[from + 1] as string };
}

/** A name for this delivery's message that stays the same at every redelivery, and for ever after its stream was made anew. */
export function derivedId(delivery: Delivery, suffix: string | number): string {
  return `${delivery.stream}.${delivery.consumer}.${delivery.sequence}.${delivery.storedNs}.${suffix}`;
}

/** When the message was stored. */
export function storedAt(delivery: Delivery): Date {
  return new Date(Number(delivery.storedNs.slice(0, -6)));
}

/** Both generations of the client know, though their types do not say so. */
function sizeOf(message: Msg & { size?(): number }): number {
  return message.size?.() ?? message.data.length;
}

/** None where the client cannot take the headers apart (a name with a space, say). */
function headersOf(message: Msg): [name: string, value: string][] {
  try {
    const { headers } = message;
    return (headers?.keys() ?? []).flatMap((name) =>
      (headers?.values(name) ?? []).map((value) => [name, value] as [string, string]),
    );
  } catch {
    return [];
  }
}
