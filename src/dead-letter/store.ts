import type { ConsumerDefinition } from "../define/consumer.ts";
import { textOf } from "../errors.ts";
import { type Delivery, derivedId, headersOf } from "../nats/delivery.ts";
import { headersSize, lineSize, type Outgoing } from "../publish/outgoing.ts";
import { idHeader } from "../schedule/schedule.ts";

/** Why a message is in the dead letters. */
export type DeadLetterReason =
  /** The handler threw a `NonRetriableError`. */
  | "non-retriable"
  /** The handler failed as often as its policy allows. */
  | "attempts-exhausted"
  /** It was delivered as often as its policy allows, and no delivery was ever settled: each time its function ended before, or its dead letter was refused. */
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
 * Its id is derived, so that a crash between storing it and terminating the delivery makes no second one. Headers give
 * way where the server's `maxPayload` would not hold them all: the message's own first, then the error's text.
 */
export function deadLetterOf(
  delivery: Delivery,
  { deadLetter, stream, name }: ConsumerDefinition,
  story: { reason: DeadLetterReason; error: unknown; attempts: number; now: number },
  maxPayload: number,
): Outgoing {
  const { data: payload, subject } = delivery.message;
  const id = derivedId(delivery, "dead-letter");
  const own = headersOf(delivery.message);
  const first = (name: string) => own.find(([header]) => header === name)?.[1];
  const messageId = first("Nats-Msg-Id") ?? first(idHeader);
  const headers: [name: string, value: string][] = [
    [deadLetterHeaders.reason, story.reason],
    [deadLetterHeaders.stream, stream.name],
    [deadLetterHeaders.sequence, `${delivery.sequence}`],
    [deadLetterHeaders.subject, subject],
    [deadLetterHeaders.consumer, name],
    [deadLetterHeaders.attempts, `${story.attempts}`],
    [deadLetterHeaders.time, new Date(story.now).toISOString()],
  ];
  if (messageId) headers.push([deadLetterHeaders.messageId, messageId]);
  let room = maxPayload - payload.length - headersSize({ id, headers });
  add(
    deadLetterHeaders.error,
    headerValue(textOf(story.error)).slice(0, Math.max(0, room - deadLetterHeaders.error.length - 4)),
  );
  for (const [header, value] of own) if (!/^(nats|sortie)-/i.test(header)) add(header, value);
  return { subject: deadLetter, payload, id, headers };

  function add(...header: [name: string, value: string]): void {
    if (lineSize(header) > room) return;
    headers.push(header);
    room -= lineSize(header);
  }
}

/** One line of printable ASCII, a kilobyte at most: a header cannot carry more safely. */
function headerValue(text: string): string {
  return text
    .replace(/\s+/g, " ")
    .replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .slice(0, 1024);
}
