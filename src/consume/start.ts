import type { DeadLetterReason } from "../dead-letter/story.ts";
import type { Attempts } from "./ledger.ts";

/** What is to be done with a message that may have been started before. */
export type Beginning =
  | { readonly kind: "start"; readonly attempt: number; readonly alone: boolean }
  | { readonly kind: "dead-letter"; readonly reason: DeadLetterReason }
  /** It left already, by another delivery. */
  | { readonly kind: "done" }
  /** It waits where its retry is parked. */
  | { readonly kind: "parked"; readonly until: number };

/**
 * Decides by what is known of a message's attempts. One whose last start was never heard of again is a suspect: its
 * function may have died of it, or of a neighbour. It is started alone, and condemned only if its function dies then too
 * and `most` attempts have been made.
 */
export function decideStart(attempts: Attempts, most: number, isParkedCopy: boolean): Beginning {
  const { started, open, verdict } = attempts;
  if (attempts.done) return { kind: "done" };
  if (attempts.parkedUntil !== undefined && !isParkedCopy) return { kind: "parked", until: attempts.parkedUntil };
  if (verdict) return { kind: "dead-letter", reason: verdict };
  if (started >= most && open !== "in-company") {
    return { kind: "dead-letter", reason: open === "alone" ? "function-died" : "attempts-exhausted" };
  }
  return { kind: "start", attempt: started + 1, alone: open !== undefined };
}
