import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";

/** How long to wait before the next attempt, as data. */
export type Backoff =
  | { readonly kind: "fixed"; readonly delayMs: number }
  | { readonly kind: "exponential"; readonly initialMs: number; readonly maxMs: number; readonly factor: number };

export interface RetryPolicy {
  /** How often a handler is started for one message before it is dead-lettered. */
  readonly attempts: number;
  readonly backoff: Backoff;
}

/** The same wait before every attempt. */
export function fixed(delay: Duration): Backoff {
  return { kind: "fixed", delayMs: toMs(delay, "fixed backoff") };
}

/**
 * A wait that grows: `exponential("1s", { max: "5m" })` waits 1, 2, 4, 8 … seconds, five minutes at most.
 * @throws SortieError `invalid-option` for a maximum below the first wait or a factor below 1.
 */
export function exponential(initial: Duration, options: { max: Duration; factor?: number }): Backoff {
  const backoff: Backoff = {
    kind: "exponential",
    initialMs: toMs(initial, "exponential backoff"),
    maxMs: toMs(options.max, "exponential backoff, max"),
    factor: options.factor ?? 2,
  };
  if (backoff.maxMs < backoff.initialMs || !(backoff.factor >= 1)) {
    throw new SortieError(
      "invalid-option",
      `exponential backoff: expected max not below the first wait and a factor of 1 or more, got ${JSON.stringify(backoff)}`,
    );
  }
  return backoff;
}

/** Milliseconds between attempt number `attempt` (from 1), which failed, and the next. */
export function backoffMs(backoff: Backoff, attempt: number): number {
  if (backoff.kind === "fixed") return backoff.delayMs;
  return Math.min(backoff.maxMs, Math.round(backoff.initialMs * backoff.factor ** (attempt - 1)));
}
