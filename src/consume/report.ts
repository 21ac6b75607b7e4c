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
   * Messages that the consumer still has to deliver, or to be told about (`num_pending + num_ack_pending`). With `onMore`,
   * and where the time was over, it is the server's own count, taken while the last settlements were on their way. Else it
   * is what this invocation knows: what waited when it was last told (0 where it `ended` as `drained`), and what it handed
   * back or put off itself; what other invocations have in hand is not in it. Where it `ended` as `held`, or pulled nothing
   * as its breaker was `open`, it is the server's count of before. Left out where nothing is known. What is parked is in the lag of no consumer of yours.
   */
  lag?: number;
  /**
   * Milliseconds, as of the end of this invocation, until the earliest message that it put off is due again, parked ones
   * that it came across included; 0 where one is due already, or was handed back. One whose settlement was not confirmed is
   * due after the ack-wait. Left out where it put off nothing: what others did is not known to it.
   */
  nextDueIn?: number;
  /** Whether another invocation, started now, would find something to do, as far as is known. Never where it `failed`. */
  more: boolean;
  /**
   * `drained`: nothing was left to pull. `budget`: the time was over. `limited`: its rate limit lets nothing more be started
   * within the time. `open`: its circuit breaker was, or is being tried by another invocation. `held`: the server had nothing
   * for it as the consumer is paused, or as many deliveries were unsettled elsewhere as may be (`maxAckPending`). `failed`: it
   * could not pull.
   */
  ended: "drained" | "budget" | "limited" | "open" | "held" | "failed";
  /** The state of its circuit breaker at the end, where it has one. */
  breaker?: "closed" | "open" | "half-open";
  /** What someone has to see to: why it could not pull, or count attempts. */
  error?: string;
}

/** What one invocation did. */
export interface InvocationReport {
  ms: number;
  /** None where the invocation came too late for its place. */
  consumers: ConsumerReport[];
  /**
   * Where there was more to do, with `onMore`: how many invocations it was asked for, and why it could not be, or what it
   * threw, where something went wrong. Where the invocation had a place, that is told here as well.
   */
  continued?: { asked: number; error?: string };
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
