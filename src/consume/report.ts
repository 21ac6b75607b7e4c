import type { DeadLetterReason } from "../dead-letter/story.ts";

/** What one invocation did for one consumer. All but `pulled` count what the server has confirmed. */
export interface ConsumerReport {
  stream: string;
  consumer: string;
  pulled: number;
  acked: number;
  /** Of those, how many had failed and were dropped as a rule of the consumer's policy says. */
  discarded: number;
  /** And how many were not handled, for a message with the same key was, as the consumer's `idempotency` says. */
  duplicates: number;
  retried: number;
  deadLettered: number;
  returned: number;
  /** Settlements that the server did not confirm: these messages come again after the consumer's ack-wait. */
  unconfirmed: number;
  /**
   * Deliveries that their function kept without a word for longer than the ack-wait, frozen or busy as it was: another one
   * may have started them as well. Those that succeeded all the same are acknowledged, the others are left to it.
   */
  leaseLost: number;
  /**
   * `drained`: nothing was left to pull. `budget`: the time was over. `limited`: its rate limit lets nothing more be started
   * within the time. `open`: its circuit breaker was, or is being tried by another invocation. `failed`: it could not pull.
   */
  ended: "drained" | "budget" | "limited" | "open" | "failed";
  /** The state of its circuit breaker at the end, where it has one. */
  breaker?: "closed" | "open" | "half-open";
  /** What someone has to see to: why it could not pull, or count attempts. */
  error?: string;
}

/** What one invocation did. */
export interface InvocationReport {
  ms: number;
  consumers: ConsumerReport[];
}

/** What an invocation tells while it goes on: every message that did not simply succeed. */
export type InvocationEvent = {
  readonly stream: string;
  readonly consumer: string;
  readonly subject: string;
  readonly sequence: number;
  readonly attempt: number;
} & (
  | { readonly event: "retried"; readonly delayMs: number; readonly error: string }
  | {
      readonly event: "dead-lettered";
      readonly reason: DeadLetterReason;
      readonly deadLetter: string;
      readonly error: string;
    }
  | { readonly event: "discarded"; readonly error: string }
  | { readonly event: "duplicate" }
  | { readonly event: "lease-lost" }
  | { readonly event: "unconfirmed"; readonly error: string }
);
