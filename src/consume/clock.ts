import { SortieError } from "../errors.ts";
import { point } from "../nats/within.ts";
import { type Budget, learnt, planBudget, type RoundTrips } from "./budget.ts";

/** An invocation's time, as it learns how long round trips take. */
export interface Clock {
  now(): number;
  /** The time by the server's clock, where it has told it, else by the host's. */
  serverNow(): number;
  /** Takes note of a time that the server has told just now, in RFC 3339. */
  told(time: string | undefined): void;
  readonly budget: Budget;
  /** Aborts at the budget's `stopAt`. */
  readonly signal: AbortSignal;
  /** Aborts when nothing more is to be pulled, or started: then as well, or when the invocation is to leave early. */
  readonly leaving: AbortSignal;
  /** Has it leave early: what handlers have in hand they finish in their time. */
  leave(): void;
  /** Milliseconds until it does. */
  readonly remaining: () => number;
  /** How long a round trip may take, in milliseconds, by those so far; 0 as long as nothing is known. */
  readonly roundTripMs: number;
  /** Takes note of how long a round trip took. */
  learn(ms: number): void;
  /**
   * Waits for what a handler does, until the budget's `abandonAt`; one timer serves all handlers.
   * @throws SortieError `timed-out` naming `what`; a later rejection of `promise` is ignored.
   */
  handling<T>(what: string, promise: PromiseLike<T>): Promise<T>;
  /** Lets go of its timer. */
  end(): void;
}

/** Starts an invocation's clock; `deadline` in epoch milliseconds. */
export function startClock(deadline: number, now: () => number): Clock {
  const started = now();
  const stop = new AbortController();
  const leaving = new AbortController();
  const handled = new Set<() => void>();
  let known: RoundTrips | undefined;
  let roundTripMs = 0;
  let serverAheadMs: number | undefined;
  let budget = planBudget(started, deadline);
  let timer: ReturnType<typeof setTimeout> | undefined;
  arm();

  function arm(): void {
    clearTimeout(timer);
    const at = now();
    if (at >= budget.stopAt && !stop.signal.aborted) {
      stop.abort(new DOMException("The invocation's time is over", "TimeoutError"));
      leaving.abort();
    }
    if (at >= budget.abandonAt) for (const abandon of handled) abandon();
    const next = stop.signal.aborted ? budget.abandonAt : budget.stopAt;
    if (next > at) timer = setTimeout(arm, Math.min(Math.ceil(next - at), 0x7fffffff));
  }

  return {
    now,
    serverNow: () => now() + (serverAheadMs ?? 0),
    told(time = "") {
      const at = Date.parse(time);
      // its word was on its way, and may have waited here: it is ahead by this at least
      if (!Number.isNaN(at)) serverAheadMs = Math.max(serverAheadMs ?? -Infinity, at - now());
    },
    get budget() {
      return budget;
    },
    signal: stop.signal,
    leaving: leaving.signal,
    leave: () => leaving.abort(),
    remaining: () => Math.max(0, budget.stopAt - now()),
    get roundTripMs() {
      return roundTripMs;
    },
    learn(ms) {
      known = learnt(known, ms);
      const { smoothedMs, variationMs } = known;
      const estimate = smoothedMs + 4 * variationMs;
      if (Math.abs(estimate - roundTripMs) < 1 && roundTripMs > 0) return; // not worth a timer
      roundTripMs = estimate;
      budget = planBudget(started, deadline, roundTripMs);
      arm();
    },
    handling(what, promise) {
      return new Promise((resolve, reject) => {
        const abandon = () => {
          handled.delete(abandon);
          reject(new SortieError("timed-out", `${what} took longer than it had`));
        };
        handled.add(abandon);
        point(what, promise)
          .then(resolve, reject)
          .finally(() => handled.delete(abandon));
        if (now() >= budget.abandonAt) abandon();
      });
    },
    end: () => clearTimeout(timer),
  };
}
