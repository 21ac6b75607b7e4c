import type { BreakerPolicy } from "../define/consumer.ts";

/** What is kept of a circuit breaker. */
export type BreakerState =
  | { readonly state: "closed"; readonly slices: readonly Slice[] }
  | {
      readonly state: "open";
      readonly since: number;
      readonly until: number;
      readonly reason: string;
      readonly by: string;
    }
  | {
      /** One invocation, `by`, tries one message, and has until then for it. */
      readonly state: "half-open";
      readonly since: number;
      readonly until: number;
      readonly by: string;
      /** Until when the consumer was paused, which the server may see otherwise: its clock is another one. */
      readonly pausedUntil?: number;
    };

/** How many handlers ended in a part of the window, which began at `from`. */
export interface Slice {
  readonly from: number;
  readonly ended: number;
  readonly failed: number;
}

/** What an invocation may do. */
export type Entry = "all" | "probe" | "nothing";

export const closed: BreakerState = { state: "closed", slices: [] };

const slicesPerWindow = 10;
const skewMs = 60_000; // what hosts' clocks may be apart

/** Decides what an invocation may do by the breaker's state, and what has to be agreed on for that, if anything. */
export function decideEntry(
  found: BreakerState,
  { by, now, until }: { by: string; now: number; until: number },
): { readonly entry: Entry; readonly next?: BreakerState } {
  if (found.state === "closed") return { entry: "all" };
  const isAhead = found.since > now + skewMs; // by a clock that was wrong: who knows when it is over
  if (now < found.until && !isAhead) return { entry: "nothing" };
  const pausedUntil = pauseOf(found);
  const since = Math.min(found.since, now);
  return { entry: "probe", next: { state: "half-open", since, until, by, ...(pausedUntil > 0 && { pausedUntil }) } };
}

/** Until when a breaker has its consumer paused; 0 where it has not. */
export function pauseOf(found: BreakerState): number {
  if (found.state === "open") return found.until;
  return found.state === "half-open" ? (found.pausedUntil ?? 0) : 0;
}

/** Adds what has ended to the window, and opens where too much of it failed. */
export function decideAfter(
  slices: readonly Slice[],
  { ended, failed }: { ended: number; failed: number },
  policy: BreakerPolicy,
  { by, now }: { by: string; now: number },
): BreakerState {
  const from = now - (now % (policy.windowMs / slicesPerWindow));
  const recent = slices.filter((slice) => slice.from > now - policy.windowMs);
  const latest = recent.find((slice) => slice.from === from) ?? { from, ended: 0, failed: 0 };
  const counted = [
    ...recent.filter((slice) => slice !== latest),
    { from, ended: latest.ended + ended, failed: latest.failed + failed },
  ];
  const all = counted.reduce((sum, slice) => sum + slice.ended, 0);
  const bad = counted.reduce((sum, slice) => sum + slice.failed, 0);
  if (all < policy.minimum || bad / all < policy.failureRatio) return { state: "closed", slices: counted };
  return opened(`${bad} of ${all} handlers failed`, policy.openForMs, { by, now });
}

/** The breaker, open from now on. */
export function opened(reason: string, forMs: number, { by, now }: { by: string; now: number }): BreakerState {
  return { state: "open", since: now, until: now + forMs, reason, by };
}
