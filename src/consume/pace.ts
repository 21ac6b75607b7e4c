import { rateSubject, ratesStream } from "../define/own.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { point } from "../nats/within.ts";
import { failedBefore, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keyFor } from "./key.ts";
import type { Attempts } from "./ledger.ts";
import { type Paced, planSlots, rescaled, type Slot } from "./slots.ts";

/** Keeps the handlers of all invocations of a consumer within its rate limit. */
export interface Pace {
  /** Whether each key has a limit of its own: who waits for its slot then keeps no place from the others. */
  readonly byKey: boolean;
  /** Finds the limit that a message is under. Answers how it is to leave where its key cannot be had. */
  find(one: Held, attempts: Attempts): Promise<Outcome | undefined>;
  /** Whether a message would be put off if it asked for a slot within `ms`, by what is known here. */
  isOver(one: Held, ms: number): boolean;
  /**
   * Takes a slot for a message, within `ms` or the invocation's time. Answers how it is to leave where there is none in time.
   * @throws what `Records` throws.
   */
  take(one: Held, attempts: Attempts, ms: number): Promise<Outcome | undefined>;
  /** When its slot comes, which it may have missed by then. */
  until(one: Held): Promise<void>;
  /** Whether its handler may be started now. */
  lets(one: Held): boolean;
  /** How many that ask together may start together, at the slot of the last: none of them is late then. */
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
  readonly told: (slot: Slot) => void;
  readonly failed: (error: unknown) => void;
}

/** The slots of a key, or of all messages: as this invocation knows them, and who asks for some. */
interface Bucket {
  readonly subject: string;
  known?: Paced & { readonly revision: number };
  looking?: Promise<void> | undefined;
  readonly asking: Asking[];
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
  const leftMs = () => Math.max(1, clock.budget.abandonAt - now());
  const common = bucketFor(rateSubject(consumer));
  let flightMs = 0; // how long a grant takes
  let over = false;
  let stopped = false;

  function bucketFor(subject: string): Bucket {
    const bucket = buckets.get(subject) ?? { subject, asking: [], busy: false };
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
        const asks = asking.map(({ one, ms }) => ({ fresh: isFresh(one), latest: Math.min(by, from + ms) }));
        const { slots, next, line } = planSlots(known, asks, from, rate);
        if (key || slots.some((slot) => "at" in slot)) {
          const value = { next, every: everyMs, ...(line > from && { line }) };
          bucket.known = { next, line, revision: await records.write(bucket.subject, revision, value, leftMs()) };
          flightMs = Math.max(flightMs * 0.9, now() - asked);
        }
        for (const [n, { told }] of asking.entries()) told(slots[n] as Slot);
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
  function isFresh({ source, delivery }: Held): boolean {
    return key !== undefined && source === "own" && !delivery.again;
  }

  if (!key) void look(common).catch(() => {}); // while the first pull is under way

  return {
    byKey: key !== undefined,
    async find(one, attempts) {
      if (!key || one.limit !== undefined) return undefined;
      try {
        one.limit = `${common.subject}.${await keyFor(consumer, "rateLimit", key, one.delivery, clock)}`;
        return undefined;
      } catch (error) {
        return failedBefore(binding, one.delivery, attempts, shared, error);
      }
    },
    isOver(one, ms) {
      const { known } = bucketOf(one);
      if (!known || !key) return false;
      const { slots } = planSlots(known, [{ fresh: isFresh(one), latest: now() + ms }], now(), rate);
      return slots.some((slot) => "again" in slot);
    },
    async take(one, attempts, ms) {
      const slot = await new Promise<Slot>((told, failed) => {
        const bucket = bucketOf(one);
        bucket.asking.push({ one, ms, told, failed });
        if (!bucket.busy) void grant(bucket);
      });
      if ("at" in slot) {
        one.slot = slot.at;
        return undefined;
      }
      if (ms === Infinity) over = true;
      // sooner, it could as well have waited
      return { settlement: { kind: "return", delayMs: Math.max(slotWaitMs, Math.ceil(slot.again - now())) }, attempts };
    },
    until({ slot = 0 }) {
      if (stopped || slot <= now()) return Promise.resolve();
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, Math.ceil(slot - now()));
      const letGo = () => {
        clearTimeout(timer);
        resolve();
      };
      waiting.add(letGo);
      return point("waiting for a rate limit", promise).finally(() => waiting.delete(letGo));
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
      for (const letGo of waiting) letGo();
    },
  };
}
