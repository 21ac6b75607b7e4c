import type { Message } from "../define/message.ts";
import { SortieError } from "../errors.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { assertId, correlationHeader, type Headers, prepare, streamFor } from "../publish/outgoing.ts";
import { publish } from "../publish/publish.ts";
import { type Named, type ScheduleOptions, scheduled } from "../schedule/schedule.ts";
import { type Cancelled, createSchedules, type Where } from "../schedule/schedules.ts";
import { assertAlone, assertOptions } from "../schedule/when.ts";
import type { Circumstances } from "./circumstances.ts";

/** Has one of them stored, within a time. */
type Send = (ms: number) => Promise<unknown>;

const traceHeaders = ["traceparent", "tracestate"]; // W3C Trace Context

/**
 * What a handler wants published: checked at once, sent when the handler has succeeded, confirmed before its message is
 * acknowledged. Ids are derived from the delivery and the order of the calls, so that what a redelivery publishes again is
 * stored once. What is published belongs to the message: it carries its correlation id, or its own id where it has none,
 * and its trace.
 */
export class Outbox {
  readonly #shared: Pick<Circumstances, "connection" | "streams" | "clock">;
  readonly #delivery: Delivery;
  readonly #message: Message;
  // made when they are first needed: many handlers publish nothing
  #prepared: Promise<Send>[] | undefined;
  #ordinals: Map<string, number> | undefined; // by subject: a handler may call in another order the next time
  #ids: Set<string> | undefined;
  #closed = false;

  constructor(shared: Pick<Circumstances, "connection" | "streams" | "clock">, delivery: Delivery, message: Message) {
    this.#shared = shared;
    this.#delivery = delivery;
    this.#message = message;
  }

  /** How many messages it holds. */
  get size(): number {
    return this.#prepared?.length ?? 0;
  }

  // handlers take these out of their context

  readonly publish = (subject: string, data: unknown, options?: { id?: string }): Promise<void> =>
    this.#add(subject, async (id, headers) => {
      if (options?.id !== undefined) this.#assertFresh(options.id, `A message for "${subject}"`);
      const outgoing = { ...(await prepare(this.#shared.streams, subject, data)), id: options?.id ?? id, headers };
      return (ms) => publish(this.#shared.connection, outgoing, ms);
    });

  readonly schedule = (subject: string, data: unknown, options: ScheduleOptions): Promise<void> =>
    this.#add(`schedule ${subject}`, async (id, headers) => {
      const { connection, streams, clock } = this.#shared;
      assertOptions(options, 'options such as { in: "30s" }', `A schedule for "${subject}"`);
      const { id: given, ...when } = options;
      assertAlone(when, `A schedule for "${subject}"`);
      const outgoing = { ...(await prepare(streams, subject, data)), id, headers };
      const named = { ...when, id: given ?? id, nameless: given === undefined } as Named;
      return scheduled(connection, outgoing, streamFor(streams, subject), named, clock.now()).store;
    });

  readonly cancel = async (id: string, where?: Where): Promise<Cancelled> => {
    if (this.#closed) throw tooLate();
    const { connection, streams, clock } = this.#shared;
    const schedules = createSchedules(connection, streams, { ms: clock.remaining(), now: () => clock.now() });
    return schedules.cancel(id, where);
  };

  /** Publishes everything. Throws the first refusal, of a payload or of the server. */
  async flush(ms: number): Promise<void> {
    const sends = await Promise.all(this.#prepared ?? []);
    await Promise.all(sends.map((send) => send(ms)));
  }

  /** A second message with an id would be taken for the first, and stored nowhere. */
  #assertFresh(id: string, what: string): void {
    assertId(id, what);
    this.#ids ??= new Set();
    if (this.#ids.has(id)) {
      throw new SortieError(
        "invalid-option",
        `${what}: expected an id of its own, got "${id}", with which this handler publishes another one`,
      );
    }
    this.#ids.add(id);
  }

  /** Refuses whatever a handler that was left behind still wants. */
  close(): void {
    this.#closed = true;
  }

  #add(what: string, make: (id: string, headers: Headers) => Promise<Send>): Promise<void> {
    this.#prepared ??= [];
    this.#ordinals ??= new Map();
    const ordinal = this.#ordinals.get(what) ?? 0;
    this.#ordinals.set(what, ordinal + 1);
    const id = derivedId(this.#delivery, `${what}.${ordinal}`);
    const outgoing = this.#closed ? Promise.reject(tooLate()) : make(id, belongingTo(this.#message));
    if (!this.#closed) this.#prepared.push(outgoing);
    const told = outgoing.then(() => {});
    told.catch(() => {}); // flush tells as well: a handler need not wait for each
    return told;
  }
}

function tooLate(): SortieError {
  return new SortieError(
    "timed-out",
    "The handler has ended, or its time is over: nothing is published for it any more",
  );
}

/** The headers of what belongs to a message. */
function belongingTo({ headers, id }: Message): Headers {
  const has = (name: string) => headers.get(name) ?? [...headers].find(([other]) => other.toLowerCase() === name)?.[1];
  return [
    [correlationHeader, visible(headers.get(correlationHeader) ?? id)],
    ...traceHeaders.flatMap((name) => {
      const value = has(name); // a foreign producer may write it as it likes
      return value ? [[name, visible(value)] as const] : [];
    }),
  ];
}

/** What a header can carry of a text that someone else has written. */
function visible(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "?").slice(0, 512);
}
