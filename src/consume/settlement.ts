import type { DeadLetterReason } from "../dead-letter/store.ts";
import { backoffMs, type RetryPolicy } from "../define/retry.ts";
import { type Duration, toMs } from "../duration.ts";

// Known by a mark rather than by class: an app and its platform's `serve` may come with copies of this module of their own.
const mark = Symbol.for("sortie.decision");

/** Thrown by a handler: this message will never succeed, so it goes to the dead letters now. */
export class NonRetriableError extends Error {
  override name = "NonRetriableError";
  readonly [mark] = { deadLetter: true };
}

/** Thrown by a handler: not before `delay` is over, whatever the backoff says. It is an attempt like any other. */
export class RetryAfterError extends Error {
  override name = "RetryAfterError";
  readonly [mark]: { retryAfterMs: number };

  constructor(message: string, delay: Duration, options?: ErrorOptions) {
    super(message, options);
    this[mark] = { retryAfterMs: toMs(delay, "RetryAfterError") };
  }
}

/** How a delivery leaves its invocation. */
export type Settlement =
  | { readonly kind: "ack" }
  | { readonly kind: "retry"; readonly delayMs: number }
  | { readonly kind: "dead-letter"; readonly reason: DeadLetterReason }
  | { readonly kind: "return" };

/** What becomes of a message whose attempt number `attempt` (from 1) ended with `error`. */
export function decideFailure(error: unknown, attempt: number, retry: RetryPolicy): Settlement {
  const asked = markOf(error);
  if (asked.deadLetter) return { kind: "dead-letter", reason: "non-retriable" };
  if (attempt >= retry.attempts) return { kind: "dead-letter", reason: "attempts-exhausted" };
  return { kind: "retry", delayMs: asked.retryAfterMs ?? backoffMs(retry.backoff, attempt) };
}

function markOf(error: unknown): { deadLetter?: boolean; retryAfterMs?: number } {
  const found = error instanceof Error && mark in error ? error[mark] : undefined;
  return typeof found === "object" && found !== null ? found : {};
}
