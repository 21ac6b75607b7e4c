import { type DeadLetterReason, deadLetterOf } from "../dead-letter/store.ts";
import type { ConsumerDefinition } from "../define/consumer.ts";
import { backoffMs } from "../define/retry.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { within } from "../nats/within.ts";
import { maxPayloadOf, publish } from "../publish/publish.ts";
import type { Settlement } from "./settlement.ts";

/** How long to wait for a word of the server that is lost, as when a consumer's leader changes: functions are billed for it. */
const patienceMs = 5_000;

/** How a delivery is to leave, and why. */
export interface Outcome {
  readonly settlement: Settlement;
  readonly error?: unknown;
  /** How often a handler was started for the message. */
  readonly attempts: number;
}

/**
 * Carries out a settlement, waits until `by` at most for the server's word on it, and answers how the delivery really
 * left. A dead letter is stored before its delivery is terminated, which deletes the message from a work queue; where
 * storing it is refused, the message is retried.
 */
export async function settle(
  connection: Connection,
  consumer: ConsumerDefinition,
  delivery: Delivery,
  outcome: Outcome,
  { now, by }: { now: () => number; by: number },
): Promise<Outcome> {
  const left = () => Math.max(1, Math.min(patienceMs, by - now()));
  const settled =
    outcome.settlement.kind === "dead-letter" ? await deadLetter(outcome, outcome.settlement.reason) : outcome;
  const confirmed = connection.request(delivery.ackSubject, wire(settled.settlement), { timeout: left() });
  await within(left(), "confirming a settlement", confirmed);
  return settled;

  async function deadLetter({ error, attempts }: Outcome, reason: DeadLetterReason): Promise<Outcome> {
    try {
      const story = { reason, error, attempts, now: now() };
      await publish(connection, deadLetterOf(delivery, consumer, story, maxPayloadOf(connection)), left() / 2);
      return outcome;
    } catch (refusal) {
      const delayMs = backoffMs(consumer.retry.backoff, delivery.deliveryCount);
      return { settlement: { kind: "retry", delayMs }, error: refusal, attempts };
    }
  }
}

/** The bytes of an acknowledgement (NATS ADR-15); plain `+TERM`, since a server before 2.10 ignores one with a reason. */
function wire(settlement: Settlement): string {
  switch (settlement.kind) {
    case "ack":
      return "+ACK";
    case "retry":
      return `-NAK ${JSON.stringify({ delay: Math.round(settlement.delayMs) * 1_000_000 })}`;
    case "return":
      return "-NAK";
    case "dead-letter":
      return "+TERM";
  }
}
