import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";
import { assertId } from "../publish/outgoing.ts";

/** When a message is released: after a while, or at a point in time. */
export type When = { in: Duration; at?: never } | { at: Date | string; in?: never };

const rfc3339 = /^(\d{4}-\d\d-\d\d)T([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i;

const horizonMs = 10 * 366 * 86_400_000;

/** The header that carries a message's id through its release: the server drops `Nats-Msg-Id` there. */
export const idHeader = "Sortie-Id";

/** The headers by which a released message tells of its schedule. */
export const releasedHeaders = {
  /** When it was planned, in epoch milliseconds; and when it was due, where that is later. */
  scheduledFor: "Sortie-Scheduled-For",
  /** The schedule's id, where the message has one of its own. */
  schedule: "Sortie-Schedule",
} as const;

/**
 * The point in time that is meant.
 * @throws SortieError `invalid-option` for a malformed one, `schedule-refused` for one beyond ten years.
 */
export function dueAt(when: When, now: number, what: string): Date {
  assertAlone(when, what);
  const at = when.in === undefined ? notBefore(when.at, what) : new Date(now + toMs(when.in, what));
  assertWithin(at, now, what);
  return at;
}

/** The first millisecond that is not before the time that is meant. */
function notBefore(time: Date | string, what: string): Date {
  const at = timeOf(time, "at", what);
  const isBetween = typeof time === "string" && /\.\d{3}\d*[1-9]/.test(time); // which a Date leaves out
  return isBetween ? new Date(at.getTime() + 1) : at;
}

/** Throws `schedule-refused` for a time beyond ten years. */
export function assertWithin(at: Date, now: number, what: string): void {
  if (at.getTime() - now <= horizonMs) return;
  throw new SortieError("schedule-refused", `${what} at ${at.toISOString()}: expected a time within ten years`);
}

/** Throws `invalid-option` for what is not an object: `such` says what is expected. */
export function assertOptions(options: unknown, such: string, what: string): void {
  if (typeof options === "object" && options !== null) return;
  throw new SortieError("invalid-option", `${what}: expected ${such}, got ${shown(options)}`);
}

/** A message is released in one way: what belongs to another one would be left out without a word. */
export function assertAlone(options: object, what: string): void {
  assertOptions(options, 'options such as { in: "30s" }', what);
  const given = Object.entries(options).flatMap(([name, value]) => (value === undefined ? [] : [name]));
  const [way, ...others] = ["in", "at", "every", "cron"].filter((name) => given.includes(name));
  if (way === undefined || others.length > 0) {
    const got = way === undefined ? "none of them" : [way, ...others].join(" and ");
    throw new SortieError(
      "invalid-option",
      `${what}: expected one of \`in\`, \`at\`, \`every\` and \`cron\`, got ${got}`,
    );
  }
  const known = ["every", "cron"].includes(way) ? [way, "timeZone", "until", "catchUp", "overlap", "jitter"] : [way];
  const unknown = given.filter((name) => !known.includes(name));
  if (unknown.length > 0)
    throw new SortieError("invalid-option", `${what}: expected nothing like ${unknown.join(", ")} with \`${way}\``);
}

/** The point in time that an option names. Throws `invalid-option` for a malformed one. */
export function timeOf(time: Date | string, option: string, what: string): Date {
  const [, day] = (typeof time === "string" && rfc3339.exec(time)) || [];
  const isDay = day !== undefined && new Date(`${day}T00:00Z`).getUTCDate() === Number(day.slice(8)); // not 30 February
  const isTime = time instanceof Date || isDay;
  const date = isTime ? new Date(time) : undefined;
  if (date && !Number.isNaN(date.getTime())) return date;
  throw new SortieError(
    "invalid-option",
    `${what}: expected \`${option}\` to be a Date or an RFC 3339 time with its offset, such as "2030-01-01T10:00:00Z", got ${shown(time)}`,
  );
}

/** One subject token for any id, different ids giving different tokens. */
export function tokenOf(id: string): string {
  assertId(id, "A schedule");
  if (/^\.{1,2}$/.test(id))
    throw new SortieError("invalid-option", `A schedule: expected an id that a URL can end with, got "${id}"`);
  return encodeURIComponent(id).replace(/[.*!'()~]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** The id that has this token. */
export function idOf(token: string): string {
  return decodeURIComponent(token);
}
