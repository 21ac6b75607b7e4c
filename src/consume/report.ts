import type { DeadLetterReason } from "../dead-letter/store.ts";

/** What one invocation did for one consumer. All but `pulled` count what the server has confirmed. */
export interface ConsumerReport {
  stream: string;
  consumer: string;
  pulled: number;
  acked: number;
  retried: number;
  deadLettered: number;
  returned: number;
  /** Settlements that the server did not confirm: these messages come again after the consumer's ack-wait. */
  unconfirmed: number;
  /** `drained`: nothing was left to pull. `budget`: the time was over. `failed`: see `error`. */
  ended: "drained" | "budget" | "failed";
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
  | { readonly event: "unconfirmed"; readonly error: string }
);
