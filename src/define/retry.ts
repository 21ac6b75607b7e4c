import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";
import { assertCounts } from "./count.ts";

/** How long to wait before the next attempt, as data; a random part of `jitterMs` is added, so that failures spread. */
export type Backoff = { readonly jitterMs: number } & (
  | { readonly kind: "fixed"; readonly delayMs: number }
  | { readonly kind: "exponential"; readonly initialMs: number; readonly maxMs: number; readonly factor: number }
  | { readonly kind: "list"; readonly delaysMs: readonly number[] }
);

/** What a rule does with an error. */
export type RetryDecision =
  /** By the policy's backoff. */
  | "retry"
  /** Never again: to the dead letters, now. */
  | "dead-letter"
  /** Never again, and kept nowhere. */
  | "discard"
  /** Not before this delay, whatever the backoff says. */
  | { readonly after: Duration }
  /** At once, or after `delay`, up to so many times within the invocation and its time; then by the backoff. */
  | { readonly inPlace: number; readonly delay?: Duration };

/** Which errors, and what becomes of them. */
export interface RetryRule {
  /** A class of errors, or a function that tells whether an error is meant. */
  readonly on: (new (...args: never[]) => Error) | ((error: unknown) => boolean);
  readonly do: RetryDecision;
}

export interface RetryPolicy {
  /** How often a handler is started for one message before it is dead-lettered. */
  readonly attempts: number;
  readonly backoff: Backoff;
  /** For errors that are to be treated otherwise; the first that matches decides. @default none */
  readonly rules?: readonly RetryRule[];
}

interface BackoffOptions {
  /** The longest random wait that is added. @default 0 */
  jitter?: Duration;
}

/** The same wait before every attempt. */
export function fixed(delay: Duration, { jitter = 0 }: BackoffOptions = {}): Backoff {
  return { kind: "fixed", delayMs: toMs(delay, "fixed backoff"), jitterMs: toMs(jitter, "fixed backoff, jitter") };
}

/**
 * A wait that grows: `exponential("1s", { max: "5m" })` waits 1, 2, 4, 8 … seconds, five minutes at most.
 * @throws SortieError `invalid-option` for a maximum below the first wait or a factor below 1.
 */
export function exponential(
  initial: Duration,
  { max, factor = 2, jitter = 0 }: BackoffOptions & { max: Duration; factor?: number },
): Backoff {
  const backoff: Backoff = {
    kind: "exponential",
    initialMs: toMs(initial, "exponential backoff"),
    maxMs: toMs(max, "exponential backoff, max"),
    factor,
    jitterMs: toMs(jitter, "exponential backoff, jitter"),
  };
  if (backoff.maxMs < backoff.initialMs || !(backoff.factor >= 1)) {
    throw new SortieError(
      "invalid-option",
      `exponential backoff: expected max not below the first wait and a factor of 1 or more, got ${shown(backoff)}`,
    );
  }
  return backoff;
}

/**
 * One wait after the other, the last for all that follow: `list(["1s", "10s", "10m"])`.
 * @throws SortieError `invalid-option` for a list without a wait.
 */
export function list(delays: readonly Duration[], { jitter = 0 }: BackoffOptions = {}): Backoff {
  if (delays.length === 0) throw new SortieError("invalid-option", "list backoff: expected one wait or more, got none");
  const delaysMs = delays.map((delay) => toMs(delay, "list backoff"));
  return { kind: "list", delaysMs, jitterMs: toMs(jitter, "list backoff, jitter") };
}

/** Milliseconds between attempt number `attempt` (from 1), which failed, and the next; `chance` is from 0 to 1. */
export function backoffMs(backoff: Backoff, attempt: number, chance: number): number {
  return Math.round(plainMs(backoff, attempt) + backoff.jitterMs * chance);
}

function plainMs(backoff: Backoff, attempt: number): number {
  switch (backoff.kind) {
    case "fixed":
      return backoff.delayMs;
    case "exponential":
      return Math.min(backoff.maxMs, backoff.initialMs * backoff.factor ** (attempt - 1));
    case "list":
      return backoff.delaysMs[Math.min(attempt, backoff.delaysMs.length) - 1] ?? 0;
  }
}

/** What the first rule for this error says; `"retry"` where none is. A predicate that throws does not match. */
export function decisionFor(error: unknown, rules: readonly RetryRule[] = []): RetryDecision {
  return rules.find((rule) => matches(rule, error))?.do ?? "retry";
}

function matches({ on }: RetryRule, error: unknown): boolean {
  try {
    return isInstance(error, on) || (!isErrorClass(on) && on(error) === true);
  } catch {
    return false;
  }
}

/** By `Symbol.hasInstance` as well, with which a library may make classes of its own kind. */
function isInstance(error: unknown, on: RetryRule["on"]): boolean {
  return typeof on.prototype === "object" && error instanceof on;
}

function isErrorClass(on: RetryRule["on"]): on is new (...args: never[]) => Error {
  return on === Error || on.prototype instanceof Error;
}

function isBackoff(backoff: Backoff | undefined): boolean {
  return typeof backoff === "object" && backoff !== null && Number.isFinite(backoffMs(backoff, 1, 1));
}

/** Throws `invalid-definition`, or `invalid-option` for a malformed duration. */
export function assertRetryPolicy({ attempts, backoff, rules = [] }: RetryPolicy, what: string): void {
  assertCounts({ "retry.attempts": attempts }, what);
  if (!isBackoff(backoff)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected retry.backoff to be fixed("10s"), exponential(…) or list(…), got ${shown(backoff)}; without \`retry\` it is exponential("1s", { max: "5m" })`,
    );
  }
  for (const [index, { on, do: decision }] of rules.entries()) {
    const name = `retry.rules[${index}]`;
    const known =
      typeof decision === "object"
        ? "after" in decision || "inPlace" in decision
        : ["retry", "dead-letter", "discard"].includes(decision);
    if (typeof on !== "function" || !known) {
      throw new SortieError(
        "invalid-definition",
        `${what}: expected ${name} to be { on: an error class or a function, do: "retry", "dead-letter", "discard", { after } or { inPlace } }`,
      );
    }
    if (typeof decision !== "object") continue;
    if ("after" in decision) toMs(decision.after, `${what}, ${name}.after`);
    else {
      assertCounts({ [`${name}.inPlace`]: decision.inPlace }, what);
      toMs(decision.delay ?? 0, `${what}, ${name}.delay`);
    }
  }
}
