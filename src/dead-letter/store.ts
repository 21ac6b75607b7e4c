import type { ConsumerDefinition } from "../define/consumer.ts";
import { textOf } from "../errors.ts";
import { type Delivery, derivedId, headersOf } from "../nats/delivery.ts";
import type { Outgoing } from "../publish/outgoing.ts";

/** Why a message is in the dead letters. */
export type DeadLetterReason =
  /** The handler threw a `NonRetriableError`. */
  | "non-retriable"
  /** The handler failed as often as its policy allows. */
  | "attempts-exhausted"
  /** It was delivered as often as its policy allows, and no delivery was ever settled: its function was killed each time. */
  | "never-settled"
  /** The payload is not JSON in UTF-8. */
  | "undecodable"
  /** The payload does not fit its schema. */
  | "invalid"
  /** The stream has no schema for the subject. */
  | "unknown-subject";

/** The headers that tell a dead letter's story, beside those of the message itself. */
export const deadLetterHeaders = {
  reason: "Sortie-Reason",
  error: "Sortie-Error",
  stream: "Sortie-Stream",
  sequence: "Sortie-Sequence",
  subject: "Sortie-Subject",
  consumer: "Sortie-Consumer",
  attempts: "Sortie-Attempts",
  time: "Sortie-Time",
  messageId: "Sortie-Message-Id",
} as const;

/**
 * The dead letter of a delivery: its payload untouched, its headers less those that command the server, and its story.
 * Its id is derived, so that a crash between storing it and terminating the delivery makes no second one.
 */
export function deadLetterOf(
  delivery: Delivery,
  { deadLetter, stream, name }: ConsumerDefinition,
  story: { reason: DeadLetterReason; error: unknown; attempts: number; now: number },
): Outgoing {
  const own = headersOf(delivery.message);
  const messageId = own.get("Nats-Msg-Id");
  const kept = [...own].filter(([header]) => !/^nats-/i.test(header));
  return {
    subject: deadLetter,
    payload: delivery.message.data,
    id: derivedId(delivery, "dead-letter"),
    headers: {
      ...Object.fromEntries(kept),
      [deadLetterHeaders.reason]: story.reason,
      [deadLetterHeaders.error]: headerValue(textOf(story.error)),
      [deadLetterHeaders.stream]: stream.name,
      [deadLetterHeaders.sequence]: `${delivery.sequence}`,
      [deadLetterHeaders.subject]: delivery.message.subject,
      [deadLetterHeaders.consumer]: name,
      [deadLetterHeaders.attempts]: `${story.attempts}`,
      [deadLetterHeaders.time]: new Date(story.now).toISOString(),
      ...(messageId && { [deadLetterHeaders.messageId]: messageId }),
    },
  };
}

/** One line of printable ASCII, a kilobyte at most: a header cannot carry more safely. */
function headerValue(text: string): string {
  return text
    .replace(/\s+/g, " ")
    .replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .slice(0, 1024);
}
