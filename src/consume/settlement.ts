import type { DeadLetterReason } from "../dead-letter/story.ts";
import { backoffMs, decisionFor, type RetryPolicy } from "../define/retry.ts";
import { type Duration, toMs } from "../duration.ts";
import { retryAfterMs } from "./retry-after.ts";

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

/** When a message is retried whose policy cannot be read. */
const unreadableMs = 30_000;

/** How a delivery leaves its invocation. */
export type Settlement =
  | { readonly kind: "ack"; readonly discarded?: true; readonly duplicate?: true }
  | { readonly kind: "retry"; readonly delayMs: number }
  | { readonly kind: "dead-letter"; readonly reason: DeadLetterReason }
  | { readonly kind: "return"; readonly delayMs?: number };

/** Start the handler once more within this invocation. */
export interface InPlace {
  readonly kind: "in-place";
  readonly delayMs: number;
}

/** What was thrown, and when. */
export interface Thrown {
  readonly error: unknown;
  /** Epoch milliseconds: an HTTP date in `Retry-After` is counted from here. */
  readonly now: number;
  /** From 0 to 1, for jitter. */
  readonly chance: number;
}

/** What a decision about a failure takes into account. */
export interface Failure extends Thrown {
  /** Which start of a handler for the message this was, from 1. */
  readonly attempt: number;
  /** How often this invocation has started it once more in place already. */
  readonly inPlace: number;
  /** Milliseconds until handlers are to end. */
  readonly leftMs: number;
}

/**
 * What becomes of a message whose handler failed. An error's own word comes first, then the policy's rules, then its
 * backoff, or the `Retry-After` of an HTTP error where that is later. An error that throws when it is looked at says nothing.
 * Never throws: nobody could settle the message.
 */
export function decideFailure(failure: Failure, retry: RetryPolicy): Settlement | InPlace {
  try {
    return decide(failure, retry);
  } catch {
    return decideBlindly(failure, retry);
  }
}

function decideBlindly(failure: Failure, retry: RetryPolicy): Settlement | InPlace {
  try {
    return decide({ ...failure, error: undefined }, retry);
  } catch {
    return { kind: "retry", delayMs: unreadableMs }; // of a policy that `defineConsumer` has not seen
  }
}

function decide(failure: Failure, retry: RetryPolicy): Settlement | InPlace {
  const { error, attempt, now, chance } = failure;
  const asked = markOf(error);
  if (asked.deadLetter) return { kind: "dead-letter", reason: "non-retriable" };
  const decision = decisionFor(error, retry.rules);
  if (decision === "discard") return { kind: "ack", discarded: true };
  if (decision === "dead-letter") return { kind: "dead-letter", reason: "non-retriable" };
  if (attempt >= retry.attempts) return { kind: "dead-letter", reason: "attempts-exhausted" };
  if (asked.retryAfterMs !== undefined) return { kind: "retry", delayMs: asked.retryAfterMs };
  if (typeof decision === "object" && "after" in decision)
    return { kind: "retry", delayMs: toMs(decision.after, "after") };
  const named = retryAfterMs(error, now) ?? 0;
  if (typeof decision === "object") {
    const delayMs = Math.max(named, toMs(decision.delay ?? 0, "delay"));
    if (failure.inPlace < decision.inPlace && delayMs < failure.leftMs) return { kind: "in-place", delayMs };
  }
  const delayMs = Math.max(named + retry.backoff.jitterMs * chance, backoffMs(retry.backoff, attempt, chance));
  return { kind: "retry", delayMs: Math.round(delayMs) };
}

/**
 * When a batch that failed as a whole may be started again, in milliseconds, where its error or a rule names that: it stays
 * together until then. Undefined where it is to be halved at once, to find the message that breaks it.
 */
export function decideTogether(thrown: Thrown, retry: RetryPolicy): number | undefined {
  try {
    return namedMs(thrown, retry);
  } catch {
    return undefined; // it throws when it is looked at
  }
}

function namedMs({ error, now, chance }: Thrown, { rules, backoff }: RetryPolicy): number | undefined {
  const asked = markOf(error);
  const decision = decisionFor(error, rules);
  if (asked.deadLetter || decision === "discard" || decision === "dead-letter") return undefined;
  if (asked.retryAfterMs !== undefined) return asked.retryAfterMs;
  if (typeof decision === "object") return "after" in decision ? toMs(decision.after, "after") : undefined;
  const named = retryAfterMs(error, now);
  return named === undefined ? undefined : Math.round(named + backoff.jitterMs * chance);
}

function markOf(error: unknown): { deadLetter?: boolean; retryAfterMs?: number } {
  const found = error instanceof Error && mark in error ? error[mark] : undefined;
  return typeof found === "object" && found !== null ? found : {};
}
