import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { serverIsAtLeast } from "../nats/jetstream.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { idHeader, tokenOf } from "./when.ts";

/** The header that says when (NATS ADR-51). */
export const scheduleHeader = "Nats-Schedule";

/** Whether the server releases messages by itself (NATS ADR-51). */
export function releasesByItself(connection: Connection): boolean {
  return serverIsAtLeast(connection, "2.12");
}

/** All the subjects where a stream keeps its schedules, one each, where the server releases them. */
export function scheduleSubjects(stream: string): string {
  return `sortie.schedule.${stream}.*`;
}

/** The message that the server releases another one for: `Nats-Schedule: @at …` on a subject of its own. */
export function nativeFor(
  outgoing: Outgoing,
  stream: StreamDefinition,
  id: string,
  at: Date,
  now: number,
  what: string,
): Outgoing {
  if (stream.maxAgeMs > 0 && at.getTime() - now >= stream.maxAgeMs) {
    throw new SortieError(
      "schedule-refused",
      `${what} at ${at.toISOString()} would be deleted before it is due: stream "${stream.name}" keeps messages for ${stream.maxAgeMs / 1000} s (maxAge)`,
    );
  }
  const headers = [
    [idHeader, id],
    [scheduleHeader, `@at ${at.toISOString()}`],
    ["Nats-Schedule-Target", outgoing.subject],
    ...(outgoing.headers ?? []),
  ] as const;
  return { ...outgoing, subject: `sortie.schedule.${stream.name}.${tokenOf(id)}`, headers };
}
