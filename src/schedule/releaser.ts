import { parkedStream, parkedSubject, schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { consumersOf, isAwaiting } from "../nats/consumer-info.ts";
import type { Records } from "../nats/records.ts";
import { headerOf, type StoredMessage, storedMessage } from "../nats/stored-message.ts";
import type { Headers } from "../publish/outgoing.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import { type Agenda, leadMs } from "./agenda.ts";
import { type Note, noteFor, noteOf, type Pending, pendingHeaders, pendingOf, rewritten } from "./pending.ts";
import { caughtUp, type Occurrence, occurrenceAfter, releasedFor, releaseIdOf } from "./recurring.ts";
import { remember } from "./schedule.ts";
import { schedulesInfo } from "./stored-schedule.ts";
import { tokenOf } from "./when.ts";

/** How long whoever has claimed one may take: then it is taken over. */
export const patienceMs = 5_000;

/** How often it is looked whether the one before is handled, where the next waits for that. */
const lookAgainMs = 1_000;

/** Whoever has claimed one has released it by then, or has looked whether it is still his. */
const releasedWithinMs = 60_000;

/** In how many parts a stream is searched at the same time. */
const searchers = 32;

/** What the released message does not have. */
const ofSchedule = new Set<string>(Object.values(pendingHeaders));

/** Of one that another function has claimed. */
export const taken = "taken";

/** A schedule that is ours to release. */
export interface Claimed {
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

/** What claiming and releasing one schedule goes by. */
export interface ReleaserOptions {
  readonly agenda: Agenda;
  /** By the server's clock; what is due after `latestAt` is for others. */
  readonly clock: { now(): number; latestAt(): number };
  readonly records: Pick<Records<unknown>, "remove">;
  /** Where the target stream ended before anything was claimed. */
  readonly lastOfTarget: number;
  leftMs(): number;
  onReleased(lateMs: number): void;
  onTrouble(error: unknown): void;
}

/** Claims a schedule by its note, and releases what is claimed: any number of these may be at the same one. */
export interface Releaser {
  /** `taken` where another one has it just now; undefined where it is not to be released, or not now. */
  claim(note: Note): Promise<Claimed | typeof taken | undefined>;
  /** To be called when it is due. */
  release(claimed: Claimed): Promise<void>;
}

export function createReleaser(
  connection: Connection,
  { name, duplicateWindowMs, retention }: StreamDefinition,
  { agenda, clock, records, lastOfTarget, leftMs, onReleased, onTrouble }: ReleaserOptions,
): Releaser {
  return { claim, release };

  async function claim(note: Note): Promise<Claimed | typeof taken | undefined> {
    try {
      const which = { last_by_subj: note.schedule };
      const stored = await storedMessage(connection, schedulesStream, which, leftMs(), "reading a schedule");
      if (!stored) {
        if (agenda.isNews(note)) agenda.insert(note, clock.now() + 500);
        else agenda.over(note, 0); // it was released, replaced and released, or cancelled
        return undefined;
      }
      const pending = pendingOf(stored);
      if (pending.at > agenda.original(note).at || pending.state === "paused") {
        // it waits for later: it has a note for that, unless whoever was to make it has died
        const later = noteFor(name, tokenOf(pending.id), pending.at, clock.now());
        if (!pending.state && !agenda.knows(later.subject)) await publish(connection, later, leftMs());
        agenda.over(note, stored.sequence);
        return undefined;
      }
      if (pending.state) {
        await records.remove(stored.sequence, leftMs()); // what became of it has been told for long enough
        agenda.over(note, stored.sequence);
        return undefined;
      }
      return await claimStored(note, stored, pending);
    } catch (error) {
      // someone else has it, or has made it again
      if (!isOutrun(error)) onTrouble(error);
      agenda.putOff(note, clock.now() + patienceMs);
      return isOutrun(error) ? taken : undefined;
    }
  }

  async function claimStored(
    note: Note,
    stored: StoredMessage,
    pending: Pending,
  ): Promise<Claimed | typeof taken | undefined> {
    const claimedAt = Date.parse(stored.time);
    const [first = stored.sequence, after, since = claimedAt] = pending.releasing ?? [];
    const before = after === undefined ? undefined : { after, since };
    if (before && clock.now() < claimedAt + patienceMs) {
      const { at } = agenda.original(note);
      const isForLater = at > pending.at; // what is being released comes again then
      agenda.insert(note, isForLater ? Math.max(at, clock.now() + 2 * leadMs) : claimedAt + patienceMs);
      return taken;
    }
    const { recurring, id } = pending;
    let occurrence: Occurrence | undefined = { planned: pending.planned, due: pending.at };
    if (recurring && !before) {
      occurrence = caughtUp(recurring, id, pending.planned, clock.now());
      const isLater = !occurrence || occurrence.due > Math.max(note.at, clock.now());
      if (occurrence && !isLater && recurring.overlap !== "allow" && occurrence.due > clock.now()) {
        agenda.insert(note, occurrence.due); // by then the one before may be handled
        return undefined;
      }
      const overlaps = !isLater && recurring.overlap !== "allow" && (await isUnhandled(pending));
      if (overlaps && recurring.overlap === "queue") {
        agenda.insert(note, clock.now() + lookAgainMs);
        return undefined;
      }
      if (overlaps) occurrence = occurrenceAfter(recurring, id, Math.max(pending.planned, clock.now()));
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
    const began = clock.now();
    const { sequence: revision } = await publish(connection, claim, leftMs());
    return { note, pending: { ...pending, planned, at: due }, stored, revision, first, before, claimedAt: began };
  }

  async function release(claimed: Claimed): Promise<void> {
    const { note, pending, stored, revision, first, before, claimedAt } = claimed;
    const { at, target } = pending;
    try {
      if (clock.now() > claimedAt + patienceMs - leadMs && !(await isStillOurs(claimed))) {
        agenda.insert(note, clock.now() + patienceMs); // another one may have taken it over: this function stood still
        return;
      }
      const id = pending.recurring ? releaseIdOf(pending) : `sortie.release.${first}.${at}`;
      const isForgotten = before && clock.now() > before.since + duplicateWindowMs;
      let sequence = isForgotten ? await sequenceOf(target, before, id) : undefined;
      if (sequence === undefined) {
        const outgoing = { stream: name, subject: target, payload: stored.data, id, headers: headersOf(claimed) };
        const published = await publish(connection, outgoing, leftMs());
        sequence = published.sequence;
        if (!published.duplicate) onReleased(Math.round(clock.now() - at));
      }
      await after(claimed, { ...stored, sequence: revision }, sequence);
    } catch (error) {
      onTrouble(error);
      agenda.insert(note, clock.now() + patienceMs);
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
      try {
        await records.remove(claimed.sequence, leftMs());
        return agenda.over(note, 0);
      } catch (error) {
        onTrouble(error); // it would be released again and again
      }
    }
    if (await leaveWord(claimed, pending)) agenda.over(note, claimed.sequence);
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
      if (await leaveWord(stored, pending)) return agenda.over(note, stored.sequence);
      return lookAgain(note);
    }
    const due = Math.max(next.due, pending.at + 1); // a note of an earlier time than it has would be taken for an old one
    const noted = noteFor(name, tokenOf(pending.id), due, clock.now());
    const again = noteOf(noted.subject);
    const waits = rewritten(stored, {
      [pendingHeaders.at]: `${due}`,
      [pendingHeaders.planned]: `${next.planned}`,
      [pendingHeaders.releasing]: undefined,
      [pendingHeaders.previous]: previous === undefined ? undefined : `${previous}`,
    });
    try {
      await agenda.unheard(again, async () => {
        await publish(connection, noted, leftMs()); // first: who has a note of an earlier time finds that it waits
        await publish(connection, waits, leftMs());
      });
    } catch (error) {
      if (!isOutrun(error)) throw error;
      return lookAgain(note);
    }
    if (again.subject !== note.subject) agenda.over(note, stored.sequence);
    if (again.at > clock.latestAt() || agenda.add(again)) return;
    agenda.reopen(again); // it was found before its schedule had come to it
  }

  /** Somebody has cancelled, paused or replaced it meanwhile: it may be due again. */
  function lookAgain(note: Note): void {
    agenda.insert(agenda.original(note));
  }

  /** False where somebody has written in its place. */
  async function leaveWord(stored: StoredMessage, { id, at, target }: Pending): Promise<boolean> {
    try {
      const message = { subject: target, payload: stored.data };
      await remember(connection, name, stored, { id, state: "released", at, now: clock.now(), message }, leftMs);
      return true;
    } catch (error) {
      if (!isOutrun(error)) throw error;
      return false;
    }
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

  /** Where the target stream has it, whose id may have been forgotten there: what came to it meanwhile is gone through. */
  async function sequenceOf(
    subject: string,
    { after, since }: { readonly after: number; readonly since: number },
    id: string,
  ): Promise<number | undefined> {
    const { state } = await schedulesInfo(connection, name, leftMs(), "looking at a stream");
    const share = Math.ceil((state.last_seq - after) / searchers);
    const found = await Promise.all(
      Array.from({ length: searchers }, async (_, n) => {
        const end = after + share * (n + 1);
        for (let seq = after + share * n + 1; seq <= end; ) {
          const which = { next_by_subj: subject, seq };
          const stored = await storedMessage(connection, name, which, leftMs(), "looking for what was released");
          if (!stored || stored.sequence > end) return undefined;
          if (headerOf(stored, "Nats-Msg-Id") === id) return stored.sequence;
          if (Date.parse(stored.time) > since + releasedWithinMs) return undefined;
          seq = stored.sequence + 1;
        }
        return undefined;
      }),
    );
    return found.find((sequence) => sequence !== undefined);
  }
}
