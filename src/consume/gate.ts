/** How one consumer takes part in the gate of an invocation. */
interface Participant {
  /** Of those that wait the one with the highest priority is let in first, and among equals the one with the fewest inside. */
  readonly priority: number;
  /** How many of its handlers run. */
  readonly running: () => number;
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
   * Whether a handler may start beside others. While one waits to run alone, those still may that will have ended, as far
   * as is known, before the slowest that it waits for: one slow consumer does not hold up the others.
   */
  admits(handlerMs: number | undefined): boolean;
  /** How many handlers of a participant may run, by what others leave, and have to leave, to it. */
  placesFor(participant: Participant): number;
  /** A message is being handled, until it is settled and leaves; it will take about `handlerMs`, where that is known. */
  enter(handlerMs: number | undefined): void;
  /** Another message for the handler that was let in last: it takes no place, and is inside until it is settled and leaves. */
  accompany(): void;
  /** Waits until nobody is inside; nobody else enters then before this one leaves. */
  enterAlone(): Promise<void>;
  /** Its handler has ended: another one may have the place. */
  handled(): void;
  leave(): void;
}

/** `most` is how many handlers may run at the same time over all consumers; Infinity for as many as these allow. */
export function createGate(now: () => number, most: number): Gate {
  const participants: Participant[] = [];
  const waiting: (() => void)[] = [];
  let inside = 0;
  let running = 0;
  let alone = false;
  let busyUntil = 0; // the slowest inside, as far as is known

  function admitOne(): void {
    const next = waiting.shift();
    alone = next !== undefined;
    if (!next) return;
    inside = 1;
    running += 1;
    next();
  }

  function tell(): void {
    const fair = (a: Participant, b: Participant) => b.priority - a.priority || a.running() - b.running();
    for (const { onOpen } of participants.toSorted(fair)) onOpen();
  }

  function sum(some: readonly Participant[]): number {
    return some.reduce((all, one) => all + one.running(), 0);
  }

  return {
    join(participant) {
      participants.push(participant);
    },
    admits(handlerMs) {
      if (alone || running >= most) return false;
      return waiting.length === 0 || (handlerMs !== undefined && now() + handlerMs < busyUntil);
    },
    placesFor({ priority, running: own }) {
      if (most === Infinity) return most;
      const above = sum(participants.filter((other) => other.priority > priority));
      const below = sum(participants.filter((other) => other.priority < priority));
      const equals = participants.filter((other) => other.priority === priority).length;
      return Math.max(own() + most - running + below, Math.floor((most - above) / equals));
    },
    enter(handlerMs = 0) {
      inside += 1;
      running += 1;
      busyUntil = Math.max(busyUntil, now() + handlerMs);
    },
    accompany() {
      inside += 1;
    },
    enterAlone() {
      return new Promise((resolve) => {
        waiting.push(resolve);
        if (inside === 0) admitOne();
      });
    },
    handled() {
      running -= 1;
      if (most < Infinity && !alone) tell();
    },
    leave() {
      inside -= 1;
      if (inside > 0) return;
      admitOne();
      if (!alone) tell();
    },
  };
}
