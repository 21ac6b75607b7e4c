import { schedulesStream } from "../define/own.ts";
import { headerOf, type StoredMessage } from "../nats/stored-message.ts";
import type { Headers, Outgoing } from "../publish/outgoing.ts";
import { hashOf, type Recurring } from "./recurring.ts";
import { idHeader, tokenOf } from "./when.ts";

/**
 * What a function releases waits in a stream of Sortie's own, as two messages: the schedule, with its payload, on a subject
 * for its id, so that another one with that id replaces it; and a note without a payload on a subject that begins with when
 * it is due, so that what is due is found without looking at what is not. A schedule that nobody gave an id is its own note.
 * The subject for an id also tells, for a while, what became of its schedule.
 */
const root = "sortie.schedules";

/** How long it can be told that a schedule was released, or cancelled. */
export const rememberedMs = 7 * 86_400_000;

/** The headers of a schedule that waits, beside those of the message itself. */
export const pendingHeaders = {
  at: "Sortie-Schedule-At",
  target: "Sortie-Schedule-Target",
  /** Of one that is claimed: its first sequence, the last one of its stream before, and when that was where it is claimed again. */
  releasing: "Sortie-Releasing",
  /** Of one that does not wait for a function. */
  state: "Sortie-Schedule-State",
  /** Of one that comes again: how, as JSON; */
  recurring: "Sortie-Schedule-Recurring",
  /** the time of it that waits, but for its jitter; */
  planned: "Sortie-Schedule-Planned",
  /** where the one before is in the target's stream; */
  previous: "Sortie-Schedule-Previous",
  /** and whose definition it is. */
  owner: "Sortie-Schedule-Owner",
  /** Of one that is over: what tells its message from another one. */
  digest: "Sortie-Schedule-Digest",
} as const;

/**
 * What a function does not release: what the server does, what was released or cancelled, what is put off until somebody
 * resumes it.
 */
export type PendingState = "on-server" | "released" | "cancelled" | "paused";

/** What is stored of a schedule. */
export interface Pending {
  readonly id: string;
  /** When it is released; of what was, when that can be forgotten on servers that do not do that themselves. */
  readonly at: number;
  readonly target: string;
  readonly state: PendingState | undefined;
  readonly recurring: Recurring | undefined;
  readonly planned: number;
  readonly previous: number | undefined;
  /** Who has claimed it may release it at any time. */
  readonly releasing: readonly number[] | undefined;
  readonly owner: string | undefined;
}

/** What a schedule is for. */
export type Carried = Pick<Outgoing, "subject" | "payload">;

/** That something is due. */
export interface Note {
  readonly subject: string;
  /** Epoch milliseconds. */
  readonly at: number;
  /** Where its schedule is. */
  readonly schedule: string;
}

/** What waits for a function, as it is stored. */
export interface NewPending {
  readonly stream: string;
  readonly id: string;
  readonly at: number;
  readonly recurring?:
    | (Recurring & { readonly planned: number; readonly owner?: string | undefined; readonly isPaused: boolean })
    | undefined;
}

/** What is published for a schedule that has an id, in this order: who finds the note finds the schedule. */
export function pendingFor(outgoing: Outgoing, pending: NewPending, now: number): [schedule: Outgoing, note: Outgoing] {
  const { stream, id, at, recurring } = pending;
  const { planned, owner, isPaused, ...how } = recurring ?? {};
  const token = tokenOf(id);
  const headers: Headers = [
    [idHeader, id],
    [pendingHeaders.at, `${at}`],
    [pendingHeaders.target, outgoing.subject],
    ...(recurring ? ([[pendingHeaders.recurring, JSON.stringify(how)]] as const) : []),
    ...(planned === undefined ? [] : ([[pendingHeaders.planned, `${planned}`]] as const)),
    ...(isPaused ? ([[pendingHeaders.state, "paused"]] as const) : []),
    ...(owner === undefined ? [] : ([[pendingHeaders.owner, owner]] as const)),
    ...(outgoing.headers ?? []),
  ];
  // only the schedule has the message's id: one that is made again has its note in any case
  const { payload } = outgoing;
  const schedule = {
    stream: schedulesStream,
    subject: scheduleSubject(stream, token),
    payload,
    id: outgoing.id,
    headers,
  };
  return [schedule, noteFor(stream, token, at, now)];
}

/** What is published for a schedule that nobody asks after by an id. */
export function namelessFor(outgoing: Outgoing, { stream, id, at }: NewPending, now: number): Outgoing {
  const headers: Headers = [
    [idHeader, id],
    [pendingHeaders.at, `${at}`],
    [pendingHeaders.target, outgoing.subject],
    ...(outgoing.headers ?? []),
  ];
  const { subject } = noteFor(stream, tokenOf(id), at, now);
  return {
    stream: schedulesStream,
    subject: `${subject}.${whole}`,
    payload: outgoing.payload,
    id: outgoing.id,
    headers,
  };
}

const whole = "whole";

const soonMs = 60_000;

/** In the place of a minute's three tokens. */
const soon = "soon.0.0";

/**
 * A note among those of its minute; or among those that are looked for at any time, where it is due soon, or was due already,
 * by a clock that may be wrong.
 */
export function noteFor(stream: string, token: string, at: number, now: number): Outgoing {
  const subject = `${root}.at.${stream}.${at < now + soonMs ? soon : minuteOf(at)}.${at}.${token}`;
  return { stream: schedulesStream, subject, payload: new Uint8Array() };
}

export function pendingOf(stored: StoredMessage): Pending {
  const [at, planned, previous] = [pendingHeaders.at, pendingHeaders.planned, pendingHeaders.previous].map((name) => {
    const value = headerOf(stored, name);
    return value === undefined ? undefined : Number(value);
  });
  const recurring = headerOf(stored, pendingHeaders.recurring);
  return {
    id: headerOf(stored, idHeader) ?? "",
    at: at ?? Number.NaN,
    target: headerOf(stored, pendingHeaders.target) ?? "",
    state: headerOf(stored, pendingHeaders.state) as PendingState | undefined,
    recurring: recurring === undefined ? undefined : (JSON.parse(recurring) as Recurring),
    planned: planned ?? at ?? Number.NaN,
    previous,
    releasing: headerOf(stored, pendingHeaders.releasing)?.split(" ").map(Number),
    owner: headerOf(stored, pendingHeaders.owner),
  };
}

/** A stored schedule as it is written in its place, with some of its headers changed; undefined takes one away. */
export function rewritten(
  { subject, sequence, data: payload, headers }: StoredMessage,
  changes: Readonly<Record<string, string | undefined>>,
): Outgoing {
  const kept = headers.filter(([name]) => !/^nats-/i.test(name) && !Object.hasOwn(changes, name));
  const changed = Object.entries(changes).flatMap(([name, value]) =>
    value === undefined ? [] : [[name, value] as const],
  );
  return { subject, payload, headers: [...kept, ...changed, [expectedLast, `${sequence}`]] };
}

/** The header by which a message is stored only where the last one of its subject is the one that it replaces. */
export const expectedLast = "Nats-Expected-Last-Subject-Sequence";

/** What tells for a while what became of a schedule, in the place of its `sequence` where that is given. */
export function memoFor(
  { subject, sequence }: { readonly subject: string; readonly sequence?: number },
  {
    id,
    state,
    at,
    forgetAt,
    seconds,
    message,
  }: {
    id: string;
    state: PendingState;
    at: number;
    forgetAt: number;
    seconds?: number | undefined;
    /** What the schedule was for, to be told from another one. */
    message: Carried;
  },
): Outgoing {
  const headers: Headers = [
    [idHeader, id],
    [pendingHeaders.state, state],
    [pendingHeaders.planned, `${at}`],
    [pendingHeaders.at, `${forgetAt}`],
    [pendingHeaders.digest, digestOf(message)],
    ...(seconds === undefined ? [] : ([["Nats-TTL", `${seconds}s`]] as const)),
    ...(sequence === undefined ? [] : ([[expectedLast, `${sequence}`]] as const)),
  ];
  return { stream: schedulesStream, subject, payload: new Uint8Array(), headers };
}

/** Whether this is a word of another message: false where it does not tell. */
export function tellsOfAnother(word: StoredMessage, message: Carried): boolean {
  const digest = headerOf(word, pendingHeaders.digest);
  return digest !== undefined && digest !== digestOf(message);
}

function digestOf({ subject, payload }: Carried): string {
  return `${hashOf(subject)}.${payload.length}.${hashOf(payload)}`;
}

export function scheduleSubject(stream: string, token: string): string {
  return `${root}.id.${stream}.${token}`;
}

/** Where it is kept until when all of a stream's schedules have been released. */
export function doneSubjectOf(stream: string): string {
  return `${root}.done.${stream}`;
}

/** The subjects of what is noted as due soon. */
export function soonNotes(stream: string): string {
  return `${root}.at.${stream}.${soon}.>`;
}

/** The subjects of the schedules that nobody gave an id. */
export function namelessNotes(stream: string): string {
  return `${root}.at.${stream}.*.*.*.*.*.${whole}`;
}

/** The subjects of all that is noted for a stream, whenever it is due. */
export function allNotes(stream: string): string {
  return `${root}.at.${stream}.>`;
}

export function noteOf(subject: string): Note {
  const tokens = subject.split(".");
  const isWhole = tokens.length === root.split(".").length + 8;
  if (isWhole) tokens.pop();
  const schedule = isWhole ? subject : scheduleSubject(tokens[3] ?? "", tokens.at(-1) ?? "");
  return { subject, at: Number(tokens.at(-2)), schedule };
}

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;

export function startOfMinute(at: number): number {
  return at - (at % minuteMs);
}

export function startOfDay(at: number): number {
  return at - (at % dayMs);
}

/** A minute as three tokens, of which the first two name its hour and the first one its day. */
function minuteOf(at: number): string {
  const text = new Date(at).toISOString();
  return `${text.slice(0, 10).replaceAll("-", "")}.${text.slice(11, 13)}.${text.slice(14, 16)}`;
}

/** The subjects of all notes for the minutes from `from` to `to`, with as few patterns as whole days and hours allow. */
export function notesBetween(stream: string, from: number, to: number): string[] {
  const patterns: string[] = [];
  for (let at = startOfMinute(from); at <= to; ) {
    const [day, hour, minute] = minuteOf(at).split(".");
    const whole = [dayMs, hourMs, minuteMs].find((ms) => at % ms === 0 && at + ms <= to + 1) ?? minuteMs;
    const tokens = { [dayMs]: day, [hourMs]: `${day}.${hour}`, [minuteMs]: `${day}.${hour}.${minute}` }[whole];
    patterns.push(`${root}.at.${stream}.${tokens}.>`);
    at += whole;
  }
  return patterns;
}
