import { schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { headerOf, type StoredMessage, storedMessage } from "../nats/stored-message.ts";
import { pause, point, within } from "../nats/within.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import {
  doneSubjectOf,
  type Note,
  noteOf,
  notesBetween,
  pendingHeaders,
  scheduleSubject,
  startOfMinute,
} from "./pending.ts";

/** How long before it is due a schedule is claimed, */
const leadMs = 250;

/** and how much sooner for each of those that are due together, */
const perClaimMs = 0.25;

/** at most. */
const longestLeadMs = 4_000;

/** How many are claimed at the same time. */
const together = 256;

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
  readonly at: number;
  readonly stored: StoredMessage;
  /** Its sequence when it was claimed, and when it was made: the id of what is released is made of that. */
  readonly revision: number;
  readonly first: number;
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
  readonly created: string;
  readonly state: { readonly last_seq: number; readonly subjects?: Record<string, number> };
  readonly total?: number;
}

/**
 * Releases what is due of one stream's schedules, each at its time by the server's clock, in the order of their times, and
 * stays until `leaveAt` for those that become due. Any number of these may run at the same time: a schedule is claimed with
 * compare-and-set before it is released, and where nothing more is heard of whoever has claimed it, it is released with the
 * same message id.
 */
export async function releaseDue(
  connection: Connection,
  { name, duplicateWindowMs }: StreamDefinition,
  { leaveAt, settleBy, now }: { readonly leaveAt: number; readonly settleBy: number; now(): number },
): Promise<Released> {
  const records = recordsIn<{ until: number }>(connection, schedulesStream, "schedules");
  const leftMs = () => Math.max(1, Math.min(stepMs, settleBy - now()));
  const agenda: Note[] = []; // in the order of their times
  const known = new Map<string, Note>();
  const done = new Set<Note>();
  const heard = new Set<Note>(); // whose schedule may not be stored yet
  const listings: Listing[] = [];
  const underWay = new Set<Promise<void>>();
  const subscriptions: { unsubscribe(): void }[] = [];
  let wake = () => {};
  let released = 0;
  let latestMs: number | undefined;
  let trouble: string | undefined;

  const { until, aheadOfUsMs, lastOfTarget } = await look();
  /** By the server's clock, of which this is never ahead. */
  const serverNow = () => now() + aheadOfUsMs;
  const latestAt = () => settleBy + aheadOfUsMs - leadMs; // what is due later is for others
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
    // what is stored now is read back with the server's time, which it is at least since we know that it is stored
    const [revision, storedBy] = await records.write(subject, before?.revision ?? 0, { until }, leftMs()).then(
      (revision) => [revision, now()] as const,
      (error: unknown) => {
        if (!isConflict(error)) throw error;
        return [];
      },
    );
    const told = await records.read(subject, leftMs());
    // what another one has stored was stored before it was read
    const by = told?.revision === revision && storedBy !== undefined ? storedBy : now();
    const aheadOfUsMs = (told?.at ?? until) - by;
    return { until, aheadOfUsMs, lastOfTarget: target.state.last_seq };
  }

  async function release(): Promise<void> {
    while (now() < settleBy - leadMs) {
      await list();
      const some = take();
      if (some.length > 0) {
        const claimed = await Promise.all(some.map(claim));
        for (const one of claimed) if (one) fire(one);
      } else if (now() < leaveAt) await rest();
      else return;
    }
  }

  /** Until there is something to do: what is due comes near, a new one is heard of, or another minute begins. */
  async function rest(): Promise<void> {
    const next = Math.min(nextClaimAt(), listedUntil - aheadMs, leaveAt + aheadOfUsMs);
    const news = Promise.withResolvers<void>();
    wake = news.resolve;
    const timer = setTimeout(news.resolve, Math.max(0, Math.ceil(next - serverNow())));
    await point("waiting for what is due", news.promise);
    clearTimeout(timer);
  }

  /** Finds the notes for the minutes until now, and for the next one shortly before it begins. */
  async function list(): Promise<void> {
    const to = serverNow() + aheadMs;
    if (listedUntil > to) return;
    const live = notesBetween(name, Math.max(listedUntil, startOfMinute(serverNow())), to);
    const patterns = notesBetween(name, listedUntil, to);
    listedUntil = startOfMinute(to) + 60_000;
    const callback = (error: Error | null, { subject }: { subject: string }) => {
      if (!error && add(noteOf(subject))) heard.add(known.get(subject) as Note);
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
        notes.push(known.get(subject) as Note);
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
      if (due > latestAt() || due - longestLeadMs > Math.min(at, serverNow() + leadMs)) break;
      at = Math.min(at, due - Math.min(longestLeadMs, leadMs + before));
      before += perClaimMs * together;
    }
    return at;
  }

  function take(): Note[] {
    if (nextClaimAt() > serverNow()) return [];
    const by = Math.min(serverNow() + longestLeadMs, latestAt());
    const some = agenda.splice(0, together);
    const after = some.findIndex(({ at }) => at > by);
    if (after >= 0) agenda.unshift(...some.splice(after));
    return some;
  }

  function over({ subject }: Note): void {
    done.add(known.get(subject) as Note);
  }

  /** Undefined where it is not ours to release, or not now. */
  async function claim(note: Note): Promise<Claimed | undefined> {
    try {
      const subject = scheduleSubject(name, note.token);
      const stored = await storedMessage(
        connection,
        schedulesStream,
        { last_by_subj: subject },
        leftMs(),
        "reading a schedule",
      );
      const original = known.get(note.subject) as Note;
      if (!stored) {
        if (heard.delete(original)) insert(note, serverNow() + 500);
        else over(note); // it was released, replaced and released, or cancelled
        return undefined;
      }
      const at = Number(headerOf(stored, pendingHeaders.at));
      if (at > original.at) {
        over(note); // it was replaced by a later one, which has a note of its own
        return undefined;
      }
      const claimedAt = Date.parse(stored.time);
      const [first = stored.sequence, after, since = claimedAt] =
        headerOf(stored, pendingHeaders.releasing)?.split(" ").map(Number) ?? [];
      const before = after === undefined ? undefined : { after, since };
      if (before && serverNow() < claimedAt + patienceMs) {
        insert(note, claimedAt + patienceMs);
        return undefined;
      }
      const { data: payload, sequence } = stored;
      const releasing = before ? `${first} ${after} ${since}` : `${first} ${lastOfTarget}`;
      const headers = [
        ...stored.headers.filter(([header]) => !/^nats-/i.test(header) && header !== pendingHeaders.releasing),
        [pendingHeaders.releasing, releasing],
        ["Nats-Expected-Last-Subject-Sequence", `${sequence}`],
      ] as const;
      const claimed = await publish(connection, { subject, payload, headers }, leftMs());
      return { note, at, stored, revision: claimed.sequence, first, before };
    } catch (error) {
      // someone else has it, or has replaced it
      if (!isOutrun(error)) trouble ??= textOf(error);
      insert(note, serverNow() + patienceMs);
      return undefined;
    }
  }

  /** Releases it when it is due: many of them in one piece where they are due together. */
  function fire(one: Claimed): void {
    const releasing = one.at > serverNow() ? untilDue(one).then(() => releaseOne(one)) : releaseOne(one);
    underWay.add(releasing);
    void releasing.finally(() => underWay.delete(releasing));
  }

  async function untilDue({ at }: Claimed): Promise<void> {
    // a timer may be early, by part of a millisecond
    while (at > serverNow()) await pause(Math.ceil(at - serverNow()), "waiting until a schedule is due");
  }

  async function releaseOne({ note, at, stored, revision, first, before }: Claimed): Promise<void> {
    try {
      const id = `sortie.release.${first}.${at}`;
      const subject = headerOf(stored, pendingHeaders.target) ?? "";
      const isForgotten = before && serverNow() > before.since + duplicateWindowMs;
      if (!isForgotten || !(await isReleased(subject, before.after, id))) {
        const headers = stored.headers.filter(([header]) => !/^nats-/i.test(header) && !ofSchedule.has(header));
        const outgoing = { stream: name, subject, payload: stored.data, id, headers };
        const { duplicate } = await publish(connection, outgoing, leftMs());
        if (!duplicate) {
          released += 1;
          latestMs = Math.max(latestMs ?? 0, Math.round(serverNow() - at));
        }
      }
      await records.remove(revision, leftMs());
      over(note);
    } catch (error) {
      trouble ??= textOf(error);
      insert(note, serverNow() + patienceMs);
    }
  }

  /** Whether the target stream has it: its id may have been forgotten there. */
  async function isReleased(subject: string, after: number, id: string): Promise<boolean> {
    for (let seq = after + 1; ; ) {
      const which = { next_by_subj: subject, seq };
      const found = await storedMessage(connection, name, which, leftMs(), "looking for what was released");
      if (!found) return false;
      if (headerOf(found, "Nats-Msg-Id") === id) return true;
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
      ...[...done].filter((note) => !gone.has(note)).map(({ subject }) => purge({ filter: subject })),
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

  async function purge(what: { filter: string; seq?: number }): Promise<void> {
    await ask(`$JS.API.STREAM.PURGE.${schedulesStream}`, what, "removing notes of schedules");
  }

  async function streamInfo(stream: string, what: object = {}): Promise<StreamInfo> {
    const answer = await ask<StreamInfo & { error?: { description: string } }>(
      `$JS.API.STREAM.INFO.${stream}`,
      what,
      "looking at a stream",
    );
    if (!answer.error) return answer;
    throw new SortieError(
      "stream-missing",
      `Stream "${stream}", which schedules need: ${answer.error.description}. Create it: npx sortie apply <the module with your app>`,
    );
  }

  async function ask<T>(subject: string, what: object, doing: string): Promise<T> {
    const asked = connection.request(subject, JSON.stringify(what), { timeout: leftMs() });
    return (await within(leftMs(), doing, asked)).json<T>();
  }
}
