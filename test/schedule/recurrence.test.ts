import fc from "fast-check";
import { Temporal } from "temporal-polyfill";
import { describe, expect, it } from "vitest";
import type { Duration } from "../../src/duration.ts";
import {
  latestUntil,
  nextAfter,
  type Recurrence,
  type RecurrenceOptions,
  recurrenceOf,
} from "../../src/schedule/recurrence.ts";

// CHAOS=full: all changes of three years, and from far away. Within npm test: those of the first, from near.
const full = process.env.CHAOS === "full";
const minute = 60_000;
const hour = 60 * minute;
const day = 24 * hour;
const now = Date.parse("2026-01-01T00:00:00Z");

const utc = (text: string) => Date.parse(text);
const zones = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"];

function cronOf(cron: string, timeZone = "UTC"): Recurrence {
  return recurrenceOf({ cron, timeZone }, now, "A test");
}

/** All after `from`, up to `to`, one after the other. */
function forwards(recurrence: Recurrence, from: number, to: number): number[] {
  const times: number[] = [];
  for (let at = nextAfter(recurrence, from); at !== undefined && at <= to; at = nextAfter(recurrence, at))
    times.push(at);
  return times;
}

/** The same from the end. */
function backwards(recurrence: Recurrence, from: number, to: number): number[] {
  const times: number[] = [];
  for (let at = latestUntil(recurrence, from, to); at !== undefined; at = latestUntil(recurrence, from, at - 1)) {
    times.unshift(at);
  }
  return times;
}

/** A moment at which a zone's clocks show a time; or, of a time that they skip, the one that Temporal has for it. */
interface Shown {
  readonly at: number;
  readonly local: Temporal.PlainDateTime;
  readonly again: boolean;
}

/** What a zone's clocks show after `from`, up to `to`, step by step, by Temporal alone. */
function clocks(zone: string, from: number, to: number, stepMs = minute): Shown[] {
  const shown: Shown[] = [];
  let latest: Temporal.PlainDateTime | undefined;
  for (let at = from; at <= to; at += stepMs) {
    const local = Temporal.Instant.fromEpochMilliseconds(at).toZonedDateTimeISO(zone).toPlainDateTime();
    const again = latest !== undefined && Temporal.PlainDateTime.compare(local, latest) <= 0;
    for (;;) {
      const expected: Temporal.PlainDateTime | undefined = latest?.add({ milliseconds: stepMs });
      if (again || !expected || Temporal.PlainDateTime.compare(expected, local) >= 0) break;
      const later = expected.toZonedDateTime(zone, { disambiguation: "compatible" }).epochMilliseconds;
      shown.push({ at: later, local: expected, again: false });
      latest = expected;
    }
    shown.push({ at, local, again });
    if (!again) latest = local;
  }
  return shown.filter(({ at }) => at > from && at <= to);
}

/** The moments at which a zone's clocks change, from 2026 to 2028. */
function changes(zone: string): number[] {
  const found: number[] = [];
  let at = Temporal.ZonedDateTime.from({ year: 2026, month: 1, day: 1, timeZone: zone });
  for (;;) {
    const next = at.getTimeZoneTransition("next");
    if (!next || next.year > 2028) return found;
    found.push(next.epochMilliseconds);
    at = next;
  }
}

interface Case {
  readonly cron: string;
  readonly wild?: boolean;
  readonly matches: (local: Temporal.PlainDateTime) => boolean;
}

const cases: Case[] = [
  ...[0, 1, 2, 3].flatMap((at): Case[] => [
    { cron: `0 ${at} * * *`, matches: (local) => local.hour === at && local.minute === 0 },
    { cron: `30 ${at} * * *`, matches: (local) => local.hour === at && local.minute === 30 },
    { cron: `45 ${at} * * *`, matches: (local) => local.hour === at && local.minute === 45 },
    { cron: `*/15 ${at} * * *`, wild: true, matches: (local) => local.hour === at && local.minute % 15 === 0 },
  ]),
  { cron: "20,40 2,3 * * *", matches: ({ hour, minute }) => [2, 3].includes(hour) && [20, 40].includes(minute) },
  { cron: "15 1-3 * * *", matches: ({ hour, minute }) => hour >= 1 && hour <= 3 && minute === 15 },
  { cron: "0 * * * *", wild: true, matches: ({ minute }) => minute === 0 },
  { cron: "@hourly", wild: true, matches: ({ minute }) => minute === 0 },
  { cron: "45 * * * *", wild: true, matches: ({ minute }) => minute === 45 },
  { cron: "*/15 * * * *", wild: true, matches: ({ minute }) => minute % 15 === 0 },
  { cron: "*/7 * * * *", wild: true, matches: ({ minute }) => minute % 7 === 0 },
  { cron: "* 1-3 * * *", wild: true, matches: ({ hour }) => hour >= 1 && hour <= 3 },
  { cron: "0 */2 * * *", wild: true, matches: ({ hour, minute }) => hour % 2 === 0 && minute === 0 },
  { cron: "@daily", matches: ({ hour, minute }) => hour === 0 && minute === 0 },
  { cron: "@midnight", matches: ({ hour, minute }) => hour === 0 && minute === 0 },
  {
    cron: "30 2 * * SUN",
    matches: ({ dayOfWeek, hour, minute }) => dayOfWeek === 7 && hour === 2 && minute === 30,
  },
];

function times(shown: Shown[], { matches, wild = false }: Case): number[] {
  const at = shown.filter(({ local, again }) => matches(local) && (wild || !again)).map(({ at }) => at);
  return [...new Set(at)].sort((a, b) => a - b);
}

describe.each(zones)("by the clocks of %s", (zone) => {
  const around = changes(zone);
  const moments = around.length > 0 ? around : [utc("2026-03-29T01:00:00Z"), utc("2027-10-31T01:00:00Z")];
  const reach = (full ? 15 : 6) * hour;
  const windows = moments.slice(0, full ? Infinity : 2).map((at) => [at - reach, at + reach] as const);
  const shown = windows.map(([from, to]) => clocks(zone, from, to));

  it("has the changes that are meant", () => {
    expect(around).toHaveLength(zone === "Asia/Kathmandu" ? 0 : 6);
  });

  it.each(cases)("$cron comes when Temporal's clocks show it", (each) => {
    const recurrence = cronOf(each.cron, zone);
    for (const [index, [from, to]] of windows.entries()) {
      const expected = times(shown[index]!, each);
      expect(forwards(recurrence, from, to)).toEqual(expected);
      expect(backwards(recurrence, from, to)).toEqual(expected);
    }
  });

  it("comes to the second", () => {
    const each: Case = {
      cron: "5,50 */10 * * * *",
      wild: true,
      matches: ({ minute, second }) => minute % 10 === 0 && [5, 50].includes(second),
    };
    const fixed: Case = {
      cron: "59 59 1,2 * * *",
      matches: ({ hour, minute, second }) => [1, 2].includes(hour) && minute === 59 && second === 59,
    };
    for (const at of moments.slice(0, 2)) {
      const [from, to] = [at - 2 * hour, at + 2 * hour];
      const seconds = clocks(zone, from, to, 1_000);
      for (const one of [each, fixed]) {
        expect(forwards(cronOf(one.cron, zone), from, to)).toEqual(times(seconds, one));
        expect(backwards(cronOf(one.cron, zone), from, to)).toEqual(times(seconds, one));
      }
    }
  });

  it("comes once a day, for years", () => {
    for (const [cron, time] of [
      ["@daily", "00:00"],
      ["15 2 * * *", "02:15"],
      ["45 1 * * *", "01:45"],
    ] as const) {
      const expected: number[] = [];
      for (
        let date = Temporal.PlainDate.from("2026-01-02");
        date.year < (full ? 2029 : 2027);
        date = date.add({ days: 1 })
      ) {
        expected.push(date.toPlainDateTime(Temporal.PlainTime.from(time)).toZonedDateTime(zone).epochMilliseconds);
      }
      const recurrence = cronOf(cron, zone);
      const from = expected[0]! - 1;
      expect(forwards(recurrence, from, expected.at(-1)!)).toEqual(expected);
      expect(backwards(recurrence, from, expected.at(-1)!)).toEqual(expected);
    }
  });

  it("is found from hours and days away", () => {
    const yearly = cronOf("30 2 1 7 *", zone);
    const [before, time, next] = [2026, 2027, 2028].map(
      (year) => Temporal.PlainDateTime.from(`${year}-07-01T02:30`).toZonedDateTime(zone).epochMilliseconds,
    );
    for (let away = 0; away < 100 * hour; away += full ? hour / 2 : 2.5 * hour) {
      expect(latestUntil(yearly, now, time! + away)).toBe(time);
      expect(latestUntil(yearly, now, time! - 1 - away)).toBe(before);
      expect(nextAfter(yearly, time! - 1 - away)).toBe(time);
      expect(nextAfter(yearly, time! + away)).toBe(next);
    }
  });

  it("keeps to its clocks, whatever the cron and the moment", () => {
    const some = (from: number, to: number) =>
      fc.uniqueArray(fc.integer({ min: from, max: to }), { minLength: 1, maxLength: 5 });
    const minutes = some(0, 59);
    const hours = fc.option(some(0, 4));
    fc.assert(
      fc.property(minutes, hours, fc.nat({ max: shown.length - 1 }), (minutes, hours, index) => {
        const [from, to] = windows[index]!;
        const expected = times(shown[index]!, {
          cron: "",
          wild: hours === null,
          matches: ({ hour, minute }) => minutes.includes(minute) && (hours?.includes(hour) ?? true),
        });
        const recurrence = cronOf(`${minutes.join()} ${hours?.join() ?? "*"} * * *`, zone);
        expect(forwards(recurrence, from, to)).toEqual(expected);
        expect(backwards(recurrence, from, to)).toEqual(expected);
      }),
      { numRuns: full ? 30 : 10 },
    );
  });
});

describe("where the clocks change", () => {
  const berlin = (cron: string, from: string, to: string) =>
    forwards(cronOf(cron, "Europe/Berlin"), utc(from), utc(to)).map((at) => new Date(at).toISOString().slice(11, 16));

  it("releases a skipped time as much later as they jump", () => {
    const [from, to] = ["2026-03-29T00:30:00Z", "2026-03-29T04:00:00Z"];
    expect(berlin("30 2 * * *", from, to)).toEqual(["01:30"]); // 03:30
    expect(berlin("0 */2 * * *", from, to)).toEqual(["01:00", "02:00", "04:00"]); // 03:00 for 02:00, 04:00, 06:00
    expect(berlin("*/30 2 * * *", from, to)).toEqual(["01:00", "01:30"]);
    expect(berlin("30 2,3 * * *", from, to)).toEqual(["01:30"]);
    const howe = cronOf("0 * * * *", "Australia/Lord_Howe");
    const times = forwards(howe, utc("2026-10-03T14:00:00Z"), utc("2026-10-03T17:00:00Z"));
    expect(times).toEqual(["14:30", "15:30", "16:00", "17:00"].map((time) => utc(`2026-10-03T${time}:00Z`)));
  });

  it("releases a repeated time the first time, or both times with a wildcard", () => {
    const [from, to] = ["2026-10-24T22:30:00Z", "2026-10-25T03:00:00Z"];
    expect(berlin("30 2 * * *", from, to)).toEqual(["00:30"]);
    expect(berlin("0 1-3 * * *", from, to)).toEqual(["23:00", "00:00", "02:00"]);
    expect(berlin("0 * * * *", from, to)).toEqual(["23:00", "00:00", "01:00", "02:00", "03:00"]);
    expect(berlin("0 */2 * * *", from, to)).toEqual(["00:00", "01:00", "03:00"]);
  });

  it("finds the rest of a gap and of a repeated hour from within them", () => {
    const skipped = cronOf("0,30 2 * * *", "Europe/Berlin");
    expect(nextAfter(skipped, utc("2026-03-29T01:10:00Z"))).toBe(utc("2026-03-29T01:30:00Z"));
    expect(latestUntil(skipped, now, utc("2026-03-29T01:20:00Z"))).toBe(utc("2026-03-29T01:00:00Z"));
    const repeated = cronOf("0,30 2 * * *", "Europe/Berlin");
    expect(nextAfter(repeated, utc("2026-10-25T00:45:00Z"))).toBe(utc("2026-10-26T01:00:00Z"));
    expect(latestUntil(repeated, now, utc("2026-10-25T01:45:00Z"))).toBe(utc("2026-10-25T00:30:00Z"));
  });

  it("loses no day to one that a zone leaves out", () => {
    const apia = cronOf("0 12 * * *", "Pacific/Apia"); // 30 December 2011 was none
    expect(forwards(apia, utc("2011-12-29T00:00:00Z"), utc("2012-01-01T00:00:00Z"))).toEqual(
      ["29T22", "30T22", "31T22"].map((time) => utc(`2011-12-${time}:00:00Z`)),
    );
  });
});

describe("a cron", () => {
  const first = (cron: string, after = "2026-01-01T00:00:00Z") =>
    new Date(nextAfter(cronOf(cron), utc(after))!).toISOString().slice(0, 19);

  it.each([
    ["@hourly", "2026-01-01T01:00:00"],
    ["@daily", "2026-01-02T00:00:00"],
    ["@midnight", "2026-01-02T00:00:00"],
    ["@weekly", "2026-01-04T00:00:00"],
    ["@monthly", "2026-02-01T00:00:00"],
    ["@yearly", "2027-01-01T00:00:00"],
    ["@annually", "2027-01-01T00:00:00"],
    ["0 9 * * MON-FRI", "2026-01-01T09:00:00"],
    ["15 10 5 * fri", "2026-01-02T10:15:00"], // the 5th, or a Friday
    ["0 0 * * 7", "2026-01-04T00:00:00"],
    ["0 0 31 4,5 *", "2026-05-31T00:00:00"],
    ["0 0 L * *", "2026-01-31T00:00:00"],
    ["0 0 * * FRI#2", "2026-01-09T00:00:00"],
    ["0 0 29 2 *", "2028-02-29T00:00:00"],
    ["10 0 0 * * *", "2026-01-01T00:00:10"],
  ])("%s", (cron, expected) => {
    expect(first(cron)).toBe(expected);
  });

  it("comes after a time, never at it", () => {
    const daily = cronOf("@daily");
    expect(nextAfter(daily, now)).toBe(now + day);
    expect(nextAfter(daily, now - 1)).toBe(now);
    expect(latestUntil(daily, now, now)).toBeUndefined();
    expect(latestUntil(daily, now - 1, now)).toBe(now);
    expect(latestUntil(daily, now, now + day - 1)).toBeUndefined();
    expect(latestUntil(daily, now, now + day)).toBe(now + day);
    expect(latestUntil(daily, now + day, now)).toBeUndefined();
  });

  it("skips a century without a 29 February", () => {
    expect(nextAfter(cronOf("0 0 29 2 *", "Europe/Berlin"), utc("2096-03-01T00:00:00Z"))).toBe(
      utc("2104-02-28T23:00:00Z"),
    );
    expect(latestUntil(cronOf("0 0 29 2 *"), now, utc("2104-02-01T00:00:00Z"))).toBe(utc("2096-02-29T00:00:00Z"));
  });

  it("catches up at once, however often it comes", () => {
    const began = performance.now();
    for (const cron of ["* * * * * *", "0 0 29 2 *", "30 2 * * *"]) {
      const recurrence = cronOf(cron, "Europe/Berlin");
      for (let round = 0; round < 50; round++) latestUntil(recurrence, now, now + 50 * 365 * day);
    }
    expect(performance.now() - began).toBeLessThan(1_000);
  });
});

describe("steps", () => {
  const every = fc.integer({ min: 1_000, max: 400 * day });
  const later = fc.integer({ min: -day, max: 20_000 * day });

  it("count from when they were made, and never drift", () => {
    fc.assert(
      fc.property(every, later, (every, later) => {
        const recurrence = recurrenceOf({ every }, now, "A test");
        const next = nextAfter(recurrence, now + later)!;
        expect(next).toBeGreaterThan(now + later);
        expect(next).toBeGreaterThanOrEqual(now + every);
        expect((next - now) % every).toBe(0);
        if (next > now + every) expect(next - (now + later)).toBeLessThanOrEqual(every);
      }),
    );
    const fiveMinutes = recurrenceOf({ every: "5m" }, now + 7, "A test");
    expect(forwards(fiveMinutes, now, now + 20 * minute)).toEqual([5, 10, 15].map((m) => now + 7 + m * minute));
  });

  it("are found from the end as from the beginning", () => {
    fc.assert(
      fc.property(
        every,
        fc.nat({ max: 50 }),
        fc.nat({ max: 50 }),
        fc.integer({ min: -1, max: 1 }),
        (every, a, b, off) => {
          const recurrence = recurrenceOf({ every }, now, "A test");
          const [after, at] = [now + a * every + off, now + b * every];
          expect(latestUntil(recurrence, after, at)).toBe(forwards(recurrence, after, at).at(-1));
        },
      ),
    );
  });
});

it("goes on, and is found from the end as from the beginning", () => {
  const crons = ["*/20 * * * * *", "*/7 1-3 * * *", "0 0 * * 1", "30 2 28-31 3,10 *", "0 12 1 */5 *", "59 23 L * *"];
  const start = fc.integer({ min: now, max: now + 3 * 365 * day });
  const length = fc.constantFrom(minute, hour, 7 * hour, 3 * day, 40 * day, 400 * day);
  fc.assert(
    fc.property(fc.constantFrom(...crons), fc.constantFrom(...zones), start, length, (cron, zone, after, length) => {
      const recurrence = cronOf(cron, zone);
      const at = after + (cron.startsWith("*") ? Math.min(length, 7 * hour) : length);
      const times = forwards(recurrence, after, at);
      expect(times).toEqual([...new Set(times)].sort((a, b) => a - b));
      expect(latestUntil(recurrence, after, at)).toBe(times.at(-1));
      for (const time of times.slice(0, 20)) {
        expect(nextAfter(recurrence, time - 1)).toBe(time);
        expect(latestUntil(recurrence, after, time)).toBe(time);
      }
    }),
    { numRuns: full ? 100 : 25 },
  );
});

describe("an end", () => {
  it.each<RecurrenceOptions>([{ every: "1h" }, { cron: "@hourly" }])(
    "is the last time that may come: %o",
    (options) => {
      for (const until of [new Date(now + 3 * hour), "2026-01-01T04:00:00+01:00"]) {
        const recurrence = recurrenceOf({ ...options, until }, now, "A test");
        expect(forwards(recurrence, now, now + day)).toEqual([now + hour, now + 2 * hour, now + 3 * hour]);
        expect(latestUntil(recurrence, now, now + day)).toBe(now + 3 * hour);
        expect(latestUntil(recurrence, now + 3 * hour, now + day)).toBeUndefined();
      }
    },
  );
});

it("is plain data", () => {
  const until = "2027-01-01T00:00:00Z";
  const made = [
    recurrenceOf({ every: "90s", until }, now, "A test"),
    recurrenceOf({ cron: "@daily" }, now, "A test"),
    recurrenceOf({ cron: "0 9 * * *", timeZone: "Europe/Berlin", until: new Date(until) }, now, "A test"),
  ];
  expect(made).toEqual([
    { everyMs: 90_000, from: now, until: utc(until) },
    { cron: "@daily", timeZone: "UTC" },
    { cron: "0 9 * * *", timeZone: "Europe/Berlin", until: utc(until) },
  ]);
  expect(JSON.parse(JSON.stringify(made))).toEqual(made);
});

describe("refuses", () => {
  const cron = "0 9 * * *";
  const fields = "expected `cron` to be five fields, six with the second first, or a preset";

  it.each<[string, object, string]>([
    ["neither", {}, "A test: expected either `every` or `cron`"],
    ["both", { every: "1h", cron }, "expected either `every` or `cron`"],
    ["a time zone with steps", { every: "1h", timeZone: "UTC" }, "expected `timeZone` only with `cron`"],
    ["too short steps", { every: 999 }, "expected `every` to be at least one second, got 999"],
    ["no steps", { every: 0 }, "expected `every` to be at least one second, got 0"],
    ["negative steps", { every: -5_000 }, "A test, `every`: expected milliseconds or a duration"],
    ["NaN", { every: Number.NaN }, "A test, `every`: expected milliseconds or a duration"],
    ["steps without a unit", { every: "5 minutes" as Duration }, 'got "5 minutes"'],
    ["steps of more than a century", { every: "40000d" }, 'got "40000d"'],
    ["an empty cron", { cron: "" }, `${fields} such as "@daily", got ""`],
    ["a day beyond the 31st", { cron: "0 0 32 * *" }, 'got "0 0 32 * *" (its day of the month is out of range)'],
    ["blanks", { cron: " " }, `${fields} such as "@daily", got " "`],
    [
      "more than any schedule says",
      { cron: "0,".repeat(50_000) },
      "`cron` to have 1000 characters at most, not 100000",
    ],
    ["four fields", { cron: "0 9 * *" }, fields],
    ["seven fields", { cron: "0 0 9 * * * 2030" }, fields],
    ["a time", { cron: "2030-01-01T00:00:00Z" }, fields],
    ["no text", { cron: 5 }, `${fields} such as "@daily", got 5`],
    ["an unknown preset", { cron: "@reboot" }, fields],
    ["minute 60", { cron: "60 * * * *" }, 'got "60 * * * *"'],
    ["hour 24", { cron: "0 24 * * *" }, fields],
    ["day 0", { cron: "0 0 0 * *" }, fields],
    ["month 13", { cron: "0 0 1 13 *" }, fields],
    ["words", { cron: "every day at nine o'clock" }, fields],
    ["half a number", { cron: "5x * * * *" }, fields],
    ["a step without a range", { cron: "5/10 * * * *" }, fields],
    ["a step of nothing", { cron: "*/0 * * * *" }, fields],
    ["a range from its end", { cron: "0 17-9 * * *" }, fields],
    ["30 February", { cron: "0 0 30 2 *" }, 'expected a `cron` that comes at some time, got "0 0 30 2 *"'],
    ["31 June", { cron: "0 0 31 4,6,9,11 *", timeZone: "Europe/Berlin" }, "expected a `cron` that comes at some time"],
    [
      "an unknown zone",
      { cron, timeZone: "Europe/Bärlin" },
      'expected `timeZone` to be an IANA name such as "Europe/Berlin"',
    ],
    ["no zone", { cron, timeZone: "" }, 'IANA name such as "Europe/Berlin", got ""'],
    ["an offset", { cron, timeZone: "+01:00" }, 'got "+01:00"'],
    ["a malformed end", { cron, until: "tomorrow" }, "A test: expected `until` to be a Date or an RFC 3339 time"],
    [
      "an end without an offset",
      { cron, until: "2030-01-01T00:00:00" },
      "expected `until` to be a Date or an RFC 3339 time",
    ],
    ["no date", { cron, until: new Date(Number.NaN) }, "expected `until` to be a Date"],
    ["an end that has passed", { cron, until: "2025-12-31T23:59:59Z" }, "expected `until` to lie in the future"],
    ["an end at once", { cron, until: new Date(now) }, "expected `until` to lie in the future"],
    ["an end beyond sense", { cron, until: "9999-01-01T00:00:00Z" }, "expected `until` within a century"],
    [
      "an end before the first time",
      { cron, until: "2026-01-01T08:00:00Z" },
      'expected `until` not to come before the first time, 2026-01-01T09:00:00.000Z, got "2026-01-01T08:00:00Z"',
    ],
  ])("%s", (_name, options, message) => {
    expect(() => recurrenceOf(options as RecurrenceOptions, now, "A test")).toThrow(
      expect.objectContaining({ code: "invalid-option", message: expect.stringContaining(message) }),
    );
  });

  it.each(["", "* * * *", "0 0 0 * *", "0 0 32 * *", "0 0 1 13 *"])("%o in its own words", (cron) => {
    expect(() => recurrenceOf({ cron }, now, "A test")).toThrow(
      expect.objectContaining({ message: expect.not.stringMatching(/seven|31|-1|: 12|CronPattern/) }),
    );
  });
});
