/** The parts of an invocation's time, as points in time (epoch milliseconds). */
export interface Budget {
  /** No more pulling from here; handlers see their signal abort. */
  readonly stopAt: number;
  /** A handler that still runs is left behind, and its message retried. */
  readonly abandonAt: number;
  /** The last moment to wait for the server's word on what a handler published. */
  readonly publishBy: number;
  /** The last moment to wait for the server's word on a settlement. */
  readonly settleBy: number;
}

/** The most that connecting may take, in milliseconds. */
export function connectMs(now: number, deadline: number): number {
  return Math.max(0, Math.min((deadline - now) / 4, 5_000));
}

/**
 * Shares out an invocation's time. The margin at its end is for the server's word on what is published, written down and
 * settled: a few round trips, as long as the slowest one that this invocation has seen (`slowestMs`) and as many again; a
 * fifth of the time (three seconds at most) as long as nothing is known. Before it, handlers have a moment to heed their signal.
 */
export function planBudget(started: number, deadline: number, slowestMs?: number): Budget {
  const total = Math.max(0, deadline - started);
  const margin =
    slowestMs === undefined
      ? Math.min(total / 5, 3_000)
      : Math.min(total / 2, Math.min(total / 5, 500) + 8 * slowestMs);
  const grace = Math.min(total / 20, 1_000);
  return {
    stopAt: deadline - margin - grace,
    abandonAt: deadline - margin,
    publishBy: deadline - margin * 0.6,
    settleBy: deadline - margin * 0.1,
  };
}
