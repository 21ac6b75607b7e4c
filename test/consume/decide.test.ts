import { describe, expect, it } from "vitest";
import { connectMs, learnt, planBudget, type RoundTrips } from "../../src/consume/budget.ts";
import { planPull } from "../../src/consume/pull-size.ts";
import { decideFailure } from "../../src/consume/settlement.ts";
import { exponential, NonRetriableError, RetryAfterError } from "../../src/index.ts";

const retry = { attempts: 3, backoff: exponential("1s", { max: "5m" }) };

describe("what becomes of a failure", () => {
  class CardDeclined extends NonRetriableError {
    override name = "CardDeclined";
  }

  it.each([
    ["an error", new Error("x"), 1, { kind: "retry", delayMs: 1_000 }],
    ["a second one", new Error("x"), 2, { kind: "retry", delayMs: 2_000 }],
    ["the last one", new Error("x"), 3, { kind: "dead-letter", reason: "attempts-exhausted" }],
    ["one past the last", new Error("x"), 9, { kind: "dead-letter", reason: "attempts-exhausted" }],
    ["a non-retriable one", new NonRetriableError("x"), 1, { kind: "dead-letter", reason: "non-retriable" }],
    ["a subclass of it", new CardDeclined("x"), 1, { kind: "dead-letter", reason: "non-retriable" }],
    ["one that says when", new RetryAfterError("x", "30s"), 1, { kind: "retry", delayMs: 30_000 }],
    [
      "one that says when, the last",
      new RetryAfterError("x", "30s"),
      3,
      { kind: "dead-letter", reason: "attempts-exhausted" },
    ],
    ["something that is no error", "text", 1, { kind: "retry", delayMs: 1_000 }],
    ["nothing at all", undefined, 1, { kind: "retry", delayMs: 1_000 }],
  ])("%s", (_, error, attempt, settlement) => {
    expect(decideFailure({ error, attempt, inPlace: 0, leftMs: 1_000, now: 0, chance: 0 }, retry)).toEqual(settlement);
  });
});

describe("a budget", () => {
  it.each([100, 1_000, 15_000, 900_000])("of %d ms keeps its parts in order, and all before the deadline", (total) => {
    const budget = planBudget(1_000_000, 1_000_000 + total);
    const points = [
      1_000_000 + connectMs(1_000_000, 1_000_000 + total),
      budget.stopAt,
      budget.abandonAt,
      budget.publishBy,
      budget.settleBy,
      1_000_000 + total,
    ];
    expect(points).toEqual(points.toSorted((a, b) => a - b));
    expect(new Set(points).size).toBe(points.length);
  });

  it("is nothing where the deadline has passed", () => {
    expect(planBudget(1_000, 500)).toMatchObject({ stopAt: 500 });
  });

  it.each([undefined, 0, 1, 50, 1_000, 60_000])(
    "keeps no more than three seconds for its end, and four in all, where round trips take %s ms",
    (roundTripMs) => {
      for (const total of [10_000, 60_000, 900_000]) {
        const { stopAt, abandonAt } = planBudget(0, total, roundTripMs);
        expect(total - abandonAt).toBeLessThanOrEqual(3_000);
        expect(total - stopAt).toBeLessThanOrEqual(4_000);
        expect(total - abandonAt).toBeGreaterThanOrEqual(Math.min(8 * (roundTripMs ?? Infinity), 2_000));
      }
    },
  );

  it("leaves half of the time to handlers where round trips take long, and most of it where they do not", () => {
    expect(planBudget(0, 2_000, 60_000).abandonAt).toBe(1_000);
    expect(planBudget(0, 2_000, 5).abandonAt).toBe(2_000 - 400 - 40);
    expect(planBudget(0, 60_000, 5).abandonAt).toBe(60_000 - 500 - 40);
  });
});

describe("what is known of round trips", () => {
  const after = (...times: number[]) => times.reduce<RoundTrips | undefined>(learnt, undefined) as RoundTrips;
  const most = ({ smoothedMs, variationMs }: RoundTrips) => smoothedMs + 4 * variationMs;

  it("is the first one, and twice as much again", () => {
    expect(after(10)).toEqual({ smoothedMs: 10, variationMs: 5 });
    expect(most(after(10))).toBe(30);
  });

  it("comes to what they take, where they always take the same", () => {
    expect(most(after(...Array.from({ length: 40 }, () => 10)))).toBeCloseTo(10, 1);
  });

  it("is wary after one that was slow, and forgets it", () => {
    const hiccup = [10, 10, 10, 500];
    expect(most(after(...hiccup))).toBeGreaterThan(500);
    expect(most(after(...hiccup, ...Array.from({ length: 20 }, () => 10)))).toBeLessThan(50);
  });

  it("follows a link that has become slow", () => {
    expect(after(10, 10, ...Array.from({ length: 20 }, () => 300)).smoothedMs).toBeGreaterThan(250);
  });
});

describe("a pull", () => {
  const hand = { concurrency: 4, most: 256, unsettled: 0, messages: 0, handlerMs: 1, flightMs: 2, leftMs: 60_000 };
  const mostBytes = 16_000;

  it("has half of the bytes that there may be, and a second one beside it", () => {
    expect(planPull({ ...hand, mostBytes, bytes: 0 })).toMatchObject({ messages: 24, bytes: 8_000 });
    expect(planPull({ ...hand, mostBytes, bytes: 8_400 })).toMatchObject({ messages: 24, bytes: 7_600 });
  });

  it("is not for a remnant of them, which few messages fit in", () => {
    expect(planPull({ ...hand, mostBytes, bytes: 15_900 }).messages).toBe(0);
  });

  it("is for nothing where less than a handler and a half is left, and not for more than will be finished", () => {
    const long = { ...hand, concurrency: 20, handlerMs: 2_000, mostBytes, bytes: 0 };
    expect(planPull({ ...long, leftMs: 2_999 }).messages).toBe(0);
    expect(planPull({ ...long, leftMs: 0 }).messages).toBe(0);
    expect(planPull({ ...long, leftMs: 3_000 }).messages).toBe(20);
    expect(planPull({ ...long, leftMs: 3_000, messages: 20, unsettled: 20 }).messages).toBe(0);
    expect(planPull({ ...long, leftMs: 2_999, handlerMs: undefined }).messages).toBe(20); // nobody knows
  });
});
