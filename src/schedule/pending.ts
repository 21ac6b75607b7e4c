import { schedulesStream } from "../define/own.ts";
import type { Outgoing } from "../publish/outgoing.ts";
import { idHeader, tokenOf } from "./when.ts";

/**
 * Where a server does not release messages by itself they wait in a stream of Sortie's own, as two messages: the schedule,
 * with its payload, on a subject for its id, so that another one with that id replaces it; and a note without a payload on a
 * subject that begins with when it is due, so that what is due is found without looking at what is not.
 */
const root = "sortie.schedules";

/** The headers of a schedule that waits, beside those of the message itself. */
export const pendingHeaders = {
  at: "Sortie-Schedule-At",
  target: "Sortie-Schedule-Target",
  /** Of one that is claimed: its first sequence, the last one of its stream before, and when that was where it is claimed again. */
  releasing: "Sortie-Releasing",
} as const;

/** That something is due. */
export interface Note {
  readonly subject: string;
  /** Epoch milliseconds. */
  readonly at: number;
  /** The schedule's id, as a token of a subject. */
  readonly token: string;
}

/**
 * The schedule and its note, to be published in this order: who finds the note finds the schedule. Only the schedule has the
 * message's id, so that one which is made again after it was released is not released twice, and has a note in any case.
 */
export function pendingFor(outgoing: Outgoing, stream: string, id: string, at: Date, now: number): Outgoing[] {
  const token = tokenOf(id);
  const due = at.getTime();
  const headers = [
    [idHeader, id],
    [pendingHeaders.at, `${due}`],
    [pendingHeaders.target, outgoing.subject],
    ...(outgoing.headers ?? []),
  ] as const;
  const { payload } = outgoing;
  // what is due already is put where it is still looked for
  const noted = `${root}.at.${stream}.${minuteOf(Math.max(due, now))}.${due}.${token}`;
  return [
    { stream: schedulesStream, subject: scheduleSubject(stream, token), payload, id: outgoing.id, headers },
    { stream: schedulesStream, subject: noted, payload: new Uint8Array() },
  ];
}

export function scheduleSubject(stream: string, token: string): string {
  return `${root}.id.${stream}.${token}`;
}

/** Where it is kept until when all of a stream's schedules have been released. */
export function doneSubjectOf(stream: string): string {
  return `${root}.done.${stream}`;
}

export function noteOf(subject: string): Note {
  const tokens = subject.split(".");
  return { subject, at: Number(tokens.at(-2)), token: tokens.at(-1) ?? "" };
}

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;

export function startOfMinute(at: number): number {
  return at - (at % minuteMs);
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
