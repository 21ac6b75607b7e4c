import type { Note } from "./pending.ts";

/** How long before it is due a schedule is claimed, */
export const leadMs = 250;

/** and how much sooner for each of those that are due together, */
const perClaimMs = 0.35;

/** at most. */
const longestLeadMs = 4_000;

/** How many are claimed at the same time. */
export const together = 256;

/** What one look at a stream's schedules knows of, in the order in which it is due. */
export interface Agenda {
  /** When the first of them is looked at; Infinity where there is none. */
  readonly nextAt: number;
  /** When to begin with those that are due next: the more of them are due together, the sooner. */
  nextClaimAt(): number;
  /** Those that it is time to claim: none sooner than it has to, for until then it may be cancelled or replaced. */
  take(): Note[];
  knows(subject: string): boolean;
  /** As it was found: it may be looked at later than it is due. */
  original(note: Note): Note;
  /** False where it was known already. */
  add(note: Note): boolean;
  /** Adds one that was found when the stream of notes ended at `last`. */
  list(note: Note, last: number): Note;
  /** One that is made again may be what its schedule has now. */
  hear(note: Note): void;
  /** Whether it was heard of since it was last asked: then its schedule may not be stored yet. */
  isNews(note: Note): boolean;
  /** While `noting` it is not heard: we note it ourselves, a moment before its schedule has come to it. */
  unheard<T>(note: Note, noting: () => Promise<T>): Promise<T>;
  /** Looks at it at that time, which is its own or a later one. */
  insert(note: Note, at?: number): void;
  /** The same, but at its own time where it was made again meanwhile. */
  putOff(note: Note, at: number): void;
  /** Looks at it at its own time, though it was over already. */
  reopen(note: Note): void;
  /** Nothing that was stored up to this sequence makes it one to look at. */
  over(note: Note, upTo: number): void;
  isOver(note: Note): boolean;
  /** What is over, and up to which sequence its notes are taken away: it may have been made again since. */
  readonly done: ReadonlyMap<Note, number>;
  /** What is not over. */
  left(): Note[];
}

/** What is due after `latestAt` is for others; `wake` is called where there is more to do. */
export function createAgenda(clock: { now(): number; latestAt(): number }, wake: () => void): Agenda {
  const waiting: Note[] = []; // in the order of their times
  const known = new Map<string, Note>();
  const done = new Map<Note, number>();
  const heard = new Set<Note>();
  const madeAgain = new Set<Note>(); // while they were looked at
  const notedByUs = new Set<string>();
  const listedAt = new Map<Note, number>();

  const original = ({ subject }: Note) => known.get(subject) as Note;
  const placeOf = ({ subject }: Note) => waiting.findIndex((note) => note.subject === subject);

  function insert(note: Note, at = note.at): void {
    let low = 0;
    for (let high = waiting.length; low < high; ) {
      const middle = (low + high) >> 1;
      if ((waiting[middle] as Note).at <= at) low = middle + 1;
      else high = middle;
    }
    waiting.splice(low, 0, at === note.at ? note : { ...note, at });
  }

  function add(note: Note): boolean {
    if (known.has(note.subject)) return false;
    known.set(note.subject, note);
    insert(note);
    wake();
    return true;
  }

  /** How long before it is due the nth of those that are due together is claimed. */
  const leadOf = (n: number) => Math.min(longestLeadMs, leadMs + perClaimMs * n);

  /** The first of those that are claimed together, of the batch for whose sake it is begun the soonest, and when that is. */
  function mostUrgent(): { n: number; at: number } {
    let urgent = { n: 0, at: Infinity };
    for (let n = 0; n < waiting.length; n += together) {
      const due = (waiting[n] as Note).at;
      if (due > clock.latestAt() || due - longestLeadMs > urgent.at) break;
      if (due - leadOf(n) < urgent.at) urgent = { n, at: due - leadOf(n) };
    }
    return urgent;
  }

  return {
    get nextAt() {
      return waiting[0]?.at ?? Infinity;
    },
    nextClaimAt: () => mostUrgent().at,
    take() {
      const { n, at } = mostUrgent();
      if (at > clock.now()) return [];
      if (n > 0) return waiting.splice(0, together); // so that those behind them are in time
      const isTime = ({ at }: Note, n: number) => at <= clock.latestAt() && at - leadOf(n) <= clock.now();
      return waiting.splice(0, waiting.slice(0, together).findLastIndex(isTime) + 1);
    },
    knows: (subject) => known.has(subject),
    original,
    add,
    list(note, last) {
      add(note);
      const found = original(note);
      listedAt.set(found, last);
      return found;
    },
    hear(note) {
      if (notedByUs.has(note.subject)) return;
      if (add(note)) {
        heard.add(note);
        return;
      }
      const found = original(note);
      if (found.schedule === found.subject) return; // that it is claimed
      const at = placeOf(found);
      const isLookedAt = at < 0 && !done.delete(found);
      if (isLookedAt) madeAgain.add(found);
      else {
        if (at >= 0) waiting.splice(at, 1); // it may have been put off
        insert(found);
      }
      heard.add(found);
      wake();
    },
    isNews: (note) => heard.delete(original(note)),
    async unheard(note, noting) {
      notedByUs.add(note.subject);
      try {
        return await noting();
      } finally {
        notedByUs.delete(note.subject);
      }
    },
    insert,
    putOff(note, at) {
      const found = original(note);
      insert(note, madeAgain.delete(found) ? found.at : at);
    },
    reopen(note) {
      const found = original(note);
      done.delete(found);
      if (placeOf(found) < 0) insert(found);
    },
    over(note, upTo) {
      const found = original(note);
      if (madeAgain.delete(found)) insert(found);
      else done.set(found, listedAt.get(found) ?? upTo);
    },
    isOver: (note) => done.has(note),
    done,
    left: () => [...known.values()].filter((note) => !done.has(note)),
  };
}
