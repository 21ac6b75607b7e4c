import { longestInvocationMs } from "../define/own.ts";

/** When starts may come under a rate limit: one every `everyMs`, and `burst` at once after a rest. */
export interface Rate {
  readonly everyMs: number;
  readonly burst: number;
}

/** What is granted of `count` starts. */
export interface Slots {
  /** When each of them may come, in epoch milliseconds; those that would come after `latest` are left out. */
  readonly at: readonly number[];
  /** When the next one after them may come, and after a rest up to `burst` of them. */
  readonly next: number;
}

/**
 * Grants starts of which none comes before its time (a leaky bucket, by the time at which it is next empty: GCRA).
 * `next` is what the last grant answered, 0 for the first one.
 */
export function planSlots(next: number, count: number, now: number, latest: number, { everyMs, burst }: Rate): Slots {
  // nobody takes slots beyond the end of its invocation: what is further off was written by a clock that is wrong
  const isBelievable = next <= now + longestInvocationMs + everyMs;
  const first = Math.max(isBelievable ? next : 0, now - (burst - 1) * everyMs);
  const granted = Math.max(0, Math.min(count, Math.floor((latest - first) / everyMs) + 1));
  const at = Array.from({ length: granted }, (_, n) => Math.max(now, first + n * everyMs));
  return { at, next: first + granted * everyMs };
}
