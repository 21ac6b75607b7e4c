import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { nativeFor, releasesByItself } from "./native.ts";
import { pendingFor } from "./pending.ts";
import { dueAt, type ScheduleOptions } from "./when.ts";

/**
 * Turns a message into what has to be published, in this order, for it to be released later: by the server where it does
 * that (2.12), else by a function.
 * @throws SortieError `schedule-refused` where the schedule could not survive until it is due, `invalid-option` for a malformed time.
 */
export function scheduled(
  connection: Connection,
  outgoing: Outgoing,
  stream: StreamDefinition,
  { id, ...when }: ScheduleOptions & { readonly id: string },
  now: number,
): Outgoing[] {
  const what = `A schedule for "${outgoing.subject}"`;
  const at = dueAt(when, now, what);
  if (!stream.schedules) {
    throw new SortieError("schedule-refused", `${what}: stream "${stream.name}" is defined with \`schedules: false\``);
  }
  if (releasesByItself(connection)) return [nativeFor(outgoing, stream, id, at, now, what)];
  return pendingFor(outgoing, stream.name, id, at, now);
}
