import { rateSubject, ratesStream } from "../define/own.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { point } from "../nats/within.ts";
import { failedBefore, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keyFor } from "./key.ts";
import type { Attempts } from "./ledger.ts";
import { planSlots } from "./slots.ts";

/** Keeps the handlers of all invocations of a consumer within its rate limit. */
export interface Pace {
  /**
   * Waits until a handler may be started for a message. Answers how the message is to leave where that is too far off.
   * @throws what `Records` throws.
   */
  turn(one: Held, attempts: Attempts): Promise<Outcome | undefined>;
  /** How many that ask together may start together, at the slot of the last: none of them is late then. */
  readonly together: number;
  /** How many messages that were not started it makes sense to have in hand. */
  readonly room: number;
  /** Nothing more may be started within this invocation's time. */
  readonly over: boolean;
  /** Until when it makes no sense to pull, in epoch milliseconds: what comes is over its key's limit. */
  readonly heldUntil: number;
  /** Lets go of all that wait. */
  stop(): void;
}

/** One message that waits for its slot to be known. */
interface Asking {
  readonly granted: (at: number | undefined, elseMs: number) => void;
  readonly failed: (error: unknown) => void;
}

/** The slots of a key, or of all messages: as this invocation knows them, and who asks for some. */
interface Bucket {
  readonly subject: string;
  known?: { readonly next: number; readonly revision: number };
  looking?: Promise<void> | undefined;
  readonly asking: Asking[];
  busy: boolean;
}

/** A message over its key's limit keeps its place among the handlers for so long at most. */
const keyWaitMs = 1_000;

/** After so many messages over their key's limit without one that is not, pulling rests. */
const manyOver = 64;

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
  const records = recordsIn<{ next: number }>(connection, ratesStream, "what is left of a rate limit");
  const buckets = new Map<string, Bucket>();
  const waiting = new Set<() => void>();
  const leftMs = () => Math.max(1, clock.budget.abandonAt - now());
  let flightMs = 0; // how long a grant takes
  let over = false;
  let overInARow = 0;
  let heldUntil = 0;
  let stopped = false;

  function bucketFor(subject: string): Bucket {
    const bucket = buckets.get(subject) ?? { subject, asking: [], busy: false };
    buckets.set(subject, bucket);
    return bucket;
  }

  /** Asks for slots for all that wait for one, until nobody does. */
  async function grant(bucket: Bucket): Promise<void> {
    bucket.busy = true;
    await Promise.resolve(); // all that came in one piece ask together
    while (bucket.asking.length > 0) {
      const asked = now();
      const asking = bucket.asking.splice(0);
      try {
        if (!bucket.known) await look(bucket);
        const { next, revision } = bucket.known ?? { next: 0, revision: 0 };
        const answerMs = 1.5 * Math.max(flightMs, clock.roundTripMs);
        const from = now() + Math.max(0, answerMs - perMs * lateness); // what is granted for earlier would be late
        const latest = Math.min(clock.budget.stopAt, key ? from + keyWaitMs : Infinity);
        const slots = planSlots(next, asking.length, from, latest, rateLimit as { everyMs: number; burst: number });
        if (slots.at.length > 0) {
          const value = { next: slots.next };
          bucket.known = { ...value, revision: await records.write(bucket.subject, revision, value, leftMs()) };
          flightMs = Math.max(flightMs * 0.9, now() - asked);
        }
        for (const [n, one] of asking.entries())
          one.granted(slots.at[n], slots.next + (n - slots.at.length) * everyMs - now());
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
        bucket.known = { next: stored?.value.next ?? 0, revision: stored?.revision ?? 0 };
      })
      .finally(() => {
        bucket.looking = undefined;
      });
    return bucket.looking;
  }

  function slotOf(bucket: Bucket): Promise<{ at: number | undefined; elseMs: number }> {
    return new Promise((resolve, failed) => {
      bucket.asking.push({ granted: (at, elseMs) => resolve({ at, elseMs }), failed });
      if (!bucket.busy) void grant(bucket);
    });
  }

  function until(at: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, Math.ceil(at - now()));
    const letGo = () => {
      clearTimeout(timer);
      resolve();
    };
    waiting.add(letGo);
    return point("waiting for a rate limit", promise).finally(() => waiting.delete(letGo));
  }

  if (!key) void look(bucketFor(rateSubject(consumer))).catch(() => {}); // while the first pull is under way

  return {
    async turn(one, attempts) {
      let subject = rateSubject(consumer);
      if (key) {
        try {
          subject += `.${await keyFor(consumer, "rateLimit", key, one.delivery, clock)}`;
        } catch (error) {
          return failedBefore(binding, one.delivery, attempts, shared, error);
        }
      }
      while (!stopped) {
        const { at, elseMs } = await slotOf(bucketFor(subject));
        if (at === undefined) {
          overInARow += 1;
          if (!key) over = true;
          else if (overInARow >= manyOver) heldUntil = now() + keyWaitMs;
          return { settlement: { kind: "return", delayMs: Math.max(1, Math.ceil(elseMs)) }, attempts };
        }
        overInARow = 0;
        if (at > now()) await until(at);
        if (now() - at <= perMs * lateness) return undefined;
      }
      return { settlement: { kind: "return" }, attempts };
    },
    together: key ? 1 : Math.floor((perMs * lateness) / 4 / everyMs) + 1,
    get room() {
      return key ? Infinity : Math.ceil(keyWaitMs / everyMs) + burst;
    },
    get over() {
      return over;
    },
    get heldUntil() {
      return heldUntil;
    },
    stop() {
      stopped = true;
      for (const letGo of waiting) letGo();
    },
  };
}
