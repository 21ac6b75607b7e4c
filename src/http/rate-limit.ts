import { assertCounts } from "../define/count.ts";
import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";

/** How often one caller may ask. */
export interface RateLimitOptions {
  /** This many at once, */
  requests: number;
  /** and as many again in this time, evenly. */
  per: Duration;
}

/** Counts a request of a caller; answers for how many milliseconds it has to wait, 0 where it need not. */
export type TakeTurn = (caller: string) => number;

/** Of more callers than this the one that was away longest is forgotten: what they take of memory is bounded. */
const mostCallers = 10_000;

/**
 * A limit that this instance keeps to itself: for each caller nothing but the time when all its turns are back.
 * @throws SortieError `invalid-option` for a malformed time, `invalid-definition` for a malformed count.
 */
export function createRateLimit({ requests, per }: RateLimitOptions, now: () => number = Date.now): TakeTurn {
  assertCounts({ requests }, "rateLimit");
  const perMs = toMs(per, "rateLimit, per");
  if (perMs === 0) throw new SortieError("invalid-option", `rateLimit, per: expected 1 ms or more, got ${shown(per)}`);
  const backAt = new Map<string, number>();
  return (caller) => {
    const time = now();
    const next = Math.max(time, backAt.get(caller) ?? 0) + perMs / requests;
    const waitMs = Math.max(0, next - perMs - time);
    if (waitMs > 0) return waitMs;
    backAt.delete(caller); // so that the first is the one that was away longest
    backAt.set(caller, next);
    const [first] = backAt.keys();
    if (backAt.size > mostCallers && first !== undefined) backAt.delete(first);
    return 0;
  };
}
