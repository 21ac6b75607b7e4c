import type { StreamDefinition } from "../define/stream.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { serverIsAtLeast } from "../nats/jetstream.ts";
import type { StoredMessage } from "../nats/stored-message.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { assertFits, isOutrun, type Published, publish } from "../publish/publish.ts";
import {
  changeable,
  isReleasedByServer,
  nativeFor,
  nativeOf,
  nativeSubject,
  removeNative,
  replaceNative,
} from "./native.ts";
import {
  type Carried,
  expectedLast,
  memoFor,
  namelessFor,
  noteFor,
  pendingFor,
  pendingOf,
  rememberedMs,
  scheduleSubject,
} from "./pending.ts";
import { occurrenceAfter, type RecurringOptions, recurringOf, releasedFor, releaseIdOf } from "./recurring.ts";
import { storedSchedule } from "./stored-schedule.ts";
import { assertWithin, dueAt, releasedHeaders, tokenOf, type When } from "./when.ts";

/** When a message is released, once or time and again. */
export type ScheduleOptions =
  | (When & {
      /** Names the schedule within its stream: scheduling again with the same name replaces it while it has not fired. */
      id?: string | undefined;
    })
  | (RecurringOptions & { id: string; in?: never; at?: never });

/** A message that is ready to be scheduled. */
export interface Scheduled {
  /** When it is released, the first time if it comes again. */
  readonly at: Date;
  /**
   * Stores it; answers where, and whether it was there already.
   * @throws SortieError as `publish` does.
   */
  store(ms: number): Promise<Published>;
}

export type Named = ScheduleOptions & {
  readonly id: string;
  /** Whether nobody knows it by its id, so that it is never looked at, replaced or cancelled. */
  readonly nameless?: boolean;
  /** Whose definition it is. */
  readonly owner?: string;
  /** Whether it waits until somebody resumes it. */
  readonly isPaused?: boolean;
  /** Whether it is refused (`isOutrun`) where another one has its id, instead of replacing that. */
  readonly isFirst?: boolean;
};

/**
 * Makes a message one that is released later: by the server where it does that (2.12) and the stream has not said otherwise,
 * else by a function.
 * @throws SortieError `schedule-refused` where the schedule could not survive until it is due, `invalid-option` for a malformed time.
 */
export function scheduled(
  connection: Connection,
  outgoing: Outgoing,
  stream: StreamDefinition,
  { id, nameless = false, owner, isPaused = false, isFirst = false, ...when }: Named,
  now: number,
): Scheduled {
  const what = `A schedule for "${outgoing.subject}"`;
  const since = performance.now();
  const sentAt = () => now + (performance.now() - since); // a handler may work on before it is sent
  if (!stream.schedules) {
    throw new SortieError("schedule-refused", `${what}: stream "${stream.name}" is defined with \`schedules: false\``);
  }
  if (comesAgain(when)) {
    const recurring = recurringOf(when, now, what);
    const first = occurrenceAfter(recurring, id, now);
    if (!first) throw new SortieError("invalid-option", `${what}: expected \`until\` to leave time for one at least`);
    const { planned, due } = first;
    assertWithin(new Date(due), now, what);
    const released = releasedFor({ id, planned, at: due }, outgoing.headers ?? []);
    assertFits(connection, { ...outgoing, id: releaseIdOf({ id, planned }), headers: released });
    const again = { ...recurring, planned, owner, isPaused };
    return {
      at: new Date(planned),
      async store(ms) {
        const messages = pendingFor(outgoing, { stream: stream.name, id, at: due, recurring: again }, sentAt());
        const stored = await all(connection, messages, ms);
        if (isReleasedByServer(connection, stream)) await replaceOnServer(connection, stream.name, id, ms);
        return stored;
      },
    };
  }
  const at = dueAt(when, now, what);
  const message = {
    ...outgoing,
    headers: [...(outgoing.headers ?? []), [releasedHeaders.scheduledFor, `${at.getTime()}`]],
  } as const;
  if (isReleasedByServer(connection, stream)) {
    const schedule = nativeFor(message, stream, id, at, now, what);
    if (nameless) return { at, store: (ms) => publish(connection, schedule, ms) };
    const word = wordOfServer(connection, stream.name, id, at.getTime(), now, outgoing);
    return {
      at,
      async store(ms) {
        const stored = isFirst
          ? await publish(connection, firstOf(schedule), ms)
          : await replaceNative(connection, schedule, stream.name, ms);
        // after it: what was refused is not told of
        if (!stored.duplicate) await publish(connection, word, ms);
        else if (
          await storedSchedule(connection, stream.name, { last_by_subj: schedule.subject }, ms, "reading a schedule")
        )
          await publishIfNone(connection, word, ms); // who made it may have died before that
        return stored;
      },
    };
  }
  const pending = { stream: stream.name, id, at: at.getTime() };
  const messages = (sent: number): Outgoing[] => {
    if (nameless) return [namelessFor(message, pending, sent)];
    const [schedule, note] = pendingFor(message, pending, sent);
    return [isFirst ? firstOf(schedule) : schedule, note];
  };
  return { at, store: (ms) => all(connection, messages(sentAt()), ms) };
}

function comesAgain(options: When | RecurringOptions): options is RecurringOptions {
  return ("every" in options && options.every !== undefined) || ("cron" in options && options.cron !== undefined);
}

/** When a stored schedule is released, and to which subject. */
export function releaseOf(schedule: StoredMessage): { at: number; target: string } {
  const native = nativeOf(schedule);
  return native.target ? native : pendingOf(schedule);
}

/** A message that is stored only where none is on its subject yet. */
function firstOf(outgoing: Outgoing): Outgoing {
  return { ...outgoing, headers: [...(outgoing.headers ?? []), [expectedLast, "0"]] };
}

async function publishIfNone(connection: Connection, outgoing: Outgoing, ms: number): Promise<void> {
  try {
    await publish(connection, firstOf(outgoing), ms);
  } catch (error) {
    if (!isOutrun(error)) throw error;
  }
}

/** Publishes them in one flight, in their order; answers for the first. */
async function all(connection: Connection, messages: readonly Outgoing[], ms: number): Promise<Published> {
  const [first] = await Promise.all(messages.map((message) => publish(connection, message, ms)));
  return first as Published;
}

/** What comes again is a function's: the server is not to release what had its id before. */
async function replaceOnServer(connection: Connection, stream: string, id: string, ms: number): Promise<void> {
  const found = await changeable(connection, stream, nativeSubject(stream, tokenOf(id)), ms);
  if (found && found !== "too-late") await removeNative(connection, stream, found, ms);
}

/** What tells that the server has the schedule: while that is not due it may be looked at there; then it was released. */
export function wordOfServer(
  connection: Connection,
  stream: string,
  id: string,
  at: number,
  now: number,
  message: Carried,
): Outgoing {
  const forgetAt = Math.max(at, now) + rememberedMs;
  const subject = scheduleSubject(stream, tokenOf(id));
  return memoFor(
    { subject },
    { id, state: "on-server", at, forgetAt, seconds: secondsUntil(connection, forgetAt, now), message },
  );
}

/**
 * Tells for a while what became of a schedule, in the place of its `sequence` where that is given: until the server takes
 * that away, or a function does where neither the server nor the stream is made for it.
 * @throws SortieError as `publish` does.
 */
export async function remember(
  connection: Connection,
  stream: string,
  place: { readonly subject: string; readonly sequence?: number },
  {
    id,
    state,
    at,
    now,
    message,
  }: { id: string; state: "released" | "cancelled"; at: number; now: number; message: Carried },
  leftMs: () => number,
): Promise<void> {
  const forgetAt = Math.ceil(Math.max(at, now)) + rememberedMs;
  const seconds = secondsUntil(connection, forgetAt, now);
  const leave = (seconds?: number): Promise<Published> =>
    publish(connection, memoFor(place, { id, state, at, forgetAt, seconds, message }), leftMs());
  if (seconds !== undefined) {
    try {
      await leave(seconds);
      return;
    } catch (error) {
      if (!/TTL is disabled/i.test(textOf(error))) throw error; // the stream was made for an older server
    }
  }
  await leave();
  await publish(connection, noteFor(stream, tokenOf(id), forgetAt, now), leftMs());
}

/** For how long the server keeps something until then; undefined where it does not take things away by itself. */
function secondsUntil(connection: Connection, at: number, now: number): number | undefined {
  return serverIsAtLeast(connection, "2.11") ? Math.ceil((at - now) / 1_000) : undefined;
}
