import { describe, expect, it } from "vitest";
import { caughtUp, occurrenceAfter, occurrencesAfter, recurringOf } from "../../src/schedule/recurring.ts";

const hourMs = 3_600_000;
const now = Date.parse("2026-03-01T12:30:00Z");
const from = now - 24 * hourMs;

describe("a time that passed by", () => {
  const hourly = (catchUp: "all" | "latest" | "skip") => recurringOf({ every: "1h", catchUp }, from, "It");
  const planned = from + hourMs;

  it("is released, where each is wanted", () => {
    expect(caughtUp(hourly("all"), "id", planned, now)).toEqual({ planned, due: planned });
  });

  it("gives way to the latest", () => {
    const latest = now;
    expect(caughtUp(hourly("latest"), "id", planned, now)).toEqual({ planned: latest, due: latest });
    expect(caughtUp(hourly("latest"), "id", planned, now + hourMs / 2)).toEqual({ planned: latest, due: latest });
  });

  it("gives way to the next, but for one that is late by no more than two minutes", () => {
    expect(caughtUp(hourly("skip"), "id", planned, now + hourMs / 2)?.planned).toBe(now + hourMs);
    expect(caughtUp(hourly("skip"), "id", planned, now + 100_000)?.planned).toBe(now);
  });

  it("is none where it is late by no more than two minutes", () => {
    const often = recurringOf({ every: "10s", catchUp: "latest" }, from, "It");
    expect(caughtUp(often, "id", from + 10_000, from + 100_000)?.planned).toBe(from + 10_000);
    expect(caughtUp(often, "id", from + 10_000, from + 200_000)?.planned).toBe(from + 200_000);
  });

  it("leaves none where the end has come meanwhile", () => {
    const ended = recurringOf({ every: "1h", catchUp: "skip", until: new Date(from + 5 * hourMs) }, from, "It");
    expect(caughtUp(ended, "id", planned, now)).toBeUndefined();
    const latest = recurringOf({ every: "1h", until: new Date(from + 5 * hourMs) }, from, "It");
    expect(caughtUp(latest, "id", planned, now)?.planned).toBe(from + 5 * hourMs);
  });
});

describe("jitter", () => {
  it("spreads what comes at the same time, each time anew, and the same on every host", () => {
    const daily = recurringOf({ cron: "0 0 * * *", jitter: "10m" }, now, "It");
    const spread = Array.from({ length: 1_000 }, (_, n) => {
      const { planned, due } = occurrenceAfter(daily, `tenant ${n}`, now) ?? { planned: 0, due: 0 };
      return due - planned;
    });
    expect(Math.min(...spread)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...spread)).toBeLessThanOrEqual(600_000);
    const tenths = Array.from(
      { length: 10 },
      (_, tenth) => spread.filter((ms) => Math.floor(ms / 60_001) === tenth).length,
    );
    expect(Math.min(...tenths)).toBeGreaterThan(50);
    const [first, second] = [now, now + 24 * hourMs].map((after) => occurrenceAfter(daily, "tenant 1", after));
    expect(first).toEqual(occurrenceAfter(daily, "tenant 1", now));
    expect((first?.due ?? 0) - (first?.planned ?? 0)).not.toBe((second?.due ?? 0) - (second?.planned ?? 0));
  });
});

it("tells the next times, as many as there are", () => {
  const few = recurringOf({ every: "1m", until: new Date(now + 200_000) }, now, "It");
  expect(occurrencesAfter(few, now, 5)).toEqual([1, 2, 3].map((n) => new Date(now + n * 60_000)));
});

it.each([
  [{ every: "1m", catchUp: "some" }, /expected catchUp "all" or "latest" or "skip", got "some"/],
  [{ every: "1m", overlap: "no" }, /expected overlap "allow" or "skip" or "queue", got "no"/],
  [{ every: "1m", jitter: -1 }, /It, jitter: expected milliseconds or a duration/],
  [{ every: "1m", cron: "* * * * *" }, /expected one of `in`, `at`, `every` and `cron`, got every and cron/],
  [{ every: "1m", in: "1m" }, /got in and every/],
  [{ cron: "" }, /expected `cron` to be five fields/],
])("refuses %j", (options, error) => {
  expect(() => recurringOf(options as never, now, "It")).toThrow(error);
});
