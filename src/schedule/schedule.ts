import type { StreamDefinition } from "../define/stream.ts";
import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { serverIsAtLeast } from "../nats/jetstream.ts";
import { assertId, type Headers, type Outgoing } from "../publish/outgoing.ts";

/** When a message is released: after a while, or at a point in time. */
export type When = { in: Duration; at?: never } | { at: Date | string; in?: never };

export type ScheduleOptions = When & {
  /** Names the schedule within its stream: scheduling again with the same name replaces it while it has not fired. */
  id?: string | undefined;
};

/** The first server that releases messages by itself (NATS ADR-51). */
const schedulesNeed = "2.12";

const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i;

/** The server counts nanoseconds in 64 bits; a later time would wrap round and be released at once. */
const latestMs = Date.parse("2262-04-11T00:00:00Z");

/** The header that carries a message's id through its release: the server drops `Nats-Msg-Id` there. */
export const idHeader = "Sortie-Id";

/** Where a stream keeps its schedules, one subject each. */
function scheduleSubject(stream: string, id: string): string {
  return `sortie.schedule.${stream}.${tokenOf(id)}`;
}

/** All the subjects where a stream keeps its schedules. */
export function scheduleSubjects(stream: string): string {
  return `sortie.schedule.${stream}.*`;
}

/**
 * Turns a message into the schedule that releases it (NATS ADR-51: `Nats-Schedule: @at …` on a subject of its own).
 * @throws SortieError `schedule-refused` where the schedule could not survive until it is due, `invalid-option` for a malformed time.
 */
export function scheduled(
  outgoing: Outgoing,
  stream: StreamDefinition,
  { id, ...when }: { id: string } & When,
  now: number,
): { at: Date; outgoing: Outgoing } {
  const what = `A schedule for "${outgoing.subject}"`;
  const at = dueAt(when, now, what);
  if (!stream.schedules) {
    throw new SortieError("schedule-refused", `${what}: stream "${stream.name}" is defined with \`schedules: false\``);
  }
  if (at.getTime() > latestMs) {
    throw new SortieError("schedule-refused", `${what} at ${at.toISOString()}: the server's clock ends in April 2262`);
  }
  if (stream.maxAgeMs > 0 && at.getTime() - now >= stream.maxAgeMs) {
    throw new SortieError(
      "schedule-refused",
      `${what} at ${at.toISOString()} would be deleted before it is due: stream "${stream.name}" keeps messages for ${stream.maxAgeMs / 1000} s (maxAge)`,
    );
  }
  const headers: Headers = [
    [idHeader, id],
    ["Nats-Schedule", `@at ${at.toISOString()}`],
    ["Nats-Schedule-Target", outgoing.subject],
  ];
  return { at, outgoing: { ...outgoing, subject: scheduleSubject(stream.name, id), headers } };
}

function dueAt(when: When, now: number, what: string): Date {
  if ((when.in === undefined) === (when.at === undefined)) {
    throw new SortieError("invalid-option", `${what}: expected either \`in\` or \`at\``);
  }
  if (typeof when.at === "string" && !rfc3339.test(when.at)) throw malformed(when.at);
  const at = when.in === undefined ? new Date(when.at) : new Date(now + toMs(when.in, what));
  if (Number.isNaN(at.getTime())) throw malformed(when.at ?? when.in);
  return at;

  function malformed(got: unknown): SortieError {
    return new SortieError(
      "invalid-option",
      `${what}: expected \`at\` to be a Date or an RFC 3339 time with its offset, such as "2030-01-01T10:00:00Z", got ${JSON.stringify(got)}`,
    );
  }
}

/** One subject token for any id, different ids giving different tokens. */
function tokenOf(id: string): string {
  assertId(id, "A schedule");
  return encodeURIComponent(id).replace(/[.*!'()~]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** Throws `schedule-refused` where the connected server would store a schedule as an ordinary message. */
export function assertSchedules(connection: Connection, subject: string): void {
  if (serverIsAtLeast(connection, schedulesNeed)) return;
  throw new SortieError(
    "schedule-refused",
    `A schedule for "${subject}" needs nats-server ${schedulesNeed} or newer; this one is ${connection.info?.version}`,
  );
}
