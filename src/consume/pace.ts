import { rateSubject, ratesStream } from "../define/own.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { point } from "../nats/within.ts";
import { failedBefore, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keyOf, messageOf } from "./key.ts";
import type { Attempts } from "./ledger.ts";
import { type Paced, planSlots, rescaled, type Slot } from "./slots.ts";

/** Keeps the handlers of all invocations of a consumer within its rate limit. */
export interface Pace {
  /** Whether each key has a limit of its own: who waits for it keeps no place, and no start, from the others meanwhile. */
  readonly byKey: boolean;
  /** Whether it is known of a message what limit it is under. */
  knows(one: Held): boolean;
  /** Reads a message, and finds that. Answers how it is to leave where that fails. */
  find(one: Held, attempts: Attempts): Promise<Outcome | undefined>;
  /** When a handler may be started for it, by what is known here, in epoch milliseconds. */
  nextFor(one: Held): number;
  /**
   * Takes a start for a message, of those that come within `ms` and the invocation's time; else answers when to ask again,
   * as one that waits for that or one that is put off.
   * @throws what `Records` throws.
   */
  ask(one: Held, ms: number, waits?: boolean): Promise<Slot>;
  /** How a message leaves that is to ask again then. */
  putOff(again: number, attempts: Attempts): Outcome;
  /**
   * Resolves then, or when there is nothing to wait for any more. Of those that are said to wait for their turn under a limit,
   * the oldest has the first one that comes, whosever it was.
   */
  until(at: number, one?: Held): Promise<void>;
  /** Whether a handler may be started now for a message that has taken a start: it may have missed it. */
  lets(one: Held): boolean;
  /** How many that ask together may start together, when the last of them may: none of them is late then. */
  readonly together: number;
  /** How many messages that were not started it makes sense to have in hand. */
  readonly room: number;
  /** Nothing more may be started within this invocation's time. */
  readonly over: boolean;
  /** When the next one may start, as far as is known; epoch milliseconds. */
  readonly next: number;
  /** Lets go of all that wait. */
  stop(): void;
}

/** One message that waits for its slot to be known. */
interface Asking {
  readonly one: Held;
  readonly ms: number;
  readonly waits: boolean;
  readonly told: (slot: Slot) => void;
  readonly failed: (error: unknown) => void;
}

/** The slots of a key, or of all messages: as this invocation knows them, and who asks for some. */
interface Bucket {
  readonly subject: string;
  known?: Paced & { readonly revision: number };
  looking?: Promise<void> | undefined;
  readonly asking: Asking[];
  /** Who waits, the oldest first. */
  readonly waiting: { readonly sequence: number; readonly letGo: () => void }[];
  busy: boolean;
}

/** What is kept of a bucket; `every` is the time between two starts, in milliseconds, when that was. */
interface Kept extends Partial<Paced> {
  readonly every?: number;
}

/** How far off a slot by key may be for a message to wait for it in hand, and how much of what waits for its slot is pulled. */
export const slotWaitMs = 1_000;

/** What is granted is good for so long, as a part of the limit's period: later, it would come together with others. */
const lateness = 0.04;

/** Of a consumer with `rateLimit`; undefined for the others. */
export function openPace(binding: Binding, shared: Circumstances): Pace | undefined {
  const { consumer } = binding;
  const { rateLimit } = consumer;
  if (!rateLimit) return undefined;
  const { connection, clock } = shared;
  const { now } = clock;
  const { everyMs, burst, perMs, key } = rateLimit;
  const rate = { everyMs, burst };
  const records = recordsIn<Kept>(connection, ratesStream, "what is left of a rate limit");
  const buckets = new Map<string, Bucket>();
  const waiting = new Set<() => void>();
  const inLine = new WeakSet<Held>(); // who has asked before
  const leftMs = () => Math.max(1, clock.budget.abandonAt - now());
  const common = bucketFor(rateSubject(consumer));
  let flightMs = 0; // how long a grant takes
  let over = false;
  let stopped = false;

  function bucketFor(subject: string): Bucket {
    const bucket = buckets.get(subject) ?? { subject, asking: [], waiting: [], busy: false };
    buckets.set(subject, bucket);
    return bucket;
  }

  function bucketOf({ limit }: Held): Bucket {
    return limit === undefined ? common : bucketFor(limit);
  }

  /** Asks for slots for all that wait for one, until nobody does. */
  async function grant(bucket: Bucket): Promise<void> {
    bucket.busy = true;
    await Promise.resolve(); // all that came in one piece ask together
    while (bucket.asking.length > 0) {
      const asked = now();
      const asking = bucket.asking.splice(0).toSorted((a, b) => Number(isFresh(a.one)) - Number(isFresh(b.one)));
      try {
        if (!bucket.known) await look(bucket);
        const { revision, ...known } = bucket.known ?? { next: 0, line: 0, revision: 0 };
        const answerMs = 1.5 * Math.max(flightMs, clock.roundTripMs);
        const from = now() + Math.max(0, answerMs - perMs * lateness); // what is granted for earlier would be late
        const by = clock.budget.stopAt;
        const asks = asking.map(({ one, ms, waits }) => {
          const latest = Math.min(by, from + ms);
          return { fresh: isFresh(one), latest, waitsUntil: waits ? from + slotWaitMs : 0 };
        });
        const { slots, next, line } = planSlots(known, asks, from, rate);
        if (slots.some((slot) => "at" in slot) || (key && line !== known.line)) {
          const value = { next, every: everyMs, ...(line > from && { line }) };
          bucket.known = { next, line, revision: await records.write(bucket.subject, revision, value, leftMs()) };
          flightMs = Math.max(flightMs * 0.9, now() - asked);
        }
        for (const [n, { one, told }] of asking.entries()) {
          const slot = slots[n] as Slot;
          if ("at" in slot) one.slot = slot.at;
          else inLine.add(one);
          told(slot);
        }
      } catch (error) {
        delete bucket.known;
        if (isConflict(error) && leftMs() > 1) bucket.asking.unshift(...asking);
        else for (const one of asking) one.failed(error);
      }
    }
    bucket.busy = false;
  }

  function look(bucket: Bucket): Promise<void> {
    bucket.looking ??= records
      .read(bucket.subject, leftMs())
      .then((stored) => {
        const { next = 0, line = 0, every = everyMs } = stored?.value ?? {};
        bucket.known = { ...rescaled({ next, line }, every, everyMs, now()), revision: stored?.revision ?? 0 };
      })
      .finally(() => {
        bucket.looking = undefined;
      });
    return bucket.looking;
  }

  /** By key, who was put off comes before who was not. */
  function isFresh(one: Held): boolean {
    return key !== undefined && one.source === "own" && !one.delivery.again && !inLine.has(one);
  }

  if (!key) void look(common).catch(() => {}); // while the first pull is under way

  return {
    byKey: key !== undefined,
    knows: ({ message, limit }) => (key ? limit : message) !== undefined,
    async find(one, attempts) {
      try {
        const message = await messageOf(one, consumer, clock);
        if (key) one.limit = `${common.subject}.${await keyOf(message, consumer, "rateLimit", key)}`;
        return undefined;
      } catch (error) {
        return failedBefore(binding, one.delivery, attempts, shared, error);
      }
    },
    nextFor(one) {
      const { known } = bucketOf(one);
      return known ? Math.max(known.next, now() - (burst - 1) * everyMs) : 0;
    },
    ask(one, ms, waits = false) {
      return new Promise((told, failed) => {
        const bucket = bucketOf(one);
        bucket.asking.push({ one, ms, waits, told, failed });
        if (!bucket.busy) void grant(bucket);
      });
    },
    putOff(again, attempts) {
      if (!key && again > clock.budget.stopAt) over = true;
      const delayMs = Math.max(key ? slotWaitMs : 1, Math.ceil(again - now())); // sooner, it could as well have waited
      return { settlement: { kind: "return", delayMs }, attempts };
    },
    until(at, one) {
      if (stopped || at <= now()) return Promise.resolve();
      const { promise, resolve } = Promise.withResolvers<void>();
      const turns = one ? bucketOf(one).waiting : [];
      if (one) {
        const { sequence } = one.delivery;
        const behind = turns.findIndex((other) => other.sequence > sequence);
        turns.splice(behind < 0 ? turns.length : behind, 0, { sequence, letGo: resolve });
      }
      const timer = setTimeout(
        () => {
          waiting.delete(end);
          (turns.shift()?.letGo ?? resolve)();
        },
        Math.ceil(at - now()),
      );
      const end = () => {
        clearTimeout(timer);
        resolve();
      };
      waiting.add(end);
      return point("waiting for a rate limit", promise);
    },
    lets({ slot }) {
      return slot !== undefined && slot <= now() && now() - slot <= perMs * lateness;
    },
    together: key ? 1 : Math.floor((perMs * lateness) / 4 / everyMs) + 1,
    get room() {
      return key ? Infinity : Math.ceil(slotWaitMs / everyMs) + burst;
    },
    get over() {
      return over;
    },
    get next() {
      return common.known?.next ?? 0;
    },
    stop() {
      stopped = true;
      if (!key && waiting.size > 0) over = true; // there was more than could be started
      for (const end of waiting) end();
      for (const bucket of buckets.values()) for (const { letGo } of bucket.waiting.splice(0)) letGo();
    },
  };
}
