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

/** A pull that waits does not notice that its consumer was paused and is resumed, nor that the network is gone. */
export const longestWaitMs = 5_000;

/** The most that connecting may take, in milliseconds. */
export function connectMs(now: number, deadline: number): number {
  return Math.max(0, Math.min((deadline - now) / 4, 5_000));
}

/**
 * Shares out an invocation's time. The margin at its end is for the server's word on what is published, written down and
 * settled: a few round trips of `roundTripMs`, and as many again; a fifth of the time as long as nothing is known; three
 * seconds at most. Before it, handlers have a moment to heed their signal.
 */
export function planBudget(started: number, deadline: number, roundTripMs?: number): Budget {
  const total = Math.max(0, deadline - started);
  const learnt = roundTripMs === undefined ? Infinity : Math.min(total / 5, 500) + 8 * roundTripMs;
  const margin = Math.min(roundTripMs === undefined ? total / 5 : total / 2, 3_000, learnt);
  const grace = Math.min(total / 20, 1_000);
  return {
    stopAt: deadline - margin - grace,
    abandonAt: deadline - margin,
    publishBy: deadline - margin * 0.6,
    settleBy: deadline - margin * 0.1,
  };
}

/** How long round trips take, much as TCP estimates it (RFC 6298): one that was slow is forgotten after a while. */
export interface RoundTrips {
  readonly smoothedMs: number;
  readonly variationMs: number;
}

/** The estimate with one more round trip. */
export function learnt(known: RoundTrips | undefined, ms: number): RoundTrips {
  if (!known) return { smoothedMs: ms, variationMs: ms / 4 };
  const { smoothedMs, variationMs } = known;
  return {
    smoothedMs: smoothedMs + (ms - smoothedMs) / 8,
    variationMs: variationMs + (Math.abs(ms - smoothedMs) - variationMs) / 4,
  };
}
