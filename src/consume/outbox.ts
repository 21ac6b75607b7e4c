import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { assertId, correlationHeader, type Headers, type Outgoing, prepare, streamFor } from "../publish/outgoing.ts";
import { publish } from "../publish/publish.ts";
import { assertSchedules, type ScheduleOptions, scheduled } from "../schedule/schedule.ts";
import type { Message } from "./message.ts";

const traceHeaders = ["traceparent", "tracestate"]; // W3C Trace Context

/** What a handler wants published: checked at once, sent when the handler has succeeded, confirmed before its message is acknowledged. */
export interface Outbox {
  /** How many messages it holds. */
  readonly size: number;
  publish(subject: string, data: unknown, options?: { id?: string }): Promise<void>;
  schedule(subject: string, data: unknown, options: ScheduleOptions): Promise<void>;
  /** Publishes everything. Throws the first refusal, of a payload or of the server. */
  flush(ms: number): Promise<void>;
  /** Refuses whatever a handler that was left behind still wants. */
  close(): void;
}

/**
 * Ids are derived from the delivery and the order of the calls, so that what a redelivery publishes again is stored once.
 * What is published belongs to the message: it carries its correlation id, or its own id where it has none, and its trace.
 */
export function createOutbox(
  connection: Connection,
  streams: readonly StreamDefinition[],
  delivery: Delivery,
  message: Message,
  now: () => number,
): Outbox {
  const headers: Headers = [
    [correlationHeader, visible(message.headers.get(correlationHeader) ?? message.id)],
    ...traceHeaders.flatMap((name) => {
      const value = message.headers.get(name);
      return value ? [[name, visible(value)] as const] : [];
    }),
  ];
  const prepared: Promise<Outgoing>[] = [];
  const ordinals = new Map<string, number>(); // by subject: a handler may call in another order the next time
  let closed = false;

  function add(what: string, make: (id: string) => Promise<Outgoing>): Promise<void> {
    const ordinal = ordinals.get(what) ?? 0;
    ordinals.set(what, ordinal + 1);
    const outgoing = closed ? Promise.reject(tooLate()) : make(derivedId(delivery, `${what}.${ordinal}`));
    if (!closed) prepared.push(outgoing);
    const told = outgoing.then(() => {});
    told.catch(() => {}); // flush tells as well: a handler need not wait for each
    return told;
  }

  return {
    get size() {
      return prepared.length;
    },
    publish(subject, data, options) {
      return add(subject, async (id) => {
        if (options?.id !== undefined) assertId(options.id, `A message for "${subject}"`);
        return { ...(await prepare(streams, subject, data)), id: options?.id ?? id, headers };
      });
    },
    schedule(subject, data, options) {
      return add(`schedule ${subject}`, async (id) => {
        assertSchedules(connection, subject);
        const outgoing = await prepare(streams, subject, data);
        const schedule = scheduled(outgoing, streamFor(streams, subject), { ...options, id: options.id ?? id }, now());
        return { ...schedule.outgoing, id, headers: [...(schedule.outgoing.headers ?? []), ...headers] };
      });
    },
    async flush(ms) {
      const outgoing = await Promise.all(prepared);
      await Promise.all(outgoing.map((each) => publish(connection, each, ms)));
    },
    close() {
      closed = true;
    },
  };
}

function tooLate(): SortieError {
  return new SortieError(
    "timed-out",
    "The handler has ended, or its time is over: nothing is published for it any more",
  );
}

/** What a header can carry of a text that someone else has written. */
function visible(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "?").slice(0, 512);
}
