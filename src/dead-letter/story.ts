import type { ConsumerDefinition } from "../define/consumer.ts";
import { textOf } from "../errors.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { headersSize, lineSize, type Outgoing } from "../publish/outgoing.ts";
import { idHeader } from "../schedule/when.ts";

/** Why a message is in the dead letters. */
export type DeadLetterReason =
  /** The handler threw a `NonRetriableError`, or an error that a rule of its policy sends here. */
  | "non-retriable"
  /** The handler failed as often as its policy allows. */
  | "attempts-exhausted"
  /** Its function was not heard of again as often as its policy allows, the last time with this message alone in hand. */
  | "function-died"
  /** The payload is not JSON in UTF-8. */
  | "undecodable"
  /** The payload does not fit its schema. */
  | "invalid"
  /** The stream has no schema for the subject. */
  | "unknown-subject";

/** One start of a handler. */
export interface Start {
  /** Epoch milliseconds. */
  readonly at: number;
  /** Where it ran. */
  readonly host: string;
  /** What it failed with; none where its function died. */
  readonly error?: string;
}

/** What became of a message before it was given up. */
export interface Story {
  readonly reason: DeadLetterReason;
  readonly error: unknown;
  /** How often a handler was started for it. */
  readonly attempts: number;
  /** These starts, or the latest of them. */
  readonly starts: readonly Start[];
  /** Where it was given up. */
  readonly host: string;
  /** When, in epoch milliseconds. */
  readonly now: number;
}

/** The headers that tell a dead letter's story, beside those of the message itself. */
export const deadLetterHeaders = {
  reason: "Sortie-Reason",
  error: "Sortie-Error",
  stream: "Sortie-Stream",
  sequence: "Sortie-Sequence",
  subject: "Sortie-Subject",
  consumer: "Sortie-Consumer",
  attempts: "Sortie-Attempts",
  /** One for each attempt: its time, its host and its error. */
  attempt: "Sortie-Attempt",
  time: "Sortie-Time",
  host: "Sortie-Host",
  messageId: "Sortie-Message-Id",
  /** Where the payload was so large that no header fitted beside it: the sequence of the entry that holds it. */
  payloadSequence: "Sortie-Payload-Sequence",
} as const;

/**
 * The dead letter of a delivery: its payload untouched, its headers less those that command the server, and its story.
 * Its id is derived, so that a crash between storing it and terminating the delivery makes no second one. Headers give
 * way where the server's `maxPayload` would not hold them all: the message's own first, then the attempts, then the
 * error's text. Undefined where the payload leaves no room for the story at all.
 */
export function deadLetterOf(
  delivery: Delivery,
  consumer: ConsumerDefinition,
  story: Story,
  maxPayload: number,
): Outgoing | undefined {
  const id = derivedId(delivery, "dead-letter");
  const own = delivery.headers();
  const first = (name: string) => own.find(([header]) => header === name)?.[1];
  const messageId = first(idHeader) ?? first("Nats-Msg-Id");
  const headers: [name: string, value: string][] = [
    [deadLetterHeaders.reason, story.reason],
    [deadLetterHeaders.stream, consumer.stream.name],
    [deadLetterHeaders.sequence, `${delivery.sequence}`],
    [deadLetterHeaders.subject, cleanValue(delivery.subject)],
    [deadLetterHeaders.consumer, consumer.name],
    [deadLetterHeaders.attempts, `${story.attempts}`],
    [deadLetterHeaders.time, new Date(story.now).toISOString()],
  ];
  let room = maxPayload - delivery.data.length - headersSize({ id, headers });
  if (room < 0) return undefined;
  const forName = deadLetterHeaders.error.length + 4;
  add(deadLetterHeaders.error, headerValue(textOf(story.error)).slice(0, Math.max(0, room - forName)));
  if (messageId) add(deadLetterHeaders.messageId, headerValue(messageId));
  add(deadLetterHeaders.host, headerValue(story.host));
  for (const start of story.starts.slice(-maxStarts)) add(deadLetterHeaders.attempt, lineOf(start));
  for (const [header, value] of own)
    if (isName(header) && !/^nats-/i.test(header) && !ofStory.has(header.toLowerCase())) add(header, cleanValue(value));
  return { subject: consumer.deadLetter, payload: delivery.data, id, headers };

  function add(...header: [name: string, value: string]): void {
    if (lineSize(header) > room) return;
    headers.push(header);
    room -= lineSize(header);
  }
}

const maxStarts = 20;

/** What a message may not bring along: it would be taken for its story's. */
const ofStory = new Set([...Object.values(deadLetterHeaders), idHeader].map((name) => name.toLowerCase()));

function lineOf({ at, host, error }: Start): string {
  return headerValue(`${new Date(at).toISOString()} ${host} ${error ?? "its function was not heard of again"}`).slice(
    0,
    300,
  );
}

/** A name that every client can read. */
function isName(name: string): boolean {
  return /^[\x21-\x39\x3b-\x7e]+$/.test(name);
}

/** A foreign value as it is where every client can read it. */
function cleanValue(value: string): string {
  return /^[\x20-\x7e]*$/.test(value) ? value : escaped(value);
}

function escaped(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** One line of printable ASCII, a kilobyte at most: a header cannot carry more safely. */
function headerValue(text: string): string {
  return escaped(text.replace(/\s+/g, " ")).slice(0, 1024);
}
