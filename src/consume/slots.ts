import { longestInvocationMs, longestPutOffMs } from "../define/own.ts";

/** When starts may come under a rate limit: one every `everyMs`, and `burst` at once after a rest. */
export interface Rate {
  readonly everyMs: number;
  readonly burst: number;
}

/** What is agreed on of a rate limit. Times are epoch milliseconds. */
export interface Paced {
  /** When the next start may come, and after a rest up to `burst` of them. */
  readonly next: number;
  /** When the last of those comes again that were put off; 0 for none. */
  readonly line: number;
}

const skewMs = 60_000; // what hosts' clocks may be apart

/** A message that asks for a start. */
export interface Ask {
  /** Whether it asks for the first time, and was not put off before. */
  readonly fresh: boolean;
  /** When it may start at the latest, in epoch milliseconds. */
  readonly latest: number;
  /** Until when it waits for a start without taking one. @default not at all */
  readonly waitsUntil?: number;
}

/** What is answered to each: when it may start, or, where that would be too late, when to come again. */
export type Slot = { readonly at: number } | { readonly again: number };

/**
 * Grants starts of which none comes before its time (a leaky bucket, by the time at which it is next empty: GCRA). Who is put
 * off comes again in line with the others; while there are some in it, who asks for the first time is given what nobody has
 * used. Those that were put off are to ask first; they, and others while nobody is in line, are not sent to its end where
 * they can wait for one of the next starts that are free, but ask again then.
 */
export function planSlots(
  { next, line }: Paced,
  asks: readonly Ask[],
  now: number,
  { everyMs, burst }: Rate,
): Paced & { readonly slots: readonly Slot[] } {
  // nobody takes slots beyond the end of its invocation: what is further off was written by a clock that is wrong
  const known = next <= now + longestInvocationMs + everyMs ? next : 0;
  let last = line <= now + longestPutOffMs + skewMs ? line : 0;
  const isLine = last > now;
  let unused = isLine ? (known <= now - everyMs ? Math.max(1, burst - 1) : 0) : Infinity;
  let at = Math.max(known, now - (burst - 1) * everyMs);
  let near = 0;
  const granted = asks.map(({ fresh, latest }): { at: number } | undefined => {
    if (at > latest || (fresh && unused === 0)) return undefined;
    if (fresh) unused -= 1;
    at += everyMs;
    return { at: Math.max(now, at - everyMs) };
  });
  const slots = granted.map((slot, n): Slot => {
    if (slot) return slot;
    const free = at + near * everyMs;
    const { fresh = false, waitsUntil = -Infinity } = asks[n] ?? {};
    if (free <= waitsUntil && !(fresh && isLine)) {
      near += 1;
      return { again: free };
    }
    last = Math.min(Math.max(last + everyMs, free), Math.max(last, now + longestPutOffMs));
    return { again: last };
  });
  return { slots, next: at, line: last };
}

/** The same where the limit was another one when it was agreed on: what was put off was for that one. */
export function rescaled({ next, line }: Paced, wasEveryMs: number, everyMs: number, now: number): Paced {
  const scaled = (at: number) => (at > now ? now + ((at - now) * everyMs) / wasEveryMs : at);
  return { next: scaled(next), line: scaled(line) };
}
