import { CronDate, CronPattern } from "croner";
import { type Duration, longestMs, toMs } from "../duration.ts";
import { SortieError, shown, textOf } from "../errors.ts";
import { timeOf } from "./when.ts";

/**
 * How a schedule recurs: in even steps of elapsed time, or by the clocks of a time zone.
 *
 * Where those clocks change, a cron holds to this:
 *
 * - A time that they skip is released once, as much later as they jump: 02:30 at 03:30, where 02:00 becomes 03:00. That is
 *   so for every cron; where another of its times falls on the same moment, the two are one release.
 * - A time that comes twice is released once, the first time, by a cron that names its hours, minutes and seconds, be it
 *   with lists and ranges: `30 2 * * *`, `0 8-18 * * *`. One with a wildcard or a step among them goes on through both
 *   passes, as `0 * * * *` does; so every quarter of an hour stays that, and every two hours is 00:00, 02:00, 02:00, 04:00.
 */
export type RecurrenceOptions = {
  /** None is released after this time: a `Date`, or an RFC 3339 time with its offset. */
  until?: Date | string | undefined;
} & (
  | {
      /** The time between two releases, at least `"1s"`; the first comes when it has passed once. No release shifts the next. */
      every: Duration;
      cron?: never;
      timeZone?: never;
    }
  | {
      /**
       * Minute, hour, day of the month, month and day of the week, as in `"0 9 * * MON-FRI"`; six fields have the second first.
       * Or `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. A time matches where either the day
       * of the month or that of the week does, if both are given. `L` is the last day of the month, `15W` the working day next
       * to the 15th, `FRI#2` the second Friday, `FRI#L` the last one.
       */
      cron: string;
      /** By whose clocks, as an IANA name such as `"Europe/Berlin"`. Default: `"UTC"`. */
      timeZone?: string | undefined;
      every?: never;
    }
);

/** The same as plain data, checked. Points in time are epoch milliseconds; steps count from `from`. */
export type Recurrence = { readonly until?: number } & (
  | { readonly everyMs: number; readonly from: number; readonly cron?: never }
  | { readonly cron: string; readonly timeZone: string; readonly everyMs?: never }
);

/** The recurrence that is meant, from `now` on. Throws `invalid-option` for a malformed one, and for one that never comes. */
export function recurrenceOf(options: RecurrenceOptions, now: number, what: string): Recurrence {
  const { every, cron, timeZone, until } = options;
  if ((every === undefined) === (cron === undefined)) throw invalid("either `every` or `cron`");
  if (timeZone !== undefined && typeof timeZone !== "string") throw invalid("`timeZone` to be a text", timeZone);
  const steps = cron === undefined ? evenly(every as Duration) : byClock(cron, timeZone ?? "UTC");
  const first = nextAfter(steps, now);
  if (first === undefined) throw invalid("a `cron` that comes at some time", cron);
  if (until === undefined) return steps;

  const end = timeOf(until, "until", what).getTime();
  if (end <= now) throw invalid("`until` to lie in the future", until);
  if (end > now + longestMs) throw invalid("`until` within a century, or none for a schedule without an end", until);
  if (end < first) {
    throw invalid(`\`until\` not to come before the first time, ${new Date(first).toISOString()}`, until);
  }
  return { ...steps, until: end };

  function evenly(every: Duration): Recurrence {
    if (timeZone !== undefined) throw invalid("`timeZone` only with `cron`, as `every` counts elapsed time", timeZone);
    const everyMs = toMs(every, `${what}, \`every\``);
    if (everyMs < 1_000) throw invalid("`every` to be at least one second", every);
    return { everyMs, from: now };
  }

  function byClock(cron: string, timeZone: string): Recurrence {
    if (typeof cron === "string" && cron.length > longestCron) {
      throw invalid(`\`cron\` to have ${longestCron} characters at most, not ${cron.length}`, cron);
    }
    try {
      patternOf(cron);
    } catch (error) {
      const fields = 'five fields, six with the second first, or a preset such as "@daily"';
      throw invalid(`\`cron\` to be ${fields}`, cron, error, misfit(error));
    }
    try {
      if (/^[+-]/.test(timeZone)) throw new RangeError("An offset is no time zone"); // not every runtime knows these
      offsetsOf(timeZone);
    } catch (error) {
      throw invalid('`timeZone` to be an IANA name such as "Europe/Berlin"', timeZone, error);
    }
    return { cron, timeZone };
  }

  function invalid(expected: string, got?: unknown, cause?: unknown, why = cause && textOf(cause)): SortieError {
    const tail = got === undefined ? "" : `, got ${shown(got)}${why ? ` (${why})` : ""}`;
    return new SortieError("invalid-option", `${what}: expected ${expected}${tail}`, { cause });
  }
}

/** The first time after another one; none where the recurrence has ended. */
export function nextAfter(recurrence: Recurrence, after: number): number | undefined {
  const { until = Infinity } = recurrence;
  const next = recurrence.cron === undefined ? nextStep(recurrence, after) : clockOf(recurrence).first(after);
  return next !== undefined && next <= until ? next : undefined;

  function nextStep({ everyMs, from }: { everyMs: number; from: number }, after: number): number {
    return from + Math.max(1, Math.floor((after - from) / everyMs) + 1) * everyMs;
  }
}

/** The last time after `after` and not after `at`; none where there was none. What lies between costs nothing. */
export function latestUntil(recurrence: Recurrence, after: number, at: number): number | undefined {
  const end = Math.min(at, recurrence.until ?? Infinity);
  if (recurrence.cron !== undefined) return clockOf(recurrence).last(after, end);
  const { everyMs, from } = recurrence;
  const steps = Math.floor((end - from) / everyMs);
  const latest = from + steps * everyMs;
  return steps >= 1 && latest > after ? latest : undefined;
}

const day = 86_400_000; // more than any zone is away from UTC, and than any clocks jump

/** A stretch of time, without its beginning, in which a cron's local times are this far from UTC. */
interface Span {
  readonly offset: number;
  readonly after: number;
  readonly until: number;
}

/**
 * A cron by the clocks of its zone. What local times it has is the library's to say; when these are is decided here, as no
 * library keeps the rule above. A local time is the epoch milliseconds at which UTC's clocks show it.
 */
function clockOf({ cron, timeZone }: { cron: string; timeZone: string }) {
  const pattern = patternOf(cron);
  const offsetAt = offsetsOf(timeZone);
  return { first, last };

  function first(after: number): number | undefined {
    for (let from = after; ; ) {
      const to = from + day;
      const times = spans(from, to).flatMap(({ offset, after, until }) => {
        const time = (localAfter(after + offset) ?? Infinity) - offset;
        return time <= until ? [time] : [];
      });
      if (times.length > 0) return Math.min(...times);
      const local = localAfter(to - day);
      if (local === undefined) return undefined;
      from = Math.max(to, local - day); // a day each covers any offset
    }
  }

  function last(after: number, at: number): number | undefined {
    for (let to = at; to > after; ) {
      const from = Math.max(after, to - day);
      const times = spans(from, to).flatMap(({ offset, after, until }) => {
        const time = (localUntil(until + offset) ?? -Infinity) - offset;
        return time > after ? [time] : [];
      });
      if (times.length > 0) return Math.max(...times);
      const local = localUntil(from + day);
      if (local === undefined) return undefined;
      to = Math.min(from, local + day);
    }
    return undefined;
  }

  function localAfter(local: number): number | undefined {
    return new CronDate(new Date(local), 0).increment(pattern, {}, false)?.getTime();
  }

  function localUntil(local: number): number | undefined {
    return new CronDate(new Date(local + 1), 0).decrement(pattern, {})?.getTime();
  }

  /** One span, or two where the clocks change: the old offset holds until what they skip is over, too. */
  function spans(after: number, until: number): Span[] {
    const old = offsetAt(after - day); // what was skipped before may still come
    const offset = offsetAt(until);
    if (old === offset) return [{ offset, after, until }];
    const change = changeIn(after - day, until, old);
    const skipped = Math.max(0, offset - old);
    const repeated = Math.max(0, old - offset);
    return [
      { offset: old, after, until: Math.min(until, change + skipped - 1) },
      { offset, after: Math.max(after, change + (pattern.isFixedTime ? repeated : 0) - 1), until },
    ];
  }

  /** When the clocks change, as they do between these two. */
  function changeIn(from: number, to: number, old: number): number {
    let [before, change] = [from, to];
    while (change - before > 1) {
      const middle = Math.floor((before + change) / 2);
      if (offsetAt(middle) === old) before = middle;
      else change = middle;
    }
    return change;
  }
}

/** More than any that names all of its seconds, minutes, hours and days has; it is kept in a header. */
const longestCron = 1_000;

/** Which field of a cron is wrong: its value is told otherwise than it was written, as are the numbers of fields that fit. */
function misfit(error: unknown): string {
  const [, field] = /Invalid value for (\w+)/.exec(textOf(error)) ?? [];
  const names: Record<string, string> = {
    day: "day of the month",
    nearestWeekdays: "day of the month",
    dayOfWeek: "day of the week",
  };
  return field === undefined ? "" : `its ${names[field] ?? field} is out of range`;
}

function patternOf(cron: string): CronPattern {
  return new CronPattern(cron, undefined, { mode: "5-or-6-parts", fixedTimeRule: "no-wildcard" });
}

/** How far a zone's clocks are ahead of UTC at a time, in milliseconds. Throws where there is no such zone. */
function offsetsOf(timeZone: string): (time: number) => number {
  const format = new Intl.DateTimeFormat("en-US", { timeZone, timeZoneName: "longOffset" });
  return (time) => {
    const [, sign, hours = 0, minutes = 0, seconds = 0] =
      /GMT([+-])(\d\d):(\d\d)(?::(\d\d))?$/.exec(format.format(time)) ?? [];
    const ahead = (Number(hours) * 3_600 + Number(minutes) * 60 + Number(seconds)) * 1_000;
    return sign === "-" ? -ahead : ahead;
  };
}
