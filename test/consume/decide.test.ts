import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import { connectMs, learnt, planBudget, type RoundTrips } from "../../src/consume/budget.ts";
import { planPull } from "../../src/consume/pull-size.ts";
import { decideFailure, decideTogether } from "../../src/consume/settlement.ts";
import { textOf } from "../../src/errors.ts";
import { exponential, NonRetriableError, RetryAfterError, type RetryPolicy } from "../../src/index.ts";

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

it("a policy that cannot be read costs an attempt, and not the process", () => {
  const failure = { error: new Error("x"), inPlace: 0, leftMs: 1_000, now: 0, chance: 0 };
  const bare = { attempts: 2 } as RetryPolicy;
  expect(decideFailure({ ...failure, attempt: 1 }, bare)).toEqual({ kind: "retry", delayMs: 30_000 });
  expect(decideFailure({ ...failure, attempt: 2 }, bare)).toMatchObject({ kind: "dead-letter" });
});

describe("a rule of a policy", () => {
  const decided = (error: unknown, on: never) =>
    decideFailure(
      { error, attempt: 1, inPlace: 0, leftMs: 1_000, now: 0, chance: 0 },
      { ...retry, rules: [{ on, do: "discard" }] },
    ).kind === "ack";
  const OtherTypeError = runInNewContext("TypeError") as typeof TypeError;

  it.each<[string, unknown, unknown, boolean]>([
    ["takes a class's instances", new TypeError("x"), TypeError, true],
    ["takes those of a class of the schema library", z.string().safeParse(1).error, z.ZodError, true],
    ["leaves out what is of another class of it", new Error("x"), z.ZodError, false],
    ["takes those of a class of another realm", new OtherTypeError("x"), OtherTypeError, true],
    ["leaves out what is not of a class of another realm", new Error("x"), OtherTypeError, false],
    ["takes what its predicate is true for", new Error("x"), () => true, true],
    ["leaves out what its predicate answers otherwise for", new Error("x"), () => "yes", false],
    ["leaves out what its predicate throws for", new Error("x"), () => JSON.parse(""), false],
  ])("%s", (_, error, on, matches) => {
    expect(decided(error, on as never)).toBe(matches);
  });
});

describe("Retry-After", () => {
  const now = Date.parse("2030-01-01T00:00:00Z");
  const decide = (value: unknown, name = "retry-after", rules = {}) =>
    decideFailure(
      { error: { headers: { [name]: value } }, attempt: 1, inPlace: 0, leftMs: 60_000, now, chance: 0 },
      { ...retry, ...rules },
    );

  it.each<[unknown, number]>([
    ["30", 30_000],
    [30, 30_000],
    ["Tue, 01 Jan 2030 00:01:00 GMT", 60_000],
    ["0", 1_000], // never sooner than the backoff
    ["Tue, 01 Jan 2019 00:01:00 GMT", 1_000],
    ["3600.5", 1_000],
    ["-3600", 1_000],
    ["retry in 2099", 1_000],
    ["", 1_000],
    [{}, 1_000],
  ])("%o waits %d ms", (value, delayMs) => {
    expect(decide(value)).toEqual({ kind: "retry", delayMs });
  });

  it("is found in any case, and waited for in place as well", () => {
    expect(decide("7", "RETRY-After")).toEqual({ kind: "retry", delayMs: 7_000 });
    const rules = [{ on: () => true, do: { inPlace: 1, delay: "10ms" } }];
    expect(decide("7", "retry-after", { rules })).toEqual({ kind: "in-place", delayMs: 7_000 });
  });
});

describe("an error in a line", () => {
  it.each<[unknown, string]>([
    [new Error("no"), "Error: no"],
    [
      new TypeError("fetch failed", { cause: new Error("connect ECONNREFUSED") }),
      "TypeError: fetch failed (Error: connect ECONNREFUSED)",
    ],
    [new Error("no: why", { cause: new Error("why") }), "Error: no: why"],
    [new Response(null, { status: 503, statusText: "Service Unavailable" }), "HTTP 503 Service Unavailable"],
    [{ code: 7 }, '{"code":7}'],
    [undefined, "undefined"],
  ])("%o", (error, text) => {
    expect(textOf(error)).toBe(text);
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

  it("is the first one, and as much again", () => {
    expect(after(10)).toEqual({ smoothedMs: 10, variationMs: 2.5 });
    expect(most(after(10))).toBe(20);
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
