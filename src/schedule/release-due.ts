import { parkedStream, parkedSubject, schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { consumersOf, isAwaiting } from "../nats/consumer-info.ts";
import { permissionsHint } from "../nats/denied.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { headerOf, type StoredMessage, storedMessage } from "../nats/stored-message.ts";
import { pause, point, within } from "../nats/within.ts";
import type { Headers } from "../publish/outgoing.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import {
  doneSubjectOf,
  memoFor,
  type Note,
  noteFor,
  noteOf,
  notesBetween,
  type Pending,
  pendingHeaders,
  pendingOf,
  rememberedMs,
  rewritten,
  soonNotes,
  startOfMinute,
} from "./pending.ts";
import { caughtUp, type Occurrence, occurrenceAfter, releasedFor, releaseIdOf } from "./recurring.ts";
import { secondsUntil } from "./schedule.ts";
import { missingStream } from "./stored-schedule.ts";
import { tokenOf } from "./when.ts";

/** How long before it is due a schedule is claimed, */
const leadMs = 250;

/** and how much sooner for each of those that are due together, */
const perClaimMs = 0.25;

/** at most. */
const longestLeadMs = 4_000;

/** How many are claimed at the same time. */
const together = 256;

/** What is so late is a backlog. */
const behindMs = 500;

/** How long at most whoever finds others at the same backlog leaves it to them. */
const longestYieldMs = 2_000;

/** Of one that was claimed: it is under way already. */
const fired = "fired";

/** How long whoever has claimed one may take: then it is taken over. */
const patienceMs = 5_000;

/** How long before a minute begins its notes are looked for. */
const aheadMs = 5_000;

/** Notes may still be written for minutes that have been over for so long: hosts' clocks differ. */
const lateMs = 120_000;

/** Once an hour they are looked for in as many minutes as this. */
const veryLateMs = 24 * 3_600_000;
const hourMs = 3_600_000;
const stepMs = 5_000;

/** How often it is looked whether the one before is handled, where the next waits for that. */
const lookAgainMs = 1_000;

/** The server's time is known well enough where it may be so much later at most; */
const unsureMs = 5;

/** before that it is asked for after this while, and then each time after twice the while. */
const askAgainMs = 100;

/** What the released message does not have. */
const ofSchedule = new Set<string>(Object.values(pendingHeaders));

/** What became of the schedules of one stream. */
export interface Released {
  readonly released: number;
  /** How late the latest of them was, in milliseconds; left out where none was released. */
  readonly latestMs?: number;
  /** What went wrong with some, which are released later. */
  readonly error?: string;
}

/** A schedule that is ours to release. */
interface Claimed {
  readonly note: Note;
  readonly pending: Pending;
  readonly stored: StoredMessage;
  /** Its sequence when it was claimed, and when it was made: the id of what is released is made of that. */
  readonly revision: number;
  readonly first: number;
  /** When, by the server's clock: others respect it for a while. */
  readonly claimedAt: number;
  /** Who has claimed it before may have released it: where the target stream ended then, and when that was. */
  readonly before?: { readonly after: number; readonly since: number } | undefined;
}

/** The notes that match a pattern. */
interface Listing {
  readonly pattern: string;
  /** Where the stream of notes ended before they were looked for. */
  readonly last: number;
  readonly notes: readonly Note[];
}

interface StreamInfo {
  /** The server's time; before 2.10 it does not say. */
  readonly ts?: string;
  readonly created: string;
  readonly state: { readonly last_seq: number; readonly subjects?: Record<string, number> };
  readonly total?: number;
}

/** The times of one look at what is due, in epoch milliseconds by the clock `now`. */
export interface ReleaseTimes {
  readonly leaveAt: number;
  readonly settleBy: number;
  /** Whether it stays for what is scheduled meanwhile; else for what is known of only. @default true */
  readonly awaitsNews?: boolean;
  /** The subject of the note of the only one to release; the note stays, for another look at all. @default all that is due */
  readonly only?: string;
  now(): number;
}

/**
 * Releases what is due of one stream's schedules, each at its time by the server's clock, in the order of their times, and
 * stays until `leaveAt` for those that become due. Any number of these may run at the same time: a schedule is claimed with
 * compare-and-set before it is released, and where nothing more is heard of whoever has claimed it, it is released with the
 * same message id.
 */
export async function releaseDue(
  connection: Connection,
  { name, duplicateWindowMs, retention }: StreamDefinition,
  { leaveAt, settleBy, awaitsNews = true, only, now }: ReleaseTimes,
): Promise<Released> {
  const records = recordsIn<{ until: number }>(connection, schedulesStream, "schedules");
  const leftMs = () => Math.max(1, Math.min(stepMs, settleBy - now()));
  const agenda: Note[] = []; // in the order of their times
  const known = new Map<string, Note>();
  const done = new Map<Note, number>(); // and up to which sequence it is taken away: it may have been made again since
  const heard = new Set<Note>(); // whose schedule may not be stored yet
  const madeAgain = new Set<Note>(); // while they were looked at
  const moving = new Set<string>(); // which we note ourselves, a moment before their schedule has come to them
  const listings: Listing[] = [];
  const listedAt = new Map<Note, number>();
  const underWay = new Set<Promise<void>>();
  let yieldMs = 0;
  const subscriptions: { unsubscribe(): void }[] = [];
  let wake = () => {};
  let released = 0;
  let latestMs: number | undefined;
  let trouble: string | undefined;
  let ahead = { least: -Infinity, most: Infinity }; // of our clock, the server's
  let [askAt, askAfterMs] = [Infinity, askAgainMs];

  const { until, lastOfTarget } = await look();
  /** By the server's clock, of which this is never ahead. */
  const serverNow = () => now() + ahead.least;
  const latestAt = () => settleBy + ahead.least - leadMs; // what is due later is for others
  const isSameHour = Math.floor(until / hourMs) === Math.floor(serverNow() / hourMs);
  let listedUntil = isSameHour ? until : until - veryLateMs;
  try {
    await release();
  } catch (error) {
    trouble ??= textOf(error);
  } finally {
    for (const subscription of subscriptions) subscription.unsubscribe();
  }
  await Promise.all(underWay);
  if (only === undefined)
    await tidy().catch((error: unknown) => {
      trouble ??= textOf(error); // what was released is looked at once more the next time
    });
  return { released, ...(latestMs !== undefined && { latestMs }), ...(trouble && { error: trouble }) };

  async function look() {
    const subject = doneSubjectOf(name);
    const [before, own, target] = await Promise.all([
      records.read(subject, leftMs()),
      streamInfo(schedulesStream),
      streamInfo(name),
    ]);
    const until = before?.value.until ?? Date.parse(own.created);
    if (own.ts !== undefined) askAt = now() + askAfterMs;
    // what is stored now is read back with the server's time, which it is at least since we know that it is stored
    const written = now();
    const [revision, storedBy] = await records.write(subject, before?.revision ?? 0, { until }, leftMs()).then(
      (revision) => [revision, now()] as const,
      (error: unknown) => {
        if (!isConflict(error)) throw error;
        return [];
      },
    );
    const told = await records.read(subject, leftMs());
    // what another one has stored was stored before it was read
    const isOurs = told?.revision === revision && storedBy !== undefined;
    learn(told?.at ?? until, isOurs ? { after: written, by: storedBy } : { after: -Infinity, by: now() });
    return { until, lastOfTarget: target.state.last_seq };
  }

  /** That it was this time for the server, to the millisecond, between two of ours: what is learned in a crowd tells little. */
  function learn(time: number, { after, by }: { readonly after: number; readonly by: number }): void {
    const [least, most] = [time - by, time + 1 - after];
    const wasSet = least > ahead.most || most < ahead.least; // one of the clocks
    const before = ahead.least;
    ahead = wasSet ? { least, most } : { least: Math.max(least, ahead.least), most: Math.min(most, ahead.most) };
    if (ahead.least > before) wake();
  }

  /** Asks for the server's time again where it is not known well enough, and does not wait for it. */
  function askAgain(): void {
    if (now() < askAt) return;
    const isUnsure = ahead.most - ahead.least > unsureMs;
    askAfterMs *= 2;
    askAt = isUnsure ? now() + askAfterMs : Infinity;
    if (!isUnsure) return;
    const asking = streamInfo(schedulesStream).then(
      () => {},
      () => {}, // it is asked again
    );
    underWay.add(asking);
    void asking.then(() => {
      underWay.delete(asking);
      wake();
    });
  }

  async function release(): Promise<void> {
    while (now() < settleBy - leadMs) {
      await list();
      askAgain();
      const some = take();
      if (some.length > 0) {
        const claimed = await Promise.all(some.map(claimOrFire));
        const won = claimed.filter((one) => one !== undefined);
        for (const one of won) if (one !== fired) fire(one); // what is late, in its order
        // of those who are at the same backlog one is quicker alone than all at once
        const isBehind = some.length === together && (some.at(-1)?.at ?? Infinity) < serverNow() - behindMs;
        const isShared = isBehind && won.length < 0.6 * together;
        yieldMs = isShared ? Math.min(longestYieldMs, Math.max(100, 2 * yieldMs)) : 0;
        const ms = Math.min(yieldMs * (0.5 + Math.random() / 2), settleBy - now() - leadMs);
        if (isShared) await pause(ms, "waiting for others to go on with a backlog");
      } else if (now() < leaveAt && (awaitsNews || comesUp())) await rest();
      else if (underWay.size > 0)
        await Promise.all(underWay); // what comes again may be due at once
      else return;
    }
  }

  /** Whether something that is known of becomes due before it leaves. */
  function comesUp(): boolean {
    return underWay.size > 0 || (agenda[0]?.at ?? Infinity) < leaveAt + ahead.least;
  }

  /** Until there is something to do: what is due comes near, a new one is heard of, or another minute begins. */
  async function rest(): Promise<void> {
    const next = Math.min(nextClaimAt(), listedUntil - aheadMs, Math.min(leaveAt, askAt) + ahead.least);
    const news = Promise.withResolvers<void>();
    wake = news.resolve;
    const timer = setTimeout(news.resolve, Math.max(0, Math.ceil(next - serverNow())));
    await point("waiting for what is due", news.promise);
    clearTimeout(timer);
  }

  /** Finds what is noted as due soon, and for the minutes until now, and for the next one shortly before it begins. */
  async function list(): Promise<void> {
    if (only !== undefined) {
      if (!known.has(only)) add(noteOf(only));
      return;
    }
    const to = Math.max(serverNow() + aheadMs, awaitsNews ? 0 : leaveAt + ahead.least);
    if (listedUntil > to) return;
    const soon = subscriptions.length === 0 ? [soonNotes(name)] : []; // listened to from then on
    const live = [...soon, ...notesBetween(name, Math.max(listedUntil, startOfMinute(serverNow())), to)];
    const patterns = [...soon, ...notesBetween(name, listedUntil, to)];
    listedUntil = startOfMinute(to) + 60_000;
    const callback = (error: Error | null, { subject }: { subject: string }) => {
      if (error)
        trouble ??= `${error.message}. ${permissionsHint}`; // what is made meanwhile is found the next time
      else hear(noteOf(subject));
    };
    for (const pattern of live) subscriptions.push(connection.subscribe(pattern, { callback }));
    listings.push(...(await Promise.all(patterns.map(listOf))));
  }

  async function listOf(pattern: string): Promise<Listing> {
    const notes: Note[] = [];
    let last: number | undefined;
    for (let offset = 0, total = 1; offset < total; ) {
      const info = await streamInfo(schedulesStream, { subjects_filter: pattern, offset });
      const subjects = Object.keys(info.state.subjects ?? {});
      last ??= info.state.last_seq;
      for (const subject of subjects) {
        add(noteOf(subject));
        const note = known.get(subject) as Note;
        listedAt.set(note, last);
        notes.push(note);
      }
      total = info.total ?? 0;
      offset += Math.max(1, subjects.length);
    }
    return { pattern, last: last ?? 0, notes };
  }

  function add(note: Note): boolean {
    if (known.has(note.subject)) return false;
    known.set(note.subject, note);
    insert(note);
    wake();
    return true;
  }

  /** One that is made again may be what its schedule has now. */
  function hear(note: Note): void {
    if (moving.has(note.subject)) return;
    const original = known.get(note.subject);
    if (!original) {
      add(note);
      heard.add(note);
      return;
    }
    if (original.schedule === original.subject) return; // that it is claimed
    const at = agenda.findIndex(({ subject }) => subject === note.subject);
    const isLookedAt = at < 0 && !done.delete(original);
    if (isLookedAt) madeAgain.add(original);
    else {
      if (at >= 0) agenda.splice(at, 1); // it may have been put off
      insert(original);
    }
    heard.add(original);
    wake();
  }

  /** Looks at it at that time, which is its own or a later one. */
  function insert(note: Note, at = note.at): void {
    let low = 0;
    for (let high = agenda.length; low < high; ) {
      const middle = (low + high) >> 1;
      if ((agenda[middle] as Note).at <= at) low = middle + 1;
      else high = middle;
    }
    agenda.splice(low, 0, at === note.at ? note : { ...note, at });
  }

  /** When to begin with those that are due next: the more of them are due together, the sooner. */
  function nextClaimAt(): number {
    let [at, before] = [Infinity, 0];
    for (let n = 0; n < agenda.length; n += together) {
      const due = (agenda[n] as Note).at;
      if (due > latestAt() || at <= serverNow() || due - longestLeadMs > at) break;
      at = Math.min(at, due - Math.min(longestLeadMs, leadMs + before));
      before += perClaimMs * together;
    }
    return at;
  }

  /** Those that it is time to claim: none sooner than it has to, for until then it may be cancelled or replaced. */
  function take(): Note[] {
    if (nextClaimAt() > serverNow()) return [];
    const isTime = ({ at }: Note, n: number) =>
      at <= latestAt() && at - Math.min(longestLeadMs, leadMs + perClaimMs * n) <= serverNow();
    const notYet = agenda.slice(0, together).findIndex((note, n) => !isTime(note, n));
    return agenda.splice(0, notYet < 0 ? together : notYet);
  }

  /** Nothing that was stored up to this sequence makes it one to look at. */
  function over({ subject }: Note, upTo: number): void {
    const note = known.get(subject) as Note;
    if (madeAgain.delete(note)) insert(note);
    else done.set(note, listedAt.get(note) ?? upTo);
  }

  /** What is not due yet waits for its time at once, not for the last of those that are claimed with it. */
  async function claimOrFire(note: Note): Promise<Claimed | typeof fired | undefined> {
    const one = await claim(note);
    if (!one || one.pending.at <= serverNow()) return one;
    fire(one);
    return fired;
  }

  /** Undefined where it is not ours to release, or not now. */
  async function claim(note: Note): Promise<Claimed | undefined> {
    const original = known.get(note.subject) as Note;
    try {
      const which = { last_by_subj: note.schedule };
      const stored = await storedMessage(connection, schedulesStream, which, leftMs(), "reading a schedule");
      if (!stored) {
        if (heard.delete(original)) insert(note, serverNow() + 500);
        else over(note, 0); // it was released, replaced and released, or cancelled
        return undefined;
      }
      const pending = pendingOf(stored);
      if (pending.at > original.at || pending.state === "paused") {
        // it waits for later: it has a note for that, unless whoever was to make it has died
        const later = noteFor(name, tokenOf(pending.id), pending.at, serverNow());
        if (!pending.state && !known.has(later.subject)) await publish(connection, later, leftMs());
        over(note, stored.sequence);
        return undefined;
      }
      if (pending.state) {
        await records.remove(stored.sequence, leftMs()); // what became of it has been told for long enough
        over(note, stored.sequence);
        return undefined;
      }
      return await claimStored(note, stored, pending);
    } catch (error) {
      // someone else has it, or has made it again
      if (!isOutrun(error)) trouble ??= textOf(error);
      insert(note, madeAgain.delete(original) ? original.at : serverNow() + patienceMs);
      return undefined;
    }
  }

  async function claimStored(note: Note, stored: StoredMessage, pending: Pending): Promise<Claimed | undefined> {
    const claimedAt = Date.parse(stored.time);
    const [first = stored.sequence, after, since = claimedAt] = pending.releasing ?? [];
    const before = after === undefined ? undefined : { after, since };
    if (before && serverNow() < claimedAt + patienceMs) {
      const { at } = known.get(note.subject) as Note;
      const isForLater = at > pending.at; // what is being released comes again then
      insert(note, isForLater ? Math.max(at, serverNow() + 2 * leadMs) : claimedAt + patienceMs);
      return undefined;
    }
    const { recurring, id } = pending;
    let occurrence: Occurrence | undefined = { planned: pending.planned, due: pending.at };
    if (recurring && !before) {
      occurrence = caughtUp(recurring, id, pending.planned, serverNow());
      const isLater = !occurrence || occurrence.due > Math.max(note.at, serverNow());
      const overlaps = !isLater && recurring.overlap !== "allow" && (await isUnhandled(pending));
      if (overlaps && recurring.overlap === "queue") {
        insert(note, serverNow() + lookAgainMs);
        return undefined;
      }
      if (overlaps) occurrence = occurrenceAfter(recurring, id, Math.max(pending.planned, serverNow()));
      if (isLater || overlaps) {
        await comeAgain(note, stored, occurrence, pending.previous);
        return undefined;
      }
    }
    const { planned, due } = occurrence as Occurrence;
    const claim = rewritten(stored, {
      [pendingHeaders.at]: `${due}`,
      ...(recurring && { [pendingHeaders.planned]: `${planned}` }),
      [pendingHeaders.releasing]: before ? `${first} ${after} ${since}` : `${first} ${lastOfTarget}`,
    });
    const began = serverNow();
    const { sequence: revision } = await publish(connection, claim, leftMs());
    return { note, pending: { ...pending, planned, at: due }, stored, revision, first, before, claimedAt: began };
  }

  /** Releases it when it is due: many of them in one piece where they are due together. */
  function fire(one: Claimed): void {
    const releasing = one.pending.at > serverNow() ? untilDue(one).then(() => releaseOne(one)) : releaseOne(one);
    underWay.add(releasing);
    void releasing.finally(() => {
      underWay.delete(releasing);
      wake();
    });
  }

  async function untilDue({ pending: { at } }: Claimed): Promise<void> {
    // a timer may be early, by part of a millisecond
    while (at > serverNow()) await pause(Math.ceil(at - serverNow()), "waiting until a schedule is due");
  }

  async function releaseOne(claimed: Claimed): Promise<void> {
    const { note, pending, stored, revision, first, before, claimedAt } = claimed;
    const { at, target } = pending;
    try {
      if (serverNow() > claimedAt + patienceMs - leadMs && !(await isStillOurs(claimed))) {
        insert(note, serverNow() + patienceMs); // another one may have taken it over: this function stood still
        return;
      }
      const id = pending.recurring ? releaseIdOf(pending) : `sortie.release.${first}.${at}`;
      const isForgotten = before && serverNow() > before.since + duplicateWindowMs;
      let sequence = isForgotten ? await sequenceOf(target, before.after, id) : undefined;
      if (sequence === undefined) {
        const outgoing = { stream: name, subject: target, payload: stored.data, id, headers: headersOf(claimed) };
        const published = await publish(connection, outgoing, leftMs());
        sequence = published.sequence;
        if (!published.duplicate) {
          released += 1;
          latestMs = Math.max(latestMs ?? 0, Math.round(serverNow() - at));
        }
      }
      await after(claimed, { ...stored, sequence: revision }, sequence);
    } catch (error) {
      trouble ??= textOf(error);
      insert(note, serverNow() + patienceMs);
    }
  }

  /** What the released message has of its schedule's headers, and what it tells of it. */
  function headersOf({ pending, stored }: Claimed): Headers {
    const own = stored.headers.filter(([header]) => !/^nats-/i.test(header) && !ofSchedule.has(header));
    return pending.recurring ? releasedFor(pending, own) : own;
  }

  async function isStillOurs({ note, revision }: Claimed): Promise<boolean> {
    const which = { last_by_subj: note.schedule };
    const stored = await storedMessage(connection, schedulesStream, which, leftMs(), "reading a schedule");
    return stored?.sequence === revision;
  }

  /** One that is released comes again, or leaves a word that it was. */
  async function after({ note, pending }: Claimed, claimed: StoredMessage, sequence: number): Promise<void> {
    const { id, recurring, planned } = pending;
    const next = recurring && occurrenceAfter(recurring, id, planned);
    if (next) return await comeAgain(note, claimed, next, sequence);
    if (note.schedule === note.subject) {
      await records.remove(claimed.sequence, leftMs());
      return over(note, 0);
    }
    if (await leaveWord(claimed, pending)) over(note, claimed.sequence);
    else lookAgain(note);
  }

  /** Has a schedule wait for another one of its times, or leave a word where none comes. */
  async function comeAgain(
    note: Note,
    stored: StoredMessage,
    next: Occurrence | undefined,
    previous: number | undefined,
  ): Promise<void> {
    const pending = pendingOf(stored);
    if (!next) {
      if (await leaveWord(stored, pending)) return over(note, stored.sequence);
      return lookAgain(note);
    }
    const due = Math.max(next.due, pending.at + 1); // a note of an earlier time than it has would be taken for an old one
    const noted = noteFor(name, tokenOf(pending.id), due, serverNow());
    const again = noteOf(noted.subject);
    const waits = rewritten(stored, {
      [pendingHeaders.at]: `${due}`,
      [pendingHeaders.planned]: `${next.planned}`,
      [pendingHeaders.releasing]: undefined,
      [pendingHeaders.previous]: previous === undefined ? undefined : `${previous}`,
    });
    moving.add(again.subject);
    try {
      await publish(connection, noted, leftMs()); // first: who has a note of an earlier time finds that it waits
      await publish(connection, waits, leftMs());
    } catch (error) {
      if (!isOutrun(error)) throw error;
      return lookAgain(note);
    } finally {
      moving.delete(again.subject);
    }
    if (again.subject !== note.subject) over(note, stored.sequence);
    if (again.at > latestAt() || add(again)) return;
    // it was found before its schedule had come to it
    const original = known.get(again.subject) as Note;
    done.delete(original);
    if (!agenda.some(({ subject }) => subject === again.subject)) insert(original);
  }

  /** Somebody has cancelled, paused or replaced it meanwhile: it may be due again. */
  function lookAgain({ subject }: Note): void {
    insert(known.get(subject) as Note);
  }

  /** False where somebody has written in its place. */
  async function leaveWord(stored: StoredMessage, { id, at }: Pending): Promise<boolean> {
    const forgetAt = Math.round(serverNow()) + rememberedMs;
    const seconds = secondsUntil(connection, forgetAt, serverNow());
    const memo = memoFor(stored, { id, state: "released", at, forgetAt, seconds });
    try {
      await publish(connection, memo, leftMs());
    } catch (error) {
      if (!isOutrun(error)) throw error;
      return false;
    }
    if (seconds === undefined) await publish(connection, noteFor(name, tokenOf(id), forgetAt, serverNow()), leftMs());
    return true;
  }

  /** Whether the one before is still to be handled: it waits for a consumer of its subject, or is parked for a retry. */
  async function isUnhandled({ target, previous }: Pending): Promise<boolean> {
    if (previous === undefined) return false;
    const isThere = async () => {
      const kept = await storedMessage(connection, name, { seq: previous }, leftMs(), "looking for the one before");
      return kept?.subject === target; // a work queue lets go of what is handled
    };
    const isAwaited = async () => {
      const consumers = await consumersOf(connection, name, leftMs());
      return consumers.some((one) => isAwaiting(one, { subject: target, sequence: previous }));
    };
    const parked = { next_by_subj: parkedSubject(name, "*", previous, "*"), seq: 1 };
    const [isLeft, retry] = await Promise.all([
      retention === "workqueue" ? isThere() : isAwaited(),
      storedMessage(connection, parkedStream, parked, leftMs(), "looking for a retry").catch((error: unknown) => {
        if (!/stream not found/i.test(textOf(error))) throw error; // an app without far retries has none
        return undefined;
      }),
    ]);
    return Boolean(retry) || isLeft;
  }

  /** Where the target stream has it, whose id may have been forgotten there. */
  async function sequenceOf(subject: string, after: number, id: string): Promise<number | undefined> {
    for (let seq = after + 1; ; ) {
      const which = { next_by_subj: subject, seq };
      const found = await storedMessage(connection, name, which, leftMs(), "looking for what was released");
      if (!found || headerOf(found, "Nats-Msg-Id") === id) return found?.sequence;
      seq = found.sequence + 1;
    }
  }

  /** Takes away the notes of what is over, and remembers until when that is all. */
  async function tidy(): Promise<void> {
    const left = [...known.values()].filter((note) => !done.has(note));
    const whole = listings.filter(({ notes }) => notes.length > 0 && notes.every((note) => done.has(note)));
    const gone = new Set(whole.flatMap(({ notes }) => notes));
    await Promise.all([
      ...whole.map(({ pattern, last }) => purge({ filter: pattern, seq: last + 1 })),
      ...[...done]
        .filter(([note, upTo]) => upTo > 0 && !gone.has(note))
        .map(([{ subject }, upTo]) => purge({ filter: subject, seq: upTo + 1 })),
    ]);
    const earliest = Math.min(listedUntil, serverNow() - lateMs, ...left.map(({ at }) => at));
    if (startOfMinute(earliest) <= until) return;
    const subject = doneSubjectOf(name);
    const before = await records.read(subject, leftMs());
    if (before && before.value.until >= earliest) return;
    await records
      .write(subject, before?.revision ?? 0, { until: startOfMinute(earliest) }, leftMs())
      .catch((error: unknown) => {
        if (!isConflict(error)) throw error;
      });
  }

  async function purge(what: { filter: string; seq: number }): Promise<void> {
    await ask(`$JS.API.STREAM.PURGE.${schedulesStream}`, what, "removing notes of schedules");
  }

  async function streamInfo(stream: string, what: object = {}): Promise<StreamInfo> {
    const after = now();
    const answer = await ask<StreamInfo & { error?: { description: string } }>(
      `$JS.API.STREAM.INFO.${stream}`,
      what,
      "looking at a stream",
    );
    // of another stream's leader the clock may be another one
    if (answer.ts !== undefined && stream === schedulesStream) learn(Date.parse(answer.ts), { after, by: now() });
    if (!answer.error) return answer;
    throw missingStream(stream, answer.error.description);
  }

  async function ask<T>(subject: string, what: object, doing: string): Promise<T> {
    const asked = connection.request(subject, JSON.stringify(what), { timeout: leftMs() });
    return (await within(leftMs(), doing, asked)).json<T>();
  }
}
