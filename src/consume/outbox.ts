import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { assertId, type Outgoing, prepare, streamFor } from "../publish/outgoing.ts";
import { publish } from "../publish/publish.ts";
import { assertSchedules, type ScheduleOptions, scheduled } from "../schedule/schedule.ts";

/** What a handler wants published: checked at once, sent when the handler has succeeded, confirmed before its message is acknowledged. */
export interface Outbox {
  publish(subject: string, data: unknown, options?: { id?: string }): Promise<void>;
  schedule(subject: string, data: unknown, options: ScheduleOptions): Promise<void>;
  /** Publishes everything. Throws the first refusal, of a payload or of the server. */
  flush(ms: number): Promise<void>;
  /** Refuses whatever a handler that was left behind still wants. */
  close(): void;
}

/** Ids are derived from the delivery and the order of the calls, so that what a redelivery publishes again is stored once. */
export function createOutbox(
  connection: Connection,
  streams: readonly StreamDefinition[],
  delivery: Delivery,
  now: () => number,
): Outbox {
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
    publish(subject, data, options) {
      return add(subject, async (id) => {
        if (options?.id !== undefined) assertId(options.id, `A message for "${subject}"`);
        return { ...(await prepare(streams, subject, data)), id: options?.id ?? id };
      });
    },
    schedule(subject, data, options) {
      return add(`schedule ${subject}`, async (id) => {
        assertSchedules(connection, subject);
        const outgoing = await prepare(streams, subject, data);
        const schedule = scheduled(outgoing, streamFor(streams, subject), { ...options, id: options.id ?? id }, now());
        return { ...schedule.outgoing, id };
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
