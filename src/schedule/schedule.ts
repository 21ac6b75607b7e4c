import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { headerOf, type StoredMessage } from "../nats/stored-message.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { nativeFor, releasesByItself, scheduleHeader } from "./native.ts";
import { pendingFor, pendingHeaders } from "./pending.ts";
import { dueAt, type ScheduleOptions } from "./when.ts";

/** The server counts nanoseconds in 64 bits; a later time would wrap round and be released at once. */
const latestMs = Date.parse("2262-04-11T00:00:00Z");

/** When a message is released, and what has to be published for that, in this order. */
export interface Scheduled {
  readonly at: Date;
  readonly messages: readonly Outgoing[];
}

/**
 * Turns a message into what has to be published for it to be released later: by the server where it does
 * that (2.12), else by a function.
 * @throws SortieError `schedule-refused` where the schedule could not survive until it is due, `invalid-option` for a malformed time.
 */
export function scheduled(
  connection: Connection,
  outgoing: Outgoing,
  stream: StreamDefinition,
  { id, ...when }: ScheduleOptions & { readonly id: string },
  now: number,
): Scheduled {
  const what = `A schedule for "${outgoing.subject}"`;
  const at = dueAt(when, now, what);
  if (!stream.schedules) {
    throw new SortieError("schedule-refused", `${what}: stream "${stream.name}" is defined with \`schedules: false\``);
  }
  if (at.getTime() > latestMs) {
    throw new SortieError("schedule-refused", `${what} at ${at.toISOString()}: the server's clock ends in April 2262`);
  }
  const messages = releasesByItself(connection)
    ? [nativeFor(outgoing, stream, id, at, now, what)]
    : pendingFor(outgoing, stream.name, id, at, now);
  return { at, messages };
}

/** When a schedule that is stored releases its message. */
export function releaseTimeOf(schedule: StoredMessage): Date {
  const native = headerOf(schedule, scheduleHeader)?.replace(/^@at /, "");
  return new Date(native ?? Number(headerOf(schedule, pendingHeaders.at)));
}
