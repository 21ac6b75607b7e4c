import { schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { SortieError, shown } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { headerOf, type StoredMessage } from "../nats/stored-message.ts";
import type { SubjectsPage } from "../nats/stream-info.ts";
import { pause } from "../nats/within.ts";
import { prepare, streamFor } from "../publish/outgoing.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import { decode } from "../schema.ts";
import {
  changeable,
  nativeFor,
  nativeOf,
  nativeSubject,
  releasesByItself,
  removeNative,
  scheduleSubjects,
  serverTime,
} from "./native.ts";
import {
  type Carried,
  expectedLast,
  namelessNotes,
  noteFor,
  type Pending,
  pendingHeaders,
  pendingOf,
  rewritten,
  scheduleSubject,
} from "./pending.ts";
import { occurrenceAfter, occurrencesAfter, type Recurring } from "./recurring.ts";
import { releaseDue } from "./release-due.ts";
import { type Named, remember, type ScheduleOptions, scheduled, wordOfServer } from "./schedule.ts";
import { schedulesInfo, storedSchedule, subjectsIn } from "./stored-schedule.ts";
import { assertAlone, assertOptions, idHeader, idOf, releasedHeaders, tokenOf } from "./when.ts";

/** What is known of a schedule. */
export interface ScheduleStatus {
  readonly id: string;
  readonly stream: string;
  /** Where its message is released to; left out where it is over. */
  readonly subject?: string;
  /** `releasing`: a function, or the server, has taken it up, and nothing stops it any more. */
  readonly state: "waiting" | "releasing" | "paused" | "released" | "cancelled";
  /** When it is released next; of one that is over, when it was due. */
  readonly at: Date;
  /** Its message's payload. */
  readonly data?: unknown;
  /** How it comes again. */
  readonly recurring?: Recurring;
  /** The next five times of one that comes again; while it is paused there is none. */
  readonly next?: readonly Date[];
}

export interface ListOptions {
  /** Only of this stream. @default all of the app */
  readonly stream?: string | undefined;
  /** Only ids that begin so. */
  readonly prefix?: string | undefined;
  /** Only what is released next at this time or later, */
  readonly from?: Date | undefined;
  /** and at this one or sooner. */
  readonly to?: Date | undefined;
  /** The most of them. @default 50 */
  readonly limit?: number | undefined;
  /** Goes on where another page ended: its `next`. */
  readonly after?: string | undefined;
}

export interface ScheduleList {
  /** In the order of their streams and ids. */
  readonly schedules: readonly ScheduleStatus[];
  /** Where the next page begins; left out on the last one. A page may be short, or empty, before that. */
  readonly next?: string;
}

/** Which of the app's streams a schedule is of, where several have one of its id. */
export interface Where {
  readonly stream?: string | undefined;
}

/**
 * `cancelled`: it is not released, by this call or an earlier one; of one that comes again a time that is being released may
 * still come. `already-fired`: it was released, or nothing stops that any more. `unknown`: there is none, or it was over more than seven days ago.
 */
export type Cancelled = "cancelled" | "already-fired" | "unknown";

/** The schedules of an app's streams. Each call throws SortieError, as `publish` does, where the server does not answer. */
export interface Schedules {
  /**
   * Checks a message against the schema of its subject and has it released later.
   * @throws SortieError `unknown-subject`, `invalid-payload`, `invalid-option` or `schedule-refused`.
   */
  schedule(subject: string, data: unknown, options: ScheduleOptions): Promise<{ id: string; stream: string; at: Date }>;
  /** Undefined for one that there never was, or that was released or cancelled more than seven days ago. */
  get(id: string, where?: Where): Promise<ScheduleStatus | undefined>;
  /** Those that wait. What it costs grows with how many do. */
  list(options?: ListOptions): Promise<ScheduleList>;
  cancel(id: string, where?: Where): Promise<Cancelled>;
  /** Releases it at once; one that comes again, once more than it would. */
  fireNow(id: string, where?: Where): Promise<"fired" | "already-fired" | "cancelled" | "unknown">;
  /** Puts off all times of one that comes again, but for one that is being released, until it is resumed. `unknown` where none of that id does. */
  pause(id: string, where?: Where): Promise<"paused" | "unknown">;
  /** Goes on with the next time from now. `unknown` where none of that id comes again. */
  resume(id: string, where?: Where): Promise<"resumed" | "unknown">;
}

/** How many are read to fill a page. */
const readsOfPage = 1_000;
const readsAtOnce = 100;

/** What waits, or did. */
interface Found {
  readonly stream: StreamDefinition;
  /** What a function releases, or what is remembered of it. */
  readonly record?: StoredMessage & { readonly pending: Pending };
  /** What the server releases. */
  readonly native?: StoredMessage;
}

/** Where one is: at its id, but for one that nobody gave an id, which is its own note. */
interface Place {
  readonly stream: StreamDefinition;
  readonly token: string;
  readonly subject: string | undefined;
}

/** Looks after the schedules of these streams; each call may take `ms`. */
export function createSchedules(
  connection: Connection,
  streams: readonly StreamDefinition[],
  { ms = 5_000, now = Date.now }: { readonly ms?: number; now?(): number } = {},
): Schedules {
  const taking = streams.filter(({ schedules }) => schedules);
  const onServer = releasesByItself(connection);

  return {
    async schedule(subject, data, options) {
      if (typeof subject !== "string")
        throw new SortieError(
          "unknown-subject",
          `A schedule: expected its subject to be a text, got ${shown(subject)}`,
        );
      assertOptions(options, 'options such as { in: "30s" }', `A schedule for "${subject}"`);
      const outgoing = await prepare(streams, subject, data);
      const stream = streamFor(streams, subject);
      const { id = crypto.randomUUID(), ...when } = options;
      assertAlone(when, `A schedule for "${subject}"`); // over HTTP anything may come
      const leftMs = timer();
      const comesAgain = stream.schedules && when.in === undefined && when.at === undefined;
      const time = comesAgain ? await recurringTime(leftMs()) : now();
      const { at, store } = scheduled(connection, outgoing, stream, { ...when, id } as Named, time);
      await store(leftMs());
      return { id, stream: stream.name, at };
    },
    async get(id, where) {
      const found = await find(id, where, timer());
      return found && statusOf(found, tokenOf(id));
    },
    list,
    cancel: (id, where) => untilSettled(id, where, cancelOnce),
    fireNow: (id, where) => untilSettled(id, where, fireOnce),
    pause: (id, where) => untilSettled(id, where, pauseOnce),
    resume: (id, where) => untilSettled(id, where, resumeOnce),
  };

  /** What the times of one that comes again are counted from: its first one is not to have passed where it is released. */
  function recurringTime(left: number): Promise<number> {
    return serverTime(connection, schedulesStream, left, now());
  }

  function timer(): () => number {
    const deadline = performance.now() + ms;
    return () => Math.max(1, deadline - performance.now());
  }

  /** Tries until nobody else has changed it meanwhile. */
  async function untilSettled<Answer extends string>(
    id: string,
    where: Where | undefined,
    once: (found: Found, leftMs: () => number) => Promise<Answer | undefined>,
  ): Promise<Answer | "unknown"> {
    const leftMs = timer();
    for (;;) {
      try {
        const found = await find(id, where, leftMs);
        if (!found) return "unknown";
        const answer = await once(found, leftMs);
        if (answer) return answer;
        await pause(50, "waiting for a schedule that is being released");
      } catch (error) {
        if (!isOutrun(error)) throw error; // someone else was faster: looked at again
      }
      if (leftMs() <= 1)
        throw new SortieError("timed-out", `Schedule "${id}" was being released for all of ${ms} ms: try again`);
    }
  }

  async function find(id: string, where: Where = {}, leftMs: () => number): Promise<Found | undefined> {
    const token = tokenOf(id);
    assertOptions(where, 'nothing, or a stream such as { stream: "ORDERS" }', `Schedule "${id}"`);
    const { stream: wanted } = where;
    const among = taking.filter(({ name }) => wanted === undefined || name === wanted);
    if (wanted !== undefined && among.length === 0) throw notTaking(wanted);
    const found = (await Promise.all(among.map((stream) => read(stream, token, leftMs())))).filter(isThere);
    const waiting = found.filter((one) => one.native || !isOver(one.record?.pending));
    const [first, second] = waiting.length > 0 ? waiting : found;
    if (second && waiting.length > 1) {
      throw new SortieError(
        "invalid-option",
        `Schedule "${id}" is one of stream "${first?.stream.name}" and one of stream "${second.stream.name}": say which stream`,
      );
    }
    return first;
  }

  function notTaking(name: string): SortieError {
    const known = taking.map((stream) => stream.name).join(", ");
    return new SortieError(
      "invalid-option",
      `Expected one of the app's streams that take schedules (${known || "there is none"}), got ${shown(name)}`,
    );
  }

  /** What there is of it; `released` where the server had it and has it no more. */
  async function read(
    stream: StreamDefinition,
    token: string,
    left: number,
    subject = scheduleSubject(stream.name, token),
  ): Promise<Found> {
    const [record, native] = await Promise.all([
      messageOf(schedulesStream, subject, left),
      onServer ? nativeIn(stream, token, left) : undefined,
    ]);
    if (!record || native) return { stream, ...(native && { native }) };
    const pending = pendingOf(record);
    if (pending.state !== "on-server") return { stream, record: { ...record, pending } };
    const isDue = pending.planned <= (await serverTime(connection, stream.name, left));
    const state = isDue ? "released" : "cancelled"; // the server lets go of nothing before it is due
    return { stream, record: { ...record, pending: { ...pending, state } } };
  }

  async function nativeIn({ name, schedules }: StreamDefinition, token: string, left: number) {
    try {
      return await messageOf(name, nativeSubject(name, token), left);
    } catch (error) {
      const isMissing = error instanceof SortieError && error.code === "stream-missing";
      if (isMissing && schedules === "function") return undefined; // which keeps none of its schedules
      throw error;
    }
  }

  function messageOf(stream: string, subject: string, left: number): Promise<StoredMessage | undefined> {
    return storedSchedule(connection, stream, { last_by_subj: subject }, left, "reading a schedule");
  }

  async function cancelOnce({ stream, record, native }: Found, leftMs: () => number) {
    if (native) {
      const found = await changeable(connection, stream.name, native.subject, leftMs());
      if (found === "too-late") return "already-fired";
      if (!found || !(await removeNative(connection, stream.name, found, leftMs()))) return undefined;
      await tellCancelled(stream, native, leftMs);
      return "cancelled";
    }
    const pending = record?.pending;
    if (!record || !pending) return "unknown" as never;
    if (pending.state === "cancelled") return "cancelled";
    if (pending.state === "released") return "already-fired";
    // one that comes again does not after what is being released
    if (pending.releasing && !pending.recurring) return "already-fired";
    await leaveWord(stream, record, carriedBy(record), leftMs);
    return "cancelled";
  }

  /** Tells that the server's was cancelled, where none was made again in its place meanwhile. */
  async function tellCancelled(stream: StreamDefinition, native: StoredMessage, leftMs: () => number): Promise<void> {
    const [token, id] = [native.subject.split(".").at(-1) ?? "", idOfStored(native)];
    const subject = scheduleSubject(stream.name, token);
    for (;;) {
      const [word, another] = await Promise.all([
        messageOf(schedulesStream, subject, leftMs()),
        nativeIn(stream, token, leftMs()),
      ]);
      if (another) return;
      try {
        const place = { subject, sequence: word?.sequence ?? 0 };
        const { at, target } = nativeOf(native);
        await leaveWord(stream, place, { id, at, message: { subject: target, payload: native.data } }, leftMs);
        return;
      } catch (error) {
        if (!isOutrun(error) || leftMs() <= 1) throw error;
      }
    }
  }

  /** Tells in its place that it was cancelled. */
  function leaveWord(
    { name }: StreamDefinition,
    place: { readonly subject: string; readonly sequence?: number },
    schedule: { readonly id: string; readonly at: number; readonly message: Carried },
    leftMs: () => number,
  ): Promise<void> {
    return remember(connection, name, place, { ...schedule, state: "cancelled", now: now() }, leftMs);
  }

  async function fireOnce({ stream, record, native }: Found, leftMs: () => number) {
    if (native) {
      const found = await changeable(connection, stream.name, native.subject, leftMs());
      if (found === "too-late") return "already-fired";
      if (!found) return undefined;
      const { schedule, withinMs, serverNow } = found;
      const id = idOfStored(schedule);
      const headers = schedule.headers.filter(([name]) => !/^nats-/i.test(name) && name !== idHeader);
      const outgoing = { stream: stream.name, subject: nativeOf(schedule).target, payload: schedule.data, headers };
      const { headers: all = [], ...sooner } = nativeFor(outgoing, stream, id, new Date(serverNow), serverNow, "");
      const replacing = {
        ...sooner,
        headers: [...all, [expectedLast, `${schedule.sequence}`]] as const,
      };
      // first: without its schedule it says that this was released
      const before = await messageOf(schedulesStream, scheduleSubject(stream.name, tokenOf(id)), leftMs());
      const tell = (at: number, sequence: number) => {
        const word = wordOfServer(connection, stream.name, id, at, serverNow, outgoing);
        const headers = [...(word.headers ?? []), [expectedLast, `${sequence}`]] as const;
        return publish(connection, { ...word, headers }, leftMs());
      };
      const told = await tell(serverNow, before?.sequence ?? 0);
      try {
        await publish(connection, replacing, Math.min(withinMs, leftMs()));
      } catch (error) {
        if (isOutrun(error)) await tell(nativeOf(schedule).at, told.sequence); // it was cancelled, or made again
        throw error;
      }
      return "fired";
    }
    const pending = record?.pending;
    if (!record || !pending) return "unknown" as never;
    if (pending.state === "cancelled") return "cancelled";
    if (pending.state === "released") return "already-fired";
    if (pending.recurring) {
      await publishOnceMore(stream, record, leftMs());
      return "fired";
    }
    if (pending.releasing) return "already-fired";
    const at = Date.parse(record.time); // which has passed by the server's clock, whatever ours says
    const only = await move(stream, record, at, {}, leftMs());
    const settleBy = now() + leftMs();
    const { error } = await releaseDue(connection, stream, { leaveAt: now(), settleBy, only, now });
    const after = pendingOf((await messageOf(schedulesStream, record.subject, leftMs())) ?? record);
    if (after.state === "cancelled") return "cancelled";
    if (after.state || (after.releasing && !error)) return "fired";
    if (error) throw new SortieError("stream-refused", `Schedule "${pending.id}" waits to be released: ${error}`);
    return undefined;
  }

  async function publishOnceMore(stream: StreamDefinition, record: StoredMessage & { pending: Pending }, left: number) {
    const { id, target } = record.pending;
    const at = Math.floor(now());
    const own = record.headers.filter(([name]) => !/^(nats-|sortie-(id$|schedule|releasing))/i.test(name));
    const headers = [
      ...own,
      [idHeader, `${id}@${new Date(at).toISOString()}`],
      [releasedHeaders.schedule, id],
      [releasedHeaders.scheduledFor, `${at}`],
    ] as const;
    await publish(connection, { stream: stream.name, subject: target, payload: record.data, headers }, left);
  }

  async function pauseOnce({ record }: Found, leftMs: () => number) {
    const pending = record?.pending;
    if (!record || !pending?.recurring || isOver(pending)) return "unknown" as const;
    if (pending.state === "paused") return "paused" as const;
    await publish(connection, rewritten(record, { [pendingHeaders.state]: "paused" }), leftMs());
    return "paused" as const;
  }

  async function resumeOnce({ stream, record }: Found, leftMs: () => number) {
    const pending = record?.pending;
    if (!record || !pending?.recurring || isOver(pending)) return "unknown" as const;
    if (pending.state !== "paused") {
      await publish(connection, noteFor(stream.name, tokenOf(pending.id), pending.at, now()), leftMs());
      return "resumed" as const; // the note may be what an earlier call has not come to
    }
    const time = await recurringTime(leftMs());
    const next = occurrenceAfter(pending.recurring, pending.id, time);
    if (!next) {
      await leaveWord(stream, record, carriedBy(record), leftMs);
      return "unknown" as const; // its times passed by meanwhile
    }
    const changes = {
      [pendingHeaders.state]: undefined,
      [pendingHeaders.releasing]: undefined,
      [pendingHeaders.planned]: `${next.planned}`,
    };
    await move(stream, record, next.due, changes, leftMs());
    return "resumed" as const;
  }

  /** Has it released at another time, in one flight: who finds the note finds that. Answers the note's subject. */
  async function move(
    { name }: StreamDefinition,
    record: StoredMessage & { readonly pending: Pending },
    at: number,
    changes: Readonly<Record<string, string | undefined>>,
    left: number,
  ): Promise<string> {
    const moved = rewritten(record, { ...changes, [pendingHeaders.at]: `${at}` });
    const note = noteFor(name, tokenOf(record.pending.id), at, now());
    await Promise.all([moved, note].map((each) => publish(connection, each, left)));
    return note.subject;
  }

  async function list(options: ListOptions = {}): Promise<ScheduleList> {
    assertOptions(options, 'nothing, or options such as { prefix: "trial of " }', "A list of schedules");
    const { stream, prefix = "", from, to, limit = 50, after } = options;
    if (!Number.isInteger(limit) || limit < 1 || limit > 500)
      throw new SortieError("invalid-option", `Expected limit to be a whole number from 1 to 500, got ${shown(limit)}`);
    for (const [name, text] of Object.entries({ prefix, after }))
      if (text !== undefined && typeof text !== "string") throw unfit(name, "a text", text);
    for (const [name, time] of Object.entries({ from, to }))
      if (time !== undefined && !(time instanceof Date && Number.isFinite(time.getTime())))
        throw unfit(name, "a Date", time);
    const leftMs = timer();
    const among = taking.filter(({ name }) => stream === undefined || name === stream);
    if (stream !== undefined && among.length === 0) throw notTaking(stream);
    const places = (await Promise.all(among.map((one) => placesOf(one, leftMs)))).flat();
    const wanted = places
      .filter(({ token, key }) => startsWith(token, prefix) && (after === undefined || key > after))
      .toSorted((a, b) => (a.key < b.key ? -1 : 1));
    const schedules: ScheduleStatus[] = [];
    let [read, last] = [0, after];
    while (read < Math.min(wanted.length, readsOfPage) && schedules.length < limit) {
      const some = wanted.slice(read, read + Math.min(readsAtOnce, readsOfPage - read));
      const found = await Promise.all(some.map((one) => lookAt(one, leftMs)));
      for (const [at, status] of found.entries()) {
        if (schedules.length === limit) break;
        read += 1;
        last = some[at]?.key;
        const isWanted = status && !["released", "cancelled"].includes(status.state);
        if (isWanted && (!from || status.at >= from) && (!to || status.at <= to)) schedules.push(status);
      }
    }
    return { schedules, ...(read < wanted.length && last !== undefined && { next: last }) };
  }

  function unfit(option: string, expected: string, got: unknown): SortieError {
    return new SortieError(
      "invalid-option",
      `A list of schedules: expected ${option} to be ${expected}, got ${shown(got)}`,
    );
  }

  async function lookAt({ stream, token, subject }: Place, leftMs: () => number) {
    return statusOf(await read(stream, token, leftMs(), subject), token);
  }

  /** Where a stream has schedules, or remembers them; `key` orders them over all streams. */
  async function placesOf(
    stream: StreamDefinition,
    leftMs: () => number,
  ): Promise<(Place & { readonly key: string })[]> {
    const [nameless, ...named] = await Promise.all([
      subjectsOf(schedulesStream, namelessNotes(stream.name), leftMs),
      subjectsOf(schedulesStream, scheduleSubject(stream.name, "*"), leftMs),
      onServer ? subjectsOf(stream.name, scheduleSubjects(stream.name), leftMs) : [],
    ]);
    const places = new Map<string, string | undefined>(); // by their tokens
    for (const subject of nameless) places.set(subject.split(".").at(-2) ?? "", subject);
    for (const subject of named.flat()) places.set(subject.split(".").at(-1) ?? "", undefined);
    return [...places].map(([token, subject]) => ({ stream, token, subject, key: `${stream.name}.${token}` }));
  }

  async function subjectsOf(stream: string, filter: string, leftMs: () => number): Promise<string[]> {
    const ask = (page: SubjectsPage) => schedulesInfo(connection, stream, leftMs(), "listing schedules", page);
    const all: string[] = [];
    for await (const { subjects } of subjectsIn(filter, ask)) all.push(...subjects);
    return all;
  }

  function statusOf({ stream: { name: stream }, record, native }: Found, token: string): ScheduleStatus | undefined {
    const id = idOf(token);
    if (native) {
      const { at, target: subject } = nativeOf(native);
      const state = at <= now() ? "releasing" : "waiting";
      return { id, stream, subject, state, at: new Date(at), ...payloadOf(native) };
    }
    if (!record) return undefined;
    const { state, at, planned, recurring, target: subject, releasing } = record.pending;
    if (state === "released" || state === "cancelled") return { id, stream, state, at: new Date(planned) };
    const isPaused = state === "paused";
    return {
      id,
      stream,
      subject,
      state: isPaused ? "paused" : releasing ? "releasing" : "waiting",
      at: new Date(at),
      ...payloadOf(record),
      ...(recurring && { recurring }),
      ...(recurring && !isPaused && { next: [new Date(planned), ...occurrencesAfter(recurring, planned, 4)] }),
    };
  }
}

function carriedBy({ pending: { id, at, target }, data }: StoredMessage & { readonly pending: Pending }) {
  return { id, at, message: { subject: target, payload: data } };
}

function isThere({ record, native }: Found): boolean {
  return record !== undefined || native !== undefined;
}

function isOver(pending: Pending | undefined): boolean {
  return pending?.state === "released" || pending?.state === "cancelled";
}

function idOfStored(schedule: StoredMessage): string {
  return headerOf(schedule, idHeader) ?? "";
}

function startsWith(token: string, prefix: string): boolean {
  return prefix === "" || idOf(token).startsWith(prefix);
}

function payloadOf({ data }: StoredMessage): { data?: unknown } {
  try {
    return { data: decode("a schedule", data) };
  } catch {
    return {};
  }
}
