import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { type Outgoing, prepare, streamFor } from "../publish/outgoing.ts";
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
  let closed = false;

  function add(make: (id: string) => Promise<Outgoing>): Promise<void> {
    const outgoing = closed ? Promise.reject(tooLate()) : make(derivedId(delivery, prepared.length));
    if (!closed) prepared.push(outgoing);
    const told = outgoing.then(() => {});
    told.catch(() => {}); // flush tells as well: a handler need not wait for each
    return told;
  }

  return {
    publish(subject, data, options) {
      return add(async (id) => ({ ...(await prepare(streams, subject, data)), id: options?.id ?? id }));
    },
    schedule(subject, data, options) {
      return add(async (id) => {
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
