import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { serverIsAtLeast } from "../nats/jetstream.ts";
import { headerOf, type StoredMessage } from "../nats/stored-message.ts";
import { pause, within } from "../nats/within.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { isOutrun, type Published, publish } from "../publish/publish.ts";
import { expectedLast } from "./pending.ts";
import { schedulesInfo, storedSchedule } from "./stored-schedule.ts";
import { idHeader, tokenOf } from "./when.ts";

/** The header that says when (NATS ADR-51). */
const scheduleHeader = "Nats-Schedule";

const targetHeader = "Nats-Schedule-Target";

/**
 * So soon before it is due nothing is changed in a schedule any more: the server may have taken it up, and would then release
 * it in spite of a removal, or remove what has replaced it.
 */
const settledBeforeMs = 1_000;

/** So much later than it is due the server may take one up; by then it is not to be deleted. */
const tickMs = 1_000;

/** Whether the server releases messages by itself (NATS ADR-51). */
export function releasesByItself(connection: Connection): boolean {
  return serverIsAtLeast(connection, "2.12");
}

/** Whether the server releases what is scheduled into this stream. */
export function isReleasedByServer(connection: Connection, { schedules }: StreamDefinition): boolean {
  return schedules === "server" && releasesByItself(connection);
}

/** All the subjects where a stream keeps its schedules, one each, where the server releases them. */
export function scheduleSubjects(stream: string): string {
  return `sortie.schedule.${stream}.*`;
}

/** The subject where the server keeps one. */
export function nativeSubject(stream: string, token: string): string {
  return `sortie.schedule.${stream}.${token}`;
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
  if (stream.maxAgeMs > 0 && at.getTime() - now > stream.maxAgeMs - tickMs) {
    throw new SortieError(
      "schedule-refused",
      `${what} at ${at.toISOString()} would be deleted before it is due, or within a second of that: stream "${stream.name}" keeps messages for ${stream.maxAgeMs / 1000} s (maxAge), its schedules among them. Give the stream \`schedules: "function"\`, which keeps them elsewhere`,
    );
  }
  const headers = [
    [idHeader, id],
    [scheduleHeader, `@at ${new Date(Math.max(0, at.getTime())).toISOString()}`], // which the server can read
    [targetHeader, outgoing.subject],
    ...(outgoing.headers ?? []),
  ] as const;
  return { ...outgoing, subject: nativeSubject(stream.name, tokenOf(id)), headers };
}

/** When the server releases it, and to which subject. */
export function nativeOf(schedule: StoredMessage): { at: number; target: string } {
  const at = Date.parse(headerOf(schedule, scheduleHeader)?.replace(/^@at /, "") ?? "");
  return { at, target: headerOf(schedule, targetHeader) ?? "" };
}

/** Stores a schedule in the place of the one with its id, where there is one. */
export async function replaceNative(
  connection: Connection,
  schedule: Outgoing,
  stream: string,
  ms: number,
): Promise<Published> {
  const deadline = Date.now() + ms;
  const leftMs = () => Math.max(1, deadline - Date.now());
  for (let [expected, within] = [0, ms]; ; ) {
    try {
      const headers = [...(schedule.headers ?? []), [expectedLast, `${expected}`]] as const;
      return await publish(connection, { ...schedule, headers }, Math.min(within, leftMs()));
    } catch (error) {
      if (!isOutrun(error) || leftMs() <= 1) throw error;
    }
    const found = await changeable(connection, stream, schedule.subject, leftMs());
    if (found === "too-late") await pause(100, "waiting for what is released meanwhile");
    if (!found || found === "too-late") {
      [expected, within] = [0, ms];
      continue;
    }
    const isSame = schedule.id !== undefined && headerOf(found.schedule, "Nats-Msg-Id") === schedule.id;
    if (isSame) return { stream, sequence: found.schedule.sequence, duplicate: true };
    [expected, within] = [found.schedule.sequence, found.withinMs];
  }
}

/** A schedule that waits on the server, and for how long from now it can still be changed. */
export interface Changeable {
  readonly schedule: StoredMessage;
  readonly withinMs: number;
  /** The time by the server's clock, or a little less, in epoch milliseconds. */
  readonly serverNow: number;
}

/**
 * What waits on a subject, with the time in which it may be changed: what the server has confirmed by then was done before it
 * took it up. `too-late` where it is so nearly due that only the server knows; undefined where nothing waits.
 */
export async function changeable(
  connection: Connection,
  stream: string,
  subject: string,
  ms: number,
): Promise<Changeable | "too-late" | undefined> {
  const asked = performance.now();
  const [schedule, serverNow] = await Promise.all([
    storedSchedule(connection, stream, { last_by_subj: subject }, ms, "reading a schedule"),
    serverTime(connection, stream, ms),
  ]);
  if (!schedule) return undefined;
  const leftMs = nativeOf(schedule).at - serverNow - (performance.now() - asked);
  return leftMs < settledBeforeMs ? "too-late" : { schedule, withinMs: leftMs, serverNow };
}

/** The time by the server's clock, or a little less; `ours` where it does not tell (before 2.10). */
export async function serverTime(connection: Connection, stream: string, ms: number, ours = NaN): Promise<number> {
  const { ts } = await schedulesInfo(connection, stream, ms, "asking for the server's time");
  return ts === undefined ? ours : Date.parse(ts);
}

/** Takes away what can still be changed; false where it is gone by then. */
export async function removeNative(
  connection: Connection,
  stream: string,
  { schedule, withinMs }: Changeable,
  ms: number,
): Promise<boolean> {
  const allowed = Math.min(withinMs, ms);
  const what = JSON.stringify({ seq: schedule.sequence, no_erase: true });
  const asked = connection.request(`$JS.API.STREAM.MSG.DELETE.${stream}`, what, { timeout: allowed });
  const { success, error } = (await within(allowed, "removing a schedule", asked)).json<{
    success?: boolean;
    error?: { code: number; err_code?: number; description?: string };
  }>();
  if (success) return true;
  if (error?.err_code === 10043 || error?.err_code === 10057 || error?.err_code === 10037) return false;
  throw new SortieError("stream-refused", `Stream "${stream}" did not let go of a schedule: ${error?.description}`);
}
