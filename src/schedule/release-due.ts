import { schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { permissionsHint } from "../nats/denied.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import type { SubjectsPage } from "../nats/stream-info.ts";
import { pause, point, within } from "../nats/within.ts";
import { createAgenda, leadMs, together } from "./agenda.ts";
import { doneSubjectOf, type Note, noteOf, notesBetween, soonNotes, startOfDay, startOfMinute } from "./pending.ts";
import { type Claimed, createReleaser, taken } from "./releaser.ts";
import { type Between, createServerClock } from "./server-clock.ts";
import { schedulesInfo, subjectsIn } from "./stored-schedule.ts";

/** What is so late is a backlog. */
const behindMs = 500;

/** How long at most whoever finds others at the same backlog leaves it to them. */
const longestYieldMs = 2_000;

/** How long before a minute begins its notes are looked for. */
const aheadMs = 5_000;

/** Notes may still be written for minutes that have been over for so long: hosts' clocks differ. */
const lateMs = 120_000;

/** They are listened to for so long after, and looked for once an hour. */
const veryLateMs = 8 * 86_400_000;
const hourMs = 3_600_000;
const stepMs = 5_000;

/** How often the record is stored again where others do the same. */
const mostTries = 3;

/** The server's time is known well enough where it may be so much later at most; */
const unsureMs = 5;

/** before that it is asked for after this while, and then each time after twice the while. */
const askAgainMs = 100;

/** What became of the schedules of one stream. */
export interface Released {
  readonly released: number;
  /** How late the latest of them was, in milliseconds; left out where none was released. */
  readonly latestMs?: number;
  /** What went wrong with some, which are released later. */
  readonly error?: string;
}

/** The notes that match a pattern. */
interface Listing {
  readonly pattern: string;
  /** Where the stream of notes ended before they were looked for. */
  readonly last: number;
  readonly notes: readonly Note[];
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
  stream: StreamDefinition,
  { leaveAt, settleBy, awaitsNews = true, only, now }: ReleaseTimes,
): Promise<Released> {
  const { name } = stream;
  const records = recordsIn<{ until: number }>(connection, schedulesStream, "schedules");
  const doneSubject = doneSubjectOf(name);
  const leftMs = () => Math.max(1, Math.min(stepMs, settleBy - now()));
  const listings: Listing[] = [];
  const underWay = new Set<Promise<void>>();
  const subscriptions: { unsubscribe(): void }[] = [];
  let yieldMs = 0;
  let wake = () => {};
  let released = 0;
  let latestMs: number | undefined;
  let trouble: string | undefined;
  let [askAt, askAfterMs] = [Infinity, askAgainMs];
  let record = { until: 0, revision: 0 }; // until when all is released, as it was last read
  let isReplicated = false;

  const onTrouble = (error: unknown) => {
    trouble ??= textOf(error);
  };
  const serverClock = createServerClock(now, () => wake());
  const clock = { now: serverClock.now, latestAt: () => serverClock.at(settleBy) - leadMs };
  const agenda = createAgenda(clock, () => wake());
  const { until, lastOfTarget } = await look();
  const releaser = createReleaser(connection, stream, {
    agenda,
    clock,
    records,
    lastOfTarget,
    leftMs,
    onReleased(lateMs) {
      released += 1;
      latestMs = Math.max(latestMs ?? 0, lateMs);
    },
    onTrouble,
  });
  const isSameHour = Math.floor(until / hourMs) === Math.floor(clock.now() / hourMs);
  let listedUntil = isSameHour ? until : startOfDay(until - veryLateMs);
  try {
    await release();
  } catch (error) {
    onTrouble(error);
  } finally {
    for (const subscription of subscriptions) subscription.unsubscribe();
  }
  await Promise.all(underWay);
  if (only === undefined) await tidy().catch(onTrouble); // what was released is looked at once more the next time
  return { released, ...(latestMs !== undefined && { latestMs }), ...(trouble && { error: trouble }) };

  async function look() {
    const [before, own, target] = await Promise.all([
      records.read(doneSubject, leftMs()),
      infoOfSchedules(),
      schedulesInfo(connection, name, leftMs(), "looking at a stream"),
    ]);
    const until = before?.value.until ?? Date.parse(own.created);
    record = { until, revision: before?.revision ?? 0 };
    isReplicated = (own.config.num_replicas ?? 1) > 1;
    if (own.ts !== undefined) askAt = now() + askAfterMs;
    if (own.ts === undefined || only !== undefined) await readBack(await storeAgain());
    return { until, lastOfTarget: target.state.last_seq };
  }

  /** Stores the record again as it is: what was on its way into the stream before is stored by then as well. */
  async function storeAgain(): Promise<Between & { readonly revision?: number }> {
    for (let tries = 1; ; tries++) {
      const after = now();
      try {
        const revision = await records.write(doneSubject, record.revision, { until: record.until }, leftMs());
        return { revision, after, by: now() };
      } catch (error) {
        if (!isConflict(error)) throw error;
        const another = { after: -Infinity, by: now() };
        if (!isReplicated || tries === mostTries) return another;
        await readBack(another); // a leader with replicas says so before it has stored what came earlier
      }
    }
  }

  /** Reads the record, with the server's time, which it is at least since we know that it is stored. */
  async function readBack({ revision, after, by }: Between & { readonly revision?: number }): Promise<void> {
    const told = await records.read(doneSubject, leftMs());
    // what another one has stored was stored before it was read
    const isOurs = told?.revision === revision;
    serverClock.learn(told?.at ?? record.until, isOurs ? { after, by } : { after: -Infinity, by: now() });
    if (told) record = { until: told.value.until, revision: told.revision };
  }

  /** Of the stream of notes; it tells the server's time as well: another stream's leader may have another one. */
  async function infoOfSchedules(page?: SubjectsPage) {
    const after = now();
    const info = await schedulesInfo(connection, schedulesStream, leftMs(), "looking at a stream", page);
    if (info.ts !== undefined) serverClock.learn(Date.parse(info.ts), { after, by: now() });
    return info;
  }

  /** Asks for the server's time again where it is not known well enough, and does not wait for it. */
  function askAgain(): void {
    if (now() < askAt) return;
    const isUnsure = serverClock.unsureMs > unsureMs;
    askAfterMs *= 2;
    askAt = isUnsure ? now() + askAfterMs : Infinity;
    if (!isUnsure) return;
    beUnderWay(
      infoOfSchedules().then(
        () => {},
        () => {}, // it is asked again
      ),
    );
  }

  function beUnderWay(doing: Promise<void>): void {
    underWay.add(doing);
    void doing.finally(() => {
      underWay.delete(doing);
      wake();
    });
  }

  async function release(): Promise<void> {
    while (now() < settleBy - leadMs) {
      await list();
      askAgain();
      const some = agenda.take();
      if (some.length > 0) {
        const claimed = await Promise.all(some.map(claimOrFire));
        for (const one of claimed) if (typeof one === "object") fire(one); // what is late, in its order
        // of those who are at the same backlog one is quicker alone than all at once
        const isBehind = some.length === together && (some.at(-1)?.at ?? Infinity) < clock.now() - behindMs;
        const isShared = isBehind && claimed.filter((one) => one === taken).length > 0.4 * together;
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
    return underWay.size > 0 || agenda.nextAt < serverClock.at(leaveAt);
  }

  /** Until there is something to do: what is due comes near, a new one is heard of, or another minute begins. */
  async function rest(): Promise<void> {
    const next = Math.min(agenda.nextClaimAt(), listedUntil - aheadMs, serverClock.at(Math.min(leaveAt, askAt)));
    const news = Promise.withResolvers<void>();
    wake = news.resolve;
    const timer = setTimeout(news.resolve, Math.max(0, Math.ceil(next - clock.now())));
    await point("waiting for what is due", news.promise);
    clearTimeout(timer);
  }

  /** Finds what is noted as due soon, and for the minutes until now, and for the next one shortly before it begins. */
  async function list(): Promise<void> {
    if (only !== undefined) {
      if (!agenda.knows(only)) agenda.add(noteOf(only));
      return;
    }
    const to = Math.max(clock.now() + aheadMs, awaitsNews ? 0 : serverClock.at(leaveAt));
    if (listedUntil > to) return;
    const soon = subscriptions.length === 0 ? [soonNotes(name)] : []; // listened to from then on
    const from = subscriptions.length === 0 ? startOfDay(clock.now() - veryLateMs) : listedUntil;
    const live = [...soon, ...notesBetween(name, from, to)];
    const patterns = [...soon, ...notesBetween(name, listedUntil, to)];
    listedUntil = startOfMinute(to) + 60_000;
    const callback = (error: Error | null, { subject }: { subject: string }) => {
      if (error)
        trouble ??= `${error.message}. ${permissionsHint}`; // what is made meanwhile is found the next time
      else agenda.hear(noteOf(subject));
    };
    for (const pattern of live) subscriptions.push(connection.subscribe(pattern, { callback }));
    const stored = await storeAgain(); // what was made before it could be heard of is found
    const [, ...found] = await Promise.all([readBack(stored), ...patterns.map(listOf)]);
    listings.push(...found);
  }

  async function listOf(pattern: string): Promise<Listing> {
    const notes = new Set<Note>();
    let last: number | undefined;
    // what others take away meanwhile shifts what is on the next page: until no page has anything new
    for (let again = true; again; ) {
      again = false;
      let pages = 0;
      for await (const { subjects, lastSequence } of subjectsIn(pattern, infoOfSchedules)) {
        last ??= lastSequence;
        pages += 1;
        for (const subject of subjects) {
          again ||= !agenda.knows(subject);
          notes.add(agenda.list(noteOf(subject), last));
        }
      }
      again &&= pages > 1;
    }
    return { pattern, last: last ?? 0, notes: [...notes] };
  }

  /** What is not due yet waits for its time at once, not for the last of those that are claimed with it. */
  async function claimOrFire(note: Note): Promise<Claimed | typeof taken | undefined> {
    const one = await releaser.claim(note);
    if (typeof one !== "object" || one.pending.at <= clock.now()) return one;
    fire(one);
    return undefined;
  }

  /** Releases it when it is due: many of them in one piece where they are due together. */
  function fire(one: Claimed): void {
    const isDue = one.pending.at <= clock.now();
    beUnderWay(isDue ? releaser.release(one) : untilDue(one).then(() => releaser.release(one)));
  }

  async function untilDue({ pending: { at } }: Claimed): Promise<void> {
    // a timer may be early, by part of a millisecond
    while (at > clock.now()) await pause(Math.ceil(at - clock.now()), "waiting until a schedule is due");
  }

  /** Takes away the notes of what is over, and remembers until when that is all. */
  async function tidy(): Promise<void> {
    const whole = listings.filter(({ notes }) => notes.length > 0 && notes.every(agenda.isOver));
    const gone = new Set(whole.flatMap(({ notes }) => notes));
    await Promise.all([
      ...whole.map(({ pattern, last }) => purge({ filter: pattern, seq: last + 1 })),
      ...[...agenda.done]
        .filter(([note, upTo]) => upTo > 0 && !gone.has(note))
        .map(([{ subject }, upTo]) => purge({ filter: subject, seq: upTo + 1 })),
    ]);
    const earliest = Math.min(listedUntil, clock.now() - lateMs, ...agenda.left().map(({ at }) => at));
    if (startOfMinute(earliest) <= until) return;
    const before = await records.read(doneSubject, leftMs());
    if (before && before.value.until >= earliest) return;
    await records
      .write(doneSubject, before?.revision ?? 0, { until: startOfMinute(earliest) }, leftMs())
      .catch((error: unknown) => {
        if (!isConflict(error)) throw error;
      });
  }

  async function purge(what: { filter: string; seq: number }): Promise<void> {
    const asked = connection.request(`$JS.API.STREAM.PURGE.${schedulesStream}`, JSON.stringify(what), {
      timeout: leftMs(),
    });
    await within(leftMs(), "removing notes of schedules", asked);
  }
}
