import { describe, expect, it } from "vitest";
import { connectMs, planBudget } from "../../src/consume/budget.ts";
import { planPull } from "../../src/consume/pull-size.ts";
import { decideFailure, decideTogether } from "../../src/consume/settlement.ts";
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

describe("when a batch that failed as a whole may come again", () => {
  const rules = [
    { on: RangeError, do: { after: "2s" } },
    { on: TypeError, do: { inPlace: 1 } },
    { on: SyntaxError, do: "discard" },
    { on: URIError, do: "dead-letter" },
  ] as const;
  const busy = { headers: { "retry-after": "7" } };

  it.each([
    ["at once, in halves", new Error("x"), undefined],
    ["at once where one is not to come again", Object.assign(new NonRetriableError("x"), busy), undefined],
    ["at once where a rule drops one", Object.assign(new SyntaxError("x"), busy), undefined],
    ["at once where a rule gives one up", Object.assign(new URIError("x"), busy), undefined],
    ["at once where a rule says in place", new TypeError("x"), undefined],
    ["not before its error says", new RetryAfterError("x", "30s"), 30_000],
    ["not before an HTTP service says", Object.assign(new Error("x"), busy), 7_000],
    ["not before a rule says", new RangeError("x"), 2_000],
  ])("%s", (_, error, delayMs) => {
    expect(decideTogether({ error, now: 0, chance: 0 }, { ...retry, rules })).toBe(delayMs);
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
});
