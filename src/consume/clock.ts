import { type Budget, planBudget } from "./budget.ts";

/** An invocation's time, as it learns how long round trips take. */
export interface Clock {
  now(): number;
  readonly budget: Budget;
  /** Aborts at the budget's `stopAt`. */
  readonly signal: AbortSignal;
  /** The slowest round trip so far, in milliseconds. */
  readonly slowestMs: number;
  /** Takes note of how long a round trip took. */
  learn(ms: number): void;
  /** Lets go of its timer. */
  end(): void;
}

/** Starts an invocation's clock; `deadline` in epoch milliseconds. */
export function startClock(deadline: number, now: () => number): Clock {
  const started = now();
  const stop = new AbortController();
  let slowestMs: number | undefined;
  let budget = planBudget(started, deadline);
  let timer: ReturnType<typeof setTimeout> | undefined;
  arm();

  function arm(): void {
    clearTimeout(timer);
    const leftMs = budget.stopAt - now();
    if (leftMs <= 0) stop.abort(new DOMException("The invocation's time is over", "TimeoutError"));
    else timer = setTimeout(arm, Math.min(leftMs, 0x7fffffff));
  }

  return {
    now,
    get budget() {
      return budget;
    },
    signal: stop.signal,
    get slowestMs() {
      return slowestMs ?? 0;
    },
    learn(ms) {
      if (slowestMs !== undefined && ms <= slowestMs) return;
      slowestMs = ms;
      budget = planBudget(started, deadline, slowestMs);
      if (!stop.signal.aborted) arm();
    },
    end: () => clearTimeout(timer),
  };
}
