import type { Outcome } from "./attempt.ts";
import type { Attempts, Entry } from "./ledger.ts";

/** How long an origin is handed back for whose parked copy is being handled, and takes it along when it leaves. */
export const asideMs = 1_000;

/** What is to be done with a message that was delivered before: start its handler, or leave as it was decided already. */
export type Beginning =
  | { readonly kind: "start"; readonly alone: boolean; readonly attempts: Attempts }
  | { readonly kind: "leave"; readonly outcome: Outcome };

/**
 * Decides by what is known of a message's attempts. One of which nothing is known, or whose last start was never heard of
 * again, is a suspect: its function may have died of it, or of a neighbour. A suspect is started alone, and only a death
 * that it died alone counts as an attempt.
 */
export function decideStart(
  { attempts: found, revision }: Entry,
  { most, isParkedCopy, ackWaitMs, now }: { most: number; isParkedCopy: boolean; ackWaitMs: number; now: number },
): Beginning {
  const { open, ...ended } = found;
  const died = open?.alone === true;
  const attempts: Attempts = died
    ? { ...ended, started: ended.started + 1, starts: [...ended.starts, { at: open.at, host: open.host }] }
    : ended;
  const { started, starts, parkedUntil, verdict } = attempts;
  if (parkedUntil !== undefined && !isParkedCopy) {
    const isHandled = open !== undefined && now - open.at < ackWaitMs;
    if (isHandled) return { kind: "leave", outcome: { settlement: { kind: "return", delayMs: asideMs }, attempts } };
    const delayMs = Math.max(0, parkedUntil - now);
    return {
      kind: "leave",
      outcome: { settlement: { kind: "retry", delayMs }, error: "its retry is parked", attempts },
    };
  }
  if (verdict) {
    const { reason, error } = verdict;
    return { kind: "leave", outcome: { settlement: { kind: "dead-letter", reason }, error, attempts } };
  }
  if (started >= most) {
    const reason = died ? "function-died" : "attempts-exhausted";
    const error = died
      ? "its function was not heard of again, the last time with this message alone in hand"
      : starts.at(-1)?.error;
    return { kind: "leave", outcome: { settlement: { kind: "dead-letter", reason }, error, attempts } };
  }
  return { kind: "start", alone: revision === 0 || open !== undefined, attempts };
}
