import { point } from "../nats/within.ts";

/** How long handlers may be started one after the other before the event loop comes round. */
const busyMs = 25;

/** One consumer of the invocation. */
interface Participant {
  /** How often the server is to hear of what is in hand, in milliseconds, while handlers use the processor. */
  readonly keepMs: number;
  /** Tells the server. */
  keep(): void;
  /** The event loop has come round: more may be started. */
  onRound(): void;
}

/**
 * Has handlers that use the processor let timers and the network have their turn between two of them: so that the server
 * hears of what is in hand, what was decided leaves, and nobody is started behind the invocation's time.
 */
export interface Rounds {
  join(participant: Participant): void;
  /** Whether the event loop should come round before another handler is started. */
  isBusy(): boolean;
  /** Starts one at once, or when the event loop has come round where it should; `start` may then see that it is too late. */
  inTurn<T>(start: () => T | Promise<T>): T | Promise<T>;
}

export function createRounds(now: () => number): Rounds {
  const participants: Participant[] = [];
  let from: number | undefined; // when the first handler was started since the event loop last came round
  let keepMs = Infinity; // the shortest
  let keptAt = now();
  const waiting: (() => void)[] = [];

  function isBusy(): boolean {
    if (from === undefined) {
      from = now();
      setTimeout(round, 0);
      return isToKeep(); // what is in hand comes first
    }
    return now() - from > busyMs;
  }

  function isToKeep(): boolean {
    return now() - keptAt > keepMs;
  }

  function round(): void {
    from = undefined;
    if (isToKeep()) {
      keptAt = now();
      for (const { keep } of participants) keep();
    }
    // what they tell the server leaves before a handler is started
    queueMicrotask(() => {
      while (waiting.length > 0 && !isBusy()) waiting.shift()?.();
      for (const { onRound } of participants) onRound();
    });
  }

  return {
    join(participant) {
      participants.push(participant);
      keepMs = Math.min(keepMs, participant.keepMs);
    },
    isBusy,
    inTurn(start) {
      if (waiting.length === 0 && !isBusy()) return start();
      const started = new Promise<Awaited<ReturnType<typeof start>>>((resolve, reject) => {
        waiting.push(() => {
          try {
            resolve(start() as Awaited<ReturnType<typeof start>>);
          } catch (error) {
            reject(error);
          }
        });
      });
      return point("waiting for the event loop to come round", started);
    },
  };
}
