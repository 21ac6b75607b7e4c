import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { planBudget } from "../../src/consume/budget.ts";
import { type Attempts, type Entry, noAttempts } from "../../src/consume/ledger.ts";
import { planPull } from "../../src/consume/pull-size.ts";
import { decideFailure, type InPlace, type Settlement } from "../../src/consume/settlement.ts";
import { decideStart } from "../../src/consume/start.ts";
import { exponential, fixed, list, NonRetriableError, RetryAfterError, type RetryPolicy } from "../../src/index.ts";

const delays = fc.integer({ min: 0, max: 86_400_000 });
const backoffs = fc.oneof(
  fc.tuple(delays, delays).map(([delay, jitter]) => fixed(delay, { jitter })),
  fc.tuple(delays, delays, delays).map(([first, more, jitter]) => exponential(first, { max: first + more, jitter })),
  fc.tuple(fc.array(delays, { minLength: 1 }), delays).map(([all, jitter]) => list(all, { jitter })),
);
const policies = fc.record<RetryPolicy>({ attempts: fc.integer({ min: 1, max: 9 }), backoff: backoffs });
const errors = fc.oneof(
  fc.anything(),
  fc.string().map((text) => new Error(text)),
  fc.string().map((text) => new NonRetriableError(text)),
  delays.map((delay) => new RetryAfterError("later", delay)),
  fc.anything().map((value) => Object.assign(new Error("http"), { headers: { "retry-after": value } })),
  fc.anything().map((value) => ({ response: { headers: new Map([["retry-after", value]]) } })),
);

describe("whatever a handler throws", () => {
  it("has one answer: never a start beyond the last, never a delay below nothing", () => {
    const failures = fc.record({
      error: errors,
      attempt: fc.integer({ min: 1, max: 12 }),
      inPlace: fc.nat(3),
      leftMs: fc.integer({ min: -1_000, max: 900_000 }),
      now: fc.integer({ min: 1_600_000_000_000, max: 2_000_000_000_000 }),
      chance: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    fc.assert(
      fc.property(failures, policies, (failure, policy) => {
        const decided: Settlement | InPlace = decideFailure(failure, policy);
        expect(decideFailure(failure, policy)).toEqual(decided); // it is pure
        expect(["retry", "dead-letter"]).toContain(decided.kind);
        if (failure.attempt >= policy.attempts) expect(decided.kind).toBe("dead-letter");
        if (decided.kind === "retry") {
          expect(Number.isInteger(decided.delayMs)).toBe(true);
          expect(decided.delayMs).toBeGreaterThanOrEqual(0);
        }
      }),
    );
  });
});

/** What may become of a delivery: its handler fails, its function dies, it is handed back, or it is lost on its way. */
type Event = "error" | "death" | "return" | "lost";

describe("whatever becomes of a message's deliveries", () => {
  it("is dead-lettered after as many certain attempts as its policy says, and not before", () => {
    const events = fc.array(fc.constantFrom<Event>("error", "death", "return", "lost"), { maxLength: 60 });
    fc.assert(
      fc.property(events, fc.integer({ min: 1, max: 5 }), (happens, most) => {
        const policy = { attempts: most, backoff: fixed(0) };
        let entry: Entry = noAttempts;
        let [starts, certain] = [0, 0];
        let diedAlone = false; // just now
        const write = (attempts: Attempts) => {
          entry = { attempts, revision: entry.revision + 1 };
        };
        for (const [index, event] of happens.entries()) {
          const again = index > 0; // the server says so
          const beginning = again
            ? decideStart(entry, { most, isParkedCopy: false, ackWaitMs: 30_000, now: 0 })
            : ({ kind: "start", alone: false, attempts: noAttempts.attempts } as const);
          if (beginning.kind === "leave") {
            const reason = diedAlone ? "function-died" : "attempts-exhausted";
            expect(beginning.outcome.settlement).toEqual({ kind: "dead-letter", reason });
            expect(beginning.outcome.attempts.started).toBe(most);
            expect(certain).toBe(most);
            return;
          }
          const { attempts, alone } = beginning;
          expect(attempts.started).toBe(certain); // what the handler sees as its attempt, less one
          expect(certain).toBeLessThan(most);
          diedAlone = false;
          if (event === "lost") continue;
          if (event === "return") {
            if (!again) write(attempts);
            continue;
          }
          if (again) write({ ...attempts, open: { at: 0, host: "here", alone } });
          starts += 1;
          if (event === "death") {
            diedAlone = alone;
            if (alone) certain += 1;
            continue;
          }
          certain += 1;
          const failed = { started: attempts.started + 1, starts: [...attempts.starts, { at: 0, host: "here" }] };
          const failure = { error: new Error(), attempt: failed.started, inPlace: 0, leftMs: 0, now: 0, chance: 0 };
          const decided = decideFailure(failure, policy);
          expect(decided.kind).toBe(certain === most ? "dead-letter" : "retry");
          if (decided.kind === "dead-letter") return;
          write(failed);
        }
        expect(starts).toBeGreaterThanOrEqual(certain);
      }),
    );
  });

  it("is never charged for being handed back or lost, however often", () => {
    const events = fc.array(fc.constantFrom<Event>("return", "lost"), { minLength: 1, maxLength: 100 });
    fc.assert(
      fc.property(events, (happens) => {
        const entry = happens[0] === "return" ? { attempts: noAttempts.attempts, revision: 1 } : noAttempts;
        const beginning = decideStart(entry, { most: 1, isParkedCopy: false, ackWaitMs: 30_000, now: 0 });
        expect(beginning).toMatchObject({ kind: "start", attempts: { started: 0 } });
      }),
    );
  });
});

describe("whatever the budget", () => {
  it("has its parts in order and within the deadline, and leaves the tail several of its round trips", () => {
    const roundTrip = fc.option(fc.integer({ min: 0, max: 60_000 }), { nil: undefined });
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 900_000 }), roundTrip, (total, roundTripMs) => {
        const started = 1_700_000_000_000;
        const { stopAt, abandonAt, publishBy, settleBy } = planBudget(started, started + total, roundTripMs);
        const points = [started, stopAt, abandonAt, publishBy, settleBy, started + total];
        expect(points).toEqual(points.toSorted((a, b) => a - b));
        if (roundTripMs === undefined || 16 * roundTripMs > total - 1_000 || roundTripMs > 300) return;
        expect(publishBy - abandonAt).toBeGreaterThanOrEqual(3 * roundTripMs);
        expect(settleBy - publishBy).toBeGreaterThanOrEqual(4 * roundTripMs);
      }),
    );
  });
});

describe("whatever is in hand", () => {
  const hands = fc.record({
    concurrency: fc.integer({ min: 1, max: 1_000 }),
    most: fc.integer({ min: 1, max: 5_000 }),
    mostBytes: fc.integer({ min: 1, max: 1e8 }),
    messages: fc.integer({ min: 0, max: 6_000 }),
    bytes: fc.integer({ min: 0, max: 2e8 }),
    settling: fc.integer({ min: 0, max: 6_000 }),
    handlerMs: fc.option(fc.double({ min: 0, max: 100_000, noNaN: true }), { nil: undefined }),
    size: fc.integer({ min: 1, max: 500 }),
    fill: fc.double({ min: 0, max: 1, noNaN: true }), // of a batch
    flightMs: fc.integer({ min: 0, max: 2_000 }),
    leftMs: fc.integer({ min: -1_000, max: 900_000 }),
  });

  it("asks for no more than is allowed, and for no more than will be finished", () => {
    fc.assert(
      fc.property(hands, ({ settling, fill, ...known }) => {
        const perHandler = 1 + fill * (known.size - 1);
        const hand = { ...known, perHandler, unsettled: known.messages + settling };
        const { messages, bytes } = planPull(hand);
        expect(Number.isInteger(messages) && messages >= 0).toBe(true);
        if (messages === 0) return;
        expect(hand.messages + messages).toBeLessThanOrEqual(hand.most);
        expect(hand.unsettled + messages).toBeLessThanOrEqual(2 * hand.most);
        expect(bytes).toBeLessThanOrEqual(hand.mostBytes - hand.bytes);
        expect(bytes).toBeGreaterThan(0);
        const all = hand.messages + messages;
        if (hand.handlerMs === undefined) expect(all).toBeLessThanOrEqual(hand.concurrency * hand.size);
        else
          expect((all * hand.handlerMs) / (hand.concurrency * perHandler)).toBeLessThanOrEqual(
            Math.max(0, hand.leftMs),
          );
      }),
    );
  });

  it("keeps handlers busy: one pull after the other, as they end, comes to an end only with the time", () => {
    const settings = fc.record({
      concurrency: fc.integer({ min: 1, max: 64 }),
      handlerMs: fc.integer({ min: 1, max: 2_000 }),
      flightMs: fc.integer({ min: 1, max: 100 }),
      totalMs: fc.integer({ min: 1_000, max: 20_000 }),
      spread: fc.double({ min: 0, max: 0.5, noNaN: true }),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(settings, (given) => {
        const { returned, started } = simulate(given);
        // all but what was asked for last, in a batch or so, is finished
        expect(returned).toBeLessThanOrEqual(given.concurrency + 1);
        const perMs = Math.min(given.concurrency / (given.handlerMs * (1 + given.spread)), most / (2 * given.flightMs));
        expect(started).toBeGreaterThanOrEqual(Math.floor((given.totalMs * perMs) / 4));
      }),
      { numRuns: 100 },
    );
  });
});

const most = 256;

/** An endless stream and handlers that take `handlerMs`, more or less: how many were started, and how many handed back. */
function simulate(given: {
  concurrency: number;
  handlerMs: number;
  flightMs: number;
  totalMs: number;
  spread: number;
  seed: number;
}) {
  const { concurrency, flightMs, totalMs } = given;
  let random = given.seed % 2_147_483_647 || 1;
  const took = () => {
    random = (random * 48_271) % 2_147_483_647;
    return given.handlerMs * (1 + given.spread * (2 * (random / 2_147_483_647) - 1));
  };
  const ends: number[] = []; // of running handlers
  const arrivals: { at: number; messages: number }[] = [];
  let [waiting, started] = [0, 0];
  let handlerMs: number | undefined;
  for (let now = 0; now < totalMs; now += 1) {
    for (const { messages } of arrivals.filter(({ at }) => at === now)) waiting += messages;
    for (let index = ends.length - 1; index >= 0; index--) {
      if ((ends[index] ?? 0) > now) continue;
      ends.splice(index, 1);
      handlerMs = handlerMs === undefined ? given.handlerMs : handlerMs * 0.9 + given.handlerMs * 0.1;
    }
    for (; waiting > 0 && ends.length < concurrency; waiting--) {
      ends.push(now + took());
      started += 1;
    }
    const underWay = arrivals.filter(({ at }) => at > now).reduce((sum, { messages }) => sum + messages, 0);
    const messages = waiting + ends.length + underWay;
    const known = { concurrency, most, mostBytes: 1, bytes: 0, messages, unsettled: messages, handlerMs, flightMs };
    const asks = planPull({ ...known, leftMs: totalMs - now - flightMs });
    if (asks.messages > 0) arrivals.push({ at: now + flightMs, messages: asks.messages });
  }
  return { started, returned: waiting };
}
