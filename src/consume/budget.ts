/** The parts of an invocation's time, in milliseconds or as points in time (epoch milliseconds). */
export interface Budget {
  /** The most that connecting may take. */
  readonly connectMs: number;
  /** No more pulling from here; handlers see their signal abort. */
  readonly stopAt: number;
  /** A handler that still runs is left behind, and its message retried. */
  readonly abandonAt: number;
  /** The last moment to wait for the server's word on what a handler published. */
  readonly publishBy: number;
  /** The last moment to wait for the server's word on a settlement. */
  readonly settleBy: number;
}

/** Shares out the time until `deadline`: a quarter (five seconds at most) for connecting, a fifth (three seconds at most) for settling and closing. */
export function planBudget(now: number, deadline: number): Budget {
  const total = Math.max(0, deadline - now);
  const tail = Math.min(total / 5, 3_000);
  return {
    connectMs: Math.min(total / 4, 5_000),
    stopAt: deadline - tail,
    abandonAt: deadline - tail * 0.7,
    publishBy: deadline - tail * 0.4,
    settleBy: deadline - tail * 0.2,
  };
}
