/** How one consumer takes part in the gate of an invocation. */
interface Participant {
  /** Of those that wait, the one with the highest priority is let in first, and among equals the one with the fewest inside. */
  readonly priority: number;
  /** How many of its handlers run. */
  readonly running: () => number;
  /** Whether it is known what waits for it: its first pull has been answered. */
  readonly isKnown: () => boolean;
  /** Whether there is, or may come, something to start. */
  readonly wants: () => boolean;
  /** Is told that it may be let in again. */
  readonly onOpen: () => void;
}

/**
 * Lets the handlers of an invocation run side by side, as many as there are places, or one of them alone: a message whose
 * function died is started again with nothing beside it, so that it can be told apart from those that died with it.
 */
export interface Gate {
  join(participant: Participant): void;
  /**
   * Whether a handler of a participant may start beside others. A place is kept for each of the others, unless its priority is
   * lower, and its share, or all, until it is known what waits for it: a slow one that comes first does not take them all.
   * While one waits to run alone, those still may that are likely to end before
   * those that it waits for: one slow consumer, or a handler that hangs, does not hold up the others. When these have ended,
   * nobody else enters before it has run.
   */
  admits(participant: Participant, handlerMs: number | undefined): boolean;
  /** What a participant knows, or wants, is otherwise now. */
  changed(): void;
  /** How many handlers of a participant may run, by what others leave, and have to leave, to it. */
  placesFor(participant: Participant): number;
  /**
   * A message is being handled, until it is settled and leaves; it will take about `handlerMs`, where that is known. Answers
   * what it leaves with.
   */
  enter(handlerMs: number | undefined): Entrance;
  /** Another message for the handler that was let in last: it takes no place, and is inside until it is settled and leaves. */
  accompany(): Entrance;
  /**
   * Waits until nobody is inside, for `ms` at most; nobody else enters then before this one leaves. Between two of those that
   * run alone, others have a turn, as many as there are places. Undefined where it has to do without.
   */
  enterAlone(participant: Participant, ms: number): Promise<Entrance | undefined>;
  /** Its handler has ended: another one may have the place. */
  handled(): void;
  leave(entrance: Entrance): void;
}

/** Which of those that wait to run alone had come when a message entered: those after it wait for it. From 1. */
export type Entrance = number;

/** A handler is taken for as long as that where nothing is known. */
const typicalMs = 100;

/** How soon, and how late at most, to look whether others may be let in, where nothing else happens. */
const lookMs = { first: 10, longest: 1_000 };

/** `most` is how many handlers may run at the same time over all consumers; Infinity for as many as these allow. */
export function createGate(now: () => number, most: number): Gate {
  const participants: Participant[] = [];
  const waiting: { readonly priority: number; readonly letIn: (entrance: Entrance) => void }[] = [];
  let inside = 0;
  let running = 0;
  let alone = false;
  let between = false; // one has run alone, and others have their turn before the next one
  let busyUntil = 0; // the slowest inside, as far as is known
  let entrance: Entrance = 1;
  let older = 0; // of those inside, how many the one that waits found there
  let since = 0; // when it did
  let last = false; // these have ended, and it waits for those that came in meanwhile
  let looking: ReturnType<typeof setTimeout> | undefined;

  function admitOne(): void {
    const next = waiting.shift();
    if (waiting.length === 0) clearTimeout(looking);
    if (!next) return;
    alone = true;
    last = false;
    inside = 1;
    running += 1;
    next.letIn(entrance);
  }

  function tell(): void {
    const fair = (a: Participant, b: Participant) => b.priority - a.priority || a.running() - b.running();
    for (const { onOpen } of participants.toSorted(fair)) onOpen();
  }

  /** Whoever waits, waits for those that are inside now. */
  function waitForThese(): void {
    entrance += 1;
    older = inside;
    since = now();
    look(lookMs.first);
  }

  function look(ms: number): void {
    clearTimeout(looking);
    looking = setTimeout(() => {
      if (waiting.length === 0 || older === 0) return;
      tell();
      look(Math.min(2 * ms, lookMs.longest));
    }, ms);
  }

  function shareOf({ priority }: Participant): number {
    const equals = participants.filter((other) => other.priority === priority && other.wants()).length;
    const above = sum(participants.filter((other) => other.priority > priority));
    return Math.floor((most - above) / Math.max(1, equals));
  }

  /** How many places are kept for others. */
  function keptFrom(one: Participant): number {
    let kept = 0;
    for (const other of participants) {
      if (other === one || other.priority < one.priority || !other.wants()) continue;
      if (other.isKnown()) kept += other.running() === 0 ? 1 : 0;
      else kept += other.priority > one.priority ? most : Math.max(0, shareOf(other) - other.running());
    }
    return Math.min(kept, most - 1);
  }

  function sum(some: readonly Participant[]): number {
    return some.reduce((all, one) => all + one.running(), 0);
  }

  return {
    join(participant) {
      participants.push(participant);
    },
    admits(participant, handlerMs = typicalMs) {
      if (alone || running >= most) return false;
      if (most < Infinity && participant.running() > 0 && running + keptFrom(participant) >= most) return false;
      if (waiting.length === 0 || between) return true;
      if (last) return false;
      // whom it waits for take longer, or have taken so long already that it makes no difference
      return older > 0 && (now() + handlerMs < busyUntil || handlerMs < now() - since);
    },
    placesFor(participant) {
      if (most === Infinity) return most;
      const below = sum(participants.filter(({ priority }) => priority < participant.priority));
      const free = most - running + below - keptFrom(participant);
      return Math.max(participant.running() + free, shareOf(participant));
    },
    changed() {
      if (most < Infinity && !alone) tell();
    },
    enter(handlerMs = 0) {
      inside += 1;
      running += 1;
      busyUntil = Math.max(busyUntil, now() + handlerMs);
      return entrance;
    },
    accompany() {
      inside += 1;
      return entrance;
    },
    enterAlone({ priority }, ms) {
      return new Promise((resolve) => {
        const letIn = (entered?: Entrance) => {
          clearTimeout(giveUp);
          resolve(entered);
        };
        const one = { priority, letIn };
        const giveUp = setTimeout(() => {
          waiting.splice(waiting.indexOf(one), 1);
          letIn();
          if (waiting.length > 0) return;
          clearTimeout(looking);
          last = false;
          tell();
        }, ms);
        const behind = waiting.findIndex((other) => other.priority < priority);
        waiting.splice(behind < 0 ? waiting.length : behind, 0, one);
        if (inside === 0) admitOne();
        else if (waiting.length === 1) waitForThese();
      });
    },
    handled() {
      running -= 1;
      if (most < Infinity && !alone) tell();
    },
    leave(entered) {
      inside -= 1;
      if (entered < entrance && older > 0) older -= 1;
      if (inside > 0) {
        if (waiting.length > 0 && older === 0 && !alone && !last) {
          last = true;
          waitForThese();
        }
        return;
      }
      between = alone;
      alone = false;
      if (between || waiting.length === 0) tell();
      between = false;
      if (inside === 0) admitOne();
      else if (waiting.length > 0) waitForThese();
    },
  };
}
